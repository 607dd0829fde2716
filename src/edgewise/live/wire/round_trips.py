"""Round-trip times, and the delay one way that they suggest. Pure: methods take `now`."""

from __future__ import annotations

from collections import deque

RTT_MEMORY = 10.0
"""s over which the least round trip counts, as in BBR: long enough to meet an empty link, short
enough to notice another route."""


class LeastRtt:
    """The least round trip of the last `RTT_MEMORY` s."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()

    def add(self, rtt: float, now: float) -> None:
        """Add a round trip of `rtt` s that ended at `now`."""
        # Kept in ascending order of time and of value: an earlier, longer sample never counts.
        while self._samples and self._samples[-1][1] >= rtt:
            self._samples.pop()
        self._samples.append((now, rtt))

    def get(self, now: float) -> float | None:
        """The least round trip, s; None before the first sample."""
        while len(self._samples) > 1 and now - self._samples[0][0] > RTT_MEMORY:
            self._samples.popleft()
        return self._samples[0][1] if self._samples else None

    def there(self, now: float) -> float:
        """When headers that are sent now arrive without queueing: half a round trip later.

        Before the first sample this is `now`.
        """
        return now + 0.5 * (self.get(now) or 0.0)
