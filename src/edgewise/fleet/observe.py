"""Fill the candidate table of a request from the belief. Compiled.

`observe` predicts a request's latency on each candidate, stage by stage:

    until_input  until the input is at the server: upload, then pre-processing and transfer
    wait         until a worker takes it, behind the jobs believed to be ahead of it
    service_time while the worker runs it
    return_time  until the answer is back at the client

A link of rate r carries n flows with B bytes in all, shared equally. A transfer of z bytes that
joins them takes (min(B, n·z) + z) / r: each of the other flows delays it by at most z bytes
(processor sharing without later arrivals; Kleinrock, Queueing Systems II, §4.4).

`ServerQueue` is computed once per server and shared by its rows; `LinkView` is computed once per
link and shared by the servers behind it (all of them, for an uplink).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import LOW_RATE_MEMORY, RTT_PRIOR, Array, Belief, Record
from edgewise.fleet.belief import play_forward, requests_in_flight, rif_bucket, water_level
from edgewise.fleet.decay import advance_decay, decayed
from edgewise.fleet.ejection import bar
from edgewise.fleet.estimates import RATE_PRIOR
from edgewise.fleet.rng import nth_uniform
from edgewise.fleet.table import RATE_AGE_MAX, CandidateTable


class RequestView(NamedTuple):
    """The figures of a request that all its candidates share."""

    now: float
    ingress: int
    due: float
    """Absolute time of its deadline."""
    payload: float
    """Bytes of the original."""
    upload: float
    """s until the original is at the ingress."""
    converted: float
    """s until the ingress has made the model-ready form."""
    access_rtt: float
    """s between client and ingress and back."""


class ServerQueue(NamedTuple):
    """The believed queue of a server, as one request would join it."""

    up: bool
    """Whether the server may be chosen."""
    report_age: float
    """s since its last report was made."""
    ahead_until: float
    """Absolute time at which the work that goes before the request is done."""
    all_until: float
    """Absolute time at which all of its work is done."""
    next_free: float
    """Estimated s until a busy worker becomes free: mean job length / (workers + 1)."""


class LinkView(NamedTuple):
    """The link from the ingress to a server, as one request's payload would find it."""

    link: int
    """Its number; −1: no link, the server is the ingress."""
    rate: float
    """Believed bytes/s."""
    rtt: float
    """s."""
    rate_age: float
    """s since the rate was measured."""
    wait: float
    """s until the link has carried the bytes that are on it now."""
    bytes_then: float
    """Bytes that will still be on it when the model-ready form has been made."""
    flows_then: float
    """The transfers that these bytes belong to."""
    transfer: float
    """s of link time that the original takes."""
    until_input: float
    """s from now until the original is at the server."""
    return_time: float
    """s for the answer to reach the client."""


class ReadyPayload(NamedTuple):
    """The transfer of a model-ready payload over one link.

    Most services take the same size, so the last result is reused: its divisions take as long as
    the rest of a row.
    """

    size: float
    """Bytes; −1: none computed yet."""
    transfer: float
    """s of link time."""
    until_input: float
    """s from now until the payload is at the server."""


@jit_no_refcount(inline=True)
def link_rate(belief: Belief, link: int, now: float) -> float:
    """The believed rate of a link at `now`, bytes/s; the prior if it was never measured.

    A measurement below the prior fades towards it with age: the result is the geometric mean of
    both, in which the measurement weighs exp(−age / `arrays.LOW_RATE_MEMORY`).
    """
    state = belief.links[link]
    rate: float = state.rate
    if not (rate < RATE_PRIOR):
        return rate if rate == rate else RATE_PRIOR
    doubt = -math.expm1(-max(0.0, now - state.rate_at) / LOW_RATE_MEMORY)
    return rate * math.exp(doubt * math.log(RATE_PRIOR / rate))


@jit_no_refcount(inline=True)
def link_rtt(belief: Belief, link: int) -> float:
    """The believed round trip of a link, s; the prior if it was never measured."""
    rtt: float = belief.links[link].rtt
    return rtt if rtt == rtt else RTT_PRIOR


@jit_no_refcount(inline=True)
def backlog_at(belief: Belief, link: int, rate: float, now: float) -> tuple[float, float]:
    """(bytes, flows) believed to be on a link at `now`; leaves the belief unchanged."""
    state = belief.links[link]
    if state.backlog <= 0.0:
        return 0.0, 0.0
    left = max(0.0, state.backlog - rate * max(0.0, now - state.backlog_at))
    return left, state.flows * left / state.backlog


@jit_no_refcount(inline=True)
def waiting(arrival: float, queue: ServerQueue) -> float:
    """s that a request waits for a worker if its input reaches the server at `arrival`.

    It waits until the work that goes before it is done. If that is done and all workers are busy
    with less urgent work, it waits until one of them becomes free.
    """
    start = max(arrival, queue.ahead_until)
    instead = min(queue.all_until, arrival + queue.next_free)
    behind = arrival >= queue.ahead_until and queue.all_until > arrival
    return (instead if behind else start) - arrival


