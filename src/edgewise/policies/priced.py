"""The strongest heuristic: expected utility minus the price of what the request takes from others.

    score = accuracy^w × (1 − f·failure) × E[g(margined latency / deadline)]
            − price(server) × service seconds / workers
            − price(ingress) × prepare seconds / workers of the ingress
            − price(link) × transfer seconds
    shed  = threshold, which rises with the load of the fleet

A worker second taken here is a second that a later request cannot have. What it would have earned
depends on how contended it is, so the price of a server rises with its utilisation above a knee,
with its backlog and with the load of the whole fleet (an idle server is worth keeping free when the
others are full), and for requests from elsewhere with the demand at its own doorstep (*captive*
demand, that would have to cross a link to be served anywhere else). A second of a fast server is
worth more by a power of its speed.

The latency is margined part by part (network, wait, service), for they err differently, and g is
averaged over three points of the spread of the prediction (Gauss-Hermite: 1/6, 2/3, 1/6 at −√3, 0,
+√3 standard deviations), which makes the edge of the deadline soft before it is reached.

The 20 parameters are tuned together by CMA-ES (`edgewise tune`). The defaults are reasoned, and
rounded to where a few hundred tries on 16 training worlds had them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, Parameter, policy, record_of
from edgewise.score import timeliness


def _parameter(
    name: str,
    default: float,
    low: float,
    high: float,
    unit: str,
    about: str,
    log: bool = False,
) -> Parameter:
    return Parameter(
        name=name, default=default, low=low, high=high, unit=unit, about=about, log=log
    )


PRICED_GREEDY = (
    _parameter(
        "price",
        4.0,
        0.05,
        60.0,
        "utility/s",
        "of a worker second at speed 1, uncontended: a model 10 ms slower must be 0.04 better, "
        "about what the next rung of a ladder is",
        log=True,
    ),
    _parameter(
        "speed_exponent",
        0.7,
        0.0,
        2.0,
        "",
        "of the speed in the price: 1 = a request costs as much on every server, 0 = in proportion "
        "to the seconds it takes there; between them",
    ),
    _parameter(
        "utilisation_gain",
        5.0,
        0.0,
        30.0,
        "",
        "rise of the price per utilisation above the knee: 3.5 times the price when full",
    ),
    _parameter(
        "knee", 0.5, 0.0, 1.2, "utilisation", "above which waiting begins to cost (M/M/1: ρ/(1−ρ))"
    ),
    _parameter(
        "backlog_gain",
        5.0,
        0.0,
        50.0,
        "",
        "rise of the price with a full queue, times tanh(backlog / scale); with the other gains it "
        "reaches ten times the price, where only cheap models pay",
    ),
    _parameter(
        "backlog_scale",
        0.3,
        0.02,
        2.0,
        "s",
        "of backlog at which the queue counts as long: about a usual deadline",
        log=True,
    ),
    _parameter(
        "fleet_gain", 2.0, 0.0, 30.0, "", "rise of all prices per mean utilisation above the knee"
    ),
    _parameter(
        "captive_gain",
        1.3,
        0.0,
        10.0,
        "",
        "rise of the price to requests from elsewhere, times the share of the server that its own "
        "ingress asks for",
    ),
    _parameter(
        "link_price",
        0.1,
        0.001,
        10.0,
        "utility/s",
        "of a second of a link: a transfer of 50 ms costs 0.005, enough to break ties for local",
        log=True,
    ),
    _parameter(
        "link_gain",
        2.0,
        0.0,
        30.0,
        "",
        "rise of that price with a busy link, times tanh(its backlog / backlog_scale)",
    ),
    _parameter(
        "prepare_share",
        0.9,
        0.0,
        3.0,
        "",
        "of the ingress's worker price that its pre-processing seconds cost: nearly all, as it "
        "seldom has a core of its own",
    ),
    _parameter(
        "network_margin",
        1.5,
        0.5,
        4.0,
        "",
        "on what the network takes: rates drift and drop",
        log=True,
    ),
    _parameter(
        "wait_margin", 1.8, 0.3, 4.0, "", "on the wait: urgent requests still to come go before"
    ),
    _parameter("service_margin", 1.0, 0.7, 2.0, "", "on the service time: it is a measured mean"),
    _parameter(
        "spread",
        0.15,
        0.0,
        1.0,
        "",
        "standard deviation of wait and service, in parts of them: service noise",
    ),
    _parameter(
        "network_spread",
        0.3,
        0.0,
        1.5,
        "",
        "the same of the network, for a link not measured for a while; half for a fresh one",
    ),
    _parameter(
        "stale_spread",
        0.1,
        0.0,
        1.0,
        "s/s",
        "the same, added per second of age of a busy server's report",
    ),
    _parameter(
        "failure_weight",
        0.5,
        0.0,
        1.0,
        "",
        "of the share of failed answers: half, as it counts requests that came late too",
    ),
    _parameter(
        "threshold",
        0.0,
        -0.2,
        0.5,
        "utility",
        "of shedding: what is worth more than its price is run",
    ),
    _parameter(
        "threshold_gain",
        0.3,
        0.0,
        2.0,
        "utility",
        "rise of the threshold per mean utilisation of the fleet above the knee",
    ),
)
PARAMS = record_of([parameter.name for parameter in PRICED_GREEDY])
"""The record type of these parameters, for policies that have them among others."""

SQRT_3 = math.sqrt(3.0)
STALE_MAX = 2.0
"""s. An older report tells no less: by then the miniature runs on our own dispatches alone."""


@jit_no_refcount(inline=True)
def load_of(server: Record) -> float:
    """A server's utilisation: reported, or what we have sent there of late if that is more (the
    report is late, and it does not know what is on the way)."""
    return max(server.utilisation, server.offered_5s)  # type: ignore[no-any-return]


@jit_no_refcount(inline=True)
def fleet_load(table: CandidateTable) -> float:
    """Mean utilisation of the servers that are up, by worker and speed."""
    load = 0.0
    capacity = 0.0
    for s in range(table.servers.shape[0]):
        server = table.servers[s]
        if server.up > 0.0:
            weight = server.workers * server.speed
            load += weight * load_of(server)
            capacity += weight
    return load / capacity if capacity > 0.0 else 0.0


@jit_no_refcount(inline=True)
def fleet_above_knee(table: CandidateTable, params: Record) -> float:
    """By how much the fleet's mean utilisation is above the knee."""
    return max(0.0, fleet_load(table) - params.knee)  # type: ignore[no-any-return]


