"""A policy in a world: what `edgewise simulate`, tests and examples call."""

from __future__ import annotations

import numpy as np

from edgewise.errors import EdgewiseError
from edgewise.fleet.draws import new_draws
from edgewise.policy.base import Rule
from edgewise.sim import engine
from edgewise.sim.layout import Sim


class Crowded(EdgewiseError):
    """More requests were open at a time than the simulation has slots for (`Options.slots`)."""


def seeds_of_draws(seed: int, balancers: int) -> np.ndarray:
    """The state of each balancer's random draws, uint64 (B, 1)."""
    children = np.random.SeedSequence([seed, 4]).spawn(balancers)
    return np.stack([new_draws(int(c.generate_state(1, np.uint64)[0])) for c in children])


def play(sim: Sim, rule: Rule, seed: int, params: tuple[float, ...] | None = None) -> Sim:
    """Let `rule` decide in `sim` until the end; returns `sim`, changed.

    `seed` is that of the rule's random draws; the world's luck is another. `params` in place of the
    rule's own. It can be called in several threads, each with a simulation of its own. Raises
    Crowded.
    """
    clock = sim.world.clock
    balancers = int(clock["balancers"][0])
    sim.table.wanted[0] = rule.statistics
    numbers = np.array(rule.params if params is None else params, np.float64)
    state = rule.new_state(len(sim.world.servers))
    memory = np.repeat(state[None], balancers, axis=0)
    draws = seeds_of_draws(seed, balancers)
    kernel = engine.compiled(rule.kernel)
    if rule.features > 0:
        describe, learn = engine.compiled_learner(rule.describe, rule.learn)
        features = np.zeros((len(sim.world.slots), rule.features))
        engine.run_learning(sim, kernel, describe, learn, numbers, memory, draws, features, -1)
    else:
        engine.run(sim, kernel, numbers, memory, draws, -1)
    if clock["overflow"][0]:
        raise Crowded(f"over {len(sim.world.slots)} requests were open at {clock['now'][0]:.3g} s")
    return sim
