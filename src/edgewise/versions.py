"""The versions that can change a number; they stand in every file of results."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version


def versions(*others: str) -> dict[str, str]:
    """Versions by name: of Python, the machine, edgewise, numpy, numba and the packages `others`.

    >>> versions()["python"] == platform.python_version()
    True
    """
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("edgewise", "numpy", "numba", *others):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
