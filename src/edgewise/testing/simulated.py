"""The simulator's side."""

from __future__ import annotations

import numpy as np

from edgewise.domain import request_id
from edgewise.policy import find
from edgewise.scenario import Scenario
from edgewise.sim import engine, results
from edgewise.sim.build import simulation
from edgewise.sim.layout import Sim
from edgewise.sim.next_times import reports_due
from edgewise.sim.play import seeds_of_draws
from edgewise.tasks.services import services_of
from edgewise.testing.transcript import Chosen, Transcript
from edgewise.worlds.workload import Trace


def first_reports(sim: Sim) -> list[float]:
    """When each server first reports, s; of a simulation at its beginning."""
    due: list[float] = reports_due(sim.world).tolist()
    return due


def play(scenario: Scenario, trace: Trace, policy: str) -> Transcript:
    """The trace under a policy, in the simulator. Raises BadInput for an unknown policy."""
    if scenario.balancers != 1:
        raise ValueError("parity is between one balancer and one")
    sim = simulation(scenario, trace)
    rule = find(policy)
    if rule.features:
        raise ValueError(f"{policy} learns as it goes, which the live balancer does elsewhen")
    sim.table.wanted[0] = 1  # of every column, whatever the rule reads
    numbers = np.array(rule.params, np.float64)
    memory = rule.new_state(len(sim.world.servers))[None].copy()
    draws = seeds_of_draws(scenario.seed, 1)
    kernel = engine.compiled(rule.kernel)
    table, found = sim.table, []
    while engine.run(sim, kernel, numbers, memory, draws, 1) == 1:
        found.append(
            (
                float(sim.world.clock["now"][0]),
                table.mask.copy(),
                table.rows.copy(),
                table.servers.copy(),
                table.context.copy(),
            )
        )
    # With one balancer, decisions are made in the order of their times.
    decided = sim.world.results["decided_at"]
    order = [int(r) for r in np.argsort(decided, kind="stable") if decided[r] == decided[r]]
    decisions = tuple(
        Chosen(
            request=request_id(r),
            at=at,
            row=int(sim.world.results["row"][r]),
            probability=float(sim.world.results["probability"][r]),
            mask=mask,
            rows=rows,
            servers=servers,
            context=context,
        )
        for r, (at, mask, rows, servers, context) in zip(order, found, strict=True)
    )
    labels = [0] * len(trace)
    ended = results.outcomes(sim, services_of(scenario), labels)
    return Transcript(decisions=decisions, outcomes={each.request: each for each in ended})
