"""What an edge server does with a request: decide, then run or transfer, then answer. No HTTP.

Theory of operation
-------------------
As *ingress* (`RequestHandler.serve`): the request takes a place in the queue; a command is waited
for while
the photo still comes in; then the candidates of the command are tried in order. This server's own
means the queue, another's a transfer. A candidate that fails or is full gives way to the next while
there is time; after the last comes the quickest service here that meets the demand; after that an
explicit error. The balancer is told how it ended.

As *destination* (`RequestHandler.accept`): a peer has decided; run it here or say why not.

Every request ends in exactly one `InferAnswer`, at the latest when it can no longer score. One
request
id runs once: a second one joins the first, or is refused if that has been given up.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from edgewise.domain import Candidate, Outcome, PayloadForm, Request, Service, ShedReason, Status
from edgewise.errors import BadInput, ImagesError, PeerError, WireError
from edgewise.fleet.timeouts import give_up_at, worth_running
from edgewise.live.clock import Clock
from edgewise.live.node.command_source import CommandSource, ReceivedCommand
from edgewise.live.node.converter import Converter
from edgewise.live.node.executor import BatchItem, Executor
from edgewise.live.node.monitor import Monitor
from edgewise.live.node.peers import FINAL_CODES, Peers, TransferRequest
from edgewise.live.node.received_request import ReceivedRequest, RequestRefused, TransferOrigin
from edgewise.live.node.worker_queue import QueueFull, QueueTicket, RequestExpired, WorkerQueue
from edgewise.live.wire.open_inference import InferAnswer, encode_request
from edgewise.live.wire.upload import TooLarge, Upload
from edgewise.score import worthless_after

log = logging.getLogger("edgewise.node")

REMEMBERED = 4096
"""Answers kept for retries of the same id; a retry comes within a few deadlines or not at all."""


class Attempts:
    """What a request's candidates have come to so far."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.failed: set[str] = set()
        """Servers that cannot be reached or are full."""
        self.late = False
        """There is no time for another peer."""
        self.full = False
        """The last one that was tried had no room."""


class _NoAnswerInTime(PeerError):
    """A peer that was waited for as long as that could pay."""


