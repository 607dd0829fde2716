"""How tuned parameters get into the rules. The values stand in ``tuned``, which is generated."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from edgewise.policy.base import PolicySpec


class Tuned(Struct, frozen=True, kw_only=True):
    """What a tuner found for one rule."""

    command: str
    """That found it."""
    gain: str
    """Over the defaults, on worlds that it was not tuned on."""
    params: dict[str, float]
    """By name of the parameter."""


def with_tuned(
    rules: Mapping[str, PolicySpec], tuned: Mapping[str, Tuned]
) -> dict[str, PolicySpec]:
    """The rules, those that were tuned with the values found.

    Values are kept by name: a rule that has lost a parameter ignores its value, one that has gained
    one runs with its default. Then it should be tuned anew, and a test says so.
    """
    found = dict(rules)
    for name, values in tuned.items():
        rule = found.get(name)
        if rule is not None and rule.parameters:
            params = tuple(values.params.get(p.name, p.default) for p in rule.parameters)
            found[name] = msgspec.structs.replace(rule, params=params, tuned=values.command)
    return found
