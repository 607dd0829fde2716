"""Policies from outside the package: from a Python file or from another installed package.

Importing a file runs it. So a file is imported only if a command line or Python code names it. A
scenario or process configuration that names one is refused when it is read, unless the user allows
it (`edgewise.scenario.load`). Policies of installed packages are found by the entry-point group
``edgewise.policies``.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np

from edgewise.errors import BadInput
from edgewise.fleet.rng import new_rng
from edgewise.fleet.table import CandidateTable, blank_table
from edgewise.policies.base import PolicyFailed, PolicySpec, call

GROUP = "edgewise.policies"


def from_file(file: str, name: str) -> PolicySpec:
    """The policy `name` of a Python file, after a trial decision.

    Raises BadInput, naming the file and the policy, if the file cannot be read, if importing it
    raises, if it has no such policy, or if the policy cannot be compiled or raises.
    """
    path = Path(file)
    try:
        stat = path.stat()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    return _from_file(str(path.absolute()), name, stat.st_mtime_ns)


def installed() -> dict[str, EntryPoint]:
    """Policies of installed packages by name, without importing them."""
    return {each.name: each for each in entry_points(group=GROUP)}


def from_entry_point(point: EntryPoint) -> PolicySpec:
    """The policy of an installed package, after a trial decision.

    Raises BadInput if importing it raises, if it is not a policy, or if the policy cannot be
    compiled or raises.
    """
    where = f"{point.name} ({point.value})"
    try:
        value = point.load()
    except Exception as error:
        raise BadInput(f"{where}: {_raised(error)}") from None
    return _checked(value, where)


@functools.cache
def _from_file(path: str, name: str, _modified: int) -> PolicySpec:
    module = _module(path, _modified)
    where = f"{path}:{name}"
    by_name = {each.name: each for each in vars(module).values() if isinstance(each, PolicySpec)}
    value = by_name.get(name, vars(module).get(name))
    if value is None:
        known = ", ".join(by_name) or "none"
        raise BadInput(f"{path}: no policy called {name!r}; it has: {known}")
    return _checked(value, where)


@functools.cache
def _module(path: str, _modified: int) -> ModuleType:
    digest = hashlib.blake2b(path.encode(), digest_size=4).hexdigest()
    spec = importlib.util.spec_from_file_location(f"{Path(path).stem}_{digest}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # numba looks its functions' globals up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise BadInput(f"{path}: {_raised(error, path)}") from None
    return module


def _checked(value: object, where: str) -> PolicySpec:
    if not isinstance(value, PolicySpec):
        raise BadInput(f"{where}: not a policy; put @edgewise.policy() above the function")
    spec = msgspec.structs.replace(value, source=where)
    try:
        try_out(spec)
    except PolicyFailed as error:
        raise BadInput(str(error)) from None
    return spec


def try_out(spec: PolicySpec) -> None:
    """Let a policy make one decision on a made-up table. Raises PolicyFailed."""
    table = _sample_table()
    call(spec, table, spec.new_params(), spec.new_memory(len(table.servers)), new_rng(1))


def _sample_table() -> CandidateTable:
    """A table of two servers with one service each; all numbers but indices and forms are 1."""
    table = blank_table(2, 2)
    arrays = table.arrays
    arrays.rows[:-1] = 1.0
    arrays.servers[:] = 1.0
    arrays.context[:] = 1.0
    table.context.ingress = 0.0
    table.rows.server[:-1] = table.rows.service[:-1] = (0, 0, 1, 1)
    table.rows.form[:-1] = (0, 1, 0, 1)
    table.mask[:] = 1
    table.scores[-1] = -np.inf
    return table


def _raised(error: Exception, path: str = "") -> str:
    """An exception as one line of text, with the line number in the file `path`."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}"
    lines = [
        each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == path
    ]
    at = f"line {lines[-1]}: " if lines else ""
    message = str(error).partition("\n")[0]
    return f"{at}{type(error).__name__}: {message}"
