"""Fill the candidate table of a request from the belief. Compiled.

`observe` predicts a request's latency on each candidate, stage by stage:

    ready        until the input is at the server: upload, then pre-processing and transfer
    wait         until a worker takes it, behind the jobs believed to be ahead of it
    service_time running it
    return_time  the answer's way back

A transfer of z bytes over a link of rate r that n flows with B bytes in all are sharing equally
takes (min(B, n·z) + z) / r: a flow ahead of ours delays it by no more than ours is long (processor
sharing without later arrivals; Kleinrock, Queueing Systems II, §4.4).

What all rows of a server share is computed once for the server (`ServerQueue`), and what all
servers behind one link share once for the link (`LinkView`): an uplink is the same for all.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import LOW_RATE_MEMORY, RTT_PRIOR, Array, Belief, Record
from edgewise.fleet.belief import play_forward, requests_in_flight, rif_bucket, water_level
from edgewise.fleet.decay import advance_decay, decayed
from edgewise.fleet.estimates import RATE_PRIOR
from edgewise.fleet.rng import nth_uniform
from edgewise.fleet.table import RATE_AGE_MAX, CandidateTable


class RequestView(NamedTuple):
    """A request at its ingress, as all candidates share it. Times are s from now."""

    now: float
    ingress: int
    due: float
    """Absolute time of its deadline."""
    payload: float
    upload: float
    """Until the original is in at the ingress."""
    converted: float
    """Until the model-ready form is made there."""
    access_rtt: float


class ServerQueue(NamedTuple):
    """What a request finds at a server."""

    up: bool
    report_age: float
    ahead_until: float
    """Absolute time at which the work that goes before the request is done …"""
    all_until: float
    """… and all work."""
    first_free: float
    """s until the first of the busy workers finishes, on average."""


class LinkView(NamedTuple):
    """A link as a request's payload finds it. Times are s from now unless said otherwise."""

    link: int
    """−1: no link, the server is the ingress."""
    rate: float
    rtt: float
    rate_age: float
    wait: float
    """s until the link is through with what is on it."""
    bytes_then: float
    """Bytes on it when the model-ready form is made …"""
    flows_then: float
    """… and the transfers that they belong to."""
    transfer: float
    """s of the link that the original takes."""
    ready: float
    """Until the original is at the other end."""
    return_time: float


class ReadyPayload(NamedTuple):
    """A model-ready payload's way over a link. Most services take one of the same size, so it is
    computed once: a division takes as long as the rest of a row."""

    size: float
    transfer: float
    ready: float


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
def waiting(arrival: float, queue: ServerQueue) -> float:
    """s that a request waits whose input is there at `arrival`: until what goes before it is done;
    or, if all workers are busy with less urgent work, until the first of them finishes."""
    start = max(arrival, queue.ahead_until)
    instead = min(queue.all_until, arrival + queue.first_free)
    behind = arrival >= queue.ahead_until and queue.all_until > arrival
    return (instead if behind else start) - arrival


