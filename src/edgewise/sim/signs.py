"""The signs of life that servers ask of each other. Compiled.

Each server asks every other one about once a second whether it lives (`live.node.peers`). The
question waits while its link is out. A server that is down refuses it at once. There are no events
for this: the questions of the time since the last report are gone through when the next one is
made.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array
from edgewise.fleet.timeouts import SIGN_PATIENCE, SIGN_PERIOD
from edgewise.sim.layout import CONSTANT, World


@jit_no_refcount(inline=True, internal=True)
def write_signs(world: World, s: int, out: Array, now: float) -> None:
    """Write into `out` (S,) what server `s` knows at `now` of the signs of life of each other one
    (`fleet.ejection.on_signs`)."""
    for d in range(world.servers.size):
        if world.signs[s, d].known_at <= now:
            ask_until(world, s, d, now)
        out[d] = world.signs[s, d].count


@jit_no_refcount(internal=True)
def ask_until(world: World, s: int, d: int, now: float) -> None:
    """Go through the questions of server `s` to `d` whose answers are known by `now`, and ask the
    next one."""
    sign = world.signs[s, d]
    while sign.known_at <= now:
        if sign.given < 0:
            ask(world, s, d, sign.known_at)
            continue
        if sign.given != 0:
            sign.count = max(0, sign.count) + 1
        else:
            sign.count = min(0, sign.count) - 1
        ask(world, s, d, sign.known_at + SIGN_PERIOD)


@jit_no_refcount(internal=True)
def ask(world: World, s: int, d: int, at: float) -> None:
    """Let server `s` ask `d` for a sign of life `at` that time."""
    sign = world.signs[s, d]
    there = world.path[s, d]
    round_trip = world.links[there].delay + world.links[world.path[d, s]].delay
    answered = leaves_at(world, there, at) + round_trip
    patience = at + SIGN_PATIENCE * SIGN_PERIOD
    sign.given = answered <= patience and world.servers[d].up != 0
    sign.known_at = min(answered, patience)


@jit_no_refcount(internal=True)
def leaves_at(world: World, e: int, now: float) -> float:
    """When a message without a payload leaves link `e`; inf = never."""
    link = world.links[e]
    at = now
    for k in range(link.outage_count):
        begin = world.numbers[link.outage_at + 2 * k]
        end = world.numbers[link.outage_at + 2 * k + 1]
        if begin <= at < end:
            at = end
    return math.inf if link.mode == CONSTANT and link.rate <= 0.0 else at
