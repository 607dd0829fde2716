"""The candidate table: one request, and what is believed of every way to answer it. Compiled.

`observe` is the one query on the belief. It fills three float64 arrays and a mask:

- `rows` (R, len(ROW)): row 2k + f is service k fed payload form f; the last row is *shed*.
- `mask` (R,): 1 where the row is admissible: accuracy ≥ demanded, server up and not draining, and
  the form makes sense (model-ready only for a transfer). Shed always is.
- `servers` (S, len(SERVER)) and `context` (len(CONTEXT),): what rows share, kept apart so that it
  is computed once. `flatten` gathers all three into one wide row per candidate, for learners that
  want that.

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
from typing import NamedTuple

import numpy as np

from edgewise.compile import copied, inlined, lean
from edgewise.fleet.arrays import LOW_RATE_MEMORY, RTT_PRIOR, Array, Belief
from edgewise.fleet.belief import advance, level, requests_in_flight, rif_bucket
from edgewise.fleet.decay import advance_decay, decayed
from edgewise.fleet.estimates import RATE_PRIOR
from edgewise.fleet.rng import numbered

ROW = {
    "server": "index of the server; −1 on the shed row",
    "service": "index of the service; −1 on the shed row",
    "form": "0 original, 1 model-ready",
    "local": "1 if the server is the ingress",
    "accuracy": "of the service fed this form, 0–1",
    "ready": "s from now until the input is at the server, in this form",
    "wait": "s in the server's queue after that",
    "service_time": "s running it",
    "return": "s for the answer to reach the client",
    "latency": "s from sent_at to the answer at the client: all of the above and what has passed",
    "transfer": "s of the link it takes: bytes / rate",
    "prepare": "s of the ingress's CPU it takes",
    "size": "bytes across the link",
}
(
    R_SERVER,
    R_SERVICE,
    R_FORM,
    R_LOCAL,
    R_ACCURACY,
    R_READY,
    R_WAIT,
    R_SERVICE_TIME,
    R_RETURN,
    R_LATENCY,
    R_TRANSFER,
    R_PREPARE,
    R_SIZE,
) = range(len(ROW))

SERVER = {
    "up": "1 if it can be chosen",
    "workers": "count",
    "speed": "relative to the machine of the latency profiles",
    "backlog": "s until its workers are through with all that is believed to be there",
    "ahead": "s of that which go before this request",
    "queued": "requests it last reported waiting",
    "outstanding": "our dispatches without an outcome",
    "utilisation": "0–1, reported",
    "report_age": "s since its report was true; as old as its silence limit if never heard",
    "failure": "EWMA share of failed answers, 0–1",
    "offered_1s": "worker seconds per s and worker that we sent there, over 1 s",
    "offered_5s": "the same over 5 s",
    "demand_1s": "requests/s that arrive there as ingress, over 1 s",
    "rate": "bytes/s believed of the link from the ingress now; 0 for the ingress itself",
    "rate_age": "s since that was measured; 60 if never",
    "link_backlog": "s until the link is through with what is believed to be on it",
    "rtt": "s of the round trip from the ingress",
    "rif": "requests believed to wait or run there",
    "response": "EWMA s from decision to answer; 0 before the first",
    "peak": "peak EWMA of the same, decayed to now",
    "rif_response": "EWMA of the same when as many were in flight as now; 0 if that never was",
    "answers_1s": "answers/s, over 1 s",
    "errors_1s": "failed ones of them",
}
(
    S_UP,
    S_WORKERS,
    S_SPEED,
    S_BACKLOG,
    S_AHEAD,
    S_QUEUED,
    S_OUTSTANDING,
    S_UTILISATION,
    S_REPORT_AGE,
    S_FAILURE,
    S_OFFERED_1S,
    S_OFFERED_5S,
    S_DEMAND_1S,
    S_RATE,
    S_RATE_AGE,
    S_LINK_BACKLOG,
    S_RTT,
    S_RIF,
    S_RESPONSE,
    S_PEAK,
    S_RIF_RESPONSE,
    S_ANSWERS_1S,
    S_ERRORS_1S,
) = range(len(SERVER))

CONTEXT = {
    "ingress": "index of the server",
    "elapsed": "s since sent_at",
    "deadline": "s from sent_at",
    "accuracy": "demanded, 0–1",
    "payload": "bytes of the original",
    "upload": "s from now until the photo is at the ingress",
    "prepare_backlog": "s of CPU waiting in the ingress's pre-processing stage",
    "grace": "of the score: how far past the deadline an answer still counts, in deadlines",
    "accuracy_weight": "of the score: exponent of the accuracy",
    "now": "s on the balancer's clock: for timers in a rule's memory, not a feature to learn by",
}
(
    C_INGRESS,
    C_ELAPSED,
    C_DEADLINE,
    C_ACCURACY,
    C_PAYLOAD,
    C_UPLOAD,
    C_PREPARE_BACKLOG,
    C_GRACE,
    C_ACCURACY_WEIGHT,
    C_NOW,
) = range(len(CONTEXT))

SAMPLED_ABOVE = 32
"""Servers. In a larger fleet a request is offered the ingress and a sample of the others: a look at
all of them would cost more time than the choice among the last few hundred is worth."""
SAMPLED = 15
"""Servers in the sample. Two random choices already avoid most of the queueing (Mitzenmacher, IEEE
TPDS 12(10), 2001); with unequal servers more are needed to have a fast one among them.
`benchmarks/simulator.py` prints what it costs."""

RATE_AGE_MAX = 60.0
"""s. By then a mobile link's rate tells nothing any more of what it was (Norway HSDPA traces)."""