class RequestHandler:
    """One edge server's work.

    Parameters
    ----------
    services:
        Of this server by model.
    fleet:
        Of all servers by (server, model).
    grace:
        Of the scenario's score: how far past the deadline an answer counts, in deadlines.
    finished:
        Called with the request and its answer for each this server answered as ingress.
    """

    def __init__(
        self,
        server: str,
        services: Mapping[str, Service],
        fleet: Mapping[tuple[str, str], Service],
        grace: float,
        clock: Clock,
        queue: WorkerQueue,
        stage: Converter,
        executor: Executor,
        monitor: Monitor,
        decisions: CommandSource,
        peers: Peers,
        finished: Callable[[Request, InferAnswer], None],
    ) -> None:
        self.server = server
        self.services = services
        self.draining = False
        self.inflight = 0
        self._fleet = fleet
        self._grace = grace
        self._clock = clock
        self._queue, self._stage, self._executor = queue, stage, executor
        self._monitor, self._decisions, self._peers = monitor, decisions, peers
        self._finished = finished
        self._known: dict[str, asyncio.Future[InferAnswer]] = {}
        self._ended = asyncio.Event()

    async def quiet(self) -> None:
        """Wait until a request has ended."""
        self._ended.clear()
        await self._ended.wait()

    # -- as ingress -----------------------------------------------------------------------------

    async def serve(self, arrival: ReceivedRequest) -> InferAnswer:
        """Answer a request of a client. Raises Refused, TooLarge, WireError (answer 400)."""
        return await self._once(arrival.request.id, lambda: self._ingress(arrival))

    async def _ingress(self, arrival: ReceivedRequest) -> InferAnswer:
        try:
            if self.draining:
                answer = arrival.shed(ShedReason.DRAINING, self._clock.now())
            elif arrival.request.expired(self._clock.now()):
                answer = arrival.expired(self._clock.now())
            else:
                answer = await self._in_time(arrival, self._decide_and_do(arrival))
        except (WireError, TooLarge) as error:
            self._tell(arrival, arrival.failed(400, str(error), self._clock.now()))
            raise
        except BaseException:
            self._tell(arrival, arrival.failed(499, "the client went away", self._clock.now()))
            raise
        self._tell(arrival, answer)
        return answer

    def _tell(self, arrival: ReceivedRequest, answer: InferAnswer) -> None:
        self._decisions.alone.on_outcome(answer.outcome, self._clock.now())
        self._finished(arrival.request, answer)

    async def _decide_and_do(self, arrival: ReceivedRequest) -> InferAnswer:
        request = arrival.request
        with self._queue.enter() as place:
            if arrival.model is not None:
                return await self._run(arrival, arrival.model, place)
            decided = await self._decisions.decide(request, arrival.uploaded)
            arrival.decided = decided.at if decided.at > arrival.accepted else arrival.accepted
            command = decided.command
            if command.server is None or command.model is None:
                return arrival.shed(command.reason or ShedReason.PRICE, self._clock.now())
            first = Candidate(command.server, command.model, command.form)
            tried = Attempts()
            for attempt, candidate in enumerate((first, *command.alternatives)):
                if tried.late:
                    break  # what is left of the time is best spent on the quickest service here
                if candidate.server in tried.failed:
                    continue  # it did not answer, whatever the model
                answer = await self._try(arrival, place, candidate, decided, attempt, tried)
                if answer is not None:
                    return answer
            model = self._quickest(request)
            if model is not None and self.server not in tried.failed:
                if not self._pays(request, model):
                    tried.problems.append(f"{self.server}: too late to run it here")
                elif (answer := await self._run_here(arrival, model, place, tried)) is not None:
                    return answer
            now = self._clock.now()
            problem = "; ".join(tried.problems) or "nobody could run it"
            if request.expired(now):
                return arrival.expired(now, problem)
            if tried.full:
                return arrival.shed(ShedReason.QUEUE_FULL, now, problem)
            return arrival.failed(503, problem, now)

    async def _try(
        self,
        arrival: ReceivedRequest,
        place: QueueTicket,
        candidate: Candidate,
        decided: ReceivedCommand,
        attempt: int,
        tried: Attempts,
    ) -> InferAnswer | None:
        """One candidate; None if the next is to be tried, and why is then in `tried`."""
        dispatch = decided.command.dispatch if attempt == 0 else 0
        if candidate.server == self.server:
            if candidate.model not in self.services:
                tried.problems.append(f"{self.server}: has no model {candidate.model}")
                return None
            if attempt > 0 and not self._pays(arrival.request, candidate.model):
                tried.problems.append(f"{candidate.server}: too late to run it here")
                return None
            await arrival.photo()
            self._monitor.seen(decided.decider).arrived(dispatch)
            return await self._run_here(arrival, candidate.model, place, tried)
        if self._clock.now() >= self._give_up(arrival.request):
            tried.problems.append(f"{candidate.server}: no time left to try it")
            tried.late, tried.full = True, False
            return None
        place.leave()
        try:
            answer = await self._transfer(arrival, candidate, decided, dispatch, attempt)
        except PeerError as error:
            tried.problems.append(str(error))
            tried.failed.add(candidate.server)
            tried.late, tried.full = isinstance(error, _NoAnswerInTime), False
            log.info("request %s: %s", arrival.request.id, error)
            return None
        if answer.code in FINAL_CODES:
            return answer
        tried.problems.append(f"{candidate.server}: {answer.error or answer.code}")
        tried.full = answer.outcome.reason == ShedReason.QUEUE_FULL.value
        if tried.full:  # for any of its models
            tried.failed.add(candidate.server)
        return None

    async def _run_here(
        self, arrival: ReceivedRequest, model: str, place: QueueTicket, tried: Attempts
    ) -> InferAnswer | None:
        """As `_try`, for a model of this server."""
        try:
            return await self._run(arrival, model, place)
        except QueueFull as error:
            tried.problems.append(f"{self.server}: {error}")
            tried.failed.add(self.server)
            tried.full = True
            return None

    async def _transfer(
        self,
        arrival: ReceivedRequest,
        candidate: Candidate,
        decided: ReceivedCommand,
        dispatch: int,
        attempt: int,
    ) -> InferAnswer:
        """Send it to a peer. Raises PeerError; BadInput if the photo cannot be made ready."""
        request = arrival.request
        due = request.sent_at + request.deadline
        body, headers, size = arrival.body, dict(arrival.format), arrival.ready_size
        if candidate.form is PayloadForm.MODEL_READY and size is None:
            service = self._fleet.get((candidate.server, candidate.model))
            if service is None:
                raise PeerError(f"{candidate.server}: has no model {candidate.model}")
            photo = await arrival.photo()
            size = service.input_size
            try:
                ready = await self._stage.make(photo, size, due, self._dead(request))
            except ImagesError as error:
                return arrival.failed(422, str(error), self._clock.now())
            headers, encoded = encode_request(ready)
            body = Upload.of(encoded, self._clock.now())
        parcel = TransferRequest(
            request=request,
            model=candidate.model,
            headers=headers,
            body=body,
            ready_size=size,
            dispatch=dispatch,
            decider=decided.decider,
            attempt=attempt,
            label=None if arrival.label is None else str(arrival.label),
        )
        give_up = self._give_up(request)
        try:
            async with asyncio.timeout(max(0.0, give_up - self._clock.now())):
                answer = await self._peers.send(candidate.server, parcel)
        except TimeoutError:
            raise _NoAnswerInTime(f"{candidate.server}: no answer in time") from None
        outcome = answer.outcome
        stamps = msgspec.structs.replace(
            arrival.stamps(self._clock.now()),
            transferred=outcome.stamps.transferred,
            started=outcome.stamps.started,
            finished=outcome.stamps.finished,
        )
        outcome = msgspec.structs.replace(
            outcome, stamps=stamps, form=candidate.form if outcome.server else None
        )
        return msgspec.structs.replace(answer, outcome=outcome)

    def _give_up(self, request: Request) -> float:
        """When to stop waiting for a peer (`fleet.timeouts`)."""
        model = self._quickest(request)
        work = math.nan if model is None else self._monitor.work(model, False)
        due = request.sent_at + request.deadline
        at: float = give_up_at(due, request.deadline, self._grace, work)
        return at

    def _quickest(self, request: Request) -> str | None:
        """The quickest model here that meets the demand."""
        fit = [s.model for s in self.services.values() if request.admits(s)]
        return min(fit, key=lambda name: self._monitor.work(name, False), default=None)

    def _pays(self, request: Request, model: str) -> bool:
        """Whether to run here what others have failed at (`fleet.timeouts`)."""
        now, due = self._clock.now(), request.sent_at + request.deadline
        done = now + self._queue.wait(due, now) + self._monitor.work(model, False)
        idle = self._queue.idle
        pays: bool = worth_running(done, due, request.deadline, self._grace, idle)
        return pays

    # -- as destination -------------------------------------------------------------------------

    async def accept(
        self,
        arrival: ReceivedRequest,
        transfer: TransferOrigin,
        arrived: Callable[[], Awaitable[None]],
    ) -> InferAnswer:
        """Answer a request that a peer transfers here; `arrived` is awaited when its body is in.

        Raises Refused before that only.
        """
        assert arrival.model is not None
        if self.draining:
            return arrival.shed(ShedReason.DRAINING, self._clock.now())
        key = f"{arrival.request.id}\0{transfer.via}\0{transfer.attempt}"
        return await self._once(key, lambda: self._destination(arrival, transfer, arrived))

    async def _destination(
        self,
        arrival: ReceivedRequest,
        transfer: TransferOrigin,
        arrived: Callable[[], Awaitable[None]],
    ) -> InferAnswer:
        async def work() -> InferAnswer:
            with self._queue.enter() as place:
                await arrival.body.whole()
                arrival.transferred = arrival.body.last_at
                self._monitor.seen(transfer.decider).arrived(transfer.dispatch)
                await arrived()
                try:
                    return await self._run(arrival, arrival.model or "", place)
                except WireError as error:
                    return arrival.failed(400, str(error), self._clock.now())

        return await self._in_time(arrival, work())

    # -- either -----------------------------------------------------------------------------------

    async def _run(self, arrival: ReceivedRequest, model: str, place: QueueTicket) -> InferAnswer:
        """Run it here. Raises WireError, TooLarge."""
        payload = await arrival.photo()
        if arrival.transferred is None:
            arrival.transferred = arrival.body.last_at
        request = arrival.request
        ready = arrival.ready_size is not None
        item = BatchItem(
            request=request.id,
            model=model,
            payload=payload,
            ready_size=arrival.ready_size,
            label=arrival.label,
            since=self._clock.now(),
        )

        async def action() -> Any:
            place.leave()
            start = arrival.started = self._clock.now()
            (result,) = await self._executor.run([item])
            arrival.finished = self._clock.now()
            if not isinstance(result, BadInput):
                self._monitor.ran(model, arrival.finished - start, ready)
            return result

        result = await self._queue.run(
            action,
            self._monitor.work(model, ready),
            request.sent_at + request.deadline,
            self._dead(request),
        )
        if isinstance(result, BadInput):
            return arrival.failed(422, str(result), self._clock.now())
        service = self.services[model]
        accuracy = service.accuracy
        if ready and service.ready_accuracy is not None:
            accuracy = service.ready_accuracy
        outcome = Outcome(
            request=request.id,
            status=Status.SERVED,
            server=self.server,
            model=model,
            form=PayloadForm.MODEL_READY if ready else PayloadForm.ORIGINAL,
            predicted=result.predicted,
            accuracy=accuracy,
            stamps=arrival.stamps(self._clock.now()),
        )
        return InferAnswer(outcome=outcome, code=200, score=result.score)

    def _dead(self, request: Request) -> float:
        """When it can no longer score."""
        return request.sent_at + worthless_after(request.deadline, self._grace)

    async def _in_time(self, arrival: ReceivedRequest, work: Awaitable[InferAnswer]) -> InferAnswer:
        """The answer of `work`, or one that says why there is none."""
        left = self._dead(arrival.request) - self._clock.now()
        try:
            async with asyncio.timeout(max(0.0, left)):
                return await work
        except (TimeoutError, RequestExpired):
            return arrival.expired(self._clock.now())
        except QueueFull as error:
            return arrival.shed(ShedReason.QUEUE_FULL, self._clock.now(), str(error))

    async def _once(self, key: str, work: Callable[[], Awaitable[InferAnswer]]) -> InferAnswer:
        """`work()` for the first of a key; its answer for the others."""
        known = self._known.get(key)
        if known is not None:
            try:
                return await asyncio.shield(known)
            except asyncio.CancelledError:
                if not known.cancelled():
                    raise
                raise RequestRefused(
                    409, "this id was given up before: it does not run twice"
                ) from None
        future: asyncio.Future[InferAnswer] = asyncio.get_running_loop().create_future()
        self._known[key] = future
        while len(self._known) > REMEMBERED + self.inflight:
            del self._known[next(iter(self._known))]
        self.inflight += 1
        try:
            answer = await work()
        except Exception as error:
            future.set_exception(error)
            future.exception()  # it is raised here; that nobody else waits for it is no mistake
            raise
        except BaseException:
            future.cancel()
            raise
        finally:
            self.inflight -= 1
            self._ended.set()
        future.set_result(answer)
        return answer
