"""Server-only rules of the literature and of public proxies, as kernels.

What they share (hosts, the service on the chosen one, two choices, admission) is in
`edgewise.policy.servers`; exact rules, sources and deviations in `docs/policies.md`. Loads are the
corrected ones of the observation: no rule is made to forget what the balancer itself has sent.
"""

from __future__ import annotations

import math

from edgewise.compile import jit
from edgewise.fleet.arrays import Array
from edgewise.fleet.rng import below, uniform
from edgewise.fleet.table import (
    C_INGRESS,
    C_NOW,
    R_SERVICE_TIME,
    S_OUTSTANDING,
    S_PEAK,
    S_QUEUED,
    S_RESPONSE,
    S_RIF,
    S_SPEED,
    S_UTILISATION,
    S_WORKERS,
    CandidateTable,
)
from edgewise.policy.base import Parameter
from edgewise.policy.servers import (
    ADMISSION,
    SHARE,
    admit,
    chance_of_refusal,
    nth_offer,
    offer,
    power_of_two,
    refuse,
    reported_at,
    server_of,
)

NEW_REPORT = 1e-5
"""s by which a report must be newer to count as another one: a stamp since 1970 has 0.2 µs."""


# -- queues ---------------------------------------------------------------------------------------


@jit
def jsq(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Join the shortest queue: fewest requests believed to wait or run. params: share."""
    offer(table, params[0])
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            table.scores[r] = -table.servers[server_of(table, r), S_RIF]
    return 1.0


@jit
def sed(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Shortest expected delay: least (outstanding + 1) / (speed × workers). params: share."""
    offer(table, params[0])
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            server = table.servers[server_of(table, r)]
            rate = server[S_SPEED] * server[S_WORKERS]
            table.scores[r] = -(server[S_OUTSTANDING] + 1.0) / rate
    return 1.0


SED_ADMISSION = (SHARE, *ADMISSION)


@jit
def sed_admission(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """`sed` with admission."""
    sed(table, params, state, draws)
    admit(table, params)
    return 1.0


@jit
def jiq(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Join-Idle-Queue: the server that has waited longest since it reported idle, and it leaves the
    queue; a host drawn uniformly if none waits. params: share.

    state[0] counts joins; of server s: state[1 + 2s] its last report seen, state[2 + 2s] its place
    in the queue, 0 = not in it.
    """
    hosts = offer(table, params[0])
    for s in range(table.servers.shape[0]):
        at = reported_at(table, s)
        if at > state[1 + 2 * s] + NEW_REPORT:
            state[1 + 2 * s] = at
            if table.servers[s, S_RIF] == 0.0 and state[2 + 2 * s] == 0.0:
                state[0] += 1.0
                state[2 + 2 * s] = state[0]
    if hosts == 0:
        return 1.0
    first = -1
    place = math.inf
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            joined = state[2 + 2 * server_of(table, r)]
            if 0.0 < joined < place:
                first = r
                place = joined
    if first >= 0:
        state[2 + 2 * server_of(table, first)] = 0.0
        table.scores[first] = 1.0
        return 1.0
    table.scores[nth_offer(table, below(draws, hosts))] = 1.0
    return 1.0 / hosts


# -- latencies ------------------------------------------------------------------------------------

PENALTY = 1e5
"""s; load of a server of cost 0 with requests pending: more than any response can give. Finagle has
Long.MaxValue >> 16 ns, 39 h."""
PEAK_EWMA = (
    SHARE,
    Parameter(
        name="cold",
        default=1.0,
        low=0.01,
        high=10.0,
        unit="s",
        about="response assumed of a server that has not answered yet: 1 s as in Finagle and "
        "tower, so that a cold server is tried but not flooded; 0 = Finagle's penalty alone",
        log=True,
    ),
)


@jit
def peak_loads(table: CandidateTable, params: Array) -> int:
    """Score hosts by minus Finagle's load, cost × (pending + 1); returns how many there are."""
    hosts = offer(table, params[0])
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            server = table.servers[server_of(table, r)]
            pending = server[S_OUTSTANDING]
            cost = server[S_PEAK] if server[S_PEAK] > 0.0 else params[1]
            load = PENALTY + pending if cost == 0.0 and pending > 0.0 else cost * (pending + 1.0)
            table.scores[r] = -load
    return hosts


@jit
def peak_ewma(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Of two random hosts the one of lower load. params: `PEAK_EWMA`."""
    return power_of_two(table, peak_loads(table, params), draws)


PEAK_EWMA_ADMISSION = (*PEAK_EWMA, *ADMISSION)


@jit
def peak_ewma_admission(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """`peak_ewma` with admission."""
    chance = peak_ewma(table, params, state, draws)
    if not admit(table, params):
        peak_loads(table, params)
        chance = chance_of_refusal(table, params, True)
        refuse(table)
    return chance


C3 = (
    SHARE,
    Parameter(
        name="clients",
        default=1.0,
        low=0.0,
        high=10.0,
        unit="balancers",
        about="by which our own outstanding requests are multiplied: one balancer by default",
    ),
    Parameter(
        name="queue_memory",
        default=0.3,
        low=0.05,
        high=1.0,
        unit="",
        about="weight of a new report in the mean queue: Elasticsearch's 0.3",
    ),
    Parameter(
        name="exponent",
        default=3.0,
        low=1.0,
        high=4.0,
        unit="",
        about="of the queue estimate: cubic as published",
    ),
)


@jit
def c3(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Elasticsearch's form of C3: least R − s + q̂³·s, q̂ = 1 + outstanding × clients + q̄.

    params: `C3`. Of server s: state[3s] its last report seen, state[3s + 1] the EWMA q̄ of its
    reported queue, state[3s + 2] 1 once there was a report.
    """
    offer(table, params[0])
    for s in range(table.servers.shape[0]):
        at = reported_at(table, s)
        if state[3 * s + 2] == 0.0:
            state[3 * s + 1] = table.servers[s, S_QUEUED]
            state[3 * s + 2] = 1.0
            state[3 * s] = at
        elif at > state[3 * s] + NEW_REPORT:
            state[3 * s + 1] += params[2] * (table.servers[s, S_QUEUED] - state[3 * s + 1])
            state[3 * s] = at
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            s = server_of(table, r)
            service = table.rows[r, R_SERVICE_TIME]
            queue = 1.0 + table.servers[s, S_OUTSTANDING] * params[1] + state[3 * s + 1]
            rank = table.servers[s, S_RESPONSE] - service + queue ** params[3] * service
            table.scores[r] = -rank
    return 1.0


# -- the near before the far ----------------------------------------------------------------------

RAY_P2C = (
    SHARE,
    Parameter(
        name="max_ongoing",
        default=5.0,
        low=1.0,
        high=100.0,
        unit="requests/worker",
        about="that a replica takes: Ray's default max_ongoing_requests; the same node is "
        "preferred until its replicas have as many",
        log=True,
    ),
)


@jit
def ray_p2c(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """The ingress while it has room, else of two random hosts the one of fewer requests.

    params: `RAY_P2C`. Each worker counts as a replica.
    """
    hosts = offer(table, params[0])
    ingress = int(table.context[C_INGRESS])
    here = -1
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            s = server_of(table, r)
            queue = table.servers[s, S_RIF]
            table.scores[r] = -queue
            if s == ingress and queue < params[1] * table.servers[s, S_WORKERS]:
                here = r
    if here >= 0:
        table.scores[here] = 1.0
        return 1.0
    return power_of_two(table, hosts, draws)


LOAD_AWARE_LOCALITY = (
    SHARE,
    Parameter(
        name="variance",
        default=0.1,
        low=0.0,
        high=0.5,
        unit="utilisation",
        about="by which the ingress may exceed the others' mean and still keep all: Envoy's 0.1",
    ),
    Parameter(
        name="memory",
        default=0.3,
        low=0.05,
        high=1.0,
        unit="",
        about="weight of a new utilisation in its mean (BASELINES 0.3; Envoy's is 0.18)",
    ),
    Parameter(
        name="probe",
        default=0.03,
        low=0.0,
        high=0.3,
        unit="",
        about="share that goes to the others all the same: Envoy's 3 %, to keep data fresh",
    ),
    Parameter(
        name="period",
        default=1.0,
        low=0.1,
        high=5.0,
        unit="s",
        about="between two updates of the means: Envoy's 1 s",
        log=True,
    ),
)


@jit
def load_aware_locality(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Envoy's: stay at the ingress unless it is busier than the others, then spread by headroom.

    params: `LOAD_AWARE_LOCALITY`. state[0] when the means were last updated, state[1] 1 once they
    were; state[2 + s] the mean utilisation of server s.
    """
    hosts = offer(table, params[0])
    servers = table.servers
    now = table.context[C_NOW]
    if state[1] == 0.0 or now - state[0] >= params[4]:
        weight = params[2] if state[1] > 0.0 else 1.0
        for s in range(servers.shape[0]):
            state[2 + s] += weight * (servers[s, S_UTILISATION] - state[2 + s])
        state[0] = now
        state[1] = 1.0
    if hosts == 0:
        return 1.0

    ingress = int(table.context[C_INGRESS])
    here = -1
    far = 0.0  # workers elsewhere, …
    far_busy = 0.0  # … of them busy, …
    room = 0.0  # … and idle workers of all hosts
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            s = server_of(table, r)
            workers = servers[s, S_WORKERS]
            room += workers * max(0.0, 1.0 - state[2 + s])
            if s == ingress:
                here = r
            else:
                far += workers
                far_busy += workers * state[2 + s]
    stay = here >= 0 and (far == 0.0 or state[2 + ingress] <= far_busy / far + params[1])
    all_workers = far + (servers[ingress, S_WORKERS] if here >= 0 else 0.0)

    aim = uniform(draws)
    chosen = -1
    chance = 0.0
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            s = server_of(table, r)
            workers = servers[s, S_WORKERS]
            if stay and r == here:
                part = 1.0 - (params[3] if far > 0.0 else 0.0)
            elif stay:
                part = params[3] * workers / far
            elif room > 0.0:
                part = workers * max(0.0, 1.0 - state[2 + s]) / room
            else:
                part = workers / all_workers
            if part > 0.0 and (chosen < 0 or aim >= 0.0):
                chosen = r
                chance = part
            aim -= part
            table.scores[r] = -state[2 + s]
    table.scores[chosen] = 1.0
    return chance
