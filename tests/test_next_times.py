"""The winner tree of moments against a plain list."""

import math

import numpy as np
import pytest

from edgewise.compile import by_reference, jit_no_refcount
from edgewise.fleet.arrays import Array
from edgewise.sim.build import simulation
from edgewise.sim.layout import World
from edgewise.sim.next_times import (
    first_due,
    report_time,
    report_times,
    set_link_time,
    set_report_time,
)
from edgewise.worlds import families
from edgewise.worlds.workload import generate


@jit_no_refcount
def play(world: World, who: Array, times: Array, found: Array) -> None:
    """Move each of `who` in turn; (earliest, whose) after each."""
    world = by_reference(world)
    links = world.links.size
    for i in range(who.size):
        w = int(who[i])
        if w < links:
            set_link_time(world, w, times[i])
        else:
            set_report_time(world, w - links, times[i])
        found[i, 0] = world.next_times[1]
        found[i, 1] = first_due(world)
        found[i, 2] = report_time(world, 0)


@pytest.mark.parametrize("grid", [0.0, 0.5])
def test_the_earliest_moment_is_first_whoever_moves(grid: float) -> None:
    scenario = families.scenario("medium", 1)
    world = simulation(scenario, generate(scenario, None)).world
    links, servers = len(world.links), len(world.servers)
    assert world.next_times.size > 2 * (links + servers)  # not full: the rest never comes
    rng = np.random.default_rng(3)
    times = rng.exponential(1.0, 2000)
    if grid:
        times = np.ceil(times / grid) * grid  # many at one moment
    times[rng.random(2000) < 0.1] = math.inf
    who = rng.integers(0, links + servers, 2000).astype(float)
    moments = [math.inf] * links + report_times(world).tolist()
    assert world.next_times[1] == min(moments)
    found = np.zeros((2000, 3))
    play(world, who, times, found)
    for w, time, (earliest, whose, due) in zip(who, times, found, strict=True):
        moments[int(w)] = time
        assert (earliest, due) == (min(moments), moments[links])
        assert whose == moments.index(earliest)
    assert report_times(world).tolist() == moments[links:]
