"""Every trick that edgewise plays on numba, in one place."""

from edgewise.compile.decorators import CHECKED, copied, inlined, inner, jit, lean
from edgewise.compile.reference import Reference, by_reference

__all__ = [
    "CHECKED",
    "Reference",
    "by_reference",
    "copied",
    "inlined",
    "inner",
    "jit",
    "lean",
]
