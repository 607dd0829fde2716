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

from collections.abc import Iterable

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.fleet import table as columns
from edgewise.fleet.arrays import Array
from edgewise.fleet.table import CandidateTable

TOP = 1e4
"""s, MB or requests: nothing that matters is larger."""

_HIDDEN = {"server", "service", "ingress", "now"}
_BYTES = {"size", "rate", "payload"}

ROW = tuple(name for name in columns.ROW if name not in _HIDDEN)
SERVER = tuple(name for name in columns.SERVER if name not in _HIDDEN)
CONTEXT = tuple(name for name in columns.CONTEXT if name not in _HIDDEN)
WIDTH = len(ROW) + len(SERVER) + len(CONTEXT)


def _places(shown: tuple[str, ...], names: Iterable[str]) -> Array:
    """Where the columns shown stand among those of the table."""
    places = {name: c for c, name in enumerate(names)}
    return np.array([places[name] for name in shown])


def _factors(names: tuple[str, ...]) -> Array:
    return np.array([1e-6 if name in _BYTES else 1.0 for name in names], np.float32)


_ROW_PLACES, _ROW_FACTORS = _places(ROW, columns.ROW), _factors(ROW)
_SERVER_PLACES, _SERVER_FACTORS = _places(SERVER, columns.SERVER), _factors(SERVER)
_CONTEXT_PLACES, _CONTEXT_FACTORS = _places(CONTEXT, columns.CONTEXT), _factors(CONTEXT)
_NONE, _TOP = np.float32(0.0), np.float32(TOP)


@jit_no_refcount(inline=True, internal=True)
def scaled(value: float, factor: np.float32) -> np.float32:
    """A figure as it is observed: float32, scaled and clipped to [0, TOP]."""
    number = np.float32(value) * factor
    number = number if number > _NONE else _NONE  # NaN too
    return number if number < _TOP else _TOP


@jit_no_refcount(inline=True, internal=True)
def write_parts(
    table: CandidateTable, mask: Array, rows: Array, of: Array, servers: Array, context: Array
) -> None:
    """The mask and *parts*, with `rows` a column at a time (columns, rows) as the table has them;
    `of` are the rows' servers. Masked rows are zero, and of server −1."""
    arrays = table.arrays
    for c in range(len(CONTEXT)):
        context[c] = scaled(arrays.context[_CONTEXT_PLACES[c]], _CONTEXT_FACTORS[c])
    for s in range(arrays.servers.shape[0]):
        for c in range(len(SERVER)):
            servers[s, c] = scaled(arrays.servers[s, _SERVER_PLACES[c]], _SERVER_FACTORS[c])
    count = table.mask.size - 1
    for r in range(count):
        mask[r] = table.mask[r]
        of[r] = np.int32(table.rows.server[r]) if table.mask[r] != 0 else -1
    for c in range(len(ROW)):
        column, factor = _ROW_PLACES[c], _ROW_FACTORS[c]
        for r in range(count):
            value = arrays.rows[r, column] if table.mask[r] != 0 else 0.0
            rows[c, r] = scaled(value, factor)
    mask[mask.size - 1] = 1


@jit_no_refcount(inline=True, internal=True)
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
