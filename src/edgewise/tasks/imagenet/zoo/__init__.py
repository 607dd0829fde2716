"""The model ladder: ImageNet classifiers whose weights a package index provides.

``prepare`` converts them once into a cache, ``load`` runs one, ``rungs`` says what there is.
Converting needs the extra ``models``; running what was converted needs only ``live``.
"""

from edgewise.tasks.imagenet.zoo.ladder import (
    MeasuredModel,
    Measurements,
    Rung,
    Weights,
    reference,
    rung,
    rungs,
)
from edgewise.tasks.imagenet.zoo.model import Model, load, measure_accuracy, measure_latency
from edgewise.tasks.imagenet.zoo.store import Progress, default_cache, find, prepare

__all__ = [
    "MeasuredModel",
    "Measurements",
    "Model",
    "Progress",
    "Rung",
    "Weights",
    "default_cache",
    "find",
    "load",
    "measure_accuracy",
    "measure_latency",
    "prepare",
    "reference",
    "rung",
    "rungs",
]
