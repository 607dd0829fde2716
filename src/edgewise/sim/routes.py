"""How a request gets from its client to the server that runs it, and what a link does. Compiled.

The photo streams up to the ingress from the moment of sending. On the command the ingress

- runs it, once the body is in;
- or sends the original on as it comes (cut-through). The transfer takes its share of the link from
  the command on, and the body is in at the far end a propagation delay after the later of *the
  link is through with it* and *the upload was in*: a transfer that waits for its source keeps its
  share, and what the source sends last takes no time of the link any more. This is what
  `fleet.observe` predicts; real chunks would add one chunk's time;
- or, once the body is in, has it made model-ready and sends that.

What the ingress does when that fails, or takes too long, is in `sim.retries`.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.timeouts import give_up_at
from edgewise.sim.layout import (
    DONE,
    E_COMMAND,
    E_DELIVERED,
    E_FAILED,
    E_UPLOADED,
    FAILED,
    READY,
    REASON_NONE,
    REASON_RESET,
    REASON_SERVER_DOWN,
    SERVED,
    SHED,
    UNLIMITED,
    World,
)
from edgewise.sim.links import delay_after_link, join, leave, schedule
from edgewise.sim.servers import (
    enqueue,
    enqueue_conversion,
    measure_service,
    next_conversion,
    next_work,
    report_if_jumped,
    start_conversion,
)
from edgewise.sim.slots import (
    add_reference,
    answer_client,
    drop_reference,
    end_request,
    expect_result,
    notify_balancer,
    schedule_for,
    schedule_timeout,
)
from edgewise.sim.transfers import add_entry, measure_upload, schedule_acknowledgement


@jit_no_refcount(inline=True, internal=True)
def quickest_here(world: World, i: int) -> int:
    """The service of the ingress that meets the demand in the least time; −1 if none does."""
    slot = world.slots[i]
    server = world.servers[slot.ingress]
    best = -1
    least = math.inf
    for k in range(server.first_service, server.end_service):
        service = world.services[k]
        time = service.service_time if service.accuracy >= slot.demanded else math.inf
        best = k if time < least else best
        least = min(least, time)
    return best


@jit_no_refcount(inline=True, internal=True)
def start_upload(world: World, i: int, now: float) -> None:
    """Start the client's upload of slot `i`'s photo."""
    slot = world.slots[i]
    add_reference(world, i)
    join(world, slot.ingress, i, slot.payload, now)


@jit_no_refcount(inline=True, internal=True)
def start_transfer(world: World, i: int, size: float, now: float) -> None:
    """Start the transfer of `size` bytes of slot `i` from the ingress to its server."""
    slot = world.slots[i]
    target = world.servers[slot.server]
    link = world.path[slot.ingress, slot.server]
    slot.bytes = size
    slot.crossed = math.inf
    slot.destination_life = target.life
    k = quickest_here(world, i)
    give_up = give_up_at(
        slot.deadline,
        slot.deadline - slot.sent,
        world.settings[0].grace,
        world.services[k].service_time if k >= 0 else math.nan,
    )
    slot.give_up = max(now, give_up)
    schedule_timeout(world, i)
    if now >= give_up:
        return  # no time left to try it, which comes up at once
    add_entry(world, link, world.slots.size + i, size, now)
    if target.up == 0:  # nobody takes the connection: known after a round trip
        slot.reason = REASON_SERVER_DOWN
        back = world.links[world.path[slot.server, slot.ingress]].delay
        expect_result(world, i, now + world.links[link].delay + back, E_FAILED)
        return
    add_reference(world, i)
    slot.link = link
    join(world, link, world.slots.size + i, size, now)


@jit_no_refcount(internal=True)
def send_to_server(world: World, i: int, now: float) -> None:
    """The ingress has command and server of slot `i`, and perhaps the body: what can be done?"""
    slot = world.slots[i]
    if slot.server == slot.ingress:
        if slot.uploaded <= now:
            enqueue(world, slot.server, i, now)
    elif slot.form != READY:
        start_transfer(world, i, slot.payload, now)
    elif slot.uploaded <= now:
        enqueue_conversion(world, i, now)


@jit_no_refcount(inline=True, internal=True)
def schedule_command(world: World, i: int, time: float) -> None:
    """Schedule the command of slot `i` to reach the ingress at `time`.

    A request that it is to run itself waits for its body anyway. Where that is still on its way,
    the command needs no event of its own (`on_uploaded`).
    """
    slot = world.slots[i]
    if slot.picked == slot.ingress and slot.uploaded == math.inf:
        slot.commanded = time
    else:
        schedule_for(world, i, time, E_COMMAND)


@jit_no_refcount(inline=True, internal=True)
def on_command(world: World, i: int, now: float) -> None:
    slot = world.slots[i]
    if slot.stage == DONE:
        return
    seen = world.seen[slot.balancer, slot.ingress]
    seen.commands = max(seen.commands, slot.command)
    slot.commanded = now
    if slot.picked < 0:
        end_request(world, i, SHED, slot.reason, now)
        notify_balancer(world, i, now + world.settings[0].control_delay)
        return
    send_to_server(world, i, now)


@jit_no_refcount(inline=True, internal=True)
def on_metadata(world: World, i: int, now: float) -> None:
    """The ingress has the headers of slot `i`'s photo; they come with the metadata."""
    slot = world.slots[i]
    if slot.stage != DONE and slot.uploaded == math.inf and world.flows[i].link < 0:
        add_entry(world, slot.ingress, i, slot.payload, now)


