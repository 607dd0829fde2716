"""Requests on their way to another server: the sender's side, over HTTP.

A transfer is a V2 infer request for a concrete model, with headers more:

    edgewise-*                  the request's metadata, with the remaining budget
    edgewise-via                who transfers
    edgewise-attempt            tells its tries of one request apart
    edgewise-dispatch           the decider's number for it; 0: of nobody's
    edgewise-decider            a node's name, if not the balancer decided
    edgewise-ready-size         input size the photo was made ready for; absent: as it came

The receiver answers a transfer at once when the last byte is in, with *202 Accepted*, and the
body of that answer follows when there is one, its own HTTP status inside as ``code``. So the
sender knows when its link is free again, without comparing clocks, and can tell a stuck link from
a long queue. What the receiver refuses before the body is in, it refuses as to any client.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Protocol

import aiohttp
import msgspec
from msgspec import Struct

from edgewise.domain import Report, Request, decode_json
from edgewise.errors import PeerError, WireError
from edgewise.fleet.estimates import starved
from edgewise.live.clock import Clock
from edgewise.live.node.monitor import Monitor
from edgewise.live.wire.open_inference import InferAnswer, decode_answer
from edgewise.live.wire.transport import Transport
from edgewise.live.wire.upload import Upload

FINAL_CODES = frozenset({200, 400, 413, 422, 504})
"""HTTP codes with which a peer has answered for good; after another one the next is tried."""


class TransferRequest(Struct, frozen=True, kw_only=True):
    """What goes to a peer."""

    request: Request
    model: str
    headers: Mapping[str, str]
    """Of the body's format."""
    body: Upload
    ready_size: int | None
    dispatch: int
    decider: str
    attempt: int
    label: str | None = None


class Peers(Protocol):
    """The other servers, over whatever carries bytes."""

    async def send(self, peer: str, parcel: TransferRequest) -> InferAnswer:
        """Transfer and wait for the answer, for as long as the caller does.

        Raises PeerError if the peer cannot be reached or breaks off. Whatever the peer said is an
        Answer, refusals too.
        """
        ...


class PeerClient:
    """Peers over keep-alive HTTP connections.

    Parameters
    ----------
    urls:
        Where each peer is reached: itself or a relay, which is not for us to know.
    carrier:
        Carries it.
    """

    def __init__(
        self,
        server: str,
        urls: Mapping[str, str],
        clock: Clock,
        monitor: Monitor,
        carrier: Transport,
    ) -> None:
        self._server = server
        self._urls = {name: url.rstrip("/") for name, url in urls.items()}
        self._clock = clock
        self._monitor = monitor
        self._carrier = carrier
        self._session = carrier.peers()
        self.bytes_sent = dict.fromkeys(urls, 0)

    async def close(self) -> None:
        await self._session.close()

    async def greet(self, url: str) -> None:
        """A first request, to this node itself, so that the first transfer is not the first."""
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with self._session.get(url + "/v2/health/live") as response:
                await response.read()

    async def send(self, peer: str, parcel: TransferRequest) -> InferAnswer:
        url = self._urls.get(peer)
        if url is None:
            raise PeerError(f"{peer}: no address is configured for it")
        body = parcel.body
        now = self._clock.now()
        # The receiver counts the budget from the moment the headers are in.
        headers = {**parcel.headers, **self._headers(parcel, self._monitor.rtts[peer].there(now))}
        if body.expected is not None:
            headers["Content-Length"] = str(body.expected)
        size = body.expected if body.expected is not None else body.size
        size = self._carrier.weight(size, headers)
        link = self._monitor.links[peer]
        with link.flow(peer, size, self._clock.now) as flow:
            try:
                async with self._session.post(
                    f"{url}/v2/models/{parcel.model}/infer",
                    data=body.so_far() if body.done else self._follow(body),
                    headers=headers,
                    allow_redirects=False,
                ) as response:
                    self.bytes_sent[peer] += size
                    if response.status == 202:
                        at = self._clock.now()
                        rtt = self._monitor.rtts[peer].get(at) or 0.0
                        uploaded = at if body.last_at is None else body.last_at
                        link.arrived(flow, at, rtt, starved(uploaded, flow.started, at))
                    answer = await response.read()
                    code = response.status
            except (aiohttp.ClientError, OSError) as error:
                raise PeerError(f"{peer}: {error or type(error).__name__}") from None
        if code == 202:
            code = _code(answer)
        return decode_answer(parcel.request.id, code, answer)

    async def _follow(self, body: Upload) -> AsyncIterator[bytes]:
        async for chunk in body.chunks():
            yield chunk

    def _headers(self, parcel: TransferRequest, now: float) -> dict[str, str]:
        headers = parcel.request.to_headers(now)
        headers["edgewise-via"] = self._server
        headers["edgewise-attempt"] = str(parcel.attempt)
        headers["edgewise-dispatch"] = str(parcel.dispatch)
        if parcel.decider:
            headers["edgewise-decider"] = parcel.decider
        if parcel.ready_size is not None:
            headers["edgewise-ready-size"] = str(parcel.ready_size)
        if parcel.label is not None:
            headers["edgewise-label"] = parcel.label
        return headers

    # -- watching them ---------------------------------------------------------------------------

    async def watch(
        self,
        period: float,
        alone: Callable[[], bool],
        heard: Callable[[str, Report | None, float], None],
    ) -> None:
        """Until cancelled, ask every peer for a sign of life and measure the round trip.

        While `alone()` the sign is its report, and they are asked ten times as often: nobody else
        tells. `heard(peer, report, rtt)` is called for each that answers.
        """
        async with asyncio.TaskGroup() as tasks:
            for i, peer in enumerate(self._urls):
                first = period * (i + 1) / (10.0 * len(self._urls))
                tasks.create_task(self._watch(peer, first, period, alone, heard))

    async def _watch(
        self,
        peer: str,
        first: float,
        period: float,
        alone: Callable[[], bool],
        heard: Callable[[str, Report | None, float], None],
    ) -> None:
        timeout = aiohttp.ClientTimeout(total=2.0 * period)
        await asyncio.sleep(first)
        while True:
            path = f"/v1/report?for={self._server}" if alone() else "/v2/health/live"
            start = self._clock.now()
            try:
                url = self._urls[peer] + path
                async with self._session.get(url, timeout=timeout) as response:
                    now = self._clock.now()
                    body = await response.read()
                if response.status == 200:
                    self._monitor.rtts[peer].add(now - start, now)
                    report = decode_json(body, Report) if "/v1/" in path else None
                    heard(peer, report, now - start)
            except (aiohttp.ClientError, OSError, WireError):
                pass  # silence is the news: the belief counts it
            await asyncio.sleep(period / 10.0 if alone() else period)


def _code(body: bytes) -> int:
    """The status inside a 202's body."""

    class Inside(Struct):
        code: int

    try:
        return msgspec.json.decode(body, type=Inside).code
    except msgspec.DecodeError as error:
        raise PeerError(f"a transfer's answer without a code: {error}") from None
