"""Measure services on this machine. Scenarios name the file of the result: ``profile: FILE``.

For each model, these are measured with the executor that a node runs (`OnnxExecutor`):

- *service time* of photos one by one, in both payload forms, decoding included: its mean, median,
  95th percentile and CPU time. Noise is the standard deviation of its logarithm, over photos and
  moments alike;
- *slowdown by concurrency*: the same with 1, 2, … at a time, as a server's workers run them;
- the *curve over batch size*: seconds for 1, 2, 4, … inputs in one call, without decoding;
- decoding and predicting apart; and, once, making a photo model-ready.

Times are elapsed times. On a machine that others use they are longer, and the profile is then that
of the busy machine, which suits scenarios that run there.
"""

from __future__ import annotations

import asyncio
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

from edgewise.cores import usable_cores
from edgewise.documents import dump_yaml
from edgewise.errors import BadInput
from edgewise.files import write_atomically
from edgewise.live.node.executor import BatchItem, OnnxExecutor, Prediction
from edgewise.scenario.measured_profile import MeasuredForm, ModelProfile, Prepared, Profile
from edgewise.tasks.task import Array, Model, Samples, Task

Step = Callable[[str], None]
"""Called after each measurement with its name."""

RUNS = 60
"""Photos per figure: with a noise of 15 % the standard error of a mean is then 2 %."""


def step_count(models: Sequence[str], concurrency: Sequence[int], batches: Sequence[int]) -> int:
    """How often `measure_profile` calls `step`."""
    return len(models) * (3 + len(concurrency) + len(batches)) + 1


def measure_profile(
    task: Task,
    models: Sequence[str],
    photos: Samples,
    *,
    runs: int = RUNS,
    concurrency: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 2, 4, 8),
    step: Step = lambda what: None,
    command: str = "",
) -> Profile:
    """Measure prepared `models` of `task` on `photos`, `runs` of them for each figure.

    Raises BadInput for no photos, ModelError for a model that is not prepared.
    """
    if not len(photos):
        raise BadInput("--images: there are no photos to measure with")
    taken = [photos[n % len(photos)].read() for n in range(runs)]
    prepare = _prepared(task, taken)
    step("making model-ready")
    measured = {name: _model(task, name, taken, concurrency, batches, step) for name in models}
    return Profile(
        command=command,
        machine=f"{platform.machine()}, {usable_cores()} cores usable",
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "onnxruntime", "pillow")},
        },
        photos=len(photos),
        runs=runs,
        prepare=prepare,
        models=measured,
    )


def _model(
    task: Task,
    name: str,
    photos: Sequence[bytes],
    concurrency: Sequence[int],
    batches: Sequence[int],
    step: Step,
) -> ModelProfile:
    model = task.load(name)
    size = model.card.size
    ready = [task.convert(photo, size) for photo in photos]
    originals = [BatchItem(request=str(n), model=name, payload=p) for n, p in enumerate(photos)]
    readies = [
        BatchItem(request=str(n), model=name, payload=p, ready_size=size)
        for n, p in enumerate(ready)
    ]
    decode, predict = [], []
    for photo in photos:
        start = time.perf_counter()
        array = model.decode(photo)
        middle = time.perf_counter()
        model.predict(array)
        decode.append(middle - start)
        predict.append(time.perf_counter() - middle)
    step(f"{name}: decode and predict")
    with ThreadPoolExecutor(max(concurrency, default=1)) as threads:
        executor = OnnxExecutor(task, (name,), threads)
        original = _form(*_run(executor, originals, 1))
        step(f"{name}: original photos")
        model_ready = _form(*_run(executor, readies, 1))
        step(f"{name}: model-ready")
        slow = {1: 1.0}
        for at_a_time in concurrency:
            if at_a_time > 1:
                elapsed, _ = _run(executor, originals, at_a_time)
                slow[at_a_time] = max(1.0, statistics.fmean(elapsed) / original.mean)
            step(f"{name}: {at_a_time} at a time")
    curve = {}
    for count in batches:
        curve[count] = _batch(
            model, np.repeat(array, count, axis=0), max(3, len(photos) // (4 * count))
        )
        step(f"{name}: batch of {count}")
    return ModelProfile(
        original=original,
        model_ready=model_ready,
        decode=statistics.median(decode),
        predict=statistics.median(predict),
        slowdown=slow,
        batch=curve,
    )


def _run(
    executor: OnnxExecutor, items: Sequence[BatchItem], at_a_time: int
) -> tuple[list[float], list[float]]:
    """Elapsed and CPU s of each item, with `at_a_time` of them under way."""
    elapsed, cpu = [], []

    async def worker(mine: Sequence[BatchItem]) -> None:
        for item in mine:
            start = time.perf_counter()
            (result,) = await executor.run((item,))
            elapsed.append(time.perf_counter() - start)
            if not isinstance(result, Prediction):
                raise result
            cpu.append(result.cpu)

    async def all_of_them() -> None:
        async with asyncio.TaskGroup() as group:
            for first in range(at_a_time):
                group.create_task(worker(items[first::at_a_time]))

    try:
        asyncio.run(all_of_them())
    except* BadInput as errors:
        raise errors.exceptions[0] from None
    return elapsed, cpu


def _form(elapsed: Sequence[float], cpu: Sequence[float]) -> MeasuredForm:
    values = np.asarray(elapsed)
    p50, p95 = np.percentile(values, (50, 95))
    return MeasuredForm(
        mean=float(values.mean()),
        p50=float(p50),
        p95=float(p95),
        cpu=statistics.fmean(cpu),
        sigma=float(np.log(values).std(ddof=1)) if len(values) > 1 else 0.0,
    )


def _batch(model: Model, batch: Array, repeats: int) -> float:
    """Median s to predict a batch in one call."""
    model.predict(batch)  # allocates
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model.predict(batch)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _prepared(task: Task, photos: Sequence[bytes]) -> Prepared:
    """Measure the conversion, for an input of 224: most of it is decoding, the same for all."""
    times, cpu = [], []
    task.convert(photos[0], 224)  # loads the decoder
    for photo in photos:
        start, began = time.perf_counter(), time.thread_time()
        task.convert(photo, 224)
        cpu.append(time.thread_time() - began)
        times.append(time.perf_counter() - start)
    sigma = float(np.log(times).std(ddof=1)) if len(times) > 1 else 0.0
    return Prepared(seconds=statistics.fmean(times), cpu=statistics.fmean(cpu), sigma=sigma)


def write_profile(profile: Profile, file: Path) -> None:
    """Write the profile as YAML. Raises BadInput if that is impossible."""
    write_atomically(file, dump_yaml(profile).encode())
