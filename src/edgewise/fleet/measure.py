"""What simulator and nodes measure alike: links, from the transfers that use them, and services.
Compiled.

A transfer of n bytes that took `seconds` while, averaged over that time, `sharing` transfers shared
the link says that a transfer alone would have had n / seconds × sharing. `seconds` ends at the
receiver: it says how long ago the last byte was in, and the sender subtracts that and the round
trip from its own clock, so that no two clocks are compared and a small transfer counts too.
(A sender's "write done" means nothing: its kernel takes megabytes.)

A transfer that had to wait for its own source (a photo still being uploaded) shows at least so
much. As in BBR (Cardwell et al., ACM Queue 14(5), 2016, "app-limited") it counts only if it shows
more than what is believed, be that the prior.
"""

from __future__ import annotations

import math

from edgewise.compiled import lean
from edgewise.fleet.layout import RATE_PRIOR

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


@lean
def ready_time(seconds: float, saving: float) -> float:
    """s that a model-ready payload takes of a worker, where one as it came takes `seconds`."""
    return max(LEAST_SHARE * seconds, seconds - saving)


@lean
def smooth_rate(
    rate: float,
    rate_at: float,
    now: float,
    size: float,
    seconds: float,
    sharing: float,
    starved: bool,
) -> float:
    """The new believed rate, bytes/s, after a transfer of `size` bytes.

    `rate` NaN = none yet. The mean is harmonic, in seconds per byte, as transfer times add up:
    the weight of the old belief decays with its age. Returns `rate` itself where the measurement
    does not count.
    """
    if seconds < SECONDS_MIN:
        return rate
    sample = size / seconds * max(1.0, sharing)
    believed = rate if rate == rate else RATE_PRIOR
    if starved and sample <= believed:
        return rate
    if rate != rate:
        return sample
    keep = 0.7 * math.exp(-max(0.0, now - rate_at) / RATE_MEMORY)
    return 1.0 / (keep / rate + (1.0 - keep) / sample)
