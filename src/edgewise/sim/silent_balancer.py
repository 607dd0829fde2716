"""Balancers that fall silent, and nodes that then decide by themselves. Compiled.

A node waits for a command for a share of the deadline, then decides with the same policy on its own
belief (`live.node.command_source`, `live.node.local_decider`). Once its heartbeat has failed it
decides at once. In the simulation each node is a further decider: if the scenario silences the
balancers, then beliefs, generators and memories are allocated for every server, after the
balancers' own.

Not simulated: the messages that queued in a silent balancer's sockets (requests decided meanwhile,
old reports). Outcomes do reach it.
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
def defer_to_ingress(sim: Sim, i: int, now: float) -> bool:
    """Hand slot `i` to its ingress if its balancer is silent. Returns True if the ingress decides
    later, after waiting for a command; False if the slot's decider decides now."""
    clock = sim.world.clock[0]
    settings = sim.world.settings[0]
    slot = sim.world.slots[i]
    if now < clock.mute_since or slot.balancer >= settings.central:
        return False
    slot.balancer = settings.central + slot.ingress
    if now >= clock.mute_since + SILENCE_KNOWN:
        return False
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
