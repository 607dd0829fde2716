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

import numpy as np

from edgewise.compile import jit
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.table import CandidateTable
from edgewise.policy.base import Memory, Parameter, policy
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
(
    PRICE,
    SPEED_EXPONENT,
    UTILISATION_GAIN,
    KNEE,
    BACKLOG_GAIN,
    BACKLOG_SCALE,
    FLEET_GAIN,
    CAPTIVE_GAIN,
    LINK_PRICE,
    LINK_GAIN,
    PREPARE_SHARE,
    NETWORK_MARGIN,
    WAIT_MARGIN,
    SERVICE_MARGIN,
    SPREAD,
    NETWORK_SPREAD,
    STALE_SPREAD,
    FAILURE_WEIGHT,
    THRESHOLD,
    THRESHOLD_GAIN,
) = range(len(PRICED_GREEDY))

SQRT_3 = math.sqrt(3.0)
STALE_MAX = 2.0
"""s. An older report tells no less: by then the miniature runs on our own dispatches alone."""


@jit
def load_of(server: Record) -> float:
    """A server's utilisation: reported, or what we have sent there of late if that is more (the
    report is late, and it does not know what is on the way)."""
    return max(server.utilisation, server.offered_5s)  # type: ignore[no-any-return]


@jit
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


@jit
def server_price(server: Record, params: Array, fleet: float) -> float:
    """Utility per second of the server, all workers; `fleet` the load of all above the knee."""
    contended = (
        1.0
        + params[UTILISATION_GAIN] * max(0.0, load_of(server) - params[KNEE])
        + params[BACKLOG_GAIN] * math.tanh(server.backlog / params[BACKLOG_SCALE])
        + params[FLEET_GAIN] * fleet
    )
    worth = server.speed ** params[SPEED_EXPONENT] / server.workers
    return params[PRICE] * worth * contended  # type: ignore[no-any-return]


@jit
def expected_timeliness(mean: float, spread: float, deadline: float, grace: float) -> float:
    """E[g] of a latency of this mean and standard deviation, s, by three points."""
    off = SQRT_3 * spread
    if mean + off <= deadline:
        return 1.0
    middle = timeliness(mean / deadline, grace)
    ends = timeliness((mean - off) / deadline, grace) + timeliness((mean + off) / deadline, grace)
    return (4.0 * middle + ends) / 6.0


@jit
def priced_scores(table: CandidateTable, params: Array) -> float:
    """Greedy on the priced score above; certain, so its propensity is 1. params: `PRICED_GREEDY`.

    The row of highest score, the first of equals; rows scored below shed are no fallbacks.
    """
    rows, scores = table.rows, table.scores
    context = table.context
    deadline = context.deadline
    grace = context.grace
    elapsed = context.elapsed
    weight = context.accuracy_weight
    fleet = max(0.0, fleet_load(table) - params[KNEE])
    prepare_price = 0.0
    ingress = table.servers[int(context.ingress)]
    if params[PREPARE_SHARE] > 0.0:
        prepare_price = params[PREPARE_SHARE] * server_price(ingress, params, fleet)

    last = -1.0
    price = 0.0
    link_price = 0.0
    trust = 1.0
    network_spread = 0.0
    stale = 0.0
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            scores[r] = -math.inf
            continue
        if rows.server[r] != last:
            # Rows of a server stand together: what they share is computed once.
            last = rows.server[r]
            server = table.servers[int(last)]
            price = server_price(server, params, fleet)
            trust = 1.0 - params[FAILURE_WEIGHT] * server.failure
            busy = min(1.0, load_of(server))
            stale = params[STALE_SPREAD] * busy * min(STALE_MAX, server.report_age)
            link_price = 0.0
            unsure = 0.5
            if rows.local[r] == 0.0:
                full = math.tanh(server.link_backlog / params[BACKLOG_SCALE])
                link_price = params[LINK_PRICE] * (1.0 + params[LINK_GAIN] * full)
                unsure += 0.5 * server.rate_age / (1.0 + server.rate_age)
            network_spread = params[NETWORK_SPREAD] * unsure
        network = params[NETWORK_MARGIN] * (rows.ready[r] + rows.return_time[r])
        wait = params[WAIT_MARGIN] * rows.wait[r]
        service = params[SERVICE_MARGIN] * rows.service_time[r]
        spread = params[SPREAD] * (wait + service) + network_spread * network + stale
        timely = expected_timeliness(elapsed + network + wait + service, spread, deadline, grace)
        accuracy = rows.accuracy[r]
        worth = accuracy**weight if weight != 1.0 else accuracy
        cost = price * rows.service_time[r]
        if rows.local[r] == 0.0:
            server = table.servers[int(last)]
            captive = min(1.0, server.demand_1s * rows.service_time[r] / server.workers)
            cost *= 1.0 + params[CAPTIVE_GAIN] * captive
        cost += link_price * rows.transfer[r] + prepare_price * rows.prepare[r]
        scores[r] = worth * trust * timely - cost
    scores[table.mask.size - 1] = params[THRESHOLD] + params[THRESHOLD_GAIN] * fleet
    return 1.0


@policy(
    about="expected utility minus the price of what the request takes from others",
    parameters=PRICED_GREEDY,
    params=np.dtype([("values", "f8", len(PRICED_GREEDY))]),
)
def priced_greedy(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Greedy on the priced score."""
    return priced_scores(table, params.values)
