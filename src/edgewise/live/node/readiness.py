"""Whether a node's executor works, as ``/v2/health/ready`` says it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("edgewise.node")

FAILURES_MAX = 3
"""Failures of the executor in a row after which a node is not ready. One may be the photo's doing;
three different ones are not."""
CHECK_PERIOD = 1.0
"""s between a broken executor's checks: it may get no requests from which it could be seen to work
again."""


class Readiness:
    """Counts failures of the executor."""

    def __init__(self) -> None:
        self.failures = 0
        """Failures of the executor since the start."""
        self._in_a_row = 0
        self._broken = asyncio.Event()

    @property
    def ready(self) -> bool:
        return not self._broken.is_set()

    def on_success(self) -> None:
        """The executor has run a request."""
        self._in_a_row = 0
        if self._broken.is_set():
            self._broken.clear()
            log.info("the executor works again: ready")

    def on_failure(self, problem: Exception, error: Exception) -> None:
        """The executor has raised `error`; `problem` says so in words."""
        self.failures += 1
        self._in_a_row += 1
        if self._in_a_row == 1:  # the next ones would say the same
            log.error("%s", problem, exc_info=error)
        if self._in_a_row >= FAILURES_MAX and self.ready:
            self._broken.set()
            log.error("%d failures in a row: not ready", self._in_a_row)

    async def keep_checking(self, check: Callable[[], Awaitable[None]]) -> None:
        """While the executor is broken, await `check()` once in `CHECK_PERIOD`. Never returns."""
        while True:
            await self._broken.wait()
            await asyncio.sleep(CHECK_PERIOD)
            if not self.ready:
                await check()