@jit_no_refcount
def sampled(source: int, commands: int, j: int, of: int, count: int) -> int:
    """The j-th of `of` servers that are considered beside the ingress `source`, of `count`.

    The others are cut into `of` equal parts, in the order of their numbers from the ingress on, and
    each part gives one: so none comes twice, and all come equally often (within one part's
    rounding). The draw is a function of the ingress and of its command's number: the simulator and
    the live balancer draw alike, and a question asked twice gets the same answer.
    """
    low = (count - 1) * j // of
    high = (count - 1) * (j + 1) // of
    place = low + int(nth_uniform(source, commands * of + j) * (high - low))
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
    context = table.context
    context.ingress = ingress
    context.elapsed = now - sent_at
    context.deadline = deadline
    context.accuracy = demanded
    context.payload = payload
    context.grace = grace
    context.accuracy_weight = accuracy_weight
    context.now = now
    request = view_request(belief, context, sent_at, uploaded)

    count = belief.servers.size
    considered = count
    if table.settings.sampled > 0:
        considered = 1 + min(table.settings.sampled, count - 1)
        table.mask[:] = 0
        for s in range(count):
            table.servers[s].up = 0.0
    fill_servers = table.settings.fill_servers != 0
    if fill_servers:
        advance_decay(belief, now)

    here = view_ingress(request)
    remote = here
    ready = ReadyPayload(-1.0, 0.0, 0.0)
    for nth in range(considered):
        s = nth
        if considered < count:
            s = ingress
            if nth > 0:
                commands = belief.servers[ingress].commands
                s = sampled(ingress, commands, nth - 1, considered - 1, count)
        queue = view_server(belief, s, request)
        link = belief.path[ingress, s]
        if link >= 0 and link != remote.link:
            remote = view_link(belief, link, request)
            ready = ReadyPayload(-1.0, 0.0, 0.0)
        way = here if link < 0 else remote
        if fill_servers:
            fill_server(belief, s, queue, way, now, table.servers[s])
        ready = fill_rows(belief, table, s, request, queue, way, ready)
    return predict(table, belief.times)


@jit_no_refcount(inline=True)
def view_request(belief: Belief, context: Record, sent_at: float, uploaded: float) -> RequestView:
    """The request that `context` describes; completes the context."""
    now, ingress = context.now, int(context.ingress)
    source = belief.servers[ingress]
    access_rtt = link_rtt(belief, ingress)
    if uploaded == uploaded:
        upload = max(0.0, uploaded - now)
    else:
        access_rate = link_rate(belief, ingress, now)
        upload = max(0.0, sent_at + 0.5 * access_rtt + context.payload / access_rate - now)
    backlog = max(0.0, source.prepare_backlog - max(0.0, now - source.prepare_at))
    context.upload = upload
    context.prepare_backlog = backlog
    # One conversion at the ingress: on a core of its own, or as the workers' most urgent job.
    wait = backlog
    if source.prepare_own <= 0.0:
        wait = water_level(belief.free[ingress], int(source.workers), now, backlog) - now
    return RequestView(
        now,
        ingress,
        sent_at + context.deadline,
        context.payload,
        upload,
        max(upload, wait) + source.prepare_seconds,
        access_rtt,
    )


@jit_no_refcount(inline=True)
def view_server(belief: Belief, s: int, request: RequestView) -> ServerQueue:
    """What the request finds at server `s`; plays its miniature forward to now."""
    now = request.now
    play_forward(belief, s, now)
    server = belief.servers[s]
    age = now - server.report_at if server.report_at == server.report_at else server.silence
    up = server.connected > 0.0 and server.draining <= 0.0 and age <= server.silence
    workers = int(server.workers)
    free = belief.free[s]
    edf = belief.edf[0] > 0.0
    all_work = 0.0
    ahead_work = 0.0
    first_free = 0.0
    if server.jobs > 0:
        jobs = belief.jobs[s]
        for j in range(server.jobs):
            work = jobs[j].work
            all_work += work
            if not edf or jobs[j].deadline <= request.due:
                ahead_work += work
        first_free = all_work / server.jobs / (workers + 1.0)
    if server.prepare_own <= 0.0:
        left = max(0.0, server.prepare_backlog - max(0.0, now - server.prepare_at))
        all_work += left
        ahead_work += left
    ahead_until = water_level(free, workers, now, ahead_work)
    all_until = ahead_until
    if all_work != ahead_work:
        all_until = water_level(free, workers, now, all_work)
    return ServerQueue(up, age, ahead_until, all_until, first_free)


@jit_no_refcount(inline=True)
def view_ingress(request: RequestView) -> LinkView:
    """The way to the ingress itself: none."""
    back = 0.5 * request.access_rtt
    return LinkView(-1, 0.0, 0.0, RATE_AGE_MAX, 0.0, 0.0, 0.0, 0.0, request.upload, back)


