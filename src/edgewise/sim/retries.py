"""What an ingress does when a peer fails or keeps it waiting, or time is up. Compiled.

The rules are those of `live.node.request_handler`, their numbers those of `fleet.timeouts`. A
peer's answer is waited for until it would be worth little; then the transfer is broken off, which
frees the link for others, and the destination forgets the request. While there is time the ingress
tries what else was ranked, servers that have not failed it nor were full; then its own quickest
service, if that pays; then it says that it failed. When a request can no longer score its ingress
answers that it expired.

A request that a peer is running when it is given up goes on running there, for nobody interrupts a
worker; its place is taken by one that nobody waits for. Where no server can fail and no queue can
fill up, only timeouts come here, after which there is no time for another peer: no ranking is kept.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.timeouts import worth_running
from edgewise.sim.heaps import remove
from edgewise.sim.layout import (
    ALTERNATIVES,
    DONE,
    EXPIRED,
    FAILED,
    OPEN,
    REASON_NO_TIME,
    REASON_NONE,
    REASON_QUEUE_FULL,
    SHED,
    World,
)
from edgewise.sim.links import remove_transfer
from edgewise.sim.routes import quickest_here, send_to_server
from edgewise.sim.servers import (
    clear_conversion_mark,
    expected_work,
    remove_from_queue,
    report_if_jumped,
    wait_for,
)
from edgewise.sim.slots import (
    drop_reference,
    end_request,
    notify_balancer,
    schedule_timeout,
    take_slot,
)
from edgewise.sim.transfers import drop_entry


@jit_no_refcount(internal=True)
def abort_transfer(world: World, i: int) -> None:
    """Abort the transfer of slot `i`, if one is under way."""
    slot = world.slots[i]
    slot.result_at = math.inf
    slot.give_up = math.inf
    drop_entry(world, world.slots.size + i, world.clock[0].now)
    if slot.link < 0:
        return
    remove_transfer(
        world,
        slot.link,
        world.slots.size + i,
        slot.bytes,
    )
    slot.link = -1
    drop_reference(world, i)


@jit_no_refcount(internal=True)
def leave_queue(world: World, i: int, now: float) -> None:
    """Remove slot `i` from the server's queue that it waits in."""
    slot = world.slots[i]
    s: int = slot.at
    service = world.services[slot.service]
    service.queue = remove(world.nodes, service.queue, 2 * world.slots.size + i, 0.0)
    remove_from_queue(world, s, i)
    slot.at = -1
    drop_reference(world, i)
    report_if_jumped(world, s, now)


@jit_no_refcount(internal=True)
def detach_from_worker(world: World, i: int) -> bool:
    """Detach slot `i` from the worker that runs it; the worker finishes on a placeholder slot.
    Returns False if no slot is free for that."""
    slot = world.slots[i]
    now = world.clock[0].now
    server = world.servers[slot.at]
    other = take_slot(world, now)
    if other < 0:
        return False
    placeholder = world.slots[other]
    placeholder.request = slot.request
    placeholder.stage = DONE
    placeholder.references = 1
    placeholder.ingress = slot.ingress
    placeholder.service = slot.service
    placeholder.server = slot.server
    placeholder.form = slot.form
    placeholder.at = slot.at
    placeholder.picked = -1
    placeholder.awaits_conversion = 0
    placeholder.link = -1
    placeholder.next = slot.next
    for w in range(server.first_worker, server.first_worker + server.workers):
        worker = world.workers[w]
        if worker.slot == i:
            worker.slot = other
            break
        j: int = worker.slot if worker.preparing == 0 else -1
        while j >= 0 and world.slots[j].next != i:
            j = world.slots[j].next
        if j >= 0:
            world.slots[j].next = other
            break
    slot.at = -1
    drop_reference(world, i)
    return True


