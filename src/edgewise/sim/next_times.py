"""The next time of each link and each server, in a tournament tree. Compiled.

A link's time is the end of its first transfer, and a server's that of its next report. These times
are often rescheduled: a transfer ends later if others join the link, and a server reports earlier
if its backlog jumps. In the event queue, the old event would have to be found, or ignored when it
comes. So they are kept in a *winner tree* (Knuth, The Art of Computer Programming 3, section
5.4.1). It is a full binary tree in one array. The leaves are the times, the links' before the
servers', and every inner node holds the lesser of its two children. Changing a time and finding the
earliest each take one step per level, without a branch.

At equal times events come first, then links, then servers, each in order of their numbers.
"""

from __future__ import annotations

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array
from edgewise.sim.layout import World


def new_next_times(links: int, reports: Array) -> Array:
    """Make the tree for idle links (`links` of them) and servers that first report at `reports`
    (S,), s. Element 1 is the earliest time."""
    used = links + reports.size
    leaves = max(8, 1 << (used - 1).bit_length())
    tree = np.full(2 * leaves, np.inf)
    tree[leaves + links : leaves + used] = reports
    for n in range(leaves - 1, 0, -1):
        tree[n] = min(tree[2 * n], tree[2 * n + 1])
    return tree


def report_times(world: World) -> Array:
    """When each server reports next, s (S,), as a view. For callers outside compiled code."""
    begin = world.next_times.size // 2 + world.links.size
    due: Array = world.next_times[begin : begin + world.servers.size]
    return due


@jit_no_refcount(inline=True, internal=True)
def first_due(world: World) -> int:
    """The index of the earliest time: a link's number, or the number of links plus a server's."""
    tree = world.next_times
    leaves = tree.size >> 1
    n = 1
    while n < leaves:
        n *= 2
        n += tree[n] != tree[1]
    return n - leaves


@jit_no_refcount(inline=True, internal=True)
def set_time(tree: Array, i: int, time: float) -> None:
    """Set the i-th time of the tree; +inf = never."""
    n = (tree.size >> 1) + i
    tree[n] = time
    while n > 1:
        other = tree[n ^ 1]
        time = other if other < time else time
        n >>= 1
        tree[n] = time


@jit_no_refcount(inline=True, internal=True)
def set_link_time(world: World, e: int, time: float) -> None:
    """Set when the first transfer of link `e` ends."""
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
