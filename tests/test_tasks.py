"""Tasks: the registry, and what services and measurements take from a task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgewise import tasks
from edgewise.errors import BadInput, ModelError
from edgewise.scenario import load, loads
from edgewise.sim.simulate import Photos
from edgewise.tasks import task_of
from edgewise.tasks.imagenet.images import LabelledImage
from edgewise.tasks.measure import measure_accuracy
from edgewise.tasks.services import services_of
from edgewise.tasks.task import MeasuredModel

SCENARIO = """
name: one
task: {task}
servers:
  left: {{services: [{model}], speed: 0.5}}
workload:
  duration: 1
  arrivals: {{kind: constant, rate: 1}}
  ingress: {{left: 1}}
  demands: [{{deadline: 1}}]
"""


class Parity:
    """A task of two classes, with one model."""

    name = "parity"
    classes = 2

    def models(self) -> list[Any]:
        measured = MeasuredModel(accuracy=0.75, images=8, predict_s=0.010, decode_s=0.002)
        return [SimpleNamespace(name="xor", size=8, accuracy=0.75, measured=measured)]

    def model(self, name: str) -> Any:
        for card in self.models():
            if card.name == name:
                return card
        raise ModelError(f"unknown model {name!r}; known: xor")

    def ready_bytes(self, size: int) -> int:
        return size

    def ready_saving(self, model: Any) -> float:
        return 0.001

    def answer(self, output: np.ndarray) -> tuple[int, float]:
        return int(output[0]), 1.0

    def quality(self, predicted: int, label: int) -> float:
        return 0.5 if predicted != label else 1.0


def test_an_unknown_task_is_named_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"unknown task 'nosuch'; known: imagenet-1k"):
        task_of("nosuch")
    with pytest.raises(BadInput, match="unknown task 'nosuch'"):
        services_of(loads(SCENARIO.format(task="nosuch", model="xor")))


def test_services_take_from_the_task_what_the_scenario_leaves_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(tasks.TASKS, "parity", Parity())
    (service,) = services_of(loads(SCENARIO.format(task="parity", model="xor")))
    assert (service.task, service.accuracy, service.input_size) == ("parity", 0.75, 8)
    assert service.latency == (pytest.approx(0.024),)  # at half the speed
    assert service.ready_bytes == 8
    assert service.ready_saving == pytest.approx(0.002)
    with pytest.raises(ModelError, match="unknown model 'lite2'; known: xor"):
        services_of(loads(SCENARIO.format(task="parity", model="lite2")))


def test_the_simulator_runs_without_the_packages_of_photos(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "edgewise.tasks.imagenet.distributions.importlib.util.find_spec", lambda name: None
    )
    photos = Photos.of(load("three-sites"))
    assert photos is not None
    assert len(photos.sizes) == len(photos.labels) == 20
    assert min(photos.sizes) > 10_000


def test_accuracy_is_the_mean_quality_of_the_answers() -> None:
    class Model:
        def decode(self, payload: bytes, ready_size: int | None = None) -> np.ndarray:
            return np.zeros((1, 1), np.float32)

        def predict(self, batch: np.ndarray) -> np.ndarray:
            return batch

    class Labelled(list[LabelledImage]):
        def describe(self) -> str:
            return "two"

    photo = b"\xff\xd8\xff"
    samples: Any = Labelled([LabelledImage(photo, "a", 0), LabelledImage(photo, "b", 1)])
    model: Any = Model()
    task: Any = Parity()
    assert measure_accuracy(task, model, samples).accuracy == 0.75
    with pytest.raises(BadInput, match="no samples"):
        measure_accuracy(task, model, Labelled())  # type: ignore[arg-type]