@jit_no_refcount(internal=True)
def on_timeout_check(world: World, i: int, time: float) -> None:
    """Check whether slot `i` has passed give_up (its peer is too late) or expiry."""
    slot = world.slots[i]
    if time != slot.timeout_at:
        return  # an earlier event has taken its place
    slot.timeout_at = math.inf
    if slot.stage != OPEN:
        return
    if time >= slot.expiry:
        expire(world, i, time)
        return
    if time >= slot.give_up:
        if slot.at >= 0:
            if slot.started <= time:
                if not detach_from_worker(world, i):
                    slot.give_up = math.inf
                    schedule_timeout(world, i)
                    return
            else:
                leave_queue(world, i, time)
        # What its peer knows of it never comes, also if it is through and its answer on the way.
        slot.transferred = math.inf
        slot.started = math.inf
        abort_transfer(world, i)
        slot.reason = REASON_NO_TIME
        try_next(world, i, time)
        if slot.stage != OPEN:
            return
    schedule_timeout(world, i)


@jit_no_refcount(internal=True)
def expire(world: World, i: int, now: float) -> None:
    """End slot `i`'s request as expired: no answer can score any more."""
    slot = world.slots[i]
    if slot.at >= 0 and slot.started > now:
        leave_queue(world, i, now)
    elif slot.awaits_conversion != 0:  # it stays in line, as nobody, until its turn
        clear_conversion_mark(world, slot.ingress, i)
        report_if_jumped(world, slot.ingress, now)
    if slot.server != slot.ingress:  # its ingress does not know how far its peer is
        slot.transferred = math.inf
        slot.started = math.inf
    end_request(world, i, EXPIRED, REASON_NONE, now)
    notify_balancer(world, i, now + world.settings[0].control_delay)
    abort_transfer(world, i)


@jit_no_refcount(internal=True)
def on_failed(world: World, i: int, now: float) -> None:
    """The ingress learns that the attempt with slot `i` failed."""
    slot = world.slots[i]
    if slot.stage == DONE or now != slot.result_at:
        return
    slot.result_at = math.inf
    slot.give_up = math.inf
    drop_entry(world, world.slots.size + i, now)
    try_next(world, i, now)


@jit_no_refcount(internal=True)
def try_next(world: World, i: int, now: float) -> None:
    """Try the next alternative of slot `i`, then the ingress itself; else end it."""
    slot = world.slots[i]
    tried = slot.server
    for a in range(ALTERNATIVES):
        row = slot.alternatives[a]
        if slot.reason == REASON_NO_TIME:
            break
        if row < 0:  # there is none, or it was tried before
            continue
        slot.alternatives[a] = -1
        k = row // 2
        s = world.services[k].server
        if s == tried or (s == slot.ingress and not pays_at_ingress(world, i, k, now)):
            continue
        run_at_ingress(world, i, k, row % 2, now)
        return
    k = quickest_here(world, i)
    if k >= 0 and tried != slot.ingress and slot.refused == 0 and pays_at_ingress(world, i, k, now):
        run_at_ingress(world, i, k, 0, now)
        return
    if now >= slot.deadline:
        end_request(world, i, EXPIRED, REASON_NONE, now)
    elif slot.reason == REASON_QUEUE_FULL:
        end_request(world, i, SHED, REASON_QUEUE_FULL, now)
    else:
        end_request(world, i, FAILED, slot.reason, now)
    notify_balancer(world, i, now + world.settings[0].control_delay)


@jit_no_refcount(internal=True)
def run_at_ingress(world: World, i: int, k: int, form: int, now: float) -> None:
    """Send slot `i` to service `k` now."""
    slot = world.slots[i]
    slot.attempt += 1
    slot.service = k
    slot.server = world.services[k].server
    slot.form = form
    slot.reason = REASON_NONE
    slot.started = math.inf
    send_to_server(world, i, now)


@jit_no_refcount(internal=True)
def pays_at_ingress(world: World, i: int, k: int, now: float) -> bool:
    """Whether the ingress runs slot `i` by its service `k` after others have failed."""
    slot = world.slots[i]
    s: int = slot.ingress
    done = now + wait_for(world, s, slot.deadline, now) + expected_work(world, k, 0)
    idle = world.servers[s].idle >= 0
    return worth_running(
        done, slot.deadline, slot.deadline - slot.sent, world.settings[0].grace, idle
    )
