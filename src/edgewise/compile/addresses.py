"""Tuples of arrays, laid down in a table that compiled code reads them from.

A row of the table is what `compile.reference` lays into a frame: the *words* of every array of a
tuple,
in the order of numba's own structure. So getting at the tuple of a row costs one pointer. What must
hold: the arrays are alive, at those addresses, of those shapes, and of the type that the reader was
made for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from edgewise.compile.decorators import PLAIN_PYTHON
from edgewise.compile.reference import Reference

cg: Any = cgutils  # it publishes no types
_ADDRESS = 4
"""Place of an array's address among its words."""


def words_of(part: Any) -> list[int]:
    """All arrays of a tuple, or of tuples in it: (meminfo, parent, items, item's size, address,
    shape, strides) each, as `numba.core.datamodel.models.ArrayModel` has them."""
    if isinstance(part, tuple):
        words = [word for each in part for word in words_of(each)]
        if PLAIN_PYTHON:
            _laid_out[words[_ADDRESS]] = part
        return words
    if isinstance(part, np.void):  # a record is passed by its address
        return [np.frombuffer(part, np.uint8).ctypes.data]
    return [0, 0, part.size, part.itemsize, part.ctypes.data, *part.shape, *part.strides]


def reader_of(kind_of: Callable[[], Any]) -> Any:
    """A compiled function of a table (N, words) and a row of it, which returns a reference to the
    tuple there.

    `kind_of()` is numba's type of the tuple. Only compiling asks for it: a tuple given as a model
    would have to be unpacked at every call.
    """

    def at(typing: Any, table: Any, row: Any) -> Any:
        reference = Reference(kind_of())

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            words = context.make_array(table)(context, builder, args[0])
            width = cg.unpack_tuple(builder, words.shape, 2)[1]
            begin = builder.mul(context.cast(builder, args[1], row, types.intp), width)
            kind = context.get_value_type(reference)
            return builder.bitcast(builder.gep(words.data, [begin]), kind)

        return reference(table, row), code

    return _tuple_at if PLAIN_PYTHON else intrinsic(at)


_laid_out: dict[int, Any] = {}
"""Without compiled code: the tuples themselves, by the address of their first array."""


def _tuple_at(table: Any, row: Any) -> Any:
    return _laid_out[int(table[row, _ADDRESS])]
