"""The client: sends every request when it is due, and settles exactly one outcome for each.

An *open loop*: requests go out on their schedule, however the earlier ones fare. A client that
waits for answers slows down exactly when the fleet does, and so hides it. A request's payload goes
to its ingress and its metadata to the balancer. Its outcome is what the answer says, or *failed*
when every connection breaks, or *lost* when nothing comes until an answer is worthless and two
seconds more. Latency is measured on the client's own clock, from sending to the last byte.

An ingress that cannot be reached, that breaks off before its answer, or that is draining gives way
to the next one in the configuration, with the same request id. After a break the first may have run
the request, so such a second run is counted. Nothing is sent twice for lack of an answer alone.

The client is the evaluator as well. Only it knows the right classes; it adds them to the outcomes
and posts those to the balancer, which learns from them.

The time that this program takes to put a request together is not the fleet's. A request counts as
sent when its first bytes go out, and its metadata follow; the delay behind schedule is reported.

A server cannot know how long a request was on its way. So the budget that travels with a request is
what will be left on arrival: half the least round trip, as earlier answers showed it, is taken off.

Kept: one entry per request under way. With its outcome an entry is handed on and forgotten, so
memory stays flat however long the run. Whatever ends the run, Ctrl-C included, every request that
was sent has been handed on with its outcome.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import io
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from edgewise.domain import Outcome, Request, ShedReason, Stamps, Status
from edgewise.errors import PeerError
from edgewise.live.client.balancer_client import BalancerClient
from edgewise.live.client.prepared_load import PreparedLoad
from edgewise.live.clock import Clock
from edgewise.live.process_config import ClientConfig
from edgewise.live.wire.open_inference import decode_answer, encode_request
from edgewise.live.wire.request_metadata import to_headers
from edgewise.live.wire.round_trips import LeastRtt
from edgewise.live.wire.transfers import LABEL_HEADER
from edgewise.live.wire.transport import OpenSession
from edgewise.score import ScoreShape, score, worthless_after
from edgewise.security.identity import Role, calls, credentials_for, node

CONNECT_TIMEOUT = 1.5
"""s. A connection request that got lost is repeated after one."""
LOST_AFTER = 2.0
"""s beyond the time from which on an answer is worthless, for one that is already on its way."""
FINAL_READ = 0.25
"""s more, in which an answer that has arrived is read. A loop that was held up runs its timers
before it reads its sockets: on a starved machine, answers that are there would count as lost."""
PROGRESS_PERIOD = 0.5
"""s between progress lines: fast enough for an eye, slow enough to cost nothing."""
INFER = "/v2/models/{model}/infer"

Progress = Callable[[dict[str, Any]], None]


class SentRequest(Struct, kw_only=True):
    """A request under way, with the facts that only the evaluator knows."""

    request: Request
    label: int
    image: str | None
    left: bool = False
    """Whether its first bytes are out; before that, `request.sent_at` is when it was begun."""


class Client:
    """One run of a load against a fleet. `run` may be called once.

    Parameters
    ----------
    on_outcome:
        Called with each request and its outcome, exactly once for every request that was sent, also
        if the run is cancelled.
    send_labels:
        Send the right classes along, for the replay executor, which cannot look at photos.
    clock, session:
        In place of the wall clock and of sockets.
    """

    def __init__(
        self,
        config: ClientConfig,
        load: PreparedLoad,
        shape: ScoreShape,
        on_outcome: Callable[[SentRequest, Outcome], None],
        *,
        send_labels: bool = False,
        clock: Clock | None = None,
        session: OpenSession | None = None,
    ) -> None:
        self._load = load
        self._shape = shape
        self._on_outcome = on_outcome
        self._send_labels = send_labels
        self._clock = Clock() if clock is None else clock
        self._open_session = _open_session if session is None else session
        roles = (Role.CLIENT, Role.EVALUATOR)
        self._credentials = credentials_for(config.identity, roles)
        self._ingress = {name: url.rstrip("/") for name, url in config.ingress.items()}
        self._failover = config.failover
        self._under_way: dict[str, SentRequest] = {}
        self.balancer = BalancerClient(config.balancer, self._clock, self._credentials)
        self.round_trips = {name: LeastRtt() for name in (*load.servers, *self._ingress)}
        """To each ingress, as its answers showed."""
        self.answers = 0
        """HTTP answers, refusals included."""
        self.failed_over = 0
        """Tries at another ingress, after one could not be reached, broke off or was draining."""
        self.second_runs = 0
        """Those of them after a connection that broke off: the first may have run the request."""
        self.problem = ""
        """Why the last try that failed has failed."""
        self.delays = array.array("d")
        """s behind schedule, of every request sent."""
        self._counts = dict.fromkeys((status.value for status in Status), 0)
        self._served_by = dict.fromkeys(load.servers, 0)
        self._expected = 0.0
        self._effective = 0

    async def run(self, progress: Progress = lambda state: None) -> None:
        """Send everything and wait for every outcome; `progress` is called about twice a second.

        A request that fails raises nothing: its outcome says so.
        """
        try:
            async with self._open_session() as session, asyncio.TaskGroup() as background:
                over = asyncio.Event()
                background.create_task(self.balancer.post_outcomes(session, over))
                showing = background.create_task(self._show(progress))
                try:
                    with self._clock.precise_timers():
                        await self._send_all(session)
                finally:
                    for entry in list(self._under_way.values()):  # only if the run is stopped
                        reason = "the client was stopped"
                        self._settle(entry, _unanswered(entry, Status.LOST, reason))
                    showing.cancel()
                    over.set()
        finally:
            progress(self.progress())

    def progress(self) -> dict[str, Any]:
        """Counts so far, and the mean score of the requests that have ended."""
        ended = sum(self._counts.values())
        return {
            "total": len(self._load),
            "sent": len(self.delays),
            "ended": ended,
            "outcomes": dict(self._counts),
            "failed_over": self.failed_over,
            "second_runs": self.second_runs,
            "expected": self._expected / ended if ended else None,
            "effective": self._effective / ended if ended else None,
            "per_server": dict(self._served_by),
            "late_ms": 1e3 * max(self.delays[-100:], default=0.0),
        }

    async def _show(self, progress: Progress) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                progress(self.progress())
                await asyncio.sleep(PROGRESS_PERIOD)

    async def _send_all(self, session: aiohttp.ClientSession) -> None:
        start = self._clock.now()
        async with asyncio.TaskGroup() as flights:
            for index in range(len(self._load)):
                due_at = start + float(self._load.trace.time[index])
                # Even if it is late: answers that are there should be read first.
                await self._clock.sleep_until(due_at)
                entry = SentRequest(
                    request=self._load.request(index, self._clock.now()),
                    label=self._load.labels[index],
                    image=self._load.image_name(index),
                )
                self._under_way[entry.request.id] = entry
                on_sent = partial(self._on_sent, flights, session, entry, due_at)
                flights.create_task(self._send(session, entry, index, on_sent))

    def _on_sent(
        self,
        flights: asyncio.TaskGroup,
        session: aiohttp.ClientSession,
        entry: SentRequest,
        due_at: float,
    ) -> None:
        """The first bytes go out, or cannot: the request counts as sent. Idempotent."""
        if entry.left:
            return
        entry.left = True
        now = self._clock.now()
        self.delays.append(max(0.0, now - due_at))
        entry.request = msgspec.structs.replace(entry.request, sent_at=now)
        flights.create_task(self.balancer.submit(session, entry.request))

    async def _send(
        self,
        session: aiohttp.ClientSession,
        entry: SentRequest,
        index: int,
        on_sent: Callable[[], None],
    ) -> None:
        """Send one request and settle its outcome, whatever happens."""
        patience = worthless_after(entry.request.deadline, self._shape.grace) + LOST_AFTER
        work = self._ask_in_turn(session, entry, index, on_sent)
        try:
            outcome = await _wait_for(work, patience)
        except TimeoutError:
            outcome = _unanswered(entry, Status.LOST, f"no answer in {patience:.3g} s")
        on_sent()  # if no byte could be sent
        self._settle(entry, outcome)

    async def _ask_in_turn(
        self,
        session: aiohttp.ClientSession,
        entry: SentRequest,
        index: int,
        on_sent: Callable[[], None],
    ) -> Outcome:
        """The answer of the request's ingress, or of the next one that gives any."""
        own = entry.request.ingress
        others = [name for name in self._ingress if name != own] if self._failover else []
        perhaps_run = False
        outcome = None
        for ingress in (own, *others):
            if outcome is not None:
                self.failed_over += 1
                self.second_runs += perhaps_run
            try:
                outcome = await self._post(session, entry, index, ingress, on_sent)
            except (aiohttp.ClientError, OSError) as error:
                on_sent()
                perhaps_run = not isinstance(error, aiohttp.ClientConnectorError)
                reason = f"connection: {type(error).__name__}"
                self.problem = f"{ingress} at {self._ingress[ingress]}: {error or reason}"
                outcome = _unanswered(entry, Status.FAILED, reason)
            else:
                self.answers += 1
                perhaps_run = False
                if outcome.reason != ShedReason.DRAINING.value:
                    break
        assert outcome is not None
        return outcome

    async def _post(
        self,
        session: aiohttp.ClientSession,
        entry: SentRequest,
        index: int,
        ingress: str,
        on_sent: Callable[[], None],
    ) -> Outcome:
        """Send one request to one ingress. Raises ClientError and OSError."""
        first = ingress == entry.request.ingress
        request = msgspec.structs.replace(entry.request, ingress=ingress)
        headers, body = encode_request(self._load.payload(index), request.id)
        # As if sent at once: it counts as sent when it is, and has its whole deadline then.
        sent_at = request.sent_at if first else self._clock.now()
        headers |= to_headers(request, self.round_trips[ingress].there(sent_at))
        if self._send_labels:
            headers[LABEL_HEADER] = str(entry.label)
        url = self._ingress[ingress] + INFER.format(model=request.named_model or request.task)
        async with session.post(
            url,
            data=io.BytesIO(body),
            headers=headers,
            trace_request_ctx=on_sent,
            **calls(self._credentials, node(ingress)),
        ) as response:
            content = await response.read()
        return self._outcome_of(entry.request, response.status, content, first)

    def _outcome_of(self, request: Request, code: int, content: bytes, first: bool) -> Outcome:
        """The outcome in an answer that has just come; *failed* if the answer makes no sense.

        `first`: it is the answer to the first try, so its latency tells of the round trip.
        """
        now = self._clock.now()
        try:
            outcome = decode_answer(request.id, code, content).outcome
            if outcome.status is Status.SERVED and outcome.accuracy is None:
                raise PeerError("an answer without the accuracy of its service")
        except PeerError as error:
            outcome = Outcome(request=request.id, status=Status.FAILED, reason=str(error))
        latency = now - request.sent_at
        accepted, finished = outcome.stamps.accepted, outcome.stamps.finished
        here = first and outcome.server == request.ingress
        if here and accepted is not None and finished is not None:
            # Both on the ingress's clock: the rest of the latency is the round trip.
            self.round_trips[request.ingress].add(max(0.0, latency - (finished - accepted)), now)
        stamps = msgspec.structs.replace(outcome.stamps, sent=request.sent_at, received=now)
        return msgspec.structs.replace(outcome, latency=latency, stamps=stamps)

    def _settle(self, entry: SentRequest, outcome: Outcome) -> None:
        """Count and hand on a request that has ended."""
        if outcome.stamps.sent is None:
            stamps = Stamps(sent=entry.request.sent_at)
            outcome = msgspec.structs.replace(outcome, stamps=stamps)
        outcome = msgspec.structs.replace(outcome, label=entry.label)
        del self._under_way[entry.request.id]
        self.balancer.add_outcome(outcome)
        self._counts[outcome.status.value] += 1
        scored = score(entry.request, outcome, self._shape)
        self._expected += scored.expected
        self._effective += scored.effective
        if outcome.status is Status.SERVED and outcome.server is not None:
            self._served_by[outcome.server] = self._served_by.get(outcome.server, 0) + 1
        self._on_outcome(entry, outcome)


def _unanswered(entry: SentRequest, status: Status, reason: str) -> Outcome:
    return Outcome(request=entry.request.id, status=status, reason=reason)


def _open_session() -> aiohttp.ClientSession:
    async def on_chunk_sent(_: object, context: Any, __: object) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx()

    tracing = aiohttp.TraceConfig()
    tracing.on_request_chunk_sent.append(on_chunk_sent)  # the headers go with the first chunk
    return aiohttp.ClientSession(
        trace_configs=[tracing],
        # No limit: a queue in here would close the loop.
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
        auto_decompress=False,
    )


async def _wait_for(work: Coroutine[Any, Any, Outcome], patience: float) -> Outcome:
    """The result of `work`. Raises TimeoutError after `patience` and `FINAL_READ` s."""
    task = asyncio.create_task(work)
    try:
        for seconds in (patience, FINAL_READ):
            await asyncio.wait((task,), timeout=seconds)
            if task.done():
                return task.result()
        raise TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
