"""The simulator's servers: queues, workers, batches and converters. Compiled.

A server has one queue, earliest deadline first or first in first out. It is stored as one heap per
service, so that a batch is the first few of one heap; the head of the queue is the least of the
heaps' roots. A worker that becomes free takes a waiting conversion, because a whole request depends
on it, else the head of the queue. Work is not interrupted, and no worker is idle while work waits.

A request that can no longer score when a worker would take it is dropped. A batch takes the waiting
requests of one service, up to the length of the latency curve, as long as its first and most urgent
request is not made late (Nexus, SOSP'19, likewise sizes batches by the deadline at hand). The mean
saving of the model-ready payloads in a batch is subtracted from its time, per item.

A batch of b takes curve[b] × the noise factor of its first request × the slowdown in force when it
starts. The time that the server *expects*, and reports, is a running mean, without that noise.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.belief import acknowledge
from edgewise.fleet.estimates import SERVICE_MEMORY, measure_service_time, ready_time
from edgewise.fleet.report_timing import GAP, busy_share, jumped
from edgewise.fleet.request_noise import factor_index
from edgewise.scenario import Misbehaviour
from edgewise.sim.events import push
from edgewise.sim.heaps import insert, remove_root
from edgewise.sim.layout import (
    DONE,
    E_FAILED,
    E_FINISH,
    EXPIRED,
    READY,
    REASON_NONE,
    REASON_QUEUE_FULL,
    World,
)
from edgewise.sim.next_times import report_time, set_report_time
from edgewise.sim.slots import add_reference, answer_client, drop_reference, expect_result

ERRORS, WRONG = int(Misbehaviour.ERRORS), int(Misbehaviour.WRONG)


@jit_no_refcount(inline=True, internal=True)
def slowness(world: World, s: int, now: float) -> float:
    """The factor by which server `s` is slowed down at `now`; 1 = not at all."""
    server = world.servers[s]
    if server.slow_count == 0:
        return 1.0
    at = server.slow_at
    while server.slow + 1 < server.slow_count and world.numbers[at + 2 * (server.slow + 1)] <= now:
        server.slow += 1
    factor: float = world.numbers[at + 2 * server.slow + 1]
    return factor


@jit_no_refcount(inline=True, internal=True)
def noise(world: World, r: int, k: int) -> float:
    """The noise factor on the time of service `k` for request `r`; mean 1."""
    settings = world.settings[0]
    if settings.noise_bits == 0:
        return 1.0
    factor: float = world.noise[factor_index(settings.seed, r, k, settings.noise_bits)]
    return factor


@jit_no_refcount(inline=True, internal=True)
def expected_work(world: World, k: int, form: int) -> float:
    """s per request that the server expects service `k` to take."""
    service = world.services[k]
    time: float = service.service_time
    if form == READY:
        time = ready_time(time, service.ready_saving)
    return time


@jit_no_refcount(inline=True, internal=True)
def change_busy(world: World, s: int, now: float, change: int) -> None:
    """Bring the utilisation of `s` to `now`, then add `change` to its number of busy workers."""
    server = world.servers[s]
    seconds = now - server.busy_at
    if seconds > 0.0:
        server.busy_area += server.busy * seconds
        share = server.busy / server.workers
        server.utilisation = busy_share(server.utilisation, share, seconds)
        server.busy_at = now
    server.busy += change


@jit_no_refcount(internal=True)
def backlog_of(world: World, s: int, now: float) -> float:
    """s until the workers and the converter of `s` have finished all work that is there
    (`live.node.monitor`)."""
    server = world.servers[s]
    workers = world.workers
    own = world.settings[0].prepare_own != 0
    work = server.work if own else server.work + server.prepare_waiting
    for w in range(server.first_worker, server.first_worker + server.workers):
        if workers[w].slot >= 0:
            work += max(0.0, workers[w].expected - now)
    work /= server.workers
    if own:
        core = workers[workers.size - world.servers.size + s]
        work += server.prepare_waiting
        if core.slot >= 0:
            work += max(0.0, core.expected - now)
    backlog: float = work
    return backlog


@jit_no_refcount(inline=True, internal=True)
def report_if_jumped(world: World, s: int, now: float) -> None:
    """Let server `s` report early if its backlog has jumped."""
    server = world.servers[s]
    period = world.settings[0].period
    soonest = max(now, server.reported_at + GAP * period)
    if report_time(world, s) <= soonest:
        return
    since = now - server.reported_at
    # An upper bound of the backlog, which mostly suffices to decide.
    most = server.work + server.prepare_waiting
    most += (server.workers + 1) * max(0.0, server.latest - now)
    if jumped(most, 0.0, 0.0, period) or jumped(0.0, server.reported, since, period):
        backlog = backlog_of(world, s, now)
        if jumped(backlog, server.reported, since, period):
            set_report_time(world, s, soonest)


@jit_no_refcount(internal=True)
def wait_for(world: World, s: int, due: float, now: float) -> float:
    """s until `s` would start a request due at `due`, as
    `live.node.worker_queue.WorkerQueue.wait`."""
    server = world.servers[s]
    edf = world.settings[0].edf != 0
    work = 0.0 if world.settings[0].prepare_own != 0 else server.prepare_waiting
    for w in range(server.first_worker, server.first_worker + server.workers):
        if world.workers[w].slot >= 0:
            work += max(0.0, world.workers[w].expected - now)
    i: int = server.head
    while i >= 0:
        if world.slots[i].stage != DONE and (not edf or world.slots[i].deadline <= due):
            work += world.slots[i].work
        i = world.slots[i].after
    wait: float = work / server.workers
    return wait


@jit_no_refcount(inline=True, internal=True)
def remove_from_queue(world: World, s: int, i: int) -> None:
    """Remove slot `i` from the list of the queue of `s`; its heap node is already removed."""
    server = world.servers[s]
    slot = world.slots[i]
    server.waiting -= 1
    server.work = server.work - slot.work if server.waiting > 0 else 0.0
    if slot.before >= 0:
        world.slots[slot.before].after = slot.after
    else:
        server.head = slot.after
    if slot.after >= 0:
        world.slots[slot.after].before = slot.before
    else:
        server.tail = slot.before


@jit_no_refcount(inline=True, internal=True)
def take_idle(world: World, s: int, now: float) -> int:
    """Make an idle worker busy and return it; −1 if there is none."""
    server = world.servers[s]
    w: int = server.idle
    if w >= 0:
        server.idle = world.workers[w].next
        change_busy(world, s, now, 1)
    return w


@jit_no_refcount(inline=True, internal=True)
def occupy_worker(
    world: World, w: int, i: int, preparing: int, now: float, work: float, time: float
) -> None:
    """Make worker `w` run slot `i` for `time` s, of which the server expects `work` s."""
    worker = world.workers[w]
    worker.slot = i
    worker.preparing = preparing
    worker.started = now
    worker.expected = now + work
    server = world.servers[worker.server]
    server.latest = max(server.latest, worker.expected)
    worker.finish = now + time
    push(world, now + time, E_FINISH, w)


@jit_no_refcount(internal=True)
def take_batch(world: World, s: int, k: int, now: float) -> int:
    """Remove the first slot that waits for service `k` of `s` and return it; −1 if it has ended or
    can no longer score."""
    service = world.services[k]
    node: int = service.queue
    service.queue = remove_root(world.nodes, node)
    i: int = node - 2 * world.slots.size
    slot = world.slots[i]
    remove_from_queue(world, s, i)
    if slot.stage == DONE:
        drop_reference(world, i)
        return -1
    if now >= slot.expiry:
        slot.at = -1
        answer_client(world, i, EXPIRED, REASON_NONE, s, now)
        drop_reference(world, i)
        return -1
    return i


@jit_no_refcount(internal=True)
def start_batch(world: World, s: int, w: int, i: int, now: float) -> None:
    """Start slot `i` on worker `w`; if batching is on, with others of the same service."""
    k = world.slots[i].service
    service = world.services[k]
    last = i
    count = 1
    ready = 1 if world.slots[i].form == READY else 0
    world.slots[i].started = now
    if world.settings[0].batching != 0:
        while (
            count < service.curve_count
            and service.queue >= 0
            and now + world.numbers[service.curve_at + count] <= world.slots[i].deadline
        ):
            j = take_batch(world, s, k, now)
            if j >= 0:
                world.slots[last].next = j
                world.slots[j].started = now
                last = j
                count += 1
                ready += 1 if world.slots[j].form == READY else 0
    world.slots[last].next = -1
    time = world.numbers[service.curve_at + count - 1]
    if ready > 0:
        time = ready_time(time, service.ready_saving * ready / count)
    time *= noise(world, world.slots[i].request, k) * slowness(world, s, now)
    if world.servers[s].misbehaves != 0:
        if world.servers[s].misbehaves & ERRORS != 0:
            time = 0.0  # `routes.on_finish` knows by this that it failed
        if world.servers[s].misbehaves & WRONG != 0:
            j = i
            while j >= 0:
                world.slots[j].wrong = 1
                j = world.slots[j].next
    world.workers[w].batch = count
    occupy_worker(world, w, i, 0, now, world.slots[i].work * count, time)


@jit_no_refcount(inline=True, internal=True)
def start_conversion(world: World, s: int, w: int, i: int, now: float) -> None:
    """Start making slot `i`'s payload model-ready, on worker `w`."""
    seconds = world.servers[s].prepare_seconds
    world.slots[i].next = -1
    occupy_worker(world, w, i, 1, now, seconds, seconds * slowness(world, s, now))