class CandidateTable(NamedTuple):
    """What a policy's kernel sees, and where it writes its scores. Allocated once.

    A column of `rows` lies in one piece, so that who fills or reads one goes through it without a
    step: what rows have in common is computed for eight of them at a time. Rows that are not
    admissible hold figures too; they mean nothing, but for what never changes: server, service,
    form, accuracy, and the size of a model-ready payload.
    """

    rows: Array  # float64 (R, len(ROW)), in Fortran's order
    mask: Array  # uint8 (R,)
    servers: Array  # float64 (S, len(SERVER))
    context: Array  # float64 (len(CONTEXT),)
    scores: Array  # float64 (R,): higher is better; −inf never
    wanted: Array  # uint8 (2,): 0 leaves `servers` as it is; servers looked at besides the ingress,
    # 0 = all


def blank_table(servers: int, services: int) -> CandidateTable:
    """Allocate the table of a fleet of so many."""
    rows = np.zeros((2 * services + 1, len(ROW)), order="F")
    rows[-1, R_SERVER] = rows[-1, R_SERVICE] = -1.0
    return CandidateTable(
        rows=rows,
        mask=np.zeros(2 * services + 1, np.uint8),
        servers=np.zeros((servers, len(SERVER))),
        context=np.zeros(len(CONTEXT)),
        scores=np.zeros(2 * services + 1),
        wanted=np.array([1, SAMPLED if servers > SAMPLED_ABOVE else 0], np.uint8),
    )


def new_table(belief: Belief) -> CandidateTable:
    """Allocate the table that `observe` fills from `belief`, or from one of the same fleet."""
    services = belief.services
    table = blank_table(len(belief.servers), len(services))
    for form, accuracy in enumerate(("accuracy", "ready_accuracy")):
        rows = table.rows[form:-1:2]
        rows[:, R_SERVER] = services["server"]
        rows[:, R_SERVICE] = np.arange(len(services))
        rows[:, R_FORM] = form
        rows[:, R_ACCURACY] = services[accuracy]
    table.rows[1:-1:2, R_SIZE] = services["ready_bytes"]
    return table


@copied
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


@copied
def link_rtt(belief: Belief, link: int) -> float:
    """s; the prior until it has been measured."""
    rtt: float = belief.links[link].rtt
    return rtt if rtt == rtt else RTT_PRIOR


@copied
def backlog_at(belief: Belief, link: int, rate: float, now: float) -> tuple[float, float]:
    """(bytes, flows) believed to be on a link at `now`, without changing the belief."""
    state = belief.links[link]
    if state.backlog <= 0.0:
        return 0.0, 0.0
    left = max(0.0, state.backlog - rate * max(0.0, now - state.backlog_at))
    return left, state.flows * left / state.backlog


@copied
def answered(belief: Belief, s: int, now: float, out: Array) -> None:
    """Fill the columns of server `s` that say what was asked of it and how it answered: means that
    decay, and requests in flight. The growth must be of `now` (`fleet.decay`)."""
    server = belief.servers[s]
    one, five, _ = decayed(belief, server.offered_grown)
    out[S_OFFERED_1S] = server.offered_1s * one
    out[S_OFFERED_5S] = server.offered_5s * five
    one, _, _ = decayed(belief, server.demand_grown)
    out[S_DEMAND_1S] = server.demand_1s * one
    rif = requests_in_flight(belief, s, now)
    then = server.by_rif[rif_bucket(rif)]
    out[S_RIF] = rif
    out[S_RESPONSE] = server.response if server.response == server.response else 0.0
    one, _, ten = decayed(belief, server.answers_grown)
    out[S_PEAK] = server.peak * ten
    out[S_RIF_RESPONSE] = then if then == then else 0.0
    out[S_ANSWERS_1S] = server.answers_1s * one
    out[S_ERRORS_1S] = server.errors_1s * one


