"""Episodes of the learned policy, with all that a gradient needs of each decision. Compiled.

What goes in: a simulation and the policy's params, with a temperature: rows are drawn, not the best
taken. What comes out: a `Rollout`, arrays over decisions, over the servers that each looked at and
over their admissible rows, one decision after the other (ragged: the shed row and masked rows take
no place). `CONSTANTS` are the parts of a row's score that no learned weight changes, so that
`edgewise.learn.ppo` can say the score again as a function of the weights; `constants` follows
`policy.learned.score` line by line, and a test holds the two together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.compile import jit, jit_no_refcount
from edgewise.fleet.arrays import Array, records
from edgewise.fleet.table import CandidateTable, best_row
from edgewise.policy import learned
from edgewise.policy.learned import MEMORY, N_PARTS, O_NETWORK, O_TEMPERATURE, P, Q, W
from edgewise.policy.priced import (
    BACKLOG_SCALE,
    CAPTIVE_GAIN,
    FAILURE_WEIGHT,
    KNEE,
    LINK_GAIN,
    LINK_PRICE,
    NETWORK_MARGIN,
    NETWORK_SPREAD,
    PREPARE_SHARE,
    SERVICE_MARGIN,
    STALE_MAX,
    STALE_SPREAD,
    THRESHOLD,
    THRESHOLD_GAIN,
    WAIT_MARGIN,
    fleet_load,
    load_of,
    server_price,
)
from edgewise.sim import engine
from edgewise.sim.layout import Sim
from edgewise.sim.play import TooManyOpenRequests

CONSTANTS = (
    "network",  # s, margined
    "wait",  # s, margined
    "service",  # s, margined
    "network_spread",  # parts of the network's s
    "stale",  # s of spread
    "worth",  # accuracy^w × trust
    "cost",  # of the server, utility
    "link",  # of the link, utility
    "prepare",  # of the ingress's CPU, utility
)
ROW_WIDTH = len(CONSTANTS) + Q
"""The constants, then `PSI`."""
SEEN = W + 2 * P
"""What a value is a function of: `OMEGA`, and the mean and the maximum of `PHI`."""

_BASE, _BASE_END = learned.LAYOUT["base"].start, learned.LAYOUT["base"].stop

DECISION = np.dtype(
    [
        ("request", "i8"),
        ("time", "f8"),
        ("first_row", "i8"),
        ("rows", "i8"),
        ("first_phi", "i8"),
        ("phis", "i8"),
        ("home", "i8"),  # of `phis`: the ingress's
        ("chosen", "i8"),  # of `rows`; `rows` itself = shed
        ("log_probability", "f4"),
        ("deadline", "f4"),
        ("grace", "f4"),
        ("elapsed", "f4"),
        ("threshold", "f4"),
    ]
)


class Rollout(NamedTuple):
    """One episode, or several end to end (`joined`)."""

    decisions: Array  # DECISION (n,)
    rewards: Array  # float64 (n,): the score of the very request
    omega: Array  # float32 (n, W)
    seen: Array  # float32 (n, SEEN)
    phi: Array  # float32 (all servers, P)
    rows: Array  # float32 (all rows, ROW_WIDTH)
    server: Array  # int64 (all rows,): of `phi`


class RolloutBuffers(NamedTuple):
    """Where `record` works: features of a decision, and what `learned.score` says of its rows."""

    omega: Array
    phis: Array
    psis: Array
    added: Array
    parts: Array


@jit_no_refcount(inline=True, internal=True)
def copy(source: Array, out: Array) -> None:
    """All of `source` to the beginning of `out`."""
    for j in range(source.size):
        out[j] = source[j]


@jit_no_refcount(internal=True)
def constants(table: CandidateTable, base: Array, r: int, fleet: float, out: Array) -> None:
    """`CONSTANTS` of an admissible row; `fleet` its load above the knee."""
    server = table.servers[int(table.rows.server[r])]
    context = table.context
    network_spread = 0.5
    link_price = 0.0
    cost = server_price(server, base, fleet) * table.rows.service_time[r]
    if table.rows.local[r] == 0.0:
        full = np.tanh(server.link_backlog / base[BACKLOG_SCALE])
        link_price = base[LINK_PRICE] * (1.0 + base[LINK_GAIN] * full)
        network_spread += 0.5 * server.rate_age / (1.0 + server.rate_age)
        captive = min(1.0, server.demand_1s * table.rows.service_time[r] / server.workers)
        cost *= 1.0 + base[CAPTIVE_GAIN] * captive
    busy = min(1.0, load_of(server))
    home = table.servers[int(context.ingress)]
    out[0] = base[NETWORK_MARGIN] * (table.rows.ready[r] + table.rows.return_time[r])
    out[1] = base[WAIT_MARGIN] * table.rows.wait[r]
    out[2] = base[SERVICE_MARGIN] * table.rows.service_time[r]
    out[3] = base[NETWORK_SPREAD] * network_spread
    out[4] = base[STALE_SPREAD] * busy * min(STALE_MAX, server.report_age)
    out[5] = table.rows.accuracy[r] ** context.accuracy_weight
    out[5] *= 1.0 - base[FAILURE_WEIGHT] * server.failure
    out[6] = cost
    out[7] = link_price * table.rows.transfer[r]
    out[8] = 0.0
    if table.rows.prepare[r] > 0.0:
        out[8] = base[PREPARE_SHARE] * server_price(home, base, fleet) * table.rows.prepare[r]


@jit_no_refcount(internal=True)
def pool(phis: Array, omega: Array, out: Array) -> None:
    """`SEEN`."""
    copy(omega, out)
    for j in range(P):
        total = 0.0
        most = phis[0, j]
        for i in range(phis.shape[0]):
            total += phis[i, j]
            most = max(most, phis[i, j])
        out[W + j] = total / phis.shape[0]
        out[W + P + j] = most


@jit_no_refcount
def record(
    sim: Sim, params: Array, memory: Array, draws: Array, space: RolloutBuffers, out: Rollout
) -> tuple[int, int, int]:
    """Play to the end; returns how many decisions, phis and rows of `out` were written.

    `memory` (B, n) and `draws` (B, 1) are each balancer's own.
    """
    table = sim.table
    base = params[_BASE:_BASE_END]
    shed = table.mask.size - 1
    omega, phis, psis, added, parts = space
    n = 0
    n_phi = 0
    n_row = 0
    while engine.advance(sim) >= 0:
        b = sim.world.slots[sim.world.clock[0].current].balancer
        learned.describe_all(table, memory[b, MEMORY:], omega, phis, psis)
        if params[O_NETWORK] > 0.0:
            learned.network(table, params, phis, psis, added)
        learned.score(table, params, omega, phis, psis, added, parts)
        probability = learned.drawn(table, params[O_TEMPERATURE], draws[b])
        row = best_row(table)

        fleet = max(0.0, fleet_load(table) - base[KNEE])
        home = int(table.context.ingress)
        one = out.decisions[n]
        one.request = sim.world.slots[sim.world.clock[0].current].request
        one.time = sim.world.clock[0].now
        one.first_row = n_row
        one.first_phi = n_phi
        one.home = 0
        copy(phis[home], out.phi[n_phi])
        place = 0
        last = home
        for r in range(shed):
            if table.mask[r] == 0:
                continue
            s = int(table.rows.server[r])
            if s != last:
                last = s
                place = 0
                if s != home:
                    n_phi += 1
                    copy(phis[s], out.phi[n_phi])
                    place = n_phi - one.first_phi
            if r == row:
                one.chosen = n_row - one.first_row
            constants(table, base, r, fleet, out.rows[n_row])
            copy(psis[r], out.rows[n_row, ROW_WIDTH - Q :])
            out.server[n_row] = one.first_phi + place
            n_row += 1
        n_phi += 1
        one.rows = n_row - one.first_row
        one.phis = n_phi - one.first_phi
        if row == shed:
            one.chosen = one.rows
        one.log_probability = np.log(probability)
        one.deadline = table.context.deadline
        one.grace = table.context.grace
        one.elapsed = table.context.elapsed
        one.threshold = base[THRESHOLD] + base[THRESHOLD_GAIN] * fleet
        copy(omega, out.omega[n])
        pool(out.phi[one.first_phi : n_phi], out.omega[n], out.seen[n])
        n += 1

        if sim.world.clock[0].can_fail != 0:
            engine.rank(sim, row)
        engine.act(sim, row, probability)
    return n, n_phi, n_row


def rollout(sim: Sim, params: NDArray[np.float64], seed: int) -> Rollout:
    """Play `sim`, whose results are stored, to the end. Raises Crowded."""
    requests, servers = len(sim.world.requests), len(sim.world.servers)
    balancers = int(sim.world.clock["balancers"][0])
    widest = sim.table.mask.size - 1
    out = Rollout(
        decisions=records(requests, DECISION),
        rewards=np.empty(0),
        omega=np.empty((requests, W), np.float32),
        seen=np.empty((requests, SEEN), np.float32),
        phi=np.empty((requests * (servers + 1), P), np.float32),
        rows=np.empty((requests * widest, ROW_WIDTH), np.float32),
        server=np.empty(requests * widest, np.int64),
    )
    sim.table.settings.fill_servers = 1
    memory = np.zeros((balancers, MEMORY + learned.PER_SERVER * servers))
    draws = np.random.SeedSequence([seed, 6]).generate_state(balancers, np.uint64)[:, None]
    space = RolloutBuffers(
        omega=np.empty(W),
        phis=np.zeros((servers, P)),
        psis=np.empty((widest + 1, Q)),
        added=np.zeros((widest + 1, 2)),
        parts=np.empty((widest + 1, N_PARTS)),
    )
    n, n_phi, n_row = record(sim, params, memory, draws.copy(), space, out)
    if sim.world.clock["overflow"][0]:
        raise TooManyOpenRequests(f"over {len(sim.world.slots)} requests were open at a time")
    return Rollout(
        decisions=out.decisions[:n],
        rewards=sim.world.results["utility"][out.decisions["request"][:n]],
        omega=out.omega[:n],
        seen=out.seen[:n],
        phi=out.phi[:n_phi].copy(),
        rows=out.rows[:n_row].copy(),
        server=out.server[:n_row].copy(),
    )


def joined(rollouts: list[Rollout]) -> Rollout:
    """Several end to end, their indices moved along."""
    rows = np.cumsum([0, *(len(each.rows) for each in rollouts)])
    phis = np.cumsum([0, *(len(each.phi) for each in rollouts)])
    decisions = np.concatenate([each.decisions for each in rollouts])
    at = np.repeat(np.arange(len(rollouts)), [len(each.decisions) for each in rollouts])
    decisions["first_row"] += rows[at]
    decisions["first_phi"] += phis[at]
    return Rollout(
        decisions=decisions,
        rewards=np.concatenate([each.rewards for each in rollouts]),
        omega=np.concatenate([each.omega for each in rollouts]),
        seen=np.concatenate([each.seen for each in rollouts]),
        phi=np.concatenate([each.phi for each in rollouts]),
        rows=np.concatenate([each.rows for each in rollouts]),
        server=np.concatenate([each.server + p for each, p in zip(rollouts, phis, strict=False)]),
    )


class Picked(NamedTuple):
    """Indices of some decisions' rows and servers, numbered anew."""

    rows: Array  # of `Rollout.rows`
    of: Array  # decision of each row, 0 … m − 1
    phis: Array  # of `Rollout.phi`
    server: Array  # of each row, in `phis`
    home: Array  # of each decision, in `phis`
    chosen: Array  # row of each decision, in `rows`; −1 = shed


