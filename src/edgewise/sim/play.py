"""A policy in a world: what `edgewise simulate`, tests and examples call."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import EdgewiseError
from edgewise.fleet.rng import new_rng
from edgewise.policy.base import PolicySpec
from edgewise.sim import engine
from edgewise.sim.layout import Sim

Floats = NDArray[np.float64]


SAME = 1e-6
"""s. Times that differ by less may be one, rounded."""


class TooManyOpenRequests(EdgewiseError):
    """More requests were open at a time than the simulation has slots for (`Options.slots`)."""


def seeds_of_draws(seed: int, balancers: int) -> np.ndarray:
    """The state of each balancer's random draws, uint64 (B, 1)."""
    children = np.random.SeedSequence([seed, 4]).spawn(balancers)
    return np.stack([new_rng(int(c.generate_state(1, np.uint64)[0])) for c in children])


def play(sim: Sim, rule: PolicySpec, seed: int, params: tuple[float, ...] | None = None) -> Sim:
    """Let `rule` decide in `sim` until the end; returns `sim`, changed.

    `seed` is that of the rule's random draws; the world's luck is another. `params` in place of the
    rule's own. It can be called in several threads, each with a simulation of its own. Raises
    Crowded.
    """
    clock = sim.world.clock
    kernel, numbers, memory, draws = _beginning(sim, rule, seed, params)
    if rule.features > 0:
        describe, learn = engine.compiled_learner(rule.describe, rule.learn)
        features = np.zeros((len(sim.world.slots), rule.features))
        engine.run_learning(sim, kernel, describe, learn, numbers, memory, draws, features, -1)
    else:
        engine.run(sim, kernel, numbers, memory, draws, -1)
    if clock["overflow"][0]:
        raise TooManyOpenRequests(
            f"over {len(sim.world.slots)} requests were open at {clock['now'][0]:.3g} s"
        )
    return sim


def play_until(sim: Sim, rule: PolicySpec, seed: int, request: int) -> tuple[Floats, int] | None:
    """Play as `play` does, and stop right after the first decision on `request`.

    The table is then as the rule saw it. Returns the rule's state, which may have taken in that
    decision, and the row; None if nobody decided about the request. For rules without `features`.
    """
    kernel, numbers, memory, draws = _beginning(sim, rule, seed, None)
    context, slots, clock = sim.table.context, sim.world.slots, sim.world.clock
    sent = float(sim.world.requests["time"][request])
    while engine.run(sim, kernel, numbers, memory, draws, 1) == 1:
        now = float(clock["now"][0])
        if abs(now - float(context.elapsed) - sent) > SAME:
            continue
        mine = (slots["request"] == request) & (slots["row"] >= 0) & (slots["decided"] == now)
        for slot in slots[mine]:
            state: Floats = memory[int(slot["balancer"])]
            return state, int(slot["row"])
    return None


def _beginning(
    sim: Sim, rule: PolicySpec, seed: int, params: tuple[float, ...] | None
) -> tuple[Any, Floats, Floats, NDArray[np.uint64]]:
    """(kernel, params, state by balancer, draws by balancer) of a play that begins."""
    balancers = int(sim.world.clock["balancers"][0])
    sim.table.settings.fill_servers = rule.reads_servers
    numbers = rule.new_params(params)
    state = rule.new_memory(len(sim.world.servers))
    memory = np.repeat(state[None], balancers, axis=0)
    return engine.compiled(rule.kernel), numbers, memory, seeds_of_draws(seed, balancers)
