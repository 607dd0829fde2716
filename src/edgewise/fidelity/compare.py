"""Two runs of the same scenario, stage by stage: from their files, whichever world wrote them.

What comes in: folders with ``requests.parquet`` and ``outcomes.parquet``, one per seed and world.
What goes out: a `WorldsComparison`, which the command prints, draws and writes as JSON.

Differences of utility are *paired* where both worlds had the same requests: the mean over requests
of (second − first). Their ± is a 95 % interval from blocks of a second, for the requests of one
moment share a queue and are not independent. It is left out (None) below two blocks.
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
BLOCK = 1.0
"""s. Longer than nearly every deadline here, so that blocks hardly touch each other."""


class Run(Struct, frozen=True, kw_only=True):
    """The requests of one run in the order in which they were sent, and how each ended."""

    sent: Floats
    """s since the first one."""
    asked: Floats
    """(N, 3): payload bytes, deadline in s, accuracy demanded: what makes two requests the same."""
    utility: Floats
    """Expected utility of each, refused and lost ones too."""
    served: NDArray[np.bool_]
    moved: NDArray[np.bool_]
    """Served elsewhere than at the ingress."""
    ready: NDArray[np.bool_]
    """Moved in the model-ready form."""
    times: dict[str, Floats]
    """s by stage, and *latency*; NaN where it never came."""

    def spread_of(self, stage: str) -> Floats:
        """s that served requests spent in `stage`; for *transfer* those that were moved."""
        times = self.times[stage]
        of = self.moved if stage == "transfer" else self.served
        return times[of & np.isfinite(times)]


def read_run(folders: Sequence[Path]) -> Run:
    """The runs of several seeds as one. Raises BadInput for a folder without their files."""
    parts = [_read_one(folder) for folder in folders]

    def joined(name: str) -> NDArray[np.float64]:
        return np.concatenate([getattr(part, name) for part in parts])

    starts = np.cumsum([0.0, *(part.sent.max(initial=0.0) + 2 * BLOCK for part in parts)])
    return Run(
        sent=np.concatenate([part.sent + at for part, at in zip(parts, starts, strict=False)]),
        asked=joined("asked"),
        utility=joined("utility"),
        served=joined("served").astype(bool),
        moved=joined("moved").astype(bool),
        ready=joined("ready").astype(bool),
        times={
            stage: np.concatenate([part.times[stage] for part in parts])
            for stage in (*STAGES, LATENCY)
        },
    )


def number_of(request: str) -> int:
    """Where a request stands in its trace: both worlds end its id with that number."""
    number = request_number(request)
    if number is None:
        raise BadInput(f"request {request!r}: expected an id that ends with a number")
    return number


def joined(folder: Path) -> pa.Table:
    """Requests with their outcomes (columns *request*, … and those of both), in order of sending.

    Raises BadInput for files that are missing or do not fit each other.
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


def column(table: pa.Table, name: str) -> Floats:
    """A numeric column as floats; NaN where it is null."""
    return np.asarray(table.column(name).cast(pa.float64()).to_numpy(), np.float64)


def _read_one(folder: Path) -> Run:
    table = joined(folder)
    order = np.argsort([number_of(each) for each in table.column("request").to_pylist()])
    table = table.take(pa.array(order))
    served = np.array(table.column("status").to_pylist()) == "served"
    server = np.array(table.column("server").to_pylist(), dtype=object)
    moved = served & (server != np.array(table.column("ingress").to_pylist(), dtype=object))
    sent = column(table, "sent_at")
    return Run(
        sent=sent - sent.min(),
        asked=np.stack([column(table, n) for n in ("payload_bytes", "deadline", "accuracy")], 1),
        utility=column(table, "expected"),
        served=served,
        moved=moved,
        ready=moved & (column(table, "form") == 1.0),
        times={
            **{stage: column(table, f"stage_{stage}") for stage in STAGES},
            LATENCY: column(table, "latency"),
        },
    )


# -- comparing -----------------------------------------------------------------------------------


class Spread(Struct, frozen=True, kw_only=True):
    """A distribution of times in one world; None if there is none."""

    count: int
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None

    @classmethod
    def of(cls, seconds: Floats) -> Spread:
        if not len(seconds):
            return cls(count=0, mean_ms=None, p50_ms=None, p95_ms=None)
        p50, p95 = np.percentile(seconds, (50, 95)) * 1e3
        mean = 1e3 * float(seconds.mean())
        return cls(count=len(seconds), mean_ms=mean, p50_ms=float(p50), p95_ms=float(p95))


class Facts(Struct, frozen=True, kw_only=True):
    """One policy in one world."""

    requests: int
    utility: float
    """Mean expected utility."""
    served: float
    """Share of all requests."""
    moved: float
    """Share of the served."""
    ready: float
    """Share of the moved."""
    spreads: dict[str, Spread]
    """By stage, and *latency*."""


