"""The way of a request through an edge server: decide, run or transfer, answer. No HTTP.

Theory of operation
-------------------
As *ingress* (`RequestHandler.serve`), the server gives the request a queue ticket and waits for a
command while the photo still comes in. Then it tries the command's candidates in order: its own
services through its queue, other servers' by transfer. A candidate that fails or is full gives way
to the next while there is time. After the last one comes the quickest service here that meets the
demand, and after that an explicit error. The balancer learns how the request ended.

As *destination* (`RequestHandler.accept`), the server runs what a peer transfers to it, or says why
not.

Every request ends in exactly one `InferAnswer`, at the latest when it can no longer score. One
request id runs once: a second one joins the first, or is refused if the first was given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edgewise.domain import Candidate, Command, Request, Service, ShedReason
from edgewise.errors import ImagesError, PeerError, WireError
from edgewise.live.node.command_source import CommandSource, ReceivedCommand
from edgewise.live.node.forwarder import Forwarder, NoAnswerInTime
from edgewise.live.node.local_runner import LocalRunner
from edgewise.live.node.monitor import Monitor
from edgewise.live.node.peers import FINAL_CODES, TransferRequest
from edgewise.live.node.received_request import ReceivedRequest
from edgewise.live.node.single_flight import SingleFlight
from edgewise.live.node.worker_queue import QueueFull, QueueTicket, RequestExpired
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.live.wire.transfers import TransferHeaders
from edgewise.live.wire.upload import TooLarge

log = logging.getLogger("edgewise.node")


class RequestHandler:
    """The work of one edge server.

    Parameters
    ----------
    fleet:
        All services of the fleet.
    finished:
        Called with the request and its answer for each request that this server took as ingress.
    """

    def __init__(
        self,
        runner: LocalRunner,
        forwarder: Forwarder,
        commands: CommandSource,
        monitor: Monitor,
        fleet: tuple[Service, ...],
        finished: Callable[[Request, InferAnswer], None],
    ) -> None:
        self.server = monitor.server
        self.runner = runner
        self.requests = SingleFlight()
        self.forwarder = forwarder
        self._commands = commands
        self.monitor = monitor
        self.clock = runner.queue.clock
        self._fleet = fleet
        self._finished = finished

    # -- as ingress ------------------------------------------------------------------------------

    async def serve(self, received: ReceivedRequest) -> InferAnswer:
        """Answer a client's request. Raises RequestRefused, TooLarge, WireError (answer 400)."""
        return await self.requests.run(received.request.id, lambda: self._serve(received))

    async def _serve(self, received: ReceivedRequest) -> InferAnswer:
        request = received.request
        try:
            if self.monitor.draining:
                answer = received.shed(ShedReason.DRAINING, self.clock.now())
            elif request.expired(self.clock.now()):
                answer = received.expired(self.clock.now())
            else:
                answer = await self._in_time(received, self._decide_and_execute(received))
        except (WireError, TooLarge) as error:
            self._finished(request, received.failed(400, str(error), self.clock.now()))
            raise
        except BaseException:
            self._finished(request, received.failed(499, "the client went away", self.clock.now()))
            raise
        self._finished(request, answer)
        return answer

    async def _decide_and_execute(self, received: ReceivedRequest) -> InferAnswer:
        with self.runner.queue.enter() as ticket:
            command = await self._commands.command_for(received.request, received.uploaded)
            try:
                received.decided = max(command.at, received.accepted)
                if command.command.server is None or command.command.model is None:
                    return self._shed(received, command.command)
                return await _Execution(self, received, command, ticket).run()
            finally:
                self._commands.finished(command)

    def _shed(self, received: ReceivedRequest, command: Command) -> InferAnswer:
        """The answer to a request that the command refuses."""
        reason, detail = command.reason or ShedReason.PRICE, ""
        if reason is ShedReason.NO_SERVICE:
            detail = best_accuracy(received.request, self._fleet)
        return received.shed(reason, self.clock.now(), detail, command.retry_after)

    # -- as destination --------------------------------------------------------------------------

    async def accept(
        self,
        received: ReceivedRequest,
        origin: TransferHeaders,
        arrived: Callable[[], Awaitable[None]],
    ) -> InferAnswer:
        """Answer a request that a peer transfers here; `arrived` is awaited when its body is in.

        Raises RequestRefused before that only.
        """
        if self.monitor.draining:
            return received.shed(ShedReason.DRAINING, self.clock.now())
        key = f"{received.request.id}\0{origin.via}\0{origin.attempt}"
        work = self._run_transferred
        return await self.requests.run(
            key, lambda: self._in_time(received, work(received, origin, arrived))
        )

    async def _run_transferred(
        self,
        received: ReceivedRequest,
        origin: TransferHeaders,
        arrived: Callable[[], Awaitable[None]],
    ) -> InferAnswer:
        with self.runner.queue.enter() as ticket:
            await received.body.whole()
            received.transferred = received.body.last_at
            self.monitor.seen(origin.decider).arrived(origin.dispatch)
            await arrived()
            try:
                return await self.runner.run(received, received.model or "", ticket)
            except WireError as error:
                return received.failed(400, str(error), self.clock.now())

    async def _in_time(
        self, received: ReceivedRequest, work: Awaitable[InferAnswer]
    ) -> InferAnswer:
        """The answer of `work`, or one that says that it came too late or found no room."""
        left = self.runner.worthless_at(received.request) - self.clock.now()
        try:
            async with asyncio.timeout(max(0.0, left)):
                return await work
        except (TimeoutError, RequestExpired):
            return received.expired(self.clock.now())
        except QueueFull as error:
            now = self.clock.now()
            backlog = self.runner.queue.backlog(now)
            return received.shed(ShedReason.QUEUE_FULL, now, str(error), backlog)


