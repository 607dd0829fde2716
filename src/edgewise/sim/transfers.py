"""What a node knows of the transfers on its links, and what it measures by them. Compiled.

Theory of operation
-------------------
A link of the simulation knows its flows to the byte (`sim.links`); its node does not. The node has
a ledger for each link that it sends on, and one for its clients (`live.node.measured_links`): a
transfer is in it from its beginning to the word that the last byte is in, which takes a way back;
an upload from its headers to its last byte. In between the transfers share what is believed of the
link equally (`fleet.estimates`). Reports say what the ledger says, and the rate is measured by what
leaves it.

A ledger is a list of flows threaded through `world.flows`, with a virtual time of its own. The
acknowledgement of a transfer has no event: `process_acknowledgements` applies it, at the time it
came, when the ledger is next read, for until then nothing depends on it. Before a slot is used
again its ledger is brought up to date.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.estimates import bytes_per_transfer, smooth_rate, waited_for_source
from edgewise.sim.layout import READY, World


@jit_no_refcount(inline=True, internal=True)
def update_ledger(world: World, e: int, now: float) -> None:
    """Bring the ledger of link `e` to `now`."""
    link = world.links[e]
    seconds = now - link.ledger_at
    if link.ledger_count > 0 and seconds > 0.0:
        link.ledger_area += seconds * link.ledger_count
        link.ledger_sent += bytes_per_transfer(link.measured, seconds, link.ledger_count)
    link.ledger_at = now


@jit_no_refcount(internal=True)
def remove_entry(world: World, f: int) -> None:
    """Take flow `f` out of its ledger, which is up to date."""
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
    """Update link `e`'s measured rate: flow `f` of `size` bytes took `seconds`."""
    link = world.links[e]
    flow = world.flows[f]
    lasted = now - flow.began
    sharing = (link.ledger_area - flow.area) / lasted if lasted > 0.0 else 1.0
    rate, at = smooth_rate(link.measured, link.measured_at, now, size, seconds, sharing, waited)
    link.measured = rate
    link.measured_at = at


@jit_no_refcount(internal=True)
def process_acknowledgements(world: World, e: int, now: float) -> None:
    """Apply the acknowledgements that the sender of link `e` had by `now`, in order."""
    link = world.links[e]
    while link.next_ack <= now:
        first = -1
        second = math.inf
        f: int = link.ledger_first
        while f >= 0:
            acked_at = world.flows[f].acked_at
            # Of those that come at one moment the one that began first: the list begins with the
            # last. Transfers of one size that began in an outage end together.
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
        # What was made ready here, or was in before, had no source to wait for.
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
    """Set when the sender of flow `f` learns that it has arrived."""
    flow = world.flows[f]
    flow.acked_at = time
    link = world.links[flow.link]
    link.next_ack = min(link.next_ack, time)


@jit_no_refcount(internal=True)
def drop_entry(world: World, f: int, now: float) -> None:
    """Remove flow `f` from its ledger, if it is in one: it was aborted, or nobody needs it."""
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
    """Measure the upload of slot `i`'s photo, of `size` bytes, which is in."""
    e: int = world.flows[i].link
    if e < 0:
        return
    update_ledger(world, e, now)
    remove_entry(world, i)
    measure_rate(world, e, i, size, now - world.flows[i].began, False, now)


@jit_no_refcount(internal=True)
def believed_backlog(world: World, e: int, now: float) -> float:
    """Bytes that the node of link `e` believes to be on it; the ledger is then at `now`."""
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
    """Clear the ledger and measurements of link `e`, whose node stopped."""
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
