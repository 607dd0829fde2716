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

from edgewise.compiled import inlined
from edgewise.fleet import table as columns
from edgewise.fleet.layout import Array
from edgewise.fleet.table import R_SERVER, Table

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
_SERVER = _factors(SERVER)
_CONTEXT = _factors(CONTEXT)
_TOP = np.float32(TOP)
_NONE = np.float32(0.0)


@inlined
def shown(value: float, factor: np.float32) -> np.float32:
    """A figure of the table, scaled and clipped. Without a branch: half of them are 0, and which is
    as good as random."""
    return min(max(_NONE, np.float32(value) * factor), _TOP)


@inlined
def show(source: Array, factors: Array, out: Array) -> None:
    """Figures that stand together in the table."""
    for j in range(factors.size):
        out[j] = shown(source[j], factors[j])


@inlined
def show_rows(table: Table, mask: Array, out: Array) -> None:
    """The rows' own figures, a column at a time as they lie; 0 where a row is masked."""
    for c in range(len(ROW)):
        for r in range(table.mask.size - 1):
            value = shown(table.rows[r, _FIRST_ROW + c], _ROW[c])
            out[r, c] = value if mask[r] != 0 else _NONE


@inlined
def copy(source: Array, out: Array) -> None:
    """All of `source` to the beginning of `out`."""
    for j in range(source.size):
        out[j] = source[j]


@inlined
def write_mask(table: Table, waits: bool, out: Array) -> None:
    """Admissible rows into `out` (int8); only shed if nothing waits for a decision."""
    for r in range(table.mask.size - 1):
        out[r] = table.mask[r] if waits else 0
    out[out.size - 1] = 1


@inlined
def write_flat(table: Table, mask: Array, out: Array) -> None:
    """One wide row per candidate. `out` held an observation of the same world before, or zeros."""
    a = len(ROW)
    b = a + len(SERVER)
    shared = out[mask.size - 1, b:]
    show(table.context[_FIRST_CONTEXT:], _CONTEXT, shared)
    show_rows(table, mask, out)
    before = -1
    shown = -1
    for r in range(table.mask.size - 1):
        line = out[r]
        if mask[r] == 0:
            if line[a] != _NONE:  # `up`: it was shown before
                for j in range(a, line.size):
                    line[j] = _NONE
            continue
        s = int(table.rows[r, R_SERVER])
        if s == shown:  # rows of a server stand together
            copy(out[before, a:], line[a:])
        else:
            show(table.servers[s], _SERVER, line[a:])
            copy(shared, line[b:])
        shown = s
        before = r


@inlined
def write_parts(
    table: Table, mask: Array, rows: Array, server: Array, servers: Array, context: Array
) -> None:
    """The same without repetition; masked rows are zero and belong to server −1."""
    show(table.context[_FIRST_CONTEXT:], _CONTEXT, context)
    for s in range(table.servers.shape[0]):
        show(table.servers[s], _SERVER, servers[s])
    show_rows(table, mask, rows)
    for r in range(table.mask.size - 1):
        server[r] = int(table.rows[r, R_SERVER]) if mask[r] != 0 else -1
