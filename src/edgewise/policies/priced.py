"""The strongest heuristic: expected utility minus the price of the resources that a request uses.

    score = accuracy^w × (1 − f·failure) × E[g(margined latency / deadline)]
            − price(server) × service seconds / workers
            − price(ingress) × prepare seconds / workers of the ingress
            − price(link) × transfer seconds
    shed  = threshold, which rises with the load of the fleet

A second of a worker that this request uses is lost to later requests. How much they would have
earned with it depends on how contended the server is. So the price of a server rises with its
utilisation above a knee, with its backlog, and with the load of the whole fleet: an idle server is
worth keeping free when the others are full. For requests from other ingresses it also rises with
the demand of the server's own clients (*captive* demand), who would have to cross a link to be
served elsewhere. A second of a faster server costs more, by a power of its speed.

Each part of the latency (network, wait, service) has its own margin, as their predictions err
differently. g is averaged over three points of the prediction's distribution (Gauss-Hermite
quadrature: weights 1/6, 2/3, 1/6 at −√3, 0 and +√3 standard deviations). So the expected utility
falls gradually as the latency approaches the deadline.

The 20 parameters are tuned together by CMA-ES (`edgewise tune`). The defaults were reasoned, then
rounded towards the best of a few hundred tries on 16 training worlds.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, Parameter, policy, record_of
from edgewise.score import timeliness

PRICED_GREEDY = (
    Parameter(
        name="price",
        default=4.0,
        low=0.05,
        high=60.0,
        unit="utility/s",
        about="Price of one worker second at speed 1 on an idle server. At 4, a model that takes "
        "10 ms longer must be 0.04 more accurate, about the step between neighbouring models.",
        log=True,
    ),
    Parameter(
        name="speed_exponent",
        default=0.7,
        low=0.0,
        high=2.0,
        about="Power of the server's speed in its price. At 1 a request costs the same on every "
        "server; at 0 it costs in proportion to the seconds it takes. The default lies between.",
    ),
    Parameter(
        name="utilisation_gain",
        default=5.0,
        low=0.0,
        high=30.0,
        about="Rise of the price per unit of utilisation above the knee. By default a fully used "
        "server costs 3.5 times as much.",
    ),
    Parameter(
        name="knee",
        default=0.5,
        low=0.0,
        high=1.2,
        unit="utilisation",
        about="Utilisation above which prices rise, as waiting times do (M/M/1: ρ/(1−ρ)).",
    ),
    Parameter(
        name="backlog_gain",
        default=5.0,
        low=0.0,
        high=50.0,
        about="Rise of the price with the backlog, times tanh(backlog / backlog_scale). With the "
        "other gains, a full queue costs about ten times as much, so that only cheap models are "
        "worth running.",
    ),
    Parameter(
        name="backlog_scale",
        default=0.3,
        low=0.02,
        high=2.0,
        unit="s",
        about="Backlog at which a queue counts as long: about a usual deadline.",
        log=True,
    ),
    Parameter(
        name="fleet_gain",
        default=2.0,
        low=0.0,
        high=30.0,
        about="Rise of all prices per unit of the fleet's mean utilisation above the knee.",
    ),
    Parameter(
        name="captive_gain",
        default=1.3,
        low=0.0,
        high=10.0,
        about="Rise of the price for requests from other ingresses, times the share of the server "
        "that its own clients demand.",
    ),
    Parameter(
        name="link_price",
        default=0.1,
        low=0.001,
        high=10.0,
        unit="utility/s",
        about="Price of a second of a link. By default a transfer of 50 ms costs 0.005, enough to "
        "prefer the ingress among equals.",
        log=True,
    ),
    Parameter(
        name="link_gain",
        default=2.0,
        low=0.0,
        high=30.0,
        about="Rise of the link's price with its backlog, times tanh(link backlog / "
        "backlog_scale).",
    ),
    Parameter(
        name="prepare_share",
        default=0.9,
        low=0.0,
        high=3.0,
        about="Price of a second spent on making payloads model-ready, as a share of the "
        "ingress's price. Nearly 1, as this work seldom has a core of its own.",
    ),
    Parameter(
        name="network_margin",
        default=1.5,
        low=0.5,
        high=4.0,
        about="Factor on the predicted network time. It is large, as rates drift and drop.",
        log=True,
    ),
    Parameter(
        name="wait_margin",
        default=1.8,
        low=0.3,
        high=4.0,
        about="Factor on the predicted wait. It is above 1, as more urgent requests that arrive "
        "later go first.",
    ),
    Parameter(
        name="service_margin",
        default=1.0,
        low=0.7,
        high=2.0,
        about="Factor on the service time. It is 1, as the service time is a measured mean.",
    ),
    Parameter(
        name="spread",
        default=0.15,
        low=0.0,
        high=1.0,
        about="Standard deviation of wait and service time, relative to them. It stands for the "
        "noise of service times.",
    ),
    Parameter(
        name="network_spread",
        default=0.3,
        low=0.0,
        high=1.5,
        about="Standard deviation of the network time, relative to it, for a link without a "
        "recent measurement. A fresh measurement halves it.",
    ),
    Parameter(
        name="stale_spread",
        default=0.1,
        low=0.0,
        high=1.0,
        unit="s/s",
        about="Standard deviation added for each second of age of a busy server's last report.",
    ),
    Parameter(
        name="failure_weight",
        default=0.5,
        low=0.0,
        high=1.0,
        about="Weight of the share of failed answers. It is a half, as that share includes "
        "answers that came late.",
    ),
    Parameter(
        name="threshold",
        default=0.0,
        low=-0.2,
        high=0.5,
        unit="utility",
        about="Score of shedding. At 0 every request is run that is worth more than its price.",
    ),
    Parameter(
        name="threshold_gain",
        default=0.3,
        low=0.0,
        high=2.0,
        unit="utility",
        about="Rise of the score of shedding per unit of the fleet's mean utilisation above the "
        "knee.",
    ),
)
PARAMS = record_of([parameter.name for parameter in PRICED_GREEDY])
"""The record type of these parameters, for policies that have others as well."""

SQRT_3 = math.sqrt(3.0)
FRESH = 1.0
"""s. Age at which a measured rate counts as half as certain."""
STALE_MAX = 2.0
"""s. The uncertainty of a report stops growing at this age: by then the belief about the server
rests on our own dispatches alone."""


class Units(NamedTuple):
    """The scales of prices and times: what one formula needs to serve fleets of every scale."""

    price: float
    """Price of a second of a worker, utility/s, where contention is 1."""
    speed: float
    """The speed at which it holds."""
    whole_servers: bool
    """Whether it is the price of a second of a whole server, with all its workers."""
    idle: float
    """Contention of an idle server."""
    load_gain: float
    """Contention added per unit of the server's utilisation."""
    backlog: float
    """Backlog at which a queue or a link counts as long, s."""
    link_price: float
    """Price of a second of an idle link, utility/s."""
    fresh: float
    """Age at which a measured rate counts as half as certain, s."""
    stale_max: float
    """Age at which the uncertainty of a report stops growing, s."""
    threshold: float
    """Score of shedding on a fleet below the knee, utility."""


