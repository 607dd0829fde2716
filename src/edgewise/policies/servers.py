"""The steps that all server-only rules share. Compiled.

A server-only rule knows nothing of models. It chooses a *host*: a server with an admissible
service. On that host it runs the most accurate service whose service time is below a share of the
deadline, or the cheapest one if none is. The payload is sent in its original form.

`offer` finds this row on every host in one pass (the rows of a server are adjacent), scores it 0
and scores all other rows −inf. So the scores themselves list the hosts. A rule replaces each 0 by
minus its estimate of the server's load. The best score is its choice, and the others are its
fallbacks in order. Among equal scores the lower row wins: the server that the scenario names first.

*With admission* (`admit`), the same choice of server is followed by a choice of service and form by
predicted latency. The request is shed if nothing on that server is worth running.
"""

from __future__ import annotations

import math

from edgewise.compile import jit
from edgewise.fleet.arrays import Array
from edgewise.fleet.rng import integer_below
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Parameter
from edgewise.score import timeliness

SERVICE_SHARE = 0.4
"""Share of the deadline that a service's time may take under a server-only rule. Chosen: it leaves
the larger part to the network and the queue, of which such a rule knows nothing."""

SHARE = Parameter(
    name="share",
    default=SERVICE_SHARE,
    low=0.02,
    high=1.0,
    unit="deadlines",
    about="The rule runs the most accurate service whose service time is below this share of the "
    "deadline. The rest is left for the network and the queue.",
    log=True,
)
MARGIN = Parameter(
    name="margin",
    default=1.2,
    low=0.5,
    high=3.0,
    about="Factor on the predicted latency. The default adds a fifth, as a prediction does not "
    "know of requests that arrive later.",
    log=True,
)
ADMISSION = (
    MARGIN,
    Parameter(
        name="threshold",
        default=0.05,
        low=0.0,
        high=0.6,
        unit="utility",
        about="The request is shed if no utility on the chosen server is above this. A request "
        "that earns less than 0.05 is not worth the server's time.",
    ),
)
"""The parameters that every rule with admission has in addition to its own."""


@jit
def clear(table: CandidateTable) -> None:
    """Score every row −inf."""
    for r in range(table.scores.size):
        table.scores[r] = -math.inf


@jit
def offer(table: CandidateTable, share: float) -> int:
    """Score 0 the row that a server-only rule would run on each host, and −inf all other rows.

    Returns the number of hosts.
    """
    rows, scores = table.rows, table.scores
    limit = share * table.context.deadline
    hosts = 0
    server = -1.0
    accurate = -1
    cheapest = -1
    for r in range(table.mask.size - 1):
        scores[r] = -math.inf
        if table.mask[r] == 0 or rows.form[r] != 0.0:
            continue
        if rows.server[r] != server:
            if cheapest >= 0:
                scores[accurate if accurate >= 0 else cheapest] = 0.0
            server = rows.server[r]
            accurate = -1
            cheapest = -1
            hosts += 1
        time = rows.service_time[r]
        if cheapest < 0 or time < rows.service_time[cheapest]:
            cheapest = r
        if time < limit and (accurate < 0 or rows.accuracy[r] > rows.accuracy[accurate]):
            accurate = r
    if cheapest >= 0:
        scores[accurate if accurate >= 0 else cheapest] = 0.0
    scores[table.mask.size - 1] = -math.inf
    return hosts


@jit
def nth_offer(table: CandidateTable, n: int) -> int:
    """The row of the n-th host (from 0) after `offer`; −1 if there are not that many."""
    for r in range(table.mask.size - 1):
        if table.scores[r] > -math.inf:
            if n == 0:
                return r
            n -= 1
    return -1


@jit
def server_of(table: CandidateTable, row: int) -> int:
    """The index of the server of a row."""
    return int(table.rows.server[row])


