"""The simulator's links: flows share a link equally, exactly by virtual time. Compiled.

Theory of operation
-------------------
A link's virtual time `served` is the number of bytes that a flow present throughout the busy period
would have sent so far. While n flows share the cumulative capacity C(t) equally, it grows by
dC / n. A flow of z bytes that joins at virtual time v has been sent when virtual time reaches its
*tag* v + z, whichever flows join and leave meanwhile. So the flows are kept in a heap of tags, and
only the first one needs a time (Parekh and Gallager, IEEE/ACM Trans. Networking 1(3), 1993, for
packets; here bytes are infinitely divisible). The first flow ends when C has grown by
(tag − v) · n. That time is found with the inverse of the capacity, so traces and outages during a
transfer are exact too.

In FIFO mode virtual time counts the bytes of the whole link, and a flow's tag is its size plus the
tag of the flow before it.

Each flow that joins or leaves changes the time at which the first flow ends (`sim.next_times`).

The propagation delay and the link's impairments come on top (`sim.impairments`).
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array, Record
from edgewise.network.transmission import bytes_between, time_to_send
from edgewise.sim.heaps import insert, remove, remove_root
from edgewise.sim.impairments import impaired
from edgewise.sim.layout import CONSTANT, CURVE, UNLIMITED, World
from edgewise.sim.next_times import set_link_time

SAME_BYTES = 1e-6
"""Bytes. A smaller rest of a transfer is a rounding error."""


@jit_no_refcount(inline=True, internal=True)
def capacity(link: Record, numbers: Array, since: float, until: float) -> float:
    """Bytes that a link can carry from `since` to `until`; 0 for an unlimited one."""
    if link.mode == CONSTANT and link.outage_count == 0:
        carried: float = link.rate * (until - since)
        return carried
    if link.mode == UNLIMITED:
        return 0.0
    n = link.curve_count
    a = link.curve_at
    o = link.outage_at
    if link.mode == CONSTANT:
        carried = link.rate * (until - since)
        for k in range(link.outage_count):
            begin = max(since, numbers[o + 2 * k])
            end = min(until, numbers[o + 2 * k + 1])
            if end > begin:
                carried -= link.rate * (end - begin)
        return carried
    return bytes_between(
        numbers[a : a + n],
        numbers[a + n : a + 2 * n],
        link.curve_period,
        numbers[o : o + 2 * link.outage_count].reshape(-1, 2),
        since,
        until,
    )


@jit_no_refcount(inline=True, internal=True)
def crossing_end(link: Record, numbers: Array, now: float, size: float) -> float:
    """When `size` bytes that have the link to themselves from `now` on are sent; inf = never."""
    t = now
    if link.mode == CURVE:
        n = link.curve_count
        a = link.curve_at
        o = link.outage_at
        return time_to_send(
            numbers[a : a + n],
            numbers[a + n : a + 2 * n],
            link.curve_period,
            numbers[o : o + 2 * link.outage_count].reshape(-1, 2),
            now,
            size,
        )
    left = 0.0 if link.mode == UNLIMITED else size / link.rate if size > 0.0 else 0.0
    for k in range(link.outage_count):
        begin = numbers[link.outage_at + 2 * k]
        end = numbers[link.outage_at + 2 * k + 1]
        if end <= t:
            continue
        if t + left <= begin:
            break
        left -= max(0.0, begin - t)
        t = end
    return t + left


@jit_no_refcount(inline=True, internal=True)
def update_link(world: World, e: int, now: float) -> None:
    """Bring a link's virtual time to `now`."""
    link = world.links[e]
    flows = link.flows
    if flows > 0 and now > link.at:
        carried = capacity(link, world.numbers, link.at, now)
        link.served += carried if world.settings[0].fifo_links != 0 else carried / flows
        link.area += flows * (now - link.at)
        link.bytes += carried
    link.at = now


@jit_no_refcount(inline=True, internal=True)
def bytes_left(world: World, e: int) -> float:
    """Bytes that link `e`, which is up to date, carries until its first flow is sent."""
    link = world.links[e]
    share = 1 if world.settings[0].fifo_links != 0 else link.flows
    left: float = max(0.0, world.nodes[link.root].key - link.served) * share
    return left


@jit_no_refcount(internal=True)
def schedule(world: World, e: int) -> None:
    """Set the time at which the first flow of link `e` is sent."""
    link = world.links[e]
    t = (
        crossing_end(link, world.numbers, link.at, bytes_left(world, e))
        if link.root >= 0
        else math.inf
    )
    set_link_time(world, e, t)


@jit_no_refcount(internal=True)
def join(world: World, e: int, node: int, size: float, now: float) -> None:
    """Add a flow of `size` bytes to link `e`."""
    link = world.links[e]
    update_link(world, e, now)
    if link.flows == 0:  # a new busy period: no tag refers to the old virtual time
        link.served = 0.0
        link.last_tag = 0.0
        link.tags = 0.0
    after = max(link.served, link.last_tag) if world.settings[0].fifo_links != 0 else link.served
    tag = size + after
    link.last_tag = tag
    link.tags += tag
    link.flows += 1
    link.root = insert(world.nodes, link.root, node, tag, world.clock[0].sequence)
    schedule(world, e)


@jit_no_refcount(inline=True, internal=True)
def leave(world: World, e: int, now: float) -> int:
    """Remove the first flow if it is sent by `now`, and return its node; else −1."""
    link = world.links[e]
    update_link(world, e, now)
    root: int = link.root
    if root < 0:
        return -1
    left = bytes_left(world, e)
    # Times have finite resolution: a rest whose end is no later than `now` is sent.
    if left > SAME_BYTES and crossing_end(link, world.numbers, now, left) > now:
        return -1
    link.tags -= world.nodes[root].key
    link.root = remove_root(world.nodes, root)
    link.flows -= 1
    return root


@jit_no_refcount(internal=True)
def remove_transfer(world: World, e: int, node: int, size: float) -> None:
    """Abort a flow of `size` bytes on link `e`; the rest of it is not sent."""
    link = world.links[e]
    update_link(world, e, world.clock[0].now)
    key = world.nodes[node].key
    # First in, first out: the flows behind it move up.
    left = min(size, max(0.0, key - link.served)) if world.settings[0].fifo_links != 0 else 0.0
    link.root = remove(world.nodes, link.root, node, left)
    link.tags -= key
    link.last_tag -= left
    link.flows -= 1
    schedule(world, e)


@jit_no_refcount(inline=True, internal=True)
def backlog(link: Record, fifo: bool) -> float:
    """Bytes of a link's flows that are not sent yet, as of its `at`."""
    if link.flows == 0:
        return 0.0
    left: float = link.last_tag - link.served if fifo else link.tags - link.flows * link.served
    return max(0.0, left)


@jit_no_refcount(inline=True, internal=True)
def delay_after_link(
    link: Record, seed: int, request: int, e: int, size: float, now: float
) -> float:
    """s from a transfer's end on the link, at `now`, to its arrival: propagation delay and
    impairments. inf = the connection is reset."""
    seconds: float = impaired(link.delay, link.impairments, seed, request, e, size, now)
    return seconds
