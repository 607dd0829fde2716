"""How long an ingress waits for a peer, and what it does then. Compiled; simulator and nodes both
call this.

A peer that is slow and alive may answer late and still score, and trying another over the same
uplink would add to the jam: so it is given up only when its answer would be worth little. What can
be done then is done by the ingress itself, if that pays. Under earliest deadline first a request
past its deadline goes before all others: a fleet that runs what is worth a quarter before what is
worth everything is late with everything (measured on the preset three-sites with round_robin: 20 %
in time instead of half). So a run that comes too late for half of its worth takes no worker that
anybody else waits for.
"""

from __future__ import annotations

from edgewise.compile import jit_no_refcount
from edgewise.score import worthless_after

PEER_PATIENCE = 0.5
"""s past the deadline that a peer's answer is waited for: one that vanished without a word must not
hold its requests longer than a second past their deadlines."""
LAST_PART = 0.25
"""Of the grace: an answer in it is worth less than a quarter, so a run at the ingress is as good a
hope."""
DECISION_PATIENCE = 0.25
"""Of the deadline, that a command is waited for. A decision takes 5 ms at p99; a balancer that
takes a quarter of the deadline is stuck, and more waiting leaves no time to act."""
HEARTBEAT = 4.0
"""s between signs of life asked of the balancer; one that takes half of it to give one is gone. A
stalled event loop on a busy machine is not."""
RETRY_MIN, RETRY_MAX = 0.1, 2.0
"""s between attempts to find a balancer again, doubling: one that restarts is found at once, one
that stays away costs nothing. Each is drawn from half to one and a half of it, so that a fleet does
not come back in step."""
FLEET_PERIOD = 1.0
"""s between the balancer's messages to every node of what the others last reported: what a node
that is left alone begins with is no older."""
RESERVE_FACTOR, RESERVE_MIN = 2.0, 0.02
"""Of the work that a run at the ingress takes, and s: for a machine that is busy."""
HALF_WORTH = 0.5
"""Of the grace, from which on a run is worth less than half of one in time."""


@jit_no_refcount(inline=True)
def give_up_at(due: float, deadline: float, grace: float, work: float) -> float:
    """When to stop waiting for a peer.

    `due` is absolute, `deadline` s, `grace` in deadlines; `work` s that the ingress needs to run
    the request itself, NaN if it has no service that is good enough.
    """
    late = worthless_after(deadline, grace) - deadline
    reserve = 0.0
    if work == work:
        reserve = max(RESERVE_FACTOR * work + RESERVE_MIN, LAST_PART * late)
    return min(due + late - reserve, due + PEER_PATIENCE)


@jit_no_refcount
def worth_running(done: float, due: float, deadline: float, grace: float, idle: bool) -> bool:
    """Whether the ingress runs a request that others failed at, and would finish at `done`.

    `idle`: a worker has nothing else to do.
    """
    part = 1.0 if idle else HALF_WORTH
    return done <= due + part * (worthless_after(deadline, grace) - deadline)