@jit_no_refcount(inline=True)
def view_link(belief: Belief, link: int, request: RequestView) -> LinkView:
    """A link from the request's ingress."""
    now, payload = request.now, request.payload
    state = belief.links[link]
    rate = link_rate(belief, link, now)
    rtt = link_rtt(belief, link)
    rate_age = RATE_AGE_MAX
    if state.rate_at == state.rate_at:
        rate_age = min(RATE_AGE_MAX, now - state.rate_at)
    backlog, flows = backlog_at(belief, link, rate, now)
    bytes_then = max(0.0, backlog - rate * request.converted)
    flows_then = flows * bytes_then / backlog if backlog > 0.0 else 0.0
    # The original is streamed on as it arrives, so the slower of upload and transfer decides.
    transfer = payload / rate
    ready = max(request.upload, min(backlog, flows * payload) / rate + transfer)
    ready += 0.5 * rtt
    return LinkView(
        link,
        rate,
        rtt,
        rate_age,
        backlog / rate,
        bytes_then,
        flows_then,
        transfer,
        ready,
        0.5 * (rtt + request.access_rtt),
    )


@jit_no_refcount(inline=True)
def fill_server(
    belief: Belief, s: int, queue: ServerQueue, way: LinkView, now: float, out: Record
) -> None:
    """Fill the columns of server `s`. The growth must be of `now` (`fleet.decay`)."""
    server = belief.servers[s]
    out.up = 1.0 if queue.up else 0.0
    out.workers = server.workers
    out.speed = server.speed
    out.backlog = queue.all_until - now
    out.ahead = queue.ahead_until - now
    out.queued = server.queued
    out.outstanding = server.outstanding
    out.utilisation = server.utilisation
    out.report_age = queue.report_age
    out.failure = server.failure
    out.rate = way.rate
    out.rate_age = way.rate_age
    out.link_backlog = way.wait
    out.rtt = way.rtt
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
def fill_rows(
    belief: Belief,
    table: CandidateTable,
    s: int,
    request: RequestView,
    queue: ServerQueue,
    way: LinkView,
    known: ReadyPayload,
) -> ReadyPayload:
    """Fill the rows of server `s`, but for `predict`'s columns. `known` is the last model-ready
    payload computed for this link; returns the last one now."""
    rows, mask = table.rows, table.mask
    source = belief.servers[request.ingress]
    local = way.link < 0
    size = 0.0 if local else request.payload
    wait = waiting(request.now + way.ready, queue)
    converts = queue.up and not local and source.prepare_on > 0.0
    ready_wait = 0.0
    waited_for = -1.0
    for k in range(belief.first[s], belief.first[s + 1]):
        r = 2 * k
        mask[r] = queue.up
        rows.local[r] = local
        rows.ready[r] = way.ready
        rows.wait[r] = wait
        rows.return_time[r] = way.return_time
        rows.transfer[r] = way.transfer
        rows.size[r] = size
        r += 1
        mask[r] = converts
        if converts:
            small = rows.size[r]
            if small != known.size:
                known = send_ready(small, request, way)
            if small != waited_for:
                waited_for = small
                ready_wait = waiting(request.now + known.ready, queue)
            rows.ready[r] = known.ready
            rows.wait[r] = ready_wait
            rows.return_time[r] = way.return_time
            rows.transfer[r] = known.transfer
            rows.prepare[r] = source.prepare_seconds
    return known


@jit_no_refcount(inline=True)
def send_ready(size: float, request: RequestView, way: LinkView) -> ReadyPayload:
    """A model-ready payload's way. The whole photo must be in before it is converted; the link
    drains meanwhile."""
    transfer = size / way.rate
    over = min(way.bytes_then, way.flows_then * size) / way.rate
    return ReadyPayload(size, transfer, request.converted + over + transfer + 0.5 * way.rtt)


@jit_no_refcount(inline=True, internal=True)
def predict(table: CandidateTable, times: Array) -> int:
    """Write each row's service time and latency, and leave admissible what is accurate enough.
    Returns how many rows besides shed are admissible."""
    rows, mask = table.rows, table.mask
    elapsed, demanded = table.context.elapsed, table.context.accuracy
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
