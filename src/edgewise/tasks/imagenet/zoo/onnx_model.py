"""Run a prepared model with ONNX Runtime: bytes in, logits out."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgewise.errors import MissingExtra, ModelError
from edgewise.tasks.imagenet.preprocessing import to_array, to_picture
from edgewise.tasks.imagenet.zoo import store
from edgewise.tasks.imagenet.zoo.catalogue import ZooModel, find_model


class _Session(Protocol):
    def run(
        self, outputs: list[str], inputs: dict[str, npt.NDArray[np.float32]]
    ) -> list[npt.NDArray[np.float32]]: ...


class OnnxModel:
    """A model in memory. Its methods may be called from several threads."""

    def __init__(self, card: ZooModel, session: _Session) -> None:
        self.card = card
        self._session = session

    def decode(self, image: bytes, ready_size: int | None = None) -> npt.NDArray[np.float32]:
        """The model's input, 1 x 3 x H x W, from the bytes of a JPEG, PNG or WebP.

        `ready_size` is the input size for which the payload was cropped and resized
        (`preprocessing.make_ready`), None for an original photo: nothing is cropped twice. Raises
        ImagesError with the reason if the bytes cannot be decoded.
        """
        return to_array(to_picture(image, self.card.size, ready_size), self.card.channels)

    def predict(self, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The N x 1000 logits of an N x 3 x H x W batch; argmax is the ImageNet-1k class."""
        return self._session.run(["logits"], {"image": batch})[0]


def load(name: str, threads: int = 1, cache: Path | None = None) -> OnnxModel:
    """A prepared model, ready to run on `threads` threads.

    The default is one thread because a node runs one prediction per worker: with more, the time of
    a prediction would depend on what the other workers do.

    Raises ModelError if the model is unknown, not prepared or corrupt, MissingExtra without
    onnxruntime.
    """
    file = store.converted_file(name, cache)
    if file is None:
        raise ModelError(f"{name} is not prepared; do so with: edgewise models prepare {name}")
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("live", "onnxruntime") from None
    # Some builds report usage to their vendor by default.
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Idle threads must not spin: they would take the core from the other workers of the node.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        str(file), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return OnnxModel(find_model(name), session)
