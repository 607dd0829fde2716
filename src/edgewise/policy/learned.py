"""The learned policy: the priced heuristic with learned prices, margins and a learned threshold.

    value  = accuracy^w × trust × E[g(margined latency / deadline)] × (1 + c(row))
    cost   = price(server) × exp(p(server) + q(row)) × service × (1 + captive term)
             + link price × exp(l(server)) × transfer
             + price(ingress) × exp(p(ingress)) × prepare share × prepare
    score  = value − cost                shed = threshold + threshold_gain · F + t(request)

with everything as in `edgewise.policy.priced`, and the network's and the wait's margins and the
spread of the prediction multiplied by exp(n(server)), exp(w(server)), exp(s(server)).

p, l, n, w, s are linear in the features `PHI` of a server, q and c in those of a row (`PSI`), t in
those of the request (`OMEGA`); a small network adds to q and c:

    h_r = σ(A φ + B ψ)          z_r = σ(C h_r + D mean(h) + E max(h) + b)          (q, c) += F z_r

with σ(x) = x / (1 + |x|), mean and maximum over the admissible rows. All rows are treated alike
and pooled symmetrically, so the order of servers, services and rows changes nothing, and any number
of them will do. With its output weights 0 the network is not evaluated.

All weights 0 is the heuristic, bit for bit: exp(0) = 1, and neither × 1 nor + 0 rounds.

*Params* is one flat float64 vector, the parts of `LAYOUT` in their order. ``base`` are the
heuristic's own parameters under the learned terms, ``calibrated`` those of the heuristic that
decides where the guard (`edgewise.policy.guard`) says that it should.

*State*: the guard's counters, the limits of a survey, and what `features.remember` keeps.
"""

from __future__ import annotations

import math

import numpy as np

from edgewise.compile import jit
from edgewise.fleet.arrays import Array
from edgewise.fleet.rng import uniform
from edgewise.fleet.table import CandidateTable
from edgewise.policy.features import (
    OMEGA,
    PHI,
    PSI,
    REMEMBERED,
    cheapest_service,
    cheapest_work,
    describe_request,
    describe_row,
    describe_server,
    mean_speed,
    remember,
)
from edgewise.policy.guard import (
    N_COUNTERS,
    N_DECISIONS,
    N_NOT_FINITE,
    N_OUTSIDE,
    N_STALE,
    finite,
    freshest,
    outside,
    widen,
)
from edgewise.policy.priced import (
    BACKLOG_SCALE,
    CAPTIVE_GAIN,
    FAILURE_WEIGHT,
    KNEE,
    LINK_GAIN,
    LINK_PRICE,
    NETWORK_MARGIN,
    NETWORK_SPREAD,
    PREPARE_SHARE,
    PRICED_GREEDY,
    SERVICE_MARGIN,
    SPREAD,
    STALE_MAX,
    STALE_SPREAD,
    THRESHOLD,
    THRESHOLD_GAIN,
    WAIT_MARGIN,
    expected_timeliness,
    fleet_load,
    load_of,
    priced_scores,
    server_price,
)

P, Q, W = len(PHI), len(PSI), len(OMEGA)
FEATURES = P + Q + W
WIDTH, DEPTH = 8, 6
"""Of the network's two hidden layers: a decision among 32 candidates stays within 10 µs."""

SIZES = {
    "options": 5,
    "base": len(PRICED_GREEDY),
    "calibrated": len(PRICED_GREEDY),
    "low": FEATURES,
    "high": FEATURES,
    "server_heads": 5 * P,
    "row_heads": 2 * Q,
    "shed_head": W,
    "phi_in": WIDTH * P,
    "psi_in": WIDTH * Q,
    "hidden": DEPTH * 3 * WIDTH,
    "bias": DEPTH,
    "out": 2 * DEPTH,
}
"""Length of each part of the params."""
_ends = np.cumsum(list(SIZES.values())).tolist()
LAYOUT = {
    name: slice(end - size, end) for (name, size), end in zip(SIZES.items(), _ends, strict=True)
}
"""Where each part stands."""
LENGTH: int = _ends[-1]