@jit_no_refcount(inline=True)
def server_price(server: Record, params: Record, fleet: float) -> float:
    """Utility per second of the server, all workers; `fleet` is the fleet's load above the knee."""
    contended = (
        1.0
        + params.utilisation_gain * max(0.0, load_of(server) - params.knee)
        + params.backlog_gain * math.tanh(server.backlog / params.backlog_scale)
        + params.fleet_gain * fleet
    )
    worth = server.speed**params.speed_exponent / server.workers
    return params.price * worth * contended  # type: ignore[no-any-return]


@jit_no_refcount(inline=True)
def prepare_price(table: CandidateTable, params: Record, fleet: float) -> float:
    """Utility per second that the ingress spends on making payloads model-ready."""
    if params.prepare_share <= 0.0:
        return 0.0
    ingress = table.servers[int(table.context.ingress)]
    return params.prepare_share * server_price(ingress, params, fleet)  # type: ignore[no-any-return]


@jit_no_refcount(inline=True)
def expected_timeliness(mean: float, spread: float, deadline: float, grace: float) -> float:
    """E[g] of a latency of this mean and standard deviation, s, by three points."""
    off = SQRT_3 * spread
    if mean + off <= deadline:
        return 1.0
    middle = timeliness(mean / deadline, grace)
    ends = timeliness((mean - off) / deadline, grace) + timeliness((mean + off) / deadline, grace)
    return (4.0 * middle + ends) / 6.0


# -- the score, in terms and how they are combined ------------------------------------------------


Number = Any
"""A float; for a learner an array or a tensor of them."""


class ServerTerms(NamedTuple):
    """What the rows of a server have in common."""

    price: float
    """Utility per second of it."""
    link_price: float
    """Utility per second of the link to it; 0 for the ingress."""
    trust: float
    """1 less the weighted share of failed answers."""
    network_spread: float
    """Standard deviation of the network's time, in parts of it."""
    stale: float
    """s of standard deviation for an old report."""


class RowTerms(NamedTuple):
    """What a row's score is made of. The learned policy multiplies some of them by factors."""

    network: Number
    """s, with its margin."""
    wait: Number
    """s, with its margin."""
    service: Number
    """s, with its margin."""
    network_spread: Number
    stale: Number
    worth: Number
    """accuracy^w × trust."""
    cost: Number
    """Utility that the server's time costs."""
    link: Number
    """Utility that the link's time costs."""
    prepare: Number
    """Utility that the ingress's time for making the payload model-ready costs."""


class Factors(NamedTuple):
    """What is learned of a row: factors on its terms, and a share added to its utility."""

    cost: Number
    link: Number
    prepare: Number
    network: Number
    wait: Number
    spread: Number
    value: Number
    """Added: utility × (1 + value)."""


