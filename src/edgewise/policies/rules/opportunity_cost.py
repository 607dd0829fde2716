"""The priced formula in the fleet's own units: a second costs what it could have brought elsewhere.

The prices of `priced_greedy` are in utility per second and were tuned for photo classifiers of some
10 ms; where models take seconds, everything costs too much. This rule has no unit. It takes the
formula of `edgewise.policies.priced`, and measures the units (`priced.Units`) from the requests
that arrive, whether they are served or shed. Of each it takes

- its *value*: the most utility that a second of a worker could bring to it, over its admissible
  candidates and with no queue, accuracy^w × g(latency / deadline) / service time;
- its *deadline*.

It keeps the mean of both over recent requests; a geometric mean, as both vary by factors. A second
of a worker then costs the mean value, times the contention of its server, and all times are
compared with the mean deadline:

    price      = value × (speed / mean speed)^e × contention
    contention = load_gain × load + utilisation_gain × [load − knee]₊ + fleet_gain × [fleet − knee]₊
                 + backlog_gain × tanh(backlog / (backlog_scale × deadline))

On an idle server a second costs nothing.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, Parameter, policy
from edgewise.policies.features import mean_speed
from edgewise.policies.priced import PRICED_GREEDY, Units, priced_scores
from edgewise.score import expected_utility

STALE_DEADLINES = 4.0
"""Mean deadlines after which the uncertainty of a report stops growing."""
FRESH_DEADLINES = 2.0
"""Mean deadlines after which a measured rate counts as half as certain."""

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
        about="Price per unit of the server's utilisation, in mean values.",
    ),
    Parameter(
        name="utilisation_gain",
        default=0.25,
        low=0.0,
        high=4.0,
        about="Rise of that price per unit of utilisation above the knee.",
    ),
    Parameter(
        name="backlog_gain",
        default=1.0,
        low=0.0,
        high=8.0,
        about="Rise of that price with a long queue. At 1 a second behind a full queue costs what "
        "it could bring to another request.",
    ),
    Parameter(
        name="backlog_scale",
        default=5.0,
        low=0.1,
        high=20.0,
        unit="deadlines",
        about="Backlog at which a queue or a link counts as long.",
        log=True,
    ),
    Parameter(
        name="fleet_gain",
        default=0.1,
        low=0.0,
        high=4.0,
        about="Rise of all prices per unit of the fleet's mean utilisation above the knee.",
    ),
    Parameter(
        name="speed_exponent",
        default=0.3,
        low=0.0,
        high=2.0,
        about="Exponent of the server's speed relative to the mean. At 1 a request costs the same "
        "on every server.",
    ),
    Parameter(
        name="link_price",
        default=0.3,
        low=0.001,
        high=10.0,
        unit="utility/deadline",
        about="Price of an idle link: a transfer of 5 ms costs 0.005 where deadlines are 300 ms.",
        log=True,
    ),
    Parameter(
        name="link_gain",
        default=20.0,
        low=0.0,
        high=60.0,
        about="Rise of that price with a busy link, times tanh(its backlog / that scale).",
    ),
    Parameter(
        name="prepare_share",
        default=1.5,
        low=0.0,
        high=5.0,
        about="Share of the ingress's price at which its time for conversions is charged.",
    ),
    Parameter(
        name="memory",
        default=100.0,
        low=10.0,
        high=1000.0,
        unit="requests",
        about="Requests over which the means are taken: a few seconds of a busy fleet.",
        log=True,
    ),
    *(parameter for parameter in PRICED_GREEDY if parameter.name in _SHARED),
)


@jit_no_refcount
def measured_units(table: CandidateTable, params: Record, memory: Record) -> Units:
    """Update the means in `memory` with the request of `table`; returns the units they give."""
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
    deadline = math.exp(memory.log_deadline)
    return Units(
        price=math.exp(memory.log_value) if memory.valued > 0.0 else 0.0,
        speed=mean_speed(table),
        whole_servers=False,
        idle=0.0,
        load_gain=params.load_gain,
        backlog=params.backlog_scale * deadline,
        link_price=params.link_price / deadline,
        fresh=FRESH_DEADLINES * deadline,
        stale_max=STALE_DEADLINES * deadline,
        threshold=0.0,
    )


@policy(
    about="priced_greedy in the fleet's own units: a second costs what it could have brought",
    parameters=PARAMETERS,
    memory=("requests", "log_deadline", "valued", "log_value"),
)
def opportunity_cost(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Choose the row of highest priced score. Deterministic, so the propensity is 1."""
    priced_scores(table, params, measured_units(table, params, memory.fleet))
    return 1.0