@jit_no_refcount(inline=True, internal=True)
def clear_conversion_mark(world: World, s: int, i: int) -> None:
    """Clear the mark that slot `i` awaits conversion at `s`."""
    if world.slots[i].awaits_conversion != 0:
        world.slots[i].awaits_conversion = 0
        server = world.servers[s]
        server.prepare_waiting = max(0.0, server.prepare_waiting - server.prepare_seconds)


@jit_no_refcount(inline=True, internal=True)
def next_conversion(world: World, s: int) -> int:
    """Remove the first slot that awaits conversion at `s` and return it; −1 if there is none."""
    server = world.servers[s]
    while server.prepare_head >= 0:
        i: int = server.prepare_head
        server.prepare_head = world.slots[i].next
        clear_conversion_mark(world, s, i)
        if server.prepare_head < 0:
            server.prepare_tail = -1
            server.prepare_waiting = 0.0
        if world.slots[i].stage != DONE:
            return i
        drop_reference(world, i)
    return -1


@jit_no_refcount(inline=True, internal=True)
def next_work(world: World, s: int, w: int, now: float) -> None:
    """Give worker `w` of `s` its next work, or make it idle."""
    server = world.servers[s]
    if world.settings[0].prepare_own == 0 and server.prepare_head >= 0:
        i = next_conversion(world, s)
        if i >= 0:
            start_conversion(world, s, w, i, now)
            return
    while server.waiting > 0:
        best = -1
        for k in range(server.first_service, server.end_service):
            node = world.services[k].queue
            if node >= 0:
                other = world.services[best].queue if best >= 0 else -1
                if (
                    best < 0
                    or world.nodes[node].key < world.nodes[other].key
                    or (
                        world.nodes[node].key == world.nodes[other].key
                        and world.nodes[node].order < world.nodes[other].order
                    )
                ):
                    best = k
        i = take_batch(world, s, best, now)
        if i >= 0:
            start_batch(world, s, w, i, now)
            return
    worker = world.workers[w]
    worker.slot = -1
    worker.next = server.idle
    server.idle = w
    change_busy(world, s, now, -1)


