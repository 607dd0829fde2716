"""Observations: the candidate table as float32, in three layouts. Compiled.

- *table* (R, WIDTH): one row per candidate, holding the candidate's own columns, its server's, and
  the context that all rows share.
- *flat* (R × WIDTH,): the same memory in one dimension.
- *parts*: the same numbers without repetition: rows (R, len(ROW)), the server of each row (R,),
  servers (S, len(SERVER)) and context (len(CONTEXT),). This takes a quarter of the bytes or less,
  and suits networks that treat rows alike.

Some columns of `fleet.table` are left out: the indices (``server``, ``service``, ``ingress``),
because a network should work on any fleet, and ``now``, which is for timers. Bytes are in MB and
rates in MB/s, so that all numbers are of the order of 1. Everything is clipped to [0, TOP].

The last row is *shed*. Worlds smaller than the largest leave the rows before it masked and zero.
Masked rows are zero in *table*.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.fleet import table as columns
from edgewise.fleet.arrays import Array
from edgewise.fleet.table import CandidateTable

TOP = 1e4
"""The largest number shown, in s, MB or requests. Nothing that matters is larger."""

_HIDDEN = {"server", "service", "ingress", "now"}
_BYTES = {"size", "rate", "payload"}

ROW = tuple(name for name in columns.ROW if name not in _HIDDEN)
SERVER = tuple(name for name in columns.SERVER if name not in _HIDDEN)
CONTEXT = tuple(name for name in columns.CONTEXT if name not in _HIDDEN)
WIDTH = len(ROW) + len(SERVER) + len(CONTEXT)


def _places(shown: tuple[str, ...], names: Iterable[str]) -> Array:
    """The positions, among the table's columns `names`, of those that are shown."""
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
    """A number as it is shown: float32, scaled and clipped to [0, TOP]; NaN becomes 0."""
    number = np.float32(value) * factor
    number = number if number > _NONE else _NONE  # NaN too
    return number if number < _TOP else _TOP


@jit_no_refcount(inline=True, internal=True)
def write_parts(
    table: CandidateTable,
    mask: Array,
    rows: Array,
    server_of: Array,
    servers: Array,
    context: Array,
) -> None:
    """Write the mask and *parts*.

    `rows` is (columns, R), as the candidate table stores them. `server_of` (R,) gets the rows'
    servers. Masked rows are zero, with server −1.
    """
    arrays = table.arrays
    for c in range(len(CONTEXT)):
        context[c] = scaled(arrays.context[_CONTEXT_PLACES[c]], _CONTEXT_FACTORS[c])
    for s in range(arrays.servers.shape[0]):
        for c in range(len(SERVER)):
            servers[s, c] = scaled(arrays.servers[s, _SERVER_PLACES[c]], _SERVER_FACTORS[c])
    count = table.mask.size - 1
    for r in range(count):
        mask[r] = table.mask[r]
        server_of[r] = np.int32(table.rows.server[r]) if table.mask[r] != 0 else -1
    for c in range(len(ROW)):
        column, factor = _ROW_PLACES[c], _ROW_FACTORS[c]
        for r in range(count):
            value = arrays.rows[r, column] if table.mask[r] != 0 else 0.0
            rows[c, r] = scaled(value, factor)
    mask[mask.size - 1] = 1


@jit_no_refcount(inline=True, internal=True)
def write_table(rows: Array, server_of: Array, servers: Array, context: Array, out: Array) -> None:
    """Write *table* into `out`, from what `write_parts` has written.

    `out` holds zeros or an earlier observation of the same world, so rows masked before are zero.
    """
    a = len(ROW)
    b = a + len(SERVER)
    for r in range(server_of.size):
        line = out[r]
        s = server_of[r]
        if s >= 0:
            for c in range(a):
                line[c] = rows[c, r]
            for c in range(len(SERVER)):
                line[a + c] = servers[s, c]
            for c in range(len(CONTEXT)):
                line[b + c] = context[c]
        elif line[a] != _NONE:  # `up` of its server: the row was shown before
            line[:] = _NONE
    for c in range(len(CONTEXT)):  # in the shed row
        out[server_of.size - 1, b + c] = context[c]
