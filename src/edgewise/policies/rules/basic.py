"""The simplest rules, as a baseline for all others. Compiled.

Exact rules and sources are in `docs/policies.md`. The steps that server-only rules share are in
`edgewise.policies.servers`.
"""

from __future__ import annotations

import math

from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.rng import integer_below
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, policy
from edgewise.policies.servers import SHARE, clear, nth_offer, offer, power_of_two, server_of


@policy(about="a server drawn at random", parameters=(SHARE,), reads_servers=False)
def random(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Draw a server uniformly from those that host an admissible service."""
    hosts = offer(table, params.share)
    if hosts == 0:
        return 1.0
    table.scores[nth_offer(table, integer_below(rng, hosts))] = 1.0
    return 1.0 / hosts


@policy(about="each server in turn", parameters=(SHARE,), memory=("next",), reads_servers=False)
def round_robin(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Choose each server in turn, skipping those without an admissible service.

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


@policy(about="the cheapest admissible service at the ingress", reads_servers=False)
def local(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Choose the cheapest admissible service at the ingress; shed if it hosts none."""
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


@policy(about="the one of two random servers with fewer of our requests (P2C)", parameters=(SHARE,))
def least_outstanding(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Power of two choices: of two servers drawn at random, take the one with fewer outstanding
    requests of ours.

    They are drawn without replacement, and the first one drawn wins a tie. This is Envoy's
    least_request with equal weights.
    """
    hosts = offer(table, params.share)
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            table.scores[r] = -table.servers[server_of(table, r)].outstanding
    return power_of_two(table, hosts, rng)


@policy(about="the least predicted latency", reads_servers=False)
def earliest_completion(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Choose the admissible row of least predicted latency. It never sheds."""
    shed = table.mask.size - 1
    for r in range(shed):
        latency = table.rows.latency[r]  # read for every row, so that the loop is vectorised
        table.scores[r] = -latency if table.mask[r] != 0 else -math.inf
    table.scores[shed] = -math.inf
    return 1.0


@policy(about="the most accurate service predicted to meet the deadline", reads_servers=False)
def most_accurate_feasible(
    table: CandidateTable, params: Record, memory: Memory, rng: Array
) -> float:
    """Choose the most accurate row that is predicted to meet the deadline, the earlier among
    equals. If there is none, choose the earliest row."""
    clear(table)
    deadline = table.context.deadline
    for r in range(table.mask.size - 1):
        if table.mask[r] == 1:
            latency = table.rows.latency[r]
            # Accuracies differ by more than 1e-4, and a feasible latency is below an hour.
            bonus = 1e9 * (1.0 + table.rows.accuracy[r]) if latency <= deadline else 0.0
            table.scores[r] = bonus - latency
    return 1.0
