"""Every policy by name. Each scores the same candidate table through the same kind of kernel."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from edgewise.errors import BadInput
from edgewise.policy import priced, weight_files
from edgewise.policy.base import Kernel, Parameter, Policy, PolicySpec, decision, draw, policy
from edgewise.policy.rules import (
    basic,
    linucb,
    predictive,
    prequal,
    server_only,
    weighted_round_robin,
)
from edgewise.policy.tuning import shipped_values, with_tuned

__all__ = [
    "POLICIES",
    "Kernel",
    "Parameter",
    "Policy",
    "PolicySpec",
    "decision",
    "draw",
    "find",
    "label",
    "make",
    "policy",
]

_MODULES = (basic, server_only, prequal, weighted_round_robin, predictive, linucb, priced)


def _rules() -> Iterator[PolicySpec]:
    """Those that the modules define, in the order of their files."""
    for module in _MODULES:
        for found in vars(module).values():
            if isinstance(found, PolicySpec):
                yield found


POLICIES: dict[str, PolicySpec] = {
    **with_tuned({spec.name: spec for spec in _rules()}, shipped_values()),
    # Read here, as the tuned values are: some 10 kB of numbers, checked.
    "edgewise": weight_files.shipped_rule(),
}


def find(name: str) -> PolicySpec:
    """The policy called `name`, or the learned policy in the weights file of that path
    (….safetensors). Raises BadInput naming the known ones, or saying why a file is refused."""
    if name.endswith(weight_files.SUFFIX):
        return weight_files.from_file(name)
    spec = POLICIES.get(name)
    if spec is None:
        near = difflib.get_close_matches(name, POLICIES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadInput(
            f"unknown policy {name!r}{hint}; known: {', '.join(POLICIES)}, or a file of weights "
            f"(*{weight_files.SUFFIX})"
        )
    return spec


def make(name: str, seed: int = 0) -> Policy:
    """The policy called `name`, ready to decide. Raises BadInput as `find` does."""
    return Policy(label(name), find(name), seed)


def label(name: str) -> str:
    """A policy's name as it can stand in records and in the name of a folder."""
    return Path(name).stem if name.endswith(weight_files.SUFFIX) else name