@jit_no_refcount
def sampled(source: int, commands: int, j: int, of: int, count: int) -> int:
    """The j-th of `of` servers sampled as candidates besides the ingress `source`; `count` in all.

    The other servers, numbered from the ingress on, are cut into `of` equal parts, and one server
    is drawn from each. So no server is drawn twice, and all are drawn equally often (within one
    part's rounding). The draw depends only on the ingress and the number of its next command.
    Therefore the simulator and the live balancer draw alike, and repeating it gives the same.
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

    `deadline` in s from `sent_at`; `payload` in bytes; `uploaded` the absolute time at which the
    photo was at the ingress, NaN if that is still to be predicted; `grace` and `accuracy_weight`
    from the scenario's score. Rows of servers and paths that are ejected are not admissible
    (`fleet.ejection`). In a fleet of over `SAMPLED_ABOVE` servers only the ingress and
    `SAMPLED` others can be admissible; for the rest only `up` is written, as 0.
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
    admissible = predict(table, belief.times)
    if belief.ejection[0].active != 0:
        admissible = bar(belief, table, now)
    return admissible


@jit_no_refcount(inline=True)
def view_request(belief: Belief, context: Record, sent_at: float, uploaded: float) -> RequestView:
    """Compute the request's view from `context`; writes context.upload and .prepare_backlog."""
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
    # The converter runs on a core of its own, or conversions are the workers' most urgent jobs.
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
    """Compute the believed queue of server `s` for the request; plays its miniature up to now."""
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
    next_free = 0.0
    if server.jobs > 0:
        jobs = belief.jobs[s]
        for j in range(server.jobs):
            work = jobs[j].work
            all_work += work
            if not edf or jobs[j].deadline <= request.due:
                ahead_work += work
        next_free = all_work / server.jobs / (workers + 1.0)
    if server.prepare_own <= 0.0:
        left = max(0.0, server.prepare_backlog - max(0.0, now - server.prepare_at))
        all_work += left
        ahead_work += left
    ahead_until = water_level(free, workers, now, ahead_work)
    all_until = ahead_until
    if all_work != ahead_work:
        all_until = water_level(free, workers, now, all_work)
    return ServerQueue(up, age, ahead_until, all_until, next_free)


@jit_no_refcount(inline=True)
def view_ingress(request: RequestView) -> LinkView:
    """The view that stands for a link where the server is the ingress itself."""
    back = 0.5 * request.access_rtt
    return LinkView(-1, 0.0, 0.0, RATE_AGE_MAX, 0.0, 0.0, 0.0, 0.0, request.upload, back)


@jit_no_refcount(inline=True)
def view_link(belief: Belief, link: int, request: RequestView) -> LinkView:
    """Compute the view of a link from the request's ingress."""
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
    until_input = max(request.upload, min(backlog, flows * payload) / rate + transfer)
    until_input += 0.5 * rtt
    return LinkView(
        link,
        rate,
        rtt,
        rate_age,
        backlog / rate,
        bytes_then,
        flows_then,
        transfer,
        until_input,
        0.5 * (rtt + request.access_rtt),
    )


@jit_no_refcount(inline=True)
def fill_server(
    belief: Belief, s: int, queue: ServerQueue, way: LinkView, now: float, out: Record
) -> None:
    """Fill the columns of server `s`. Call `advance_decay(belief, now)` first."""
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
    one, five, _ = decayed(belief, server.offered_growth)
    out.offered_1s = server.offered_1s * one
    out.offered_5s = server.offered_5s * five
    one, _, _ = decayed(belief, server.demand_growth)
    out.demand_1s = server.demand_1s * one
    rif = requests_in_flight(belief, s, now)
    then = server.by_rif[rif_bucket(rif)]
    out.rif = rif
    out.response = server.response if server.response == server.response else 0.0
    one, _, ten = decayed(belief, server.answers_growth)
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
    ready: ReadyPayload,
) -> ReadyPayload:
    """Fill the rows of server `s`, except for the columns that `predict` fills.

    `ready` is the model-ready payload last computed for this link; returns the one last computed.
    """
    rows, mask = table.rows, table.mask
    source = belief.servers[request.ingress]
    local = way.link < 0
    size = 0.0 if local else request.payload
    wait = waiting(request.now + way.until_input, queue)
    converts = queue.up and not local and source.prepare_on > 0.0
    ready_wait = 0.0
    waited_for = -1.0
    for k in range(belief.first[s], belief.first[s + 1]):
        r = 2 * k
        mask[r] = queue.up
        rows.local[r] = local
        rows.until_input[r] = way.until_input
        rows.wait[r] = wait
        rows.return_time[r] = way.return_time
        rows.transfer[r] = way.transfer
        rows.size[r] = size
        r += 1
        mask[r] = converts
        if converts:
            small = rows.size[r]
            if small != ready.size:
                ready = send_ready(small, request, way)
            if small != waited_for:
                waited_for = small
                ready_wait = waiting(request.now + ready.until_input, queue)
            rows.until_input[r] = ready.until_input
            rows.wait[r] = ready_wait
            rows.return_time[r] = way.return_time
            rows.transfer[r] = ready.transfer
            rows.prepare[r] = source.prepare_seconds
    return ready


@jit_no_refcount(inline=True)
def send_ready(size: float, request: RequestView, way: LinkView) -> ReadyPayload:
    """Compute the transfer of a model-ready payload of `size` bytes. The link drains while the
    photo is uploaded and converted."""
    transfer = size / way.rate
    over = min(way.bytes_then, way.flows_then * size) / way.rate
    return ReadyPayload(size, transfer, request.converted + over + transfer + 0.5 * way.rtt)


@jit_no_refcount(inline=True, internal=True)
def predict(table: CandidateTable, times: Array) -> int:
    """Write each row's service time and latency, and mask the rows that are not accurate enough.
    Returns how many rows besides shed are admissible."""
    rows, mask = table.rows, table.mask
    elapsed, demanded = table.context.elapsed, table.context.accuracy
    shed = mask.size - 1
    admissible = 0
    for r in range(shed):
        until_run = elapsed + rows.until_input[r] + rows.wait[r]
        rows.service_time[r] = times[r]
        rows.latency[r] = until_run + times[r] + rows.return_time[r]
        good = (mask[r] != 0) & (rows.accuracy[r] >= demanded)
        mask[r] = good
        admissible += good
    mask[shed] = 1
    return admissible