@jit_no_refcount(inline=True)
def tuned_units(params: Record) -> Units:
    """The units of `priced_greedy`: fixed, as tuned for photo classifiers."""
    return Units(
        price=params.price,
        speed=1.0,
        whole_servers=True,
        idle=1.0,
        load_gain=0.0,
        backlog=params.backlog_scale,
        link_price=params.link_price,
        fresh=FRESH,
        stale_max=STALE_MAX,
        threshold=params.threshold,
    )


@jit_no_refcount(inline=True)
def load_of(server: Record) -> float:
    """A server's utilisation: the larger of the reported one and the load that we offered over 5 s.

    The report is out of date and does not include requests on the way.
    """
    return max(server.utilisation, server.offered_5s)  # type: ignore[no-any-return]


@jit_no_refcount(inline=True)
def fleet_load(table: CandidateTable) -> float:
    """Mean utilisation of the servers that are up, weighted by workers × speed."""
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
    """Excess of the fleet's mean utilisation over the knee, at least 0."""
    return max(0.0, fleet_load(table) - params.knee)  # type: ignore[no-any-return]


@jit_no_refcount(inline=True)
def server_price(server: Record, params: Record, fleet: float, units: Units) -> float:
    """Price of a second of a worker (or of the whole server: `Units.whole_servers`), utility/s.

    `fleet` is `fleet_above_knee`.
    """
    load = load_of(server)
    contention = (
        units.idle
        + units.load_gain * load
        + params.utilisation_gain * max(0.0, load - params.knee)
        + params.backlog_gain * math.tanh(server.backlog / units.backlog)
        + params.fleet_gain * fleet
    )
    workers = server.workers if units.whole_servers else 1.0
    relative = (server.speed / units.speed) ** params.speed_exponent / workers
    return units.price * relative * contention  # type: ignore[no-any-return]


