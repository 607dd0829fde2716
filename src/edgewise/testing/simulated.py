"""The simulator's transcript of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgewise.domain import request_id
from edgewise.policies import find
from edgewise.policies.base import PolicySpec
from edgewise.scenario import Scenario
from edgewise.sim import results
from edgewise.sim.build import simulation
from edgewise.sim.layout import Sim
from edgewise.sim.next_times import report_times
from edgewise.sim.play import Player
from edgewise.tasks.services import services_of
from edgewise.testing.transcript import DecisionRecord, Transcript
from edgewise.worlds.workload import Trace


def first_reports(sim: Sim) -> list[float]:
    """When each server of a simulation that has not begun sends its first report, s."""
    due: list[float] = report_times(sim.world).tolist()
    return due


def run_simulated(scenario: Scenario, trace: Trace, policy: str | PolicySpec) -> Transcript:
    """Play a trace in the simulator under a policy.

    Raises BadInput for an unknown policy; ValueError for several balancers, and for a policy that
    learns as it goes: the live balancer would learn at other times.
    """
    if scenario.balancers != 1:
        raise ValueError(f"expected a scenario with one balancer, got {scenario.balancers}")
    spec = find(policy) if isinstance(policy, str) else policy
    if spec.features:
        raise ValueError("expected a policy that does not learn as it goes")
    sim = simulation(scenario, trace)
    player = Player(sim, spec, scenario.seed)
    sim.table.settings.fill_servers = 1  # fill every column, whatever the policy reads
    table = sim.table
    tables: list[dict[str, Any]] = []
    while player.run(1) == 1:
        tables.append(
            {
                "at": float(sim.world.clock["now"][0]),
                "mask": table.mask.copy(),
                "rows": table.arrays.rows.copy(),
                "servers": table.arrays.servers.copy(),
                "context": table.arrays.context.copy(),
            }
        )
    # With one balancer, decisions are made in the order of their times.
    decided = sim.world.results["decided_at"]
    order = [int(r) for r in np.argsort(decided, kind="stable") if decided[r] == decided[r]]
    decisions = tuple(
        DecisionRecord(
            request=request_id(r),
            row=int(sim.world.results["row"][r]),
            probability=float(sim.world.results["probability"][r]),
            **seen,
        )
        for r, seen in zip(order, tables, strict=True)
    )
    outcomes = results.outcomes(sim, services_of(scenario), [0] * len(trace))
    return Transcript(decisions=decisions, outcomes={each.request: each for each in outcomes})
