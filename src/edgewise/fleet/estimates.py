"""What simulator and nodes measure alike: links, from the transfers that use them, and services.
Compiled.

A transfer of n bytes that took `seconds` while, averaged over that time, `sharing` transfers shared
the link says that a transfer alone would have had n / seconds × sharing. `seconds` ends at the
receiver: it says how long ago the last byte was in, and the sender subtracts that and the round
trip from its own clock, so that no two clocks are compared and a small transfer counts too.
(A sender's "write done" means nothing: its kernel takes megabytes.)

While transfers are under way their node reckons what is left of them: they share the rate that is
believed of the link equally (`fair_rate`), from the moment each begins to the word that it is in.

A transfer that had to wait for its own source (a photo still being uploaded) shows at least so
much. As in BBR (Cardwell et al., ACM Queue 14(5), 2016, "app-limited") it counts only if it shows
more than what is believed, be that the prior.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount

RATE_PRIOR = 2.5e6
"""bytes/s (20 Mbit/s) assumed of a link before the first transfer: the middle of what edge uplinks
offer, so that a link is neither flooded nor shunned before it has been tried."""
RATE_MEMORY = 1.0
"""s. A measurement this old weighs 1/e against a new one: cellular bandwidth keeps its level for
about a second (Norway HSDPA traces, one sample/s)."""
SERVICE_MEMORY = 0.2
"""Weight of one service time in a service's reported mean: about the last five requests, so that a
slow spell of a second shows in the next reports."""
LEAST_SHARE = 0.1
"""Of a service time that is left however much a model-ready payload saves: a model does run."""
SECONDS_MIN = 1e-4
"""s. A transfer shorter than the timers are fine measures the timers."""


SIZE_MIN = 4096
"""bytes. A smaller transfer takes a round trip and the two machines' own time, whatever the rate;
the smallest payload made ready (96 pixels) has about 6 kB."""
SAME_RATE = 1e-6
"""Relative. A lower bound that is what is believed already is no news; rounding must not decide."""
STARVED = 0.2
"""Share of a transfer during which its upload was still running, from which it shows no more than
a lower bound: below, the measured rate is at most this much too low."""


@jit_no_refcount(inline=True)
def ready_time(seconds: float, saving: float) -> float:
    """s that a model-ready payload takes of a worker, where one as it came takes `seconds`."""
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
    """The new believed rate, bytes/s, and since when, after a transfer of `size` bytes.

    `rate` NaN = none yet. The mean is harmonic, in seconds per byte, as transfer times add up:
    the weight of the old belief decays with its age. Returns both as they were where the
    measurement does not count.
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
def fair_rate(rate: float, seconds: float, transfers: int) -> float:
    """Bytes that each of `transfers` under way is believed to have sent in `seconds`; none of a
    link that was never measured (`rate` NaN)."""
    return seconds * rate / transfers if transfers > 0 and rate == rate else 0.0


@jit_no_refcount(inline=True)
def waited_for_source(uploaded: float, began: float, word: float) -> bool:
    """Whether a transfer that `began` and was known to be in at `word` waited for its own source,
    which had it all when `uploaded`, for long enough to look slow by it."""
    return uploaded - began > STARVED * (word - began)
