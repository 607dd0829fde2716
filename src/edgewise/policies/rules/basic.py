"""The first rules to beat, as kernels. Exact rules and sources: `docs/policies.md`.

How server-only rules share hosts and services: `edgewise.policies.servers`.
"""

from __future__ import annotations

import math

from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.rng import integer_below
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, policy
from edgewise.policies.servers import SHARE, clear, nth_offer, offer, power_of_two, server_of


@policy(about="a server drawn uniformly", parameters=(SHARE,), reads_servers=False)
def random(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """A server drawn uniformly from those that host an admissible service."""
    hosts = offer(table, params.share)
    if hosts == 0:
        return 1.0
    table.scores[nth_offer(table, integer_below(rng, hosts))] = 1.0
    return 1.0 / hosts


@policy(about="the servers in turn", parameters=(SHARE,), memory=("next",), reads_servers=False)
def round_robin(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """The servers in turn, skipping those that host no admissible service.

    `next` is the server whose turn is next.
    """
    offer(table, params.share)
    first = -1
    chosen = -1
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            if first < 0:
                first = r
            if chosen < 0 and server_of(table, r) >= memory.fleet.next:
                chosen = r
    if chosen < 0:
        chosen = first
    if chosen >= 0:
        table.scores[chosen] = 1.0
        memory.fleet.next = (server_of(table, chosen) + 1) % table.servers.shape[0]
    return 1.0


@policy(about="the ingress itself, cheapest admissible service", reads_servers=False)
def local(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """The ingress server, cheapest admissible service; shed if it hosts none."""
    offer(table, 0.0)
    ingress = int(table.context.ingress)
    here = -1
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0 and server_of(table, r) == ingress:
            here = r
    clear(table)
    if here >= 0:
        table.scores[here] = 1.0
    return 1.0


@policy(about="of two random servers the one with fewer of our requests (P2C)", parameters=(SHARE,))
def least_outstanding(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Power of two choices: two servers drawn without replacement, fewer of our outstanding wins.

    A tie goes to the first drawn. Envoy's least_request with equal weights.
    """
    hosts = offer(table, params.share)
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            table.scores[r] = -table.servers[server_of(table, r)].outstanding
    return power_of_two(table, hosts, rng)


@policy(about="least predicted latency", reads_servers=False)
def earliest_completion(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """The admissible (server, service, form) of least predicted latency. It never sheds."""
    shed = table.mask.size - 1
    for r in range(shed):
        latency = table.rows.latency[r]  # read in any case: then the loop is vectorised
        table.scores[r] = -latency if table.mask[r] != 0 else -math.inf
    table.scores[shed] = -math.inf
    return 1.0


@policy(about="the most accurate service predicted to meet the deadline", reads_servers=False)
def most_accurate_feasible(
    table: CandidateTable, params: Record, memory: Memory, rng: Array
) -> float:
    """The most accurate one predicted within the deadline, the earlier of equals; if none is, the
    earliest."""
    clear(table)
    deadline = table.context.deadline
    for r in range(table.mask.size - 1):
        if table.mask[r] == 1:
            latency = table.rows.latency[r]
            # Accuracies differ by over 1e-4; a feasible latency is under an hour.
            bonus = 1e9 * (1.0 + table.rows.accuracy[r]) if latency <= deadline else 0.0
            table.scores[r] = bonus - latency
    return 1.0
