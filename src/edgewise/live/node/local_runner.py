"""Requests that run on this server: the queue, the executor and the record of both."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

from edgewise.domain import Outcome, PayloadForm, Request, Service, Status, own_id
from edgewise.errors import BadInput, EdgewiseError, ImagesError
from edgewise.fleet.timeouts import give_up_at, worth_running
from edgewise.live.clock import Clock
from edgewise.live.node.executor import BatchItem, Executor, Prediction, Result
from edgewise.live.node.monitor import Monitor
from edgewise.live.node.readiness import Readiness
from edgewise.live.node.received_request import ReceivedRequest
from edgewise.live.node.worker_queue import QueueTicket, WorkerQueue
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.score import worthless_after
from edgewise.tasks import task_of

CHECK = "check"
"""In place of a request's id: a sample payload, to see whether the executor works again."""


class ServerFailed(EdgewiseError):
    """Something of this server has failed, not of the request: another server may do better."""

    @classmethod
    def because(cls, part: str, error: Exception) -> ServerFailed:
        """`part` raised `error`."""
        return cls(f"{part} failed: {type(error).__name__}: {error!s:.200}")


class LocalRunner:
    """Runs requests on the workers of this server.

    Parameters
    ----------
    services:
        The services of this server, by model.
    grace:
        How far past its deadline an answer still scores, in deadlines (`score.ScoreShape`).
    readiness:
        Told whether the executor works.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        grace: float,
        queue: WorkerQueue,
        executor: Executor,
        monitor: Monitor,
        clock: Clock,
        readiness: Readiness,
    ) -> None:
        self.services = services
        self.readiness = readiness
        self.queue = queue
        self._grace = grace
        self._executor = executor
        self._monitor = monitor
        self._clock = clock

    async def run(self, received: ReceivedRequest, model: str, ticket: QueueTicket) -> InferAnswer:
        """Wait for a worker and run `model` on the payload.

        A photo that cannot be decoded is an answer. Raises QueueFull, RequestExpired, WireError,
        TooLarge, and ServerFailed if the executor fails.
        """
        request = received.request
        payload = await received.photo()
        if received.transferred is None:
            received.transferred = received.body.last_at
        ready = received.ready_size is not None
        item = BatchItem(
            request=own_id(request.id),
            model=model,
            payload=payload,
            ready_size=received.ready_size,
            label=received.label,
            since=self._clock.now(),
        )

        async def action() -> Result:
            ticket.leave()
            start = received.started = self._clock.now()
            result = await self._execute(item)
            received.finished = self._clock.now()
            if isinstance(result, Prediction):
                self._monitor.ran(model, received.finished - start, ready, received.finished)
            return result

        result = await self.queue.run(
            action, self._monitor.work(model, ready), request.due, self.worthless_at(request)
        )
        if isinstance(result, BadInput):
            return received.failed(422, str(result), self._clock.now())
        service = self.services[model]
        form = PayloadForm.MODEL_READY if ready else PayloadForm.ORIGINAL
        outcome = Outcome(
            request=request.id,
            status=Status.SERVED,
            server=service.server,
            model=model,
            form=form,
            predicted=result.predicted,
            accuracy=service.accuracy_of(form),
            stamps=received.stamps(self._clock.now()),
        )
        return InferAnswer(outcome=outcome, code=200, score=result.score)

    async def _execute(self, item: BatchItem) -> Result:
        """Run one item. Raises ServerFailed."""
        try:
            (result,) = await self._executor.run([item])
            if isinstance(result, BadInput) and not isinstance(result, ImagesError):
                raise result
        except Exception as error:
            failure = ServerFailed.because("the executor", error)
            self.readiness.on_failure(failure, error)
            raise failure from error
        if isinstance(result, Prediction):
            self.readiness.on_success()
        return result

    async def check(self) -> None:
        """Run a sample payload through a model, to see whether the executor works again."""
        model = next(iter(self.services))
        sample = task_of(self.services[model].task).sample_payload()
        item = BatchItem(request=CHECK, model=model, payload=sample)
        with contextlib.suppress(ServerFailed):  # it has been counted
            await self.queue.run(
                lambda: self._execute(item), self._monitor.work(model, False), math.inf, urgent=True
            )

    def quickest(self, request: Request) -> str | None:
        """The quickest model of this server that meets the demand; None if there is none."""
        fit = [each.model for each in self.services.values() if request.admits(each)]
        return min(fit, key=lambda name: self._monitor.work(name, False), default=None)

    def worth_running(self, request: Request, model: str) -> bool:
        """Whether to run a request here that others have failed at (`fleet.timeouts`)."""
        now, due = self._clock.now(), request.due
        done = now + self.queue.wait(due, now) + self._monitor.work(model, False)
        return bool(worth_running(done, due, request.deadline, self._grace, self.queue.idle))

    def give_up_at(self, request: Request) -> float:
        """When to stop waiting for a peer, so that a run here still scores (`fleet.timeouts`)."""
        model = self.quickest(request)
        work = math.nan if model is None else self._monitor.work(model, False)
        return float(give_up_at(request.due, request.deadline, self._grace, work))

    def worthless_at(self, request: Request) -> float:
        """When an answer stops scoring anything."""
        return request.sent_at + float(worthless_after(request.deadline, self._grace))