@jit
def power_of_two(table: CandidateTable, hosts: int, rng: Array) -> float:
    """Draw two hosts without replacement and choose the one with the better score.

    The first one drawn wins a tie. The hosts must have scores ≤ 0; the winner's becomes 1. Returns
    the propensity: the share of all ordered pairs in which this host would win.
    """
    if hosts == 0:
        return 1.0
    if hosts == 1:
        table.scores[nth_offer(table, 0)] = 1.0
        return 1.0
    i = integer_below(rng, hosts)
    j = integer_below(rng, hosts - 1)
    if j >= i:
        j += 1
    a, b = nth_offer(table, i), nth_offer(table, j)
    winner = b if table.scores[b] > table.scores[a] else a
    score = table.scores[winner]
    wins = 0
    for r in range(table.mask.size - 1):
        if r != winner and table.scores[r] > -math.inf:
            if score > table.scores[r]:
                wins += 2
            elif score == table.scores[r]:
                wins += 1
    table.scores[winner] = 1.0
    return wins / (hosts * (hosts - 1.0))


@jit
def reported_at(table: CandidateTable, server: int) -> float:
    """The time of a server's last report, s on the balancer's clock. A new report has another."""
    return table.context.now - table.servers[server].report_age  # type: ignore[no-any-return]


@jit
def utility(table: CandidateTable, row: int, latency: float) -> float:
    """Utility of an answer from this row `latency` s after the request was sent: accuracy^w × g."""
    context = table.context
    accuracy = table.rows.accuracy[row]
    weight = context.accuracy_weight
    full = accuracy**weight if weight != 1.0 else accuracy
    return full * timeliness(latency / context.deadline, context.grace)  # type: ignore[no-any-return]


@jit
def best_on(table: CandidateTable, server: float, margin: float, threshold: float) -> int:
    """The row on `server` with the highest utility at `margin` × its predicted latency.

    Among equals it is the one with the lower latency. −1 if no utility is above `threshold`.
    """
    choice = -1
    best = threshold
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0 or table.rows.server[r] != server:
            continue
        latency = table.rows.latency[r]
        value = utility(table, r, margin * latency)
        if value > best or (choice >= 0 and value == best and latency < table.rows.latency[choice]):
            choice = r
            best = value
    return choice


@jit
def admit(table: CandidateTable, margin: float, threshold: float) -> bool:
    """Add a deadline-aware choice of service and admission to the scores of a server-only rule.

    The best row on the chosen server (`best_on`) takes the score of the row that the rule would run
    there. The rows of other servers stay as fallbacks. If no row on the chosen server has a utility
    above the threshold, the request is shed and False is returned. `margin` and `threshold` are the
    parameters of `ADMISSION`.
    """
    best = -1
    for r in range(table.mask.size - 1):
        if table.scores[r] > -math.inf and (best < 0 or table.scores[r] > table.scores[best]):
            best = r
    if best < 0:
        return True
    choice = best_on(table, table.rows.server[best], margin, threshold)
    if choice < 0:
        refuse(table)
        return False
    top = table.scores[best]
    table.scores[best] = -math.inf
    table.scores[choice] = top
    return True


@jit
def refuse(table: CandidateTable) -> None:
    """Shed the request: the last row is the only one with a score above −inf."""
    clear(table)
    table.scores[table.mask.size - 1] = 0.0


@jit
def chance_of_refusal(table: CandidateTable, margin: float, threshold: float, pairs: bool) -> float:
    """The propensity of shedding when `admit` follows a random choice of server.

    Several servers may lead to shedding, so their probabilities are added. The scores must be as
    before the draw. `pairs` says that it was by `power_of_two`; otherwise it was uniform.
    """
    hosts = 0
    chance = 0.0
    for r in range(table.mask.size - 1):
        if table.scores[r] == -math.inf:
            continue
        hosts += 1
        if best_on(table, table.rows.server[r], margin, threshold) >= 0:
            continue
        if not pairs:
            chance += 1.0
            continue
        for other in range(table.mask.size - 1):
            if other != r and table.scores[other] > -math.inf:
                if table.scores[r] > table.scores[other]:
                    chance += 2.0
                elif table.scores[r] == table.scores[other]:
                    chance += 1.0
    if hosts < 2:
        return 1.0
    return chance / (hosts * (hosts - 1.0)) if pairs else chance / hosts
