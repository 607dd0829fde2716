"""Each request runs once, however often it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec import Struct

from edgewise.live.node.received_request import RequestRefused
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.live.wire.upload import Upload

REMEMBERED = 4096
"""Answers kept for retries of the same id; a retry comes within a few deadlines or not at all."""


class _Flight(Struct, eq=False):
    answer: asyncio.Future[InferAnswer]
    body: Upload | None
    """None once it has ended."""
    fingerprint: tuple[int, int] | None = None


class SingleFlight:
    """Runs work once per key; later callers with the same key get the first one's answer."""

    def __init__(self) -> None:
        self._under_way: dict[str, _Flight] = {}
        self._ended: dict[str, _Flight] = {}
        self._changed = asyncio.Event()

    @property
    def inflight(self) -> int:
        """Pieces of work under way."""
        return len(self._under_way)

    async def run(
        self, key: str, work: Callable[[], Awaitable[InferAnswer]], body: Upload
    ) -> InferAnswer:
        """Return `work()`, or the answer of the call that first used `key` for the same `body`.

        Raises RequestRefused if that call was cancelled, for work is never started a second time,
        or if its body was another one.
        """
        known = self._under_way.get(key) or self._ended.get(key)
        if known is not None:
            return await self._join(known, body)
        future: asyncio.Future[InferAnswer] = asyncio.get_running_loop().create_future()
        flight = self._under_way[key] = _Flight(future, body)
        try:
            answer = await work()
        except Exception as error:
            future.set_exception(error)
            future.exception()  # marks it as retrieved: the error is raised here in any case
            raise
        except BaseException:
            future.cancel()
            raise
        finally:
            flight.fingerprint, flight.body = body.fingerprint, None
            self._ended[key] = self._under_way.pop(key)
            if len(self._ended) > REMEMBERED:
                del self._ended[next(iter(self._ended))]
            self._changed.set()
        future.set_result(answer)
        return answer

    async def _join(self, flight: _Flight, body: Upload) -> InferAnswer:
        """The answer of a call that was first."""
        try:
            answer = await asyncio.shield(flight.answer)
        except asyncio.CancelledError:
            if not flight.answer.cancelled():
                raise
            raise RequestRefused(
                409, "this id was given up before: it does not run twice"
            ) from None
        await body.whole()
        if flight.fingerprint not in (None, body.fingerprint):
            raise RequestRefused(409, "this id was used for another photo")
        return answer

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            self._changed.clear()
            await self._changed.wait()
