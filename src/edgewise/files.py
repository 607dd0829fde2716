"""Folders of results, and files that are written whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from edgewise.errors import BadInput


def new_folder(path: Path) -> Path:
    """Make an empty folder and return it.

    Raises BadInput if it is not empty, for the results of two runs would mix, or cannot be made.
    """
    try:
        if path.is_dir() and any(path.iterdir()):
            raise BadInput(f"{path}: expected an empty or a new folder; it is not empty")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{path}: cannot be made: {error.strerror}") from None
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the content of `path`, making its folder if need be.

    A reader, or a process killed meanwhile, finds the old content or the new one. Several processes
    and threads may write the same file. Raises BadInput naming the file if it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
