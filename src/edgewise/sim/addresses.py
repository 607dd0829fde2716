"""Tuples of arrays, built in compiled code from a table of their addresses.

A row of the table is the *words* of one tuple: address and shape of every array. The tuple that is
built holds no reference and counts none. What must hold: the arrays are alive, at those addresses,
and of the type that the reader was made for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

# They publish no types, or not for this.
cg: Any = cgutils
arrays: Any = arrayobj
tuples: Any = types.BaseTuple


def words_of(part: Any) -> list[int]:
    """Address and shape of every array of a tuple, or of tuples in it; all of them contiguous."""
    if isinstance(part, tuple):
        return [word for each in part for word in words_of(each)]
    return [part.ctypes.data, *part.shape]


def reader_of(kind_of: Callable[[], Any]) -> Any:
    """A compiled function of a table (N, words) and a row of it, which returns the tuple there.

    `kind_of()` is numba's type of the tuple. Only compiling asks for it: a tuple given as a model
    would have to be unpacked at every call.
    """

    def at(typing: Any, table: Any, row: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            words = context.make_array(table)(context, builder, args[0])
            width = cg.unpack_tuple(builder, words.shape, 2)[1]
            base = builder.mul(context.cast(builder, args[1], row, types.intp), width)
            position = 0

            def word() -> Any:
                nonlocal position
                place = builder.add(base, cg.intp_t(position))
                position += 1
                return builder.load(builder.gep(words.data, [place]))

            def build(kind: Any) -> Any:
                if isinstance(kind, tuples):
                    return context.make_tuple(builder, kind, [build(each) for each in kind.types])
                array = context.make_array(kind)(context, builder)
                size = context.get_abi_sizeof(context.get_data_type(kind.dtype))
                data = builder.inttoptr(word(), array.data.type)
                shape = [word() for _ in range(kind.ndim)]
                steps = [cg.intp_t(size)]  # from the axis that varies fastest to the slowest
                for length in shape[:-1] if kind.layout == "F" else reversed(shape[1:]):
                    steps.append(builder.mul(steps[-1], length))
                strides = steps if kind.layout == "F" else steps[::-1]
                arrays.populate_array(
                    array,
                    data=data,
                    shape=cg.pack_array(builder, shape),
                    strides=cg.pack_array(builder, strides),
                    itemsize=cg.intp_t(size),
                    meminfo=None,
                )
                return array._getvalue()

            return build(signature.return_type)

        return kind_of()(table, row), code

    return intrinsic(at)
