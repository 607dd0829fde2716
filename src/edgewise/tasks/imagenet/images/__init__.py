"""Labelled photos: the built-in ones, a folder, or the ImageNet validation set in any layout."""

from edgewise.tasks.imagenet.images.classes import CLASSES, label_of, names, synsets
from edgewise.tasks.imagenet.images.labelled import Images, LabelledImage
from edgewise.tasks.imagenet.images.layouts import BUILTIN, load_images

__all__ = [
    "BUILTIN",
    "CLASSES",
    "Images",
    "LabelledImage",
    "label_of",
    "load_images",
    "names",
    "synsets",
]
