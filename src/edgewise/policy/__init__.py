"""Every policy by name. Each scores the same candidate table through the same method."""

from __future__ import annotations

import difflib

from edgewise.errors import BadInput
from edgewise.policy import heuristics
from edgewise.policy.base import Kernel, KernelPolicy, Policy, Rule, decision

__all__ = ["RULES", "Kernel", "KernelPolicy", "Policy", "Rule", "decision", "make"]

_SHARE = (heuristics.SERVICE_SHARE,)

RULES: dict[str, Rule] = {
    "random": Rule(kernel=heuristics.random, params=_SHARE, about="a server drawn uniformly"),
    "round_robin": Rule(
        kernel=heuristics.round_robin, params=_SHARE, memory=1, about="the servers in turn"
    ),
    "local": Rule(kernel=heuristics.local, about="the ingress itself, cheapest admissible service"),
    "least_outstanding": Rule(
        kernel=heuristics.least_outstanding,
        params=_SHARE,
        about="of two random servers the one with fewer of our requests (P2C)",
    ),
    "earliest_completion": Rule(
        kernel=heuristics.earliest_completion, about="least predicted latency"
    ),
    "most_accurate_feasible": Rule(
        kernel=heuristics.most_accurate_feasible,
        about="the most accurate service predicted to meet the deadline",
    ),
}


def make(name: str, seed: int = 0) -> KernelPolicy:
    """The policy called `name`. Raises BadInput naming the known ones."""
    rule = RULES.get(name)
    if rule is None:
        near = difflib.get_close_matches(name, RULES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadInput(f"unknown policy {name!r}{hint}; known: {', '.join(RULES)}")
    return KernelPolicy(name, rule, seed)
