"""Running a model, behind one method: ``await run(batch)``.

- `OnnxExecutor`: ONNX Runtime in worker threads, decoding included, one thread per prediction.
- `ReplayExecutor`: recorded latencies and predictions, so that a fleet of fifty fits on two cores.
- `SlowerMachineExecutor` wraps another executor and emulates a weaker machine.
- `SlowedExecutor` wraps another executor and emulates slow spells.
- `MisbehavingExecutor` wraps another executor and emulates errors and wrong answers.

An item that cannot be run (its image does not decode) is an error in its place of the result; the
others of the batch are unharmed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Protocol

import msgspec
from msgspec import Struct

from edgewise.domain import PayloadForm, Service
from edgewise.errors import BadInput
from edgewise.fleet.estimates import ready_time
from edgewise.fleet.request_noise import RequestNoise, replay_label, replayed_class
from edgewise.live.clock import Clock
from edgewise.scenario import Misbehaviour
from edgewise.tasks import task_of
from edgewise.tasks.task import Task

HANDOVER_MAX = 2e-3
"""s that a worker takes at most from one job to the next: by then the event loop has come round,
even on a busy machine. Conversions for a transfer, which the executor does not see, take longer."""


class BatchItem(Struct, frozen=True, kw_only=True):
    """One request to run."""

    request: str
    model: str
    payload: bytes
    ready_size: int | None = None
    """Input size that the payload was made ready for; None: the original photo."""
    label: int | None = None
    """The right class, for `ReplayExecutor` alone: it cannot look."""
    since: float | None = None
    """When it began to wait for a worker, for `ReplayExecutor` alone; None: just now."""


class Prediction(Struct, frozen=True, kw_only=True):
    """The answer of a model."""

    predicted: int
    score: float
    """Probability that the model gives that class, 0–1."""
    cpu: float
    """CPU seconds that it took: the part that a slower machine takes longer for."""


Result = Prediction | BadInput


class Executor(Protocol):
    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        """Run items of one model; returns a result or an error for each, in order."""
        ...


class OnnxExecutor:
    """Real models.

    Loads all models at once and runs a photo through each in both forms, so that the first request
    is answered as fast as the next. The process pays for the first run, not the thread: Pillow
    loads its decoders (30 ms of CPU, which `SlowerMachineExecutor` makes 120), a session allocates.
    Raises ModelError for a model that is unknown, not prepared or corrupt.
    """

    def __init__(self, task: Task, models: Sequence[str], threads: ThreadPoolExecutor) -> None:
        self._task = task
        self._models = {name: task.load(name) for name in models}
        self._threads = threads
        photo = task.sample_payload()
        for name, model in self._models.items():
            size = model.card.size
            ready = task.convert(photo, size)
            original = BatchItem(request="warm-up", model=name, payload=photo)
            made = BatchItem(request="warm-up", model=name, payload=ready, ready_size=size)
            for result in self._run((original, made)):
                if isinstance(result, BadInput):
                    raise result

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._run, batch)

    def _run(self, batch: Sequence[BatchItem]) -> list[Result]:
        results: list[Result] = []
        for item in batch:  # one by one: on a CPU thread a batch of 8 saves nothing (0.96–0.98)
            start = time.thread_time()
            model = self._models[item.model]
            try:
                output = model.predict(model.decode(item.payload, item.ready_size))[0]
            except BadInput as error:
                results.append(error)
                continue
            answer, score = self._task.answer(output)
            cpu = time.thread_time() - start
            results.append(Prediction(predicted=answer, score=score, cpu=cpu))
        return results


class ReplayExecutor:
    """Recorded latencies and predictions; no image is looked at.

    An answer takes the service's profiled latency times the request's noise, and is right with the
    probability that is the service's accuracy. The noise depends on nothing but the request's
    number and the service (`fleet.request_noise`): it is the same under every policy, and in the
    simulator.

    Parameters
    ----------
    services:
        The services of this server, by their number in the fleet; latencies as on this server.
    noise:
        The scenario's.
    slowdown:
        The slow spells of this server.
    recorded:
        Classes by (request id, model), in place of drawn ones.
    """

    def __init__(
        self,
        services: Mapping[int, Service],
        clock: Clock,
        noise: RequestNoise,
        slowdown: Slowdown | None = None,
        recorded: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        self._services = {service.model: (k, service) for k, service in services.items()}
        self._clock = clock
        self._noise = noise
        self._slowdown = Slowdown(clock) if slowdown is None else slowdown
        self._recorded = recorded or {}
        self._ends: list[float] = []
        """When each worker that has just finished was due to finish."""

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        start = self._due_start(batch[0], self._clock.now())
        k, service = self._services[batch[0].model]
        latency = service.latency[min(len(batch), len(service.latency)) - 1]
        if all(item.ready_size is not None for item in batch):
            latency = ready_time(latency, service.ready_saving)
        latency *= self._noise.service_factor(batch[0].request, k) * self._slowdown.factor
        results: list[Result] = [self._predict(item, service, latency) for item in batch]
        end = start + latency
        await self._clock.sleep_until(end)
        self._ends.append(end)
        return results

    def _due_start(self, item: BatchItem, now: float) -> float:
        """When an item that starts `now` was due to start: once it and a worker were there.

        Timers fire late. Without this correction the delays would add up over a busy worker's jobs,
        and the server would be slower than its profile.
        """
        self._ends = [end for end in self._ends if now - end < HANDOVER_MAX]
        since = now if item.since is None else item.since
        return max(since, self._ends.pop(0)) if self._ends else now

    def _predict(self, item: BatchItem, service: Service, latency: float) -> Prediction:
        form = PayloadForm.ORIGINAL if item.ready_size is None else PayloadForm.MODEL_READY
        accuracy = service.accuracy_of(form)
        predicted = self._recorded.get((item.request, item.model))
        if predicted is None:
            classes, label = task_of(service.task).classes, item.label
            if label is None:
                label = replay_label(item.request, classes)
            is_correct = self._noise.is_correct(item.request, accuracy)
            predicted = replayed_class(label, is_correct, classes)
        return Prediction(predicted=predicted, score=accuracy, cpu=latency)


class SlowerMachineExecutor:
    """Another executor, as on a machine of `speed` < 1 times this one.

    A batch shall take the CPU time that it really took, divided by `speed`. The rest of that time
    is waited for: the worker stays occupied, and the CPU is free for the other emulated servers.
    Elapsed time would be wrong, because a core shared with those servers would slow a batch twice.
    """

    def __init__(self, inner: Executor, speed: float, clock: Clock) -> None:
        if not 0.0 < speed <= 1.0:
            raise ValueError(f"expected a speed in (0, 1], got {speed}")
        self._inner, self._speed, self._clock = inner, speed, clock

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        start = self._clock.now()
        results = await self._inner.run(batch)
        cpu = sum(result.cpu for result in results if isinstance(result, Prediction))
        await self._clock.sleep_until(start + cpu / self._speed)
        return results


class Slowdown:
    """The factor by which everything on a server takes longer now: slow spells, gray failures."""

    def __init__(self, clock: Clock) -> None:
        self.factor = 1.0
        self._clock = clock

    @asynccontextmanager
    async def slowed(self) -> AsyncIterator[None]:
        """Stretch the time spent inside by `factor`, as it was on entering."""
        start, factor = self._clock.now(), self.factor
        yield
        now = self._clock.now()
        await self._clock.sleep_until(now + (factor - 1.0) * (now - start))


class Misbehaving:
    """What is wrong with a server's models now, as its launcher has it."""

    def __init__(self) -> None:
        self.how = Misbehaviour(0)


class EmulatedFailure(Exception):
    """A model has failed, because the launcher wants it to."""


class MisbehavingExecutor:
    """Another executor that fails, or whose answers are wrong, while `now` says so."""

    def __init__(self, inner: Executor, now: Misbehaving, classes: Mapping[str, int]) -> None:
        self._inner, self._now = inner, now
        self._classes = classes
        """The number of classes of each model."""

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        how = self._now.how
        if Misbehaviour.ERRORS in how:
            raise EmulatedFailure("an emulated failure")
        results = await self._inner.run(batch)
        if Misbehaviour.WRONG not in how:
            return results
        classes = self._classes[batch[0].model]
        return [
            msgspec.structs.replace(result, predicted=(result.predicted + 1) % classes)
            if isinstance(result, Prediction)
            else result
            for result in results
        ]


class SlowedExecutor:
    """Another executor that takes longer by the factor of `slowdown` when a batch starts."""

    def __init__(self, inner: Executor, slowdown: Slowdown) -> None:
        self._inner, self._slowdown = inner, slowdown

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        async with self._slowdown.slowed():
            return await self._inner.run(batch)
