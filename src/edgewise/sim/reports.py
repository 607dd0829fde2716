"""Reports from servers to balancers; servers that stop and restart. Compiled.

A report has the fields of `domain.Report`, describes its server at the time it is made, and reaches
every balancer after the report delay. `fleet.intake` applies it, as in the live balancer.
"""

from __future__ import annotations

import math

from edgewise.compile import by_reference, jit_no_refcount
from edgewise.fleet.arrays import QUEUE_MAX, Belief
from edgewise.fleet.belief import reset_server, withdraw, withdraw_request
from edgewise.fleet.ejection import ANSWERED, attempt_fault, end_probe, on_attempt
from edgewise.fleet.estimates import fade_service_time
from edgewise.fleet.intake import (
    FORGET_AFTER,
    RATE_MAX,
    ReportArrays,
    clamp_rate,
    close_dispatch,
    renew_server,
    take_report,
)
from edgewise.fleet.timeouts import FLEET_PERIOD, HEARTBEAT, first_sign
from edgewise.score import worthless_after
from edgewise.sim.events import heap_push, push
from edgewise.sim.heaps import remove_root
from edgewise.sim.layout import (
    DONE,
    E_FAILED,
    E_JOINED,
    E_LEFT,
    E_REPORTED,
    E_SWEEP,
    FAULTS,
    FREE,
    LOST,
    OPEN,
    REASON_INGRESS_DOWN,
    REASON_NO_PHOTO,
    REASON_SERVER_DOWN,
    SERVED,
    UNLIMITED,
    Reports,
    Sim,
    World,
)
from edgewise.sim.links import backlog, capacity, schedule, update_link
from edgewise.sim.next_times import set_report_time
from edgewise.sim.servers import backlog_of, change_busy
from edgewise.sim.signs import write_signs
from edgewise.sim.slots import add_reference, drop_reference, end_request, expect_result, lose
from edgewise.sim.transfers import believed_backlog, clear_ledger

SILENCE_KNOWN = 1.5 * HEARTBEAT
"""s until nodes detect that a balancer is silent: a heartbeat period, and half of one to wait for
the answer."""


@jit_no_refcount(inline=True, internal=True)
def belief_view(beliefs: Belief, b: int) -> Belief:
    """The belief of balancer `b`, as views."""
    return Belief(
        beliefs.servers[b],
        beliefs.services[b],
        beliefs.times[b],
        beliefs.first[b],
        beliefs.links[b],
        beliefs.path[b],
        beliefs.free[b],
        beliefs.jobs[b],
        beliefs.flights[b],
        beliefs.sends[b],
        beliefs.edf[b],
        beliefs.lately[b],
        beliefs.decay[b],
        beliefs.targets[b],
        beliefs.ejection[b],
    )


@jit_no_refcount(internal=True)
def report_link(world: World, reports: Reports, p: int, j: int, e: int, now: float) -> None:
    """Write link `e` into report `p`, as its j-th link.

    The figures are those of the node's ledger, or the true state if the emulator reports links.
    """
    out = reports.links[p, j]
    out.link = e
    out.first = 1
    link = world.links[e]
    if world.settings[0].true_links == 0:
        out.backlog = believed_backlog(world, e, now)
        out.flows = link.ledger_count
        out.rate = link.measured
        out.rate_at = link.measured_at
        return
    fifo = world.settings[0].fifo_links != 0
    update_link(world, e, now)
    out.flows = link.flows
    out.backlog = backlog(link, fifo)
    rate = RATE_MAX
    if link.mode != UNLIMITED:
        rate = capacity(link, world.numbers, now, now + 1e-6) * 1e6
    out.rate = clamp_rate(rate)
    out.rate_at = now


