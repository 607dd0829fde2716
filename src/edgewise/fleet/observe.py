"""Fill the candidate table of a request from what the balancer believes. Compiled.

`observe` is the one query on the belief.

A request's latency is predicted stage by stage:

    ready   = until the input is at the server: upload, then pre-processing and transfer
    wait    = until a worker takes it, among the jobs believed to be ahead of it
    service = running it; return = the answer's way back

The transfer of z bytes over a link of rate r that n flows with B bytes in all are sharing equally
takes (min(B, n·z) + z) / r: a flow ahead of ours delays it by no more than ours is long (processor
sharing without later arrivals; Kleinrock, Queueing Systems II, §4.4).
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import LOW_RATE_MEMORY, RTT_PRIOR, Array, Belief, Record
from edgewise.fleet.belief import advance, level, requests_in_flight, rif_bucket
from edgewise.fleet.decay import advance_decay, decayed
from edgewise.fleet.estimates import RATE_PRIOR
from edgewise.fleet.rng import numbered
from edgewise.fleet.table import RATE_AGE_MAX, CandidateTable


@jit_no_refcount(inline=True)
def link_rate(belief: Belief, link: int, now: float) -> float:
    """bytes/s believed of a link at `now`; the prior until it has been measured.

    What was measured below the prior fades towards it with age (`layout.LOW_RATE_MEMORY`): the
    geometric mean of both, the measurement weighing exp(−age / memory).
    """
    state = belief.links[link]
    rate: float = state.rate
    if not (rate < RATE_PRIOR):
        return rate if rate == rate else RATE_PRIOR
    doubt = -math.expm1(-max(0.0, now - state.rate_at) / LOW_RATE_MEMORY)
    return rate * math.exp(doubt * math.log(RATE_PRIOR / rate))


@jit_no_refcount(inline=True)
def link_rtt(belief: Belief, link: int) -> float:
    """s; the prior until it has been measured."""
    rtt: float = belief.links[link].rtt
    return rtt if rtt == rtt else RTT_PRIOR


@jit_no_refcount(inline=True)
def backlog_at(belief: Belief, link: int, rate: float, now: float) -> tuple[float, float]:
    """(bytes, flows) believed to be on a link at `now`, without changing the belief."""
    state = belief.links[link]
    if state.backlog <= 0.0:
        return 0.0, 0.0
    left = max(0.0, state.backlog - rate * max(0.0, now - state.backlog_at))
    return left, state.flows * left / state.backlog


@jit_no_refcount(inline=True)
def answered(belief: Belief, s: int, now: float, out: Record) -> None:
    """Fill the columns of server `s` that say what was asked of it and how it answered: means that
    decay, and requests in flight. The growth must be of `now` (`fleet.decay`)."""
    server = belief.servers[s]
    one, five, _ = decayed(belief, server.offered_grown)
    out.offered_1s = server.offered_1s * one
    out.offered_5s = server.offered_5s * five
    one, _, _ = decayed(belief, server.demand_grown)
    out.demand_1s = server.demand_1s * one
    rif = requests_in_flight(belief, s, now)
    then = server.by_rif[rif_bucket(rif)]
    out.rif = rif
    out.response = server.response if server.response == server.response else 0.0
    one, _, ten = decayed(belief, server.answers_grown)
    out.peak = server.peak * ten
    out.rif_response = then if then == then else 0.0
    out.answers_1s = server.answers_1s * one
    out.errors_1s = server.errors_1s * one


@jit_no_refcount(inline=True)
def waiting(arrival: float, ahead_until: float, all_until: float, soon: float) -> float:
    """s that a request waits whose input is there at `arrival`: for what goes before it, until
    `ahead_until`; or, if all workers are busy with less urgent work, until the first finishes."""
    start = max(arrival, ahead_until)
    instead = min(all_until, arrival + soon)
    return (instead if arrival >= ahead_until and all_until > arrival else start) - arrival


@jit_no_refcount
def sampled(source: int, commands: int, j: int, of: int, count: int) -> int:
    """The j-th of `of` servers that are looked at beside the ingress `source`, of `count`.

    The others are cut into `of` equal parts, in the order of their numbers from the ingress on, and
    each part gives one: so none comes twice, and all come equally often (within one part's
    rounding). The draw is a function of the ingress and of its command's number: the simulator and
    the live balancer draw alike, and a question asked twice gets the same answer.
    """
    low = (count - 1) * j // of
    high = (count - 1) * (j + 1) // of
    place = low + int(numbered(source, commands * of + j) * (high - low))
    return (source + 1 + min(place, high - 1)) % count


@jit_no_refcount(inline=True)
def observe(
    belief: Belief,
    table: CandidateTable,
    now: float,
    ingress: int,
    sent_at: float,
    deadline: float,
    demanded: float,
    payload: float,
    uploaded: float,
    grace: float,
    accuracy_weight: float,
) -> int:
    """Fill `table` for one request at `now`; returns how many rows besides shed are admissible.

    `deadline` in s from `sent_at`; `payload` bytes; `uploaded` absolute time at which the photo was
    in at the ingress, NaN if that is still to be predicted; `grace` and `accuracy_weight` of the
    scenario's score. In a fleet of over `SAMPLED_ABOVE` servers only the ingress and `SAMPLED`
    others can be admissible; of the rest only `up` is written, as 0.
    """
    rows, mask, servers, context = table.rows, table.mask, table.servers, table.context
    count = belief.servers.size
    source = belief.servers[ingress]

    access_rtt = link_rtt(belief, ingress)
    if uploaded == uploaded:
        upload = max(0.0, uploaded - now)
    else:
        access_rate = link_rate(belief, ingress, now)
        upload = max(0.0, sent_at + 0.5 * access_rtt + payload / access_rate - now)
    prepare_backlog = max(0.0, source.prepare_backlog - max(0.0, now - source.prepare_at))
    elapsed = now - sent_at
    absolute = sent_at + deadline
    edf = belief.edf[0] > 0.0

    context.ingress = ingress
    context.elapsed = elapsed
    context.deadline = deadline
    context.accuracy = demanded
    context.payload = payload
    context.upload = upload
    context.prepare_backlog = prepare_backlog
    context.grace = grace
    context.accuracy_weight = accuracy_weight
    context.now = now

    # One conversion at the ingress: on a core of its own, or as the workers' most urgent job.
    prepare_wait = prepare_backlog
    if source.prepare_own <= 0.0:
        workers = int(source.workers)
        prepare_wait = level(belief.free[ingress], workers, now, prepare_backlog) - now

    can_convert = source.prepare_on > 0.0
    made = max(upload, prepare_wait) + source.prepare_seconds  # were it converted

    known = -1  # the link whose state is at hand: an uplink is the same for all
    rate = 0.0
    rtt = 0.0
    rate_age = RATE_AGE_MAX
    link_bytes = 0.0
    link_flows = 0.0
    left_bytes = 0.0  # on the link when the conversion is made
    left_flows = 0.0
    link_wait = 0.0
    transfer_over = 0.0  # of the original …
    ready_over = 0.0  # … and when it is in
    back_over = 0.0
    crossing = 0.0  # of a model-ready payload …
    there = 0.0  # … and when it is in
    size_there = -1.0  # of the payload that both are of
    looked_at = count
    if table.settings.sampled > 0:
        looked_at = 1 + min(table.settings.sampled, count - 1)
        mask[:] = 0
        for s in range(count):
            servers[s].up = 0.0
    if table.settings.fill_servers != 0:
        advance_decay(belief, now)
    for nth in range(looked_at):
        s = nth
        if looked_at < count:
            s = ingress
            if nth > 0:
                s = sampled(ingress, source.commands, nth - 1, looked_at - 1, count)
        server = belief.servers[s]
        advance(belief, s, now)
        age = now - server.report_at if server.report_at == server.report_at else server.silence
        up = server.connected > 0.0 and server.draining <= 0.0 and age <= server.silence
        workers = int(server.workers)
        free = belief.free[s]
        all_work = 0.0
        ahead_work = 0.0
        soon = 0.0
        if server.jobs > 0:
            jobs = belief.jobs[s]
            for j in range(server.jobs):
                work = jobs[j].work
                all_work += work
                if not edf or jobs[j].deadline <= absolute:
                    ahead_work += work
            # If all workers are busy with less urgent work, the first of them to finish is awaited.
            soon = all_work / server.jobs / (workers + 1.0)
        if server.prepare_own <= 0.0:
            left = max(0.0, server.prepare_backlog - max(0.0, now - server.prepare_at))
            all_work += left
            ahead_work += left
        ahead_until = level(free, workers, now, ahead_work)
        all_until = ahead_until
        if all_work != ahead_work:
            all_until = level(free, workers, now, all_work)

        link = belief.path[ingress, s]
        local = link < 0
        if not local and link != known:
            known = link
            state = belief.links[link]
            rate = link_rate(belief, link, now)
            rtt = link_rtt(belief, link)
            rate_age = RATE_AGE_MAX
            if state.rate_at == state.rate_at:
                rate_age = min(RATE_AGE_MAX, now - state.rate_at)
            link_bytes, link_flows = backlog_at(belief, link, rate, now)
            left_bytes = max(0.0, link_bytes - rate * made)
            left_flows = link_flows * left_bytes / link_bytes if link_bytes > 0.0 else 0.0
            link_wait = link_bytes / rate
            # The original is the same to all services: streamed on as it arrives, so the slower of
            # upload and transfer decides.
            transfer_over = payload / rate
            ready_over = max(upload, min(link_bytes, link_flows * payload) / rate + transfer_over)
            ready_over += 0.5 * rtt
            back_over = 0.5 * (rtt + access_rtt)
            size_there = -1.0

        if table.settings.fill_servers != 0:
            out = servers[s]
            out.up = 1.0 if up else 0.0
            out.workers = server.workers
            out.speed = server.speed
            out.backlog = all_until - now
            out.ahead = ahead_until - now
            out.queued = server.queued
            out.outstanding = server.outstanding
            out.utilisation = server.utilisation
            out.report_age = age
            out.failure = server.failure
            out.rate = 0.0 if local else rate
            out.rate_age = RATE_AGE_MAX if local else rate_age
            out.link_backlog = 0.0 if local else link_wait
            out.rtt = 0.0 if local else rtt
            answered(belief, s, now, out)

        size = 0.0 if local else payload
        transfer = 0.0 if local else transfer_over
        ready = upload if local else ready_over
        back = 0.5 * access_rtt if local else back_over
        wait = waiting(now + ready, ahead_until, all_until, soon)
        # Model-ready payloads are mostly of one size. So what follows from it is kept, per link and
        # per server: a division takes as long as the rest of a row.
        converts = up and not local and can_convert
        queued = 0.0
        size_queued = -1.0
        for k in range(belief.first[s], belief.first[s + 1]):
            r = 2 * k
            mask[r] = up
            rows.local[r] = local
            rows.ready[r] = ready
            rows.wait[r] = wait
            rows.return_time[r] = back
            rows.transfer[r] = transfer
            rows.size[r] = size
            r += 1
            mask[r] = converts
            if converts:
                # The whole photo must be in before it is converted; the link drains meanwhile.
                small = rows.size[r]
                if small != size_there:
                    size_there = small
                    crossing = small / rate
                    there = made + min(left_bytes, left_flows * small) / rate + crossing + 0.5 * rtt
                if small != size_queued:
                    size_queued = small
                    queued = waiting(now + there, ahead_until, all_until, soon)
                rows.ready[r] = there
                rows.wait[r] = queued
                rows.return_time[r] = back
                rows.transfer[r] = crossing
                rows.prepare[r] = source.prepare_seconds
    return predict(table, belief.times, elapsed, demanded)


@jit_no_refcount(inline=True, internal=True)
def predict(table: CandidateTable, times: Array, elapsed: float, demanded: float) -> int:
    """Write each row's service time and latency, and leave admissible what is accurate enough.
    Returns how many rows besides shed are admissible."""
    rows, mask = table.rows, table.mask
    shed = mask.size - 1
    admissible = 0
    for r in range(shed):
        until_run = elapsed + rows.ready[r] + rows.wait[r]
        rows.service_time[r] = times[r]
        rows.latency[r] = until_run + times[r] + rows.return_time[r]
        good = (mask[r] != 0) & (rows.accuracy[r] >= demanded)
        mask[r] = good
        admissible += good
    mask[shed] = 1
    return admissible
