"""The workload part of a scenario: arrivals, ingresses, demands and payloads."""

from __future__ import annotations

import math
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from edgewise.domain import Name, Share
from edgewise.scenario.ranges import Deadline, Factor, Rate, Span, Strict, Weight


class ConstantArrivals(Strict, frozen=True, kw_only=True, tag_field="kind", tag="constant"):
    """Evenly spaced."""

    rate: Rate
    """[requests/s]"""

    @property
    def mean_rate(self) -> float:
        return self.rate


class PoissonArrivals(Strict, frozen=True, kw_only=True, tag_field="kind", tag="poisson"):
    """Independent arrivals: many clients who know nothing of each other."""

    rate: Rate
    """[requests/s]"""

    @property
    def mean_rate(self) -> float:
        return self.rate


class MmppArrivals(Strict, frozen=True, kw_only=True, tag_field="kind", tag="mmpp"):
    """Bursts: a Poisson process whose rate jumps among states (Markov-modulated)."""

    rates: Annotated[
        tuple[Annotated[float, Meta(ge=0.0, le=1e6)], ...], Meta(min_length=2, max_length=64)
    ]
    """[requests/s] In each state; some may be 0. A state is left for any other alike."""
    sojourns: Annotated[tuple[Span, ...], Meta(min_length=2, max_length=64)]
    """[s] Mean stay in each state, exponential; as many as `rates`."""

    @property
    def mean_rate(self) -> float:
        """In the long run. The jump chain is symmetric, so states weigh as their sojourns."""
        pairs = zip(self.rates, self.sojourns, strict=True)
        return math.fsum(rate * stay for rate, stay in pairs) / math.fsum(self.sojourns)


class DiurnalArrivals(Strict, frozen=True, kw_only=True, tag_field="kind", tag="diurnal"):
    """Poisson with a rate that swings as a sine; starts at its mean, rising."""

    rate: Rate
    """[requests/s] Mean over a period."""
    amplitude: Share = 0.8
    """[share of the mean] Of the swing. Default: peaks at 1.8 times the mean, a usual day."""
    period: Span = 60.0
    """[s] Default: a day in a minute, so that a short run sees peak and trough."""

    @property
    def mean_rate(self) -> float:
        return self.rate


class TraceArrivals(Strict, frozen=True, kw_only=True, tag_field="kind", tag="trace"):
    """Arrival times from a file: seconds or ISO 8601 times, one a line or a CSV column."""

    file: Annotated[str, Meta(min_length=1)]
    """Relative to the scenario file."""
    column: str | None = None
    """Of a CSV with a header. Default: the first."""
    scale: Factor = 1.0
    """[times] Speeds the trace up; 2 = twice the rate. Default: as recorded."""
    rate: Rate | None = None
    """[requests/s] Speeds the trace up or down to this mean; excludes `scale`.
    Default: as recorded."""
    loop: bool = True
    """Whether to begin again at its end. Default: a run should not fall silent."""

    @property
    def mean_rate(self) -> float | None:
        """None: only the file knows (`workload.mean_rate` reads it)."""
        return self.rate


Arrivals: TypeAlias = (
    ConstantArrivals | PoissonArrivals | MmppArrivals | DiurnalArrivals | TraceArrivals
)


class Demand(Strict, frozen=True, kw_only=True):
    """A class of requests and what they ask for."""

    share: Weight = 1.0
    """Of the requests, on any positive scale. Default: one class has all."""
    # msgspec 0.22 reads stray memory when a number *with bounds* shares a union with a tuple of
    # fixed length, so `checks` has the bounds of the plain number.
    deadline: float | tuple[Deadline, Deadline]
    """[s] From the moment of sending; ``[low, high]`` draws it log-uniformly."""
    accuracy: Share = 0.0
    """The least accuracy an answer must come with. Default: any answer counts."""

    @property
    def deadline_range(self) -> tuple[float, float]:
        """Low and high, s; equal if it is a number."""
        both = self.deadline
        return both if isinstance(both, tuple) else (both, both)


class ImagesPayload(Strict, frozen=True, kw_only=True, tag_field="kind", tag="images"):
    """As many bytes as the photo has."""


class LognormalPayload(Strict, frozen=True, kw_only=True, tag_field="kind", tag="lognormal"):
    """Drawn sizes; simulator and replay only, for no photo goes with them."""

    median_bytes: Annotated[float, Meta(ge=1.0, le=1e9)]
    """[bytes] Half the requests are smaller."""
    sigma: Annotated[float, Meta(ge=0.0, le=5.0)] = 0.5
    """Standard deviation of the logarithm. Default: two thirds of the sizes within a factor of
    1.65 of the median, about as the ImageNet photos."""


Payload: TypeAlias = ImagesPayload | LognormalPayload


class WorkloadSpec(Strict, frozen=True, kw_only=True):
    """What the clients send."""

    duration: Span
    """[s] Over which requests are sent."""
    arrivals: Arrivals
    """When: *constant*, *poisson*, *mmpp*, *diurnal* or *trace*."""
    ingress: dict[Name, Weight]
    """Where: the share of each server, on any positive scale; absent = none."""
    demands: Annotated[tuple[Demand, ...], Meta(min_length=1)]
    """What for: classes of requests."""
    images: Annotated[str, Meta(min_length=1)] = "builtin"
    """``builtin``, or a directory of labelled photos relative to the scenario file.
    Default: the photos that a package index provides."""
    payload: Payload = ImagesPayload()
    """How large: *images* or *lognormal*. Default: the photos' own sizes."""


def with_mean_rate(arrivals: Arrivals, rate: float) -> Arrivals:
    """The same process with mean `rate` (requests/s)."""
    if isinstance(arrivals, MmppArrivals):
        factor = rate / arrivals.mean_rate
        return msgspec.structs.replace(
            arrivals, rates=tuple(each * factor for each in arrivals.rates)
        )
    if isinstance(arrivals, TraceArrivals):
        return msgspec.structs.replace(arrivals, rate=float(rate), scale=1.0)
    return msgspec.structs.replace(arrivals, rate=float(rate))
