"""What happened in a world, and where two of them part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.domain import Outcome, Stamps
from edgewise.fleet.table import CONTEXT, ROW, SERVER

Floats = NDArray[np.float64]

TIME_TOLERANCE = 1e-9
"""s. Both worlds add up the same durations in another order, and the live one on a clock that reads
10 s more: a double near 20 has steps of 3.6e-15 s, and a request's end is a sum of some hundred
terms at most (what is on its links and in its queues before it), each rounded once; link times come
out of bytes near 1e8 with steps of 1.5e-8 bytes, 1e-14 s at 8 Mbit/s. That is under 1e-11 s in all;
a hundred times that is still a millionth of what could matter."""

FEATURE_TOLERANCE = 1e-7
"""Relative, of what decisions rest on. The belief divides differences of clock readings near 20 by
periods, and rates are read off a capacity over a microsecond in one world and over its formula in
the other: 1e-9 was seen. A feature off by one in its unit is off by far more."""
FEATURE_FLOOR = 1e-3
"""What differences of features are relative to at least, in the feature's unit: 1e-10 s of waiting
are rounding where nobody waits."""

COMPARED = ("uploaded", "decided", "started", "finished", "answered", "received")
"""Stamps that mean the same thing in both worlds. `transferred` does for what was transferred: of
what stays, a node says when the body was in, the simulator when it could go into the queue."""


class Chosen(Struct, frozen=True, eq=False, kw_only=True):
    """A decision and what it rested on."""

    request: str
    at: float
    """s from the start of the run."""
    row: int
    probability: float
    mask: NDArray[np.uint8]
    rows: Floats
    servers: Floats
    context: Floats


class Transcript(Struct, frozen=True, eq=False, kw_only=True):
    """A run: its decisions in the order in which they were made, its outcomes by request."""

    decisions: tuple[Chosen, ...]
    outcomes: dict[str, Outcome]
    """Stamps are s from the start of the run."""


class Gap(Struct, frozen=True, kw_only=True):
    """One thing that is not the same."""

    request: str
    what: str
    one: object
    other: object

    def __str__(self) -> str:
        return f"{self.request}: {self.what}: {self.one} and {self.other}"


def differences(one: Transcript, other: Transcript, tolerance: float = TIME_TOLERANCE) -> list[Gap]:
    """Where two stories part: who decided what for whom and when and resting on what, how each
    request ended, where and when. Times count from `tolerance` s on, features from
    `FEATURE_TOLERANCE` on. Empty: it is the same story."""
    found: list[Gap] = []

    def say(request: str, what: str, first: object, second: object) -> None:
        found.append(Gap(request=request, what=what, one=first, other=second))

    order = [each.request for each in one.decisions]
    theirs = [each.request for each in other.decisions]
    if order != theirs:
        say("", "order of decisions", len(order), len(theirs))
    by_request = {each.request: each for each in other.decisions}
    for mine in one.decisions:
        its = by_request.get(mine.request)
        if its is None:
            continue
        if mine.row != its.row:
            say(mine.request, "row", mine.row, its.row)
        if abs(mine.at - its.at) > tolerance:
            say(mine.request, "decided at", mine.at, its.at)
    if one.outcomes.keys() != other.outcomes.keys():
        say("", "requests", len(one.outcomes), len(other.outcomes))
    for request, mine_ended in one.outcomes.items():
        its_ended = other.outcomes.get(request)
        if its_ended is None:
            continue
        for field in ("status", "server", "model", "form"):
            first, second = getattr(mine_ended, field), getattr(its_ended, field)
            if first != second:
                say(request, field, first, second)
        moved = mine_ended.server is not None and mine_ended.stamps.transferred is not None
        for stamp in (*COMPARED, "transferred") if moved else COMPARED:
            first, second = getattr(mine_ended.stamps, stamp), getattr(its_ended.stamps, stamp)
            if stamp == "transferred" and _stayed(one, request):
                continue
            if not _same(first, second, tolerance):
                say(request, stamp, first, second)
    for column, gap in feature_gaps(one, other).items():
        if gap > FEATURE_TOLERANCE:
            say("", f"feature {column}, relative difference", 0.0, gap)
    return found


def _stayed(story: Transcript, request: str) -> bool:
    """Whether it ran where it came in: then it was never on a link between servers."""
    ended = story.outcomes[request].stamps
    return ended.transferred is None or ended.finished == ended.answered


def _same(first: float | None, second: float | None, tolerance: float) -> bool:
    if first is None or second is None:
        return first is second
    return abs(first - second) <= tolerance


def feature_gaps(one: Transcript, other: Transcript) -> dict[str, float]:
    """Largest relative difference of each column of what decisions rested on, over admissible rows;
    relative to the larger of both and `FEATURE_FLOOR`. Only columns that differ at all."""
    worst: dict[str, float] = {}
    theirs = {each.request: each for each in other.decisions}
    for mine in one.decisions:
        its = theirs.get(mine.request)
        if its is None:
            continue
        if not np.array_equal(mine.mask, its.mask):
            worst["mask"] = math.inf
        rows = mine.mask[:-1] == 1
        _widen(worst, tuple(ROW), mine.rows[:-1][rows], its.rows[:-1][rows])
        _widen(worst, tuple(SERVER), mine.servers, its.servers)
        _widen(worst, tuple(CONTEXT), mine.context[None], its.context[None])
    return worst


def _widen(worst: dict[str, float], names: Sequence[str], mine: Floats, its: Floats) -> None:
    for column, name in enumerate(names):
        first, second = mine[:, column], its[:, column]
        if not first.size or np.array_equal(first, second, equal_nan=True):
            continue
        scale = np.maximum(FEATURE_FLOOR, np.maximum(np.abs(first), np.abs(second)))
        gap = float(np.nanmax(np.abs(first - second) / scale))
        if np.any(np.isnan(first) != np.isnan(second)):
            gap = math.inf
        worst[name] = max(worst.get(name, 0.0), gap)


def shifted(outcome: Outcome, by: float) -> Outcome:
    """An outcome with `by` s taken off its stamps."""
    stamps = {
        field: None if (at := getattr(outcome.stamps, field)) is None else max(0.0, at - by)
        for field in Stamps.__struct_fields__
    }
    return msgspec.structs.replace(outcome, stamps=Stamps(**stamps))