# Their starts, as numbers: compiled code reads no dict.
_BASE: int = LAYOUT["base"].start
_CALIBRATED: int = LAYOUT["calibrated"].start
_LOW: int = LAYOUT["low"].start
_HIGH: int = LAYOUT["high"].start
_SERVER: int = LAYOUT["server_heads"].start
_ROW: int = LAYOUT["row_heads"].start
_SHED: int = LAYOUT["shed_head"].start
_PHI_IN: int = LAYOUT["phi_in"].start
_PSI_IN: int = LAYOUT["psi_in"].start
_HIDDEN: int = LAYOUT["hidden"].start
_BIAS: int = LAYOUT["bias"].start
_OUT: int = LAYOUT["out"].start
OPTIONS = {
    "temperature": "0: the best row; above it rows are drawn with weights exp(score / temperature)",
    "guarded": "1: the guard is on",
    "network": "1: the network is evaluated",
    "oldest": "s; no report younger than this: the heuristic decides",
    "survey": "1: keep the range of the features in the state",
}
O_TEMPERATURE, O_GUARDED, O_NETWORK, O_OLDEST, O_SURVEY = range(len(OPTIONS))
SERVER_HEADS = ("price", "link", "network", "wait", "spread")
H_PRICE, H_LINK, H_NETWORK, H_WAIT, H_SPREAD = range(len(SERVER_HEADS))
ROW_HEADS = ("price", "value")

CLAMP = 3.0
"""On every logarithm of a factor: twenty times more or less is more than any world asks for, and
whatever the weights, a score stays a number."""
SHED_SCALE = 0.1
"""Utility; the threshold moves by less than three times this."""

MEMORY = N_COUNTERS + 2 * FEATURES
PER_SERVER = REMEMBERED

PARTS = ("latency", "utility", "server_price", "link_price", "prepare_price", "correction")
"""Columns of what `score` says of its rows: the margined latency, s; accuracy^w × trust × E[g];
what is charged for each resource; and c(row)."""
N_PARTS = len(PARTS)


@jit
def clamp(x: float) -> float:
    """x within ±CLAMP; NaN stays NaN, so that the guard sees it (min and max would hide it)."""
    if x > CLAMP:
        return CLAMP
    if x < -CLAMP:
        return -CLAMP
    return x


@jit
def factor(x: float) -> float:
    """exp of x, kept within e^±CLAMP."""
    return math.exp(clamp(x))


@jit
def dot(params: Array, at: int, features: Array) -> float:
    total = 0.0
    for i in range(features.size):
        total += params[at + i] * features[i]
    return total


@jit
def soft(x: float) -> float:
    return x / (1.0 + abs(x))


@jit
def describe_all(
    table: CandidateTable, memory: Array, omega: Array, phis: Array, psis: Array
) -> None:
    """Every feature of a decision: `omega` (W,), `phis` (S, P) of the servers with admissible rows,
    `psis` (R, Q) of the admissible rows. Others stay as they are."""
    remember(table, memory)
    describe_request(table, memory, omega)
    mean = mean_speed(table)
    least = cheapest_work(table)
    home = int(table.context.ingress)
    describe_server(table, memory, omega, home, 0.0, mean, phis[home])  # it has a price anyway
    last = -1
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        s = int(table.rows.server[r])
        if s != last:
            last = s
            describe_server(table, memory, omega, s, cheapest_service(table, r), mean, phis[s])
        describe_row(table, r, least, psis[r])


@jit
def network(table: CandidateTable, params: Array, phis: Array, psis: Array, out: Array) -> None:
    """What the network adds to (q, c) of the admissible rows: `out` (R, 2)."""
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
            for h in range(WIDTH):
                shared[h] = dot(params, _PHI_IN + h * P, phis[s])
        count += 1
        for h in range(WIDTH):
            value = soft(shared[h] + dot(params, _PSI_IN + h * Q, psis[r]))
            hidden[r, h] = value
            pooled[h] += value
            pooled[WIDTH + h] = max(pooled[WIDTH + h], value)
    if count == 0:
        return
    for h in range(WIDTH):
        pooled[h] /= count
    for d in range(DEPTH):
        context[d] = params[_BIAS + d] + dot(params, _HIDDEN + d * 3 * WIDTH + WIDTH, pooled)
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        q = 0.0
        c = 0.0
        for d in range(DEPTH):
            z = soft(context[d] + dot(params, _HIDDEN + d * 3 * WIDTH, hidden[r]))
            q += params[_OUT + d] * z
            c += params[_OUT + DEPTH + d] * z
        out[r, 0] = q
        out[r, 1] = c


