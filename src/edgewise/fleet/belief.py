"""How reports, decisions and outcomes change the belief. Compiled.

Theory of operation
-------------------
A report describes its server at one time, `at`. It sets up a deterministic miniature of the server:
when each worker becomes free, and which jobs wait with which deadlines. `play_forward` then plays
the miniature up to the present (dead reckoning): the next free worker takes the job with the
earliest deadline among those whose input has arrived. Each decision adds its job at once, with the
time at which its input is predicted to arrive. Otherwise all requests would be sent to the server
that was idle in the last report.

The next report replaces the miniature. Dispatches that the report cannot include are then added
again. They are identified exactly: the destination acknowledges dispatches by number
(`arrivals_low`, `arrivals_bits`), and the ingress acknowledges commands (`commands_seen`).

Invariants: between two reports every dispatch counts exactly once, either as reported or as our
own; time never runs backwards in a miniature; nothing is allocated.

These functions use no clock, no socket and no random numbers.
"""

from __future__ import annotations

import math

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import FLIGHTS_MAX, QUEUE_MAX, RIF_BUCKETS, Array, Belief
from edgewise.fleet.decay import advance_decay, decay_now, decayed
from edgewise.fleet.estimates import ready_time

FAILURE_MEMORY = 0.1
"""Weight of one outcome in the failure share: about the last ten answers."""
RESPONSE_MEMORY = 0.2
"""Weight of one answer in the mean response time: about the last five answers. Elasticsearch's C3
uses 0.3."""


@jit_no_refcount(inline=True)
def set_free(free: Array, workers: int, worker: int, until: float) -> None:
    """Make `worker` busy until `until` and keep `free` ascending."""
    while worker + 1 < workers and free[worker + 1] < until:
        free[worker] = free[worker + 1]
        worker += 1
    free[worker] = until


@jit_no_refcount(inline=True)
def play_forward(belief: Belief, s: int, now: float) -> None:
    """Play the miniature of server `s` up to `now`: start every job that would have started."""
    if belief.servers[s].next_start <= now:
        start_jobs(belief, s, now)


@jit_no_refcount
def start_jobs(belief: Belief, s: int, now: float) -> None:
    """Start the jobs on `s` that would have started by `now`."""
    server = belief.servers[s]
    jobs = belief.jobs[s]
    free = belief.free[s]
    edf = belief.edf[0] > 0.0
    while server.jobs > 0:
        count = server.jobs
        first_input = math.inf
        for j in range(count):
            first_input = min(first_input, jobs[j].input_at)
        start = max(free[0], first_input)
        if start > now:
            server.next_start = start
            return
        best = -1
        for j in range(count):
            if jobs[j].input_at <= start:
                key = jobs[j].deadline if edf else jobs[j].input_at
                if best < 0 or key < (jobs[best].deadline if edf else jobs[best].input_at):
                    best = j
        set_free(free, int(server.workers), 0, start + jobs[best].work)
        take_job(belief, s, best)
    server.next_start = math.inf


@jit_no_refcount(inline=True)
def take_job(belief: Belief, s: int, j: int) -> None:
    """Remove the j-th job from the list of `s`.

    Under first in, first out the list keeps its order: a report's jobs all have the same
    `input_at`, so only their position tells which came first.
    """
    server = belief.servers[s]
    jobs = belief.jobs[s]
    last = server.jobs - 1
    if belief.edf[0] > 0.0:
        jobs[j] = jobs[last]
    else:
        for i in range(j, last):
            jobs[i] = jobs[i + 1]
    server.jobs = last


@jit_no_refcount(inline=True)
def add_job(
    belief: Belief, s: int, deadline: float, work: float, input_at: float, dispatch: int
) -> None:
    """Add a waiting job to `s`. If the list is full, add its work to the last job instead."""
    server = belief.servers[s]
    jobs = belief.jobs[s]
    n = server.jobs
    if n == QUEUE_MAX:
        jobs[n - 1].work += work
        return
    jobs[n].deadline = deadline
    jobs[n].work = work
    jobs[n].input_at = input_at
    jobs[n].dispatch = dispatch
    server.jobs = n + 1
    server.next_start = min(server.next_start, max(belief.free[s, 0], input_at))


@jit_no_refcount(inline=True)
def drain_link(belief: Belief, link: int, now: float, rate: float) -> None:
    """Reduce a link's believed backlog by what `rate` has sent until `now`, and its flows in
    proportion."""
    state = belief.links[link]
    left = max(0.0, state.backlog - rate * max(0.0, now - state.backlog_at))
    state.flows = state.flows * left / state.backlog if state.backlog > 0.0 else 0.0
    state.backlog = left
    state.backlog_at = max(now, state.backlog_at)


