"""Where edgewise keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """``$XDG_CACHE_HOME/edgewise/NAME``; under ``~/.cache`` when that is unset or relative.

    Raises RuntimeError if there is no home either.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return root / "edgewise" / name
