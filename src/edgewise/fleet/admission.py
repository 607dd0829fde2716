"""Nothing is shed that an otherwise idle fleet can answer in time. Compiled; beside every policy.

A policy sheds a request if what other requests lose by it is more than it is worth. On an idle
fleet nobody loses anything, but a price that was tuned on busy fleets does not know that, least of
all on a fleet whose services take other times than those it was tuned on. So a decision to shed is
overruled if

- less than half of what the fleet can do was offered lately (`offered_lately`),
- nobody waits for long: wherever requests wait, they will be done within a tenth of the time that
  the most urgent of them has left,
- a row is predicted to answer in time with a margin for the network and the queue, and its link
  carries nothing.

Of these rows the one that the policy scores highest is chosen. Rows that it scores −inf, which it
never chooses, stay excluded.

*Lately* is measured in service times of the fleet, so the rule is the same on fleets of any speed.
It is a leaky bucket: the work of every request goes in (of one that is shed, the least that it
would have taken), and half of the fleet's capacity drains away. While the bucket is below `SPAN`
service times, the load was below half, or is a burst that adds up to no more.

The conditions are strict because a wrong exception is expensive: with a bucket of 32 service times
for each worker, and without the second and the third, the standard suite loses 0.02 of its utility.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Belief
from edgewise.fleet.belief import water_level
from edgewise.fleet.table import CandidateTable, best_row

SPAN, LEAST_SPAN = 8.0, 32.0
"""Mean service times of the fleet: of each worker, and at least in all. A burst of so many requests
is let in after a quiet time."""
HALF = 0.5
"""Share of the capacity below which the fleet counts as idle otherwise."""
BRIEF = 0.1
"""Share of the time that a waiting request has left, in which it will be done."""
NETWORK, WAIT = 2.0, 2.0
"""Times that the predicted time on the network and in the queue are counted. `policies.priced` has
margins of 1.5 and 1.8: rates drift, and more urgent requests come later."""

_WORK, _AT = range(2)


@jit_no_refcount(inline=True)
def workers_up(belief: Belief) -> float:
    """Workers of the servers that are connected and take requests."""
    workers = 0.0
    for s in range(belief.servers.size):
        server = belief.servers[s]
        if server.connected > 0.0 and server.draining <= 0.0:
            workers += server.workers
    return workers


@jit_no_refcount(inline=True)
def offered_lately(belief: Belief, now: float) -> float:
    """Worker seconds in the bucket at `now`."""
    drained = HALF * workers_up(belief) * max(0.0, now - belief.lately[_AT])
    level: float = max(0.0, belief.lately[_WORK] - drained)
    return level


@jit_no_refcount(inline=True)
def offer(belief: Belief, work: float, now: float) -> None:
    """Put the work of a request (< 0: of one that is withdrawn) into the bucket."""
    belief.lately[_WORK] = max(0.0, offered_lately(belief, now) + work)
    belief.lately[_AT] = now


@jit_no_refcount(inline=True)
def offer_shed(belief: Belief, table: CandidateTable, now: float) -> None:
    """Put the least work that the table's request would have taken into the bucket."""
    least = math.inf
    for r in range(table.mask.size - 1):
        if table.mask[r] != 0:
            least = min(least, table.rows.service_time[r])
    if least < math.inf:
        offer(belief, least, now)


@jit_no_refcount(inline=True)
def mean_service_time(belief: Belief) -> float:
    """Mean service time of the fleet's services, s."""
    total = 0.0
    for k in range(belief.services.size):
        total += belief.services[k].service_time
    mean: float = total / max(1, belief.services.size)
    return mean


@jit_no_refcount
def nobody_waits(belief: Belief, now: float) -> bool:
    """Whether all requests that wait on any server will be done soon (`BRIEF`)."""
    for s in range(belief.servers.size):
        server = belief.servers[s]
        if server.jobs == 0:
            continue
        jobs = belief.jobs[s]
        work = 0.0
        first_due = math.inf
        for j in range(server.jobs):
            work += jobs[j].work
            first_due = min(first_due, jobs[j].deadline)
        done = water_level(belief.free[s], int(server.workers), now, work)
        if done - now > BRIEF * (first_due - now):
            return False
    return True


@jit_no_refcount(inline=True)
def fits(belief: Belief, table: CandidateTable, r: int) -> bool:
    """Whether row `r` answers in time with a margin, over a link that carries nothing else."""
    context, rows = table.context, table.rows
    network = rows.until_input[r] + rows.return_time[r]
    late = rows.latency[r] + (NETWORK - 1.0) * network + (WAIT - 1.0) * rows.wait[r]
    if late > context.deadline:
        return False
    if rows.local[r] != 0.0:
        return True
    link = belief.links[belief.path[int(context.ingress), int(rows.server[r])]]
    drained = rows.size[r] / rows.transfer[r] * max(0.0, context.now - link.backlog_at)
    return link.backlog <= drained  # type: ignore[no-any-return]


@jit_no_refcount
def keep_if_idle(belief: Belief, table: CandidateTable) -> bool:
    """Overrule the scores of a table by which its request would be shed, if the fleet is idle.

    Rows that do not fulfil the conditions get a score of −inf, and so does shed if a row does.
    Returns whether one does. `belief` is the one that the table was filled from, at the same time.
    """
    shed = table.mask.size - 1
    if best_row(table) != shed:
        return False
    now = table.context.now
    span = max(LEAST_SPAN, SPAN * workers_up(belief)) * mean_service_time(belief)
    room = span - offered_lately(belief, now)
    if room <= 0.0 or not nobody_waits(belief, now):
        return False
    scores = table.scores
    found = False
    for r in range(shed):
        if table.mask[r] == 0 or scores[r] == -math.inf:
            continue
        if table.rows.service_time[r] <= room and fits(belief, table, r):
            found = True
        else:
            scores[r] = -math.inf
    if found:
        scores[shed] = -math.inf
    return found
