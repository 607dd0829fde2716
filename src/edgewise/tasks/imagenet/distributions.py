"""Find and read files of other distributions without executing their code.

``importlib.resources.files("foolbox")`` would import foolbox, which imports GitPython, which
fails where no ``git`` is installed. Only the *finder* runs here: the module object handed to
``importlib.resources`` is created from its spec and its code is not executed.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
from importlib.resources.abc import Traversable

from edgewise.errors import MissingExtra


def package_files(package: str, distribution: str) -> Traversable:
    """The root of an installed top-level package's files.

    ``distribution`` is the name under which the package index knows it, for the message.
    Raises ``MissingExtra`` when it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise MissingExtra("models", distribution)
    return importlib.resources.files(importlib.util.module_from_spec(spec))
