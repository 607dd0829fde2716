"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from edgewise.errors import BadInput


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
