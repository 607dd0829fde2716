"""Where compiled code is kept on disk, and when it is used again.

numba keeps the compiled form of a function until the file that the function stands in changes. It
does not notice a change in another file: a function compiled against an old array layout would go
on reading and writing at the old places. So the stamp that numba compares (`get_source_stamp`, a
method of its cache locators) also holds a digest of every source file that compiled code may rest
on: those of edgewise, and for a policy from elsewhere those of its package, or of its folder if
that is no package. Changes of what it imports from further away are not noticed.

The files lie in ``~/.cache/edgewise/numba``, or in NUMBA_CACHE_DIR if that is set. Only functions
of edgewise, and of policies made with it, are kept there: numba's own settings stay as they are.
If neither folder can be written, functions are compiled anew in each process.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numba.core.config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache

from edgewise.cache import cache_folder

PACKAGE = Path(__file__).parents[1]
_COMPILES = re.compile(rb"^(from|import) (numba|edgewise\.compile)\b", re.MULTILINE)


@cache
def source_digest() -> str:
    """Digest of all modules that are compiled, and of those in the same folders: these say what
    arrays there are and what the numbers in them mean. `sim.impairments` compiles the functions of
    a folder of their own."""
    sources = {file: file.read_bytes() for file in sorted(PACKAGE.rglob("*.py"))}
    folders = {file.parent for file, source in sources.items() if _COMPILES.search(source)}
    folders.add(PACKAGE / "network" / "impairments")
    digest = hashlib.blake2b(digest_size=16)
    for file, source in sources.items():
        if file.parent in folders:
            digest.update(str(file.relative_to(PACKAGE)).encode() + source)
    return digest.hexdigest()


def own_digest(file: Path) -> str:
    """Digest of a file. If it is not edgewise's, also of the other modules of its package or
    folder, for the policy in it may call their functions and use their constants."""
    sources = {file}
    if not file.is_relative_to(PACKAGE):
        folder = file.parent
        pattern = "**/*.py" if (folder / "__init__.py").is_file() else "*.py"
        while (folder.parent / "__init__.py").is_file():
            folder = folder.parent
        found = (each for each in folder.glob(pattern) if each.is_file())
        sources.update(each for each in found if os.access(each, os.R_OK))
    digest = hashlib.blake2b(digest_size=16)
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()


class _Locator:
    """Tells numba's cache where a function is kept and what its code rests on."""

    def __init__(self, function: Any, file: str) -> None:
        self._file = Path(file).resolve()
        self._line = function.__code__.co_firstlineno
        root = vars(numba.core.config)["CACHE_DIR"] or cache_folder("numba")
        # Modules of one name in different folders, or of two versions of edgewise, keep apart.
        folder = hashlib.blake2b(str(self._file.parent).encode(), digest_size=8).hexdigest()
        self._folder = Path(root) / f"{self._file.parent.name}-{folder}"

    @classmethod
    def from_function(cls, function: Any, file: str) -> _Locator | None:
        """None if there is no such file, or no folder that can be written."""
        try:
            locator = cls(function, file)
            locator.ensure_cache_path()
        except (OSError, RuntimeError):
            return None
        return locator if locator._file.is_file() else None

    def ensure_cache_path(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=self._folder).close()

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return f"{own_digest(self._file)} {source_digest()}"

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Files(CompileResultCacheImpl):
    _locator_classes: Any = (_Locator,)


class _Cache(FunctionCache):
    _impl_class = _Files


def function_cache(function: Any) -> Any:
    """numba's cache for a function (not a compiled one)."""
    if os.environ.get("NUMBA_CACHE_LOCATOR_CLASSES"):
        return FunctionCache(function)  # type: ignore[no-untyped-call]
    try:
        return _Cache(function)  # type: ignore[no-untyped-call]
    except RuntimeError:  # nowhere to keep it
        return NullCache()
