"""Episodes of the learned policy, with all that a gradient needs of each decision. Compiled.

What goes in: a simulation and the policy's params, with a temperature: rows are drawn, not the best
taken. What comes out: a `Rollout`, arrays over decisions, over the servers that each looked at and
over their admissible rows, one decision after the other (ragged: the shed row and masked rows take
no place). The terms of a row (`policies.priced.RowTerms`) do not depend on the learned weights,
so `edgewise.learn.actor_critic` can combine them again as a function of the weights, by the same
formula.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.compile import jit, jit_no_refcount
from edgewise.fleet.arrays import Array, records
from edgewise.fleet.table import best_row
from edgewise.policies import learned
from edgewise.policies.base import Memory
from edgewise.policies.learned import P, Q, W
from edgewise.policies.priced import RowTerms, fleet_above_knee
from edgewise.sim import engine
from edgewise.sim.layout import Sim
from edgewise.sim.play import TooManyOpenRequests

TERMS = RowTerms._fields
ROW_WIDTH = len(TERMS) + Q
"""`priced.RowTerms`, then `PSI`."""
SEEN = W + 2 * P
"""What a value is a function of: `OMEGA`, and the mean and the maximum of `PHI`."""

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


@jit_no_refcount(inline=True, internal=True)
def copy(source: Array, out: Array) -> None:
    """All of `source` to the beginning of `out`."""
    for j in range(source.size):
        out[j] = source[j]


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
    sim: Sim, params: Array, memory: Array, draws: Array, looked_at: Array, out: Rollout
) -> tuple[int, int, int]:
    """Play to the end; returns how many decisions, phis and rows of `out` were written.

    `memory` (B, n) and `draws` (B, 1) are each balancer's own; `looked_at` (R,) is room for the
    rows of a decision, records `learned.ROW`.
    """
    table = sim.table
    named = params.view(learned.PARAMS)[0]
    own = named.priced
    shed = table.mask.size - 1
    n = 0
    n_phi = 0
    n_row = 0
    while engine.advance(sim) >= 0:
        b = sim.world.slots[sim.world.clock[0].current].balancer
        fleet = memory[b][: learned.FLEET_END].view(learned.FLEET)
        servers = memory[b][learned.FLEET_END :].view(learned.SERVER)
        learned.look(table, named, Memory(fleet[0], servers), looked_at)
        probability = learned.drawn(table, named.options.temperature, draws[b])
        row = best_row(table)

        home = int(table.context.ingress)
        one = out.decisions[n]
        one.request = sim.world.slots[sim.world.clock[0].current].request
        one.time = sim.world.clock[0].now
        one.first_row = n_row
        one.first_phi = n_phi
        one.home = 0
        copy(servers[home].phi.view(np.float64), out.phi[n_phi])
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
                    copy(servers[s].phi.view(np.float64), out.phi[n_phi])
                    place = n_phi - one.first_phi
            if r == row:
                one.chosen = n_row - one.first_row
            copy(looked_at[r].terms.view(np.float64), out.rows[n_row])
            copy(looked_at[r].psi.view(np.float64), out.rows[n_row, ROW_WIDTH - Q :])
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
        one.threshold = own.threshold + own.threshold_gain * fleet_above_knee(table, own)
        copy(fleet[0].omega.view(np.float64), out.omega[n])
        pool(out.phi[one.first_phi : n_phi], out.omega[n], out.seen[n])
        n += 1

        if sim.world.settings[0].can_fail != 0:
            engine.keep_alternatives(sim, row)
        engine.act(sim, row, probability)
    return n, n_phi, n_row


def rollout(sim: Sim, params: NDArray[np.float64], seed: int) -> Rollout:
    """Play `sim`, whose results are stored, to the end. Raises Crowded."""
    requests, servers = len(sim.world.requests), len(sim.world.servers)
    balancers = int(sim.world.settings["balancers"][0])
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
    memory = np.repeat(learned.edgewise.new_memory(servers)[None], balancers, axis=0)
    draws = np.random.SeedSequence([seed, 6]).generate_state(balancers, np.uint64)[:, None]
    looked_at = np.zeros(widest + 1, learned.ROW)
    n, n_phi, n_row = record(sim, params, memory, draws.copy(), looked_at, out)
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
