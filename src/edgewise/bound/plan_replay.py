"""Play decisions that were made beforehand in the simulator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.compile import jit
from edgewise.sim import engine
from edgewise.sim.layout import Sim, belief_of

Ints = NDArray[np.int64]


@jit
def replay(sim: Sim, rows: Ints, decisions: int, order: Ints) -> int:
    """Decide by `rows`, one per request, for so many decisions (−1: until the end).

    Returns the number of decisions made, and writes the requests to `order` as they are decided. A
    row that is not admissible sheds.
    """
    shed = sim.table.mask.size - 1
    done = 0
    while done != decisions:
        r = engine.advance(sim)
        if r < 0:
            break
        order[done] = r
        row = rows[r]
        engine.act(sim, row if sim.table.mask[row] != 0 else shed, 1.0)
        done += 1
    return done


def blind_copy(sim: Sim, results: bool) -> Sim:
    """A copy of `sim` whose balancer knows nothing, with or without results.

    A replay there has the same effects as in `sim`, but is faster: the belief has no services and
    gets no reports, so that a candidate table costs next to nothing. Every row is admissible.
    """
    copy = engine.branch(sim)
    world = copy.world
    world.settings["period"] = np.inf
    if not results:
        world = world._replace(results=world.results[:0].copy())
        world.settings["store"] = 0
    copy.table.settings.fill_servers = 0
    copy.table.settings.sampled = 0  # rows of all servers: that of a plan must be admissible
    copy.table.mask[:] = 1
    copy.table.rows.accuracy[:] = np.inf
    copy.table.rows.server[:] = -1.0  # the belief counts every decision as a refusal
    beliefs = copy.beliefs._replace(first=np.zeros_like(copy.beliefs.first))
    return copy._replace(world=world, beliefs=beliefs, belief=belief_of(beliefs, 0))
