"""Prequal: a pool of probe replies, hot and cold servers, reuse and removal. Compiled.

Wydrowski, Kleinberg, Rumble, Archer: Load is not what you should balance: introducing Prequal,
NSDI'24. A probe's reply is (requests in flight, latency near that number of requests). Here the
reply is what the observation offers at that moment: the corrected requests in flight (`rif`) and
the mean response at that level (`rif_response`), at no cost in messages and with the age of the
server's report. Otherwise the pool ages as published: between two probes of a server its entry
knows only what this rule has added to it.
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
        about="of recent requests in flight above which a server is hot: the paper's 2^(−1/4)",
    ),
    Parameter(
        name="pool",
        default=16.0,
        low=2.0,
        high=16.0,
        unit="entries",
        about="at most (the paper's 16), and at most half as many as there are servers, else "
        "the reuse rule divides by nothing; at least 2",
    ),
    Parameter(
        name="probes",
        default=3.0,
        low=1.0,
        high=5.0,
        unit="per request",
        about="the paper's 3; a whole number",
    ),
    Parameter(
        name="age",
        default=1.0,
        low=0.05,
        high=5.0,
        unit="s",
        about="after which an entry is dropped: the paper's 1 s",
        log=True,
    ),
    Parameter(
        name="delta",
        default=1.0,
        low=0.0,
        high=4.0,
        about="of the reuse rule: the paper's 1",
    ),
    Parameter(
        name="reuse",
        default=4.0,
        low=1.0,
        high=16.0,
        unit="times",
        about="an entry is used at most: for fleets so small that the paper's rule has no bound",
    ),
    Parameter(
        name="idle",
        default=0.1,
        low=0.01,
        high=1.0,
        unit="s",
        about="without a request after which probes go out all the same: a tenth of the age limit",
        log=True,
    ),
)
POOL_MAX = 16
RING = 64
"""Replies that the quantile is taken over: about twenty requests' worth, as the load moves."""
ENTRY = np.dtype(
    [
        ("owner", "f8"),  # server + 1; 0: empty
        ("rif", "f8"),  # requests in flight
        ("latency", "f8"),  # s
        ("at", "f8"),  # when it was probed
        ("uses", "f8"),  # left
    ]
)
MEMORY = np.dtype(
    [
        ("pool", ENTRY, POOL_MAX),
        ("ring", "f8", RING),  # requests in flight of recent replies
        ("filled", "f8"),  # replies in the ring
        ("next", "f8"),  # where the next reply goes
        ("decided_at", "f8"),  # when the last decision was made
        ("started", "f8"),  # 1 after the first decision
        ("turn", "f8"),  # to be removed: 0 the oldest, 1 the worst
        ("cursor", "f8"),  # server that the next idle probe goes to
    ]
)


class PoolSettings(NamedTuple):
    """The parameters `PREQUAL`."""

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
    """m of the paper: the parameter, but at most half as many as there are servers."""
    return max(2, min(POOL_MAX, int(settings.pool), servers // 2))


@jit
def reuse_limit(settings: PoolSettings, servers: int) -> float:
    """How often an entry may be used: max(1, (1 + δ) / ((1 − m/n)·r_probe − r_remove))."""
    spare = (1.0 - pool_size(settings, servers) / servers) * settings.probes - 1.0
    if spare <= 0.0:
        return settings.reuse
    return min(settings.reuse, max(1.0, (1.0 + settings.delta) / spare))


@jit
def probe(
    table: CandidateTable, settings: PoolSettings, memory: Memory, server: int, spin: float
) -> None:
    """Take a reply of `server` into the pool: in place of its last one, in an empty place, or in
    the oldest's. `spin` in [0, 1) rounds the number of its uses."""
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
    """Whether `rif` is above the quantile of recent replies: at least so many are below it."""
    filled = int(memory.fleet.filled)
    ring = memory.fleet.ring
    below_it = 0
    for i in range(filled):
        if ring[i] < rif:
            below_it += 1
    return below_it > 0 and below_it >= settings.quantile * filled


@jit
def remove_one(settings: PoolSettings, memory: Memory) -> None:
    """Take an entry out, in turn the oldest and the worst: the hot one of most requests in flight,
    or if none is hot the one of highest latency."""
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
    """The pool's entry to use among those of hosts (hot-cold lexicographic rule), ready in the
    scores; −1 if fewer than two are usable."""
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
    """Hot-cold lexicographic choice from the pool, then this request's probes.

    As in the paper's asynchronous mode the probes come too late for their own request. So the
    choice is certain given the pool (propensity 1), but for the random one when the pool is short.
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
        # What idle probing has brought in meanwhile; in turn, so that nothing is drawn here.
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

    # Probes: so many hosts, uniformly without replacement (selection sampling, Knuth 3.4.2 S).
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
    about="from a pool of probes the fastest of those not hot (Prequal)",
    parameters=PREQUAL,
    memory=MEMORY,
)
def prequal(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """The choice of `from_pool`."""
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
