"""The one place that asks what time it is."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Wall time that never jumps: the epoch is read once, then a monotonic clock counts on.

    An NTP step in the middle of a request would otherwise expire it. The price is that the clock
    drifts from the wall's by the machine's own error, some milliseconds an hour, until a restart.

    Parameters
    ----------
    monotonic:
        Seconds from anywhere, never going back. A virtual-time event loop passes its own.
    epoch:
        Seconds since the Unix epoch now; None: the system's.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, epoch: float | None = None
    ) -> None:
        self._monotonic = monotonic
        self._offset = (time.time() if epoch is None else epoch) - monotonic()

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._offset + self._monotonic()
