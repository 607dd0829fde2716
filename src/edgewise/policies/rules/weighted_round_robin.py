"""Weighted round robin by reported utilisation, as gRPC has it (gRFC A58). Compiled.

A server's weight is what it gets done per utilisation, qps / (utilisation + eps/qps × penalty), in
the expectation that a server at half its utilisation could take twice as much. The weight counts
only after the server has reported for a *blackout* period, and no longer than an *expiration*
period after its last report; it is looked up once in an update period.
"""

from __future__ import annotations

from edgewise.compile import jit
from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, Parameter, policy
from edgewise.policies.rules.server_only import NEW_REPORT
from edgewise.policies.servers import SHARE, offer, reported_at, server_of


@jit
def update_weights(table: CandidateTable, params: Record, memory: Memory) -> None:
    """Take in new reports, and look the weights up when it is time."""
    now = table.context.now
    count = table.servers.shape[0]
    for s in range(count):
        mine = memory.servers[s]
        server = table.servers[s]
        if server.up == 0.0:
            mine.ready = 0.0  # when it comes back the blackout starts again
        at = reported_at(table, s)
        if at <= mine.seen + NEW_REPORT:
            continue
        mine.seen = at
        rate = server.answers_1s
        used = server.utilisation
        if used > 0.0 and rate > 0.0:
            used += server.errors_1s / rate * params.penalty
        if used <= 0.0 or rate <= 0.0:
            continue
        if mine.ready == 0.0:
            mine.since = now
            mine.ready = 1.0
        mine.updated = now
        mine.weight = rate / used

    fleet = memory.fleet
    if fleet.looked_up > 0.0 and now - fleet.looked_up_at < max(0.1, params.update):
        return
    fleet.looked_up_at = now
    fleet.looked_up = 1.0
    known = 0
    total = 0.0
    for s in range(count):
        mine = memory.servers[s]
        mine.used = 0.0
        if mine.ready == 0.0:
            continue
        if now - mine.updated >= params.expiration:
            mine.ready = 0.0
        elif now - mine.since >= params.blackout:
            mine.used = mine.weight
            known += 1
            total += mine.weight
    fleet.mean_weight = total / known if known >= 2 else 0.0


@policy(
    about="the servers in proportion to answers per utilisation (gRPC A58)",
    parameters=(
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
            about="of errors: A58's 1.0 makes a failed request cost as much as one that uses all",
        ),
    ),
    memory=("looked_up_at", "looked_up", "mean_weight"),
    memory_per_server=("seen", "ready", "weight", "updated", "since", "used", "credit"),
)
def weighted_round_robin(
    table: CandidateTable, params: Record, memory: Memory, rng: Array
) -> float:
    """Smooth weighted round robin over the hosts (nginx): each gains its weight in credit, the
    richest is chosen and pays what all have gained.

    Of each server: `seen` is the time of its last report, `since` when non-empty reports began (if
    `ready` is 1), `weight` what it gets done per utilisation, as of `updated`; `used` the weight as
    last looked up, 0 = none; `credit` as in nginx.
    """
    offer(table, params.share)
    update_weights(table, params, memory)
    mean = memory.fleet.mean_weight
    best = -1
    total = 0.0
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            mine = memory.servers[server_of(table, r)]
            # In means, so that a credit keeps its worth when all weights change.
            weight = mine.used / mean if mean > 0.0 and mine.used > 0.0 else 1.0
            mine.credit += weight
            total += weight
            if best < 0 or mine.credit > memory.servers[server_of(table, best)].credit:
                best = r
    if best >= 0:
        memory.servers[server_of(table, best)].credit -= total
        table.scores[best] = 1.0
    return 1.0