@jit_no_refcount(inline=True)
def on_request(belief: Belief, ingress: int, now: float) -> None:
    """Add a request that arrived at `ingress` to its demand (EWMA over 1 s)."""
    server = belief.servers[ingress]
    advance_decay(belief, now)
    one, _, _ = decayed(belief, server.demand_growth)
    server.demand_1s = server.demand_1s * one + 1.0
    server.demand_growth = decay_now(belief)


@jit_no_refcount(inline=True)
def on_decision(
    belief: Belief,
    now: float,
    ingress: int,
    destination: int,
    deadline: float,
    work: float,
    input_at: float,
    size: float,
    prepare: float,
    rate: float,
) -> tuple[int, int]:
    """Add a decision to the belief; returns (command number, dispatch number), both from 1.

    `deadline` and `input_at` (when the input will be at the destination) are absolute; `work` is in
    worker seconds at `destination`, `size` in bytes across the link (0 = local), `prepare` in CPU
    seconds at the ingress, `rate` the link's believed bytes/s. `destination` −1 = shed: this counts
    a command and no dispatch.
    """
    source = belief.servers[ingress]
    source.commands += 1
    if destination < 0:
        return source.commands, 0
    link = belief.path[ingress, destination] if ingress != destination else -1
    if link >= 0:
        drain_link(belief, link, now, rate)
        belief.links[link].backlog += size
        belief.links[link].flows += 1.0
    if prepare > 0.0:
        source.prepare_backlog = max(0.0, source.prepare_backlog - (now - source.prepare_at))
        source.prepare_backlog += prepare
        source.prepare_at = now
    if link >= 0:
        sends = belief.sends[ingress]
        n = source.sends
        if n == FLIGHTS_MAX:
            for i in range(1, n):
                sends[i - 1] = sends[i]
            n -= 1
        sends[n].command = source.commands
        sends[n].link = link
        sends[n].bytes = size
        sends[n].prepare = prepare
        source.sends = n + 1

    target = belief.servers[destination]
    target.dispatches += 1
    target.outstanding += 1.0
    load = work / target.workers
    advance_decay(belief, now)
    one, five, _ = decayed(belief, target.offered_growth)
    target.offered_1s = target.offered_1s * one + load
    target.offered_5s = target.offered_5s * five + load / 5.0
    target.offered_growth = decay_now(belief)
    add_flight(belief, destination, target.dispatches, deadline, work, input_at, now)
    return source.commands, target.dispatches


@jit_no_refcount(inline=True)
def add_flight(
    belief: Belief,
    s: int,
    dispatch: int,
    deadline: float,
    work: float,
    input_at: float,
    now: float,
) -> None:
    """Add a dispatch to `s` that its reports have not acknowledged, and its job."""
    target = belief.servers[s]
    flights = belief.flights[s]
    n = target.flights
    if n == FLIGHTS_MAX:
        for i in range(1, n):
            flights[i - 1] = flights[i]
        n -= 1
    flights[n].dispatch = dispatch
    flights[n].deadline = deadline
    flights[n].work = work
    flights[n].input_at = input_at
    target.flights = n + 1
    play_forward(belief, s, now)
    add_job(belief, s, deadline, work, input_at, dispatch)


@jit_no_refcount(inline=True)
def acknowledged(dispatch: int, low: int, bits: int) -> bool:
    """Whether a destination has acknowledged a dispatch (`Report.arrivals_low`,
    `arrivals_bits`)."""
    if dispatch <= low:
        return True
    ahead = dispatch - low - 1
    return ahead < 63 and (bits >> ahead) & 1 == 1


@jit_no_refcount(inline=True)
def acknowledge(low: int, bits: int, dispatch: int) -> tuple[int, int]:
    """Record at the destination that `dispatch` arrived; returns the new (low, bits).

    A number that never arrives (its ingress failed, or another server took the request) leaves a
    gap. When a later number falls outside the window of 63, the oldest gaps count as arrived.
    """
    if dispatch <= low:
        return low, bits
    ahead = dispatch - low - 63
    if ahead > 0:  # in one step: a balancer may start numbering anywhere
        bits = bits >> ahead if ahead < 63 else 0
        low += ahead
    if dispatch > low:
        bits |= 1 << (dispatch - low - 1)
    while bits & 1:
        bits >>= 1
        low += 1
    return low, bits


