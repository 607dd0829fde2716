"""The learned policy: the priced heuristic with learned prices, margins and a learned threshold.

    value  = accuracy^w × trust × E[g(margined latency / deadline)] × (1 + c(row))
    cost   = price(server) × exp(p(server) + q(row)) × service × (1 + captive term)
             + link price × exp(l(server)) × transfer
             + price(ingress) × exp(p(ingress)) × prepare share × prepare
    score  = value − cost                shed = threshold + threshold_gain · F + t(request)

with everything as in `edgewise.policies.priced`, and the network's and the wait's margins and the
spread of the prediction multiplied by exp(n(server)), exp(w(server)), exp(s(server)).

p, l, n, w, s are linear in the features `PHI` of a server, q and c in those of a row (`PSI`), t in
those of the request (`OMEGA`); a small network adds to q and c:

    h_r = σ(A φ + B ψ)          z_r = σ(C h_r + D mean(h) + E max(h) + b)          (q, c) += F z_r

with σ(x) = x / (1 + |x|), mean and maximum over the admissible rows. All rows are treated alike
and pooled symmetrically, so the order of servers, services and rows changes nothing, and any number
of them will do. With its output weights 0 the network is not evaluated.

All weights 0 is the heuristic, bit for bit: exp(0) = 1, and neither × 1 nor + 0 rounds.

*Parameters* are one flat float64 vector; `PARAMS` names its parts. ``priced`` are the heuristic's
own parameters under the learned terms, ``calibrated`` those of the heuristic that decides where the
guard (`edgewise.policies.guard`) says that it should.

*Memory* is the guard's counters, the limits of a survey, what `features.remember` keeps, and room
for the features of a decision, so that nothing is allocated for them.
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
    OMEGA,
    PHI,
    PSI,
    REMEMBERED,
    REQUEST_FEATURES,
    ROW_FEATURES,
    SERVER_FEATURES,
    cheapest_service,
    cheapest_work,
    describe_request,
    describe_row,
    describe_server,
    mean_speed,
    remember,
)
from edgewise.policies.guard import COUNTERS, finite, freshest, outside, widen
from edgewise.policies.priced import (
    Factors,
    RowTerms,
    ServerTerms,
    fleet_above_knee,
    prepare_price,
    priced_scores,
    row_terms,
    score_of,
    server_terms,
)

P, Q, W = len(PHI), len(PSI), len(OMEGA)
FEATURES = P + Q + W
WIDTH, DEPTH = 8, 6
"""Of the network's two hidden layers: a decision among 32 candidates stays within 10 µs."""
SERVER_HEADS = ("price", "link", "network", "wait", "spread")
ROW_HEADS = ("price", "value")

