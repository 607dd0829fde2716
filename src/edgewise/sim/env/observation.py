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

import numpy as np

from edgewise.compile import inlined
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
_NONE, _TOP = np.float32(0.0), np.float32(TOP)


_SERVER = _factors(SERVER)
_CONTEXT = _factors(CONTEXT)


@inlined
def scaled(value: float, factor: np.float32) -> np.float32:
    """A figure as it is observed: float32, scaled and clipped to [0, TOP]."""
    number = np.float32(value) * factor
    number = number if number > _NONE else _NONE  # NaN too
    return number if number < _TOP else _TOP


@inlined
def write_parts(
    table: CandidateTable, mask: Array, rows: Array, of: Array, servers: Array, context: Array
) -> None:
    """The mask and *parts*, with `rows` a column at a time (columns, rows) as the table has them;
    `of` are the rows' servers. Masked rows are zero, and of server −1."""
    for c in range(len(CONTEXT)):
        context[c] = scaled(table.context[_FIRST_CONTEXT + c], _CONTEXT[c])
    for s in range(table.servers.shape[0]):
        for c in range(len(SERVER)):
            servers[s, c] = scaled(table.servers[s, c], _SERVER[c])
    count = table.mask.size - 1
    for r in range(count):
        mask[r] = table.mask[r]
        of[r] = np.int32(table.rows[r, R_SERVER]) if table.mask[r] != 0 else -1
    for c in range(len(ROW)):
        for r in range(count):
            value = table.rows[r, _FIRST_ROW + c] if table.mask[r] != 0 else 0.0
            rows[c, r] = scaled(value, _ROW[c])
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