@jit_no_refcount(inline=True)
def prepare_price(table: CandidateTable, params: Record, fleet: float, units: Units) -> float:
    """Price of a second that the ingress spends on making a payload model-ready, utility/s."""
    if params.prepare_share <= 0.0:
        return 0.0
    ingress = table.servers[int(table.context.ingress)]
    return params.prepare_share * server_price(ingress, params, fleet, units)  # type: ignore[no-any-return]


@jit_no_refcount(inline=True)
def expected_timeliness(mean: float, spread: float, deadline: float, grace: float) -> float:
    """Expected timeliness of a latency with this mean and standard deviation, s: three points."""
    off = SQRT_3 * spread
    if mean + off <= deadline:
        return 1.0
    middle = timeliness(mean / deadline, grace)
    ends = timeliness((mean - off) / deadline, grace) + timeliness((mean + off) / deadline, grace)
    return (4.0 * middle + ends) / 6.0


# -- the score: its terms, and how they are combined ----------------------------------------------

Number = Any
"""A float; an array or tensor of them in training."""


class ServerTerms(NamedTuple):
    """The terms that all rows of a server have in common."""

    price: float
    """Price of a second of the server, utility/s."""
    link_price: float
    """Price of a second of the link to it, utility/s; 0 for the ingress."""
    trust: float
    """1 minus the weighted share of failed answers."""
    network_spread: float
    """Standard deviation of the network's time, relative to it."""
    stale: float
    """Standard deviation added for an old report, s."""


class RowTerms(NamedTuple):
    """The terms of a row's score. The learned policy multiplies some of them by factors."""

    network: Number
    """Time that the network takes, with its margin, s."""
    wait: Number
    """Time in the server's queue, with its margin, s."""
    service: Number
    """Service time with its margin, s."""
    network_spread: Number
    stale: Number
    full_utility: Number
    """Utility of an answer in time: accuracy^w × trust."""
    cost: Number
    """Price of the server's time, in utility."""
    link: Number
    """Price of the link's time, in utility."""
    prepare: Number
    """Price of the ingress's time for making the payload model-ready, in utility."""


class Factors(NamedTuple):
    """The learned part of a row's score: factors on its terms, and a correction of its utility."""

    cost: Number
    link: Number
    prepare: Number
    network: Number
    wait: Number
    spread: Number
    value: Number
    """Correction: the utility is multiplied by 1 + value."""