@jit
def score(
    table: CandidateTable,
    params: Array,
    omega: Array,
    phis: Array,
    psis: Array,
    added: Array,
    parts: Array,
) -> None:
    """Write `table.scores`, from features as `describe_all` has them and `added` as `network` has.

    `parts` (R, len(PARTS)) says what the scores consist of. This follows `priced.priced_greedy`
    line by line; what is learned are factors and summands.
    """
    base = params[_BASE:_CALIBRATED]
    rows, scores, context = table.rows, table.scores, table.context
    deadline = context.deadline
    grace = context.grace
    elapsed = context.elapsed
    weight = context.accuracy_weight
    fleet = max(0.0, fleet_load(table) - base[KNEE])
    home = int(context.ingress)
    prepare_price = 0.0
    if base[PREPARE_SHARE] > 0.0:
        prepare_price = base[PREPARE_SHARE] * server_price(table.servers[home], base, fleet)
        prepare_price *= factor(dot(params, _SERVER + H_PRICE * P, phis[home]))

    last = -1
    price = 0.0
    dearer = 0.0
    link_price = 0.0
    trust = 1.0
    network_margin = 0.0
    wait_margin = 0.0
    network_spread = 0.0
    wider = 1.0
    stale = 0.0
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            scores[r] = -math.inf
            continue
        s = int(rows.server[r])
        server = table.servers[s]
        if s != last:
            last = s
            phi = phis[s]
            price = server_price(server, base, fleet)
            dearer = dot(params, _SERVER + H_PRICE * P, phi)
            network_margin = base[NETWORK_MARGIN] * factor(
                dot(params, _SERVER + H_NETWORK * P, phi)
            )
            wait_margin = base[WAIT_MARGIN] * factor(dot(params, _SERVER + H_WAIT * P, phi))
            wider = factor(dot(params, _SERVER + H_SPREAD * P, phi))
            trust = 1.0 - base[FAILURE_WEIGHT] * server.failure
            busy = min(1.0, load_of(server))
            stale = base[STALE_SPREAD] * busy * min(STALE_MAX, server.report_age)
            link_price = 0.0
            unsure = 0.5
            if rows.local[r] == 0.0:
                full = math.tanh(server.link_backlog / base[BACKLOG_SCALE])
                link_price = base[LINK_PRICE] * (1.0 + base[LINK_GAIN] * full)
                link_price *= factor(dot(params, _SERVER + H_LINK * P, phi))
                unsure += 0.5 * server.rate_age / (1.0 + server.rate_age)
            network_spread = base[NETWORK_SPREAD] * unsure
        psi = psis[r]
        dear = dearer + dot(params, _ROW, psi) + added[r, 0]
        better = soft(dot(params, _ROW + Q, psi) + added[r, 1])
        over = network_margin * (rows.ready[r] + rows.return_time[r])
        wait = wait_margin * rows.wait[r]
        service = base[SERVICE_MARGIN] * rows.service_time[r]
        spread = base[SPREAD] * (wait + service) + network_spread * over + stale
        latency = elapsed + over + wait + service
        timely = expected_timeliness(latency, spread * wider, deadline, grace)
        accuracy = rows.accuracy[r]
        worth = accuracy**weight if weight != 1.0 else accuracy
        cost = price * factor(dear) * rows.service_time[r]
        if rows.local[r] == 0.0:
            captive = min(1.0, server.demand_1s * rows.service_time[r] / server.workers)
            cost *= 1.0 + base[CAPTIVE_GAIN] * captive
        part = parts[r]
        part[0] = latency
        part[1] = worth * trust * timely
        part[2] = cost
        part[3] = link_price * rows.transfer[r]
        part[4] = prepare_price * rows.prepare[r]
        part[5] = better
        cost += part[3] + part[4]
        scores[r] = part[1] * (1.0 + better) - cost
    threshold = base[THRESHOLD] + base[THRESHOLD_GAIN] * fleet
    shift = dot(params, _SHED, omega)
    scores[table.mask.size - 1] = threshold + SHED_SCALE * clamp(shift)


