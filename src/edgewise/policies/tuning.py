"""Tuned parameters: values by name, in a JSON file that ``edgewise tune`` writes.

The values that come with the package are in ``tuned.json`` beside this module. A user's own file is
named behind a policy: ``sed@tuned.json``.
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
    """What a tuner found for one policy."""

    command: str
    """That found it."""
    gain: str
    """Over the defaults, on worlds that it was not tuned on."""
    params: dict[str, float]
    """By name of the parameter."""


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
    """Write the values, sorted by policy. Raises BadInput if that cannot be done."""
    text = msgspec.json.encode({name: values[name] for name in sorted(values)})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(text, indent=1) + b"\n")
    except OSError as error:
        raise BadInput(f"{file}: cannot be written: {error.strerror}") from None


def tuned_as(spec: PolicySpec, values: Tuned) -> PolicySpec:
    """The policy with tuned values.

    Values are kept by name: one of a parameter that the policy has lost is ignored, and a parameter
    without a value keeps its default. Then the policy should be tuned anew, and a test says so.
    """
    params = tuple(values.params.get(p.name, p.default) for p in spec.parameters)
    return msgspec.structs.replace(spec, params=params, tuned=values.command)


def with_tuned(
    specs: Mapping[str, PolicySpec], values: Mapping[str, Tuned]
) -> dict[str, PolicySpec]:
    """The policies, those that were tuned with the values found."""
    return {
        name: tuned_as(spec, values[name]) if name in values and spec.parameters else spec
        for name, spec in specs.items()
    }


def _parse(file: str, data: bytes) -> dict[str, Tuned]:
    try:
        return msgspec.json.decode(data, type=dict[str, Tuned])
    except msgspec.MsgspecError as error:
        raise BadInput(f"{file}: not tuned values, as `edgewise tune` writes: {error}") from None
