"""Episodes of the learned policy with everything that a gradient needs of each decision. Compiled.

The input is a simulation and the policy's params with a temperature: rows are drawn, instead of
taking the best one. The output is a `Rollout`: arrays over decisions, over the servers of each
decision and over its admissible rows, one decision after the other (ragged: the shed row and masked
rows are left out). The terms of a row (`policies.priced.RowTerms`) do not depend on the learned
weights, so `edgewise.learn.actor_critic` can combine them again as a function of the weights, by
the same formula.
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
"""A row's terms (`priced.RowTerms`), then its features."""
CRITIC_WIDTH = W + 2 * P
"""The critic's input: the request's features, and the mean and the maximum of the servers'."""

DECISION = np.dtype(
    [
        ("request", "i8"),
        ("time", "f8"),
        ("first_row", "i8"),  # in `Rollout.rows`
        ("rows", "i8"),  # how many
        ("first_server", "i8"),  # in `Rollout.server_features`
        ("servers", "i8"),  # how many servers
        ("ingress", "i8"),  # its number among these servers
        ("chosen", "i8"),  # number of the row; that after the last = shed
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
    rewards: Array  # float64 (n,): the score of each decision's own request
    request_features: Array  # float32 (n, W)
    critic_input: Array  # float32 (n, CRITIC_WIDTH)
    server_features: Array  # float32 (all servers, P)
    rows: Array  # float32 (all rows, ROW_WIDTH)
    server: Array  # int64 (all rows,): the row's server in `server_features`


@jit_no_refcount(inline=True, internal=True)
def copy(source: Array, out: Array) -> None:
    """Copy `source` to the beginning of `out`."""
    for j in range(source.size):
        out[j] = source[j]


@jit_no_refcount(internal=True)
def fill_critic_input(server_features: Array, request_features: Array, out: Array) -> None:
    """Write the critic's input to `out`: the request's features, and the mean and the maximum of
    the servers' features."""
    copy(request_features, out)
    for j in range(P):
        total = 0.0
        most = server_features[0, j]
        for i in range(server_features.shape[0]):
            total += server_features[i, j]
            most = max(most, server_features[i, j])
        out[W + j] = total / server_features.shape[0]
        out[W + P + j] = most


@jit_no_refcount
def record(
    sim: Sim, params: Array, memory: Array, rng: Array, rows: Array, out: Rollout
) -> tuple[int, int, int]:
    """Play to the end; returns the numbers of decisions, servers and rows written to `out`.

    `memory` (B, n) and `rng` (B, 1) are each balancer's own. `rows` (R,), records `learned.ROW`, is
    work space for the rows of a decision.
    """
    table = sim.table
    named = params.view(learned.PARAMS)[0]
    own = named.priced
    shed = table.mask.size - 1
    n = 0
    n_server = 0
    n_row = 0
    while engine.advance(sim) >= 0:
        b = sim.world.slots[sim.world.clock[0].current].balancer
        fleet = memory[b][: learned.FLEET_END].view(learned.FLEET)
        servers = memory[b][learned.FLEET_END :].view(learned.SERVER)
        learned.look(table, named, Memory(fleet[0], servers), rows)
        probability = learned.drawn(table, named.options.temperature, rng[b])
        row = best_row(table)

        ingress = int(table.context.ingress)
        one = out.decisions[n]
        one.request = sim.world.slots[sim.world.clock[0].current].request
        one.time = sim.world.clock[0].now
        one.first_row = n_row
        one.first_server = n_server
        one.ingress = 0
        copy(servers[ingress].features.view(np.float64), out.server_features[n_server])
        number = 0
        last = ingress
        for r in range(shed):
            if table.mask[r] == 0:
                continue
            s = int(table.rows.server[r])
            if s != last:
                last = s
                number = 0
                if s != ingress:
                    n_server += 1
                    copy(servers[s].features.view(np.float64), out.server_features[n_server])
                    number = n_server - one.first_server
            if r == row:
                one.chosen = n_row - one.first_row
            copy(rows[r].terms.view(np.float64), out.rows[n_row])
            copy(rows[r].features.view(np.float64), out.rows[n_row, ROW_WIDTH - Q :])
            out.server[n_row] = one.first_server + number
            n_row += 1
        n_server += 1
        one.rows = n_row - one.first_row
        one.servers = n_server - one.first_server
        if row == shed:
            one.chosen = one.rows
        one.log_probability = np.log(probability)
        one.deadline = table.context.deadline
        one.grace = table.context.grace
        one.elapsed = table.context.elapsed
        one.threshold = own.threshold_gain * fleet_above_knee(table, own)
        copy(fleet[0].request.view(np.float64), out.request_features[n])
        features = out.server_features[one.first_server : n_server]
        fill_critic_input(features, out.request_features[n], out.critic_input[n])
        n += 1

        if sim.world.settings[0].can_fail != 0:
            engine.keep_alternatives(sim, row)
        engine.act(sim, row, probability)
    return n, n_server, n_row


def rollout(sim: Sim, params: NDArray[np.float64], seed: int) -> Rollout:
    """Play `sim`, which must store results, to the end. Raises TooManyOpenRequests."""
    requests, servers = len(sim.world.requests), len(sim.world.servers)
    balancers = int(sim.world.settings["balancers"][0])
    widest = sim.table.mask.size - 1
    out = Rollout(
        decisions=records(requests, DECISION),
        rewards=np.empty(0),
        request_features=np.empty((requests, W), np.float32),
        critic_input=np.empty((requests, CRITIC_WIDTH), np.float32),
        server_features=np.empty((requests * (servers + 1), P), np.float32),
        rows=np.empty((requests * widest, ROW_WIDTH), np.float32),
        server=np.empty(requests * widest, np.int64),
    )
    sim.table.settings.fill_servers = 1
    memory = np.repeat(learned.edgewise.new_memory(servers)[None], balancers, axis=0)
    rng = np.random.SeedSequence([seed, 6]).generate_state(balancers, np.uint64)[:, None]
    space = np.zeros(widest + 1, learned.ROW)
    n, n_server, n_row = record(sim, params, memory, rng.copy(), space, out)
    if sim.world.clock["overflow"][0]:
        raise TooManyOpenRequests(f"over {len(sim.world.slots)} requests were open at a time")
    return Rollout(
        decisions=out.decisions[:n],
        rewards=sim.world.results["utility"][out.decisions["request"][:n]],
        request_features=out.request_features[:n],
        critic_input=out.critic_input[:n],
        server_features=out.server_features[:n_server].copy(),
        rows=out.rows[:n_row].copy(),
        server=out.server[:n_row].copy(),
    )


def joined(rollouts: list[Rollout]) -> Rollout:
    """Several rollouts end to end, with their indices moved accordingly."""
    rows = np.cumsum([0, *(len(one.rows) for one in rollouts)])
    servers = np.cumsum([0, *(len(one.server_features) for one in rollouts)])
    decisions = np.concatenate([one.decisions for one in rollouts])
    at = np.repeat(np.arange(len(rollouts)), [len(one.decisions) for one in rollouts])
    decisions["first_row"] += rows[at]
    decisions["first_server"] += servers[at]
    return Rollout(
        decisions=decisions,
        rewards=np.concatenate([one.rewards for one in rollouts]),
        request_features=np.concatenate([one.request_features for one in rollouts]),
        critic_input=np.concatenate([one.critic_input for one in rollouts]),
        server_features=np.concatenate([one.server_features for one in rollouts]),
        rows=np.concatenate([one.rows for one in rollouts]),
        server=np.concatenate([one.server + p for one, p in zip(rollouts, servers, strict=False)]),
    )


class BatchIndex(NamedTuple):
    """The rows and servers of a batch of decisions, and their new numbers within the batch."""

    rows: Array  # indices into `Rollout.rows`
    decision: Array  # of each row, 0 … m − 1
    servers: Array  # indices into `Rollout.server_features`
    server: Array  # of each row, index into `servers`
    ingress: Array  # of each decision, index into `servers`
    chosen: Array  # row of each decision, index into `rows`; −1 = shed


@jit
def batch_index(decisions: Array, server: Array, which: Array) -> BatchIndex:
    """The index of a batch of the decisions `which` (m,)."""
    n_rows = 0
    n_servers = 0
    for i in which:
        n_rows += decisions[i].rows
        n_servers += decisions[i].servers
    rows = np.empty(n_rows, np.int64)
    decision = np.empty(n_rows, np.int64)
    servers = np.empty(n_servers, np.int64)
    server_of_row = np.empty(n_rows, np.int64)
    ingress = np.empty(which.size, np.int64)
    chosen = np.empty(which.size, np.int64)
    r = 0
    p = 0
    for m in range(which.size):
        one = decisions[which[m]]
        ingress[m] = p + one.ingress
        chosen[m] = r + one.chosen if one.chosen < one.rows else -1
        for j in range(one.rows):
            rows[r] = one.first_row + j
            decision[r] = m
            server_of_row[r] = p + server[one.first_row + j] - one.first_server
            r += 1
        for j in range(one.servers):
            servers[p] = one.first_server + j
            p += 1
    return BatchIndex(rows, decision, servers, server_of_row, ingress, chosen)


@jit
def argmax_by_decision(values: Array, decision: Array, count: int) -> Array:
    """The row of the maximum of each column of `values` (rows, n) in each of `count` decisions.

    The first of equals counts; row 0 for a decision without rows. `decision` (rows,) is sorted.
    """
    out = np.full((count, values.shape[1]), -1, np.int64)
    for r in range(values.shape[0]):
        for j in range(values.shape[1]):
            best = out[decision[r], j]
            if best < 0 or values[r, j] > values[best, j]:
                out[decision[r], j] = r
    return np.maximum(out, 0)
