"""The rules to beat, as kernels. Exact rules and sources: `docs/policies.md`.

A server-only rule knows nothing of models. It chooses a server among those that host an admissible
service; the service on it is then the most accurate one whose own service time is under a share
(0.4) of the deadline, else the cheapest; the photo travels as it came.
"""

from __future__ import annotations

import math

from edgewise.compiled import jit
from edgewise.fleet.draws import below
from edgewise.fleet.layout import Array
from edgewise.fleet.table import (
    C_DEADLINE,
    C_INGRESS,
    R_ACCURACY,
    R_FORM,
    R_LATENCY,
    R_SERVER,
    R_SERVICE_TIME,
    S_OUTSTANDING,
    Table,
)

SERVICE_SHARE = 0.4
"""Of the deadline, that a service's own time may take under a server-only rule (BASELINES)."""


@jit
def clear(table: Table) -> None:
    """Score every row −inf."""
    for r in range(table.scores.size):
        table.scores[r] = -math.inf


@jit
def service_on(table: Table, server: int, share: float) -> int:
    """The row a server-only rule runs on `server`, or −1 if none is admissible there."""
    limit = share * table.context[C_DEADLINE]
    accurate = -1
    cheapest = -1
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0 or table.rows[r, R_SERVER] != server or table.rows[r, R_FORM] != 0.0:
            continue
        time = table.rows[r, R_SERVICE_TIME]
        if cheapest < 0 or time < table.rows[cheapest, R_SERVICE_TIME]:
            cheapest = r
        if time < limit and (
            accurate < 0 or table.rows[r, R_ACCURACY] > table.rows[accurate, R_ACCURACY]
        ):
            accurate = r
    return accurate if accurate >= 0 else cheapest


@jit
def count_hosts(table: Table) -> int:
    """How many servers host an admissible service."""
    hosts = 0
    for s in range(table.servers.shape[0]):
        if service_on(table, s, 0.0) >= 0:
            hosts += 1
    return hosts


@jit
def nth_host(table: Table, n: int) -> int:
    """The n-th server (from 0) that hosts an admissible service; −1 if there are fewer."""
    for s in range(table.servers.shape[0]):
        if service_on(table, s, 0.0) >= 0:
            if n == 0:
                return s
            n -= 1
    return -1


@jit
def choose_server(table: Table, server: int, share: float) -> None:
    """Score the rule's row on `server` 1; the other hosts' rows 0 stay as fallbacks."""
    for s in range(table.servers.shape[0]):
        row = service_on(table, s, share)
        if row >= 0:
            table.scores[row] = 1.0 if s == server else 0.0


@jit
def random(table: Table, params: Array, state: Array, draws: Array) -> float:
    """A server drawn uniformly from those that host an admissible service."""
    clear(table)
    hosts = count_hosts(table)
    if hosts == 0:
        return 1.0
    choose_server(table, nth_host(table, below(draws, hosts)), params[0])
    return 1.0 / hosts


@jit
def round_robin(table: Table, params: Array, state: Array, draws: Array) -> float:
    """The servers in turn, skipping those that host no admissible service. state[0]: next one."""
    clear(table)
    count = table.servers.shape[0]
    for step in range(count):
        s = (int(state[0]) + step) % count
        if service_on(table, s, 0.0) >= 0:
            choose_server(table, s, params[0])
            state[0] = (s + 1) % count
            return 1.0
    return 1.0


@jit
def local(table: Table, params: Array, state: Array, draws: Array) -> float:
    """The ingress server, cheapest admissible service; shed if it hosts none."""
    clear(table)
    row = service_on(table, int(table.context[C_INGRESS]), 0.0)
    if row >= 0:
        table.scores[row] = 1.0
    return 1.0


@jit
def least_outstanding(table: Table, params: Array, state: Array, draws: Array) -> float:
    """Power of two choices: two servers drawn without replacement, fewer of our outstanding wins.

    A tie goes to the first drawn. Envoy's least_request with equal weights.
    """
    clear(table)
    hosts = count_hosts(table)
    if hosts == 0:
        return 1.0
    if hosts == 1:
        choose_server(table, nth_host(table, 0), params[0])
        return 1.0
    i = below(draws, hosts)
    j = below(draws, hosts - 1)
    if j >= i:
        j += 1
    a, b = nth_host(table, i), nth_host(table, j)
    load_a = table.servers[a, S_OUTSTANDING]
    load_b = table.servers[b, S_OUTSTANDING]
    winner = b if load_b < load_a else a
    choose_server(table, winner, params[0])
    # The propensity: of the ordered pairs, those in which the winner wins.
    wins = 0.0
    load = table.servers[winner, S_OUTSTANDING]
    for n in range(hosts):
        other = nth_host(table, n)
        if other != winner:
            if load < table.servers[other, S_OUTSTANDING]:
                wins += 2.0
            elif load == table.servers[other, S_OUTSTANDING]:
                wins += 1.0
    return wins / (hosts * (hosts - 1))


@jit
def earliest_completion(table: Table, params: Array, state: Array, draws: Array) -> float:
    """The admissible (server, service, form) of least predicted latency. It never sheds."""
    clear(table)
    for r in range(table.mask.size - 1):
        if table.mask[r] == 1:
            table.scores[r] = -table.rows[r, R_LATENCY]
    return 1.0


@jit
def most_accurate_feasible(table: Table, params: Array, state: Array, draws: Array) -> float:
    """The most accurate one predicted within the deadline, the earlier of equals; if none is, the
    earliest."""
    clear(table)
    deadline = table.context[C_DEADLINE]
    for r in range(table.mask.size - 1):
        if table.mask[r] == 1:
            latency = table.rows[r, R_LATENCY]
            # Accuracies differ by over 1e-4; a feasible latency is under an hour.
            bonus = 1e9 * (1.0 + table.rows[r, R_ACCURACY]) if latency <= deadline else 0.0
            table.scores[r] = bonus - latency
    return 1.0