@jit_no_refcount(inline=True)
def on_report(
    belief: Belief,
    s: int,
    at: float,
    now: float,
    running: Array,
    deadlines: Array,
    works: Array,
    prepare_backlog: float,
    utilisation: float,
    draining: float,
    commands_seen: int,
    arrivals_low: int,
    arrivals_bits: int,
) -> bool:
    """Rebuild the miniature of server `s` from its report; returns whether the report was used.

    `at` is on the balancer's clock and not after `now`; `running` (≤ workers,) the seconds left of
    each running job; `deadlines` absolute and `works` in s, (n,) each. A report older than the last
    one is ignored.
    """
    server = belief.servers[s]
    if at < server.report_at:  # False while report_at is NaN
        return False
    server.report_at = at
    server.queued = deadlines.size
    server.utilisation = utilisation
    server.draining = draining
    server.connected = 1.0

    workers = int(server.workers)
    free = belief.free[s]
    free[:workers] = at
    for i in range(min(running.size, workers)):
        set_free(free, workers, 0, at + running[i])
    server.jobs = 0
    server.next_start = math.inf
    for i in range(deadlines.size):
        add_job(belief, s, deadlines[i], works[i], at, 0)
    # Add our dispatches that it has not acknowledged. They had not arrived before `at`.
    flights = belief.flights[s]
    kept = 0
    for i in range(server.flights):
        flight = flights[i]
        if not acknowledged(flight.dispatch, arrivals_low, arrivals_bits):
            if kept != i:
                flights[kept] = flights[i]
            flights[kept].input_at = max(flights[kept].input_at, at)
            add_job(
                belief,
                s,
                flights[kept].deadline,
                flights[kept].work,
                flights[kept].input_at,
                flights[kept].dispatch,
            )
            kept += 1
    server.flights = kept

    sends = belief.sends[s]
    kept = 0
    backlog = prepare_backlog
    for i in range(server.sends):
        if sends[i].command > commands_seen:
            if kept != i:
                sends[kept] = sends[i]
            backlog += sends[kept].prepare
            kept += 1
    server.sends = kept
    server.prepare_backlog = backlog
    server.prepare_at = at
    play_forward(belief, s, now)
    return True


@jit_no_refcount(inline=True)
def on_peer_report(
    belief: Belief,
    link: int,
    at: float,
    throughput: float,
    measured_at: float,
    rtt: float,
    backlog: float,
    flows: float,
    first: bool,
) -> None:
    """Update one of the sender's links from its report; NaN = not measured.

    Several peers of the sender can share a link: the `first` of them in a report sets backlog and
    flows, the others add theirs. The newest measured rate is kept, and the last round trip.
    """
    state = belief.links[link]
    if measured_at == measured_at and not (measured_at <= state.rate_at):
        state.rate = throughput
        state.rate_at = measured_at
    if rtt == rtt:
        state.rtt = rtt
    if first:
        state.backlog = 0.0
        state.flows = 0.0
    state.backlog += backlog
    state.flows += flows
    state.backlog_at = at


@jit_no_refcount
def restore_sends(belief: Belief, s: int, at: float) -> None:
    """Add the bytes of commands that the report of `s` had not acknowledged to their links again.

    Call it after the report's links (`on_peer_report`). A link that the report leaves out still
    counts these bytes.
    """
    for i in range(belief.servers[s].sends):
        send = belief.sends[s, i]
        link = belief.links[send.link]
        if link.backlog_at == at:  # the report has set it
            link.backlog += send.bytes
            link.flows += 1.0


@jit_no_refcount(inline=True)
def on_service_report(belief: Belief, k: int, service_time: float, batch: float) -> None:
    """Set the measured seconds per request of service `k` and its mean batch size."""
    service = belief.services[k]
    service.service_time = service_time
    belief.times[2 * k] = service_time
    belief.times[2 * k + 1] = ready_time(service_time, service.ready_saving)
    service.batch = max(1.0, batch)


@jit_no_refcount(inline=True)
def on_outcome(belief: Belief, s: int, dispatch: int, failed: bool) -> None:
    """End a dispatch to `s`. If its job still waits in the miniature, it is removed."""
    server = belief.servers[s]
    server.failure += FAILURE_MEMORY * ((1.0 if failed else 0.0) - server.failure)
    drop_dispatch(belief, s, dispatch)


@jit_no_refcount(inline=True)
def drop_dispatch(belief: Belief, s: int, dispatch: int) -> None:
    """A dispatch to `s` no longer counts: its job is removed, if it still waits."""
    server = belief.servers[s]
    server.outstanding = max(0.0, server.outstanding - 1.0)
    jobs = belief.jobs[s]
    for j in range(server.jobs):
        if jobs[j].dispatch == dispatch:
            take_job(belief, s, j)
            break
    flights = belief.flights[s]
    for i in range(server.flights):
        if flights[i].dispatch == dispatch:
            for j in range(i + 1, server.flights):
                flights[j - 1] = flights[j]
            server.flights -= 1
            break


@jit_no_refcount
def withdraw(
    belief: Belief, s: int, dispatch: int, work: float, decided_at: float, now: float
) -> None:
    """Undo a dispatch to `s` whose request is not under way: as work, and as load offered."""
    drop_dispatch(belief, s, dispatch)
    add_offered(belief, s, -work, decided_at, now)


