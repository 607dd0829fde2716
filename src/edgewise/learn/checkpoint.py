"""A search on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import os
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
from edgewise.learn.es import State

Floats = NDArray[np.float64]

FILE = "checkpoint.safetensors"
_ARRAYS = ("x", "mean", "first", "second")


class SearchCheckpoint(Struct, frozen=True, kw_only=True):
    """What stands beside the arrays of a search."""

    recipe: str
    """The options that decide what is found, as JSON: another search must not go on from here."""
    generation: int
    decisions: int
    seconds: float
    """Spent so far."""
    best: float
    """Highest gain over the heuristic on validation worlds."""


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path`: who reads it, or is killed meanwhile, has the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def save(folder: Path, state: State, kept: SearchCheckpoint, extra: Mapping[str, Floats]) -> None:
    """Write the checkpoint of a search by evolution strategies."""
    save_arrays(folder, {**{name: getattr(state, name) for name in _ARRAYS}, **extra}, kept)


def load(folder: Path, recipe: str) -> tuple[State, SearchCheckpoint, dict[str, Floats]] | None:
    """What `save` wrote to `folder`; None if there is nothing.

    Raises BadInput if it cannot be read, or was made by a search with other options.
    """
    found = load_arrays(folder, recipe)
    if found is None:
        return None
    arrays, kept = found
    try:
        state = State(**{name: arrays.pop(name) for name in _ARRAYS}, generation=kept.generation)
    except KeyError as error:
        raise BadInput(f"{folder / FILE}: not a checkpoint of this search: no {error}") from None
    return state, kept, arrays


def save_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]], kept: SearchCheckpoint) -> None:
    """Write a checkpoint."""
    text = {"kept": msgspec.json.encode(kept).decode()}
    whole = {name: np.ascontiguousarray(each) for name, each in arrays.items()}
    write_atomically(folder / FILE, safetensors_numpy.save(whole, metadata=text))


def load_arrays(
    folder: Path, recipe: str
) -> tuple[dict[str, NDArray[Any]], SearchCheckpoint] | None:
    """The checkpoint in `folder`; None if there is none.

    Raises BadInput if it cannot be read, or was made by a search with other options.
    """
    path = folder / FILE
    if not path.exists():
        return None
    data = path.read_bytes()
    try:
        arrays = safetensors_numpy.load(data)
        size = int.from_bytes(data[:8], "little")
        header = msgspec.json.decode(data[8 : 8 + size])
        kept = msgspec.json.decode(header["__metadata__"]["kept"], type=SearchCheckpoint)
    except (SafetensorError, msgspec.MsgspecError, KeyError, TypeError) as error:
        raise BadInput(f"{path}: not a checkpoint: {error}") from None
    if kept.recipe != recipe:
        raise BadInput(
            f"{folder} holds a search with other options; give another --out, or the same options\n"
            f"there: {kept.recipe}\nhere:  {recipe}"
        )
    return arrays, kept
