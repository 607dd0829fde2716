"""Measurements of link rates and service times, shared by simulator and nodes. Compiled.

The rate of a link is measured by the transfers on it. If n bytes took `seconds`, and on average
`sharing` transfers shared the link meanwhile, then a single transfer would have had the rate
n / seconds × sharing. The receiver acknowledges (status 202) as soon as the last byte has arrived;
the sender takes the time from the first byte to the acknowledgement and subtracts the round trip.
So no two clocks are compared, and small transfers count too. (The end of the sender's writing says
nothing: its kernel buffers megabytes.)

While transfers are under way, their node estimates how much of each is left. It assumes that they
share the link's believed rate equally (`bytes_per_transfer`), each from its start to its
acknowledgement.

A service time is a running mean. A mean far above the profile keeps a service from being used, and
so from being measured again. Therefore it fades towards the profile: within some seconds at first,
and more slowly each time it is confirmed.

A transfer that had to wait for its own source (a photo still being uploaded) gives only a lower
bound of the rate. As with "app-limited" samples in BBR (Cardwell et al., ACM Queue 14(5), 2016), it
counts only if it exceeds the believed rate, or the prior if there is none.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from edgewise.compile import jit_no_refcount

Record: TypeAlias = Any

RATE_PRIOR = 2.5e6
"""bytes/s (20 Mbit/s) assumed of a link before the first transfer. It is in the middle of the range
of edge uplinks, so that an untried link is neither flooded nor avoided."""
RATE_MEMORY = 1.0
"""s. A measurement this old weighs 1/e against a new one: cellular bandwidth keeps its level for
about a second (Norway HSDPA traces, one sample/s)."""
SERVICE_MEMORY = 0.2
"""Weight of one service time in a service's reported mean: about the last five requests, so that a
slow spell of a second shows in the next reports."""
SLOW_FACTOR = 2.5
"""Multiple of the profile from which a mean service time counts as slow. Noise and usual slow
spells stay below it; there the policies live with the error."""
FORGIVEN = 1.25
"""Multiple of the profile below which a mean that was slow no longer is."""
SLOW_MEMORY = 5.0
"""s; the first time constant with which a slow time fades. A background job or a throttled
processor lasts for seconds. A service that is slow for good costs a request tried in vain after
some 5 s, then after 10 s, 20 s, …"""
SLOW_DOUBLINGS = 6
"""Times that the time constant doubles at most: to five minutes."""
LEAST_SHARE = 0.1
"""Share of the service time that always remains, however much a model-ready payload saves, because
the model itself has to run."""
SECONDS_MIN = 1e-4
"""s. Shorter transfers do not count: their duration is below the timers' resolution."""
SIZE_MIN = 4096
"""bytes. Smaller transfers do not count: the round trip and the two machines' own time dominate
their duration. The smallest model-ready payload (96 pixels) has about 6 kB."""
SAME_RATE = 1e-6
"""Relative tolerance. A lower bound within it of the believed rate changes nothing, so rounding
does not decide."""
STARVED = 0.2
"""A transfer gives only a lower bound if its upload was still running for over this share of its
time. Below that share, the measured rate is too low by at most as much."""


@jit_no_refcount(inline=True)
def ready_time(seconds: float, saving: float) -> float:
    """Service time (s) of a model-ready payload, where the original takes `seconds`."""
    return max(LEAST_SHARE * seconds, seconds - saving)


@jit_no_refcount
def smooth_rate(
    rate: float,
    rate_at: float,
    now: float,
    size: float,
    seconds: float,
    sharing: float,
    starved: bool,
) -> tuple[float, float]:
    """Update a link's believed rate by one transfer; returns (rate, time of the measurement).

    `rate` bytes/s and `rate_at` are the old ones, NaN = never measured; `size` bytes took `seconds`
    with `sharing` transfers on average; `starved`: it waited for its own source. The mean is
    harmonic (in seconds per byte) because transfer times add up, and the old rate's weight decays
    with its age. A measurement that does not count leaves both unchanged.
    """
    if seconds < SECONDS_MIN or size < SIZE_MIN:
        return rate, rate_at
    sample = size / seconds * max(1.0, sharing)
    believed = rate if rate == rate else RATE_PRIOR
    if starved and sample <= believed * (1.0 + SAME_RATE):
        return rate, rate_at
    if rate != rate:
        return sample, now
    keep = 0.7 * math.exp(-max(0.0, now - rate_at) / RATE_MEMORY)
    return 1.0 / (keep / rate + (1.0 - keep) / sample), now


SERVICE_TIME: list[Any] = [
    ("service_time", "f8"),  # s per request: the mean, or the profile's before the first
    ("measured_at", "f8"),  # time to which a slow mean has faded
    ("slow", "i8"),  # 0: it is not; else the times that it was found slow
]
"""The fields of a measured service time, in a record of their own or of a service."""


@jit_no_refcount(inline=True)
def fade_service_time(measured: Record, profile: float, now: float) -> None:
    """Let a slow mean fade towards the `profile` (s) until `now`."""
    if measured.slow != 0:
        fade_slow_time(measured, profile, now)


@jit_no_refcount
def fade_slow_time(measured: Record, profile: float, now: float) -> None:
    """Do as `fade_service_time` for a mean that is slow."""
    left = math.exp(-(now - measured.measured_at) / slow_memory(measured.slow))
    measured.service_time = profile * (measured.service_time / profile) ** left
    measured.measured_at = now


@jit_no_refcount(inline=True)
def slow_memory(slow: int) -> float:
    """The time constant (s) of a mean that was found slow `slow` times."""
    memory: float = SLOW_MEMORY * 2.0 ** min(slow - 1, SLOW_DOUBLINGS)
    return memory


@jit_no_refcount(inline=True)
def measure_service_time(
    measured: Record, profile: float, sample: float, first: bool, now: float
) -> None:
    """Update a mean by a request that took `sample` s; `first`: nothing was measured before."""
    if first:
        measured.service_time = sample
    elif measured.slow == 0:
        measured.service_time += SERVICE_MEMORY * (sample - measured.service_time)
    else:
        measure_slow_time(measured, profile, sample, now)
        return
    if measured.service_time >= SLOW_FACTOR * profile:
        measured.slow = 1
        measured.measured_at = now


@jit_no_refcount
def measure_slow_time(measured: Record, profile: float, sample: float, now: float) -> None:
    """Update a mean that was slow. If it has faded meanwhile and the service is still slow, it will
    fade more slowly from now on."""
    fade_slow_time(measured, profile, now)
    faded = measured.service_time < SLOW_FACTOR * profile
    measured.service_time += SERVICE_MEMORY * (sample - measured.service_time)
    if sample < SLOW_FACTOR * profile:
        measured.slow = 1 if measured.service_time > FORGIVEN * profile else 0
    elif faded:
        measured.slow += 1
        measured.service_time = sample


@jit_no_refcount(inline=True)
def bytes_per_transfer(rate: float, seconds: float, transfers: int) -> float:
    """Bytes that each of `transfers` under way is believed to have sent in `seconds`; 0 on a link
    that was never measured (`rate` NaN)."""
    return seconds * rate / transfers if transfers > 0 and rate == rate else 0.0


@jit_no_refcount(inline=True)
def waited_for_source(uploaded: float, began: float, acked_at: float) -> bool:
    """Whether a transfer's own source slowed it too much for its rate to be measured.

    All are times: the transfer `began`, its payload was complete at the sender when `uploaded`, and
    it was acknowledged at `acked_at`.
    """
    return uploaded - began > STARVED * (acked_at - began)
