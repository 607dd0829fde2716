"""A prepared rung, running: bytes in, logits out, through ONNX Runtime."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgewise.errors import ImagesError, MissingExtra, ModelError
from edgewise.tasks.imagenet.images import LabelledImage
from edgewise.tasks.imagenet.preprocessing import to_array, to_picture
from edgewise.tasks.imagenet.zoo import store
from edgewise.tasks.imagenet.zoo.ladder import MeasuredModel, Rung, rung


class _Session(Protocol):
    def run(
        self, outputs: list[str], inputs: dict[str, npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]: ...


class Model:
    """One rung with its weights in memory. Both methods may be called from several threads."""

    def __init__(self, rung: Rung, session: _Session) -> None:
        self.rung = rung
        self._session = session

    def decode(self, image: bytes, model_ready: int | None = None) -> npt.NDArray[np.float32]:
        """The 1 x 3 x H x W batch this model reads, from the bytes of a JPEG, PNG or WebP.

        ``model_ready`` is the input size for which the payload was cropped and resized already
        (``preprocess.make_ready``), None for an original photo: nothing is cropped twice.
        Raises ``ImagesError`` with the reason when the bytes cannot be decoded.
        """
        return to_array(to_picture(image, self.rung.size, model_ready), self.rung.channels)

    def predict(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The N x 1000 logits of an N x 3 x H x W batch; argmax is the ImageNet-1k class."""
        return self._session.run(["logits"], {"image": batch})[0]


def load(name: str, threads: int = 1, cache: Path | None = None) -> Model:
    """A rung that ``prepare`` has converted, ready to run on ``threads`` threads.

    One thread is the default because a node runs one prediction per worker: threads that share a
    core with other workers make each prediction's time depend on its neighbours'.

    Raises ``ModelError`` when the rung is unknown, not prepared, or its file is corrupt;
    ``MissingExtra`` without onnxruntime.
    """
    file = store.find(name, cache)
    if file is None:
        raise ModelError(f"{name} is not prepared; do so with: edgewise models prepare {name}")
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("live", "onnxruntime") from None
    # Some builds report usage to their vendor unless told otherwise; nobody asked for that.
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Idle threads that spin take the core away from the other workers of the node.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        str(file), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return Model(rung(name), session)


def measure_latency(model: Model, runs: int = 5) -> float:
    """Median seconds of one prediction (a batch of one) on this machine now, decoding left out."""
    size = model.rung.size
    batch = np.zeros((1, 3, size, size), dtype=np.float32)
    model.predict(batch)  # the first run allocates
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        model.predict(batch)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure_accuracy(
    rung: Rung | Model,
    images: Sequence[LabelledImage],
    progress: Callable[[int], None] | None = None,
    cache: Path | None = None,
) -> MeasuredModel:
    """Top-1 accuracy and median latencies of a rung on labelled images, one thread, one by one.

    ``progress`` is called with the number of images done. Raises ``ImagesError`` for no images or
    one that cannot be decoded, and what ``load`` raises.
    """
    if not images:
        raise ImagesError("there are no images to measure on")
    model = rung if isinstance(rung, Model) else load(rung.name, cache=cache)
    right, decode_s, predict_s = 0, [], []
    for done, image in enumerate(images, 1):
        photo = image.read()
        start = time.perf_counter()
        try:
            batch = model.decode(photo)
        except ImagesError as error:
            raise ImagesError(f"{image.name}: {error}") from None
        decoded = time.perf_counter()
        logits = model.predict(batch)
        predict_s.append(time.perf_counter() - decoded)
        decode_s.append(decoded - start)
        right += int(logits[0].argmax()) == image.label
        if progress is not None:
            progress(done)
    return MeasuredModel(
        top1=right / len(images),
        images=len(images),
        predict_s=statistics.median(predict_s),
        decode_s=statistics.median(decode_s),
    )
