"""Compare two recorded sides of a scenario stage by stage, for example simulation and processes.

What comes in: folders with ``requests.parquet`` and ``outcomes.parquet``, one per seed and side.
What goes out: a `RunComparison`, which the commands print, draw and write as JSON.

Differences of utility are *paired* where both sides had the same requests: the mean over requests
of (second − first). Their ± is a 95 % interval. It comes from blocks of a second, because requests
of the same moment share a queue and are not independent; below two blocks it is None.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.domain import Stamps, request_number
from edgewise.errors import BadInput
from edgewise.live import records
from edgewise.live.recorder import read

Floats = NDArray[np.float64]

STAGES = tuple(Stamps().stages())
LATENCY = "latency"
DEMAND_COLUMNS = ("payload_bytes", "deadline", "accuracy")
BLOCK = 1.0
"""s. Longer than nearly every deadline here, so that blocks hardly influence each other."""


class RecordedRun(Struct, frozen=True, kw_only=True):
    """The requests of a run in the order in which they were sent, and how each ended."""

    sent: Floats
    """s since the first one."""
    demands: Floats
    """(N, 3): payload bytes, deadline in s, accuracy demanded. Runs with equal rows had the same
    requests."""
    utility: Floats
    """Expected utility of each request, refused and lost ones included."""
    served: NDArray[np.bool_]
    moved: NDArray[np.bool_]
    """Served by another server than the ingress."""
    ready: NDArray[np.bool_]
    """Transferred in the model-ready form."""
    times: dict[str, Floats]
    """s spent in each stage, and *latency*; NaN where the request did not get there."""

    def served_times(self, stage: str) -> Floats:
        """s that served requests spent in `stage`; for *transfer*, those that were moved."""
        times = self.times[stage]
        of = self.moved if stage == "transfer" else self.served
        return times[of & np.isfinite(times)]


def read_run(folders: Sequence[Path]) -> RecordedRun:
    """Read the runs of several seeds as one. Raises BadInput for a folder without their files."""
    parts = [_read_one(folder) for folder in folders]

    def concatenated(name: str) -> NDArray[np.float64]:
        return np.concatenate([getattr(part, name) for part in parts])

    starts = np.cumsum([0.0, *(part.sent.max(initial=0.0) + 2 * BLOCK for part in parts)])
    return RecordedRun(
        sent=np.concatenate([part.sent + at for part, at in zip(parts, starts, strict=False)]),
        demands=concatenated("demands"),
        utility=concatenated("utility"),
        served=concatenated("served").astype(bool),
        moved=concatenated("moved").astype(bool),
        ready=concatenated("ready").astype(bool),
        times={
            stage: np.concatenate([part.times[stage] for part in parts])
            for stage in (*STAGES, LATENCY)
        },
    )


def number_of(request: str) -> int:
    """The place of a request in its trace, which its id ends with on both sides."""
    number = request_number(request)
    if number is None:
        raise BadInput(f"request {request!r}: expected an id that ends with a number")
    return number


def requests_with_outcomes(folder: Path) -> pa.Table:
    """The requests of a run joined with their outcomes, in the order in which they were sent.

    Raises BadInput for files that are missing or do not match.
    """
    requests = read(folder, records.REQUESTS.name)
    outcomes = read(folder, records.OUTCOMES.name).drop_columns(["accuracy", "label"])
    both = requests.join(outcomes, "request", join_type="inner")
    if both.num_rows != requests.num_rows or not requests.num_rows:
        raise BadInput(
            f"{folder}: expected an outcome for each of {requests.num_rows} requests, "
            f"found {both.num_rows}"
        )
    return both.sort_by("sent_at")


def float_column(table: pa.Table, name: str) -> Floats:
    """A numeric column as floats; NaN where it is null."""
    return np.asarray(table.column(name).cast(pa.float64()).to_numpy(), np.float64)


def _read_one(folder: Path) -> RecordedRun:
    table = requests_with_outcomes(folder)
    order = np.argsort([number_of(each) for each in table.column("request").to_pylist()])
    table = table.take(pa.array(order))
    served = np.array(table.column("status").to_pylist()) == "served"
    server = np.array(table.column("server").to_pylist(), dtype=object)
    moved = served & (server != np.array(table.column("ingress").to_pylist(), dtype=object))
    sent = float_column(table, "sent_at")
    return RecordedRun(
        sent=sent - sent.min(),
        demands=np.stack([float_column(table, name) for name in DEMAND_COLUMNS], axis=1),
        utility=float_column(table, "expected"),
        served=served,
        moved=moved,
        ready=moved & (float_column(table, "form") == 1.0),
        times={
            **{stage: float_column(table, f"stage_{stage}") for stage in STAGES},
            LATENCY: float_column(table, "latency"),
        },
    )


# -- comparing -----------------------------------------------------------------------------------


class TimeSummary(Struct, frozen=True, kw_only=True):
    """The distribution of some times; None where there are none."""

    count: int
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None

    @classmethod
    def of(cls, seconds: Floats) -> TimeSummary:
        if not len(seconds):
            return cls(count=0, mean_ms=None, p50_ms=None, p95_ms=None)
        p50, p95 = np.percentile(seconds, (50, 95)) * 1e3
        mean = 1e3 * float(seconds.mean())
        return cls(count=len(seconds), mean_ms=mean, p50_ms=float(p50), p95_ms=float(p95))


class SideSummary(Struct, frozen=True, kw_only=True):
    """One policy on one side."""

    requests: int
    utility: float
    """Mean expected utility."""
    served: float
    """Share of all requests that were served."""
    moved: float
    """Share of the served that were transferred."""
    ready: float
    """Share of the moved that were model-ready."""
    times: dict[str, TimeSummary]
    """By stage, and *latency*."""


class PolicyPair(Struct, frozen=True, kw_only=True):
    """One policy on both sides."""

    policy: str
    sides: tuple[SideSummary, SideSummary]
    difference: float
    """Mean expected utility, second − first."""
    plus_minus: float | None
    """Half the width of the 95 % interval of the difference."""
    paired: bool
    """Whether the requests were the same."""
    within: bool
    """Whether the difference is no larger than the tolerance."""


class RankingInversion(Struct, frozen=True, kw_only=True):
    """Two policies that the sides rank differently."""

    policies: tuple[str, str]
    gaps: tuple[float, float]
    """Utility of the first policy − that of the second, on each side."""
    noise: float | None
    """Half the width of the 95 % interval of the smaller gap. A smaller gap may be chance."""


class RunComparison(Struct, frozen=True, kw_only=True):
    """All policies of a scenario on two sides."""

    scenario: str
    sides: tuple[str, str]
    seeds: tuple[int, ...]
    tolerance: float
    notes: tuple[str, ...] = ()
    policies: tuple[PolicyPair, ...]
    rankings: tuple[tuple[str, ...], tuple[str, ...]]
    """Best first, on each side."""
    same_ranking: bool
    inversions: tuple[RankingInversion, ...]
    within: bool
    """Whether every policy is within the tolerance."""


def compare_runs(
    runs: Mapping[str, tuple[RecordedRun, RecordedRun]],
    *,
    scenario: str,
    sides: tuple[str, str],
    seeds: Sequence[int],
    tolerance: float,
    notes: Sequence[str] = (),
) -> RunComparison:
    """Compare both runs of each policy; `tolerance` is that of the expected utility."""
    pairs = tuple(_pair(policy, *both, tolerance) for policy, both in runs.items())
    rankings = tuple(
        tuple(p.policy for p in sorted(pairs, key=lambda p, s=side: -p.sides[s].utility))  # type: ignore[misc]
        for side in (0, 1)
    )
    return RunComparison(
        scenario=scenario,
        sides=sides,
        seeds=tuple(seeds),
        tolerance=tolerance,
        notes=tuple(notes),
        policies=pairs,
        rankings=(rankings[0], rankings[1]),
        same_ranking=rankings[0] == rankings[1],
        inversions=tuple(_inversions(runs)),
        within=all(pair.within for pair in pairs),
    )


def _pair(policy: str, first: RecordedRun, second: RecordedRun, tolerance: float) -> PolicyPair:
    paired = same_requests(first, second)
    difference = float(second.utility.mean() - first.utility.mean())
    return PolicyPair(
        policy=policy,
        sides=(summary_of(first), summary_of(second)),
        difference=difference,
        plus_minus=_interval(second, first, paired),
        paired=paired,
        within=abs(difference) <= tolerance,
    )


def same_requests(first: RecordedRun, second: RecordedRun) -> bool:
    """Whether both runs had the same payloads, deadlines and demands in the same order."""
    return first.demands.shape == second.demands.shape and np.allclose(
        first.demands, second.demands, rtol=1e-9, atol=0.0
    )


def summary_of(run: RecordedRun) -> SideSummary:
    served, moved = int(run.served.sum()), int(run.moved.sum())
    return SideSummary(
        requests=len(run.sent),
        utility=float(run.utility.mean()),
        served=served / len(run.sent),
        moved=moved / max(1, served),
        ready=int(run.ready.sum()) / max(1, moved),
        times={stage: TimeSummary.of(run.served_times(stage)) for stage in (*STAGES, LATENCY)},
    )


def _inversions(runs: Mapping[str, tuple[RecordedRun, RecordedRun]]) -> list[RankingInversion]:
    inversions = []
    for a, b in itertools.combinations(runs, 2):
        first, second = (
            float(mine.utility.mean() - other.utility.mean())
            for mine, other in zip(runs[a], runs[b], strict=True)
        )
        if first * second < 0.0:
            smaller = int(abs(second) < abs(first))
            mine, other = runs[a][smaller], runs[b][smaller]
            noise = _interval(mine, other, same_requests(mine, other))
            inversions.append(RankingInversion(policies=(a, b), gaps=(first, second), noise=noise))
    return inversions


def _interval(one: RecordedRun, other: RecordedRun, paired: bool) -> float | None:
    """Half the width of the 95 % interval of the difference of mean utilities."""
    if paired:
        variance = _variance(one.sent, one.utility - other.utility)
    else:
        variance = _variance(one.sent, one.utility) + _variance(other.sent, other.utility)
    return None if math.isnan(variance) else 1.96 * math.sqrt(variance)


def _variance(sent: Floats, values: Floats) -> float:
    """Variance of the mean of `values`, from blocks of `BLOCK` s; NaN below two blocks.

    The mean is a ratio of block sums to block sizes, linearised (Cochran 1977, "Sampling
    Techniques", 6.3).
    """
    _, block = np.unique(np.floor(sent / BLOCK), return_inverse=True)
    count = int(block.max(initial=-1)) + 1
    if count < 2:
        return math.nan
    residuals = np.bincount(block, values - values.mean(), count)
    return float((residuals**2).sum() / len(values) ** 2 * count / (count - 1))
