"""Pairing heaps, for the flows of a link and the requests of a queue. Compiled.

All heaps (Fredman, Sedgewick, Sleator, Tarjan, Algorithmica 1, 1986) are linked lists in one array
of nodes. There are many small ones, and so none needs a capacity of its own.
"""

from __future__ import annotations

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array


@jit_no_refcount(inline=True, internal=True)
def meld(nodes: Array, a: int, b: int) -> int:
    """Join two heaps by their roots (−1 = empty); returns the new root. Among equal keys the lesser
    `order` comes first."""
    if a < 0:
        return b
    if b < 0:
        return a
    ka = nodes[a].key
    kb = nodes[b].key
    if kb < ka or (kb == ka and nodes[b].order < nodes[a].order):
        a, b = b, a
    nodes[b].sibling = nodes[a].child
    nodes[a].child = b
    return a


@jit_no_refcount(inline=True, internal=True)
def insert(nodes: Array, root: int, node: int, key: float, order: int) -> int:
    """Add a node; returns the root."""
    nodes[node].key = key
    nodes[node].order = order
    nodes[node].child = -1
    nodes[node].sibling = -1
    return meld(nodes, root, node)


@jit_no_refcount(internal=True)
def remove(nodes: Array, root: int, node: int, shift: float) -> int:
    """Remove any node and lower all keys above its own by `shift`; returns the new root.

    It visits every node of the heap, so it is meant for rare cases.
    """
    removed = nodes[node].key
    pending = root
    root = -1
    while pending >= 0:
        x = pending
        pending = nodes[x].sibling
        child = nodes[x].child
        while child >= 0:
            after = nodes[child].sibling
            nodes[child].sibling = pending
            pending = child
            child = after
        nodes[x].child = -1
        nodes[x].sibling = -1
        if x != node:
            if nodes[x].key > removed:
                nodes[x].key -= shift
            root = meld(nodes, root, x)
    return root


@jit_no_refcount(internal=True)
def remove_root(nodes: Array, root: int) -> int:
    """Remove the least node; returns the new root. Its children are joined in pairs, and the pairs
    from right to left."""
    first = nodes[root].child
    pairs = -1
    while first >= 0:
        second = nodes[first].sibling
        if second < 0:
            nodes[first].sibling = pairs
            pairs = first
            break
        after = nodes[second].sibling
        joined = meld(nodes, first, second)
        nodes[joined].sibling = pairs
        pairs = joined
        first = after
    root = -1
    while pairs >= 0:
        after = nodes[pairs].sibling
        nodes[pairs].sibling = -1
        root = meld(nodes, root, pairs)
        pairs = after
    return root