@jit_no_refcount(inline=True, internal=True)
def on_uploaded(world: World, i: int, now: float) -> None:
    slot = world.slots[i]
    s = slot.ingress
    if slot.stage == DONE and world.servers[s].up == 0:
        return
    slot.uploaded = now
    measure_upload(world, i, slot.payload, now)
    if slot.stage == DONE or slot.commanded == math.inf:
        return
    if slot.commanded > now:  # the body was quicker
        schedule_for(world, i, slot.commanded, E_COMMAND)
    elif slot.server == s:
        # With no event for the command it is acknowledged here. Nothing hangs on that: what is put
        # back after a report are transfers, and of those this is none.
        seen = world.seen[slot.balancer, s]
        seen.commands = max(seen.commands, slot.command)
        enqueue(world, s, i, now)
    elif slot.form == READY:
        enqueue_conversion(world, i, now)
    elif slot.crossed < math.inf:
        deliver(world, i, now)


@jit_no_refcount(inline=True, internal=True)
def deliver(world: World, i: int, now: float) -> None:
    """The last byte of slot `i`'s transfer has left the link, and the source had it all."""
    slot = world.slots[i]
    e = world.path[slot.ingress, slot.server]
    extra = delay_after_link(
        world.links[e], world.settings[0].seed, slot.request, e, slot.bytes, now
    )
    if extra < math.inf:
        expect_result(world, i, now + extra, E_DELIVERED)
    else:
        slot.reason = REASON_RESET
        expect_result(world, i, now + world.links[e].delay, E_FAILED)


@jit_no_refcount(inline=True, internal=True)
def on_delivered(world: World, i: int, now: float) -> None:
    slot = world.slots[i]
    if slot.stage == DONE or now != slot.result_at:
        return
    s = slot.server
    server = world.servers[s]
    if server.up == 0 or server.life != slot.destination_life:
        slot.reason = REASON_SERVER_DOWN
        expect_result(world, i, now + world.links[world.path[s, slot.ingress]].delay, E_FAILED)
        return
    # Its sender hears so, and learns of the link, with what was under way meanwhile.
    schedule_acknowledgement(
        world, world.slots.size + i, now + world.links[world.path[s, slot.ingress]].delay
    )
    enqueue(world, s, i, now)


@jit_no_refcount(inline=True, internal=True)
def on_link(world: World, e: int, time: float) -> None:
    """The first transfer of link `e` is across, and perhaps others."""
    slots = world.slots.size
    while True:
        node = leave(world, e, time)
        if node < 0:
            break
        if node < slots:
            on_upload_done(world, node, e, time)
        else:
            on_transfer_done(world, node - slots, e, time)
    schedule(world, e)


@jit_no_refcount(inline=True, internal=True)
def on_upload_done(world: World, i: int, e: int, now: float) -> None:
    """The client has sent the last byte of slot `i`'s photo."""
    slot = world.slots[i]
    link = world.links[e]
    if link.mode == UNLIMITED:
        link.bytes += slot.payload
    extra = delay_after_link(link, world.settings[0].seed, slot.request, e, slot.payload, now)
    if extra < math.inf:
        schedule_for(world, i, now + extra, E_UPLOADED)
    elif slot.stage != DONE:
        end_request(world, i, FAILED, REASON_RESET, now)
        notify_balancer(world, i, now + link.delay)
    drop_reference(world, i)


@jit_no_refcount(inline=True, internal=True)
def on_transfer_done(world: World, i: int, e: int, now: float) -> None:
    """The link is through with slot `i`'s transfer."""
    slot = world.slots[i]
    link = world.links[e]
    if link.mode == UNLIMITED:
        link.bytes += slot.bytes
    slot.crossed = now
    slot.link = -1
    if slot.stage != DONE and slot.uploaded <= now:
        deliver(world, i, now)
    drop_reference(world, i)


@jit_no_refcount(inline=True, internal=True)
def on_finish(world: World, w: int, time: float) -> None:
    """Worker `w` is done."""
    worker = world.workers[w]
    if worker.slot < 0 or worker.finish != time:
        return  # its server was stopped meanwhile
    s = worker.server
    i = worker.slot
    own = w - (world.workers.size - world.servers.size)
    if worker.preparing != 0:
        if world.slots[i].stage != DONE:
            start_transfer(world, i, world.services[world.slots[i].service].ready_bytes, time)
        drop_reference(world, i)
        if own >= 0:
            j = next_conversion(world, s)
            if j >= 0:
                start_conversion(world, s, w, j, time)
            else:
                worker.slot = -1
            report_if_jumped(world, s, time)
            return
    else:
        batch = worker.batch
        seconds = (time - worker.started) / batch
        while i >= 0:
            slot = world.slots[i]
            after = slot.next
            measure_service(world, slot.service, slot.form, seconds, batch)
            slot.at = -1
            if slot.stage != DONE:
                back = 0.0
                if s != slot.ingress:
                    back = world.links[world.path[s, slot.ingress]].delay
                if time + back <= slot.give_up:  # else its ingress has given up before it is in
                    slot.finished = time
                    answer_client(world, i, SERVED, REASON_NONE, s, time)
            drop_reference(world, i)
            i = after
    next_work(world, s, w, time)
    report_if_jumped(world, s, time)
