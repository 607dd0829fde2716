"""Two heaps in arrays. Compiled.

The event heap is binary. Its ties go in the order in which events were made, so that a run does not
depend on how the heap happens to lie.

Flows of a link and requests of a queue are in *pairing heaps* (Fredman, Sedgewick, Sleator, Tarjan,
Algorithmica 1, 1986) threaded through one array of nodes: there are many small ones, and none of
them needs a size of its own.
"""

from __future__ import annotations

from edgewise.compiled import inlined, inner, lean
from edgewise.fleet.layout import Array

KIND_BITS = 4
INDEX_BITS = 29
"""5 × 10⁸ slots, links or workers; the 30 bits above count 10⁹ events before ties may mix."""
_INDEX_MASK = (1 << INDEX_BITS) - 1
_KIND_MASK = (1 << KIND_BITS) - 1
_SEQUENCE_MASK = (1 << 30) - 1


@lean
def push(events: Array, clock: Array, time: float, kind: int, index: int) -> None:
    """Let an event happen at `time`. The heap has room for all that can be under way."""
    n = clock[0].events
    sequence = clock[0].sequence
    clock[0].events = n + 1
    clock[0].sequence = sequence + 1
    code = ((sequence & _SEQUENCE_MASK) << (KIND_BITS + INDEX_BITS)) | (kind << INDEX_BITS) | index
    while n > 0:
        parent = (n - 1) >> 1
        other = events[parent].time
        if other < time or (other == time and events[parent].code < code):
            break
        events[n].time = other
        events[n].code = events[parent].code
        n = parent
    events[n].time = time
    events[n].code = code


@inlined
def pop(events: Array, clock: Array) -> int:
    """Take the first event out; returns its code. The heap must not be empty."""
    code: int = events[0].code
    n = clock[0].events - 1
    clock[0].events = n
    if n == 0:
        return code
    time = events[n].time
    last = events[n].code
    hole = 0
    child = 1
    while child < n:
        first = events[child].time
        right = child + 1
        if right < n:
            second = events[right].time
            if second < first or (second == first and events[right].code < events[child].code):
                child = right
                first = second
        if time < first or (time == first and last < events[child].code):
            break
        events[hole].time = first
        events[hole].code = events[child].code
        hole = child
        child = 2 * hole + 1
    events[hole].time = time
    events[hole].code = last
    return code


@inlined
def kind_of(code: int) -> int:
    return (code >> INDEX_BITS) & _KIND_MASK


@inlined
def index_of(code: int) -> int:
    return code & _INDEX_MASK


@inlined
def meld(nodes: Array, a: int, b: int) -> int:
    """Join two heaps by their roots (−1 = empty); returns the root. Equal keys go in order."""
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


@inlined
def insert(nodes: Array, root: int, node: int, key: float, order: int) -> int:
    """Add a node; returns the root."""
    nodes[node].key = key
    nodes[node].order = order
    nodes[node].child = -1
    nodes[node].sibling = -1
    return meld(nodes, root, node)


@inner
def remove(nodes: Array, root: int, node: int, shift: float) -> int:
    """Take any node out; returns the root. Keys above its own fall by `shift`. Looks at every node:
    for what is rare."""
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


@inner
def remove_root(nodes: Array, root: int) -> int:
    """Take the least node out; returns the new root: its children in pairs, then right to left."""
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
