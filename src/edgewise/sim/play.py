"""Let a policy decide in a simulation, for `edgewise simulate`, tests and examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import EdgewiseError
from edgewise.fleet.rng import new_rng
from edgewise.policies.base import PolicySpec, call
from edgewise.sim import engine
from edgewise.sim.layout import Sim

Floats = NDArray[np.float64]


TIME_TOLERANCE = 1e-6
"""s. Times that differ by less are equal but for rounding."""


class TooManyOpenRequests(EdgewiseError):
    """More requests were open at a time than the simulation has slots for (`SimOptions.slots`)."""


def policy_seeds(seed: int, balancers: int) -> list[int]:
    """The seed of each balancer's policy, derived from the scenario's seed."""
    children = np.random.SeedSequence([seed, 4]).spawn(balancers)
    return [int(child.generate_state(1, np.uint64)[0]) for child in children]


def new_rngs(seed: int, balancers: int) -> np.ndarray:
    """The generator of each balancer's policy, uint64 (B, 1)."""
    return np.stack([new_rng(each) for each in policy_seeds(seed, balancers)])


def play(sim: Sim, spec: PolicySpec, seed: int, params: Sequence[float] | None = None) -> Sim:
    """Let a policy decide in `sim` until the end; returns `sim`, changed.

    `seed` seeds the policy's random numbers; the world's noise has its own seed. `params` replace
    the policy's defaults. Several threads may call this, each with a simulation of its own. Raises
    TooManyOpenRequests, and PolicyFailed if a policy in plain Python raises.
    """
    clock = sim.world.clock
    Player(sim, spec, seed, params).run()
    if clock["overflow"][0]:
        raise TooManyOpenRequests(
            f"over {len(sim.world.slots)} requests were open at {clock['now'][0]:.3g} s"
        )
    return sim


def play_until(sim: Sim, spec: PolicySpec, seed: int, request: int) -> tuple[Floats, int] | None:
    """Play as `play` does, but stop after the first decision on `request`.

    `sim.table` then holds the table of that decision. Returns the policy's memory, which the
    decision may have changed, and the row; None if the request ended undecided. Only for policies
    that do not learn.
    """
    player = Player(sim, spec, seed)
    sim.table.settings.fill_servers = 1  # whoever explains the decision needs them all
    context, slots, clock = sim.table.context, sim.world.slots, sim.world.clock
    sent = float(sim.world.requests["time"][request])
    while player.run(1) == 1:
        now = float(clock["now"][0])
        if abs(now - float(context.elapsed) - sent) > TIME_TOLERANCE:
            continue
        mine = (slots["request"] == request) & (slots["row"] >= 0) & (slots["decided"] == now)
        for slot in slots[mine]:
            memory: Floats = player.memory[int(slot["balancer"])]
            return memory, int(slot["row"])
    return None


class Player:
    """A policy at work in a simulation, with its parameters, memories and generators."""

    def __init__(
        self, sim: Sim, spec: PolicySpec, seed: int, params: Sequence[float] | None = None
    ) -> None:
        balancers = int(sim.world.settings["balancers"][0])
        sim.table.settings.fill_servers = spec.reads_servers
        self.sim, self.spec = sim, spec
        self.params = spec.new_params(params)
        one = spec.new_memory(len(sim.world.servers))
        self.memory = np.repeat(one[None], balancers, axis=0)
        """(B, n): one row per balancer."""
        self.rng = new_rngs(seed, balancers)
        self.features = np.zeros((len(sim.world.slots), spec.features))

    def run(self, decisions: int = -1) -> int:
        """Play until the end, or for `decisions` decisions (−1: all); returns how many were
        made."""
        sim, spec = self.sim, self.spec
        if not spec.compiled:
            return self._run_plainly(decisions)
        kernel = engine.compiled(spec.kernel)
        own = self.params, self.memory, self.rng
        if spec.features == 0:
            return engine.run(sim, kernel, *own, decisions)
        describe, learn = engine.compiled_learner(spec.describe, spec.learn)
        return engine.run_learning(sim, kernel, describe, learn, *own, self.features, decisions)

    def _run_plainly(self, decisions: int) -> int:
        """Do as `engine.run` and `engine.run_learning` for a kernel in plain Python."""
        sim, spec, table = self.sim, self.spec, self.sim.table
        clock, slots = sim.world.clock[0], sim.world.slots
        clock["learning"] = spec.features > 0
        done = 0
        while done != decisions:
            going = engine.advance(sim)
            for n in range(int(clock["feedback_count"])):
                j = int(slots[n]["feedback_slot"])
                spec.learn(
                    self.params,
                    self.memory[slots[j]["balancer"]],
                    self.features[j],
                    float(slots[j]["utility"]),
                )
            engine.drop_feedback(sim)
            if going < 0:
                return done
            i = int(clock["current"])
            b = int(slots[i]["balancer"])
            table.scores[-1] = -math.inf
            probability = call(spec, table, self.params, self.memory[b], self.rng[b])
            row = int(engine.choose(sim))
            if spec.features > 0:
                spec.describe(table, row, self.features[i])
            engine.decide(sim, row, probability)
            done += 1
        return done
