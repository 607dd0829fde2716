"""The queue of events against a plain sorted list."""

import math

import numpy as np
import pytest

from edgewise.compile import by_reference, jit_no_refcount
from edgewise.fleet.arrays import Array
from edgewise.sim.build import simulation
from edgewise.sim.events import NEAR, heap_push, index_of, kind_of, next_time, pop, push
from edgewise.sim.layout import E_FINISH, Sim, World
from edgewise.worlds.workload import generate
from sim_worlds import one_server


@jit_no_refcount
def play(world: World, steps: Array, found: Array) -> int:
    """Push the times of `steps` in order, every third as a timer; take an event out at each NaN.
    (time, index, kind) of those."""
    world = by_reference(world)
    n = 0
    for i in range(steps.size):
        if steps[i] == steps[i]:
            if i % 3 == 0:
                heap_push(world, steps[i], E_FINISH, i)
            else:
                push(world, steps[i], E_FINISH, i)
            continue
        time = next_time(world)
        found[n, 0] = time
        if time < math.inf:
            code = pop(world)
            found[n, 1] = index_of(code)
            found[n, 2] = kind_of(code)
        n += 1
    return n


def world() -> Sim:
    """One that nothing is planned in."""
    scenario = one_server(rate=200.0, duration=20.0)
    sim = simulation(scenario, generate(scenario, None))
    sim.world.clock["events"] = 0
    sim.world.events["time"][0] = math.inf
    return sim


@pytest.mark.parametrize("most", [5, NEAR - 1, NEAR, NEAR + 1, 5 * NEAR])
@pytest.mark.parametrize("grid", [0.0, 0.25])
def test_events_come_in_order_of_time_and_then_of_making(most: int, grid: float) -> None:
    """`most` wait at a time: in order alone, or in the heap too; on a `grid` many at one moment."""
    rng = np.random.default_rng(most)
    steps, expected = [], []
    waiting: list[tuple[float, int]] = []
    now = 0.0
    while len(steps) < 4000:
        if waiting and (len(waiting) >= most or rng.random() < 0.45):
            now, index = min(waiting)
            waiting.remove((now, index))
            expected.append((now, index))
            steps.append(math.nan)
        else:
            time = now + float(rng.exponential(1.0 if rng.random() < 0.8 else 30.0))
            time = math.ceil(time / grid) * grid if grid else time
            waiting.append((time, len(steps)))
            steps.append(time)
    found = np.zeros((len(steps), 3))
    n = play(world().world, np.array(steps), found)
    assert [(time, int(index)) for time, index, _ in found[:n].tolist()] == expected
    assert (found[:n, 2] == E_FINISH).all()


def test_an_empty_queue_says_never_and_what_never_happens_is_not_kept() -> None:
    found = np.zeros((3, 3))
    sim = world()
    assert play(sim.world, np.array([math.nan, math.inf, math.nan]), found) == 2
    assert found[:2, 0].tolist() == [math.inf, math.inf]
    assert sim.world.clock["events"][0] == sim.world.clock["near"][0] == 0
