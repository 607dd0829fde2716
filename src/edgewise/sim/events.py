"""The event queue: a sorted list of near events and a heap of far ones. Compiled.

The next event is the earlier of the first of the list and the first of the heap. Most events happen
soon after they are made. These go to the list, which is sorted by falling time: the next event is
the last element, so removing it decrements a counter, and inserting one moves only the few events
that come before it. Timers (`heap_push`) would have to move past all of these, so they go to a
binary heap. A heap alone would be slower, because its branches are hard to predict. When the list
is full, its later half moves to the heap. Times that are often rescheduled are in `sim.next_times`
instead.

Events at equal times happen in the order in which they were made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array, records
from edgewise.sim.layout import EVENT, World

KIND_BITS = 4
INDEX_BITS = 29
"""Enough for 5 × 10⁸ slots, links or workers. The 30 bits above number 10⁹ events before their
order at equal times may be wrong."""
_INDEX_MASK = (1 << INDEX_BITS) - 1
_KIND_MASK = (1 << KIND_BITS) - 1
_SEQUENCE_MASK = (1 << 30) - 1

NEAR = 128
"""Capacity of the sorted list. Eight servers at 440 requests/s have about 60 events under way."""
_HALF = NEAR // 2


def new_near() -> tuple[Array, Array]:
    """Allocate the times and codes of the sorted list. Element 0 is a sentinel at +inf, so that an
    insertion need not check for the end of the list."""
    times = np.zeros(NEAR + 1)
    times[0] = np.inf
    return times, np.zeros(NEAR + 1, np.int64)


def new_events(room: int, planned: Sequence[tuple[float, int, int]]) -> Array:
    """Make a heap with room for `room` events that holds those `planned`.

    Each of these is (time, kind, index), in order of making. The caller sets `clock.events` and
    `clock.sequence` to their number.
    """
    events = records(max(1, room), EVENT)
    events[0]["time"] = np.inf
    codes = [
        (n << (KIND_BITS + INDEX_BITS)) | (kind << INDEX_BITS) | index
        for n, (_, kind, index) in enumerate(planned)
    ]
    # A sorted list is a heap.
    for n, event in enumerate(sorted(zip((p[0] for p in planned), codes, strict=True))):
        events[n] = event
    return events


@jit_no_refcount(inline=True, internal=True)
def code_of(world: World, kind: int, index: int) -> int:
    """The code of an event that is made now; counts it."""
    clock = world.clock[0]
    sequence = clock.sequence
    clock.sequence = sequence + 1
    order: int = (sequence & _SEQUENCE_MASK) << (KIND_BITS + INDEX_BITS)
    return order | (kind << INDEX_BITS) | index


@jit_no_refcount(internal=True)
def push(world: World, time: float, kind: int, index: int) -> None:
    """Schedule an event at `time`; +inf = never. The arrays have room for all events that can be
    under way."""
    if time == math.inf:
        return
    clock = world.clock[0]
    code = code_of(world, kind, index)
    if clock.near == NEAR:
        move_half_to_heap(world)
    times, codes = world.near, world.near_codes
    place = clock.near + 1
    clock.near = place
    while times[place - 1] <= time:
        times[place] = times[place - 1]
        codes[place] = codes[place - 1]
        place -= 1
    times[place] = time
    codes[place] = code


@jit_no_refcount(internal=True)
def heap_push(world: World, time: float, kind: int, index: int) -> None:
    """Schedule an event as `push` does, for timers: they mostly come after all other events."""
    if time < math.inf:
        heap_push_event(world, time, code_of(world, kind, index))


@jit_no_refcount(internal=True)
def move_half_to_heap(world: World) -> None:
    """Move the later half of the sorted list to the heap."""
    times, codes = world.near, world.near_codes
    for j in range(_HALF, 0, -1):
        heap_push_event(world, times[j], codes[j])
    for j in range(_HALF + 1, NEAR + 1):
        times[j - _HALF] = times[j]
        codes[j - _HALF] = codes[j]
    world.clock[0].near = NEAR - _HALF


@jit_no_refcount(inline=True, internal=True)
def next_time(world: World) -> float:
    """Time of the next event; inf if there is none."""
    time: float = world.near[world.clock[0].near]
    far: float = world.events[0].time
    return far if far < time else time


@jit_no_refcount(inline=True, internal=True)
def pop(world: World) -> int:
    """Remove the next event and return its code; there must be one (`next_time`)."""
    n = world.clock[0].near
    code: int = world.near_codes[n]
    first = world.events[0]
    time = world.near[n]
    if (first.time > time) | ((first.time == time) & (first.code > code)):
        world.clock[0].near = n - 1
        return code
    code = first.code
    heap_pop(world)
    return code


@jit_no_refcount(inline=True, internal=True)
def sift_up(events: Array, hole: int, time: float, code: int) -> None:
    """Sift an event up from the free position `hole` of the heap."""
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


@jit_no_refcount(internal=True)
def heap_push_event(world: World, time: float, code: int) -> None:
    """Push an event onto the heap."""
    n = world.clock[0].events
    world.clock[0].events = n + 1
    sift_up(world.events, n, time, code)


@jit_no_refcount(internal=True)
def heap_pop(world: World) -> None:
    """Remove the heap's first event; there must be one."""
    events = world.events
    n = world.clock[0].events - 1
    world.clock[0].events = n
    if n == 0:
        events[0].time = math.inf
        return
    # Move the hole down to a leaf along the lesser children, then sift the last event up from
    # there: it was a leaf and mostly belongs near one.
    hole = 0
    child = 1
    while child < n:
        if child + 1 < n:
            a, b = events[child], events[child + 1]
            child += (b.time < a.time) | ((b.time == a.time) & (b.code < a.code))
        events[hole].time = events[child].time
        events[hole].code = events[child].code
        hole = child
        child = 2 * hole + 1
    sift_up(events, hole, events[n].time, events[n].code)


@jit_no_refcount(inline=True, internal=True)
def kind_of(code: int) -> int:
    return (code >> INDEX_BITS) & _KIND_MASK


@jit_no_refcount(inline=True, internal=True)
def index_of(code: int) -> int:
    return code & _INDEX_MASK