@jit
def edgewise(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """The policy `edgewise`. The row of highest score, the first of equals, or one drawn
    (`OPTIONS`); returns its probability. Rows scored below shed are no fallbacks."""
    state[N_DECISIONS] += 1.0
    memory = state[MEMORY:]
    omega = np.empty(W)
    phis = np.zeros((table.servers.shape[0], P))
    psis = np.empty((table.mask.size, Q))
    describe_all(table, memory, omega, phis, psis)
    if params[O_SURVEY] > 0.0:
        survey(table, state, omega, phis, psis)
    if params[O_GUARDED] > 0.0:
        if freshest(table) > params[O_OLDEST]:
            state[N_STALE] += 1.0
            return priced_scores(table, params[_CALIBRATED:_LOW])
        if strange(table, params, omega, phis, psis):
            state[N_OUTSIDE] += 1.0
            return priced_scores(table, params[_CALIBRATED:_LOW])
    added = np.zeros((table.mask.size, 2))
    if params[O_NETWORK] > 0.0:
        network(table, params, phis, psis, added)
    parts = np.empty((table.mask.size, N_PARTS))
    score(table, params, omega, phis, psis, added, parts)
    if not finite(table):
        state[N_NOT_FINITE] += 1.0
        return priced_scores(table, params[_CALIBRATED:_LOW])
    if params[O_TEMPERATURE] > 0.0:
        return drawn(table, params[O_TEMPERATURE], draws)
    return 1.0


@jit
def strange(table: CandidateTable, params: Array, omega: Array, phis: Array, psis: Array) -> bool:
    """Whether any feature is outside the training range."""
    low = params[_LOW:_HIGH]
    high = params[_HIGH:_SERVER]
    if outside(omega, low[P + Q :], high[P + Q :]):
        return True
    last = -1
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        s = int(table.rows.server[r])
        if s != last:
            last = s
            if outside(phis[s], low[:P], high[:P]):
                return True
        if outside(psis[r], low[P : P + Q], high[P : P + Q]):
            return True
    return False


@jit
def survey(table: CandidateTable, state: Array, omega: Array, phis: Array, psis: Array) -> None:
    """Widen the limits in the state to the features of this decision; what has no admissible row
    says nothing."""
    at = N_COUNTERS
    low = state[at : at + FEATURES]
    high = state[at + FEATURES : at + 2 * FEATURES]
    if not table.mask[: table.mask.size - 1].any():
        return
    first = low[P] == 0.0 and high[P] == 0.0  # a service time is never 0
    widen(omega, low[P + Q :], high[P + Q :], first)
    last = -1
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        s = int(table.rows.server[r])
        if s != last:
            last = s
            widen(phis[s], low[:P], high[:P], first)
        widen(psis[r], low[P : P + Q], high[P : P + Q], first)
        first = False


@jit
def drawn(table: CandidateTable, temperature: float, draws: Array) -> float:
    """Draw a row with weights exp(score / temperature), put it on top; its probability."""
    top = -math.inf
    for r in range(table.mask.size):
        if table.mask[r] != 0:
            top = max(top, table.scores[r])
    total = 0.0
    for r in range(table.mask.size):
        if table.mask[r] != 0:
            total += math.exp((table.scores[r] - top) / temperature)
    left = uniform(draws) * total
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


def untrained(base: tuple[float, ...]) -> Array:
    """Params that are the heuristic with parameters `base`, exactly: nothing learned, no limits.

    The network's input layers are drawn from a fixed seed, its output is 0: at an input layer of 0
    too there would be nothing to climb from.
    """
    params = np.zeros(LENGTH)
    rng = np.random.default_rng(0)
    params[LAYOUT["base"]] = base
    params[LAYOUT["calibrated"]] = base
    params[LAYOUT["low"]] = -math.inf
    params[LAYOUT["high"]] = math.inf
    params[LAYOUT["phi_in"]] = rng.normal(0.0, 1.0 / math.sqrt(P / 2), WIDTH * P)
    params[LAYOUT["psi_in"]] = rng.normal(0.0, 1.0 / math.sqrt(Q / 2), WIDTH * Q)
    params[LAYOUT["hidden"]] = rng.normal(0.0, 1.0 / math.sqrt(WIDTH), DEPTH * 3 * WIDTH)
    params[O_OLDEST] = math.inf
    return params
