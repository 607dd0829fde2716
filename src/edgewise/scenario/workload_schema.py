"""The workload part of a scenario: when requests arrive, where, what they ask for, how large."""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from edgewise.domain import Name, Share
from edgewise.scenario.ranges import Deadline, Factor, Rate, Span, Strict, Weight


class ConstantArrivals(Strict, frozen=True, kw_only=True, tag_field="kind", tag="constant"):
    """Evenly spaced arrivals."""

    rate: Rate
    """[requests/s]"""

    @property
    def mean_rate(self) -> float:
        return self.rate


class PoissonArrivals(Strict, frozen=True, kw_only=True, tag_field="kind", tag="poisson"):
    """Independent arrivals, as from many clients who know nothing of each other."""

    rate: Rate
    """[requests/s]"""

    @property
    def mean_rate(self) -> float:
        return self.rate


class MmppArrivals(Strict, frozen=True, kw_only=True, tag_field="kind", tag="mmpp"):
    """Bursts: a Markov-modulated Poisson process, whose rate jumps between states."""

    rates: Annotated[
        tuple[Annotated[float, Meta(ge=0.0, le=1e6)], ...], Meta(min_length=2, max_length=64)
    ]
    """[requests/s] Rate in each state; some may be 0. All other states are equally likely next."""
    sojourns: Annotated[tuple[Span, ...], Meta(min_length=2, max_length=64)]
    """[s] Mean time in each state, exponential; as many as `rates`."""

    @property
    def mean_rate(self) -> float:
        """In the long run. The jump chain is symmetric, so each state weighs as its sojourn."""
        pairs = zip(self.rates, self.sojourns, strict=True)
        return math.fsum(rate * stay for rate, stay in pairs) / math.fsum(self.sojourns)


class DiurnalArrivals(Strict, frozen=True, kw_only=True, tag_field="kind", tag="diurnal"):
    """Poisson arrivals with a sinusoidal rate, which starts at its mean and rises."""

    rate: Rate
    """[requests/s] Mean rate over a period."""
    amplitude: Share = 0.8
    """[share of the mean] Amplitude. Default: a peak of 1.8 times the mean, as on a usual day."""
    period: Span = 60.0
    """[s] Length of a period. Default: a day in a minute, so a short run has peak and trough."""

    @property
    def mean_rate(self) -> float:
        return self.rate


class TraceArrivals(Strict, frozen=True, kw_only=True, tag_field="kind", tag="trace"):
    """Arrival times from a file: seconds or ISO 8601 times, one per line or in a CSV column."""

    file: Annotated[str, Meta(min_length=1)]
    """The file, relative to the scenario file."""
    column: str | None = None
    """Column of a CSV file whose first line names its columns. Default: the first."""
    unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit of times that are numbers. Default: s."""
    offset: Annotated[float, Meta(ge=0.0, le=1e9)] | Literal["seed"] = 0.0
    """[s] Where in the recording the run begins; ``seed``: at a place drawn from the scenario's
    seed. Default: at its beginning, so that every seed has the same arrivals."""
    scale: Factor = 1.0
    """[times] Factor on the rate; 2 plays the trace twice as fast. Default: as recorded."""
    rate: Rate | None = None
    """[requests/s] Mean rate to which the trace is sped up or slowed down; not with `scale`.
    Default: as recorded."""
    loop: bool = True
    """Whether the trace starts again at its end. Default: a run should not fall silent."""

    @property
    def mean_rate(self) -> float | None:
        """None if only the file tells (`workload.mean_rate` reads it)."""
        return self.rate


Arrivals: TypeAlias = (
    ConstantArrivals | PoissonArrivals | MmppArrivals | DiurnalArrivals | TraceArrivals
)


class Demand(Strict, frozen=True, kw_only=True):
    """A class of requests with the same demands."""

    share: Weight = 1.0
    """Share of the requests, on any positive scale. Default: one class has all."""
    # msgspec 0.22 reads stray memory when a number *with bounds* shares a union with a tuple of
    # fixed length, so `checks` tests the bounds of a single number.
    deadline: float | tuple[Deadline, Deadline]
    """[s] Deadline after sending; ``[low, high]`` draws it log-uniformly."""
    accuracy: Share = 0.0
    """The least accuracy that the service must have. Default: any answer counts."""

    @property
    def deadline_range(self) -> tuple[float, float]:
        """Shortest and longest deadline, s."""
        both = self.deadline
        return both if isinstance(both, tuple) else (both, both)


class ImagesPayload(Strict, frozen=True, kw_only=True, tag_field="kind", tag="images"):
    """Real photos, with the sizes they have."""


class LognormalPayload(Strict, frozen=True, kw_only=True, tag_field="kind", tag="lognormal"):
    """Random sizes without photos; for the simulator and the replay executor only."""

    median_bytes: Annotated[float, Meta(ge=1.0, le=1e9)]
    """[bytes] Median size."""
    sigma: Annotated[float, Meta(ge=0.0, le=5.0)] = 0.5
    """Standard deviation of the logarithm. Default: two thirds of the sizes are within a factor of
    1.65 of the median, about as ImageNet's photos."""


Payload: TypeAlias = ImagesPayload | LognormalPayload


class WorkloadSpec(Strict, frozen=True, kw_only=True):
    """The requests that clients send."""

    duration: Span
    """[s] Time during which requests are sent."""
    arrivals: Arrivals
    """When requests arrive: *constant*, *poisson*, *mmpp*, *diurnal* or *trace*."""
    ingress: dict[Name, Weight]
    """Where requests arrive: the share of each server, on any positive scale; 0 if absent."""
    demands: Annotated[tuple[Demand, ...], Meta(min_length=1)]
    """What requests ask for: one or more classes."""
    lost_photos: Annotated[float, Meta(ge=0.0, lt=1.0)] = 0.0
    """[share] Requests of which the balancer gets the metadata, but no server the photo. Simulator
    only. Default: none."""
    images: Annotated[str, Meta(min_length=1)] = "builtin"
    """Labelled photos: ``builtin``, or a folder or label file relative to the scenario file.
    Default: 20 photos from the package index."""
    payload: Payload = ImagesPayload()
    """How large requests are: *images* or *lognormal*. Default: real photos."""


def with_mean_rate(arrivals: Arrivals, rate: float) -> Arrivals:
    """The same arrival process with the mean rate `rate` in requests/s."""
    if isinstance(arrivals, MmppArrivals):
        factor = rate / arrivals.mean_rate
        return msgspec.structs.replace(
            arrivals, rates=tuple(each * factor for each in arrivals.rates)
        )
    if isinstance(arrivals, TraceArrivals):
        return msgspec.structs.replace(arrivals, rate=float(rate), scale=1.0)
    return msgspec.structs.replace(arrivals, rate=float(rate))