HEURISTIC = Factors(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
"""The factors with nothing learned. They change no bit, as neither × 1 nor + 0 rounds."""


@jit_no_refcount(inline=True)
def server_terms(
    table: CandidateTable, s: int, local: bool, params: Record, fleet: float, units: Units
) -> ServerTerms:
    """The terms of server `s`; `fleet` is `fleet_above_knee`."""
    server = table.servers[s]
    link_price = 0.0
    unsure = 0.5
    if not local:
        full = math.tanh(server.link_backlog / units.backlog)
        link_price = units.link_price * (1.0 + params.link_gain * full)
        unsure += 0.5 * server.rate_age / (units.fresh + server.rate_age)
    busy = min(1.0, load_of(server))
    return ServerTerms(
        server_price(server, params, fleet, units),
        link_price,
        1.0 - params.failure_weight * server.failure,
        params.network_spread * unsure,
        params.stale_spread * busy * min(units.stale_max, server.report_age),
    )


@jit_no_refcount(inline=True)
def row_terms(
    table: CandidateTable, r: int, on: ServerTerms, params: Record, prepare: float
) -> RowTerms:
    """The terms of a row; `on` are its server's terms, `prepare` is `prepare_price`."""
    rows, context = table.rows, table.context
    service_time = rows.service_time[r]
    accuracy = rows.accuracy[r]
    weight = context.accuracy_weight
    full_utility = accuracy**weight if weight != 1.0 else accuracy
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
        full_utility * on.trust,
        cost,
        on.link_price * rows.transfer[r],
        prepare * rows.prepare[r],
    )


@jit_no_refcount(inline=True)
def margined_latency(terms: RowTerms, factors: Factors, elapsed: Number) -> Number:
    """Predicted latency with margins, from the sending of the request to its answer, s."""
    return elapsed + terms.network * factors.network + terms.wait * factors.wait + terms.service


@jit_no_refcount(inline=True)
def deviation(terms: RowTerms, factors: Factors, spread: Number) -> Number:
    """Standard deviation of the margined latency, s; `spread` is the parameter of that name."""
    network = terms.network_spread * (terms.network * factors.network)
    own = spread * (terms.wait * factors.wait + terms.service)
    return (own + network + terms.stale) * factors.spread


@jit_no_refcount(inline=True)
def combined(terms: RowTerms, factors: Factors, timely: Number) -> Number:
    """The score of a row, given its expected timeliness."""
    utility = terms.full_utility * timely * (1.0 + factors.value)
    rest = terms.link * factors.link + terms.prepare * factors.prepare
    return utility - (terms.cost * factors.cost + rest)


@jit_no_refcount(inline=True)
def score_of(table: CandidateTable, terms: RowTerms, factors: Factors, spread: float) -> float:
    """The score of a row; `spread` is the parameter of that name."""
    context = table.context
    latency = margined_latency(terms, factors, context.elapsed)
    spread_s = deviation(terms, factors, spread)
    timely = expected_timeliness(latency, spread_s, context.deadline, context.grace)
    return combined(terms, factors, timely)  # type: ignore[no-any-return]


@jit_no_refcount
def priced_scores(table: CandidateTable, params: Record, units: Units) -> None:
    """Score every row and shed, with nothing learned."""
    rows, scores = table.rows, table.scores
    shed = table.mask.size - 1
    fleet = fleet_above_knee(table, params)
    prepare = prepare_price(table, params, fleet, units)
    last = -1
    on = ServerTerms(0.0, 0.0, 0.0, 0.0, 0.0)
    for r in range(shed):
        if table.mask[r] == 0:
            scores[r] = -math.inf
            continue
        s = int(rows.server[r])
        if s != last:  # rows of a server stand together
            last = s
            on = server_terms(table, s, rows.local[r] != 0.0, params, fleet, units)
        terms = row_terms(table, r, on, params, prepare)
        scores[r] = score_of(table, terms, HEURISTIC, params.spread)
    scores[shed] = units.threshold + params.threshold_gain * fleet


@policy(
    about="expected utility minus the price of the resources that the request uses",
    parameters=PRICED_GREEDY,
)
def priced_greedy(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Choose the row of highest priced score. Deterministic, so the propensity is 1."""
    priced_scores(table, params, tuned_units(params))
    return 1.0
