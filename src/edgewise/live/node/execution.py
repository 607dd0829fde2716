"""The tries of one request at its ingress: which server, whose failure, and when to stop.

Theory of operation
-------------------
The candidates of the command are tried in order, each server once (`fleet.retries`), while there is
time (`fleet.timeouts`). After the last one comes the quickest service here that meets the demand,
and after that an explicit error. `sim.retries` follows the same rules.

Every try leaves an `Attempt`, which says whose failure it was. An error of a server, a broken path
and a refusal each end that server for this request, and the next candidate is tried. A server that
cannot read the photo (400, 413, 422) may be the one that is broken, so one is not believed: if a
second one cannot either, the photo is bad and the client is told; if another answers, the first has
failed. Where nobody else can be asked, the ingress decodes the photo to find out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence

from msgspec import Struct

from edgewise.domain import Attempt, Candidate, Fault, PayloadForm, ShedReason
from edgewise.errors import ImagesError
from edgewise.fleet.retries import ALTERNATIVES, RetryBudget
from edgewise.live.clock import Clock
from edgewise.live.node.command_source import ReceivedCommand
from edgewise.live.node.forwarder import AttemptFailed, Forwarder, fault_of
from edgewise.live.node.local_runner import LocalRunner, ServerFailed
from edgewise.live.node.monitor import Monitor
from edgewise.live.node.peers import TransferPayload, TransferRequest
from edgewise.live.node.received_request import ReceivedRequest
from edgewise.live.node.worker_queue import QueueFull, QueueTicket, RequestExpired
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.live.wire.transfers import TransferHeaders

log = logging.getLogger("edgewise.node")


class Executors(Struct, frozen=True):
    """What an ingress runs requests with."""

    runner: LocalRunner
    forwarder: Forwarder
    monitor: Monitor
    clock: Clock
    budget: RetryBudget


def one_per_server(candidates: Sequence[Candidate]) -> Iterator[Candidate]:
    """The first candidate, and the next best ones on other servers."""
    servers: set[str] = set()
    for candidate in candidates:
        if candidate.server not in servers and len(servers) <= ALTERNATIVES:
            servers.add(candidate.server)
            yield candidate


class Execution:
    """One request on its way through the candidates of its command."""

    def __init__(
        self,
        executors: Executors,
        received: ReceivedRequest,
        command: ReceivedCommand,
        ticket: QueueTicket,
    ) -> None:
        self._runner, self._forwarder = executors.runner, executors.forwarder
        self._monitor, self._clock = executors.monitor, executors.clock
        self._budget = executors.budget
        self._server = executors.monitor.server
        self._received, self._request = received, received.request
        self._command = command
        self._ticket = ticket
        self._problems: list[str] = []
        """Why the candidates so far have failed."""
        self._tried_here = False
        self._cannot_convert = False
        """The converter here has failed at the photo: it goes to peers as it came."""
        self._doubtful: dict[str, InferAnswer] = {}
        """Answers of servers that cannot read the photo."""
        self._out_of_time = False
        """No time is left for another peer."""
        self._full = False
        """Whether the last server that was tried had no room."""

    async def run(self) -> InferAnswer:
        """Try the candidates in order, then the quickest service here, then say why it failed."""
        answer = await self._try_all()
        if answer is None:
            answer = await self._settle_doubt()
        if answer is None or answer.served:  # whoever could not read the photo has failed
            self._blame_the_doubtful()
        return self._give_up() if answer is None else answer

    async def _try_all(self) -> InferAnswer | None:
        """The first answer that ends the request; None if nobody gave one."""
        self._budget.first_try()
        for number, candidate in enumerate(one_per_server(self._command.candidates)):
            if self._out_of_time:
                break
            if candidate.server == self._server:
                answer = await self._try_here(candidate, number)
            elif number > 0 and not self._budget.take(self._clock.now()):
                self._problems.append(f"{candidate.server}: not tried, too much fails here")
                continue
            else:
                answer = await self._try_peer(candidate, number)
            if answer is not None:
                return answer
        model = self._runner.quickest(self._request)
        if model is None or self._tried_here:
            return None
        return await self._run_if_worthwhile(model)

    def _give_up(self) -> InferAnswer:
        now = self._clock.now()
        problem = "; ".join(self._problems) or "nobody could run it"
        if self._request.expired(now):
            return self._received.expired(now, problem)
        if self._full:
            backlog = self._runner.queue.backlog(now)
            return self._received.shed(ShedReason.QUEUE_FULL, now, problem, backlog)
        return self._received.failed(503, problem, now)

    # -- here ------------------------------------------------------------------------------------

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
        self._tried_here = True
        try:
            answer = await self._runner.run(self._received, model, self._ticket)
        except QueueFull as error:
            self._failed(self._server, Fault.REFUSED, str(error), full=True)
            return None
        except ServerFailed as error:
            self._failed(self._server, Fault.ERROR, str(error))
            return None
        except (RequestExpired, asyncio.CancelledError):
            if self._request.expired(self._clock.now()):
                self._received.attempts.append(Attempt(self._server, Fault.UNANSWERED))
            raise
        return self._judged(self._server, answer)

    # -- elsewhere -------------------------------------------------------------------------------

    async def _try_peer(self, candidate: Candidate, number: int) -> InferAnswer | None:
        """Transfer to candidate `number`; None if that failed."""
        server = candidate.server
        if self._clock.now() >= self._runner.give_up_at(self._request):
            self._problems.append(f"{server}: no time left to try it")
            self._out_of_time, self._full = True, False
            return None
        self._ticket.leave()
        try:
            payload = await self._payload_for(candidate)
            if payload is None:
                return self._doubtful[self._server]
            answer = await self._transfer(candidate, number, payload)
        except AttemptFailed as error:
            self._failed(server, error.fault, str(error))
            self._out_of_time = error.too_late
            log.info("request %s: %s: %s", self._request.id, server, error)
            return None
        return self._judged(server, answer)

    async def _payload_for(self, candidate: Candidate) -> TransferPayload | None:
        """The payload in the candidate's form, or as it came if it cannot be converted here.

        None if that costs a second try and the budget is spent: the photo counts as bad.
        """
        until = self._runner.worthless_at(self._request)
        if candidate.form is PayloadForm.MODEL_READY and not self._cannot_convert:
            try:
                return await self._forwarder.payload_for(self._received, candidate, until)
            except ServerFailed as error:
                self._cannot_convert = True
                self._failed(self._server, Fault.ERROR, str(error))
            except ImagesError as error:
                self._cannot_convert = True
                now = self._clock.now()
                self._failed(self._server, Fault.BAD_REQUEST, str(error))
                self._doubtful[self._server] = self._received.failed(422, str(error), now)
                if not self._budget.take(now):
                    return None
        return self._forwarder.original(self._received)

    async def _transfer(
        self, candidate: Candidate, number: int, payload: TransferPayload
    ) -> InferAnswer:
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

    # -- whose failure ---------------------------------------------------------------------------

    def _judged(self, server: str, answer: InferAnswer) -> InferAnswer | None:
        """`answer` if it ends the request, None if the next candidate is to be tried."""
        fault = fault_of(answer, self._request.expired(self._clock.now()))
        if fault is None:
            self._received.attempts.append(Attempt(server))
            return answer
        self._failed(server, fault, answer.error or str(answer.code), full=answer.code == 429)
        if fault is not Fault.BAD_REQUEST:
            return None
        self._doubtful[server] = answer
        return answer if len(self._doubtful) > 1 else None

    def _failed(self, server: str, fault: Fault, problem: str, *, full: bool = False) -> None:
        self._received.attempts.append(Attempt(server, fault))
        self._problems.append(f"{server}: {problem}")
        self._full = full

    async def _settle_doubt(self) -> InferAnswer | None:
        """The answer that the photo is bad, if one server says so and this one agrees.

        If that one is this server, nobody else could be asked, and it is believed.
        """
        if not self._doubtful:
            return None
        ((server, answer),) = self._doubtful.items()
        until = self._runner.worthless_at(self._request)
        if server != self._server and await self._forwarder.can_decode(self._received, until):
            return None
        return answer

    def _blame_the_doubtful(self) -> None:
        """The photo was good: servers that could not read it have failed."""
        for i, attempt in enumerate(self._received.attempts):
            if attempt.fault is Fault.BAD_REQUEST:
                self._received.attempts[i] = Attempt(attempt.server, Fault.ERROR)
