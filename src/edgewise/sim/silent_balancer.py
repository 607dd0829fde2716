"""Balancers that fall silent, and nodes that then decide themselves. Compiled.

A node waits for a command for a share of the deadline and then decides with the same policy on a
belief of its own (`live.node.command_source`, `live.node.local_decider`); once it knows that the
balancer is gone it does
so at once. In the simulation such a node is one more decider: beliefs, draws and memories after
those of the balancers are theirs, one for each server, in worlds whose scenario lets a balancer
fall silent.

Left out: what a mute balancer finds in its sockets when it goes on (requests that are decided
already, reports that are old). Outcomes do reach it.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.timeouts import DECISION_PATIENCE
from edgewise.sim.layout import E_METADATA, Sim, World
from edgewise.sim.next_times import set_report_time
from edgewise.sim.reports import SILENCE_KNOWN
from edgewise.sim.slots import schedule_for


@jit_no_refcount(inline=True, internal=True)
def decides_alone(sim: Sim, i: int, now: float) -> bool:
    """Whether slot `i`'s balancer is silent; its ingress then decides, later."""
    clock = sim.world.clock[0]
    settings = sim.world.settings[0]
    slot = sim.world.slots[i]
    if now < clock.mute_since or slot.balancer >= settings.central:
        return False
    slot.balancer = settings.central + slot.ingress
    if now >= clock.mute_since + SILENCE_KNOWN:
        return False  # at once
    patience = min(DECISION_PATIENCE * (slot.deadline - slot.sent), max(0.0, slot.deadline - now))
    schedule_for(sim.world, i, now + patience, E_METADATA)
    return True


@jit_no_refcount(inline=True, internal=True)
def end_silence(world: World, now: float) -> None:
    """End the balancers' silence; every node reports to them at once."""
    world.clock[0].mute_since = math.inf
    for s in range(world.servers.size):
        if world.servers[s].up != 0:
            set_report_time(world, s, now)