def best_accuracy(request: Request, fleet: tuple[Service, ...]) -> str:
    """The best accuracy that a request can have, in words."""
    services = [each for each in fleet if request.named_model in (None, each.model)]
    best = max(services, key=lambda each: each.accuracy)
    return (
        f"no service has an accuracy of {request.accuracy:g}; "
        f"the best there is has {best.accuracy:g} ({best.model})"
    )


class _Execution:
    """One request on its way through the candidates of its command."""

    def __init__(
        self,
        handler: RequestHandler,
        received: ReceivedRequest,
        command: ReceivedCommand,
        ticket: QueueTicket,
    ) -> None:
        self._server, self._runner = handler.server, handler.runner
        self._forwarder, self._monitor = handler.forwarder, handler.monitor
        self._clock = handler.clock
        self._received, self._request = received, received.request
        self._command = command
        self._ticket = ticket
        self._problems: list[str] = []
        """Why the candidates so far have failed."""
        self._failed: set[str] = set()
        """Servers that cannot be reached or are full; none of their models is tried again."""
        self._out_of_time = False
        """No time is left for another peer."""
        self._full = False
        """Whether the last candidate was refused for lack of room."""

    async def run(self) -> InferAnswer:
        """Try the candidates in order, then the quickest service here, then say why it failed."""
        for number, candidate in enumerate(self._command.candidates):
            if self._out_of_time:
                break
            if candidate.server in self._failed:
                continue
            here = candidate.server == self._server
            answer = await (self._try_here if here else self._try_peer)(candidate, number)
            if answer is not None:
                return answer
        model = self._runner.quickest(self._request)
        if model is not None and self._server not in self._failed:
            answer = await self._run_if_worthwhile(model)
            if answer is not None:
                return answer
        now = self._clock.now()
        problem = "; ".join(self._problems) or "nobody could run it"
        if self._request.expired(now):
            return self._received.expired(now, problem)
        if self._full:
            backlog = self._runner.queue.backlog(now)
            return self._received.shed(ShedReason.QUEUE_FULL, now, problem, backlog)
        return self._received.failed(503, problem, now)

    async def _try_here(self, candidate: Candidate, number: int) -> InferAnswer | None:
        """Run candidate `number` on this server; None if that failed."""
        if candidate.model not in self._runner.services:
            self._problems.append(f"{self._server}: has no model {candidate.model}")
            return None
        if number > 0:
            return await self._run_if_worthwhile(candidate.model)
        await self._received.photo()
        self._monitor.seen(self._command.decider).arrived(self._command.command.dispatch)
        return await self._run(candidate.model)

    async def _run_if_worthwhile(self, model: str) -> InferAnswer | None:
        """Run here what others have failed at, unless it is too late for that."""
        if not self._runner.worth_running(self._request, model):
            self._problems.append(f"{self._server}: too late to run it here")
            return None
        return await self._run(model)

    async def _run(self, model: str) -> InferAnswer | None:
        try:
            return await self._runner.run(self._received, model, self._ticket)
        except QueueFull as error:
            self._fail(self._server, f"{self._server}: {error}", full=True)
            return None

    async def _try_peer(self, candidate: Candidate, number: int) -> InferAnswer | None:
        """Transfer to candidate `number`; None if that failed."""
        server = candidate.server
        if self._clock.now() >= self._runner.give_up_at(self._request):
            self._problems.append(f"{server}: no time left to try it")
            self._out_of_time, self._full = True, False
            return None
        self._ticket.leave()
        try:
            answer = await self._transfer(candidate, number)
        except ImagesError as error:
            return self._received.failed(422, str(error), self._clock.now())
        except PeerError as error:
            self._fail(server, str(error))
            self._out_of_time = isinstance(error, NoAnswerInTime)
            log.info("request %s: %s", self._request.id, error)
            return None
        if answer.code in FINAL_CODES:
            return answer
        problem = f"{server}: {answer.error or answer.code}"
        if answer.outcome.reason == ShedReason.QUEUE_FULL.value:
            self._fail(server, problem, full=True)
        else:
            self._problems.append(problem)
            self._full = False
        return None

    async def _transfer(self, candidate: Candidate, number: int) -> InferAnswer:
        payload = await self._forwarder.payload_for(
            self._received, candidate, self._runner.worthless_at(self._request)
        )
        transfer = TransferRequest(
            request=self._request,
            model=candidate.model,
            payload=payload,
            headers=TransferHeaders(
                via=self._server,
                attempt=number,
                dispatch=self._command.command.dispatch if number == 0 else 0,
                decider=self._command.decider,
                ready_size=payload.ready_size,
                label=self._received.label,
            ),
        )
        give_up_at = self._runner.give_up_at(self._request)
        return await self._forwarder.send(self._received, candidate, transfer, give_up_at)

    def _fail(self, server: str, problem: str, *, full: bool = False) -> None:
        """`server` cannot take the request, with any of its models."""
        self._problems.append(problem)
        self._failed.add(server)
        self._full = full
