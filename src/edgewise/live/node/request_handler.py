"""What an edge server does with a request: decide, then run or transfer, then answer. No HTTP.

Theory of operation
-------------------
As *ingress* (`RequestHandler.serve`), the server gives the request a queue ticket and waits for a
command while the photo still comes in. Then it tries the command's candidates in order: its own
services through its queue, other servers' by transfer. A candidate that fails or is full gives way
to the next while there is time. After the last one comes the quickest service here that meets the
demand, and after that an explicit error. The balancer is told how the request ended.

As *destination* (`RequestHandler.accept`), the server runs what a peer transfers to it, or says why
not.

Every request ends in exactly one `InferAnswer`, at the latest when it can no longer score. One
request id runs once: a second one joins the first, or is refused if the first was given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edgewise.domain import Candidate, Request, ShedReason
from edgewise.errors import ImagesError, PeerError, WireError
from edgewise.live.clock import Clock
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


class Attempts:
    """How the candidates of one request have failed so far."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.failed: set[str] = set()
        """Servers that cannot be reached or are full; none of their models is tried again."""
        self.out_of_time = False
        """No time is left for another peer."""
        self.full = False
        """Whether the last candidate was refused for lack of room."""

    def failed_at(self, server: str, problem: str, *, full: bool = False) -> None:
        """`server` cannot take the request, with any of its models."""
        self.problems.append(problem)
        self.failed.add(server)
        self.full = full


