"""Generate the requests of one run from a scenario.

The input is a scenario and the sizes of its images. The output is a `Trace`: arrays of equal
length, in order of time. The same seed gives the same bits.

Every aspect has its own random stream, spawned from the scenario's seed, and draws the same number
of values per request whatever the parameters are. So scenarios that differ in one aspect differ in
that alone (common random numbers): other demands leave the arrival times as they were, a longer run
begins with the shorter one, and a higher rate has the same arrivals closer together.

All arrival processes are generated alike. Λ(t) is the expected number of arrivals up to t; the n-th
arrival is at Λ⁻¹(E₁ + … + Eₙ), with E independent exponentials of mean 1 (all 1 for *constant*).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.errors import ScenarioError
from edgewise.scenario.schema import Scenario
from edgewise.scenario.workload_schema import (
    Arrivals,
    ConstantArrivals,
    DiurnalArrivals,
    LognormalPayload,
    MmppArrivals,
    PoissonArrivals,
    TraceArrivals,
)
from edgewise.worlds.arrivals import read_arrivals

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Inverse: TypeAlias = Callable[[Floats], Floats]

# Every result ever published with a seed depends on the order: only append.
_STREAMS = (
    "arrivals",
    "states",
    "ingress",
    "demand",
    "deadline",
    "image",
    "payload",
    "offset",
    "lost",
)

REQUESTS_MAX = 50_000_000
"""A run of more requests would not fit into memory; it comes from a wrong unit."""


class Trace(Struct, frozen=True, kw_only=True):
    """The requests of one run, in order of time."""

    time: Floats
    """[s] From the start of the run."""
    ingress: Ints
    """Index into `scenario.server_names`."""
    image: Ints
    """Index into the image sizes; 0 if there were none."""
    payload_bytes: Ints
    deadline: Floats
    """[s] From `time`."""
    accuracy: Floats
    """The least accuracy that the answering service may have."""
    lost: NDArray[np.bool_]
    """Whether the photo never comes."""

    def __len__(self) -> int:
        return len(self.time)


def generate(scenario: Scenario, sizes: Sequence[int] | None) -> Trace:
    """Draw the requests of a run; `sizes` are the images' in bytes.

    Raises ScenarioError if the payload is *images* and there are no sizes, or for a trace file that
    cannot be used.
    """
    workload = scenario.workload
    rng = _streams(scenario.seed)
    time = _arrivals(workload.arrivals, workload.duration, rng)
    count = len(time)

    ingress = _pick(scenario.ingress_shares(), rng["ingress"].random(count))
    demand = _pick([d.share for d in workload.demands], rng["demand"].random(count))
    low, high = np.array([d.deadline_range for d in workload.demands]).T[:, demand]
    spread = np.log(high / low)
    deadline = np.minimum(low * np.exp(rng["deadline"].random(count) * spread), high)
    accuracy = np.array([d.accuracy for d in workload.demands])[demand]

    known = np.asarray(sizes if sizes is not None else (), dtype=np.int64)
    image = (rng["image"].random(count) * len(known)).astype(np.int64)
    payload = workload.payload
    if isinstance(payload, LognormalPayload):
        normal = rng["payload"].standard_normal(count)
        drawn = np.exp(math.log(payload.median_bytes) + payload.sigma * normal)
        payload_bytes = np.maximum(1, np.rint(drawn)).astype(np.int64)
    elif len(known):
        payload_bytes = known[image]
    else:
        raise ScenarioError(
            scenario.name,
            "$.workload.payload",
            "'images' needs photos and there are none; use lognormal, or give images",
        )
    return Trace(
        time=time,
        ingress=ingress,
        image=image,
        payload_bytes=payload_bytes,
        deadline=deadline,
        accuracy=accuracy,
        lost=rng["lost"].random(count) < workload.lost_photos,
    )


def mean_rate(arrivals: Arrivals) -> float:
    """Requests/s in the long run; for a trace, this reads its file."""
    rate = arrivals.mean_rate
    if rate is None:
        assert isinstance(arrivals, TraceArrivals)
        return arrivals.scale / _mean_gap(read_arrivals(arrivals).times, arrivals)
    return rate


def _streams(seed: int) -> dict[str, np.random.Generator]:
    children = np.random.SeedSequence(seed).spawn(len(_STREAMS))
    return {
        name: np.random.default_rng(child) for name, child in zip(_STREAMS, children, strict=True)
    }


def _pick(shares: Sequence[float], uniform: Floats) -> Ints:
    """Indices with probabilities ∝ `shares`, by inversion; an index of share 0 is never picked."""
    edges = np.cumsum(shares)
    picked: Ints = np.searchsorted(edges, uniform * edges[-1], side="right").astype(np.int64)
    last = int(np.flatnonzero(shares)[-1])
    return np.minimum(picked, last)  # uniform × total may round up to the total


# -- arrivals ------------------------------------------------------------------------------------


def _arrivals(arrivals: Arrivals, duration: float, rng: dict[str, np.random.Generator]) -> Floats:
    """Times in [0, duration)."""
    match arrivals:
        case ConstantArrivals():
            count = _bounded(duration * arrivals.rate)
            times = np.arange(count + 2) / arrivals.rate
        case PoissonArrivals():
            times = _exponentials(rng["arrivals"], duration * arrivals.rate) / arrivals.rate
        case DiurnalArrivals():
            expected, inverse = _diurnal(arrivals, duration)
            times = inverse(_exponentials(rng["arrivals"], expected))
        case MmppArrivals():
            expected, inverse = _mmpp(arrivals, duration, rng["states"])
            times = inverse(_exponentials(rng["arrivals"], expected))
        case TraceArrivals():
            times = _replayed(arrivals, duration, rng["offset"])
    return times[times < duration]


def _bounded(expected: float) -> int:
    if expected > REQUESTS_MAX:
        raise ScenarioError(
            "workload",
            "$.workload",
            f"expected at most {REQUESTS_MAX} requests, got {expected:.3g}",
        )
    return int(expected)


def _exponentials(rng: np.random.Generator, total: float) -> Floats:
    """E₁, E₁ + E₂, … to just beyond `total`: a prefix of always the same sequence."""
    _bounded(total)
    gaps = np.empty(0)
    while True:
        gaps = np.concatenate([gaps, rng.standard_exponential(1024 + len(gaps))])
        sums: Floats = np.cumsum(gaps)
        if sums[-1] > total:
            prefix: Floats = sums[: int(np.searchsorted(sums, total)) + 1]
            return prefix


def _diurnal(
    arrivals: DiurnalArrivals, duration: float
) -> tuple[float, Callable[[Floats], Floats]]:
    """Λ(duration) and Λ⁻¹, which is found by bisection to about the last bit."""
    omega = 2.0 * math.pi / arrivals.period

    def expected(time: Floats) -> Floats:
        swing = arrivals.amplitude / omega * (1.0 - np.cos(omega * time))
        return arrivals.rate * (time + swing)

    def inverse(counts: Floats) -> Floats:
        # 0 ≤ swing ≤ 2 amplitude / omega brackets the answer.
        high = counts / arrivals.rate
        low = np.maximum(0.0, high - 2.0 * arrivals.amplitude / omega)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = expected(middle) < counts
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return high

    return float(expected(np.array(duration))), inverse


def _mmpp(
    arrivals: MmppArrivals, duration: float, rng: np.random.Generator
) -> tuple[float, Inverse]:
    """Λ(duration) and Λ⁻¹ for one path of the states that begins in equilibrium."""
    states = len(arrivals.rates)
    state = int(_pick(arrivals.sojourns, rng.random(1))[0])
    times, counts = [0.0], [0.0]
    while times[-1] < duration:
        if len(times) > REQUESTS_MAX // 10:
            _bounded(math.inf)
        stay = arrivals.sojourns[state] * float(rng.standard_exponential())
        times.append(times[-1] + stay)
        counts.append(counts[-1] + stay * arrivals.rates[state])
        state = (state + 1 + int(rng.random() * (states - 1))) % states
    knots, values = np.array(times), np.array(counts)

    def inverse(wanted: Floats) -> Floats:
        # The first knot at or above: no arrival falls into a span of rate 0.
        after = np.searchsorted(values, wanted, side="left")
        beyond = after >= len(values)
        after = np.clip(after, 1, len(values) - 1)
        start, end = values[after - 1], values[after]
        part = (wanted - start) / np.where(end > start, end - start, 1.0)
        times: Floats = knots[after - 1] + part * (knots[after] - knots[after - 1])
        return np.where(beyond, np.inf, times)

    return counts[-1], inverse


def _replayed(arrivals: TraceArrivals, duration: float, rng: np.random.Generator) -> Floats:
    times = read_arrivals(arrivals).times
    gap = _mean_gap(times, arrivals)
    period = gap * len(times)
    offset = arrivals.offset
    begin = rng.random() * period if isinstance(offset, str) else math.fmod(offset, period)
    if begin > 0.0:
        late = times - begin
        times = late[late >= 0.0]
        if arrivals.loop:
            times = np.concatenate([times, late[late < 0.0] + period])
    speed = arrivals.scale if arrivals.rate is None else arrivals.rate * gap
    period /= speed
    times = times / speed
    if not arrivals.loop:
        return times
    rounds = math.ceil(duration / period)
    _bounded(rounds * len(times))
    starts = np.arange(rounds)[:, None] * period
    looped: Floats = (starts + times[None, :]).ravel()
    return looped


def _mean_gap(times: Floats, arrivals: TraceArrivals) -> float:
    """Mean s between recorded arrivals; a gap of that length closes the loop."""
    span = float(times[-1] - times[0])
    if len(times) < 2 or span <= 0.0:
        raise ScenarioError(arrivals.file, "", "expected at least two different times")
    return span / (len(times) - 1)