OPTIONS = {
    "temperature": "0: the best row; above it rows are drawn with weights exp(score / temperature)",
    "guarded": "1: the guard is on",
    "network": "1: the network is evaluated",
    "oldest": "s; no report younger than this: the heuristic decides",
    "survey": "1: keep the range of the features in the memory",
}
LIMITS = np.dtype([("phi", "f8", P), ("psi", "f8", Q), ("omega", "f8", W)])
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
            ("phi_in", "f8", (WIDTH, P)),
            ("psi_in", "f8", (WIDTH, Q)),
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
    found = {}
    for name in PARAMS.names:
        kind, offset = PARAMS.fields[name][:2]
        found[name] = slice(offset // 8, (offset + kind.itemsize) // 8)
    return found


LAYOUT = _layout()
"""Where each part stands in the flat vector."""

FLEET_MEMORY = np.dtype(
    [
        *((name, "f8") for name in COUNTERS),
        ("low", LIMITS),
        ("high", LIMITS),
        ("omega", REQUEST_FEATURES, 1),
    ]
)
SERVER_MEMORY = np.dtype([*REMEMBERED, ("phi", SERVER_FEATURES, 1)])
FLEET, SERVER = record_of(FLEET_MEMORY), record_of(SERVER_MEMORY)
FLEET_END = FLEET.itemsize // 8

ROW = record_of(
    np.dtype(
        [
            ("psi", ROW_FEATURES, 1),
            ("terms", record_of(RowTerms._fields), 1),
            ("factors", record_of(Factors._fields), 1),
            ("cost_head", "f8"),  # what the network adds to the two heads of the row
            ("value_head", "f8"),
        ]
    )
)
"""What is known of an admissible row when it has been scored."""

CLAMP = 3.0
"""On every logarithm of a factor: twenty times more or less is more than any world asks for, and
whatever the weights, a score stays a number."""
SHED_SCALE = 0.1
"""Utility; the threshold moves by less than three times this."""


def named(params: Array) -> Record:
    """A flat vector with its parts by name; a view."""
    return params.view(PARAMS)[0]


@jit_no_refcount(inline=True)
def clamp(x: float) -> float:
    """x within ±CLAMP; NaN stays NaN, so that the guard sees it (min and max would hide it)."""
    if x > CLAMP:
        return CLAMP
    if x < -CLAMP:
        return -CLAMP
    return x


@jit_no_refcount(inline=True)
def factor(x: float) -> float:
    """exp of x, kept within e^±CLAMP."""
    return math.exp(clamp(x))


@jit_no_refcount(inline=True)
def soft(x: float) -> float:
    """To (−1, 1)."""
    return x / (1.0 + abs(x))


@jit_no_refcount(inline=True)
def dot(weights: Array, features: Array) -> float:
    """Σ weight × feature."""
    total = 0.0
    for i in range(features.size):
        total += weights[i] * features[i]
    return total


@jit_no_refcount
def describe_all(table: CandidateTable, memory: Memory, rows: Array) -> None:
    """Compute every feature of a decision: those of the request and of the servers with admissible
    rows in `memory`, those of the admissible rows in `rows` (R,), records `ROW`."""
    omega = memory.fleet.omega[0]
    remember(table, memory)
    describe_request(table, memory, omega)
    mean = mean_speed(table)
    least = cheapest_work(table)
    home = int(table.context.ingress)
    # The ingress has a price, for making payloads model-ready, even without an admissible row.
    describe_server(table, memory, omega, home, 0.0, mean, memory.servers[home].phi[0])
    last = -1
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        s = int(table.rows.server[r])
        if s != last:
            last = s
            cheapest = cheapest_service(table, r)
            describe_server(table, memory, omega, s, cheapest, mean, memory.servers[s].phi[0])
        describe_row(table, r, least, rows[r].psi[0])


@jit
def network(table: CandidateTable, params: Record, memory: Memory, rows: Array) -> None:
    """What the network adds to the heads of the admissible rows: `cost_head` and `value_head`."""
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
            phi = memory.servers[s].phi.view(np.float64)
            for h in range(WIDTH):
                shared[h] = dot(params.phi_in[h], phi)
        count += 1
        psi = rows[r].psi.view(np.float64)
        for h in range(WIDTH):
            value = soft(shared[h] + dot(params.psi_in[h], psi))
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
    """The network is off: it adds nothing."""
    for r in range(rows.size):
        rows[r].cost_head = 0.0
        rows[r].value_head = 0.0


class ServerHeads(NamedTuple):
    """The heads of a server: logarithms of factors."""

    price: float
    link: float
    network: float
    wait: float
    spread: float


@jit_no_refcount(inline=True)
def server_heads(params: Record, phi: Array) -> ServerHeads:
    """The heads of a server with the features `phi` (P,). One loop: five sums at a time are no
    slower than one, as each has to wait for its last addition."""
    weights = params.server_heads
    price = 0.0
    link = 0.0
    network = 0.0
    wait = 0.0
    spread = 0.0
    for i in range(P):
        price += weights[0, i] * phi[i]
        link += weights[1, i] * phi[i]
        network += weights[2, i] * phi[i]
        wait += weights[3, i] * phi[i]
        spread += weights[4, i] * phi[i]
    return ServerHeads(price, link, network, wait, spread)


@jit_no_refcount
def score(table: CandidateTable, params: Record, memory: Memory, rows: Array) -> None:
    """Write the scores, from the features of `describe_all` and what `network` added; the terms of
    each row are kept in `rows`."""
    own = params.priced
    shed = table.mask.size - 1
    home = int(table.context.ingress)
    fleet = fleet_above_knee(table, own)
    prepare = prepare_price(table, own, fleet)
    at_home = factor(dot(params.server_heads[0], memory.servers[home].phi.view(np.float64)))
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
            on = server_terms(table, s, local, own, fleet)
            heads = server_heads(params, memory.servers[s].phi.view(np.float64))
            price = heads.price
            link = factor(heads.link)
            over = factor(heads.network)
            wait = factor(heads.wait)
            spread = factor(heads.spread)
        row = rows[r]
        psi = row.psi.view(np.float64)
        cost = factor(price + dot(params.row_heads[0], psi) + row.cost_head)
        value = soft(dot(params.row_heads[1], psi) + row.value_head)
        terms = row_terms(table, r, on, own, prepare)
        factors = Factors(cost, link, at_home, over, wait, spread, value)
        table.scores[r] = score_of(table, terms, factors, own.spread)
        keep(row, terms, factors)
    shift = clamp(dot(params.shed_head, memory.fleet.omega.view(np.float64)))
    table.scores[shed] = own.threshold + own.threshold_gain * fleet + SHED_SCALE * shift


@jit_no_refcount(inline=True)
def keep(row: Record, terms: RowTerms, factors: Factors) -> None:
    """Note what the score of a row is made of, for whoever explains it or learns."""
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
    """The row of highest score, the first of equals, or one drawn (`OPTIONS`); its probability.
    Rows scored below shed are no fallbacks."""
    counters, options = memory.fleet, params.options
    counters.decisions += 1.0
    rows = np.empty(table.mask.size, ROW)
    describe_all(table, memory, rows)
    if options.survey > 0.0:
        survey(table, memory, rows)
    if options.guarded > 0.0:
        if freshest(table) > options.oldest:
            counters.stale += 1.0
            priced_scores(table, params.calibrated)
            return 1.0
        if strange(table, params, memory, rows):
            counters.outside += 1.0
            priced_scores(table, params.calibrated)
            return 1.0
    if options.network > 0.0:
        network(table, params, memory, rows)
    else:
        no_network(rows)
    score(table, params, memory, rows)
    if not finite(table):
        counters.not_finite += 1.0
        priced_scores(table, params.calibrated)
        return 1.0
    if options.temperature > 0.0:
        return drawn(table, options.temperature, rng)
    return 1.0


@jit
def look(table: CandidateTable, params: Record, memory: Memory, rows: Array) -> None:
    """Describe a decision and score it, without the guard."""
    describe_all(table, memory, rows)
    if params.options.network > 0.0:
        network(table, params, memory, rows)
    else:
        no_network(rows)
    score(table, params, memory, rows)


@jit_no_refcount
def strange(table: CandidateTable, params: Record, memory: Memory, rows: Array) -> bool:
    """Whether any feature is outside the training range."""
    low, high = params.low, params.high
    if outside(memory.fleet.omega.view(np.float64), low.omega, high.omega):
        return True
    last = -1
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        s = int(table.rows.server[r])
        if s != last:
            last = s
            if outside(memory.servers[s].phi.view(np.float64), low.phi, high.phi):
                return True
        if outside(rows[r].psi.view(np.float64), low.psi, high.psi):
            return True
    return False


@jit_no_refcount
def survey(table: CandidateTable, memory: Memory, rows: Array) -> None:
    """Widen the limits in the memory to the features of this decision; one without an admissible
    row says nothing."""
    low, high = memory.fleet.low, memory.fleet.high
    last = -1
    first = low.psi[0] == 0.0 and high.psi[0] == 0.0  # a service time is never 0
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        if last < 0:
            widen(memory.fleet.omega.view(np.float64), low.omega, high.omega, first)
        s = int(table.rows.server[r])
        if s != last:
            last = s
            widen(memory.servers[s].phi.view(np.float64), low.phi, high.phi, first)
        widen(rows[r].psi.view(np.float64), low.psi, high.psi, first)
        first = False


@jit_no_refcount
def drawn(table: CandidateTable, temperature: float, rng: Array) -> float:
    """Draw a row with weights exp(score / temperature), put it on top; its probability."""
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
    """Params that are the heuristic with these parameters, exactly: nothing learned, no limits.

    The network's input layers are drawn from a fixed seed, its output is 0: at an input layer of 0
    too there would be nothing to climb from.
    """
    params = np.zeros(LENGTH)
    rng = np.random.default_rng(0)
    params[LAYOUT["priced"]] = heuristic
    params[LAYOUT["calibrated"]] = heuristic
    params[LAYOUT["low"]] = -math.inf
    params[LAYOUT["high"]] = math.inf
    params[LAYOUT["phi_in"]] = rng.normal(0.0, 1.0 / math.sqrt(P / 2), WIDTH * P)
    params[LAYOUT["psi_in"]] = rng.normal(0.0, 1.0 / math.sqrt(Q / 2), WIDTH * Q)
    params[LAYOUT["hidden"]] = rng.normal(0.0, 1.0 / math.sqrt(WIDTH), DEPTH * 3 * WIDTH)
    named(params).options.oldest = math.inf
    return params
