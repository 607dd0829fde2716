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

A transfer that had to wait for its own source (a photo still being uploaded) gives only a lower
bound of the rate. As with "app-limited" samples in BBR (Cardwell et al., ACM Queue 14(5), 2016), it
counts only if it exceeds the believed rate, or the prior if there is none.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount

RATE_PRIOR = 2.5e6
"""bytes/s (20 Mbit/s) assumed of a link before the first transfer. It is in the middle of the range
of edge uplinks, so that an untried link is neither flooded nor avoided."""
RATE_MEMORY = 1.0
"""s. A measurement this old weighs 1/e against a new one: cellular bandwidth keeps its level for
about a second (Norway HSDPA traces, one sample/s)."""
SERVICE_MEMORY = 0.2
"""Weight of one service time in a service's reported mean: about the last five requests, so that a
slow spell of a second shows in the next reports."""
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
