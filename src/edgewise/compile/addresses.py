"""Tuples of arrays listed by address, so that compiled code can step many of them in one call.

The arrays of two simulations differ in size, so there is no array of simulations, and handing
hundreds of arrays from Python takes longer than a step. So `address_words` writes a tuple down as
integers, one row of a table for each tuple, and `tuple_reader` makes the compiled function that
returns a reference to the tuple in a row (`compile.reference`). A row has the layout of numba's own
structure of a tuple, so reading one costs a pointer.

Measured gain: a step of the environment takes .64–.74 of the time. As plain Python the reader
returns the tuple that was written down.

What must hold: the arrays are alive and where they were, and the tuple has the type that the reader
was made for. Whoever writes the row sees to both, for compiled code cannot check
(`sim.env.batched.BatchedSims.put`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from edgewise.compile.decorators import PLAIN_PYTHON
from edgewise.compile.reference import Reference, type_of

cg: Any = cgutils  # it publishes no types

_ADDRESS = 4
"""Place of an array's address among its words."""
_written_down: dict[int, Any] = {}
"""As plain Python: the tuples, by the address of their first array."""


def address_words(part: Any) -> list[int]:
    """The words of a tuple of arrays, of records and of such tuples.

    An array is (meminfo, parent, items, bytes of an item, address, shape, strides), as
    `numba.core.datamodel.models.ArrayModel` has it; the first two are 0, so numba counts no
    references to it. A record is its address.
    """
    if isinstance(part, tuple):
        words = [word for each in part for word in address_words(each)]
        if PLAIN_PYTHON:
            _written_down[words[_ADDRESS]] = part
        return words
    if isinstance(part, np.void):
        return [np.frombuffer(part, np.uint8).ctypes.data]
    return [0, 0, part.size, part.itemsize, part.ctypes.data, *part.shape, *part.strides]


def tuple_reader(example: Callable[[], Any]) -> Any:
    """The compiled function (table, row) → a reference to the tuple there; `table` (N, words).

    `example()` returns a tuple of that type. It is called when the reader is compiled.
    """

    def at(typing: Any, table: Any, row: Any) -> Any:
        reference = Reference(type_of(example()))

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            words = context.make_array(table)(context, builder, args[0])
            width = cg.unpack_tuple(builder, words.shape, 2)[1]
            begin = builder.mul(context.cast(builder, args[1], row, types.intp), width)
            kind = context.get_value_type(reference)
            return builder.bitcast(builder.gep(words.data, [begin]), kind)

        return reference(table, row), code

    return _tuple_at if PLAIN_PYTHON else intrinsic(at)


def _tuple_at(table: Any, row: Any) -> Any:
    return _written_down[int(table[row, _ADDRESS])]
