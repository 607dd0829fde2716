"""What happened in a run, decision by decision, and where two runs differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.domain import Outcome, Stamps
from edgewise.fleet.table import CONTEXT, ROW, SERVER

Floats = NDArray[np.float64]

TIME_TOLERANCE = 1e-9
"""s. Both worlds add up the same durations, in another order and the live one on a clock that reads
10 s more. A double near 20 has steps of 3.6e-15 s, and a request's end is a sum of some hundred
terms at most (what is on its links and in its queues before it), each rounded once; link times come
out of bytes near 1e8 with steps of 1.5e-8 bytes, 1e-14 s at 8 Mbit/s. That makes less than 1e-11 s;
a hundred times that is still a millionth of what could matter."""

FEATURE_TOLERANCE = 1e-7
"""Relative difference of a column that decisions rest on. The belief divides differences of clock
readings near 20 by periods, and rates are read off a capacity over a microsecond in one world and
over its formula in the other: 1e-9 was seen. A column in the wrong unit is off by far more."""
FEATURE_FLOOR = 1e-3
"""Differences of columns are relative to at least this much, in the column's unit: 1e-10 s of
waiting are rounding where nobody waits."""

COMPARED_STAMPS = ("uploaded", "decided", "started", "finished", "answered", "received")
"""Stamps with the same meaning in both worlds. *transferred* has it for transferred requests only:
of the others, a node notes when the body was in, the simulator when it could join the queue."""


class DecisionRecord(Struct, frozen=True, eq=False, kw_only=True):
    """A decision and the candidate table it rests on (`edgewise.domain.Observation`)."""

    request: str
    at: float
    """s from the start of the run."""
    row: int
    """The row chosen; the last one sheds."""
    probability: float
    mask: NDArray[np.uint8]
    rows: Floats
    servers: Floats
    context: Floats


class Transcript(Struct, frozen=True, eq=False, kw_only=True):
    """A run: its decisions in the order they were made, and its outcomes by request id."""

    decisions: tuple[DecisionRecord, ...]
    outcomes: dict[str, Outcome]
    """With stamps in s from the start of the run."""


class Difference(Struct, frozen=True, kw_only=True):
    """One thing in which two runs differ."""

    request: str
    """Empty: it concerns the whole run."""
    what: str
    """A field, a stamp, or ``feature COLUMN, relative difference``."""
    one: object
    other: object

    def __str__(self) -> str:
        return f"{self.request}: {self.what}: {self.one} and {self.other}"


def differences(
    one: Transcript, other: Transcript, tolerance: float = TIME_TOLERANCE
) -> list[Difference]:
    """All differences between two runs of one trace; empty if they are the same.

    Compared are each decision (which row, when, resting on which numbers) and each outcome (status,
    server, model, form, stamps). Times may differ by `tolerance` s, the columns of the candidate
    table by `FEATURE_TOLERANCE`.
    """
    found: list[Difference] = []

    def compare(request: str, what: str, first: object, second: object) -> None:
        if isinstance(first, float) and isinstance(second, float):
            same = abs(first - second) <= tolerance
        else:
            same = first == second
        if not same:
            found.append(Difference(request=request, what=what, one=first, other=second))

    orders = [[each.request for each in run.decisions] for run in (one, other)]
    compare("", "order of decisions", *orders)
    for decided, again in _pairs(one, other):
        compare(decided.request, "row", decided.row, again.row)
        compare(decided.request, "decided at", decided.at, again.at)
    compare("", "requests", sorted(one.outcomes), sorted(other.outcomes))
    for request, ended in one.outcomes.items():
        ended_again = other.outcomes.get(request)
        if ended_again is None:
            continue
        for field in ("status", "server", "model", "form"):
            compare(request, field, getattr(ended, field), getattr(ended_again, field))
        stamps = (*COMPARED_STAMPS, "transferred") if _was_transferred(ended) else COMPARED_STAMPS
        for stamp in stamps:
            times = (getattr(each.stamps, stamp) for each in (ended, ended_again))
            compare(request, stamp, *times)
    for column, gap in feature_differences(one, other).items():
        if gap > FEATURE_TOLERANCE:
            what = f"feature {column}, relative difference"
            found.append(Difference(request="", what=what, one=0.0, other=gap))
    return found


def _pairs(one: Transcript, other: Transcript) -> Iterator[tuple[DecisionRecord, DecisionRecord]]:
    """Decisions on the same request."""
    by_request = {each.request: each for each in other.decisions}
    for first in one.decisions:
        second = by_request.get(first.request)
        if second is not None:
            yield first, second


def _was_transferred(outcome: Outcome) -> bool:
    """Whether it was on a link between servers; at its ingress it is answered when it finishes."""
    stamps = outcome.stamps
    moved = outcome.server is not None and stamps.transferred is not None
    return moved and stamps.finished != stamps.answered


def feature_differences(one: Transcript, other: Transcript) -> dict[str, float]:
    """Largest relative difference of each column of the candidate tables, over admissible rows.

    Relative to the larger of both values and `FEATURE_FLOOR`. Columns that are equal to the bit are
    left out.
    """
    largest: dict[str, float] = {}
    for first, second in _pairs(one, other):
        if not np.array_equal(first.mask, second.mask):
            largest["mask"] = math.inf
        rows = first.mask[:-1] == 1
        _compare_columns(largest, tuple(ROW), first.rows[:-1][rows], second.rows[:-1][rows])
        _compare_columns(largest, tuple(SERVER), first.servers, second.servers)
        _compare_columns(largest, tuple(CONTEXT), first.context[None], second.context[None])
    return largest


def _compare_columns(
    largest: dict[str, float], names: Sequence[str], one: Floats, other: Floats
) -> None:
    for column, name in enumerate(names):
        first, second = one[:, column], other[:, column]
        if not first.size or np.array_equal(first, second, equal_nan=True):
            continue
        scale = np.maximum(FEATURE_FLOOR, np.maximum(np.abs(first), np.abs(second)))
        gap = float(np.nanmax(np.abs(first - second) / scale))
        if np.any(np.isnan(first) != np.isnan(second)):
            gap = math.inf
        largest[name] = max(largest.get(name, 0.0), gap)


def from_start(outcome: Outcome, start: float) -> Outcome:
    """The outcome with its stamps counted from `start` (s on the clock they were taken with)."""
    stamps = {
        field: None if (at := getattr(outcome.stamps, field)) is None else max(0.0, at - start)
        for field in Stamps.__struct_fields__
    }
    return msgspec.structs.replace(outcome, stamps=Stamps(**stamps))
