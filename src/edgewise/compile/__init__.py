"""How edgewise uses numba: the only package that knows numba's inside.

numba's documentation covers most of what the rest of edgewise does: functions decorated with `jit`
or `jit_no_refcount`, on structured arrays and named tuples of arrays. Five things go beyond it, and
each says what it gains, what must hold, and what it is as plain Python (NUMBA_DISABLE_JIT=1):

- `decorators`: functions without reference counts, compiled once for all widths of integers;
- `cache`: compiled code that is not used again after a change in another file;
- `reference`: tuples of arrays passed by a pointer; functions passed by a pointer;
- `addresses`: tuples of arrays that compiled code finds in a table;
- `specialise`: one function made from a template for each policy.

`tests/test_compiled.py` checks each against the numba that is installed; `pyproject.toml` limits
its version to those for which that was done.
"""

from edgewise.compile.addresses import address_words, tuple_reader
from edgewise.compile.decorators import PLAIN_PYTHON, jit, jit_no_refcount, uncompiled
from edgewise.compile.reference import as_pointer, by_reference, type_of
from edgewise.compile.specialise import compile_error, probability_of, specialised

__all__ = [
    "PLAIN_PYTHON",
    "address_words",
    "as_pointer",
    "by_reference",
    "compile_error",
    "jit",
    "jit_no_refcount",
    "probability_of",
    "specialised",
    "tuple_reader",
    "type_of",
    "uncompiled",
]
