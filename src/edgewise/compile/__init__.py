"""Every trick that edgewise plays on numba, in one place."""

from edgewise.compile.decorators import (
    CHECKED,
    copied,
    inlined,
    inner,
    jit,
    jit_inlined,
    lean,
)
from edgewise.compile.reference import Reference, by_reference
from edgewise.compile.specialise import compile_error, probability_of, specialised

__all__ = [
    "CHECKED",
    "Reference",
    "by_reference",
    "compile_error",
    "copied",
    "inlined",
    "inner",
    "jit",
    "jit_inlined",
    "lean",
    "probability_of",
    "specialised",
]
