"""Weighted round robin by reported utilisation, as in gRPC (gRFC A58). Compiled.

A server's weight is its rate of answers per utilisation, qps / (utilisation + eps/qps × penalty): a
server that is half used is expected to be able to take twice as much. The weight counts only after
the server has reported for a *blackout* period, and until an *expiration* period after its last
report. The weights in use are refreshed once in an *update* period.
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
    """Compute weights from new reports, and refresh the weights in use when it is time."""
    now = table.context.now
    count = table.servers.shape[0]
    for s in range(count):
        known = memory.servers[s]
        server = table.servers[s]
        if server.up == 0.0:
            known.ready = 0.0  # the blackout starts again when it is back
        at = reported_at(table, s)
        if at <= known.seen + NEW_REPORT:
            continue
        known.seen = at
        rate = server.answers_1s
        used = server.utilisation
        if used > 0.0 and rate > 0.0:
            used += server.errors_1s / rate * params.penalty
        if used <= 0.0 or rate <= 0.0:
            continue
        if known.ready == 0.0:
            known.since = now
            known.ready = 1.0
        known.updated = now
        known.weight = rate / used

    fleet = memory.fleet
    if fleet.looked_up > 0.0 and now - fleet.looked_up_at < max(0.1, params.update):
        return
    fleet.looked_up_at = now
    fleet.looked_up = 1.0
    weights = 0
    total = 0.0
    for s in range(count):
        known = memory.servers[s]
        known.used = 0.0
        if known.ready == 0.0:
            continue
        if now - known.updated >= params.expiration:
            known.ready = 0.0
        elif now - known.since >= params.blackout:
            known.used = known.weight
            weights += 1
            total += known.weight
    fleet.mean_weight = total / weights if weights >= 2 else 0.0


@policy(
    about="the servers in turn, weighted by answers per utilisation (gRPC A58)",
    parameters=(
        SHARE,
        Parameter(
            name="blackout",
            default=10.0,
            low=0.1,
            high=60.0,
            unit="s",
            about="A server's weight counts after it has reported for this long. A58 uses 10 s, to "
            "avoid churn at the start.",
            log=True,
        ),
        Parameter(
            name="expiration",
            default=180.0,
            low=1.0,
            high=600.0,
            unit="s",
            about="A weight is void this long after the last report. A58 uses 3 min.",
            log=True,
        ),
        Parameter(
            name="update",
            default=1.0,
            low=0.1,
            high=10.0,
            unit="s",
            about="Time between two refreshes of the weights in use, at least 0.1 s. A58 uses 1 s.",
            log=True,
        ),
        Parameter(
            name="penalty",
            default=1.0,
            low=0.0,
            high=5.0,
            about="Utilisation that failed answers add: this, times their share. A58 uses 1.",
        ),
    ),
    memory=("looked_up_at", "looked_up", "mean_weight"),
    memory_per_server=("seen", "ready", "weight", "updated", "since", "used", "credit"),
)
def weighted_round_robin(
    table: CandidateTable, params: Record, memory: Memory, rng: Array
) -> float:
    """Smooth weighted round robin over the hosts (nginx): each host gains its weight in credit, and
    the one with most credit is chosen and pays the sum of these weights.

    The memory has for each server: `seen`, the time of its last report; `since`, when non-empty
    reports began (if `ready` is 1); `weight`, its answers per utilisation at time `updated`;
    `used`, the weight in use (0 = none); and `credit`.
    """
    offer(table, params.share)
    update_weights(table, params, memory)
    mean = memory.fleet.mean_weight
    best = -1
    total = 0.0
    for r in range(table.mask.size - 1):
        if table.scores[r] == 0.0:
            known = memory.servers[server_of(table, r)]
            # Relative to the mean, so that a credit keeps its value when all weights change.
            weight = known.used / mean if mean > 0.0 and known.used > 0.0 else 1.0
            known.credit += weight
            total += weight
            if best < 0 or known.credit > memory.servers[server_of(table, best)].credit:
                best = r
    if best >= 0:
        memory.servers[server_of(table, best)].credit -= total
        table.scores[best] = 1.0
    return 1.0
