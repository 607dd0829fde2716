"""Labelled photos: the built-in ones, a folder, or the ImageNet validation set in any layout."""

from edgewise.images.classes import label_of, names, synsets
from edgewise.images.forms import BUILTIN, load_images
from edgewise.images.labelled import Images, LabelledImage

__all__ = [
    "BUILTIN",
    "Images",
    "LabelledImage",
    "label_of",
    "load_images",
    "names",
    "synsets",
]
