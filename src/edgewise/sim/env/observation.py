"""What a learner sees: the candidate table as float32, in two shapes. Compiled.

- *flat* (R, WIDTH): one wide row per candidate, as `fleet.table.flatten` gathers them: the
  candidate's own columns, its server's, and the context that all share.
- *parts*: the same figures without repetition: rows (R, len(ROW)), the server of each row (R,),
  servers (S, len(SERVER)) and context (len(CONTEXT),). A quarter of the bytes or less, and what a
  permutation-equivariant network wants.

Left out of `fleet.table`'s columns: the indices (``server``, ``service``, ``ingress``), which mean
nothing to a network that is to work on any fleet, and ``now``, which is for timers. Bytes are in MB
and rates in MB/s, so that all figures are of the order of 1; everything is clipped to [0, TOP].

The last row is *shed*. Worlds with fewer rows than there is room for leave those before it masked
and zero; masked rows are zero in *flat*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from edgewise.compile import inlined
from edgewise.compile.eights import Eights, vector
from edgewise.fleet import table as columns
from edgewise.fleet.arrays import Array
from edgewise.fleet.table import R_SERVER, CandidateTable

TOP = 1e4
"""s, MB or requests: nothing that matters is larger."""

_BYTES = {"size", "rate", "payload"}

_FIRST_ROW = columns.R_FORM
_FIRST_CONTEXT = columns.C_ELAPSED
ROW = tuple(columns.ROW)[_FIRST_ROW:]
SERVER = tuple(columns.SERVER)
CONTEXT = tuple(columns.CONTEXT)[_FIRST_CONTEXT : columns.C_NOW]
WIDTH = len(ROW) + len(SERVER) + len(CONTEXT)


def _factors(names: tuple[str, ...]) -> Array:
    return np.array([1e-6 if name in _BYTES else 1.0 for name in names], np.float32)


_ROW = _factors(ROW)
_NONE = np.float32(0.0)
_FLOAT, _INT, _BIT, _WORD = ir.FloatType(), ir.IntType(32), ir.IntType(1), ir.IntType(64)


def _scaled(builder: Any, value: Any, factor: Any) -> Any:
    """Eight figures as they are observed: float32 as the constant `factor`, scaled and clipped."""
    kind = factor.type
    none, top = (kind([bound] * kind.count) for bound in (0.0, TOP))
    value = builder.fmul(builder.fptrunc(value, kind), factor)
    value = builder.select(builder.fcmp_ordered(">", value, none), value, none)
    return builder.select(builder.fcmp_ordered("<", value, top), value, top)


def _show_line(names: tuple[str, ...]) -> Any:
    """Figures that stand together in the table, `names` of them."""
    factors = _factors(names).tolist()

    def show(typing: Any, source: Any, out: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            eights = Eights(context, builder, signature, args)
            for first in range(0, len(factors), 8):
                these = factors[first : first + 8]
                inside = vector(_BIT)([n < len(these) for n in range(8)])
                factor = vector(_FLOAT)((these + [0.0] * 8)[:8])
                value = eights.load(eights.place(0, _WORD(first)), inside)
                value = _scaled(builder, value, factor)
                eights.store(value, eights.place(1, _WORD(first)), inside)
            return context.get_dummy_value()

        return types.none(source, out), code

    return intrinsic(show)


def _show_eight(
    typing: Any, table: Any, admissible: Any, first: Any, count: Any, mask: Any, rows: Any, of: Any
) -> Any:
    """Eight rows from `first` of `count`."""
    kinds = (table, admissible, types.intp, types.intp, mask, rows, of)

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        eights = Eights(context, builder, signature, args)
        first, count = args[2:4]
        inside = eights.below(first, count)
        keep = eights.load(eights.place(1, first), inside)
        eights.store(keep, eights.place(4, first), inside)
        keep = builder.icmp_signed("!=", keep, keep.type(None))
        for c, factor in enumerate(_ROW.tolist()):
            value = eights.load(eights.place(0, first, _FIRST_ROW + c), keep)
            value = _scaled(builder, value, vector(_FLOAT)([factor] * 8))
            eights.store(value, eights.place(5, first, c), inside)
        number = builder.fptosi(eights.load(eights.place(0, first, R_SERVER), keep), vector(_INT))
        number = builder.select(keep, number, number.type([-1] * 8))
        eights.store(number, eights.place(6, first), inside)
        return context.get_dummy_value()

    return types.none(*kinds), code


show_server: Any = _show_line(SERVER)
show_context: Any = _show_line(CONTEXT)
show_eight: Any = intrinsic(_show_eight)


@inlined
def write_parts(
    table: CandidateTable, mask: Array, rows: Array, of: Array, servers: Array, context: Array
) -> None:
    """The mask and *parts*, with `rows` a column at a time (columns, rows) as the table has them;
    `of` are the rows' servers. Masked rows are zero, and of server −1."""
    show_context(table.context[_FIRST_CONTEXT:], context)
    for s in range(table.servers.shape[0]):
        show_server(table.servers[s], servers[s])
    count = table.mask.size - 1
    for first in range(0, count, 8):
        show_eight(table.rows, table.mask, first, count, mask, rows, of)
    mask[mask.size - 1] = 1


@inlined
def write_flat(rows: Array, of: Array, servers: Array, context: Array, out: Array) -> None:
    """*flat* from `write_parts`. `out` held an observation of the same world before, or zeros."""
    a = len(ROW)
    b = a + len(SERVER)
    for r in range(of.size):
        line = out[r]
        s = of[r]
        if s >= 0:
            for c in range(a):
                line[c] = rows[c, r]
            for c in range(len(SERVER)):
                line[a + c] = servers[s, c]
            for c in range(len(CONTEXT)):
                line[b + c] = context[c]
        elif line[a] != _NONE:  # `up`: it was shown before
            line[:] = _NONE
    for c in range(len(CONTEXT)):  # of shed
        out[of.size - 1, b + c] = context[c]
