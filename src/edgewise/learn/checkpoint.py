"""A search on disk: written whole or not at all, and read without executing anything."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from edgewise.errors import BadInput
from edgewise.files import write_atomically

FILE = "checkpoint.safetensors"


class Checkpoint(Struct, frozen=True, kw_only=True):
    """Figures that are stored beside the arrays of a search."""

    fingerprint: str
    """Everything that decides what the search finds, as JSON. Only a search with the same one may
    resume from here."""
    steps: int
    decisions: int
    seconds: float
    """Spent so far."""


def save(folder: Path, arrays: Mapping[str, NDArray[Any]], figures: Checkpoint) -> None:
    """Write a checkpoint. Raises BadInput if the folder cannot be written to."""
    metadata = {"checkpoint": msgspec.json.encode(figures).decode()}
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomically(folder / FILE, safetensors_numpy.save(whole, metadata=metadata))


def load(folder: Path, fingerprint: str) -> tuple[dict[str, NDArray[Any]], Checkpoint] | None:
    """The checkpoint in `folder`; None if there is none.

    Raises BadInput if it cannot be read, or if a search with other options made it.
    """
    path = folder / FILE
    if not path.exists():
        return None
    data = path.read_bytes()
    try:
        arrays = safetensors_numpy.load(data)
        size = int.from_bytes(data[:8], "little")
        header = msgspec.json.decode(data[8 : 8 + size])
        figures = msgspec.json.decode(header["__metadata__"]["checkpoint"], type=Checkpoint)
    except (SafetensorError, msgspec.MsgspecError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a checkpoint: {error}") from None
    if figures.fingerprint != fingerprint:
        raise BadInput(
            f"{folder} holds a search with other options; give another --out, or the same options\n"
            f"there: {figures.fingerprint}\nhere:  {fingerprint}"
        )
    return arrays, figures
