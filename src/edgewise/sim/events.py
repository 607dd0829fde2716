"""What is to happen, and when: the queue of events. Compiled.

Most events come a constant delay after what causes them: metadata and commands, bodies that have
left a link, word of an outcome. Of one such kind the later is made later. So each of these kinds
has a *ring*, first in, first out, and taking from it costs next to nothing; an event that would
come before the last in its ring (links of unequal delay, jitter), or finds it full, goes to the
heap like all others. The next event is the least of the rings' first ones and the heap's root.

The heap is binary. Ties go in the order in which events were made, wherever they wait, so that a
run does not depend on how they happen to lie.

All stand in one array: the first of each ring, so that a look at them reads little memory; the
rings; the heap from `HEAP` on. Time is +inf where a ring, or the heap, is empty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgewise.compiled import inlined, inner
from edgewise.fleet.layout import Array
from edgewise.sim.layout import EVENT, RINGED, World

KIND_BITS = 4
INDEX_BITS = 29
"""5 × 10⁸ slots, links or workers; the 30 bits above count 10⁹ events before ties may mix."""
_INDEX_MASK = (1 << INDEX_BITS) - 1
_KIND_MASK = (1 << KIND_BITS) - 1
_SEQUENCE_MASK = (1 << 30) - 1

RING = 64
"""Events in a ring. At 1,000 requests/s and a delay of 20 ms there are 20; a power of two."""
HEAP = RINGED * (1 + RING)
"""Where the heap begins."""


def new_events(room: int, planned: Sequence[tuple[float, int, int]]) -> Array:
    """A queue of which the heap alone has room for `room` events, with those `planned`: (time, kind,
    index) each, in the order in which they are made. The clock has to be told how many."""
    events = np.zeros(HEAP + max(1, room), EVENT)
    events["time"][:RINGED] = events["time"][HEAP] = np.inf
    codes = [
        (n << (KIND_BITS + INDEX_BITS)) | (kind << INDEX_BITS) | index
        for n, (_, kind, index) in enumerate(planned)
    ]
    # What is sorted is a heap.
    for n, (time, code) in enumerate(sorted(zip((p[0] for p in planned), codes, strict=True))):
        events["time"][HEAP + n], events["code"][HEAP + n] = time, code
    return events


@inlined
def settle(events: Array, hole: int, time: float, code: int) -> None:
    """Put an event into the heap's hole, or where it belongs on the way up from there."""
    events[HEAP + hole].time = time
    order = events[HEAP + hole].order
    while hole > 0:
        parent = (hole - 1) >> 1
        other = events[HEAP + parent].order
        if other < order or (other == order and events[HEAP + parent].code < code):
            break
        events[HEAP + hole].order = other
        events[HEAP + hole].code = events[HEAP + parent].code
        hole = parent
    events[HEAP + hole].time = time
    events[HEAP + hole].code = code


@inner
def push(world: World, time: float, kind: int, index: int) -> None:
    """Let an event happen at `time`. The heap has room for all that can be under way."""
    events = world.events
    state = world.clock[0]
    sequence = state.sequence
    state.sequence = sequence + 1
    code = ((sequence & _SEQUENCE_MASK) << (KIND_BITS + INDEX_BITS)) | (kind << INDEX_BITS) | index
    if kind < RINGED:
        n = state.waiting[kind]
        last = state.last[kind]
        if n == 0 or (n < RING and events[RINGED + kind * RING + last].time <= time):
            last = (last + 1) & (RING - 1)
            place = RINGED + kind * RING + last
            state.last[kind] = last
            state.waiting[kind] = n + 1
            events[place].time = time
            events[place].code = code
            if n == 0:
                events[kind].time = time
                events[kind].code = code
            return
    n = state.events
    state.events = n + 1
    settle(events, n, time, code)


@inlined
def sooner(events: Array, a: int, b: int) -> int:
    """Which of two places holds the earlier event. As good as random, so it is reckoned rather than
    branched on."""
    ta = events[a].order
    tb = events[b].order
    less = (tb < ta) | ((tb == ta) & (events[b].code < events[a].code))
    return a + np.int64(less) * (b - a)


@inlined
def first(events: Array) -> int:
    """Where the next event is; its time is +inf if there is none."""
    some = sooner(events, sooner(events, 0, 1), sooner(events, 2, 3))
    return sooner(events, some, sooner(events, 4, HEAP))


@inlined
def pop(world: World, place: int) -> int:
    """Take the next event out, which is at `place`; returns its code."""
    events = world.events
    code: int = events[place].code
    if place == HEAP:
        pop_heap(world)
        return code
    state = world.clock[0]
    n = state.waiting[place] - 1
    state.waiting[place] = n
    follower = (state.last[place] - n + 1) & (RING - 1)
    events[place].time = events[RINGED + place * RING + follower].time if n > 0 else math.inf
    events[place].code = events[RINGED + place * RING + follower].code
    return code


@inlined
def pop_heap(world: World) -> None:
    """Take the heap's root out. It must not be empty."""
    events = world.events
    n = world.clock[0].events - 1
    world.clock[0].events = n
    if n == 0:
        events[HEAP].time = math.inf
        return
    # The hole goes all the way down along the lesser children, and the last event up from there:
    # it was a leaf and mostly belongs near one.
    hole = 0
    child = 1
    while child + 1 < n:
        child = sooner(events, HEAP + child, HEAP + child + 1) - HEAP
        events[HEAP + hole].order = events[HEAP + child].order
        events[HEAP + hole].code = events[HEAP + child].code
        hole = child
        child = 2 * hole + 1
    if child < n:
        events[HEAP + hole].order = events[HEAP + child].order
        events[HEAP + hole].code = events[HEAP + child].code
        hole = child
    settle(events, hole, events[HEAP + n].time, events[HEAP + n].code)


@inlined
def kind_of(code: int) -> int:
    return (code >> INDEX_BITS) & _KIND_MASK


@inlined
def index_of(code: int) -> int:
    return code & _INDEX_MASK