@jit
def pick(decisions: Array, server: Array, which: Array) -> Picked:
    """What a batch of the decisions `which` (m,) consists of."""
    n_rows = 0
    n_phis = 0
    for i in which:
        n_rows += decisions[i].rows
        n_phis += decisions[i].phis
    rows = np.empty(n_rows, np.int64)
    of = np.empty(n_rows, np.int64)
    phis = np.empty(n_phis, np.int64)
    servers = np.empty(n_rows, np.int64)
    home = np.empty(which.size, np.int64)
    chosen = np.empty(which.size, np.int64)
    r = 0
    p = 0
    for m in range(which.size):
        one = decisions[which[m]]
        home[m] = p + one.home
        chosen[m] = r + one.chosen if one.chosen < one.rows else -1
        for j in range(one.rows):
            rows[r] = one.first_row + j
            of[r] = m
            servers[r] = p + server[one.first_row + j] - one.first_phi
            r += 1
        for j in range(one.phis):
            phis[p] = one.first_phi + j
            p += 1
    return Picked(rows, of, phis, servers, home, chosen)


@jit
def greatest(values: Array, of: Array, count: int) -> Array:
    """The row of the greatest of each column of `values` (rows, n) in each of `count` decisions,
    the first of equals; `of` rises. Row 0 for a decision without rows."""
    out = np.full((count, values.shape[1]), -1, np.int64)
    for r in range(values.shape[0]):
        for j in range(values.shape[1]):
            best = out[of[r], j]
            if best < 0 or values[r, j] > values[best, j]:
                out[of[r], j] = r
    return np.maximum(out, 0)