HEURISTIC = Factors(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
"""Nothing learned: neither × 1 nor + 0 rounds."""


@jit_no_refcount(inline=True)
def server_terms(
    table: CandidateTable, s: int, local: bool, params: Record, fleet: float
) -> ServerTerms:
    """`fleet` is the fleet's load above the knee."""
    server = table.servers[s]
    link_price = 0.0
    unsure = 0.5
    if not local:
        full = math.tanh(server.link_backlog / params.backlog_scale)
        link_price = params.link_price * (1.0 + params.link_gain * full)
        unsure += 0.5 * server.rate_age / (1.0 + server.rate_age)
    busy = min(1.0, load_of(server))
    return ServerTerms(
        server_price(server, params, fleet),
        link_price,
        1.0 - params.failure_weight * server.failure,
        params.network_spread * unsure,
        params.stale_spread * busy * min(STALE_MAX, server.report_age),
    )


@jit_no_refcount(inline=True)
def row_terms(
    table: CandidateTable, r: int, on: ServerTerms, params: Record, prepare: float
) -> RowTerms:
    """Terms of a row on the server with the terms `on`; `prepare` is `prepare_price`."""
    rows, context = table.rows, table.context
    service_time = rows.service_time[r]
    accuracy = rows.accuracy[r]
    weight = context.accuracy_weight
    worth = accuracy**weight if weight != 1.0 else accuracy
    cost = on.price * service_time
    if rows.local[r] == 0.0:
        server = table.servers[int(rows.server[r])]
        captive = min(1.0, server.demand_1s * service_time / server.workers)
        cost *= 1.0 + params.captive_gain * captive
    return RowTerms(
        params.network_margin * (rows.until_input[r] + rows.return_time[r]),
        params.wait_margin * rows.wait[r],
        params.service_margin * service_time,
        on.network_spread,
        on.stale,
        worth * on.trust,
        cost,
        on.link_price * rows.transfer[r],
        prepare * rows.prepare[r],
    )


@jit_no_refcount(inline=True)
def margined_latency(terms: RowTerms, factors: Factors, elapsed: Number) -> Number:
    """s from sent_at to the answer, with margins."""
    return elapsed + terms.network * factors.network + terms.wait * factors.wait + terms.service


@jit_no_refcount(inline=True)
def deviation(terms: RowTerms, factors: Factors, spread: Number) -> Number:
    """Standard deviation of that, s; `spread` is the parameter."""
    network = terms.network_spread * (terms.network * factors.network)
    own = spread * (terms.wait * factors.wait + terms.service)
    return (own + network + terms.stale) * factors.spread


@jit_no_refcount(inline=True)
def combined(terms: RowTerms, factors: Factors, timely: Number) -> Number:
    """The score, given the expected timeliness."""
    utility = terms.worth * timely * (1.0 + factors.value)
    rest = terms.link * factors.link + terms.prepare * factors.prepare
    return utility - (terms.cost * factors.cost + rest)


@jit_no_refcount(inline=True)
def score_of(table: CandidateTable, terms: RowTerms, factors: Factors, spread: float) -> float:
    """The score of a row."""
    context = table.context
    latency = margined_latency(terms, factors, context.elapsed)
    spread_s = deviation(terms, factors, spread)
    timely = expected_timeliness(latency, spread_s, context.deadline, context.grace)
    return combined(terms, factors, timely)  # type: ignore[no-any-return]


@jit_no_refcount
def priced_scores(table: CandidateTable, params: Record) -> None:
    """Score every row and shed by the heuristic."""
    rows, scores = table.rows, table.scores
    shed = table.mask.size - 1
    fleet = fleet_above_knee(table, params)
    prepare = prepare_price(table, params, fleet)
    last = -1
    on = ServerTerms(0.0, 0.0, 0.0, 0.0, 0.0)
    for r in range(shed):
        if table.mask[r] == 0:
            scores[r] = -math.inf
            continue
        s = int(rows.server[r])
        if s != last:  # rows of a server stand together
            last = s
            on = server_terms(table, s, rows.local[r] != 0.0, params, fleet)
        terms = row_terms(table, r, on, params, prepare)
        scores[r] = score_of(table, terms, HEURISTIC, params.spread)
    scores[shed] = params.threshold + params.threshold_gain * fleet


@policy(
    about="expected utility minus the price of what the request takes from others",
    parameters=PRICED_GREEDY,
)
def priced_greedy(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Greedy on the priced score; certain, so its propensity is 1."""
    priced_scores(table, params)
    return 1.0
