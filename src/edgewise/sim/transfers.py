"""The ledgers in which nodes record their transfers, and the rates measured from them. Compiled.

Theory of operation
-------------------
The state of a simulated link is exact to the byte (`sim.links`), but its node cannot see it. A node
keeps a ledger for each link that it sends on, and one for its clients' uploads
(`live.node.measured_links`). A transfer is in the ledger from its start until the acknowledgement
of its last byte reaches the sender; an upload, from its headers to its last byte. Meanwhile the
transfers are assumed to share the link's believed rate equally (`fleet.estimates`). Reports give
the ledger's figures, and each transfer that leaves the ledger is a measurement of the rate.

A ledger is a linked list of flows in `world.flows`, with a virtual time of its own. There are no
events for acknowledgements. `process_acknowledgements` applies them, at the times at which they
came, before the ledger is next read or changed, and before a slot is reused.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.estimates import bytes_per_transfer, smooth_rate, waited_for_source
from edgewise.sim.layout import READY, World


@jit_no_refcount(inline=True, internal=True)
def update_ledger(world: World, e: int, now: float) -> None:
    """Bring the virtual time of link `e`'s ledger to `now`."""
    link = world.links[e]
    seconds = now - link.ledger_at
    if link.ledger_count > 0 and seconds > 0.0:
        link.ledger_area += seconds * link.ledger_count
        link.ledger_sent += bytes_per_transfer(link.measured, seconds, link.ledger_count)
    link.ledger_at = now


@jit_no_refcount(internal=True)
def remove_entry(world: World, f: int) -> None:
    """Remove flow `f` from its ledger, which is up to date."""
    flow = world.flows[f]
    link = world.links[flow.link]
    link.ledger_count -= 1
    if flow.before >= 0:
        world.flows[flow.before].after = flow.after
    else:
        link.ledger_first = flow.after
    if flow.after >= 0:
        world.flows[flow.after].before = flow.before
    flow.link = -1


@jit_no_refcount(inline=True, internal=True)
def measure_rate(
    world: World, e: int, f: int, size: float, seconds: float, waited: bool, now: float
) -> None:
    """Update the measured rate of link `e` by flow `f`, whose `size` bytes took `seconds`.

    `waited`: it waited for its own source.
    """
    link = world.links[e]
    flow = world.flows[f]
    lasted = now - flow.began
    sharing = (link.ledger_area - flow.area) / lasted if lasted > 0.0 else 1.0
    rate, at = smooth_rate(link.measured, link.measured_at, now, size, seconds, sharing, waited)
    link.measured = rate
    link.measured_at = at


@jit_no_refcount(internal=True)
def process_acknowledgements(world: World, e: int, now: float) -> None:
    """Apply the acknowledgements that the sender of link `e` received by `now`, in order."""
    link = world.links[e]
    while link.next_ack <= now:
        first = -1
        second = math.inf
        f: int = link.ledger_first
        while f >= 0:
            acked_at = world.flows[f].acked_at
            # At equal times the flow that started first counts first; the list starts with the
            # last one. Transfers of equal size that started in an outage end together.
            if first < 0 or acked_at <= world.flows[first].acked_at:
                second = world.flows[first].acked_at if first >= 0 else math.inf
                first = f
            elif acked_at < second:
                second = acked_at
            f = world.flows[f].after
        link.next_ack = second
        if first < 0 or not (world.flows[first].acked_at <= now):
            link.next_ack = world.flows[first].acked_at if first >= 0 else math.inf
            return
        at = world.flows[first].acked_at
        update_ledger(world, e, at)
        remove_entry(world, first)
        slot = world.slots[first - world.slots.size]
        rtt = link.delay + world.links[world.path[slot.server, slot.ingress]].delay
        began = world.flows[first].began
        # A payload that was made model-ready here was complete before its transfer.
        waited = slot.form != READY and waited_for_source(slot.uploaded, began, at)
        measure_rate(world, e, first, slot.bytes, at - began - rtt, waited, at)


@jit_no_refcount(internal=True)
def add_entry(world: World, e: int, f: int, size: float, now: float) -> None:
    """Enter flow `f` of `size` bytes into the ledger of link `e`."""
    if world.links[e].next_ack <= now:
        process_acknowledgements(world, e, now)
    update_ledger(world, e, now)
    link = world.links[e]
    flow = world.flows[f]
    flow.link = e
    flow.before = -1
    flow.after = link.ledger_first
    if link.ledger_first >= 0:
        world.flows[link.ledger_first].before = f
    link.ledger_first = f
    link.ledger_count += 1
    flow.began = now
    flow.area = link.ledger_area
    flow.tag = link.ledger_sent + size
    flow.acked_at = math.inf


@jit_no_refcount(inline=True, internal=True)
def schedule_acknowledgement(world: World, f: int, time: float) -> None:
    """Set the time at which the acknowledgement of flow `f` reaches its sender."""
    flow = world.flows[f]
    flow.acked_at = time
    link = world.links[flow.link]
    link.next_ack = min(link.next_ack, time)


@jit_no_refcount(internal=True)
def drop_entry(world: World, f: int, now: float) -> None:
    """Remove flow `f`, which was aborted or is no longer needed, if it is in a ledger."""
    e: int = world.flows[f].link
    if e < 0:
        return
    if world.links[e].next_ack <= now:
        process_acknowledgements(world, e, now)
    if world.flows[f].link >= 0:
        update_ledger(world, e, now)
        remove_entry(world, f)


@jit_no_refcount(internal=True)
def measure_upload(world: World, i: int, size: float, now: float) -> None:
    """Measure the rate by the upload of slot `i`'s photo of `size` bytes, which has just ended."""
    e: int = world.flows[i].link
    if e < 0:
        return
    update_ledger(world, e, now)
    remove_entry(world, i)
    measure_rate(world, e, i, size, now - world.flows[i].began, False, now)


@jit_no_refcount(internal=True)
def believed_backlog(world: World, e: int, now: float) -> float:
    """Bytes that the node of link `e` believes to be on it; brings the ledger to `now`."""
    if world.links[e].next_ack <= now:
        process_acknowledgements(world, e, now)
    update_ledger(world, e, now)
    total = 0.0
    f: int = world.links[e].ledger_first
    while f >= 0:
        total += max(0.0, world.flows[f].tag - world.links[e].ledger_sent)
        f = world.flows[f].after
    return total


@jit_no_refcount(internal=True)
def clear_ledger(world: World, e: int) -> None:
    """Clear the ledger and the measured rate of link `e`, whose node has stopped."""
    link = world.links[e]
    f: int = link.ledger_first
    while f >= 0:
        world.flows[f].link = -1
        f = world.flows[f].after
    link.ledger_count = 0
    link.ledger_first = -1
    link.next_ack = math.inf
    link.measured = math.nan
    link.measured_at = math.nan
