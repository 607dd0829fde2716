"""The other servers, as this one calls them over HTTP: transfers to them, and signs of life."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

import aiohttp
from msgspec import Struct

from edgewise.decoding import decode_json
from edgewise.domain import Report, Request
from edgewise.errors import PeerError, WireError
from edgewise.fleet.estimates import waited_for_source
from edgewise.fleet.timeouts import SIGN_PATIENCE, SIGNS_CLOSELY
from edgewise.live.clock import Clock
from edgewise.live.node.monitor import Monitor
from edgewise.live.wire.open_inference import InferAnswer, decode_answer
from edgewise.live.wire.request_metadata import to_headers
from edgewise.live.wire.transfers import TransferHeaders, code_in
from edgewise.live.wire.transport import Transport
from edgewise.live.wire.upload import Upload
from edgewise.security.identity import Credentials, calls, node


class PeerUnreachable(PeerError):
    """No connection to a peer, or it broke off."""


class TransferPayload(Struct, frozen=True):
    """The body of a transfer."""

    body: Upload
    headers: Mapping[str, str]
    """The HTTP headers that say how to read it."""
    ready_size: int | None
    """Input size that it was made ready for; None: the original photo."""


class TransferRequest(Struct, frozen=True, kw_only=True):
    """A request for a peer."""

    request: Request
    model: str
    payload: TransferPayload
    headers: TransferHeaders


class PeerClient:
    """Peers over keep-alive HTTP connections.

    Parameters
    ----------
    urls:
        The address of each peer. It may be a relay's; this makes no difference here.
    """

    def __init__(
        self,
        urls: Mapping[str, str],
        clock: Clock,
        monitor: Monitor,
        transport: Transport,
        credentials: Credentials | None = None,
    ) -> None:
        self._urls = {name: url.rstrip("/") for name, url in urls.items()}
        self._clock = clock
        self._monitor = monitor
        self._transport = transport
        self._credentials = credentials
        self._session = transport.peer_session()

    async def close(self) -> None:
        await self._session.close()

    async def warm_connection(self, url: str) -> None:
        """Send a first request, to this node itself: the first one of a process is slow."""
        with contextlib.suppress(aiohttp.ClientError, OSError):
            this = calls(self._credentials, node(self._monitor.server))
            async with self._session.get(url + "/v2/health/live", **this) as response:
                await response.read()

    async def send(
        self, peer: str, transfer: TransferRequest, on_arrival: Callable[[], None]
    ) -> InferAnswer:
        """Transfer a request, and wait for the answer as long as the caller does.

        `on_arrival` is called when the peer has the payload. Raises PeerUnreachable if the peer
        cannot be reached or breaks off, PeerError if it answers nonsense. Refusals are answers.
        """
        url = self._urls.get(peer)
        if url is None:
            raise PeerUnreachable("no address is configured for it")
        body = transfer.payload.body
        # The receiver counts the budget from the moment the headers are in.
        headers_in = self._monitor.rtts[peer].there(self._clock.now())
        headers = {
            **transfer.payload.headers,
            **to_headers(transfer.request, headers_in),
            **transfer.headers.encode(),
        }
        if body.expected is not None:
            headers["Content-Length"] = str(body.expected)
        size = body.expected if body.expected is not None else body.size
        link = self._monitor.links[peer]
        with link.flow(peer, self._transport.message_bytes(size, headers), self._clock.now) as flow:
            try:
                async with self._session.post(
                    f"{url}/v2/models/{transfer.model}/infer",
                    data=body.so_far() if body.done else _chunks_of(body),
                    headers=headers,
                    allow_redirects=False,
                    **calls(self._credentials, node(peer)),
                ) as response:
                    if response.status == 202:
                        on_arrival()
                        now = self._clock.now()
                        rtt = self._monitor.rtts[peer].get(now) or 0.0
                        uploaded = now if body.last_at is None else body.last_at
                        link.arrived(flow, now, rtt, waited_for_source(uploaded, flow.started, now))
                    answer = await response.read()
                    code = response.status
            except (aiohttp.ClientError, OSError) as error:
                raise PeerUnreachable(str(error) or type(error).__name__) from None
        if code == 202:
            code = code_in(answer)
        return decode_answer(transfer.request.id, code, answer)

    # -- signs of life ---------------------------------------------------------------------------

    async def watch(
        self,
        period: float,
        want_reports: Callable[[], bool],
        on_answer: Callable[[str, Report | None, float], None],
    ) -> None:
        """Ask every peer for a sign of life once a `period`, and measure the round trip.

        While `want_reports()`, peers are asked for their reports, ten times as often: nobody else
        tells of them. `on_answer(peer, report, rtt)` is called for each peer that answers. Runs
        until cancelled.
        """
        timeout = aiohttp.ClientTimeout(total=SIGN_PATIENCE * period)

        async def ask(peer: str, first: float) -> None:
            await asyncio.sleep(first)
            while True:
                reports = want_reports()
                path = f"/v1/report?for={self._monitor.server}" if reports else "/v2/health/live"
                start = self._clock.now()
                answered = False
                try:
                    url = self._urls[peer] + path
                    whom = calls(self._credentials, node(peer))
                    async with self._session.get(url, timeout=timeout, **whom) as response:
                        now = self._clock.now()
                        body = await response.read()
                    if response.status == 200:
                        self._monitor.rtts[peer].add(now - start, now)
                        report = decode_json(body, Report) if reports else None
                        on_answer(peer, report, now - start)
                        answered = True
                except (aiohttp.ClientError, OSError, WireError):
                    pass  # its report ages
                self._monitor.on_sign(peer, answered)
                await asyncio.sleep(period / SIGNS_CLOSELY if want_reports() else period)

        async with asyncio.TaskGroup() as tasks:
            for i, peer in enumerate(self._urls):
                first = period * (i + 1) / (SIGNS_CLOSELY * len(self._urls))
                tasks.create_task(ask(peer, first))


async def _chunks_of(body: Upload) -> AsyncIterator[bytes]:
    async for chunk in body.chunks():
        yield chunk