@jit_no_refcount(internal=True)
def enqueue(world: World, s: int, i: int, now: float) -> None:
    """Queue slot `i`, whose input has reached server `s`."""
    server = world.servers[s]
    slot = world.slots[i]
    clock = world.clock[0]
    settings = world.settings[0]
    slot.transferred = now
    if slot.attempt == 0 and slot.dispatch > 0:
        seen = world.seen[slot.balancer, s]
        low, bits = acknowledge(seen.low, seen.bits, slot.dispatch)
        seen.low = low
        seen.bits = bits
    if now >= slot.expiry:
        answer_client(world, i, EXPIRED, REASON_NONE, s, now)
        return
    w = take_idle(world, s, now)
    if w < 0 and server.waiting >= server.queue_limit:
        # The refusal goes to its ingress, which tries another server.
        back = world.links[world.path[s, slot.ingress]].delay if s != slot.ingress else 0.0
        slot.transferred = math.inf
        slot.reason = REASON_QUEUE_FULL
        if s == slot.ingress:
            slot.refused = 1
        expect_result(world, i, now + back, E_FAILED)
        return
    slot.at = s
    add_reference(world, i)
    k = slot.service
    slot.work = expected_work(world, k, slot.form)
    if w >= 0:
        start_batch(world, s, w, i, now)
        report_if_jumped(world, s, now)
        return
    order = clock.sequence
    clock.sequence = order + 1
    key = slot.deadline if settings.edf != 0 else now
    root = world.services[k].queue
    world.services[k].queue = insert(world.nodes, root, 2 * world.slots.size + i, key, order)
    slot.before = server.tail
    slot.after = -1
    if server.tail >= 0:
        world.slots[server.tail].after = i
    else:
        server.head = i
    server.tail = i
    server.waiting += 1
    server.work += slot.work
    report_if_jumped(world, s, now)


@jit_no_refcount(internal=True)
def enqueue_conversion(world: World, i: int, now: float) -> None:
    """Queue slot `i`, whose upload is complete, for its conversion at the ingress."""
    s = world.slots[i].ingress
    server = world.servers[s]
    add_reference(world, i)
    w = -1
    if world.settings[0].prepare_own != 0:
        core = world.workers.size - world.servers.size + s
        if world.workers[core].slot < 0:
            w = core
    else:
        w = take_idle(world, s, now)
    if w >= 0:
        start_conversion(world, s, w, i, now)
        report_if_jumped(world, s, now)
        return
    world.slots[i].next = -1
    if server.prepare_tail >= 0:
        world.slots[server.prepare_tail].next = i
    else:
        server.prepare_head = i
    server.prepare_tail = i
    server.prepare_waiting += server.prepare_seconds
    world.slots[i].awaits_conversion = 1
    report_if_jumped(world, s, now)


@jit_no_refcount(inline=True, internal=True)
def measure_service(world: World, k: int, form: int, seconds: float, batch: int) -> None:
    """Update service `k`'s measured time and batch size.

    The mean refers to original payloads: the saving of a model-ready payload is added here, and
    predictions subtract it again.
    """
    service = world.services[k]
    sample = seconds + (service.ready_saving if form == READY else 0.0)
    profile = world.numbers[service.curve_at]
    measure_service_time(service, profile, sample, service.served == 0, world.clock[0].now)
    if service.served == 0:
        service.batch = batch
    else:
        service.batch += SERVICE_MEMORY * (batch - service.batch)
    service.served += 1
