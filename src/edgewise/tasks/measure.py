"""Measure a model: accuracy on labelled samples, latency here; one thread, one sample at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from edgewise.errors import BadInput
from edgewise.tasks.task import MeasuredModel, Model, Samples, Task


def measure_latency(task: Task, model: Model, runs: int = 5) -> float:
    """Median s of one prediction (a batch of one) on this machine now, decoding excluded."""
    batch = model.decode(task.sample_payload())
    model.predict(batch)  # the first run allocates
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        model.predict(batch)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_accuracy(
    task: Task, model: Model, samples: Samples, progress: Callable[[int], None] | None = None
) -> MeasuredModel:
    """Mean quality and median latencies of `model` on `samples`.

    `progress` is called with the number of samples done. Raises BadInput if there are none, or
    one cannot be decoded.
    """
    if not len(samples):
        raise BadInput("there are no samples to measure on")
    quality, decode_s, predict_s = 0.0, [], []
    for done, sample in enumerate(samples, 1):
        payload = sample.read()
        start = time.perf_counter()
        try:
            batch = model.decode(payload)
        except BadInput as error:
            raise type(error)(f"{sample.name}: {error}") from None
        decoded = time.perf_counter()
        output = model.predict(batch)
        predict_s.append(time.perf_counter() - decoded)
        decode_s.append(decoded - start)
        quality += task.quality(task.answer(output[0])[0], sample.label)
        if progress is not None:
            progress(done)
    return MeasuredModel(
        accuracy=quality / len(samples),
        images=len(samples),
        predict_s=statistics.median(predict_s),
        decode_s=statistics.median(decode_s),
    )
