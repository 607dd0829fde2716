"""Prequal: choose from a pool of probe replies, by hot and cold servers. Compiled.

Wydrowski, Kleinberg, Rumble, Archer: Load is not what you should balance: introducing Prequal,
NSDI'24. The reply to a probe is a pair: requests in flight, and the latency near that number. Here
it comes from the candidate table: the corrected requests in flight (`rif`) and the mean response at
that number (`rif_response`). So a probe costs no message and is as old as the server's report. The
pool ages as in the paper: between two probes of a server, its entry changes only by the requests
that this rule sends there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

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
    refuse,
    server_of,
)

PREQUAL = (
    SHARE,
    Parameter(
        name="quantile",
        default=0.84,
        low=0.0,
        high=1.0,
        about="Quantile of recent requests in flight above which a server is hot. The paper "
        "uses 2^(−1/4).",
    ),
    Parameter(
        name="pool",
        default=16.0,
        low=2.0,
        high=16.0,
        unit="entries",
        about="Entries in the pool, 16 in the paper. It has at least 2, and otherwise at most half "
        "as many as there are servers: with more, the paper's limit on reuse has no value.",
    ),
    Parameter(
        name="probes",
        default=3.0,
        low=1.0,
        high=5.0,
        unit="per request",
        about="Probes for each request, rounded down. The paper uses 3.",
    ),
    Parameter(
        name="age",
        default=1.0,
        low=0.05,
        high=5.0,
        unit="s",
        about="Age at which an entry is dropped. The paper uses 1 s.",
        log=True,
    ),
    Parameter(
        name="delta",
        default=1.0,
        low=0.0,
        high=4.0,
        about="δ in the paper's limit on reuse. The paper uses 1.",
    ),
    Parameter(
        name="reuse",
        default=4.0,
        low=1.0,
        high=16.0,
        unit="times",
        about="Upper bound on the uses of an entry, for fleets too small for the paper's limit.",
    ),
    Parameter(
        name="idle",
        default=0.1,
        low=0.01,
        high=1.0,
        unit="s",
        about="Probes are sent after this long without a request. Chosen: a tenth of `age`.",
        log=True,
    ),
)
POOL_MAX = 16
RING = 64
"""Number of replies from which the quantile is computed: those of about twenty requests, so that it
follows the load."""
ENTRY = np.dtype(
    [
        ("owner", "f8"),  # index of the server + 1; 0 = empty
        ("rif", "f8"),  # requests in flight
        ("latency", "f8"),  # s
        ("at", "f8"),  # time of the probe
        ("uses", "f8"),  # uses left
    ]
)
MEMORY = np.dtype(
    [
        ("pool", ENTRY, POOL_MAX),
        ("ring", "f8", RING),  # requests in flight of recent replies
        ("filled", "f8"),  # replies in the ring
        ("next", "f8"),  # index of the next reply in the ring
        ("decided_at", "f8"),  # time of the last decision
        ("started", "f8"),  # 1 after the first decision
        ("turn", "f8"),  # entry to remove next: 0 = the oldest, 1 = the worst
        ("cursor", "f8"),  # server of the next idle probe
    ]
)


class PoolSettings(NamedTuple):
    """The values of the parameters `PREQUAL`.

    Not a record: numba would take that of `prequal_admission`, which begins alike, for a subtype,
    and warns that this is experimental.
    """

    share: float
    quantile: float
    pool: float
    probes: float
    age: float
    delta: float
    reuse: float
    idle: float


@jit
def pool_size(settings: PoolSettings, servers: int) -> int:
    """The size of the pool, m in the paper: at most half the number of servers, but at least 2."""
    return max(2, min(POOL_MAX, int(settings.pool), servers // 2))


@jit
def reuse_limit(settings: PoolSettings, servers: int) -> float:
    """The limit on the uses of an entry: max(1, (1 + δ) / ((1 − m/n)·r_probe − r_remove))."""
    spare = (1.0 - pool_size(settings, servers) / servers) * settings.probes - 1.0
    if spare <= 0.0:
        return settings.reuse
    return min(settings.reuse, max(1.0, (1.0 + settings.delta) / spare))


@jit
def probe(
    table: CandidateTable, settings: PoolSettings, memory: Memory, server: int, spin: float
) -> None:
    """Probe `server`: put its reply into the pool.

    It replaces the server's earlier reply if there is one; otherwise it takes an empty place, or
    that of the oldest entry. `spin` in [0, 1) decides how the limit on its uses is rounded.
    """
    now = table.context.now
    size = pool_size(settings, table.servers.shape[0])
    pool = memory.fleet.pool
    place = -1
    oldest = 0
    for i in range(size):
        entry = pool[i]
        if entry.owner == server + 1.0:
            place = i
            break
        if place < 0 and entry.owner == 0.0:
            place = i
        if entry.at < pool[oldest].at:
            oldest = i
    if place < 0:
        place = oldest
    known = table.servers[server]
    entry = pool[place]
    entry.owner = server + 1.0
    entry.rif = known.rif
    entry.latency = known.rif_response if known.rif_response > 0.0 else known.response
    entry.at = now
    entry.uses = math.floor(reuse_limit(settings, table.servers.shape[0]) + spin)
    fleet = memory.fleet
    fleet.ring[int(fleet.next)] = known.rif
    fleet.next = (fleet.next + 1.0) % RING
    fleet.filled = min(float(RING), fleet.filled + 1.0)


@jit
def is_hot(settings: PoolSettings, memory: Memory, rif: float) -> bool:
    """Whether `rif` is above the quantile: at least that share of recent replies is below it."""
    filled = int(memory.fleet.filled)
    ring = memory.fleet.ring
    below_it = 0
    for i in range(filled):
        if ring[i] < rif:
            below_it += 1
    return below_it > 0 and below_it >= settings.quantile * filled


@jit
def remove_one(settings: PoolSettings, memory: Memory) -> None:
    """Remove an entry: the oldest and the worst in turn.

    The worst is the hot entry with the most requests in flight, or the one of highest latency if
    none is hot.
    """
    pool = memory.fleet.pool
    gone = -1
    hot = False
    for i in range(POOL_MAX):
        entry = pool[i]
        if entry.owner == 0.0:
            continue
        best = pool[max(gone, 0)]
        if memory.fleet.turn == 0.0:
            if gone < 0 or entry.at < best.at:
                gone = i
        elif is_hot(settings, memory, entry.rif):
            if not hot or entry.rif > best.rif:
                gone = i
            hot = True
        elif not hot and (gone < 0 or entry.latency > best.latency):
            gone = i
    if gone >= 0:
        pool[gone].owner = 0.0
        memory.fleet.turn = 1.0 - memory.fleet.turn


@jit
def choose(table: CandidateTable, settings: PoolSettings, memory: Memory) -> int:
    """Choose among the hosts in the pool by the hot-cold lexicographic rule, and score the row.

    Returns the index of the entry in the pool; −1 if fewer than two can be used.
    """
    pool = memory.fleet.pool
    usable = 0
    best = -1
    best_row = -1
    best_cold = False
    for r in range(table.mask.size - 1):
        if table.scores[r] != 0.0:
            continue
        owner = server_of(table, r) + 1.0
        for i in range(POOL_MAX):
            entry = pool[i]
            if entry.owner != owner:
                continue
            usable += 1
            cold = not is_hot(settings, memory, entry.rif)
            better = best < 0 or (cold and not best_cold)
            if best >= 0 and cold == best_cold:
                other = pool[best]
                better = entry.latency < other.latency if cold else entry.rif < other.rif
            if better:
                best = i
                best_row = r
                best_cold = cold
            break
    if usable < 2:
        return -1
    table.scores[best_row] = 1.0
    return best


@jit
def from_pool(table: CandidateTable, settings: PoolSettings, memory: Memory, rng: Array) -> float:
    """Choose from the pool, then send this request's probes; returns the propensity.

    As in the paper's asynchronous mode, the probes serve later requests. So the choice is certain
    given the pool. It is random only if fewer than two entries can be used.
    """
    hosts = offer(table, settings.share)
    now = table.context.now
    count = table.servers.shape[0]
    fleet = memory.fleet
    pool = fleet.pool
    for i in range(POOL_MAX):
        entry = pool[i]
        if entry.owner > 0.0 and (
            now - entry.at > settings.age or table.servers[int(entry.owner) - 1].up == 0.0
        ):
            entry.owner = 0.0
    if fleet.started > 0.0 and now - fleet.decided_at > settings.idle:
        # The idle probes since then. They go to the servers in turn, so that none is drawn here.
        for _ in range(min(count, int(settings.probes))):
            s = int(fleet.cursor)
            fleet.cursor = (s + 1) % count
            if table.servers[s].up > 0.0:
                probe(table, settings, memory, s, 0.0)
    fleet.started = 1.0
    fleet.decided_at = now
    if hosts == 0:
        return 1.0

    chance = 1.0
    used = choose(table, settings, memory)
    if used >= 0:
        entry = pool[used]
        entry.rif += 1.0
        entry.uses -= 1.0
        if entry.uses <= 0.0:
            entry.owner = 0.0
    else:
        table.scores[nth_offer(table, integer_below(rng, hosts))] = 1.0
        chance = 1.0 / hosts
    remove_one(settings, memory)

    # Probe hosts drawn uniformly without replacement (selection sampling, Knuth 3.4.2 S).
    wanted = min(hosts, int(settings.probes))
    left = hosts
    for r in range(table.mask.size - 1):
        if wanted == 0:
            break
        if table.scores[r] > -math.inf:
            if uniform(rng) * left < wanted:
                probe(table, settings, memory, server_of(table, r), uniform(rng))
                wanted -= 1
            left -= 1
    return chance


@policy(
    about="the fastest server that is not hot, from a pool of probes (Prequal)",
    parameters=PREQUAL,
    memory=MEMORY,
)
def prequal(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Choose from the pool (`from_pool`)."""
    settings = PoolSettings(
        params.share,
        params.quantile,
        params.pool,
        params.probes,
        params.age,
        params.delta,
        params.reuse,
        params.idle,
    )
    return from_pool(table, settings, memory, rng)


@policy(
    about="prequal, with deadline-aware service choice and admission",
    parameters=(*PREQUAL, *ADMISSION),
    memory=MEMORY,
)
def prequal_admission(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """`prequal` with admission."""
    settings = PoolSettings(
        params.share,
        params.quantile,
        params.pool,
        params.probes,
        params.age,
        params.delta,
        params.reuse,
        params.idle,
    )
    chance = from_pool(table, settings, memory, rng)
    if not admit(table, params.margin, params.threshold) and chance < 1.0:
        offer(table, params.share)
        chance = chance_of_refusal(table, params.margin, params.threshold, False)
        refuse(table)
    return chance
