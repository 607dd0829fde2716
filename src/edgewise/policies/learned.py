"""The learned policy: the priced heuristic with learned prices, margins and a learned threshold.

    value  = accuracy^w × trust × E[g(margined latency / deadline)] × (1 + c(row))
    cost   = price(server) × exp(p(server) + q(row)) × service × (1 + captive term)
             + link price × exp(l(server)) × transfer
             + price(ingress) × exp(p(ingress)) × prepare share × prepare
    score  = value − cost                shed = threshold + threshold_gain · F + t(request)

Everything else is as in `edgewise.policies.priced`. In addition the margin on the network is
multiplied by exp(n(server)), the margin on the wait by exp(w(server)), and the spread of the
prediction by exp(s(server)).

p, l, n, w and s are linear in the features of a server, q and c in those of a row, and t in those
of the request (`edgewise.policies.features`). A small network can add to q and c:

    h = σ(A server + B row)        z = σ(C h + D mean(h) + E max(h) + b)        (q, c) += F z

with σ(x) = x / (1 + |x|), and the mean and maximum taken over the admissible rows. All rows are
treated alike and pooled symmetrically, so the policy works for any number of servers, services and
rows, and their order does not matter. The option ``network`` switches the network off.

With all weights 0 this is the heuristic, bit for bit: exp(0) = 1, and neither × 1 nor + 0 rounds.

*Parameters* are one flat float64 vector, whose parts are named in `PARAMS`. ``priced`` holds the
heuristic's parameters that the learned terms build on. ``calibrated`` holds those of the plain
heuristic that decides when the guard (`edgewise.policies.guard`) steps in.

*Memory* holds the guard's counters, the limits found by a survey, the link rates that
`features.remember` keeps, and space for the features of one decision, so that none is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgewise.compile import jit, jit_no_refcount
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.rng import uniform
from edgewise.fleet.table import CandidateTable
from edgewise.policies import priced
from edgewise.policies.base import Memory, policy, record_of
from edgewise.policies.features import (
    REMEMBERED,
    REQUEST_FEATURES,
    REQUEST_FEATURES_TYPE,
    ROW_FEATURES,
    ROW_FEATURES_TYPE,
    SERVER_FEATURES,
    SERVER_FEATURES_TYPE,
    cheapest_service,
    cheapest_work,
    describe_request,
    describe_row,
    describe_server,
    remember,
)
from edgewise.policies.guard import COUNTERS, finite, freshest, outside, widen
from edgewise.policies.priced import (
    Factors,
    RowTerms,
    ServerTerms,
    Units,
    fleet_above_knee,
    measure,
    measured_units,
    prepare_price,
    priced_scores,
    row_terms,
    score_of,
    server_terms,
)

P, Q, W = len(SERVER_FEATURES), len(ROW_FEATURES), len(REQUEST_FEATURES)
"""The numbers of features of a server, of a row, and of the request."""
FEATURES = P + Q + W
WIDTH, DEPTH = 8, 6
"""Widths of the network's two hidden layers: a decision among 32 candidates stays within 10 µs."""
SERVER_HEADS = ("price", "link", "network", "wait", "spread")
ROW_HEADS = ("price", "value")

OPTIONS = {
    "temperature": "0: choose the best row; > 0: draw a row, weighted by exp(score / temperature)",
    "guarded": "1: the guard is on",
    "network": "1: the network is on",
    "oldest": "usual deadlines; if even the newest report is older, the heuristic decides",
    "survey": "1: record the range of the features in the memory",
}
LIMITS = np.dtype([("server", "f8", P), ("row", "f8", Q), ("request", "f8", W)])
PARAMS = record_of(
    np.dtype(
        [
            ("options", [(name, "f8") for name in OPTIONS]),
            ("priced", priced.PARAMS),
            ("calibrated", priced.PARAMS),
            ("low", LIMITS),
            ("high", LIMITS),
            ("server_heads", "f8", (len(SERVER_HEADS), P)),
            ("row_heads", "f8", (len(ROW_HEADS), Q)),
            ("shed_head", "f8", W),
            ("server_in", "f8", (WIDTH, P)),
            ("row_in", "f8", (WIDTH, Q)),
            ("hidden", "f8", (DEPTH, 3 * WIDTH)),
            ("bias", "f8", DEPTH),
            ("out", "f8", (2, DEPTH)),
        ]
    )
)
LENGTH = PARAMS.itemsize // 8