@jit_no_refcount(internal=True)
def make_report(world: World, reports: Reports, s: int, now: float) -> None:
    """Make a report of server `s` and send it."""
    clock = world.clock[0]
    settings = world.settings[0]
    server = world.servers[s]
    set_report_time(world, s, now + settings.period)
    server.reported = backlog_of(world, s, now)
    p: int = clock.free_report
    if p < 0:
        return  # impossible: there is room for all reports that can be under way
    report = reports.heads[p]
    clock.free_report = report.next
    report.server = s
    report.life = server.life
    report.at = now

    change_busy(world, s, now, 0)
    server.reported_at = now
    report.utilisation = min(1.0, max(0.0, server.utilisation))

    n = 0
    for w in range(server.first_worker, server.first_worker + server.workers):
        if world.workers[w].slot >= 0:
            reports.running[p, n] = max(0.0, world.workers[w].expected - now)
            n += 1
    report.running = n
    n = 0
    i: int = server.head
    while i >= 0:
        slot = world.slots[i]
        if slot.stage != DONE:
            if n < QUEUE_MAX:
                reports.jobs[0, p, n] = slot.deadline
                reports.jobs[1, p, n] = slot.work
                n += 1
            else:  # the rest is added to the last job, as in `fleet.belief.add_job`
                reports.jobs[1, p, n - 1] += slot.work
        i = slot.after
    report.queued = n
    report.prepare_backlog = server.prepare_waiting
    if settings.prepare_own != 0:
        core = world.workers[world.workers.size - world.servers.size + s]
        if core.slot >= 0:
            report.prepare_backlog += max(0.0, core.expected - now)
    for k in range(server.first_service, server.end_service):
        out = reports.services[p, k - server.first_service]
        out.service = k
        fade_service_time(world.services[k], world.numbers[world.services[k].curve_at], now)
        out.service_time = world.services[k].service_time
        out.batch = world.services[k].batch
        out.served = world.services[k].served
    for b in range(settings.balancers):
        reports.seen[p, b] = world.seen[b, s]
    report_links(world, reports, s, p, now)
    write_signs(world, s, reports.signs[p], now)
    push(world, now + settings.report_delay, E_REPORTED, p)


@jit_no_refcount(internal=True)
def report_links(world: World, reports: Reports, s: int, p: int, now: float) -> None:
    """Write the access link of server `s` and the links that it sends on into report `p`."""
    settings = world.settings[0]
    report_link(world, reports, p, 0, s, now)
    # A node cannot measure the round trip to its clients; an emulator reports it.
    reports.links[p, 0].rtt = 2.0 * world.links[s].delay if settings.true_links != 0 else math.nan
    count = settings.servers
    if settings.uplink == 0:
        j = 0
        for d in range(count):
            if d != s:
                j += 1
                report_link(world, reports, p, j, world.path[s, d], now)
                out = reports.links[p, j]
                out.rtt = world.links[world.path[s, d]].delay + world.links[world.path[d, s]].delay
    elif count > 1:
        # One entry has the effect of one per peer (`fleet.belief.on_peer_report`): the rate is the
        # uplink's, the last round trip is kept, and bytes and flows would add up to these.
        other = count - 1 if s != count - 1 else count - 2
        e = world.path[s, other]
        report_link(world, reports, p, 1, e, now)
        out = reports.links[p, 1]
        out.rtt = world.links[e].delay + world.links[world.path[other, s]].delay


@jit_no_refcount(inline=True, internal=True)
def on_reported(sim: Sim, p: int, now: float) -> None:
    """Deliver report `p` to the balancers and to nodes that decide, and free it."""
    world, reports, beliefs = sim.world, sim.reports, sim.beliefs
    clock = world.clock[0]
    settings = world.settings[0]
    report = reports.heads[p]
    s = report.server
    server = world.servers[s]
    if report.life == server.known_life:
        for b in range(settings.balancers):
            if receives_report(world, b, s, report.at, beliefs.servers[b, s].report_at):
                belief = sim.belief if b == 0 else by_reference(belief_view(beliefs, b))
                receive_report(world, reports, belief, b, p, now)
                if settings.loses_photos != 0:
                    withdraw_announced(world, belief, b, s, report.at, now)
    if settings.keep_reports == 0:
        report.next = clock.free_report
        clock.free_report = p


@jit_no_refcount(inline=True, internal=True)
def receives_report(world: World, b: int, s: int, at: float, before: float) -> bool:
    """Whether decider `b` receives the report that server `s` made `at`; its last one was made at
    `before`.

    A balancer receives all reports until it falls silent. A node has its own reports. It gets the
    others' through the balancer's messages about once a second, or directly once it has detected
    that the balancer is silent (`live.node.node`).
    """
    clock = world.clock[0]
    settings = world.settings[0]
    if b < settings.central:
        speaks: bool = at < clock.mute_since
        return speaks
    if b - settings.central == s or at >= clock.mute_since + SILENCE_KNOWN:
        return True
    forwarded: bool = at < clock.mute_since and not (at < before + FLEET_PERIOD)
    return forwarded


@jit_no_refcount(internal=True)
def receive_report(
    world: World, reports: Reports, belief: Belief, b: int, p: int, now: float
) -> None:
    """Apply report `p` to the belief of balancer `b`."""
    head = reports.heads[p]
    server = world.servers[head.server]
    report = ReportArrays(
        head,
        reports.seen[p, b],
        reports.running[p, : head.running],
        reports.jobs[0, p, : head.queued],
        reports.jobs[1, p, : head.queued],
        reports.services[p, : server.end_service - server.first_service],
        reports.links[p, : links_sent(world)],
        reports.signs[p],
    )
    take_report(belief, report, world.settings[0].true_links != 0, now)


