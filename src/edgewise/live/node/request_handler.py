"""The way of a request through an edge server: decide, run or transfer, answer. No HTTP.

Theory of operation
-------------------
As *ingress* (`RequestHandler.serve`), the server gives the request a queue ticket and waits for a
command while the photo still comes in. Then it tries the command's candidates (`Execution`): its
own services through its queue, other servers' by transfer. The balancer learns how the request
ended, and whose failure each try was.

As *destination* (`RequestHandler.accept`), the server runs what a peer transfers to it, or says why
not.

Every request ends in exactly one `InferAnswer`, at the latest when it can no longer score. One
request id runs once: a second one joins the first, or is refused if the first was given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from edgewise.domain import Command, Request, Service, ShedReason
from edgewise.errors import EdgewiseError, WireError
from edgewise.live.node.command_source import CommandSource
from edgewise.live.node.execution import Execution, Executors
from edgewise.live.node.local_runner import ServerFailed
from edgewise.live.node.received_request import ReceivedRequest
from edgewise.live.node.single_flight import SingleFlight
from edgewise.live.node.worker_queue import QueueFull, RequestExpired
from edgewise.live.wire.http_server import Usage
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.live.wire.transfers import TransferHeaders
from edgewise.live.wire.upload import BodyRefused

log = logging.getLogger("edgewise.node")


class RequestHandler:
    """The work of one edge server.

    Parameters
    ----------
    fleet:
        All services of the fleet.
    usage:
        Has the time after which a request is answered in any case.
    finished:
        Called with each request that this server took as ingress, and its answer.
    """

    def __init__(
        self,
        executors: Executors,
        commands: CommandSource,
        fleet: tuple[Service, ...],
        usage: Usage,
        finished: Callable[[ReceivedRequest, InferAnswer], None],
    ) -> None:
        self.runner = executors.runner
        self.requests = SingleFlight()
        self._executors = executors
        self._commands = commands
        self._monitor, self._clock = executors.monitor, executors.clock
        self._fleet = fleet
        self._usage = usage
        self._finished = finished

    # -- as ingress ------------------------------------------------------------------------------

    async def serve(self, received: ReceivedRequest) -> InferAnswer:
        """Answer a client's request. Raises RequestRefused, BodyRefused, WireError (answer 400)."""
        return await self.requests.run(
            received.request.id, lambda: self._serve(received), received.body
        )

    async def _serve(self, received: ReceivedRequest) -> InferAnswer:
        request = received.request
        try:
            if self._monitor.draining:
                answer = received.shed(ShedReason.DRAINING, self._clock.now())
            elif request.expired(self._clock.now()):
                answer = received.expired(self._clock.now())
            else:
                answer = await self._in_time(received, self._decide_and_execute(received))
        except (WireError, BodyRefused) as error:
            code = error.code if isinstance(error, BodyRefused) else 400
            self._finished(received, received.failed(code, str(error), self._clock.now()))
            raise
        except asyncio.CancelledError:
            self._finished(
                received, received.failed(499, "the client went away", self._clock.now())
            )
            raise
        self._finished(received, answer)
        return answer

    async def _decide_and_execute(self, received: ReceivedRequest) -> InferAnswer:
        with self.runner.queue.enter() as ticket:
            command = await self._commands.command_for(received.request, received.uploaded)
            try:
                received.decided = max(command.at, received.accepted)
                if not command.candidates:
                    return self._shed(received, command.command)
                return await Execution(self._executors, received, command, ticket).run()
            finally:
                self._commands.finished(command)

    def _shed(self, received: ReceivedRequest, command: Command) -> InferAnswer:
        """The answer to a request that the command refuses."""
        reason, detail = command.reason or ShedReason.PRICE, ""
        if reason is ShedReason.NO_SERVICE:
            detail = best_accuracy(received.request, self._fleet)
        return received.shed(reason, self._clock.now(), detail, command.retry_after)

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
            key, lambda: self._in_time(received, work(received, origin, arrived)), received.body
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
            except ServerFailed as error:
                return received.failed(500, str(error), self._clock.now())

    async def _in_time(
        self, received: ReceivedRequest, work: Awaitable[InferAnswer]
    ) -> InferAnswer:
        """The answer of `work`, or one that says that it came too late or found no room."""
        limit = received.accepted + self._usage.limits.request_timeout
        left = min(self.runner.worthless_at(received.request), limit) - self._clock.now()
        try:
            async with asyncio.timeout(max(0.0, left)):
                return await work
        except (TimeoutError, RequestExpired):
            now = self._clock.now()
            self._usage.reached["request_timeout"] += now >= limit
            return received.expired(now, "" if now < limit else "the server's limit")
        except QueueFull as error:
            now = self._clock.now()
            backlog = self.runner.queue.backlog(now)
            return received.shed(ShedReason.QUEUE_FULL, now, str(error), backlog)
        except (EdgewiseError, ConnectionError):
            raise
        except Exception:
            log.exception("request %s: an error of this program", received.request.id)
            return received.failed(500, "an error of the server", self._clock.now())


def best_accuracy(request: Request, fleet: tuple[Service, ...]) -> str:
    """The best accuracy that a request can have, in words."""
    services = [each for each in fleet if request.named_model in (None, each.model)]
    best = max(services, key=lambda each: each.accuracy)
    return (
        f"no service has an accuracy of {request.accuracy:g}; "
        f"the best there is has {best.accuracy:g} ({best.model})"
    )
