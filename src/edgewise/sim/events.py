"""What is to happen, and when: the queue of events. Compiled.

It has two parts, and what comes next is the first of either. Most of what is to happen has been
caused just now and happens soon: such events stand in order, the last to come first. So the next
one is the last, and taking it is counting down; a new one goes in from there, and those before it
move up by one. Timers (`heap_push`) would move past all of these, and wait in a binary heap. (A
heap
alone takes longer: its branches are as good as random.) When there is no room in order, the later
half goes to the heap too. What has a moment that moves is not in it at all (`sim.next_times`).

Ties go in the order in which events were made.
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
"""5 × 10⁸ slots, links or workers; the 30 bits above count 10⁹ events before ties may mix."""
_INDEX_MASK = (1 << INDEX_BITS) - 1
_KIND_MASK = (1 << KIND_BITS) - 1
_SEQUENCE_MASK = (1 << 30) - 1

NEAR = 128
"""Room for events in order. Eight servers at 440 requests/s have about 60 under way."""
_HALF = NEAR // 2


def new_near() -> tuple[Array, Array]:
    """Room for the times and codes of the events in order. What comes after all of them, and never,
    stands first: so whoever looks for a place needs not look for the end."""
    times = np.zeros(NEAR + 1)
    times[0] = np.inf
    return times, np.zeros(NEAR + 1, np.int64)


def new_events(room: int, planned: Sequence[tuple[float, int, int]]) -> Array:
    """A heap with room for `room` events, with those `planned`: (time, kind, index) each, in the
    order in which they are made. The clock has to be told how many."""
    events = records(max(1, room), EVENT)
    events[0]["time"] = np.inf
    codes = [
        (n << (KIND_BITS + INDEX_BITS)) | (kind << INDEX_BITS) | index
        for n, (_, kind, index) in enumerate(planned)
    ]
    # What is sorted is a heap.
    for n, event in enumerate(sorted(zip((p[0] for p in planned), codes, strict=True))):
        events[n] = event
    return events


@jit_no_refcount(inline=True, internal=True)
def code_of(world: World, kind: int, index: int) -> int:
    """Of an event that is made now."""
    clock = world.clock[0]
    sequence = clock.sequence
    clock.sequence = sequence + 1
    order: int = (sequence & _SEQUENCE_MASK) << (KIND_BITS + INDEX_BITS)
    return order | (kind << INDEX_BITS) | index


@jit_no_refcount(internal=True)
def push(world: World, time: float, kind: int, index: int) -> None:
    """Let an event happen at `time`, +inf = never. There is room for all that can be under way."""
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
    """As `push`, for timers: as a rule they come after most of what is under way."""
    if time < math.inf:
        heap_push_event(world, time, code_of(world, kind, index))


@jit_no_refcount(internal=True)
def move_half_to_heap(world: World) -> None:
    """The later half of those in order to the heap."""
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
    """Sift an event up from the heap's hole."""
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
    # The hole goes all the way down along the lesser children, and the last event up from there:
    # it was a leaf and mostly belongs near one.
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
