"""Kernels that give the learned policy more information, or fewer choices, than it has. Compiled.

Each changes the candidate table before the policy's own kernel sees it. The heuristic takes part as
the learned policy with all learned weights 0, which is the same bit for bit, so one kernel serves
both.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgewise.compile import jit
from edgewise.fleet.arrays import Array
from edgewise.fleet.estimates import ready_time
from edgewise.fleet.table import CandidateTable
from edgewise.policies import learned
from edgewise.scenario import Scenario
from edgewise.sim.build import SimOptions, simulation
from edgewise.tasks.services import services_of
from edgewise.worlds.workload import generate

Floats = NDArray[np.float64]

_edgewise = learned.edgewise.kernel


@jit
def original_only(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Run the policy without re-encoded transfers."""
    for r in range(1, table.mask.size - 1, 2):
        table.mask[r] = 0
    return _edgewise(table, params, state, draws)


@jit
def always_ready(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Run the policy with every transfer re-encoded where that form may be chosen."""
    for r in range(0, table.mask.size - 1, 2):
        if table.mask[r + 1] != 0 and table.rows.local[r + 1] == 0.0:
            table.mask[r] = 0
    return _edgewise(table, params, state, draws)


@jit
def slow_spells_known(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Run the policy with knowledge of how slow each server is now.

    `params` begin with the numbers of `slow_spells`. Service times become the true mean. Waits,
    which are other requests' service times, are scaled by the same factor.
    """
    size = int(params[0])
    rows = table.rows
    services = (table.mask.size - 1) // 2
    count = table.servers.shape[0]
    now = table.context.now
    offsets = 1 + 2 * services
    last = -1
    factor = 1.0
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        s = int(table.rows.server[r])
        fresh = s != last
        if fresh:
            last = s
            factor = 1.0
            for at in range(int(params[offsets + s]), int(params[offsets + s + 1])):
                place = offsets + count + 1 + 2 * at
                if params[place] > now:
                    break
                factor = params[place + 1]
        k = int(table.rows.service[r])
        true = params[1 + k] * factor
        if table.rows.form[r] != 0.0:
            true = ready_time(true, params[1 + services + k])
        by = true / rows.service_time[r]
        rows.latency[r] += (true - rows.service_time[r]) + (by - 1.0) * rows.wait[r]
        rows.service_time[r] = true
        rows.wait[r] *= by
        if fresh:
            table.servers[s].backlog *= by
            table.servers[s].ahead *= by
    return _edgewise(table, params[size:], state, draws)


def slow_spells(world: Scenario) -> Floats:
    """The numbers for `slow_spells_known`, in the simulator's order.

    They are: their count; each service's time at full speed, and the time that a re-encoded photo
    saves (s); where each server's steps begin and end; and the steps (time in s, factor).
    """
    services = services_of(world)
    sim = simulation(world, generate(world, None), SimOptions(store=False))
    servers, numbers = sim.world.servers, sim.world.numbers
    steps, bounds = [], [0]
    for server in servers:
        at, count = int(server["slow_at"]), int(server["slow_count"])
        steps.append(numbers[at : at + 2 * count])
        bounds.append(bounds[-1] + count)
    body = np.concatenate(
        [
            [service.latency[0] for service in services],
            [service.ready_saving for service in services],
            np.array(bounds, np.float64),
            *steps,
        ]
    )
    assert math.isfinite(float(body.sum()))
    return np.concatenate([[1.0 + len(body)], body])
