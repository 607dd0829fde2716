"""The task ``imagenet-1k``: name the one of a thousand classes that a photo shows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from edgewise.tasks.imagenet import preprocessing, zoo
from edgewise.tasks.imagenet.images import CLASSES, Images, load_images
from edgewise.tasks.task import Array, Measurements, ModelCard, Progress

READY_SAVING_SHARE = 0.75
"""Share of the decoding time that a model-ready payload saves: the destination still decodes a
small JPEG (`benchmarks/payload_forms.py`: 0.4–0.9 ms instead of about 3)."""


class ImageNet:
    """Implements `edgewise.tasks.task.Task`, where the methods are documented."""

    name = "imagenet-1k"
    classes = CLASSES

    def models(self) -> tuple[zoo.ZooModel, ...]:
        return zoo.models()

    def model(self, name: str) -> zoo.ZooModel:
        return zoo.find_model(name)

    def reference(self) -> Measurements:
        return zoo.reference()

    def prepare(
        self, names: Iterable[str] | None = None, progress: Progress | None = None
    ) -> dict[str, Path]:
        return zoo.prepare(names, progress)

    def prepared_file(self, name: str) -> Path | None:
        return zoo.converted_file(name)

    def load(self, name: str) -> zoo.OnnxModel:
        return zoo.load(name)

    def samples(self, source: str | Path) -> Images:
        return load_images(source)

    def sample_payload(self) -> bytes:
        return preprocessing.sample_photo()

    def convert(self, payload: bytes, size: int) -> bytes:
        return preprocessing.make_ready(payload, size)

    def ready_bytes(self, size: int) -> int:
        # A line through the medians of benchmarks/payload_forms.py for JPEG q92 4:4:4: 9 kB at
        # 128 pixels, 24 at 224, 30 at 260.
        return round(0.44 * size**2 + 1800)

    def ready_saving(self, model: ModelCard) -> float:
        return READY_SAVING_SHARE * model.measured.decode_s if model.measured else 0.0

    def answer(self, output: Array) -> tuple[int, float]:
        """The most probable class and its softmax probability, from 1,000 logits."""
        best = int(output.argmax())
        return best, 1.0 / float(np.exp(output - output[best]).sum())

    def quality(self, predicted: int, label: int) -> float:
        return 1.0 if predicted == label else 0.0
