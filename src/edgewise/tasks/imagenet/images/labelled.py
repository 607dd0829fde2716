"""A labelled photo, and a sequence of them whose bytes are read one at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import msgspec

from edgewise.errors import ImagesError, MissingExtra
from edgewise.tasks.imagenet.images.classes import synsets
from edgewise.tasks.task import Samples

_MAGIC = {"JPEG": rb"\xff\xd8\xff", "PNG": rb"\x89PNG\r\n\x1a\n", "WebP": rb"RIFF....WEBP"}
"""How files begin."""
_HEAD = 12
"""bytes that tell the formats apart."""


class LabelledImage(msgspec.Struct, frozen=True):
    """A photo and its class."""

    source: Path | bytes | int
    """The encoded photo's file; or the encoded photo itself; or its size in bytes, for a built-in
    photo whose package is not installed: enough for the simulator."""
    name: str
    label: int
    """ImageNet-1k class index, 0–999."""

    @property
    def synset(self) -> str:
        """The class as WordNet writes it: ``n01440764``."""
        return synsets()[self.label]

    def size(self) -> int:
        """Bytes of the encoded photo; the file is not read. Raises ImagesError if it is gone."""
        if isinstance(self.source, int):
            return self.source
        if isinstance(self.source, bytes):
            return len(self.source)
        try:
            return self.source.stat().st_size
        except OSError as error:
            raise self._unreadable(self.source, error) from None

    def read(self) -> bytes:
        """The encoded photo.

        Raises ImagesError if it cannot be read or is no photo, MissingExtra if only its size is
        known.
        """
        if isinstance(self.source, int):
            raise MissingExtra("models", "foolbox")
        try:
            data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        except OSError as error:
            raise self._unreadable(self.source, error) from None
        self._check(data, len(data))
        return data

    def check(self) -> None:
        """Look at the first bytes. Raises ImagesError if the file is missing or no photo."""
        if isinstance(self.source, Path):
            try:
                with self.source.open("rb") as file:
                    self._check(file.read(_HEAD), os.fstat(file.fileno()).st_size)
            except OSError as error:
                raise self._unreadable(self.source, error) from None

    def _check(self, head: bytes, size: int) -> None:
        if any(re.match(magic, head, re.DOTALL) for magic in _MAGIC.values()):
            return
        got = f"{size} bytes that begin with {head[:8]!r}" if head else "an empty file"
        where = self.name if isinstance(self.source, bytes) else str(self.source)
        raise ImagesError(f"{where}: expected an image ({', '.join(_MAGIC)}), got {got}")

    @staticmethod
    def _unreadable(source: object, error: OSError) -> ImagesError:
        return ImagesError(f"{source}: the image cannot be read: {error.strerror or error}")


class Images(Samples):
    """Labelled photos in a fixed order. Holds names and labels, not the photos' bytes."""

    def __init__(
        self, items: Sequence[LabelledImage], form: str, where: str, note: str = ""
    ) -> None:
        self._items = tuple(items)
        self.form = form
        """The layout that was found."""
        self.where = where
        self.note = note
        """What was left out, and why; empty: nothing."""

    @overload
    def __getitem__(self, index: int) -> LabelledImage: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __getitem__(self, index: int | slice) -> LabelledImage | Images:
        if isinstance(index, slice):
            return Images(self._items[index], self.form, self.where, self.note)
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def describe(self) -> str:
        """Number of photos and classes, layout and place, for people."""
        classes = len({image.label for image in self._items})
        note = f"; {self.note}" if self.note else ""
        return f"{len(self)} photos of {classes} classes: {self.form} ({self.where}){note}"
