"""All policies by name. Each is a kernel that scores the same candidate table."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from edgewise.errors import BadInput
from edgewise.policies import own, priced, weight_files
from edgewise.policies.base import Kernel, Parameter, Policy, PolicySpec, decision, draw, policy
from edgewise.policies.rules import (
    basic,
    linucb,
    predictive,
    prequal,
    server_only,
    weighted_round_robin,
)
from edgewise.policies.tuning import read_tuned, shipped_values, tuned_as, with_tuned
from edgewise.policy_names import WEIGHTS, labels, split_code, split_tuned
from edgewise.policy_names import label as label_of

__all__ = [
    "POLICIES",
    "Kernel",
    "Parameter",
    "Policy",
    "PolicySpec",
    "decision",
    "draw",
    "find",
    "label_of",
    "labels",
    "make",
    "policy",
]

_MODULES = (
    basic,
    server_only,
    prequal,
    weighted_round_robin,
    predictive,
    linucb,
    priced,
)


def _rules() -> Iterator[PolicySpec]:
    """The policies that these modules define, in order."""
    for module in _MODULES:
        for value in vars(module).values():
            if isinstance(value, PolicySpec):
                yield value


POLICIES: dict[str, PolicySpec] = {
    **with_tuned({spec.name: spec for spec in _rules()}, shipped_values()),
    "edgewise": weight_files.shipped_spec(),
}


def find(name: str) -> PolicySpec:
    """The policy of this name.

    The name is that of a policy of this package or of an installed one, a file of weights, or a
    policy in a Python file; it may name a file of tuned values too (`edgewise.policy_names`).
    Imports the code that it names. Raises BadInput, with the reason, if there is no such policy or
    if a file cannot be used.
    """
    source, tuned = split_tuned(name)
    code = split_code(source)
    if code is not None:
        spec = own.from_file(*code)
    elif source.endswith(WEIGHTS):
        spec = weight_files.from_file(source)
    elif source in POLICIES:
        spec = POLICIES[source]
    else:
        spec = _installed(source)
    if tuned is None:
        return spec
    values = read_tuned(Path(tuned))
    if spec.name not in values:
        known = ", ".join(values) or "none"
        raise BadInput(f"{tuned}: no values for the policy {spec.name!r}; it has: {known}")
    return tuned_as(spec, values[spec.name])


def _installed(name: str) -> PolicySpec:
    """The policy of this name in an installed package. Raises BadInput if there is none."""
    points = own.installed()
    if name in points:
        return own.from_entry_point(points[name])
    known = [*POLICIES, *points]
    if name.endswith(".py"):
        raise BadInput(f"{name}: expected a policy in that file, as {name}:NAME")
    near = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise BadInput(
        f"unknown policy {name!r}{hint}; known: {', '.join(known)}, a file of weights "
        f"(*{WEIGHTS}), or a policy in a Python file (FILE.py:NAME)"
    )


def make(name: str, seed: int = 0, label: str | None = None) -> Policy:
    """The policy of this name, ready to decide; `label` is written into its decisions.

    Raises BadInput as `find` does.
    """
    return Policy(label_of(name) if label is None else label, find(name), seed)
