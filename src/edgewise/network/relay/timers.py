"""Timers more precise than asyncio's: one timerfd and one heap.

epoll and libuv wait in whole milliseconds, rounded up, so ``loop.call_later`` fires up to a
millisecond late, and uvloop's ``loop.time()`` is itself cached in milliseconds. A timerfd is a file
descriptor that becomes readable at an absolute nanosecond; ``add_reader`` turns it into a callback.
One is enough: it is set to the earliest entry of the heap.

Times are those of `time.monotonic`, the CLOCK_MONOTONIC of the timerfd.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import heapq
import math
import os
import sys
import time
from collections.abc import Callable

from edgewise.errors import BadInput

_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class _CTimer:
    """timerfd through the C library; Python itself has it from 3.13 on."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            create, self._settime = libc.timerfd_create, libc.timerfd_settime
        except AttributeError:
            raise BadInput("the relay needs timerfd, which only Linux has") from None
        self._settime.argtypes = (
            ctypes.c_int,
            ctypes.c_int,
            ctypes.POINTER(_Itimerspec),
            ctypes.c_void_p,
        )
        self.fd: int = create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._spec = _Itimerspec()

    def set(self, when_ns: int) -> None:
        self._spec.it_value.tv_sec, self._spec.it_value.tv_nsec = divmod(when_ns, 1_000_000_000)
        if self._settime(self.fd, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")


if sys.version_info >= (3, 13):

    class _Timer:
        def __init__(self) -> None:
            self.fd = os.timerfd_create(
                time.CLOCK_MONOTONIC, flags=os.TFD_NONBLOCK | os.TFD_CLOEXEC
            )

        def set(self, when_ns: int) -> None:
            os.timerfd_settime_ns(self.fd, flags=os.TFD_TIMER_ABSTIME, initial=when_ns)

else:
    _Timer = _CTimer


class Timer:
    """One entry. Cancelling it more than once does no harm."""

    __slots__ = ("callback", "sequence", "when")

    def __init__(self, when: float, sequence: int, callback: Callable[[float], None]) -> None:
        self.when = when
        self.sequence = sequence
        self.callback: Callable[[float], None] | None = callback

    def cancel(self) -> None:
        """Never fire, and release the callback at once."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return (self.when, self.sequence) < (other.when, other.sequence)


class Timers:
    """Callbacks at absolute monotonic times, in order of time (then of creation).

    Args:
        loop: a running loop that has ``add_reader``. Call `close` before it ends.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer = _Timer()
        self._heap: list[Timer] = []
        self._sequence = 0
        self._armed = math.inf
        loop.add_reader(self._timer.fd, self._fire)

    def at(self, when: float, callback: Callable[[float], None]) -> Timer:
        """Call ``callback(now)`` at `when` (s, monotonic), or as soon as possible if that is past.

        A `when` of inf never fires.
        """
        timer = Timer(when, self._sequence, callback)
        self._sequence += 1
        if when != math.inf:
            heapq.heappush(self._heap, timer)
            if when < self._armed:
                self._arm(when)
        return timer

    def close(self) -> None:
        """Drop every entry and close the descriptor."""
        if self._timer.fd >= 0:
            self._loop.remove_reader(self._timer.fd)
            os.close(self._timer.fd)
            self._timer.fd = -1
        self._heap.clear()

    def _arm(self, when: float) -> None:
        self._armed = when
        # 0 would disarm it; any past time fires at once. Rounded up, or it would fire a nanosecond
        # early and be set again.
        self._timer.set(max(math.ceil(when * 1e9), 1))

    def _fire(self) -> None:
        with contextlib.suppress(BlockingIOError):  # re-armed since it became readable
            os.read(self._timer.fd, 8)
        # `_armed` stays in the past while callbacks run, so that the entries they add do not set
        # the timer each time; it is set once at the end.
        self._armed = -math.inf
        heap = self._heap
        try:
            while heap:
                timer = heap[0]
                if timer.callback is not None:
                    now = time.monotonic()
                    if timer.when > now:
                        break
                    heapq.heappop(heap)
                    timer.callback(now)
                else:
                    heapq.heappop(heap)
        finally:
            self._armed = math.inf
            if heap and self._timer.fd >= 0:
                self._arm(heap[0].when)
