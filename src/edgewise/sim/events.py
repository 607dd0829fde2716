"""What is to happen, and when: the queue of events. Compiled.

The next events, up to `SOON` of them, stand in order, the last to come first: so the next one is
the last, and taking it is counting down. A new one goes in from there, and those before it move up
by one: a few as a rule, for most of what happens soon has been caused just now. A small fleet has
no more than these; in a large or overloaded one the rest are in a binary heap, and everything there
comes after everything here. Half of the room is moved over when there is none left, and filled
when all are used. (A heap alone takes longer: its branches are as good as random.)

Ties go in the order in which events were made: a new one comes after what is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgewise.compiled import inlined, inner
from edgewise.fleet.layout import Array
from edgewise.sim.layout import EVENT, World

KIND_BITS = 4
INDEX_BITS = 29
"""5 × 10⁸ slots, links or workers; the 30 bits above count 10⁹ events before ties may mix."""
_INDEX_MASK = (1 << INDEX_BITS) - 1
_KIND_MASK = (1 << KIND_BITS) - 1
_SEQUENCE_MASK = (1 << 30) - 1

SOON = 128
"""Events in order. Eight servers at 440 requests/s have about 60 under way."""
_HALF = SOON // 2


def new_soon() -> tuple[Array, Array]:
    """Room for the times and codes of the events in order. What comes after all of them, and never,
    stands first: so whoever looks for a place needs not look for the end."""
    times = np.zeros(SOON + 1)
    times[0] = np.inf
    return times, np.zeros(SOON + 1, np.int64)


def new_events(room: int, planned: Sequence[tuple[float, int, int]]) -> Array:
    """A heap with room for `room` events, with those `planned`: (time, kind, index) each, in the
    order in which they are made. The clock has to be told how many."""
    events = np.zeros(max(1, room), EVENT)
    codes = [
        (n << (KIND_BITS + INDEX_BITS)) | (kind << INDEX_BITS) | index
        for n, (_, kind, index) in enumerate(planned)
    ]
    # What is sorted is a heap.
    for n, event in enumerate(sorted(zip((p[0] for p in planned), codes, strict=True))):
        events[n] = event
    return events


@inner
def push(world: World, time: float, kind: int, index: int) -> None:
    """Let an event happen at `time`, +inf = never. There is room for all that can be under way."""
    if time == math.inf:
        return
    clock = world.clock[0]
    sequence = clock.sequence
    clock.sequence = sequence + 1
    code = ((sequence & _SEQUENCE_MASK) << (KIND_BITS + INDEX_BITS)) | (kind << INDEX_BITS) | index
    if clock.soon == SOON:
        move_half(world)
    if clock.events > 0 and time >= world.events[0].time:
        put_away(world, time, code)
        return
    times, codes = world.soon, world.soon_codes
    place = clock.soon + 1
    clock.soon = place
    while times[place - 1] <= time:
        times[place] = times[place - 1]
        codes[place] = codes[place - 1]
        place -= 1
    times[place] = time
    codes[place] = code


@inner
def move_half(world: World) -> None:
    """The later half of those in order to the heap."""
    times, codes = world.soon, world.soon_codes
    for j in range(_HALF, 0, -1):
        put_away(world, times[j], codes[j])
    for j in range(_HALF + 1, SOON + 1):
        times[j - _HALF] = times[j]
        codes[j - _HALF] = codes[j]
    world.clock[0].soon = SOON - _HALF


@inlined
def next_time(world: World) -> float:
    """Of the next event; inf if there is none."""
    clock = world.clock[0]
    if clock.soon == 0 and clock.events > 0:
        fetch(world)
    time: float = world.soon[clock.soon]
    return time


@inner
def fetch(world: World) -> None:
    """The first events of the heap, half of the room or all, put in order: nothing else is."""
    clock = world.clock[0]
    n = min(_HALF, clock.events)
    for j in range(n, 0, -1):
        world.soon[j] = world.events[0].time
        world.soon_codes[j] = world.events[0].code
        take_root(world)
    clock.soon = n


@inlined
def pop(world: World) -> int:
    """Take the next event out, of which `next_time` said that there is one; returns its code."""
    clock = world.clock[0]
    code: int = world.soon_codes[clock.soon]
    clock.soon -= 1
    return code


@inlined
def settle(events: Array, hole: int, time: float, code: int) -> None:
    """Put an event into the heap's hole, or where it belongs on the way up from there."""
    while hole > 0:
        parent = (hole - 1) >> 1
        other = events[parent].time
        if other < time or (other == time and events[parent].code < code):
            break
        events[hole].time = other
        events[hole].code = events[parent].code
        hole = parent
    events[hole].time = time
    events[hole].code = code


@inner
def put_away(world: World, time: float, code: int) -> None:
    """An event into the heap."""
    n = world.clock[0].events
    world.clock[0].events = n + 1
    settle(world.events, n, time, code)


@inner
def take_root(world: World) -> None:
    """The heap's first event out of it. There must be one."""
    events = world.events
    n = world.clock[0].events - 1
    world.clock[0].events = n
    if n == 0:
        return
    # The hole goes all the way down along the lesser children, and the last event up from there:
    # it was a leaf and mostly belongs near one.
    hole = 0
    child = 1
    while child < n:
        if child + 1 < n:
            a, b = events[child], events[child + 1]
            child += b.time < a.time or (b.time == a.time and b.code < a.code)
        events[hole].time = events[child].time
        events[hole].code = events[child].code
        hole = child
        child = 2 * hole + 1
    settle(events, hole, events[n].time, events[n].code)


@inlined
def kind_of(code: int) -> int:
    return (code >> INDEX_BITS) & _KIND_MASK


@inlined
def index_of(code: int) -> int:
    return code & _INDEX_MASK
