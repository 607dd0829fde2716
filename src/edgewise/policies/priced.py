"""The strongest heuristic: expected utility minus the price of the resources that a request uses.

    score = accuracy^w × (1 − f·failure) × E[g(margined latency / deadline)]
            − price(server) × service seconds
            − price(ingress) × prepare seconds
            − price(link) × transfer seconds
    shed  = threshold, which rises with the load of the fleet

A second of a worker that this request uses is lost to later requests. How much they would have
earned with it depends on how contended the server is: an idle server costs nothing. The price rises
with the server's utilisation, more steeply above a knee, with its backlog, and with the load of the
whole fleet: a free server is worth keeping free when the others are full. For requests from other
ingresses it also rises with the demand of the server's own clients (*captive* demand), who would
have to cross a link to be served elsewhere. A second of a faster server costs more, by a power of
its speed.

*Units.* The formula has none of its own, so it serves fleets whose models take milliseconds and
fleets whose models take seconds. It measures three scales from the requests that arrive (`Units`):
what a second of a worker could bring at most, the time that requests allow, and the speed of a
usual server. The first is the geometric mean, over recent requests, of the highest utility per
second of service that an idle fleet could have earned with each. It rests on what arrives and not
on what was run, so shedding does not change it.

Each part of the latency (network, wait, service) has its own margin, as their predictions err
differently. g is averaged over three points of the prediction's distribution (Gauss-Hermite
quadrature: weights 1/6, 2/3, 1/6 at −√3, 0 and +√3 standard deviations). So the expected utility
falls gradually as the latency approaches the deadline.

The parameters are tuned together by CMA-ES (`edgewise tune`), on fleets of photo classifiers and on
fleets of any scale.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, Parameter, policy, record_of
from edgewise.score import expected_utility, timeliness

PRICED_GREEDY = (
    Parameter(
        name="load_gain",
        default=0.02,
        low=0.0,
        high=1.0,
        about="Price of a worker second per unit of the server's utilisation, in what a second "
        "could bring at most.",
    ),
    Parameter(
        name="speed_exponent",
        default=0.2,
        low=0.0,
        high=2.0,
        about="Power of the server's speed, relative to the mean, in its price. At 1 a request "
        "costs the same on every server; at 0 in proportion to the seconds it takes.",
    ),
    Parameter(
        name="utilisation_gain",
        default=0.25,
        low=0.0,
        high=4.0,
        about="Rise of that price per unit of utilisation above the knee.",
    ),
    Parameter(
        name="knee",
        default=0.7,
        low=0.0,
        high=1.2,
        unit="utilisation",
        about="Utilisation above which prices rise more steeply, as waiting times do (M/M/1: "
        "ρ/(1−ρ)).",
    ),
    Parameter(
        name="backlog_gain",
        default=1.0,
        low=0.0,
        high=8.0,
        about="Rise of that price with the backlog, times tanh(backlog / backlog_scale). At 1 a "
        "second behind a full queue costs what it could bring to another request.",
    ),
    Parameter(
        name="backlog_scale",
        default=5.0,
        low=0.1,
        high=20.0,
        unit="deadlines",
        about="Backlog at which a queue or a link counts as long, in mean deadlines.",
        log=True,
    ),
    Parameter(
        name="fleet_gain",
        default=0.05,
        low=0.0,
        high=4.0,
        about="Rise of all prices per unit of the fleet's mean utilisation above the knee.",
    ),
    Parameter(
        name="captive_gain",
        default=0.4,
        low=0.0,
        high=10.0,
        about="Rise of the price for requests from other ingresses, times the share of the server "
        "that its own clients demand.",
    ),
    Parameter(
        name="link_price",
        default=0.4,
        low=0.001,
        high=10.0,
        unit="utility/deadline",
        about="Price of an idle link: where deadlines are 300 ms, a transfer of 5 ms costs 0.007.",
        log=True,
    ),
    Parameter(
        name="link_gain",
        default=25.0,
        low=0.0,
        high=60.0,
        about="Rise of the link's price with its backlog, times tanh(link backlog / "
        "backlog_scale).",
    ),
    Parameter(
        name="prepare_share",
        default=2.0,
        low=0.0,
        high=5.0,
        about="Price of a second spent on making payloads model-ready, as a share of the "
        "ingress's price.",
    ),
    Parameter(
        name="network_margin",
        default=2.3,
        low=0.5,
        high=4.0,
        about="Factor on the predicted network time. It is large, as rates drift and drop.",
        log=True,
    ),
    Parameter(
        name="wait_margin",
        default=1.5,
        low=0.3,
        high=4.0,
        about="Factor on the predicted wait. It is above 1, as more urgent requests that arrive "
        "later go first.",
    ),
    Parameter(
        name="service_margin",
        default=1.2,
        low=0.7,
        high=2.0,
        about="Factor on the service time.",
    ),
    Parameter(
        name="spread",
        default=0.4,
        low=0.0,
        high=1.0,
        about="Standard deviation of wait and service time, relative to them. It stands for the "
        "noise of service times.",
    ),
    Parameter(
        name="network_spread",
        default=0.6,
        low=0.0,
        high=1.5,
        about="Standard deviation of the network time, relative to it, for a link without a "
        "recent measurement. A fresh measurement halves it.",
    ),
    Parameter(
        name="stale_spread",
        default=0.3,
        low=0.0,
        high=1.0,
        unit="s/s",
        about="Standard deviation added for each second of age of a busy server's last report.",
    ),
    Parameter(
        name="failure_weight",
        default=0.3,
        low=0.0,
        high=1.0,
        about="Weight of the share of failed answers. It is below 1, as that share includes "
        "answers that came late.",
    ),
    Parameter(
        name="threshold_gain",
        default=0.05,
        low=0.0,
        high=2.0,
        unit="utility",
        about="Score of shedding per unit of the fleet's mean utilisation above the knee. Below "
        "it every request is run that is worth more than its price.",
    ),
)
PARAMS = record_of([parameter.name for parameter in PRICED_GREEDY])
"""The record type of these parameters, for policies that have others as well."""

SQRT_3 = math.sqrt(3.0)
STALE_DEADLINES = 4.0
"""Mean deadlines after which the uncertainty of a report stops growing: by then the belief about
the server rests on our own dispatches alone."""
FRESH_DEADLINES = 2.0
"""Mean deadlines after which a measured rate counts as half as certain."""
REMEMBERED_REQUESTS = 300.0
"""Requests over which the units are averaged, exponentially weighted: seconds of a busy fleet."""

UNITS_MEMORY = ("requests", "log_deadline", "valued", "log_value")
"""The numbers from which the units are made; a policy keeps them in its memory. All begin at 0."""


class Units(NamedTuple):
    """The scales of prices and times, measured from the requests that arrive."""

    price: float
    """What a second of a worker could bring at most to a usual request, utility/s."""
    speed: float
    """Mean speed of the servers that are up: the speed at which that holds."""
    deadline: float
    """A usual deadline, s."""


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
def mean_speed(table: CandidateTable) -> float:
    """Mean speed of the servers that are up."""
    total = 0.0
    count = 0
    for s in range(table.servers.size):
        if table.servers[s].up > 0.0:
            total += table.servers[s].speed
            count += 1
    return total / count if count > 0 else 1.0


@jit_no_refcount(inline=True)
def utility_per_second(table: CandidateTable) -> float:
    """The highest utility per second of service that this request could bring if nobody waited."""
    rows, context = table.rows, table.context
    highest = 0.0
    for r in range(table.mask.size - 1):
        if table.mask[r] != 0:
            latency = rows.until_input[r] + rows.service_time[r] + rows.return_time[r]
            utility = expected_utility(
                rows.accuracy[r],
                context.accuracy,
                latency,
                context.deadline,
                context.grace,
                context.accuracy_weight,
            )
            highest = max(highest, utility / rows.service_time[r])
    return highest


@jit_no_refcount(inline=True)
def measure(table: CandidateTable, memory: Record) -> None:
    """Update the averages `UNITS_MEMORY` with the request of `table`. Call it once a decision."""
    memory.requests += 1.0
    weight = 1.0 / min(REMEMBERED_REQUESTS, memory.requests)
    memory.log_deadline += weight * (math.log(table.context.deadline) - memory.log_deadline)
    value = utility_per_second(table)
    if value > 0.0:
        memory.valued += 1.0
        weight = 1.0 / min(REMEMBERED_REQUESTS, memory.valued)
        memory.log_value += weight * (math.log(value) - memory.log_value)


@jit_no_refcount(inline=True)
def measured_units(table: CandidateTable, memory: Record) -> Units:
    """The units by the averages in `memory`; a second is worth 0 while no request could score."""
    return Units(
        price=math.exp(memory.log_value) if memory.valued > 0.0 else 0.0,
        speed=mean_speed(table),
        deadline=math.exp(memory.log_deadline),
    )


@jit_no_refcount(inline=True)
def server_price(server: Record, params: Record, fleet: float, units: Units) -> float:
    """Price of a second of one of the server's workers, utility/s; `fleet` is
    `fleet_above_knee`."""
    load = load_of(server)
    contention = (
        params.load_gain * load
        + params.utilisation_gain * max(0.0, load - params.knee)
        + params.backlog_gain * math.tanh(server.backlog / (params.backlog_scale * units.deadline))
        + params.fleet_gain * fleet
    )
    relative = (server.speed / units.speed) ** params.speed_exponent
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
        full = math.tanh(server.link_backlog / (params.backlog_scale * units.deadline))
        link_price = params.link_price / units.deadline * (1.0 + params.link_gain * full)
        unsure += 0.5 * server.rate_age / (FRESH_DEADLINES * units.deadline + server.rate_age)
    busy = min(1.0, load_of(server))
    return ServerTerms(
        server_price(server, params, fleet, units),
        link_price,
        1.0 - params.failure_weight * server.failure,
        params.network_spread * unsure,
        params.stale_spread * busy * min(STALE_DEADLINES * units.deadline, server.report_age),
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
    scores[shed] = params.threshold_gain * fleet


@policy(
    about="expected utility minus the price of the resources that the request uses",
    parameters=PRICED_GREEDY,
    memory=UNITS_MEMORY,
)
def priced_greedy(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Choose the row of highest priced score. Deterministic, so the propensity is 1."""
    measure(table, memory.fleet)
    priced_scores(table, params, measured_units(table, memory.fleet))
    return 1.0
