"""How a server-only rule chooses: the part that all of them share. Compiled.

A server-only rule knows nothing of models. It chooses among the *hosts*, the servers with an
admissible service; the service on it is then the most accurate one whose own service time is under
a share of the deadline, else the cheapest; the photo travels as it came.

`offer` finds that row on every host in one pass, for the rows of a server stand together, and
scores it 0 and all others −inf. So the scores themselves are the list of hosts: a rule overwrites
the 0 by minus its idea of the server's load, and the best score is its choice, the others are its
fallbacks in the order it would take them. Of equal scores the lower row wins, which is the server
that the scenario names first.

*With admission* (`admit`) the same choice of server is followed by a choice of service and form
that looks at predicted latency, and by a refusal if nothing there is worth running.
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
"""Of the deadline, that a service's own time may take under a server-only rule (BASELINES): the
rest is for the network and the queue, of which such a rule knows nothing."""

SHARE = Parameter(
    name="share",
    default=SERVICE_SHARE,
    low=0.02,
    high=1.0,
    unit="deadlines",
    about="that a service's own time may take to be chosen for its accuracy; the rest is for the "
    "network and the queue",
    log=True,
)
ADMISSION = (
    Parameter(
        name="margin",
        default=1.2,
        low=0.5,
        high=3.0,
        about="on the predicted latency; a fifth more, as predictions miss what arrives later",
        log=True,
    ),
    Parameter(
        name="threshold",
        default=0.05,
        low=0.0,
        high=0.6,
        unit="utility",
        about="under which a request is shed: a twentieth is worth less than the time it takes",
    ),
)
"""The parameters that every rule with admission has besides its own."""


@jit
def clear(table: CandidateTable) -> None:
    """Score every row −inf."""
    for r in range(table.scores.size):
        table.scores[r] = -math.inf


@jit
def offer(table: CandidateTable, share: float) -> int:
    """Score the row that a server-only rule would run on each host 0 and all others −inf; returns
    how many hosts there are."""
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
    """The row of the n-th host (from 0) after `offer`; −1 if there are fewer."""
    for r in range(table.mask.size - 1):
        if table.scores[r] > -math.inf:
            if n == 0:
                return r
            n -= 1
    return -1


@jit
def server_of(table: CandidateTable, row: int) -> int:
    """The server of a row that was offered."""
    return int(table.rows.server[row])


@jit
def power_of_two(table: CandidateTable, hosts: int, rng: Array) -> float:
    """Two hosts drawn without replacement, the better score wins, the first drawn of equals.

    Scores of the hosts must stand and be ≤ 0; the winner's becomes 1. Returns the propensity: the
    share of the ordered pairs in which it wins.
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
    """When the last report of a server was true, s on the balancer's clock; to tell a new one."""
    return table.context.now - table.servers[server].report_age  # type: ignore[no-any-return]


@jit
def utility(table: CandidateTable, row: int, latency: float) -> float:
    """What an answer of this row after `latency` s from sent_at is worth: accuracy^w × g."""
    context = table.context
    accuracy = table.rows.accuracy[row]
    weight = context.accuracy_weight
    worth = accuracy**weight if weight != 1.0 else accuracy
    return worth * timeliness(latency / context.deadline, context.grace)  # type: ignore[no-any-return]


@jit
def best_on(table: CandidateTable, server: float, margin: float, threshold: float) -> int:
    """The row on `server` of best utility at `margin` × its predicted latency, the earlier of
    equals; −1 if none is worth more than `threshold`."""
    choice = -1
    worth = threshold
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0 or table.rows.server[r] != server:
            continue
        latency = table.rows.latency[r]
        value = utility(table, r, margin * latency)
        if value > worth or (
            choice >= 0 and value == worth and latency < table.rows.latency[choice]
        ):
            choice = r
            worth = value
    return choice


@jit
def admit(table: CandidateTable, margin: float, threshold: float) -> bool:
    """Deadline-aware service choice and admission, behind any server-only rule's scores.

    The (service, form) of best utility on the chosen server takes the place of the row the rule
    would run there (`best_on`); if nothing there is worth more than the threshold, the request is
    shed and the answer False. Other servers' rows stay as fallbacks. `margin` and `threshold` as in
    `ADMISSION`.
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
    """Shed."""
    clear(table)
    table.scores[table.mask.size - 1] = 0.0


@jit
def chance_of_refusal(table: CandidateTable, margin: float, threshold: float, pairs: bool) -> float:
    """The propensity of shedding when a drawn server is followed by `admit`: any of several servers
    may have led there. The scores must stand as before the draw, which was of two (`pairs`, see
    `power_of_two`) or uniform."""
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
