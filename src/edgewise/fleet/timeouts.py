"""How long an ingress waits for a peer's answer, and when it runs a request itself after a failure.
Compiled; simulator and nodes share this.

A slow peer may still answer late and score, and another transfer over the same uplink would add to
the congestion. So the ingress gives a peer up only when its answer would be worth little. Then the
ingress runs the request itself, if that pays.

Under earliest deadline first, a request past its deadline precedes all others. A fleet that runs
requests worth a quarter before requests worth everything is late with all of them (measured on the
preset three-sites with round_robin: 20 % in time instead of half). So the ingress does not run a
request that would finish too late for half of its worth while others wait for the worker.
"""

from __future__ import annotations

from edgewise.compile import jit_no_refcount
from edgewise.score import worthless_after

PEER_PATIENCE = 0.5
"""s past the deadline after which a peer is given up in any case. A peer that vanished silently
must not delay a request more than a second past its deadline."""
LAST_PART = 0.25
"""The last part of the grace, as a share. An answer in it is worth less than a quarter, so a run at
the ingress is as promising."""
DECISION_PATIENCE = 0.25
"""Share of the deadline for which a node waits for a command. A decision takes 5 ms at p99. A
balancer that takes a quarter of the deadline is stuck, and longer waiting leaves no time to act."""
PHOTO_PATIENCE, PHOTO_PERIODS = 0.2, 2.0
"""s, and report periods, after a decision on a client's metadata, by when the ingress should have
said that the photo has begun; the longer one holds. Metadata and photo leave the client together.
One that is later than this on a slow way is left out of the belief until it comes, which costs
little; a photo that was lost keeps other requests out for as long as it counts."""
HEARTBEAT = 4.0
"""s between a node's pings to the balancer. A balancer that does not answer one within half of this
counts as gone; a stalled event loop on a busy machine answers sooner."""
SIGN_PERIOD = 1.0
"""s between the signs of life that a node asks of a peer: ten samples in the window of the least
round trip (`live.wire.round_trips`)."""
SIGN_PATIENCE = 2.0
"""Such periods after which a sign of life counts as missing."""
SIGNS_CLOSELY = 10.0
"""Times as often that peers are asked while no balancer tells of them; also the parts of a period
within which a node asks its peers for the first time, one after the other."""
RETRY_MIN, RETRY_MAX = 0.1, 2.0
"""s between attempts to reconnect to a balancer, doubling from the first to the second: a restarted
balancer is found quickly, and an absent one costs little. Each pause is drawn between half and one
and a half of its value, so that the nodes of a fleet do not reconnect in step."""
FLEET_PERIOD = 1.0
"""s between the balancer's messages to every node with the other nodes' last reports. So a node
that loses its balancer starts from reports that are no older than this."""
RESERVE_FACTOR, RESERVE_MIN = 2.0, 0.02
"""Time reserved for a run at the ingress: this multiple of its work, plus this many s for a busy
machine."""
HALF_WORTH = 0.5
"""Share of the grace after which an answer is worth less than half of one in time."""


@jit_no_refcount
def first_sign(s: int, peer: int, servers: int) -> float:
    """s after its start at which server `s` of `servers` asks `peer` for the first sign of life."""
    place = peer if peer > s else peer + 1
    return SIGN_PERIOD * place / (SIGNS_CLOSELY * (servers - 1))


@jit_no_refcount(inline=True)
def give_up_at(due: float, deadline: float, grace: float, work: float) -> float:
    """The time at which to give a peer up.

    `due` is the absolute deadline, `deadline` the same in s from sending, `grace` in deadlines;
    `work` the s that the ingress needs to run the request itself, NaN if none of its services is
    accurate enough.
    """
    late = worthless_after(deadline, grace) - deadline
    reserve = 0.0
    if work == work:
        reserve = max(RESERVE_FACTOR * work + RESERVE_MIN, LAST_PART * late)
    return min(due + late - reserve, due + PEER_PATIENCE)


@jit_no_refcount
def worth_running(done: float, due: float, deadline: float, grace: float, idle: bool) -> bool:
    """Whether the ingress runs a request that others have failed, if it would finish at `done`.

    `due`, `deadline` and `grace` as in `give_up_at`; `idle`: a worker has nothing else to do.
    """
    part = 1.0 if idle else HALF_WORTH
    return done <= due + part * (worthless_after(deadline, grace) - deadline)


def photo_patience(report_period: float) -> float:
    """s after a decision for which it counts without a word of its ingress."""
    return max(PHOTO_PATIENCE, PHOTO_PERIODS * report_period)
