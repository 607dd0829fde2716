"""Executors: their predictions and times, and that a bad image harms no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgewise.domain import Service
from edgewise.errors import ImagesError, ModelError
from edgewise.fleet.request_noise import RequestNoise, replay_label
from edgewise.live.clock import Clock
from edgewise.live.node import executor as module
from edgewise.live.node.converter import Converter, PhotoMaker, ReplayMaker
from edgewise.live.node.executor import (
    BatchItem,
    OnnxExecutor,
    Prediction,
    ReplayExecutor,
    Result,
    Slowdown,
    SlowedExecutor,
    SlowerMachineExecutor,
)
from edgewise.live.node.worker_queue import WorkerQueue
from edgewise.tasks import task_of
from edgewise.tasks.imagenet import zoo
from edgewise.tasks.imagenet.images import load_images
from edgewise.tasks.imagenet.preprocessing import to_picture

TASK = task_of()
SERVICE = Service(server="s", model="m", accuracy=0.7, latency=(0.010, 0.012), ready_saving=0.004)


class Slept:
    """Replaces asyncio.sleep by moving the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at = 100.0
        self.clock = Clock(lambda: self.at, epoch=100.0)
        monkeypatch.setattr(module.asyncio, "sleep", self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> Slept:
    return Slept(monkeypatch)


def item(request: str = "r", **more: object) -> BatchItem:
    return BatchItem(request=request, model="m", payload=b"", **more)  # type: ignore[arg-type]


async def test_work_that_starts_in_a_slow_spell_takes_longer(slept: Slept) -> None:
    slowdown = Slowdown(slept.clock)
    noise = RequestNoise(3, 0.0)
    replay = ReplayExecutor({0: SERVICE}, slept.clock, noise, slowdown)
    slowed = SlowedExecutor(ReplayExecutor({0: SERVICE}, slept.clock, noise), slowdown)
    queue = WorkerQueue(slept.clock, 1, 9)
    maker = ReplayMaker(TASK, 0.002, slept.clock)
    converter = Converter(maker, slept.clock, queue, 0.002, "workers", slowdown)
    await replay.run([item()])
    await slowed.run([item()])
    assert slept.at == pytest.approx(100.020)
    slowdown.factor = 3.0
    await replay.run([item()])
    await slowed.run([item()])
    assert slept.at == pytest.approx(100.080)
    await converter.convert(b"", 96, 200.0, 200.0)
    assert slept.at == pytest.approx(100.086)


async def test_precise_timers_need_no_sleep_and_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(module.asyncio, "sleep", noted)
    clock = Clock()
    with clock.precise_timers():
        when = clock.now() + 0.003
        await clock.sleep_until(when)
        assert clock.now() >= when
        waiting = asyncio.create_task(clock.sleep_until(clock.now() + 60.0))
        await sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not slept
    await clock.sleep_until(clock.now() + 60.0)
    assert slept == [pytest.approx(60.0, abs=1.0)]  # by asyncio's own timers again


async def test_replay_takes_as_long_as_the_profile_says(slept: Slept) -> None:
    executor = ReplayExecutor({0: SERVICE}, slept.clock, RequestNoise(3, 0.0))
    await executor.run([item()])
    assert slept.at == pytest.approx(100.010)
    await executor.run([item(), item()])
    assert slept.at == pytest.approx(100.022)
    await executor.run([item(ready_size=224)])
    assert slept.at == pytest.approx(100.028)


async def test_lateness_does_not_add_up_over_a_busy_workers_jobs(slept: Slept) -> None:
    executor = ReplayExecutor({0: SERVICE}, slept.clock, RequestNoise(3, 0.0))
    for _ in range(10):
        await executor.run([item(since=100.0)])
        slept.at += 0.0004  # the timer was late, and the next job waits already
    assert slept.at == pytest.approx(100.1 + 0.0004)
    await executor.run([item(since=slept.at)])  # it did not wait
    assert slept.at == pytest.approx(100.11 + 0.0004)
    slept.at += 5.0  # idle
    await executor.run([item(since=slept.at - 1e-5)])
    assert slept.at == pytest.approx(105.12 + 0.0004)


async def test_replay_noise_has_the_scenarios_mean_and_cv(slept: Slept) -> None:
    executor = ReplayExecutor({0: SERVICE}, slept.clock, RequestNoise(3, 0.5))
    times = []
    for i in range(4000):
        before = slept.at
        await executor.run([item(f"r{i}")])
        times.append(slept.at - before)
    assert np.mean(times) == pytest.approx(0.010, rel=0.05)
    assert np.std(times) / np.mean(times) == pytest.approx(0.5, rel=0.1)


async def test_replay_is_right_as_often_as_the_accuracy_says(
    slept: Slept,
) -> None:
    executor = ReplayExecutor({0: SERVICE}, slept.clock, RequestNoise(3, 0.1))
    again = ReplayExecutor({0: SERVICE}, slept.clock, RequestNoise(3, 0.1))
    right = 0
    for i in range(4000):
        (result,) = await executor.run([item(f"r{i}", label=i % 1000)])
        assert [result] == await again.run([item(f"r{i}", label=i % 1000)])
        assert isinstance(result, Prediction)
        assert 0 <= result.predicted < 1000
        right += result.predicted == i % 1000
    assert right / 4000 == pytest.approx(0.7, abs=0.025)


async def test_replay_without_a_label_and_from_a_record(slept: Slept) -> None:
    sure = Service(server="s", model="m", accuracy=1.0, latency=(0.001,))
    executor = ReplayExecutor(
        {0: sure}, slept.clock, RequestNoise(3, 0.0), recorded={("r2", "m"): 9}
    )
    (first,) = await executor.run([item("r1")])
    (second,) = await executor.run([item("r2", label=5)])
    assert isinstance(first, Prediction)
    assert isinstance(second, Prediction)
    assert first.predicted == replay_label("r1", TASK.classes)
    assert second.predicted == 9


def test_noise_depends_on_the_request_alone() -> None:
    noise, other = RequestNoise(1, 0.15), RequestNoise(2, 0.15)
    numbers = [f"s1-r{i:07d}" for i in range(2000)]
    pairs = np.array([(noise.service_factor(r, 0), noise.service_factor(r, 1)) for r in numbers])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.06
    assert pairs.mean() == pytest.approx(1.0, abs=0.01)
    assert (
        noise.service_factor("r7", 0)
        == noise.service_factor("again-07", 0)
        != other.service_factor("r7", 0)
    )
    # An id without a number, or with too long a one, has its noise too.
    for odd in ("photo", "r" + "9" * 30):
        assert noise.service_factor(odd, 0) == noise.service_factor(odd, 0) > 0.0
        assert noise.is_correct(odd, 1.0)
    # Right where it is least accurate is right for all.
    assert all(noise.is_correct(r, 0.9) for r in numbers if noise.is_correct(r, 0.5))


class Fixed:
    """Takes 10 ms, all of it CPU time."""

    def __init__(self, slept: Slept) -> None:
        self.slept = slept

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        self.slept.at += 0.010
        return [Prediction(predicted=1, score=1.0, cpu=0.010)]


@pytest.mark.parametrize(("speed", "seconds"), [(1.0, 0.010), (0.5, 0.020), (0.4, 0.025)])
async def test_a_slower_machine_takes_longer(slept: Slept, speed: float, seconds: float) -> None:
    results = await SlowerMachineExecutor(Fixed(slept), speed, slept.clock).run([item()])
    assert slept.at == pytest.approx(100.0 + seconds)
    assert results == [Prediction(predicted=1, score=1.0, cpu=0.010)]


@pytest.mark.parametrize("speed", [0.0, 1.1])
def test_a_slower_machine_cannot_be_faster(slept: Slept, speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        SlowerMachineExecutor(Fixed(slept), speed, slept.clock)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


async def test_real_model_on_both_forms_and_a_broken_image(threads: ThreadPoolExecutor) -> None:
    if zoo.converted_file("lite0-224") is None:
        pytest.skip("models are not prepared")
    photos = load_images("builtin")
    executor = OnnxExecutor(TASK, ["lite0-224"], threads)
    photo = photos[0].read()
    ready = await PhotoMaker(TASK, threads, 1.0, Clock()).make(photo, 224)
    assert to_picture(ready, 224, 224).size == (224, 224)
    assert len(ready) < len(photo) or len(ready) < 60_000
    items = [
        BatchItem(request="a", model="lite0-224", payload=photo),
        BatchItem(request="b", model="lite0-224", payload=b"no image"),
        BatchItem(request="c", model="lite0-224", payload=ready, ready_size=224),
        BatchItem(request="d", model="lite0-224", payload=photo, ready_size=224),
    ]
    original, broken, made, lying = await executor.run(items)
    assert isinstance(original, Prediction)
    assert isinstance(made, Prediction)
    assert original.predicted == made.predicted
    assert 0.0 < original.score <= 1.0
    assert original.cpu > 0.0
    assert isinstance(broken, ImagesError)
    assert "cannot be decoded" in str(broken)
    assert isinstance(lying, ImagesError)
    assert "224 x 224" in str(lying)


def test_each_model_has_run_on_both_forms_before_it_is_ready(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow first run must not fall to a request."""
    decoded: list[tuple[str, bool]] = []

    class Fake:
        def __init__(self, name: str) -> None:
            self.card = zoo.find_model(name)

        def decode(self, image: bytes, ready_size: int | None = None) -> np.ndarray:
            size = ready_size or self.card.size
            assert to_picture(image, self.card.size, ready_size).size == (size, size)
            decoded.append((self.card.name, ready_size is not None))
            return np.zeros((1, 3, size, size), np.float32)

        def predict(self, batch: np.ndarray) -> np.ndarray:
            return np.zeros((1, 1000), np.float32)

    monkeypatch.setattr(zoo, "load", Fake)
    OnnxExecutor(TASK, ["lite0-96", "lite2"], threads)
    assert decoded == [(name, form) for name in ("lite0-96", "lite2") for form in (False, True)]


def test_a_missing_model_is_named(threads: ThreadPoolExecutor) -> None:
    with pytest.raises(ModelError, match="nosuch"):
        OnnxExecutor(TASK, ["nosuch"], threads)


async def test_conversions_run_off_the_event_loop(threads: ThreadPoolExecutor) -> None:
    maker = PhotoMaker(TASK, threads, 1.0, Clock())
    with pytest.raises(ImagesError):
        await asyncio.wait_for(maker.make(b"no image", 96), 30)