@jit_no_refcount
def reinstate(
    belief: Belief,
    s: int,
    dispatch: int,
    deadline: float,
    work: float,
    input_at: float,
    arrived: bool,
    decided_at: float,
    now: float,
) -> None:
    """Undo `withdraw`: the request is under way after all. `arrived`: `s` has acknowledged it."""
    belief.servers[s].outstanding += 1.0
    add_offered(belief, s, work, decided_at, now)
    if not arrived:
        add_flight(belief, s, dispatch, deadline, work, max(input_at, now), now)


@jit_no_refcount
def add_offered(belief: Belief, s: int, work: float, decided_at: float, now: float) -> None:
    """Add `work` s (< 0: take them away) to the load offered to `s`, as of `decided_at`."""
    server = belief.servers[s]
    advance_decay(belief, now)
    one, five, _ = decayed(belief, server.offered_growth)
    load = work / server.workers
    age = now - decided_at
    server.offered_1s = max(0.0, server.offered_1s * one + load * math.exp(-age))
    server.offered_5s = max(0.0, server.offered_5s * five + load / 5.0 * math.exp(-age / 5.0))
    server.offered_growth = decay_now(belief)


@jit_no_refcount
def withdraw_request(belief: Belief, ingress: int, arrived_at: float, now: float) -> None:
    """Undo `on_request`: a request that was announced did not come."""
    server = belief.servers[ingress]
    advance_decay(belief, now)
    one, _, _ = decayed(belief, server.demand_growth)
    left = server.demand_1s * one - math.exp(arrived_at - now)
    server.demand_1s = max(0.0, left)
    server.demand_growth = decay_now(belief)


@jit_no_refcount(inline=True)
def rif_bucket(rif: int) -> int:
    """The bucket of `by_rif` for `rif` requests in flight: 0, 1, 2–3, 4–7, …

    The loop always runs to its end: an early exit would be a branch that the processor cannot
    predict.
    """
    bucket = 0
    for b in range(RIF_BUCKETS - 1):
        bucket += rif >= 1 << b
    return bucket


@jit_no_refcount(inline=True)
def requests_in_flight(belief: Belief, s: int, now: float) -> int:
    """Requests believed to wait on `s`, to run there at `now`, or to be on their way there."""
    server = belief.servers[s]
    running = 0
    for w in range(int(server.workers)):
        if belief.free[s, w] > now:
            running += 1
    count: int = server.jobs + running
    return count


@jit_no_refcount(inline=True)
def on_answer(belief: Belief, s: int, now: float, response: float, rif: int, failed: bool) -> None:
    """Update the response times of server `s` by an answer `response` s after the decision.

    `rif` requests were in flight there when it was decided. For a failure the caller passes the
    worst response time instead of the real one: a server that fails fast must not look fast.
    """
    server = belief.servers[s]
    if server.response == server.response:
        server.response += RESPONSE_MEMORY * (response - server.response)
    else:
        server.response = response
    advance_decay(belief, now)
    one, _, ten = decayed(belief, server.answers_growth)
    if response > server.peak:
        server.peak = response
    else:
        server.peak = server.peak * ten + response * (1.0 - ten)
    server.answers_1s = server.answers_1s * one + 1.0
    server.errors_1s = server.errors_1s * one + (1.0 if failed else 0.0)
    server.answers_growth = decay_now(belief)
    known = server.by_rif
    bucket = rif_bucket(rif)
    if known[bucket] == known[bucket]:
        known[bucket] += RESPONSE_MEMORY * (response - known[bucket])
    else:
        known[bucket] = response


@jit_no_refcount(inline=True)
def water_level(free: Array, workers: int, now: float, work: float) -> float:
    """When `workers` will have done `work` s on top of their present jobs.

    This is the water level t with Σ max(0, t − max(free, now)) = work; `free` is ascending. With
    `work` 0 it is the time at which the first worker is free.
    """
    t: float = work + max(free[0], now)
    total = t
    for k in range(1, workers):
        busy = max(free[k], now)
        if t <= busy:
            break
        total += busy
        t = total / (k + 1)
    return max(t, now)


@jit_no_refcount
def reset_server(belief: Belief, s: int, now: float) -> None:
    """Forget the work believed to be on `s`, which restarted or lost its connection.

    Commands and dispatches are numbered on from where they were: a server that merely reconnected
    still acknowledges the old numbers, and so would confirm restarted ones that it never received.
    """
    server = belief.servers[s]
    server.jobs = 0
    server.next_start = math.inf
    server.flights = 0
    server.sends = 0
    server.outstanding = 0.0
    server.queued = 0.0
    server.prepare_backlog = 0.0
    server.report_at = np.nan
    for i in range(int(server.workers)):
        belief.free[s, i] = now
