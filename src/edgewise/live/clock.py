"""The one place that asks what time it is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

from edgewise.errors import BadInput
from edgewise.network.relay.timers import Timers


class Clock:
    """Wall time that never jumps: the epoch is read once, then a monotonic clock counts on.

    Otherwise an NTP step in the middle of a request would expire it. In exchange, the clock drifts
    from wall time by the machine's own error, some milliseconds an hour, until a restart.

    Parameters
    ----------
    monotonic:
        Seconds from any origin, never going back. A virtual-time event loop passes its own.
    epoch:
        The current time in seconds since the Unix epoch; None: the system's.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, epoch: float | None = None
    ) -> None:
        self._monotonic = monotonic
        self._timers: Timers | None = None
        self._offset = (time.time() if epoch is None else epoch) - monotonic()

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._offset + self._monotonic()

    @contextlib.contextmanager
    def precise_timers(self) -> Iterator[None]:
        """Inside, `sleep_until` is late by some tens of microseconds instead of a millisecond.

        This takes a file descriptor of the running loop. It has no effect on virtual time, or where
        the system has no such timers.
        """
        if self._monotonic is not time.monotonic or self._timers is not None:
            yield
            return
        with contextlib.suppress(BadInput):
            self._timers = Timers(asyncio.get_running_loop())
        try:
            yield
        finally:
            if self._timers is not None:
                self._timers.close()
            self._timers = None

    async def sleep_until(self, when: float) -> None:
        """Wait until `when`, never shorter; return at once if that is past."""
        left = when - self.now()
        if self._timers is None or left <= 0.0:
            await asyncio.sleep(max(0.0, left))
            return
        done = asyncio.get_running_loop().create_future()
        timer = self._timers.at(when - self._offset, lambda _: wake(done))
        try:
            await done
        finally:
            timer.cancel()


def wake(future: asyncio.Future[None]) -> None:
    """Resolve a future, unless it is resolved or cancelled already."""
    if not future.done():
        future.set_result(None)
