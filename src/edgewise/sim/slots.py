"""Slots: how a request takes one, keeps it and ends. Compiled."""

from __future__ import annotations

import math

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.score import expected_utility, worthless_after
from edgewise.sim.events import heap_push, push
from edgewise.sim.layout import (
    DONE,
    E_METADATA,
    E_OUTCOME,
    E_TIMEOUT,
    FAILURES_MAX,
    FAULTS,
    FREE,
    LOST,
    OPEN,
    READY,
    REASON_INGRESS_DOWN,
    SERVED,
    World,
)
from edgewise.sim.transfers import drop_entry


@jit_no_refcount(inline=True, internal=True)
def add_reference(world: World, i: int) -> None:
    """Count a reference to slot `i` by an event, a transfer or a queue."""
    world.slots[i].references += 1


@jit_no_refcount(inline=True, internal=True)
def drop_reference(world: World, i: int) -> None:
    """Drop a reference to slot `i`. The slot is free once its request has ended and no reference is
    left."""
    slot = world.slots[i]
    slot.references -= 1
    if slot.references == 0 and slot.stage == DONE:
        slot.stage = FREE
        slot.next = world.clock[0].free
        world.clock[0].free = i


@jit_no_refcount(inline=True, internal=True)
def schedule_for(world: World, i: int, time: float, kind: int) -> None:
    """Schedule an event of slot `i` at `time`."""
    world.slots[i].references += 1
    push(world, time, kind, i)


@jit_no_refcount(inline=True, internal=True)
def schedule_timeout(world: World, i: int) -> None:
    """Schedule a timeout check for slot `i` at min(give_up, expiry).

    A check that is under way already, from this request or an earlier one of the slot, also serves
    this one if it comes no later. So most requests cost no event. The event does not count as a
    reference to the slot, because it may find a later request there.
    """
    slot = world.slots[i]
    time = min(slot.give_up, slot.expiry)
    if time < slot.timeout_at:
        slot.timeout_at = time
        heap_push(world, time, E_TIMEOUT, i)


@jit_no_refcount(inline=True, internal=True)
def expect_result(world: World, i: int, time: float, kind: int) -> None:
    """Schedule the arrival of slot `i`'s transfer, or the notice that it failed, at `time`."""
    world.slots[i].result_at = time
    schedule_for(world, i, time, kind)


@jit_no_refcount(internal=True)
def take_slot(world: World, now: float) -> int:
    """Take a free slot; −1 if none is free."""
    clock = world.clock[0]
    i: int = clock.free
    if i >= 0:
        clock.free = world.slots[i].next
        clock.used = max(clock.used, i + 1)
        # The last transfer of the slot may still be in a ledger, acknowledged since.
        drop_entry(world, world.slots.size + i, now)
    return i


@jit_no_refcount(inline=True, internal=True)
def open_slot(world: World, r: int) -> int:
    """Take a slot for request `r`, which is sent now; −1 if none is free."""
    clock = world.clock[0]
    settings = world.settings[0]
    i = take_slot(world, world.requests[r].time)
    if i < 0:
        return -1
    slot = world.slots[i]
    clock.open += 1
    request = world.requests[r]
    slot.request = r
    slot.stage = OPEN
    slot.references = 0
    slot.ingress = request.ingress
    slot.balancer = r % settings.central if settings.central > 1 else 0
    slot.service = -1
    slot.server = -1
    slot.form = 0
    slot.at = -1
    slot.awaits_conversion = 0
    slot.refused = 0
    slot.wrong = 0
    slot.link = -1
    slot.row = -1
    slot.picked = -1
    slot.life = -1
    slot.attempt = 0
    slot.rif = 0
    slot.reason = 0
    slot.next = -1
    for a in range(slot.alternatives.size):
        slot.alternatives[a] = -1
    slot.failures = 0
    slot.dispatch = 0
    slot.command = 0
    slot.predicted = math.nan
    slot.sent = request.time
    slot.deadline = request.time + request.deadline
    slot.expiry = request.time + worthless_after(request.deadline, settings.grace)
    slot.give_up = math.inf
    slot.result_at = math.inf
    slot.demanded = request.accuracy
    slot.payload = request.payload
    slot.probability = 1.0
    slot.uploaded = math.inf
    slot.decided = math.inf
    slot.commanded = math.inf
    slot.crossed = math.inf
    slot.transferred = math.inf
    slot.started = math.inf
    slot.finished = math.inf
    schedule_for(world, i, request.time + world.links[request.ingress].delay, E_METADATA)
    if request.lost != 0:
        slot.expiry = math.inf  # its ingress never hears of it
    schedule_timeout(world, i)
    return i


