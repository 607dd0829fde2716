"""When each link and each server comes next, and which of them is first. Compiled.

Each has one moment at a time, and it moves: a link is through with its next transfer, later if
others join; a server reports, sooner if its backlog jumps. So they are not in the queue of events,
where an old moment would have to be found, or be looked at in vain when it comes. They are in a
*winner tree* (Knuth, The Art of Computer Programming 3, section 5.4.1): the moments are the leaves
of a full binary tree in one array, the links' before the servers', and every node above holds the
lesser of its two children. Moving one and finding the first
take a step for each level, without a branch.

At one and the same moment events come first, then links, then servers, each in their order.
"""

from __future__ import annotations

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array
from edgewise.sim.layout import World


def new_next_times(links: int, reports: Array) -> Array:
    """The tree of so many links, nothing under way, and of servers that first report at `reports`
    (S,), s. The earliest moment stands at 1."""
    used = links + reports.size
    leaves = max(8, 1 << (used - 1).bit_length())
    tree = np.full(2 * leaves, np.inf)
    tree[leaves + links : leaves + used] = reports
    for n in range(leaves - 1, 0, -1):
        tree[n] = min(tree[2 * n], tree[2 * n + 1])
    return tree


def report_times(world: World) -> Array:
    """When each server reports next, s (S,): a view. For callers outside compiled code."""
    begin = world.next_times.size // 2 + world.links.size
    due: Array = world.next_times[begin : begin + world.servers.size]
    return due


@jit_no_refcount(inline=True, internal=True)
def first_due(world: World) -> int:
    """Index of the earliest: a link's number, or the number of links plus a server's."""
    tree = world.next_times
    leaves = tree.size >> 1
    n = 1
    while n < leaves:
        n *= 2
        n += tree[n] != tree[1]
    return n - leaves


@jit_no_refcount(inline=True, internal=True)
def set_time(tree: Array, i: int, time: float) -> None:
    """Set the i-th time; +inf = never."""
    n = (tree.size >> 1) + i
    tree[n] = time
    while n > 1:
        other = tree[n ^ 1]
        time = other if other < time else time
        n >>= 1
        tree[n] = time


@jit_no_refcount(inline=True, internal=True)
def set_link_time(world: World, e: int, time: float) -> None:
    """Set when link `e` finishes its next transfer."""
    set_time(world.next_times, e, time)


@jit_no_refcount(inline=True, internal=True)
def set_report_time(world: World, s: int, time: float) -> None:
    """Set when server `s` reports next."""
    set_time(world.next_times, world.links.size + s, time)


@jit_no_refcount(inline=True, internal=True)
def report_time(world: World, s: int) -> float:
    """When server `s` reports next; inf while it is down."""
    due: float = world.next_times[(world.next_times.size >> 1) + world.links.size + s]
    return due
