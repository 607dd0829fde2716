"""The interface of a task: all that the rest of edgewise knows about what a request asks for.

Requests, links, queues and policies are the same whatever a payload shows. A `Task` supplies the
rest: which models exist, how a payload becomes a model's input, how it is made *model-ready* for a
transfer, and how good an answer is. Another task is another folder beside `imagenet`, with a class
that has these methods, and one entry in `edgewise.tasks.TASKS`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, overload

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from edgewise.errors import ModelError

Array = npt.NDArray[np.float32]

Progress = Callable[[str, str, float], None]
"""Called with a model's name, what is being done, and the share of all the work done so far."""


class MeasuredModel(Struct, frozen=True):
    """A model's accuracy and latency, measured on `images` labelled samples."""

    accuracy: float
    """Mean quality of its answers, 0–1."""
    images: int
    """How many samples."""
    predict_s: float
    """Median s of one prediction, batch of one, on `threads` threads."""
    decode_s: float
    """Median s from the payload's bytes to the model's input."""
    threads: int = 1


class Measurements(Struct, frozen=True):
    """One run of ``edgewise models measure``, as its ``--json`` writes it."""

    command: str
    data: str
    """The samples, as `Samples.describe` puts it."""
    versions: dict[str, str]
    models: dict[str, MeasuredModel]


class ModelCard(Struct, frozen=True):
    """What is known of a model before it runs: enough to plan with."""

    name: str
    size: int
    """Side of its square input, pixels: model-ready payloads are made for it."""
    published_accuracy: float | None = None
    """By its authors, on the task's own benchmark; None where none was published."""
    measured: MeasuredModel | None = None
    """By ``edgewise models measure``, on the machine and data that its record names."""

    @property
    def accuracy(self) -> float:
        """The accuracy to plan with, 0–1: the measured one, or else the published one.

        The measured one comes first because models that were measured on the same data compare.
        """
        if self.measured is not None:
            return self.measured.accuracy
        if self.published_accuracy is not None:
            return self.published_accuracy
        raise ModelError(f"{self.name}: no accuracy is published and none was measured")


class Model(Protocol):
    """A model in memory. Its methods may be called from several threads."""

    @property
    def card(self) -> ModelCard: ...

    def decode(self, payload: bytes, ready_size: int | None = None) -> Array:
        """The model's input, a batch of one.

        `ready_size` is the input size for which the payload was made ready, None for an original.
        Raises BadInput with the reason if the payload cannot be decoded.
        """
        ...

    def predict(self, batch: Array) -> Array:
        """The model's raw output, one row per input."""
        ...


class Sample(Protocol):
    """A payload whose right answer is known."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> int: ...
    def size(self) -> int:
        """Bytes of the payload, without reading it where the file system knows."""
        ...

    def read(self) -> bytes:
        """The payload. Raises BadInput if it cannot be read."""
        ...


class Samples(Sequence[Sample]):
    """Samples in a fixed order; payloads are read one at a time, when asked for."""

    note = ""
    """What was left out of them, and why; empty: nothing."""

    @overload
    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    @abstractmethod
    def __getitem__(self, index: slice) -> Samples: ...

    @abstractmethod
    def describe(self) -> str:
        """How many there are, of what, and from where."""


class Task(Protocol):
    """One kind of inference."""

    @property
    def name(self) -> str:
        """As in `Request.task` and `Service.task`."""
        ...

    @property
    def classes(self) -> int:
        """Labels and answers are whole numbers in [0, classes)."""
        ...

    # -- models --------------------------------------------------------------------------------

    def models(self) -> Sequence[ModelCard]:
        """All models, in the order in which they are listed."""
        ...

    def model(self, name: str) -> ModelCard:
        """Raises ModelError, naming the known models."""
        ...

    def reference(self) -> Measurements:
        """The measurement that ships with edgewise: `ModelCard.measured` of every model."""
        ...

    def prepare(
        self, names: Iterable[str] | None = None, progress: Progress | None = None
    ) -> dict[str, Path]:
        """Make models ready to load, all by default; return their files. Raises ModelError."""
        ...

    def prepared_file(self, name: str) -> Path | None:
        """The file that `prepare` made, None if it has not yet. Raises ModelError if corrupt."""
        ...

    def load(self, name: str) -> Model:
        """A prepared model, to run on one thread. Raises ModelError, MissingExtra."""
        ...

    # -- payloads ------------------------------------------------------------------------------

    def samples(self, source: str | Path) -> Samples:
        """Labelled payloads of a folder or file, or ``builtin``. Raises BadInput."""
        ...

    def sample_payload(self) -> bytes:
        """A typical payload, for warming up where no sample is at hand."""
        ...

    def convert(self, payload: bytes, size: int) -> bytes:
        """The model-ready form of an original for a model of input `size`. Raises BadInput."""
        ...

    def ready_bytes(self, size: int) -> int:
        """Expected bytes of the model-ready form."""
        ...

    def ready_saving(self, model: ModelCard) -> float:
        """s that a model-ready payload saves of a request at a server of speed 1."""
        ...

    # -- answers -------------------------------------------------------------------------------

    def answer(self, output: Array) -> tuple[int, float]:
        """The answer in one row of `Model.predict`, and the model's confidence in it, 0–1."""
        ...

    def quality(self, predicted: int, label: int) -> float:
        """How good an answer is, from 0 (wrong) to 1 (right)."""
        ...