@jit_no_refcount(inline=True, internal=True)
def nan_if_never(stamp: float) -> float:
    """A stamp for the results: NaN if it was never reached (inf)."""
    return stamp if stamp < math.inf else math.nan


@jit_no_refcount(internal=True)
def end_request(world: World, i: int, status: int, reason: int, answered: float) -> None:
    """End the request of slot `i`; the ingress answers its client at `answered` (inf = never)."""
    slot = world.slots[i]
    clock = world.clock[0]
    settings = world.settings[0]
    slot.stage = DONE
    drop_entry(world, i, clock.now)  # an upload is not read further once it is answered
    clock.open -= 1
    clock.ended[status] += 1
    received = answered + world.links[slot.ingress].delay
    utility = 0.0
    latency = math.nan
    if status == SERVED:
        service = world.services[slot.service]
        latency = received - slot.sent
        utility = expected_utility(
            service.ready_accuracy if slot.form == READY else service.accuracy,
            slot.demanded,
            latency,
            slot.deadline - slot.sent,
            settings.grace,
            settings.accuracy_weight,
        )
        if slot.wrong != 0:
            utility = 0.0
        clock.utility += utility
    slot.status = status
    slot.latency = latency
    slot.utility = utility
    if settings.store == 0:
        return
    out = world.results[slot.request]
    out.status = status
    out.reason = reason
    out.balancer = slot.balancer
    out.row = slot.row
    out.attempts = slot.attempt
    if status == SERVED:
        out.server = slot.server
        out.service = slot.service
        out.form = slot.form
    out.probability = slot.probability
    out.command = slot.command
    out.dispatch = slot.dispatch
    out.predicted = slot.predicted
    out.latency = latency
    out.utility = utility
    out.decided_at = nan_if_never(slot.decided)
    out.uploaded = nan_if_never(slot.uploaded)
    out.decided = slot.commanded if slot.commanded <= clock.now else math.nan
    out.transferred = nan_if_never(slot.transferred)
    out.started = nan_if_never(slot.started)
    out.finished = nan_if_never(slot.finished)
    out.answered = nan_if_never(answered)
    out.received = nan_if_never(received)


@jit_no_refcount(inline=True, internal=True)
def notify_balancer(world: World, i: int, time: float) -> None:
    """Schedule the outcome to reach the balancer at `time`, if the balancer needs it."""
    slot = world.slots[i]
    if slot.picked >= 0 or (world.clock[0].learning != 0 and slot.row >= 0):
        schedule_for(world, i, time, E_OUTCOME)


@jit_no_refcount(internal=True)
def note_failure(world: World, i: int, fault: int) -> None:
    """Note that the present attempt of slot `i` has failed; its balancer is told at the end."""
    slot = world.slots[i]
    n = slot.failures
    if n < FAILURES_MAX:
        slot.failed[n] = FAULTS * slot.server + fault
        slot.failures = n + 1


@jit_no_refcount(internal=True)
def answer_client(world: World, i: int, status: int, reason: int, s: int, now: float) -> None:
    """Send the answer of server `s` for slot `i` to the client, and the outcome to the balancer."""
    slot = world.slots[i]
    answered = now
    if s != slot.ingress:
        answered += world.links[world.path[s, slot.ingress]].delay
    end_request(world, i, status, reason, answered)
    notify_balancer(world, i, answered + world.settings[0].control_delay)


@jit_no_refcount(internal=True)
def lose(world: World, i: int, reason: int, now: float) -> None:
    """End slot `i` without an answer; the client reports the loss."""
    end_request(world, i, LOST, reason, math.inf)
    notify_balancer(world, i, now + world.links[world.slots[i].ingress].delay)


@jit_no_refcount(internal=True)
def refuse_arrival(world: World, r: int) -> None:
    """End request `r`, whose ingress is down."""
    clock = world.clock[0]
    settings = world.settings[0]
    clock.ended[LOST] += 1
    if settings.store != 0:
        out = world.results[r]
        out.status = LOST
        out.reason = REASON_INGRESS_DOWN
        out.balancer = np.int32(r % settings.central)