class PolicyPair(Struct, frozen=True, kw_only=True):
    """One policy in both worlds."""

    policy: str
    worlds: tuple[Facts, Facts]
    difference: float
    """Mean expected utility, second − first."""
    plus_minus: float | None
    """Half a 95 % interval of the difference."""
    paired: bool
    """Whether the requests were the same."""
    within: bool
    """Whether the difference is no larger than the tolerance."""


class Inversion(Struct, frozen=True, kw_only=True):
    """Two policies that the worlds rank differently."""

    policies: tuple[str, str]
    gaps: tuple[float, float]
    """Utility of the first − that of the second policy, in each world."""
    noise: float | None
    """Half a 95 % interval of the smaller gap: below it the two are not told apart."""


class WorldsComparison(Struct, frozen=True, kw_only=True):
    """All policies of a scenario in two worlds."""

    scenario: str
    worlds: tuple[str, str]
    seeds: tuple[int, ...]
    tolerance: float
    notes: tuple[str, ...] = ()
    policies: tuple[PolicyPair, ...]
    rankings: tuple[tuple[str, ...], tuple[str, ...]]
    """Best first, in each world."""
    same_ranking: bool
    inversions: tuple[Inversion, ...]
    within: bool
    """Whether every policy is."""


def compare(
    runs: Mapping[str, tuple[Run, Run]],
    *,
    scenario: str,
    worlds: tuple[str, str],
    seeds: Sequence[int],
    tolerance: float,
    notes: Sequence[str] = (),
) -> WorldsComparison:
    """Hold both runs of each policy against each other; `tolerance` is of the expected utility."""
    pairs = tuple(_pair(policy, *both, tolerance) for policy, both in runs.items())
    rankings = tuple(
        tuple(p.policy for p in sorted(pairs, key=lambda p, w=w: -p.worlds[w].utility))  # type: ignore[misc]
        for w in (0, 1)
    )
    return WorldsComparison(
        scenario=scenario,
        worlds=worlds,
        seeds=tuple(seeds),
        tolerance=tolerance,
        notes=tuple(notes),
        policies=pairs,
        rankings=(rankings[0], rankings[1]),
        same_ranking=rankings[0] == rankings[1],
        inversions=tuple(_inversions(runs)),
        within=all(pair.within for pair in pairs),
    )


def _pair(policy: str, first: Run, second: Run, tolerance: float) -> PolicyPair:
    paired = same_requests(first, second)
    difference = float(second.utility.mean() - first.utility.mean())
    return PolicyPair(
        policy=policy,
        worlds=(facts_of(first), facts_of(second)),
        difference=difference,
        plus_minus=_interval(second, first, paired),
        paired=paired,
        within=abs(difference) <= tolerance,
    )


def same_requests(first: Run, second: Run) -> bool:
    """Whether both have the same payloads, deadlines and demands in the same order."""
    return first.asked.shape == second.asked.shape and np.allclose(
        first.asked, second.asked, rtol=1e-9, atol=0.0
    )


def facts_of(run: Run) -> Facts:
    served, moved = int(run.served.sum()), int(run.moved.sum())
    return Facts(
        requests=len(run.sent),
        utility=float(run.utility.mean()),
        served=served / len(run.sent),
        moved=moved / max(1, served),
        ready=int(run.ready.sum()) / max(1, moved),
        spreads={stage: Spread.of(run.spread_of(stage)) for stage in (*STAGES, LATENCY)},
    )


def _inversions(runs: Mapping[str, tuple[Run, Run]]) -> list[Inversion]:
    found = []
    for a, b in itertools.combinations(runs, 2):
        gaps = [float(runs[a][w].utility.mean() - runs[b][w].utility.mean()) for w in range(2)]
        if gaps[0] * gaps[1] < 0.0:
            small = int(abs(gaps[1]) < abs(gaps[0]))
            one, other = runs[a][small], runs[b][small]
            noise = _interval(one, other, same_requests(one, other))
            found.append(Inversion(policies=(a, b), gaps=(gaps[0], gaps[1]), noise=noise))
    return found


def _interval(one: Run, other: Run, paired: bool) -> float | None:
    """Half a 95 % interval of the difference of mean utilities, from blocks of `BLOCK` s."""
    if paired:
        variance = _variance(one.sent, one.utility - other.utility)
    else:
        variance = _variance(one.sent, one.utility) + _variance(other.sent, other.utility)
    return None if math.isnan(variance) else 1.96 * math.sqrt(variance)


def _variance(sent: Floats, values: Floats) -> float:
    """Of the mean of `values`: a ratio of block sums to block sizes, linearised (Cochran 1977,
    "Sampling Techniques", 6.3). NaN below two blocks."""
    _, block = np.unique(np.floor(sent / BLOCK), return_inverse=True)
    count = int(block.max(initial=-1)) + 1
    if count < 2:
        return math.nan
    residuals = np.bincount(block, values - values.mean(), count)
    return float((residuals**2).sum() / len(values) ** 2 * count / (count - 1))
