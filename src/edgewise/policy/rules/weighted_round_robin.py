"""Weighted round robin by reported utilisation, as gRPC has it (gRFC A58). Compiled.

A server's weight is what it gets done per utilisation, qps / (utilisation + eps/qps × penalty), in
the expectation that a server at half its utilisation could take twice as much. The weight counts
only after the server has reported for a *blackout* period, and no longer than an *expiration*
period after its last report; it is looked up once in an update period.
"""

from __future__ import annotations

from edgewise.compile import jit
from edgewise.fleet.arrays import Array
from edgewise.fleet.table import (
    C_NOW,
    S_ANSWERS_1S,
    S_ERRORS_1S,
    S_UP,
    S_UTILISATION,
    CandidateTable,
)
from edgewise.policy.base import Parameter
from edgewise.policy.rules.server_only import NEW_REPORT
from edgewise.policy.servers import SHARE, offer, reported_at, server_of

WEIGHTED_ROUND_ROBIN = (
    SHARE,
    Parameter(
        name="blackout",
        default=10.0,
        low=0.1,
        high=60.0,
        unit="s",
        about="for which a server must have reported before its weight counts: A58's 10 s, "
        "against churn at the start",
        log=True,
    ),
    Parameter(
        name="expiration",
        default=180.0,
        low=1.0,
        high=600.0,
        unit="s",
        about="after which a weight without a report is void: A58's 3 min",
        log=True,
    ),
    Parameter(
        name="update",
        default=1.0,
        low=0.1,
        high=10.0,
        unit="s",
        about="between two looks at the weights: A58's 1 s; less than 0.1 counts as 0.1",
        log=True,
    ),
    Parameter(
        name="penalty",
        default=1.0,
        low=0.0,
        high=5.0,
        unit="",
        about="of errors: A58's 1.0 makes a failed request cost as much as one that uses all",
    ),
)

GLOBAL = 3
"""state[0] when the weights were last looked up, state[1] 1 once they were, state[2] their mean."""
PER_SERVER = 7
SEEN, READY, WEIGHT, UPDATED, SINCE, USED, CURRENT = range(PER_SERVER)
"""Last report seen; 1 if `SINCE` holds; weight; when it was updated; since when there have been
non-empty reports; weight as last looked up, 0 = none; nginx's running credit."""


@jit
def update_weights(table: CandidateTable, params: Array, state: Array) -> None:
    """Take in new reports, and look the weights up when it is time."""
    now = table.context[C_NOW]
    count = table.servers.shape[0]
    for s in range(count):
        mine = state[GLOBAL + PER_SERVER * s : GLOBAL + PER_SERVER * (s + 1)]
        server = table.servers[s]
        if server[S_UP] == 0.0:
            mine[READY] = 0.0  # when it comes back the blackout starts again
        at = reported_at(table, s)
        if at <= mine[SEEN] + NEW_REPORT:
            continue
        mine[SEEN] = at
        rate = server[S_ANSWERS_1S]
        used = server[S_UTILISATION]
        if used > 0.0 and rate > 0.0:
            used += server[S_ERRORS_1S] / rate * params[4]
        if used <= 0.0 or rate <= 0.0:
            continue
        if mine[READY] == 0.0:
            mine[SINCE] = now
            mine[READY] = 1.0
        mine[UPDATED] = now
        mine[WEIGHT] = rate / used

    if state[1] > 0.0 and now - state[0] < max(0.1, params[3]):
        return
    state[0] = now
    state[1] = 1.0
    known = 0
    total = 0.0
    for s in range(count):
        mine = state[GLOBAL + PER_SERVER * s : GLOBAL + PER_SERVER * (s + 1)]
        mine[USED] = 0.0
        if mine[READY] == 0.0:
            continue
        if now - mine[UPDATED] >= params[2]:
            mine[READY] = 0.0
        elif now - mine[SINCE] >= params[1]:
            mine[USED] = mine[WEIGHT]
            known += 1
            total += mine[WEIGHT]
    state[2] = total / known if known >= 2 else 0.0


@jit
def weighted_round_robin(table: CandidateTable, params: Array, state: Array, draws: Array) -> float:
    """Smooth weighted round robin over the hosts (nginx): each gains its weight in credit, the
    richest is chosen and pays what all have gained. params: `WEIGHTED_ROUND_ROBIN`."""
    offer(table, params[0])
    update_weights(table, params, state)
    mean = state[2]
    best = -1
    total = 0.0
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            mine = state[GLOBAL + PER_SERVER * server_of(table, r) :]
            # In means, so that a credit keeps its worth when all weights change.
            weight = mine[USED] / mean if mean > 0.0 and mine[USED] > 0.0 else 1.0
            mine[CURRENT] += weight
            total += weight
            if (
                best < 0
                or mine[CURRENT] > state[GLOBAL + PER_SERVER * server_of(table, best) + CURRENT]
            ):
                best = r
    if best >= 0:
        state[GLOBAL + PER_SERVER * server_of(table, best) + CURRENT] -= total
        table.scores[best] = 1.0
    return 1.0
