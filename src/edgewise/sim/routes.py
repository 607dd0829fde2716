"""The way of a request from its client to the server that runs it. Compiled.

The upload of the photo to the ingress starts when the request is sent. On the command the ingress
does one of three things:

- It runs the request once the upload has ended.
- It sends the original on while it still arrives (cut-through). The transfer takes its share of the
  link from the command on, even while it waits for its source. It reaches the destination a
  propagation delay after both the link has sent it and the upload has ended. `fleet.observe`
  predicts the same; real chunks would add the time of one chunk.
- It waits for the end of the upload, makes the payload model-ready and sends that.

`sim.retries` handles failures and timeouts.
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
    REASON_SERVER_ERROR,
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
    """The fastest service at slot `i`'s ingress that is accurate enough; −1 if there is none."""
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
    """Start the client's upload of slot `i`'s photo, if it has one."""
    slot = world.slots[i]
    if world.requests[slot.request].lost != 0:
        return
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
        return  # no time left: the timeout check comes at once
    add_entry(world, link, world.slots.size + i, size, now)
    if target.up == 0:  # the connection is refused, which is known after a round trip
        slot.reason = REASON_SERVER_DOWN
        back = world.links[world.path[slot.server, slot.ingress]].delay
        expect_result(world, i, now + world.links[link].delay + back, E_FAILED)
        return
    add_reference(world, i)
    slot.link = link
    join(world, link, world.slots.size + i, size, now)


@jit_no_refcount(internal=True)
def send_to_server(world: World, i: int, now: float) -> None:
    """Run or transfer slot `i`, which has its command, as far as its upload allows now."""
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

    The command needs no event if the ingress is to run the request and the upload is not finished:
    then `on_uploaded` applies it.
    """
    slot = world.slots[i]
    if slot.picked == slot.ingress and slot.uploaded == math.inf:
        slot.commanded = time
    else:
        schedule_for(world, i, time, E_COMMAND)


@jit_no_refcount(inline=True, internal=True)
def on_command(world: World, i: int, now: float) -> None:
    """Apply the command of slot `i` when it reaches the ingress."""
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
    if world.requests[slot.request].lost == 0:
        send_to_server(world, i, now)


@jit_no_refcount(inline=True, internal=True)
def on_metadata(world: World, i: int, now: float) -> None:
    """Enter slot `i`'s upload into the ledger: its headers reach the ingress with the metadata."""
    slot = world.slots[i]
    if world.requests[slot.request].lost != 0:
        return
    if slot.stage != DONE and slot.uploaded == math.inf and world.flows[i].link < 0:
        add_entry(world, slot.ingress, i, slot.payload, now)


@jit_no_refcount(inline=True, internal=True)
def on_uploaded(world: World, i: int, now: float) -> None:
    """Continue slot `i`, whose photo is complete at the ingress."""
    slot = world.slots[i]
    s = slot.ingress
    if slot.stage == DONE and world.servers[s].up == 0:
        return
    slot.uploaded = now
    measure_upload(world, i, slot.payload, now)
    if slot.stage == DONE or slot.commanded == math.inf:
        return
    if slot.commanded > now:  # the upload ended before the command came
        schedule_for(world, i, slot.commanded, E_COMMAND)
    elif slot.server == s:
        # The command had no event, so it is acknowledged only here. That does no harm: beliefs add
        # back only unacknowledged transfers, and this command causes none.
        seen = world.seen[slot.balancer, s]
        seen.commands = max(seen.commands, slot.command)
        enqueue(world, s, i, now)
    elif slot.form == READY:
        enqueue_conversion(world, i, now)
    elif slot.crossed < math.inf:
        deliver(world, i, now)


@jit_no_refcount(inline=True, internal=True)
def deliver(world: World, i: int, now: float) -> None:
    """Schedule the arrival of slot `i`'s transfer, which the link has sent completely."""
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
    """Acknowledge and queue slot `i`, whose transfer has reached its server."""
    slot = world.slots[i]
    if slot.stage == DONE or now != slot.result_at:
        return
    s = slot.server
    server = world.servers[s]
    if server.up == 0 or server.life != slot.destination_life:
        slot.reason = REASON_SERVER_DOWN
        expect_result(world, i, now + world.links[world.path[s, slot.ingress]].delay, E_FAILED)
        return
    schedule_acknowledgement(
        world, world.slots.size + i, now + world.links[world.path[s, slot.ingress]].delay
    )
    enqueue(world, s, i, now)


@jit_no_refcount(inline=True, internal=True)
def on_link(world: World, e: int, time: float) -> None:
    """Handle the transfers that link `e` has sent completely by `time`."""
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
    """Schedule the arrival of slot `i`'s upload, whose last byte the client has sent."""
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
    """Deliver slot `i`'s transfer, which link `e` has sent, if its upload has ended too."""
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
    """End the batch or conversion of worker `w`, and give the worker its next work."""
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
        failed = worker.finish <= worker.started
        seconds = (time - worker.started) / batch
        while i >= 0:
            slot = world.slots[i]
            after = slot.next
            if not failed:
                measure_service(world, slot.service, slot.form, seconds, batch)
            slot.at = -1
            if slot.stage != DONE:
                back = 0.0
                if s != slot.ingress:
                    back = world.links[world.path[s, slot.ingress]].delay
                if failed:
                    slot.reason = REASON_SERVER_ERROR
                    expect_result(world, i, time + back, E_FAILED)
                elif (
                    time + back <= slot.give_up
                ):  # else its ingress gives up before the answer comes
                    slot.finished = time
                    answer_client(world, i, SERVED, REASON_NONE, s, time)
            drop_reference(world, i)
            i = after
    next_work(world, s, w, time)
    report_if_jumped(world, s, time)
