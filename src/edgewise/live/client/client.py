"""The client: sends every request when it is due, waits for none, and loses count of none.

An *open loop*: the next request goes out on its schedule whatever became of the last one, for a
client that waits slows down exactly when the fleet does, and hides it. A request's payload goes to
its ingress and its metadata to the balancer. Each ends in exactly one `Outcome`: what the answer
says, or *failed* when the connection broke, or *lost* when nothing came until its deadline was
twice over and two seconds more. Latency is by the client's own clock, from the moment of sending to
the last byte.

The client is the evaluator as well: it alone knows the right classes, puts them into the outcomes
and hands those to the balancer, in batches, to learn from.

What it takes to put a request together is this program's time and not the fleet's. So a request
counts as sent when its first bytes go out, and its metadata follow; how far behind schedule that
was is reported.

A server cannot know how long a request was on its way. So the budget that travels with it is what
will be left when it is in: half the least round trip is taken off, as the answers have shown it.

Kept: one entry per request under way. With its outcome it is handed on and forgotten, so memory
stays flat however long the run. Whatever ends the run, a Ctrl-C too, every request that was sent
has been handed on with its outcome.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import io
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from edgewise.domain import Outcome, Request, Stamps, Status
from edgewise.errors import BadInput, MissingExtra, PeerError
from edgewise.live.client.prepared_load import PreparedLoad, read_load
from edgewise.live.clock import Clock
from edgewise.live.process_config import ClientConfig
from edgewise.live.recorder import Recorder
from edgewise.live.records import CLIENT_NOTES, OUTCOMES, REQUESTS, RUN_SCENARIO
from edgewise.live.startup import freeze_startup_objects
from edgewise.live.wire.messages import Submission
from edgewise.live.wire.open_inference import decode_answer, encode_request
from edgewise.live.wire.round_trips import LeastRtt
from edgewise.live.wire.transport import OpenSession
from edgewise.scenario import Scenario, dump, load
from edgewise.score import ScoreShape, score, worthless_after
from edgewise.summary import percentiles_ms

try:
    import aiohttp
    import uvloop
except ImportError as error:
    raise MissingExtra("live", error.name or "aiohttp") from error

LOST_AFTER = 2.0
"""s past twice the deadline: the soft score gives nothing beyond twice, and the rest is for an
answer that is already on the way."""
LAST_LOOK = 0.25
"""s more, in which an answer that has come is read. A loop that was held up wakes to its timers
before it reads its sockets: on a machine that starves it, what lies there would count as lost."""
POST_PERIOD = 0.1
"""s between batches of outcomes: the balancer counts its requests in flight by them."""
BATCH_MAX = 2000
"""Outcomes in one batch, about 1 MB: the balancer takes 8 MB."""
POST_TIMEOUT = 5.0
"""s for one batch or one request's metadata; far above a busy balancer's milliseconds."""
PROGRESS_PERIOD = 0.5
"""s between progress lines: fast enough for an eye, slow enough to cost nothing."""
INFER = "/v2/models/{task}/infer"

Progress = Callable[[dict[str, Any]], None]


class SentRequest(Struct, kw_only=True):
    """A request that was sent, and what only the evaluator knows of it."""

    request: Request
    label: int
    image: str | None
    left: bool = False
    """Whether it is on its way; before, `request.sent_at` is when it was begun."""


class Client:
    """One run of a load against a fleet.

    `run` may be called once. `ended` is called with each request and its outcome, exactly once for
    every request that was sent, also if the run is cancelled. `tell_label` sends the right class
    along, for the replay executor. `clock` and `session` in place of the wall's and of sockets.
    """

    def __init__(
        self,
        config: ClientConfig,
        load: PreparedLoad,
        shape: ScoreShape,
        ended: Callable[[SentRequest, Outcome], None],
        *,
        tell_label: bool = False,
        clock: Clock | None = None,
        session: OpenSession | None = None,
    ) -> None:
        self._config = config
        self._load = load
        self._shape = shape
        self._ended = ended
        # Real models must look; replay cannot, and is told what would be seen.
        self._tell_label = tell_label
        self._clock = Clock() if clock is None else clock
        self._session = _open_session if session is None else session
        self._under_way: dict[str, SentRequest] = {}
        self._unposted: list[Outcome] = []
        self.untold = 0
        """Requests whose metadata the balancer did not take."""
        self.round_trips: dict[str, LeastRtt] = {name: LeastRtt() for name in load.servers}
        """To each ingress, as its answers showed …"""
        self.balancer_round_trip = LeastRtt()
        """… and to the balancer."""
        self.late = array.array("d")
        """s behind its schedule, of every request sent."""
        self._counts = dict.fromkeys((status.value for status in Status), 0)
        self._servers = dict.fromkeys(load.servers, 0)
        self._expected = 0.0
        self._effective = 0

    @property
    def unposted(self) -> int:
        """Outcomes that the balancer has not taken."""
        return len(self._unposted)

    async def run(self, progress: Progress = lambda state: None) -> None:
        """Send everything and wait for every outcome; `progress` is called about twice a second.

        Raises nothing for requests that fail: that is an outcome.
        """
        session = self._session()
        try:
            async with session, asyncio.TaskGroup() as background:
                over = asyncio.Event()
                background.create_task(self._post_outcomes(session, over))
                telling = background.create_task(self._tell(progress))
                try:
                    with self._clock.precise_timers():
                        await self._send_all(session)
                finally:
                    # Of those without an outcome there are some only if it was stopped.
                    self._settle("the client was stopped")
                    telling.cancel()
                    over.set()
        finally:
            progress(self.progress())

    def progress(self) -> dict[str, Any]:
        """How far it is: counts, and the score so far over the requests that have ended."""
        ended = sum(self._counts.values())
        return {
            "total": len(self._load),
            "sent": len(self.late),
            "ended": ended,
            "outcomes": dict(self._counts),
            "expected": self._expected / ended if ended else None,
            "effective": self._effective / ended if ended else None,
            "per_server": dict(self._servers),
            "late_ms": 1e3 * max(self.late[-100:], default=0.0),
        }

    # -- sending ---------------------------------------------------------------------------------

    async def _send_all(self, session: aiohttp.ClientSession) -> None:
        start = self._clock.now()
        async with asyncio.TaskGroup() as flights:
            for index in range(len(self._load)):
                due_at = start + float(self._load.trace.time[index])
                # Also when it is late already: an answer that is there should be read first.
                await self._clock.sleep_until(due_at)
                entry = SentRequest(
                    request=self._load.request(index, self._clock.now()),
                    label=self._load.labels[index],
                    image=self._load.image_name(index),
                )
                self._under_way[entry.request.id] = entry
                leave = partial(self._leave, flights, session, entry, due_at)
                flights.create_task(self._one(session, entry, index, leave))

    def _leave(
        self,
        flights: asyncio.TaskGroup,
        session: aiohttp.ClientSession,
        entry: SentRequest,
        due_at: float,
    ) -> None:
        """The first bytes go out, or cannot: now it counts as sent, and the balancer is told."""
        if entry.left:
            return
        entry.left = True
        now = self._clock.now()
        self.late.append(max(0.0, now - due_at))
        entry.request = msgspec.structs.replace(entry.request, sent_at=now)
        if self._config.balancer is not None:
            flights.create_task(self._tell_balancer(session, entry.request))

    async def _one(
        self,
        session: aiohttp.ClientSession,
        entry: SentRequest,
        index: int,
        leave: Callable[[], None],
    ) -> None:
        """Send one request and settle its outcome, whatever happens. `leave` is called as soon as
        it goes out, or cannot."""
        request = entry.request
        headers, body = encode_request(self._load.payload(index), request.id)
        # As if sent at once: it counts as sent when it is, and has its whole deadline then.
        headers |= request.to_headers(self.round_trips[request.ingress].there(request.sent_at))
        if self._tell_label:
            headers["edgewise-label"] = str(entry.label)
        url = self._config.ingress[request.ingress].rstrip("/") + INFER.format(task=request.task)
        patience = worthless_after(request.deadline, self._shape.grace) + LOST_AFTER

        async def answer() -> Outcome:
            async with session.post(
                url, data=io.BytesIO(body), headers=headers, trace_request_ctx=leave
            ) as response:
                said = await response.read()
            return self._read(entry.request, response.status, said)

        try:
            outcome = await _patiently(answer(), patience)
        except TimeoutError:
            outcome = Outcome(
                request=request.id, status=Status.LOST, reason=f"no answer in {patience:.3g} s"
            )
        except (aiohttp.ClientError, OSError) as error:
            outcome = Outcome(
                request=request.id,
                status=Status.FAILED,
                reason=f"connection: {type(error).__name__}",
            )
        leave()  # if there was nobody to send it to
        self._end(entry, outcome)

    def _read(self, request: Request, code: int, answer: bytes) -> Outcome:
        """What an answer says that has just come; one that makes no sense is a failure of whoever
        gave it."""
        now = self._clock.now()
        try:
            outcome = decode_answer(request.id, code, answer).outcome
            if outcome.status is Status.SERVED and outcome.accuracy is None:
                raise PeerError("an answer without the accuracy of its service")
        except PeerError as error:
            outcome = Outcome(request=request.id, status=Status.FAILED, reason=str(error))
        latency = now - request.sent_at
        there, done = outcome.stamps.accepted, outcome.stamps.finished
        if outcome.server == request.ingress and there is not None and done is not None:
            # Both by the ingress's clock: what is left was spent on the way.
            self.round_trips[request.ingress].add(max(0.0, latency - (done - there)), now)
        stamps = msgspec.structs.replace(outcome.stamps, sent=request.sent_at, received=now)
        return msgspec.structs.replace(outcome, latency=latency, stamps=stamps)

    def _end(self, entry: SentRequest, outcome: Outcome) -> None:
        if outcome.stamps.sent is None:
            stamps = Stamps(sent=entry.request.sent_at)
            outcome = msgspec.structs.replace(outcome, stamps=stamps)
        outcome = msgspec.structs.replace(outcome, label=entry.label)
        del self._under_way[entry.request.id]
        self._unposted.append(outcome)
        self._counts[outcome.status.value] += 1
        worth = score(entry.request, outcome, self._shape)
        self._expected += worth.expected
        self._effective += worth.effective
        if outcome.status is Status.SERVED and outcome.server is not None:
            self._servers[outcome.server] = self._servers.get(outcome.server, 0) + 1
        self._ended(entry, outcome)

    def _settle(self, reason: str) -> None:
        """Give every request that has no outcome yet the one that only a client can give."""
        for entry in list(self._under_way.values()):
            lost = Outcome(request=entry.request.id, status=Status.LOST, reason=reason)
            self._end(entry, lost)

    # -- the balancer ----------------------------------------------------------------------------

    async def _tell_balancer(self, session: aiohttp.ClientSession, request: Request) -> None:
        """Metadata to the balancer; if it does not take it, the ingress will ask."""
        began = self._clock.now()
        budget = request.slack(self.balancer_round_trip.there(began))
        submission = msgspec.json.encode(Submission(request=request, budget=budget))
        if await self._post(session, "/v1/requests", submission):
            now = self._clock.now()
            self.balancer_round_trip.add(now - began, now)
        else:
            self.untold += 1

    async def _post_outcomes(self, session: aiohttp.ClientSession, over: asyncio.Event) -> None:
        """Post outcomes in batches until it is over, and then what is left."""
        try:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POST_PERIOD):
                        await over.wait()
                await self._flush(session)
        except asyncio.CancelledError:
            # Stopped early, perhaps in the middle of a batch: what comes twice counts once there.
            await self._flush(session)
            raise

    async def _flush(self, session: aiohttp.ClientSession) -> None:
        while batch := self._unposted[:BATCH_MAX]:
            if not await self._post(session, "/v1/outcomes", msgspec.json.encode(batch)):
                return
            del self._unposted[: len(batch)]

    async def _post(self, session: aiohttp.ClientSession, path: str, body: bytes) -> bool:
        """Whether the balancer took it."""
        if self._config.balancer is None:
            return False
        url = self._config.balancer.rstrip("/") + path
        headers = {"Content-Type": "application/json"}
        try:
            async with (
                asyncio.timeout(POST_TIMEOUT),
                session.post(url, data=body, headers=headers) as response,
            ):
                await response.read()
                return response.status < 400
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def _tell(self, progress: Progress) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                progress(self.progress())
                await asyncio.sleep(PROGRESS_PERIOD)


def _open_session() -> aiohttp.ClientSession:
    async def goes_out(_: object, context: Any, __: object) -> None:
        if context.trace_request_ctx is not None:
            context.trace_request_ctx()

    tracing = aiohttp.TraceConfig()
    tracing.on_request_chunk_sent.append(goes_out)  # the headers go with the first one
    return aiohttp.ClientSession(
        trace_configs=[tracing],
        # No limit: a queue in here would be a closed loop by another name.
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None),
        auto_decompress=False,
    )


async def _patiently(work: Coroutine[Any, Any, Outcome], patience: float) -> Outcome:
    """What `work` returns; TimeoutError if that takes longer, `LAST_LOOK` included."""
    task = asyncio.create_task(work)
    try:
        for seconds in (patience, LAST_LOOK):
            await asyncio.wait((task,), timeout=seconds)
            if task.done():
                return task.result()
        raise TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


# -- the process ---------------------------------------------------------------------------------


def run(
    config: ClientConfig,
    *,
    hold: bool = False,
    name: str | None = None,
    say: Callable[[str, Any], None] = lambda key, value: None,
) -> dict[str, Any]:
    """Be the client process: send the scenario's requests, keep the files, return the counts.

    `say` is called with what a launcher wants to know: ``ready`` once everything has been read,
    ``progress`` about twice a second. With `hold`, nothing is sent before a line comes on stdin, so
    that a launcher can start the emulated network's time at the same moment. `name` begins the
    ids of the requests; by default it is random, so that a second run against the same balancer is
    not taken for the first one sent again. SIGTERM and SIGINT
    stop it early; then too every request that was sent is in the files with its outcome.

    Raises ScenarioError and ImagesError for what cannot be read, BadInput for a folder that cannot
    be written, KeyboardInterrupt after SIGINT.
    """
    scenario = load(config.scenario, allow_code=True)  # it runs no policy
    missing = [name for name in scenario.workload.ingress if name not in config.ingress]
    if missing:
        raise BadInput(f"client configuration: ingress: expected an address of {missing[0]!r}")
    shape = ScoreShape.of(scenario.score)
    requests = read_load(scenario, name or secrets.token_hex(4))
    out = None if config.out is None else Path(config.out)
    warm_up(shape)
    freeze_startup_objects()
    with Recorder(out, (REQUESTS, OUTCOMES)) as recorder:

        def ended(entry: SentRequest, outcome: Outcome) -> None:
            recorder.add(REQUESTS, entry.request, entry.image, entry.label)
            recorder.add(OUTCOMES, outcome, score(entry.request, outcome, shape))

        client = Client(config, requests, shape, ended, tell_label=scenario.executor == "replay")
        say("ready", {"client": scenario.name, "requests": len(requests)})
        if hold and not sys.stdin.readline():
            return client.progress()  # the launcher is gone
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_until_signal(client, lambda state: say("progress", state)))
        finally:
            if out is not None:
                write_notes(out, scenario, client)
    return client.progress()


def warm_up(shape: ScoreShape) -> None:
    """Score once: loading what is compiled takes half a second, in which nothing could be sent."""
    request = Request(id="warm-up", ingress="x", payload_bytes=0, sent_at=0.0, deadline=1.0)
    outcome = Outcome(request="warm-up", status=Status.SERVED, latency=1.0, accuracy=1.0)
    score(request, outcome, shape)


async def _until_signal(client: Client, progress: Progress) -> None:
    """Run the client; SIGTERM ends it as if all had been sent (SIGINT cancels, as ever)."""
    task = asyncio.create_task(client.run(progress))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():  # it was this coroutine that was cancelled, not the task
            raise


def write_notes(out: Path, scenario: Scenario, client: Client) -> None:
    """Write what `evaluate` needs besides the Parquet files: the scenario, and the notes."""
    if not (out / RUN_SCENARIO).exists():
        (out / RUN_SCENARIO).write_text(dump(scenario), encoding="utf-8")
    notes = {
        "late_send_ms": percentiles_ms(client.late),
        "untold": client.untold,
        "unposted": client.unposted,
    }
    (out / CLIENT_NOTES).write_bytes(
        msgspec.json.format(msgspec.json.encode(notes), indent=2) + b"\n"
    )
