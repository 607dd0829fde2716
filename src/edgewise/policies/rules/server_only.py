"""Server-only rules from the literature and from public proxies. Compiled.

The steps that they share (hosts, the service on a host, power of two choices, admission) are in
`edgewise.policies.servers`. Exact rules, sources and deviations are in `docs/policies.md`. All
rules see corrected loads, which include the requests sent since a server's last report.
"""

from __future__ import annotations

import math

from edgewise.compile import jit
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.rng import integer_below, uniform
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, Parameter, policy
from edgewise.policies.servers import (
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
"""s. A report counts as a new one if it is newer by this much. Times since 1970 have a resolution
of 0.2 µs."""


# -- queues ---------------------------------------------------------------------------------------


@policy(about="the server with the shortest queue", parameters=(SHARE,))
def jsq(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Join the shortest queue: choose the host with the fewest requests believed to wait or run."""
    offer(table, params.share)
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            table.scores[r] = -table.servers[server_of(table, r)].rif
    return 1.0


@jit
def offer_by_delay(table: CandidateTable, share: float) -> None:
    """Score each host by minus its expected delay."""
    offer(table, share)
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            server = table.servers[server_of(table, r)]
            rate = server.speed * server.workers
            table.scores[r] = -(server.outstanding + 1.0) / rate


@policy(
    about="the server with the shortest queue for its speed (shortest expected delay)",
    parameters=(SHARE,),
)
def sed(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Shortest expected delay: choose the least (outstanding + 1) / (speed × workers)."""
    offer_by_delay(table, params.share)
    return 1.0


@policy(
    about="sed, with deadline-aware service choice and admission",
    parameters=(SHARE, *ADMISSION),
)
def sed_admission(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """`sed` with admission."""
    offer_by_delay(table, params.share)
    admit(table, params.margin, params.threshold)
    return 1.0


@policy(
    about="a server that reported to be idle, or a random one (Join-Idle-Queue)",
    parameters=(SHARE,),
    memory=("joins",),
    memory_per_server=("reported_at", "place"),
)
def jiq(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Join-Idle-Queue: servers that report to be idle join a queue, and the first one in it is
    chosen and leaves it. If no host is in the queue, one is drawn uniformly.

    `joins` counts the joins. For each server, `reported_at` is the time of the last report seen and
    `place` its place in the queue (0 = not in it).
    """
    hosts = offer(table, params.share)
    for s in range(table.servers.shape[0]):
        at = reported_at(table, s)
        known = memory.servers[s]
        if at > known.reported_at + NEW_REPORT:
            known.reported_at = at
            if table.servers[s].rif == 0.0 and known.place == 0.0:
                memory.fleet.joins += 1.0
                known.place = memory.fleet.joins
    if hosts == 0:
        return 1.0
    first = -1
    place = math.inf
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            joined = memory.servers[server_of(table, r)].place
            if 0.0 < joined < place:
                first = r
                place = joined
    if first >= 0:
        memory.servers[server_of(table, first)].place = 0.0
        table.scores[first] = 1.0
        return 1.0
    table.scores[nth_offer(table, integer_below(rng, hosts))] = 1.0
    return 1.0 / hosts


# -- latencies ------------------------------------------------------------------------------------

PENALTY = 1e5
"""s. Load of a server of cost 0 with requests pending, larger than any response time can give.
Finagle uses Long.MaxValue >> 16 ns, or 39 h."""
PEAK_EWMA = (
    SHARE,
    Parameter(
        name="cold",
        default=1.0,
        low=0.01,
        high=10.0,
        unit="s",
        about="Response time assumed for a server that has not answered yet. Finagle and tower use "
        "1 s, so that a cold server is tried but not flooded. 0 leaves only Finagle's penalty.",
        log=True,
    ),
)


@jit
def offer_by_peak(table: CandidateTable, share: float, cold: float) -> int:
    """Score each host by minus its load as in Finagle, cost × (pending + 1); returns the number of
    hosts."""
    hosts = offer(table, share)
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            server = table.servers[server_of(table, r)]
            pending = server.outstanding
            cost = server.peak if server.peak > 0.0 else cold
            load = PENALTY + pending if cost == 0.0 and pending > 0.0 else cost * (pending + 1.0)
            table.scores[r] = -load
    return hosts


@policy(
    about="the one of two random servers with less peak latency × pending requests (Finagle)",
    parameters=PEAK_EWMA,
)
def peak_ewma(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Choose the host of lower load from two drawn at random."""
    return power_of_two(table, offer_by_peak(table, params.share, params.cold), rng)


@policy(
    about="peak_ewma, with deadline-aware service choice and admission",
    parameters=(*PEAK_EWMA, *ADMISSION),
)
def peak_ewma_admission(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """`peak_ewma` with admission."""
    chance = power_of_two(table, offer_by_peak(table, params.share, params.cold), rng)
    if not admit(table, params.margin, params.threshold):
        offer_by_peak(table, params.share, params.cold)
        chance = chance_of_refusal(table, params.margin, params.threshold, True)
        refuse(table)
    return chance


@policy(
    about="the server with the least response time plus a cubic queue term (C3, Elasticsearch)",
    parameters=(
        SHARE,
        Parameter(
            name="clients",
            default=1.0,
            low=0.0,
            high=10.0,
            unit="balancers",
            about="Number of balancers like this one, by which our own outstanding requests are "
            "multiplied.",
        ),
        Parameter(
            name="queue_memory",
            default=0.3,
            low=0.05,
            high=1.0,
            about="Weight of a new report in the mean queue. Elasticsearch uses 0.3.",
        ),
        Parameter(
            name="exponent",
            default=3.0,
            low=1.0,
            high=4.0,
            about="Power of the queue estimate. The paper uses 3.",
        ),
    ),
    memory_per_server=("reported_at", "queue", "reported"),
)
def c3(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """C3 as in Elasticsearch: choose the least R − s + q̂³·s with q̂ = 1 + outstanding × clients + q̄.

    For each server, `reported_at` is the time of the last report seen, `queue` the EWMA q̄ of its
    reported queue, and `reported` is 1 after the first report.
    """
    offer(table, params.share)
    for s in range(table.servers.shape[0]):
        at = reported_at(table, s)
        known = memory.servers[s]
        if known.reported == 0.0:
            known.queue = table.servers[s].queued
            known.reported = 1.0
            known.reported_at = at
        elif at > known.reported_at + NEW_REPORT:
            known.queue += params.queue_memory * (table.servers[s].queued - known.queue)
            known.reported_at = at
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            s = server_of(table, r)
            service = table.rows.service_time[r]
            queue = 1.0 + table.servers[s].outstanding * params.clients + memory.servers[s].queue
            rank = table.servers[s].response - service + queue**params.exponent * service
            table.scores[r] = -rank
    return 1.0


# -- the near before the far ----------------------------------------------------------------------


@policy(
    about="the ingress while it has room, else the shorter of two random queues (Ray Serve)",
    parameters=(
        SHARE,
        Parameter(
            name="max_ongoing",
            default=5.0,
            low=1.0,
            high=100.0,
            unit="requests/worker",
            about="Requests that a replica takes at a time: Ray's default max_ongoing_requests. "
            "The ingress is preferred until all its replicas have as many.",
            log=True,
        ),
    ),
)
def ray_p2c(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Choose the ingress while it has room, otherwise the host with fewer requests from two drawn
    at random.

    Each worker counts as a replica.
    """
    hosts = offer(table, params.share)
    ingress = int(table.context.ingress)
    here = -1
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            s = server_of(table, r)
            queue = table.servers[s].rif
            table.scores[r] = -queue
            if s == ingress and queue < params.max_ongoing * table.servers[s].workers:
                here = r
    if here >= 0:
        table.scores[here] = 1.0
        return 1.0
    return power_of_two(table, hosts, rng)


@policy(
    about="the ingress unless it is busier than the others, then a server by headroom (Envoy)",
    parameters=(
        SHARE,
        Parameter(
            name="variance",
            default=0.1,
            low=0.0,
            high=0.5,
            unit="utilisation",
            about="Excess of the ingress's utilisation over the others' mean up to which it keeps "
            "its requests. Envoy uses 0.1.",
        ),
        Parameter(
            name="memory",
            default=0.3,
            low=0.05,
            high=1.0,
            about="Weight of a new report in the mean utilisation. Chosen; Envoy uses 0.18.",
        ),
        Parameter(
            name="probe",
            default=0.03,
            low=0.0,
            high=0.3,
            about="Share that goes to the others all the same, to keep data fresh. Envoy uses 3 %.",
        ),
        Parameter(
            name="period",
            default=1.0,
            low=0.1,
            high=5.0,
            unit="s",
            about="Time between two updates of the means. Envoy uses 1 s.",
            log=True,
        ),
    ),
    memory=("updated_at", "updated"),
    memory_per_server=("utilisation",),
)
def load_aware_locality(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Envoy's load-aware locality: stay at the ingress unless it is busier than the others; then
    spread the requests by headroom.

    `updated_at` is the time of the last update of the means, and `updated` is 1 after the first.
    `utilisation` is a server's mean.
    """
    hosts = offer(table, params.share)
    servers = table.servers
    now = table.context.now
    fleet = memory.fleet
    if fleet.updated == 0.0 or now - fleet.updated_at >= params.period:
        weight = params.memory if fleet.updated > 0.0 else 1.0
        for s in range(servers.shape[0]):
            mean = memory.servers[s].utilisation
            memory.servers[s].utilisation += weight * (servers[s].utilisation - mean)
        fleet.updated_at = now
        fleet.updated = 1.0
    if hosts == 0:
        return 1.0

    ingress = int(table.context.ingress)
    here = -1
    far = 0.0  # workers of the other hosts
    far_busy = 0.0  # busy workers of the other hosts
    room = 0.0  # idle workers of all hosts
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            s = server_of(table, r)
            workers = servers[s].workers
            room += workers * max(0.0, 1.0 - memory.servers[s].utilisation)
            if s == ingress:
                here = r
            else:
                far += workers
                far_busy += workers * memory.servers[s].utilisation
    busy = memory.servers[ingress].utilisation
    stay = here >= 0 and (far == 0.0 or busy <= far_busy / far + params.variance)
    all_workers = far + (servers[ingress].workers if here >= 0 else 0.0)

    aim = uniform(rng)
    chosen = -1
    chance = 0.0
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            s = server_of(table, r)
            workers = servers[s].workers
            if stay and r == here:
                part = 1.0 - (params.probe if far > 0.0 else 0.0)
            elif stay:
                part = params.probe * workers / far
            elif room > 0.0:
                part = workers * max(0.0, 1.0 - memory.servers[s].utilisation) / room
            else:
                part = workers / all_workers
            if part > 0.0 and (chosen < 0 or aim >= 0.0):
                chosen = r
                chance = part
            aim -= part
            table.scores[r] = -memory.servers[s].utilisation
    table.scores[chosen] = 1.0
    return chance
