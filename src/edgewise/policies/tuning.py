"""Tuned parameters: values by name, in a JSON file written by ``edgewise tune``.

The package's own values are in ``tuned.json`` beside this module. A user names a file of their own
after the policy: ``sed@tuned.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import msgspec
from msgspec import Struct

from edgewise.errors import BadInput
from edgewise.policies.base import PolicySpec


class Tuned(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The result of tuning one policy."""

    command: str
    """The command that found the values."""
    gain: str
    """The gain over the defaults, on worlds that were not used for tuning."""
    params: dict[str, float]
    """The values by name of the parameter."""


def shipped_values() -> dict[str, Tuned]:
    """The values that come with the package, by policy."""
    return _parse("tuned.json", (files("edgewise.policies") / "tuned.json").read_bytes())


def read_tuned(file: Path) -> dict[str, Tuned]:
    """Tuned values by policy. Raises BadInput naming the file, the field and what was expected."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    return _parse(str(file), data)


def write_tuned(file: Path, values: Mapping[str, Tuned]) -> None:
    """Write the values, sorted by policy. Raises BadInput if the file cannot be written."""
    text = msgspec.json.encode({name: values[name] for name in sorted(values)})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(text, indent=1) + b"\n")
    except OSError as error:
        raise BadInput(f"{file}: cannot be written: {error.strerror}") from None


def tuned_as(spec: PolicySpec, values: Tuned) -> PolicySpec:
    """The policy with tuned values.

    Values are matched by name. A value whose parameter no longer exists is ignored, and a parameter
    without a value keeps its default. The policy should then be tuned again; a test checks that.
    """
    params = tuple(values.params.get(p.name, p.default) for p in spec.parameters)
    return msgspec.structs.replace(spec, params=params, tuned=values.command)


def with_tuned(
    specs: Mapping[str, PolicySpec], values: Mapping[str, Tuned]
) -> dict[str, PolicySpec]:
    """The same policies, with tuned values where there are any."""
    return {
        name: tuned_as(spec, values[name]) if name in values and spec.parameters else spec
        for name, spec in specs.items()
    }


def _parse(file: str, data: bytes) -> dict[str, Tuned]:
    try:
        return msgspec.json.decode(data, type=dict[str, Tuned])
    except msgspec.MsgspecError as error:
        raise BadInput(f"{file}: not tuned values, as `edgewise tune` writes: {error}") from None
