"""The folder for files that edgewise can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """``$XDG_CACHE_HOME/edgewise/NAME``; ``~/.cache`` replaces what is unset or relative.

    Raises RuntimeError if there is no home folder either.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    return root / "edgewise" / name
