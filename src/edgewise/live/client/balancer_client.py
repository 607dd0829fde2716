"""The balancer as the client calls it: metadata of requests, and outcomes in batches."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
import msgspec

from edgewise.domain import Outcome, Request
from edgewise.live.clock import Clock
from edgewise.live.wire.messages import Submission
from edgewise.live.wire.round_trips import LeastRtt
from edgewise.security.identity import BALANCER, Credentials, calls

POST_PERIOD = 0.1
"""s between batches of outcomes: the balancer counts its requests in flight by them."""
BATCH_MAX = 2000
"""Outcomes in one batch, about 1 MB: the balancer takes 8 MB."""
POST_TIMEOUT = 5.0
"""s for one batch or one request's metadata; far above a busy balancer's milliseconds."""


class BalancerClient:
    """Posts to a balancer at `url`; without one (None) nothing is sent."""

    def __init__(
        self, url: str | None, clock: Clock, credentials: Credentials | None = None
    ) -> None:
        self._url = None if url is None else url.rstrip("/")
        self._clock = clock
        self._credentials = credentials
        self._unposted: list[Outcome] = []
        self.refused = 0
        """Requests whose metadata the balancer did not take; their ingress asks for a command."""
        self.round_trip = LeastRtt()

    @property
    def unposted(self) -> int:
        """Outcomes that the balancer has not taken."""
        return len(self._unposted)

    async def submit(self, session: aiohttp.ClientSession, request: Request) -> None:
        """Post a request's metadata."""
        if self._url is None:
            return
        start = self._clock.now()
        budget = request.slack(self.round_trip.there(start))
        submission = msgspec.json.encode(Submission(request=request, budget=budget))
        if await self._post(session, "/v1/requests", submission):
            now = self._clock.now()
            self.round_trip.add(now - start, now)
        else:
            self.refused += 1

    def add_outcome(self, outcome: Outcome) -> None:
        """Have an outcome posted with the next batch."""
        self._unposted.append(outcome)

    async def post_outcomes(self, session: aiohttp.ClientSession, over: asyncio.Event) -> None:
        """Post batches until `over`, and then the rest."""
        try:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POST_PERIOD):
                        await over.wait()
                await self._post_batches(session)
        except asyncio.CancelledError:
            # Perhaps in the middle of a batch: the balancer counts an outcome once.
            await self._post_batches(session)
            raise

    async def _post_batches(self, session: aiohttp.ClientSession) -> None:
        while batch := self._unposted[:BATCH_MAX]:
            if not await self._post(session, "/v1/outcomes", msgspec.json.encode(batch)):
                return
            del self._unposted[: len(batch)]

    async def _post(self, session: aiohttp.ClientSession, path: str, body: bytes) -> bool:
        """Whether the balancer took it."""
        if self._url is None:
            return False
        headers = {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(POST_TIMEOUT),
                session.post(
                    self._url + path,
                    data=body,
                    headers=headers,
                    **calls(self._credentials, BALANCER),
                ) as response,
            ):
                await response.read()
                return response.status < 400
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