class RequestHandler:
    """The work of one edge server.

    Parameters
    ----------
    finished:
        Called with the request and its answer for each request that this server took as ingress.
    """

    def __init__(
        self,
        runner: LocalRunner,
        forwarder: Forwarder,
        commands: CommandSource,
        monitor: Monitor,
        clock: Clock,
        finished: Callable[[Request, InferAnswer], None],
    ) -> None:
        self.server = monitor.server
        self.runner = runner
        self.requests = SingleFlight()
        self._forwarder = forwarder
        self._commands = commands
        self._monitor = monitor
        self._clock = clock
        self._finished = finished

    # -- as ingress ------------------------------------------------------------------------------

    async def serve(self, received: ReceivedRequest) -> InferAnswer:
        """Answer a client's request. Raises RequestRefused, TooLarge, WireError (answer 400)."""
        return await self.requests.run(received.request.id, lambda: self._serve(received))

    async def _serve(self, received: ReceivedRequest) -> InferAnswer:
        request = received.request
        try:
            if self._monitor.draining:
                answer = received.shed(ShedReason.DRAINING, self._clock.now())
            elif request.expired(self._clock.now()):
                answer = received.expired(self._clock.now())
            else:
                answer = await self._in_time(received, self._decide_and_execute(received))
        except (WireError, TooLarge) as error:
            self._finished(request, received.failed(400, str(error), self._clock.now()))
            raise
        except BaseException:
            self._finished(request, received.failed(499, "the client went away", self._clock.now()))
            raise
        self._finished(request, answer)
        return answer

    async def _decide_and_execute(self, received: ReceivedRequest) -> InferAnswer:
        with self.runner.queue.enter() as ticket:
            if received.model is not None:
                return await self.runner.run(received, received.model, ticket)
            command = await self._commands.command_for(received.request, received.uploaded)
            received.decided = max(command.at, received.accepted)
            if command.command.server is None or command.command.model is None:
                reason = command.command.reason or ShedReason.PRICE
                return received.shed(reason, self._clock.now())
            return await self._execute(received, command, ticket)

    async def _execute(
        self, received: ReceivedRequest, command: ReceivedCommand, ticket: QueueTicket
    ) -> InferAnswer:
        """Try the candidates of a command, then what this server can do itself."""
        attempts = Attempts()
        for number, candidate in enumerate(command.candidates):
            if attempts.out_of_time:
                break
            if candidate.server in attempts.failed:
                continue
            if candidate.server == self.server:
                answer = await self._try_here(
                    received, candidate.model, command, number, ticket, attempts
                )
            else:
                answer = await self._try_peer(
                    received, candidate, command, number, ticket, attempts
                )
            if answer is not None:
                return answer
        model = self.runner.quickest(received.request)
        if model is not None and self.server not in attempts.failed:
            answer = await self._run_if_worthwhile(received, model, ticket, attempts)
            if answer is not None:
                return answer
        now = self._clock.now()
        problem = "; ".join(attempts.problems) or "nobody could run it"
        if received.request.expired(now):
            return received.expired(now, problem)
        if attempts.full:
            return received.shed(ShedReason.QUEUE_FULL, now, problem)
        return received.failed(503, problem, now)

    async def _try_here(
        self,
        received: ReceivedRequest,
        model: str,
        command: ReceivedCommand,
        number: int,
        ticket: QueueTicket,
        attempts: Attempts,
    ) -> InferAnswer | None:
        """Run candidate `number` of a command here; None if it failed, and `attempts` says why."""
        if model not in self.runner.services:
            attempts.problems.append(f"{self.server}: has no model {model}")
            return None
        if number > 0:
            return await self._run_if_worthwhile(received, model, ticket, attempts)
        await received.photo()
        self._monitor.seen(command.decider).arrived(command.command.dispatch)
        return await self._run(received, model, ticket, attempts)

    async def _run_if_worthwhile(
        self, received: ReceivedRequest, model: str, ticket: QueueTicket, attempts: Attempts
    ) -> InferAnswer | None:
        """Run here what others have failed at, unless it is too late for that."""
        if not self.runner.worth_running(received.request, model):
            attempts.problems.append(f"{self.server}: too late to run it here")
            return None
        return await self._run(received, model, ticket, attempts)

    async def _run(
        self, received: ReceivedRequest, model: str, ticket: QueueTicket, attempts: Attempts
    ) -> InferAnswer | None:
        try:
            return await self.runner.run(received, model, ticket)
        except QueueFull as error:
            attempts.failed_at(self.server, f"{self.server}: {error}", full=True)
            return None

    async def _try_peer(
        self,
        received: ReceivedRequest,
        candidate: Candidate,
        command: ReceivedCommand,
        number: int,
        ticket: QueueTicket,
        attempts: Attempts,
    ) -> InferAnswer | None:
        """Transfer to candidate `number` of a command; None if that failed."""
        request, server = received.request, candidate.server
        if self._clock.now() >= self.runner.give_up_at(request):
            attempts.problems.append(f"{server}: no time left to try it")
            attempts.out_of_time, attempts.full = True, False
            return None
        ticket.leave()
        try:
            payload = await self._forwarder.payload_for(
                received, candidate, self.runner.worthless_at(request)
            )
            transfer = TransferRequest(
                request=request,
                model=candidate.model,
                payload=payload,
                headers=TransferHeaders(
                    via=self.server,
                    attempt=number,
                    dispatch=command.command.dispatch if number == 0 else 0,
                    decider=command.decider,
                    ready_size=payload.ready_size,
                    label=received.label,
                ),
            )
            give_up_at = self.runner.give_up_at(request)
            answer = await self._forwarder.send(received, candidate, transfer, give_up_at)
        except ImagesError as error:
            return received.failed(422, str(error), self._clock.now())
        except PeerError as error:
            attempts.failed_at(server, str(error))
            attempts.out_of_time = isinstance(error, NoAnswerInTime)
            log.info("request %s: %s", request.id, error)
            return None
        if answer.code in FINAL_CODES:
            return answer
        problem = f"{server}: {answer.error or answer.code}"
        if answer.outcome.reason == ShedReason.QUEUE_FULL.value:
            attempts.failed_at(server, problem, full=True)
        else:
            attempts.problems.append(problem)
            attempts.full = False
        return None

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
        if self._monitor.draining:
            return received.shed(ShedReason.DRAINING, self._clock.now())
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
            self._monitor.seen(origin.decider).arrived(origin.dispatch)
            await arrived()
            try:
                return await self.runner.run(received, received.model or "", ticket)
            except WireError as error:
                return received.failed(400, str(error), self._clock.now())

    async def _in_time(
        self, received: ReceivedRequest, work: Awaitable[InferAnswer]
    ) -> InferAnswer:
        """The answer of `work`, or one that says that it came too late or found no room."""
        left = self.runner.worthless_at(received.request) - self._clock.now()
        try:
            async with asyncio.timeout(max(0.0, left)):
                return await work
        except (TimeoutError, RequestExpired):
            return received.expired(self._clock.now())
        except QueueFull as error:
            return received.shed(ShedReason.QUEUE_FULL, self._clock.now(), str(error))
