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
        self._timers: Timers | None = None
        self._offset = (time.time() if epoch is None else epoch) - monotonic()

    def now(self) -> float:
        """Seconds since the Unix epoch."""
        return self._offset + self._monotonic()

    @contextlib.contextmanager
    def precise_timers(self) -> Iterator[None]:
        """While this is open, `until` is some tens of microseconds late rather than a millisecond.

        It takes a file descriptor of the running loop. Nothing changes for a clock that counts
        other seconds than the system's, or where there are no such timers.
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
        """Wait until `when`, if that is not past; never shorter."""
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
    """Let whoever waits for it go on, unless it does not any more."""
    if not future.done():
        future.set_result(None)