@copied
def waiting(arrival: float, ahead_until: float, all_until: float, soon: float) -> float:
    """s that a request waits whose input is there at `arrival`: for what goes before it, until
    `ahead_until`; or, if all workers are busy with less urgent work, until the first finishes."""
    start = max(arrival, ahead_until)
    instead = min(all_until, arrival + soon)
    return (instead if arrival >= ahead_until and all_until > arrival else start) - arrival


@lean
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


@copied
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

    context[C_INGRESS] = ingress
    context[C_ELAPSED] = elapsed
    context[C_DEADLINE] = deadline
    context[C_ACCURACY] = demanded
    context[C_PAYLOAD] = payload
    context[C_UPLOAD] = upload
    context[C_PREPARE_BACKLOG] = prepare_backlog
    context[C_GRACE] = grace
    context[C_ACCURACY_WEIGHT] = accuracy_weight
    context[C_NOW] = now

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
    if table.wanted[1] > 0:
        looked_at = 1 + min(table.wanted[1], count - 1)
        mask[:] = 0
        for s in range(count):
            servers[s, S_UP] = 0.0
    if table.wanted[0] != 0:
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

        if table.wanted[0] != 0:
            out = servers[s]
            out[S_UP] = 1.0 if up else 0.0
            out[S_WORKERS] = server.workers
            out[S_SPEED] = server.speed
            out[S_BACKLOG] = all_until - now
            out[S_AHEAD] = ahead_until - now
            out[S_QUEUED] = server.queued
            out[S_OUTSTANDING] = server.outstanding
            out[S_UTILISATION] = server.utilisation
            out[S_REPORT_AGE] = age
            out[S_FAILURE] = server.failure
            out[S_RATE] = 0.0 if local else rate
            out[S_RATE_AGE] = RATE_AGE_MAX if local else rate_age
            out[S_LINK_BACKLOG] = 0.0 if local else link_wait
            out[S_RTT] = 0.0 if local else rtt
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
            rows[r, R_LOCAL] = local
            rows[r, R_READY] = ready
            rows[r, R_WAIT] = wait
            rows[r, R_RETURN] = back
            rows[r, R_TRANSFER] = transfer
            rows[r, R_SIZE] = size
            r += 1
            mask[r] = converts
            if converts:
                # The whole photo must be in before it is converted; the link drains meanwhile.
                small = rows[r, R_SIZE]
                if small != size_there:
                    size_there = small
                    crossing = small / rate
                    there = made + min(left_bytes, left_flows * small) / rate + crossing + 0.5 * rtt
                if small != size_queued:
                    size_queued = small
                    queued = waiting(now + there, ahead_until, all_until, soon)
                rows[r, R_READY] = there
                rows[r, R_WAIT] = queued
                rows[r, R_RETURN] = back
                rows[r, R_TRANSFER] = crossing
                rows[r, R_PREPARE] = source.prepare_seconds
    return predict(table, belief.times, elapsed, demanded)


@inlined
def predict(table: CandidateTable, times: Array, elapsed: float, demanded: float) -> int:
    """Write each row's service time and latency, and leave admissible what is accurate enough.
    Returns how many rows besides shed are admissible."""
    rows, mask = table.rows, table.mask
    shed = mask.size - 1
    admissible = 0
    for r in range(shed):
        until_run = elapsed + rows[r, R_READY] + rows[r, R_WAIT]
        rows[r, R_SERVICE_TIME] = times[r]
        rows[r, R_LATENCY] = until_run + times[r] + rows[r, R_RETURN]
        good = (mask[r] != 0) & (rows[r, R_ACCURACY] >= demanded)
        mask[r] = good
        admissible += good
    mask[shed] = 1
    return admissible


@lean
def flatten(table: CandidateTable, out: Array) -> None:
    """Gather the table into `out` (R, len(ROW) + len(SERVER) + len(CONTEXT)); masked rows are 0."""
    wide = table.rows.shape[1]
    deep = table.servers.shape[1]
    for r in range(table.rows.shape[0]):
        admissible = table.mask[r] != 0
        s = int(table.rows[r, R_SERVER])
        for c in range(wide):
            out[r, c] = table.rows[r, c] if admissible else 0.0
        for c in range(deep):
            out[r, wide + c] = table.servers[s, c] if admissible and s >= 0 else 0.0
        for c in range(table.context.size):
            out[r, wide + deep + c] = table.context[c] if admissible else 0.0


@copied
def best_row(table: CandidateTable) -> int:
    """The admissible row of highest score, the first of equals; shed if none is above −inf."""
    scores, mask = table.scores, table.mask
    best = mask.size - 1
    value = -math.inf
    for r in range(mask.size):
        if mask[r] == 1 and scores[r] > value:
            best = r
            value = scores[r]
    return best
