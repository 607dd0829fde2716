"""A photo whose class is known, and a sequence of them whose bytes are read one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import msgspec

from edgewise.errors import ImagesError

_MAGIC = {"JPEG": b"\xff\xd8\xff", "PNG": b"\x89PNG\r\n\x1a\n", "WebP": b"RIFF"}


class LabelledImage(msgspec.Struct, frozen=True):
    """One photo and its right answer."""

    source: Path | bytes
    """Where the encoded photo is, or the encoded photo itself."""
    name: str
    label: int
    """ImageNet-1k class index, 0-999."""
    synset: str
    """The same class as WordNet writes it: ``n01440764``."""

    def read(self) -> bytes:
        """The encoded photo. Raises ``ImagesError`` when it cannot be read or is no photo."""
        try:
            data = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise ImagesError(f"{self.source!s}: the image cannot be read: {reason}") from None
        if not data.startswith(tuple(_MAGIC.values())):
            got = f"{len(data)} bytes that begin with {data[:8]!r}" if data else "an empty file"
            where = self.name if isinstance(self.source, bytes) else str(self.source)
            raise ImagesError(f"{where}: expected an image ({', '.join(_MAGIC)}), got {got}")
        return data


class Images(Sequence[LabelledImage]):
    """Labelled photos in a fixed order. Holds names and labels; bytes are read when asked for."""

    def __init__(self, items: Sequence[LabelledImage], form: str, where: str) -> None:
        self._items = tuple(items)
        self.form = form
        """Which of the known layouts was found."""
        self.where = where

    @overload
    def __getitem__(self, index: int) -> LabelledImage: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __getitem__(self, index: int | slice) -> LabelledImage | Images:
        if isinstance(index, slice):
            return Images(self._items[index], self.form, self.where)
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)

    def describe(self) -> str:
        """How many photos of how many classes, in which layout, where."""
        classes = len({image.label for image in self._items})
        return f"{len(self)} photos of {classes} classes: {self.form} ({self.where})"
