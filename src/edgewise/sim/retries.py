"""Failures, timeouts and retries at the ingress. Compiled.

The rules are those of `live.node.execution`, with the numbers of `fleet.timeouts` and
`fleet.retries`. The ingress waits for a peer's answer until it would be worth little. Then it
aborts the transfer, which frees the link, and the peer drops the request. While there is time and
the retry budget allows, the ingress tries the alternatives in the order of their scores, on servers
that have neither failed nor refused the request; then its own fastest service, if that pays; then
it answers that the request failed. When a request can no longer score, its ingress answers that it
expired.

Workers are never interrupted. If a request is given up while a peer runs it, the worker finishes on
a placeholder slot. If no server can fail and no queue can fill up, only timeouts lead here, and
after these there is no time for another peer. So no alternatives are kept then.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.ejection import ERROR, REFUSED, UNANSWERED, UNDELIVERED, UNREACHABLE
from edgewise.fleet.retries import ALTERNATIVES, take_retry
from edgewise.fleet.timeouts import worth_running
from edgewise.sim.heaps import remove
from edgewise.sim.layout import (
    DONE,
    EXPIRED,
    FAILED,
    OPEN,
    REASON_NO_TIME,
    REASON_NONE,
    REASON_QUEUE_FULL,
    REASON_SERVER_ERROR,
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
    note_failure,
    notify_balancer,
    schedule_timeout,
    take_slot,
)
from edgewise.sim.transfers import drop_entry


@jit_no_refcount(internal=True)
def abort_transfer(world: World, i: int) -> None:
    """Abort the transfer of slot `i`, if one is under way, and ignore its result."""
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
    """Remove slot `i` from the queue of the server where it waits."""
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
        return  # an earlier check has replaced this one
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
        note_missing_answer(world, i, time)
        # The peer's answer is ignored, even if it is on the way: its stamps do not count.
        slot.transferred = math.inf
        slot.started = math.inf
        abort_transfer(world, i)
        slot.reason = REASON_NO_TIME
        try_next(world, i, time)
        if slot.stage != OPEN:
            return
    schedule_timeout(world, i)


@jit_no_refcount(internal=True)
def note_missing_answer(world: World, i: int, now: float) -> None:
    """Note that the attempt of slot `i` that is under way, if one is, has no answer in time."""
    slot = world.slots[i]
    if slot.server < 0:
        return
    if slot.server == slot.ingress:
        if slot.at >= 0:
            note_failure(world, i, UNANSWERED)
        return
    acknowledged_at = slot.transferred + world.links[world.path[slot.server, slot.ingress]].delay
    if acknowledged_at <= now:
        note_failure(world, i, UNANSWERED)
    elif world.flows[world.slots.size + i].link >= 0:
        note_failure(world, i, UNDELIVERED)


@jit_no_refcount(internal=True)
def expire(world: World, i: int, now: float) -> None:
    """End slot `i`'s request as expired: no answer can score any more."""
    slot = world.slots[i]
    note_missing_answer(world, i, now)
    if slot.at >= 0 and slot.started > now:
        leave_queue(world, i, now)
    elif slot.awaits_conversion != 0:  # it stays in the queue and is skipped at its turn
        clear_conversion_mark(world, slot.ingress, i)
        report_if_jumped(world, slot.ingress, now)
    if slot.server != slot.ingress:  # the stamps of a peer that has not answered do not count
        slot.transferred = math.inf
        slot.started = math.inf
    end_request(world, i, EXPIRED, REASON_NONE, now)
    notify_balancer(world, i, now + world.settings[0].control_delay)
    abort_transfer(world, i)


@jit_no_refcount(internal=True)
def on_failed(world: World, i: int, now: float) -> None:
    """Handle a failed attempt of slot `i` when its ingress is informed."""
    slot = world.slots[i]
    if slot.stage == DONE or now != slot.result_at:
        return
    slot.result_at = math.inf
    slot.give_up = math.inf
    drop_entry(world, world.slots.size + i, now)
    fault = UNREACHABLE
    if slot.reason == REASON_QUEUE_FULL:
        fault = REFUSED
    elif slot.reason == REASON_SERVER_ERROR:
        fault = ERROR
    note_failure(world, i, fault)
    if slot.server == slot.ingress:
        slot.refused = 1
    try_next(world, i, now)


@jit_no_refcount(internal=True)
def try_next(world: World, i: int, now: float) -> None:
    """Try the next alternative of slot `i`, else the ingress itself; else end the request."""
    slot = world.slots[i]
    tried = slot.server
    for a in range(ALTERNATIVES):
        row = slot.alternatives[a]
        if slot.reason == REASON_NO_TIME:
            break
        if row < 0:  # none, or already tried
            continue
        slot.alternatives[a] = -1
        k = row // 2
        s = world.services[k].server
        if s == tried or (s == slot.ingress and not pays_at_ingress(world, i, k, now)):
            continue
        if s != slot.ingress and not take_retry(world.servers[slot.ingress], now):
            continue
        start_attempt(world, i, k, row % 2, now)
        return
    k = quickest_here(world, i)
    if k >= 0 and tried != slot.ingress and slot.refused == 0 and pays_at_ingress(world, i, k, now):
        start_attempt(world, i, k, 0, now)
        return
    if now >= slot.deadline:
        end_request(world, i, EXPIRED, REASON_NONE, now)
    elif slot.reason == REASON_QUEUE_FULL:
        end_request(world, i, SHED, REASON_QUEUE_FULL, now)
    else:
        end_request(world, i, FAILED, slot.reason, now)
    notify_balancer(world, i, now + world.settings[0].control_delay)


@jit_no_refcount(internal=True)
def start_attempt(world: World, i: int, k: int, form: int, now: float) -> None:
    """Start another attempt of slot `i`, with service `k`."""
    slot = world.slots[i]
    slot.attempt += 1
    slot.service = k
    slot.server = world.services[k].server
    slot.form = form
    slot.reason = REASON_NONE
    slot.transferred = math.inf
    slot.started = math.inf
    send_to_server(world, i, now)


@jit_no_refcount(internal=True)
def pays_at_ingress(world: World, i: int, k: int, now: float) -> bool:
    """Whether the ingress runs slot `i` with its service `k` after others have failed."""
    slot = world.slots[i]
    s: int = slot.ingress
    done = now + wait_for(world, s, slot.deadline, now) + expected_work(world, k, 0)
    idle = world.servers[s].idle >= 0
    return worth_running(
        done, slot.deadline, slot.deadline - slot.sent, world.settings[0].grace, idle
    )