def _layout() -> dict[str, slice]:
    assert PARAMS.names is not None
    assert PARAMS.fields is not None
    layout = {}
    for name in PARAMS.names:
        kind, offset = PARAMS.fields[name][:2]
        layout[name] = slice(offset // 8, (offset + kind.itemsize) // 8)
    return layout


LAYOUT = _layout()
"""The slice of the flat vector that holds each part."""

FLEET_MEMORY = np.dtype(
    [
        *((name, "f8") for name in COUNTERS),
        *((name, "f8") for name in priced.UNITS_MEMORY),
        ("low", LIMITS),
        ("high", LIMITS),
        ("request", REQUEST_FEATURES_TYPE, 1),
    ]
)
SERVER_MEMORY = np.dtype([*REMEMBERED, ("features", SERVER_FEATURES_TYPE, 1)])
FLEET, SERVER = record_of(FLEET_MEMORY), record_of(SERVER_MEMORY)
FLEET_END = FLEET.itemsize // 8

ROW = record_of(
    np.dtype(
        [
            ("features", ROW_FEATURES_TYPE, 1),
            ("terms", record_of(RowTerms._fields), 1),
            ("factors", record_of(Factors._fields), 1),
            ("cost_head", "f8"),  # added to the row's two heads by the network
            ("value_head", "f8"),
        ]
    )
)
"""The features of an admissible row and the parts of its score."""

CLAMP = 3.0
"""Limit on the logarithm of every factor. No world asks for a factor above 20 or below 1/20, and
with the limit a score stays finite whatever the weights."""
SHED_SCALE = 0.1
"""Utility. The learned term moves the threshold by at most CLAMP times this."""


def named(params: Array) -> Record:
    """A view of a flat vector with its parts by name."""
    return params.view(PARAMS)[0]


@jit_no_refcount(inline=True)
def clamp(x: float) -> float:
    """x limited to ±CLAMP. NaN stays NaN, so that the guard sees it; min and max would hide it."""
    if x > CLAMP:
        return CLAMP
    if x < -CLAMP:
        return -CLAMP
    return x


@jit_no_refcount(inline=True)
def factor(x: float) -> float:
    """exp(x), limited to e^±CLAMP."""
    return math.exp(clamp(x))


@jit_no_refcount(inline=True)
def soft(x: float) -> float:
    """Map any x to (−1, 1)."""
    return x / (1.0 + abs(x))


@jit_no_refcount(inline=True)
def dot(weights: Array, features: Array) -> float:
    """Σ weight × feature."""
    total = 0.0
    for i in range(features.size):
        total += weights[i] * features[i]
    return total


@jit_no_refcount
def describe_all(table: CandidateTable, memory: Memory, rows: Array) -> Units:
    """Compute every feature of a decision; returns the units of its prices and times.

    Writes those of the request and of the servers with admissible rows to `memory`, and those of
    the admissible rows to `rows`, records `ROW` (R,).
    """
    request = memory.fleet.request[0]
    remember(table, memory)
    measure(table, memory.fleet)
    units = measured_units(table, memory.fleet)
    describe_request(table, memory, units, request)
    least = cheapest_work(table)
    home = int(table.context.ingress)
    # Making payloads model-ready at the ingress has a price even if no row there is admissible.
    describe_server(table, memory, request, home, 0.0, units, memory.servers[home].features[0])
    last = -1
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        s = int(table.rows.server[r])
        if s != last:
            last = s
            cheapest = cheapest_service(table, r)
            describe_server(
                table, memory, request, s, cheapest, units, memory.servers[s].features[0]
            )
        describe_row(table, r, least, rows[r].features[0])
    return units


@jit
def network(table: CandidateTable, params: Record, memory: Memory, rows: Array) -> None:
    """Evaluate the network: writes `cost_head` and `value_head` of the admissible rows."""
    hidden = np.empty((table.mask.size, WIDTH))
    shared = np.empty(WIDTH)
    pooled = np.zeros(2 * WIDTH)
    context = np.empty(DEPTH)
    pooled[WIDTH:] = -1.0
    count = 0
    last = -1
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        s = int(table.rows.server[r])
        if s != last:
            last = s
            features = memory.servers[s].features.view(np.float64)
            for h in range(WIDTH):
                shared[h] = dot(params.server_in[h], features)
        count += 1
        features = rows[r].features.view(np.float64)
        for h in range(WIDTH):
            value = soft(shared[h] + dot(params.row_in[h], features))
            hidden[r, h] = value
            pooled[h] += value
            pooled[WIDTH + h] = max(pooled[WIDTH + h], value)
    if count == 0:
        return
    for h in range(WIDTH):
        pooled[h] /= count
    for d in range(DEPTH):
        context[d] = params.bias[d] + dot(params.hidden[d, WIDTH:], pooled)
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        row = rows[r]
        row.cost_head = 0.0
        row.value_head = 0.0
        for d in range(DEPTH):
            z = soft(context[d] + dot(params.hidden[d, :WIDTH], hidden[r]))
            row.cost_head += params.out[0, d] * z
            row.value_head += params.out[1, d] * z


@jit_no_refcount(inline=True)
def no_network(rows: Array) -> None:
    """Set the network's additions to 0, as it is off."""
    for r in range(rows.size):
        rows[r].cost_head = 0.0
        rows[r].value_head = 0.0


class ServerHeads(NamedTuple):
    """The outputs of a server's linear heads: logarithms of factors."""

    price: float
    link: float
    network: float
    wait: float
    spread: float


@jit_no_refcount(inline=True)
def server_heads(params: Record, features: Array) -> ServerHeads:
    """The heads of a server with these features (P,).

    One loop for all five: each sum waits for its own last addition, so five take as long as one.
    """
    weights = params.server_heads
    price = 0.0
    link = 0.0
    network = 0.0
    wait = 0.0
    spread = 0.0
    for i in range(P):
        price += weights[0, i] * features[i]
        link += weights[1, i] * features[i]
        network += weights[2, i] * features[i]
        wait += weights[3, i] * features[i]
        spread += weights[4, i] * features[i]
    return ServerHeads(price, link, network, wait, spread)


@jit_no_refcount
def score(
    table: CandidateTable, params: Record, memory: Memory, rows: Array, units: Units, parts: bool
) -> None:
    """Score every row and shed. Call `describe_all` and `network` (or `no_network`) first.

    `units` are those of `describe_all`. The terms and factors of each score are written to `rows`
    if `parts`.
    """
    own = params.priced
    shed = table.mask.size - 1
    home = int(table.context.ingress)
    fleet = fleet_above_knee(table, own)
    prepare = prepare_price(table, own, fleet, units)
    at_home = factor(dot(params.server_heads[0], memory.servers[home].features.view(np.float64)))
    last = -1
    on = ServerTerms(0.0, 0.0, 0.0, 0.0, 0.0)
    price = 0.0
    link = 1.0
    over = 1.0
    wait = 1.0
    spread = 1.0
    for r in range(shed):
        if table.mask[r] == 0:
            table.scores[r] = -math.inf
            continue
        s = int(table.rows.server[r])
        if s != last:  # rows of a server stand together
            last = s
            local = table.rows.local[r] != 0.0
            on = server_terms(table, s, local, own, fleet, units)
            heads = server_heads(params, memory.servers[s].features.view(np.float64))
            price = heads.price
            link = factor(heads.link)
            over = factor(heads.network)
            wait = factor(heads.wait)
            spread = factor(heads.spread)
        row = rows[r]
        features = row.features.view(np.float64)
        cost = factor(price + dot(params.row_heads[0], features) + row.cost_head)
        value = soft(dot(params.row_heads[1], features) + row.value_head)
        terms = row_terms(table, r, on, own, prepare)
        factors = Factors(cost, link, at_home, over, wait, spread, value)
        table.scores[r] = score_of(table, terms, factors, own.spread)
        if parts:
            keep(row, terms, factors)
    shift = clamp(dot(params.shed_head, memory.fleet.request.view(np.float64)))
    table.scores[shed] = own.threshold_gain * fleet + SHED_SCALE * shift


@jit_no_refcount(inline=True)
def keep(row: Record, terms: RowTerms, factors: Factors) -> None:
    """Write the terms and factors of a row's score to `row`, for explanations and for learning."""
    out = row.terms.view(np.float64)
    for i in range(len(terms)):
        out[i] = terms[i]
    out = row.factors.view(np.float64)
    for i in range(len(factors)):
        out[i] = factors[i]


@policy(
    about="priced_greedy with learned prices, margins and threshold",
    params=PARAMS,
    memory=FLEET_MEMORY,
    memory_per_server=SERVER_MEMORY,
    counters=tuple(COUNTERS),
)
def edgewise(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Choose the row of highest score, the first among equals, or draw one (`OPTIONS`); returns its
    probability. Rows scored below shed are no fallbacks."""
    counters, options = memory.fleet, params.options
    counters.decisions += 1.0
    rows = np.empty(table.mask.size, ROW)
    units = describe_all(table, memory, rows)
    if options.survey > 0.0:
        survey(table, memory, rows)
    if options.guarded > 0.0:
        if freshest(table) > options.oldest * units.deadline:
            counters.stale += 1.0
            priced_scores(table, params.calibrated, units)
            return 1.0
        if strange(table, params, memory, rows):
            counters.outside += 1.0
            priced_scores(table, params.calibrated, units)
            return 1.0
    if options.network > 0.0:
        network(table, params, memory, rows)
    else:
        no_network(rows)
    score(table, params, memory, rows, units, False)
    if not finite(table):
        counters.not_finite += 1.0
        priced_scores(table, params.calibrated, units)
        return 1.0
    if options.temperature > 0.0:
        return drawn(table, options.temperature, rng)
    return 1.0


@jit
def look(table: CandidateTable, params: Record, memory: Memory, rows: Array) -> None:
    """Describe a decision and score it, without the guard."""
    units = describe_all(table, memory, rows)
    if params.options.network > 0.0:
        network(table, params, memory, rows)
    else:
        no_network(rows)
    score(table, params, memory, rows, units, True)


@jit_no_refcount
def strange(table: CandidateTable, params: Record, memory: Memory, rows: Array) -> bool:
    """Whether any feature is outside the training range."""
    low, high = params.low, params.high
    if outside(memory.fleet.request.view(np.float64), low.request, high.request):
        return True
    last = -1
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        s = int(table.rows.server[r])
        if s != last:
            last = s
            if outside(memory.servers[s].features.view(np.float64), low.server, high.server):
                return True
        if outside(rows[r].features.view(np.float64), low.row, high.row):
            return True
    return False


@jit_no_refcount
def survey(table: CandidateTable, memory: Memory, rows: Array) -> None:
    """Widen the limits in the memory to include the features of this decision. A decision without
    an admissible row changes nothing."""
    low, high = memory.fleet.low, memory.fleet.high
    last = -1
    first = low.row[0] == 0.0 and high.row[0] == 0.0  # a service time is never 0
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        if last < 0:
            widen(memory.fleet.request.view(np.float64), low.request, high.request, first)
        s = int(table.rows.server[r])
        if s != last:
            last = s
            widen(memory.servers[s].features.view(np.float64), low.server, high.server, first)
        widen(rows[r].features.view(np.float64), low.row, high.row, first)
        first = False


@jit_no_refcount
def drawn(table: CandidateTable, temperature: float, rng: Array) -> float:
    """Draw a row with weights exp(score / temperature) and give it the highest score; returns its
    probability."""
    top = -math.inf
    for r in range(table.mask.size):
        if table.mask[r] != 0:
            top = max(top, table.scores[r])
    total = 0.0
    for r in range(table.mask.size):
        if table.mask[r] != 0:
            total += math.exp((table.scores[r] - top) / temperature)
    left = uniform(rng) * total
    chosen = table.mask.size - 1
    for r in range(table.mask.size):
        if table.mask[r] != 0:
            chosen = r
            left -= math.exp((table.scores[r] - top) / temperature)
            if left < 0.0:
                break
    probability = math.exp((table.scores[chosen] - top) / temperature) / total
    table.scores[chosen] = top + 1.0
    return probability


def untrained(heuristic: Sequence[float]) -> Array:
    """Params that reproduce the heuristic with these parameters exactly, without limits.

    The network's output weights are 0. Its other weights are drawn with a fixed seed: if they were
    0 too, every gradient would be 0 and training could not start.
    """
    params = np.zeros(LENGTH)
    rng = np.random.default_rng(0)
    params[LAYOUT["priced"]] = heuristic
    params[LAYOUT["calibrated"]] = heuristic
    params[LAYOUT["low"]] = -math.inf
    params[LAYOUT["high"]] = math.inf
    params[LAYOUT["server_in"]] = rng.normal(0.0, 1.0 / math.sqrt(P / 2), WIDTH * P)
    params[LAYOUT["row_in"]] = rng.normal(0.0, 1.0 / math.sqrt(Q / 2), WIDTH * Q)
    params[LAYOUT["hidden"]] = rng.normal(0.0, 1.0 / math.sqrt(WIDTH), DEPTH * 3 * WIDTH)
    named(params).options.oldest = math.inf
    return params