@jit_no_refcount(inline=True, internal=True)
def links_sent(world: World) -> int:
    """The number of links in a report: the access link, and the uplink or one link per peer."""
    servers: int = world.settings[0].servers
    return min(servers, 2) if world.settings[0].uplink != 0 else servers


@jit_no_refcount(internal=True)
def end_dispatch(world: World, belief: Belief, i: int, failed: bool, now: float) -> None:
    """End slot `i`'s dispatch in the belief of its balancer."""
    slot = world.slots[i]
    close_dispatch(
        belief,
        slot.picked,
        slot.dispatch,
        slot.rif,
        slot.decided,
        slot.sent + worthless_after(slot.deadline - slot.sent, world.settings[0].grace),
        failed,
        now,
    )


@jit_no_refcount(inline=True, internal=True)
def queue_feedback(world: World, i: int) -> None:
    """Keep slot `i` until the policy has learned from it."""
    clock = world.clock[0]
    add_reference(world, i)
    world.slots[clock.feedback_count].feedback_slot = i
    clock.feedback_count += 1


@jit_no_refcount(inline=True, internal=True)
def on_outcome_known(sim: Sim, i: int, now: float) -> None:
    """Apply the outcome of slot `i`'s request when it reaches its balancer."""
    world = sim.world
    slot = world.slots[i]
    if world.clock[0].learning != 0:
        queue_feedback(world, i)
    if slot.picked >= 0 and slot.status != LOST:
        b = slot.balancer
        on_attempts(
            world, sim.belief if b == 0 else by_reference(belief_view(sim.beliefs, b)), i, now
        )
    if slot.picked < 0 or slot.life != world.servers[slot.picked].known_life:
        return  # shed; or the server has restarted since, or the dispatch is closed already
    served_there = slot.finished < math.inf and slot.server == slot.picked
    b = slot.balancer
    belief = sim.belief if b == 0 else by_reference(belief_view(sim.beliefs, b))
    end_dispatch(world, belief, i, not served_there, now)


@jit_no_refcount(inline=True, internal=True)
def on_attempts(world: World, belief: Belief, i: int, now: float) -> None:
    """Tell a balancer how the attempts at slot `i`'s request ended, as `Tracker.on_attempts`."""
    slot = world.slots[i]
    ingress, picked, decided = slot.ingress, slot.picked, slot.decided
    tried = False
    for n in range(slot.failures):
        s = slot.failed[n] // FAULTS
        tried |= s == picked
        fault = attempt_fault(
            slot.failed[n] % FAULTS,
            slot.uploaded < math.inf,
            slot.predicted,
            slot.deadline - slot.sent,
        )
        on_attempt(belief, ingress, s, fault, decided, now)
    if slot.status == SERVED:
        tried |= slot.server == picked
        on_attempt(belief, ingress, slot.server, ANSWERED, decided, now)
    if not tried:
        end_probe(belief, ingress, picked, decided)


@jit_no_refcount(internal=True)
def forget_dispatches(sim: Sim, now: float) -> None:
    """Close dispatches whose client has given up, as `Tracker.forget` does; once a second."""
    world = sim.world
    for i in range(world.clock[0].used):
        slot = world.slots[i]
        if slot.stage == OPEN and slot.picked >= 0:
            span = worthless_after(slot.deadline - slot.sent, world.settings[0].grace)
            give_up = slot.sent + span + FORGET_AFTER
            if give_up < now and slot.life == world.servers[slot.picked].known_life:
                belief = by_reference(belief_view(sim.beliefs, slot.balancer))
                end_dispatch(world, belief, i, True, now)
                slot.life = -1
    heap_push(world, now + 1.0, E_SWEEP, 0)


@jit_no_refcount(internal=True)
def withdraw_announced(
    world: World, belief: Belief, b: int, ingress: int, at: float, now: float
) -> None:
    """End the requests of decider `b` whose photo should have begun at `ingress` before its report
    of time `at`, and never comes, as `fleet.open_dispatches` does.

    The simulator has no credit of clients: all requests that are announced count at first.
    """
    for i in range(world.clock[0].used):
        slot = world.slots[i]
        if (
            slot.stage == OPEN
            and slot.ingress == ingress
            and slot.balancer == b
            and slot.picked >= 0
            and world.requests[slot.request].lost != 0
            and at >= slot.decided + world.settings[0].photo_patience
        ):
            if slot.life == world.servers[slot.picked].known_life:
                end_probe(belief, ingress, slot.picked, slot.decided)
                withdraw(belief, slot.picked, slot.dispatch, slot.work, slot.decided, now)
            withdraw_request(belief, ingress, slot.decided, now)
            add_reference(world, i)
            end_request(world, i, LOST, REASON_NO_PHOTO, math.inf)
            drop_reference(world, i)


