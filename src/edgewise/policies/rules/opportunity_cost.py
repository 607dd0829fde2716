"""Priced greedy in the fleet's own units: a second costs what it could have brought to another.

The formula is that of `edgewise.policies.priced`. There, prices are in utility per second, and they
were tuned for a fleet of photo classifiers: where models take seconds, everything costs too much.
Here nothing has a unit. The rule measures two things about the requests that arrive, whether they
are served or shed:

- *value*: the most utility that a second of a server could bring to a request, over its admissible
  candidates, with no queue: accuracy^w × g(latency / deadline) / service time;
- *deadline*.

It keeps the mean of both, geometric because they vary by factors, over the last so many requests.
The price of a second of a server is then the mean value times a number that says how contended the
server is, and all times are compared with the mean deadline:

    price = value × (speed / mean speed)^e × contended
    contended = load_gain × load + utilisation_gain × [load − knee]₊ + fleet_gain × [fleet − knee]₊
                + backlog_gain × tanh(backlog / (backlog_scale × deadline))

On an idle fleet every price is 0, and nothing that can be answered in time is shed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, Parameter, policy
from edgewise.policies.priced import (
    HEURISTIC,
    PRICED_GREEDY,
    ServerTerms,
    fleet_above_knee,
    load_of,
    row_terms,
    score_of,
)
from edgewise.score import expected_utility

STALE_MAX = 4.0
"""Mean deadlines. An older report tells no less: dead reckoning alone is left by then."""
FRESH = 2.0
"""Mean deadlines after which a measured rate counts as half as certain."""


class Units(NamedTuple):
    """What this fleet's requests are like."""

    value: float
    """Utility that a second of a server could bring."""
    deadline: float
    """s"""
    speed: float
    """Mean speed of the workers that are up."""


_SHARED = (
    *("knee", "captive_gain", "network_margin", "wait_margin", "service_margin", "spread"),
    *("network_spread", "stale_spread", "failure_weight", "threshold_gain"),
)
"""Parameters of the priced formula that have no unit."""

PARAMETERS = (
    Parameter(
        name="load_gain",
        default=0.05,
        low=0.0,
        high=1.0,
        about="price per utilisation: what is idle costs nothing",
    ),
    Parameter(
        name="utilisation_gain",
        default=0.25,
        low=0.0,
        high=4.0,
        about="rise of the price per utilisation above the knee",
    ),
    Parameter(
        name="backlog_gain",
        default=1.0,
        low=0.0,
        high=8.0,
        about="rise of the price with a full queue: with 1 a second is worth what it could bring",
    ),
    Parameter(
        name="backlog_scale",
        default=5.0,
        low=0.1,
        high=20.0,
        unit="deadlines",
        about="of backlog at which the queue counts as long",
        log=True,
    ),
    Parameter(
        name="fleet_gain",
        default=0.1,
        low=0.0,
        high=4.0,
        about="rise of all prices per mean utilisation above the knee",
    ),
    Parameter(
        name="speed_exponent",
        default=0.3,
        low=0.0,
        high=2.0,
        about="of the speed, relative to the mean: 1 = a request costs as much on every server",
    ),
    Parameter(
        name="link_price",
        default=0.3,
        low=0.001,
        high=10.0,
        unit="utility/deadline",
        about="of the time that a transfer takes: 5 ms of a deadline of 300 ms cost 0.005",
        log=True,
    ),
    Parameter(
        name="link_gain",
        default=20.0,
        low=0.0,
        high=60.0,
        about="rise of that price with a busy link, times tanh(its backlog / scale)",
    ),
    Parameter(
        name="prepare_share",
        default=1.5,
        low=0.0,
        high=5.0,
        about="of the ingress's price that its pre-processing seconds cost",
    ),
    Parameter(
        name="memory",
        default=100.0,
        low=10.0,
        high=1000.0,
        unit="requests",
        about="over which the means are taken: a few seconds of a busy fleet",
        log=True,
    ),
    *(parameter for parameter in PRICED_GREEDY if parameter.name in _SHARED),
)


@jit_no_refcount
def measure(table: CandidateTable, params: Record, memory: Record) -> Units:
    """Take in the request of `table`, and return the units."""
    rows, context = table.rows, table.context
    value = 0.0
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
            value = max(value, utility / rows.service_time[r])
    memory.requests += 1.0
    weight = max(1.0 / params.memory, 1.0 / memory.requests)
    memory.log_deadline += weight * (math.log(context.deadline) - memory.log_deadline)
    if value > 0.0:
        memory.valued += 1.0
        weight = max(1.0 / params.memory, 1.0 / memory.valued)
        memory.log_value += weight * (math.log(value) - memory.log_value)
    workers = 0.0
    speed = 0.0
    for s in range(table.servers.shape[0]):
        server = table.servers[s]
        if server.up > 0.0:
            workers += server.workers
            speed += server.workers * server.speed
    return Units(
        math.exp(memory.log_value) if memory.valued > 0.0 else 0.0,
        math.exp(memory.log_deadline),
        speed / workers if workers > 0.0 else 1.0,
    )


@jit_no_refcount
def server_price(server: Record, params: Record, fleet: float, units: Units) -> float:
    """Utility per second of a worker; `fleet` is the fleet's load above the knee."""
    load = load_of(server)
    contended = (
        params.load_gain * load
        + params.utilisation_gain * max(0.0, load - params.knee)
        + params.backlog_gain * math.tanh(server.backlog / (params.backlog_scale * units.deadline))
        + params.fleet_gain * fleet
    )
    relative = (server.speed / units.speed) ** params.speed_exponent
    return units.value * relative * contended  # type: ignore[no-any-return]


@jit_no_refcount
def server_terms(
    table: CandidateTable, s: int, local: bool, params: Record, fleet: float, units: Units
) -> ServerTerms:
    """What the rows of a server have in common."""
    server = table.servers[s]
    link_price = 0.0
    unsure = 0.5
    if not local:
        full = math.tanh(server.link_backlog / (params.backlog_scale * units.deadline))
        link_price = params.link_price / units.deadline * (1.0 + params.link_gain * full)
        unsure += 0.5 * server.rate_age / (FRESH * units.deadline + server.rate_age)
    busy = min(1.0, load_of(server))
    return ServerTerms(
        server_price(server, params, fleet, units),
        link_price,
        1.0 - params.failure_weight * server.failure,
        params.network_spread * unsure,
        params.stale_spread * busy * min(STALE_MAX * units.deadline, server.report_age),
    )


@policy(
    about="priced greedy in the fleet's own units: a second costs what it could have brought",
    parameters=PARAMETERS,
    memory=("requests", "log_deadline", "valued", "log_value"),
)
def opportunity_cost(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Greedy on the priced score; certain, so its propensity is 1."""
    rows, scores = table.rows, table.scores
    shed = table.mask.size - 1
    units = measure(table, params, memory.fleet)
    fleet = fleet_above_knee(table, params)
    ingress = table.servers[int(table.context.ingress)]
    prepare = params.prepare_share * server_price(ingress, params, fleet, units)
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
    return 1.0
