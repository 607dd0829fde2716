"""Prequal: a pool of probe replies, hot and cold servers, reuse and removal. Compiled.

Wydrowski, Kleinberg, Rumble, Archer: Load is not what you should balance: introducing Prequal,
NSDI'24. A probe's reply is (requests in flight, latency near that number of requests). Here the
reply is what the observation offers at that moment: the corrected requests in flight (`rif`) and
the mean response at that level (`rif_response`), at no cost in messages and with the age of the
server's report. Otherwise the pool ages as published: between two probes of a server its entry
knows only what this rule has added to it.

Memory: `POOL_MAX` entries, the ring of recent requests in flight, five counters.
"""

from __future__ import annotations

import math

from edgewise.compile import jit
from edgewise.fleet.arrays import Array
from edgewise.fleet.rng import below, uniform
from edgewise.fleet.table import C_NOW, S_RESPONSE, S_RIF, S_RIF_RESPONSE, S_UP, CandidateTable
from edgewise.policy.base import Parameter
from edgewise.policy.servers import (
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
        unit="",
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
        unit="",
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
SHARE_, QUANTILE, POOL, PROBES, AGE, DELTA, REUSE, IDLE = range(len(PREQUAL))

POOL_MAX = 16
ENTRY = 5
OWNER, RIF, LATENCY, AT, USES = range(ENTRY)
"""Server + 1, 0 = empty; requests in flight; s; when probed; uses left."""
RING = 64
"""Replies that the quantile is taken over: about twenty requests' worth, as the load moves."""
HEAD = POOL_MAX * ENTRY + RING
FILLED, NEXT, LAST, STARTED, TURN, CURSOR = range(HEAD, HEAD + 6)
"""Replies in the ring; where the next goes; when the last decision was; 1 after the first; whose
turn it is to be removed, 0 oldest and 1 worst; the server that an idle probe goes to next."""
MEMORY = HEAD + 6


@jit
def pool_size(params: Array, servers: int) -> int:
    """m of the paper: the parameter, but at most half as many as there are servers."""
    return max(2, min(POOL_MAX, int(params[POOL]), servers // 2))


@jit
def reuse_limit(params: Array, servers: int) -> float:
    """How often an entry may be used: max(1, (1 + δ) / ((1 − m/n)·r_probe − r_remove))."""
    spare = (1.0 - pool_size(params, servers) / servers) * params[PROBES] - 1.0
    if spare <= 0.0:
        return params[REUSE]  # type: ignore[no-any-return]
    return min(params[REUSE], max(1.0, (1.0 + params[DELTA]) / spare))  # type: ignore[no-any-return]


@jit
def probe(table: CandidateTable, params: Array, state: Array, server: int, spin: float) -> None:
    """Take a reply of `server` into the pool: in place of its last one, in an empty place, or in
    the oldest's. `spin` in [0, 1) rounds the number of its uses."""
    now = table.context[C_NOW]
    size = pool_size(params, table.servers.shape[0])
    place = -1
    oldest = 0
    for i in range(size):
        entry = state[ENTRY * i : ENTRY * (i + 1)]
        if entry[OWNER] == server + 1.0:
            place = i
            break
        if place < 0 and entry[OWNER] == 0.0:
            place = i
        if entry[AT] < state[ENTRY * oldest + AT]:
            oldest = i
    if place < 0:
        place = oldest
    known = table.servers[server]
    entry = state[ENTRY * place : ENTRY * (place + 1)]
    entry[OWNER] = server + 1.0
    entry[RIF] = known[S_RIF]
    entry[LATENCY] = known[S_RIF_RESPONSE] if known[S_RIF_RESPONSE] > 0.0 else known[S_RESPONSE]
    entry[AT] = now
    entry[USES] = math.floor(reuse_limit(params, table.servers.shape[0]) + spin)
    ring = state[POOL_MAX * ENTRY : HEAD]
    ring[int(state[NEXT])] = known[S_RIF]
    state[NEXT] = (state[NEXT] + 1.0) % RING
    state[FILLED] = min(float(RING), state[FILLED] + 1.0)


@jit
def is_hot(params: Array, state: Array, rif: float) -> bool:
    """Whether `rif` is above the quantile of recent replies: at least so many are below it."""
    filled = int(state[FILLED])
    below_it = 0
    for i in range(filled):
        if state[POOL_MAX * ENTRY + i] < rif:
            below_it += 1
    return below_it > 0 and below_it >= params[QUANTILE] * filled


@jit
def remove_one(params: Array, state: Array) -> None:
    """Take an entry out, in turn the oldest and the worst: the hot one of most requests in flight,
    or if none is hot the one of highest latency."""
    gone = -1
    hot = False
    for i in range(POOL_MAX):
        entry = state[ENTRY * i : ENTRY * (i + 1)]
        if entry[OWNER] == 0.0:
            continue
        best = state[ENTRY * max(gone, 0) : ENTRY * (max(gone, 0) + 1)]
        if state[TURN] == 0.0:
            if gone < 0 or entry[AT] < best[AT]:
                gone = i
        elif is_hot(params, state, entry[RIF]):
            if not hot or entry[RIF] > best[RIF]:
                gone = i
            hot = True
        elif not hot and (gone < 0 or entry[LATENCY] > best[LATENCY]):
            gone = i
    if gone >= 0:
        state[ENTRY * gone + OWNER] = 0.0
        state[TURN] = 1.0 - state[TURN]


@jit
def choose(table: CandidateTable, params: Array, state: Array) -> int:
    """The pool's entry to use among those of hosts (hot-cold lexicographic rule), ready in the
    scores; −1 if fewer than two are usable."""
    usable = 0
    best = -1
    best_row = -1
    best_cold = False
    for r in range(table.mask.size - 1):
        if table.scores[r] != 0.0:
            continue
        owner = server_of(table, r) + 1.0
        for i in range(POOL_MAX):
            entry = state[ENTRY * i : ENTRY * (i + 1)]
            if entry[OWNER] != owner:
                continue
            usable += 1
            cold = not is_hot(params, state, entry[RIF])
            better = best < 0 or (cold and not best_cold)
            if best >= 0 and cold == best_cold:
                key = LATENCY if cold else RIF
                better = entry[key] < state[ENTRY * best + key]
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
def prequal(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Hot-cold lexicographic choice from the pool, then this request's probes. params: `PREQUAL`.

    As in the paper's asynchronous mode the probes come too late for their own request. So the
    choice is certain given the pool (propensity 1), but for the random one when the pool is short.
    """
    hosts = offer(table, params[SHARE_])
    now = table.context[C_NOW]
    count = table.servers.shape[0]
    for i in range(POOL_MAX):
        entry = state[ENTRY * i : ENTRY * (i + 1)]
        if entry[OWNER] > 0.0 and (
            now - entry[AT] > params[AGE] or table.servers[int(entry[OWNER]) - 1, S_UP] == 0.0
        ):
            entry[OWNER] = 0.0
    if state[STARTED] > 0.0 and now - state[LAST] > params[IDLE]:
        # What idle probing has brought in meanwhile; in turn, so that nothing is drawn here.
        for _ in range(min(count, int(params[PROBES]))):
            s = int(state[CURSOR])
            state[CURSOR] = (s + 1) % count
            if table.servers[s, S_UP] > 0.0:
                probe(table, params, state, s, 0.0)
    state[STARTED] = 1.0
    state[LAST] = now
    if hosts == 0:
        return 1.0

    chance = 1.0
    used = choose(table, params, state)
    if used >= 0:
        entry = state[ENTRY * used : ENTRY * (used + 1)]
        entry[RIF] += 1.0
        entry[USES] -= 1.0
        if entry[USES] <= 0.0:
            entry[OWNER] = 0.0
    else:
        table.scores[nth_offer(table, below(draws, hosts))] = 1.0
        chance = 1.0 / hosts
    remove_one(params, state)

    # Probes: so many hosts, uniformly without replacement (selection sampling, Knuth 3.4.2 S).
    wanted = min(hosts, int(params[PROBES]))
    left = hosts
    for r in range(table.mask.size - 1):
        if wanted == 0:
            break
        if table.scores[r] > -math.inf:
            if uniform(draws) * left < wanted:
                probe(table, params, state, server_of(table, r), uniform(draws))
                wanted -= 1
            left -= 1
    return chance


PREQUAL_ADMISSION = (*PREQUAL, *ADMISSION)


@jit
def prequal_admission(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """`prequal` with admission."""
    chance = prequal(table, params, state, draws)
    if not admit(table, params) and chance < 1.0:
        offer(table, params[SHARE_])
        chance = chance_of_refusal(table, params, False)
        refuse(table)
    return chance