# -- servers that stop and restart ---------------------------------------------------------------


@jit_no_refcount(internal=True)
def stop(world: World, s: int, now: float) -> None:
    """Stop server `s`. Requests of its clients are lost; requests of other ingresses on it fail."""
    clock = world.clock[0]
    settings = world.settings[0]
    server = world.servers[s]
    if server.up == 0:
        return
    change_busy(world, s, now, -server.busy)
    server.up = 0
    set_report_time(world, s, math.inf)
    server.life += 1
    slots = world.slots.size
    for e in range(world.links.size):
        if world.links[e].source == s:
            update_link(world, e, now)
            while world.links[e].root >= 0:
                node = world.links[e].root
                world.links[e].root = remove_root(world.nodes, node)
                drop_reference(world, node if node < slots else node - slots)
                if node >= slots:
                    world.slots[node - slots].link = -1
            world.links[e].flows = 0
            world.links[e].tags = 0.0
            schedule(world, e)
            clear_ledger(world, e)
    for i in range(clock.used):
        slot = world.slots[i]
        if slot.stage == FREE:
            continue
        if slot.stage == OPEN and slot.ingress == s:
            lose(world, i, REASON_INGRESS_DOWN, now)
        elif slot.stage == OPEN and slot.at == s:
            slot.reason = REASON_SERVER_DOWN
            known_at = now + world.links[world.path[s, slot.ingress]].delay
            expect_result(world, i, known_at, E_FAILED)
    clear_server(world, s)
    push(world, now + settings.control_delay, E_LEFT, s)


@jit_no_refcount(internal=True)
def clear_server(world: World, s: int) -> None:
    """Empty the workers and queues of `s`, whose requests have already ended or failed."""
    server = world.servers[s]
    own = world.workers.size - world.servers.size + s
    server.idle = -1
    for n in range(server.workers + 1):
        w = server.first_worker + n if n < server.workers else own
        worker = world.workers[w]
        i: int = worker.slot
        while i >= 0:
            after: int = world.slots[i].next if worker.preparing == 0 else -1
            world.slots[i].at = -1
            drop_reference(world, i)
            i = after
        worker.slot = -1
        if n < server.workers:
            worker.next = server.idle
            server.idle = w
    i = server.head
    while i >= 0:
        after = world.slots[i].after
        world.slots[i].at = -1
        drop_reference(world, i)
        i = after
    i = server.prepare_head
    while i >= 0:
        after = world.slots[i].next
        drop_reference(world, i)
        i = after
    for k in range(server.first_service, server.end_service):
        world.services[k].queue = -1
        world.services[k].served = 0
        world.services[k].service_time = world.numbers[world.services[k].curve_at]
        world.services[k].slow = 0
        world.services[k].batch = 1.0
    server.head = -1
    server.tail = -1
    server.waiting = 0
    server.work = 0.0
    server.prepare_head = -1
    server.prepare_tail = -1
    server.prepare_waiting = 0.0


@jit_no_refcount(internal=True)
def restart(world: World, s: int, now: float) -> None:
    """Start server `s` again, empty."""
    server = world.servers[s]
    if server.up != 0:
        return
    server.up = 1
    server.busy_at = now
    server.reported_at = now
    server.utilisation = 0.0
    for b in range(world.settings[0].balancers):
        world.seen[b, s].commands = 0
        world.seen[b, s].low = 0
        world.seen[b, s].bits = 0
    for d in range(world.servers.size):
        if d != s:
            world.signs[s, d].count = 0
            world.signs[s, d].given = -1
            world.signs[s, d].known_at = now + first_sign(s, d, world.servers.size)
    push(world, now + world.settings[0].control_delay, E_JOINED, s)
    set_report_time(world, s, now)


@jit_no_refcount(internal=True)
def on_left(world: World, beliefs: Belief, s: int) -> None:
    """Mark server `s` as disconnected in every belief, as `Tracker.disconnect` does."""
    for b in range(world.settings[0].balancers):
        beliefs.servers[b, s].connected = 0.0


@jit_no_refcount(internal=True)
def on_joined(world: World, beliefs: Belief, s: int, now: float) -> None:
    """Mark server `s` as connected in every belief, as `Tracker.connect` does."""
    world.servers[s].known_life = world.servers[s].life
    for b in range(world.settings[0].balancers):
        belief = by_reference(belief_view(beliefs, b))
        renew_server(belief, s)
        reset_server(belief, s, now)
        beliefs.servers[b, s].connected = 1.0
