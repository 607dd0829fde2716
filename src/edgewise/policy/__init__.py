"""Every policy by name. Each scores the same candidate table through the same method."""

from __future__ import annotations

import difflib
from pathlib import Path

from edgewise.errors import BadInput
from edgewise.policy import priced, weight_files
from edgewise.policy.base import Decider, Kernel, Parameter, Policy, PolicySpec, decision
from edgewise.policy.rules import (
    basic,
    linucb,
    predictive,
    prequal,
    server_only,
    weighted_round_robin,
)
from edgewise.policy.servers import SHARE
from edgewise.policy.tuned import TUNED
from edgewise.policy.tuning import with_tuned

__all__ = [
    "POLICIES",
    "Decider",
    "Kernel",
    "Parameter",
    "Policy",
    "PolicySpec",
    "decision",
    "find",
    "label",
    "make",
]

_SHARE = (SHARE,)

_RULES: dict[str, PolicySpec] = {
    # -- server-only -----------------------------------------------------------------------------
    "random": PolicySpec(
        kernel=basic.random,
        parameters=_SHARE,
        reads_servers=False,
        about="a server drawn uniformly",
    ),
    "round_robin": PolicySpec(
        kernel=basic.round_robin,
        parameters=_SHARE,
        memory=1,
        reads_servers=False,
        about="the servers in turn",
    ),
    "weighted_round_robin": PolicySpec(
        kernel=weighted_round_robin.weighted_round_robin,
        parameters=weighted_round_robin.WEIGHTED_ROUND_ROBIN,
        memory=weighted_round_robin.GLOBAL,
        per_server=weighted_round_robin.PER_SERVER,
        about="the servers in proportion to answers per utilisation (gRPC A58)",
    ),
    "local": PolicySpec(
        kernel=basic.local,
        reads_servers=False,
        about="the ingress itself, cheapest admissible service",
    ),
    "least_outstanding": PolicySpec(
        kernel=basic.least_outstanding,
        parameters=_SHARE,
        about="of two random servers the one with fewer of our requests (P2C)",
    ),
    "jsq": PolicySpec(kernel=server_only.jsq, parameters=_SHARE, about="the shortest queue"),
    "sed": PolicySpec(
        kernel=server_only.sed,
        parameters=_SHARE,
        about="the shortest queue for its speed (shortest expected delay)",
    ),
    "sed_admission": PolicySpec(
        kernel=server_only.sed_admission,
        parameters=server_only.SED_ADMISSION,
        about="sed, with deadline-aware service choice and admission",
    ),
    "jiq": PolicySpec(
        kernel=server_only.jiq,
        parameters=_SHARE,
        memory=1,
        per_server=2,
        about="a server that reported idle, else a random one (Join-Idle-Queue)",
    ),
    "peak_ewma": PolicySpec(
        kernel=server_only.peak_ewma,
        parameters=server_only.PEAK_EWMA,
        about="of two random servers the one of lower peak latency × pending (Finagle)",
    ),
    "peak_ewma_admission": PolicySpec(
        kernel=server_only.peak_ewma_admission,
        parameters=server_only.PEAK_EWMA_ADMISSION,
        about="peak_ewma, with deadline-aware service choice and admission",
    ),
    "c3": PolicySpec(
        kernel=server_only.c3,
        parameters=server_only.C3,
        per_server=3,
        about="least response time with a cubic queue term (C3, as in Elasticsearch)",
    ),
    "prequal": PolicySpec(
        kernel=prequal.prequal,
        parameters=prequal.PREQUAL,
        memory=prequal.MEMORY,
        about="from a pool of probes the fastest of those not hot (Prequal)",
    ),
    "prequal_admission": PolicySpec(
        kernel=prequal.prequal_admission,
        parameters=prequal.PREQUAL_ADMISSION,
        memory=prequal.MEMORY,
        about="prequal, with deadline-aware service choice and admission",
    ),
    "ray_p2c": PolicySpec(
        kernel=server_only.ray_p2c,
        parameters=server_only.RAY_P2C,
        about="the ingress while it has room, else the shorter of two random queues (Ray Serve)",
    ),
    "load_aware_locality": PolicySpec(
        kernel=server_only.load_aware_locality,
        parameters=server_only.LOAD_AWARE_LOCALITY,
        memory=2,
        per_server=1,
        about="the ingress unless it is busier than the others, then by headroom (Envoy)",
    ),
    # -- by predicted latency ---------------------------------------------------------------------
    "earliest_completion": PolicySpec(
        kernel=basic.earliest_completion, reads_servers=False, about="least predicted latency"
    ),
    "most_accurate_feasible": PolicySpec(
        kernel=basic.most_accurate_feasible,
        reads_servers=False,
        about="the most accurate service predicted to meet the deadline",
    ),
    "earliest_completion_margin": PolicySpec(
        kernel=predictive.earliest_completion_margin,
        parameters=predictive.EARLIEST_COMPLETION_MARGIN,
        reads_servers=False,
        about="most expected utility at a margined predicted latency",
    ),
    "infaas": PolicySpec(
        kernel=predictive.infaas,
        parameters=predictive.INFAAS,
        about="the slowest service that is fast enough, on the least loaded server (INFaaS)",
    ),
    "jellyfish": PolicySpec(
        kernel=predictive.jellyfish,
        parameters=predictive.JELLYFISH,
        about="the most accurate service that fits twice into the budget (Jellyfish)",
    ),
    "slo_headroom": PolicySpec(
        kernel=predictive.slo_headroom,
        parameters=predictive.SLO_HEADROOM,
        reads_servers=False,
        about="of those in time the one of least headroom (llm-d)",
    ),
    "linucb": PolicySpec(
        kernel=linucb.linucb,
        parameters=linucb.LINUCB,
        memory=linucb.MEMORY + linucb.D,
        features=linucb.D,
        describe=linucb.describe,
        learn=linucb.learn,
        about="a linear bandit on the candidates' features, learning on line (LinUCB)",
    ),
    "priced_greedy": PolicySpec(
        kernel=priced.priced_greedy,
        parameters=priced.PRICED_GREEDY,
        about="expected utility minus the price of what the request takes from others",
    ),
}

POLICIES: dict[str, PolicySpec] = {
    **with_tuned(_RULES, TUNED),
    # Read here, as the tuned values are: some 10 kB of numbers, checked.
    "edgewise": weight_files.shipped_rule(),
}


def find(name: str) -> PolicySpec:
    """The rule called `name`, or the learned policy in the weights file of that path
    (….safetensors). Raises BadInput naming the known ones, or saying why a file is refused."""
    if name.endswith(weight_files.SUFFIX):
        return weight_files.from_file(name)
    rule = POLICIES.get(name)
    if rule is None:
        near = difflib.get_close_matches(name, POLICIES, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise BadInput(
            f"unknown policy {name!r}{hint}; known: {', '.join(POLICIES)}, or a file of weights "
            f"(*{weight_files.SUFFIX})"
        )
    return rule


def make(name: str, seed: int = 0) -> Policy:
    """The policy called `name`, ready to decide. Raises BadInput as `find` does."""
    return Policy(label(name), find(name), seed)


def label(name: str) -> str:
    """A policy's name as it can stand in records and in the name of a folder."""
    return Path(name).stem if name.endswith(weight_files.SUFFIX) else name
