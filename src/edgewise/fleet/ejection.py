"""Which servers and paths are ejected: left out of what the belief calls admissible. Compiled.

Theory of operation
-------------------
A *target* is a server, or the path from an ingress to a server. Ingresses say how each of their
attempts at a request ended (`on_attempt`), and which peers give no sign of life (`on_signs`). From
this a target that fails is *ejected*: policies do not see its rows, so every policy has it.

- It is ejected after some failures in a row, at a large share of failures among its last requests,
  or (a path) when its peer gives no sign of life several times in a row.
- Its time-out doubles with each ejection and varies by a quarter, by a hash.
- After the time-out its rows are admissible again, for one request at a time: a *probe*. No probe
  goes out on a path whose last sign of life was missing. Some good probes in a row end the
  ejection; for a path, as many signs of life do, which cost no request. A failed probe begins the
  next time-out.
- Then it returns by a slow start: its rows are admissible for a growing share of the requests.
- A set share of the servers may be ejected at a time, but always one. Paths have no such limit: an
  ingress whose uplink is out must do without all of them.
- If all candidates of a request are ejected, they are all admissible for it, and this is counted.

Whose failure it is
-------------------
An error is the server's. A connection that breaks is the path's. A missing answer may just be late,
so it counts only if the photo was complete at the ingress, the decision expected an answer in time
(`attempt_fault`), and nothing else is seen to work:

- A payload that was not delivered in time is a failure of the path, unless the path has brought an
  answer since that request was decided, or its link has completed a transfer: then it is slow.
- An answer that is missing although the server has the payload is a failure of the server, if by a
  recent report it has served nobody for longer than that.

Refusals and bad requests are no failures. A request that was decided before its target's present
state began says nothing about that state.

While nothing fails, a decision costs one comparison, and so does a good answer.

Invariants: every change of state is counted in `changes`; `active` counts the targets that are not
WELL; the same calls lead to the same state.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import EJECTED, RETURNING, WELL, Belief
from edgewise.fleet.rng import nth_uniform
from edgewise.fleet.table import CandidateTable

ANSWERED, ERROR, UNANSWERED, UNREACHABLE, UNDELIVERED, REFUSED, BAD_REQUEST, LATE = range(8)
"""How an attempt ended: `domain.Fault`, in its order, after ANSWERED; LATE: without an answer in
time, as was to be expected."""

IN_A_ROW, SHARE, NO_SIGN, PROBE = range(4)
REASONS = (
    "failures in a row",
    "a large share of failures",
    "no sign of life",
    "a failed probe",
)
"""Reasons of an ejection."""

FAILING_MEMORY = 0.1
"""Weight of one request in the share of failures: about the last ten."""
FORGOTTEN = 0.01
"""A share of failures below this counts as none."""
JITTER = 0.25
"""Share by which a time-out varies in both directions, so that targets ejected together do not
return together."""
LEAST_SHARE = 0.1
"""Share of the requests at the beginning of a slow start."""
STUCK = 3.0
"""Multiple of a server's longest service time. A server that serves nobody for this long is stuck:
slow spells and noise seldom make a service take three times as long."""
PROBE_PATIENCE = 5.0
"""s after its deadline until a probe without an outcome is given up (as `intake.FORGET_AFTER`)."""


# -- evidence ------------------------------------------------------------------------------------


@jit_no_refcount(inline=True)
def attempt_fault(fault: int, uploaded: bool, predicted: float, deadline: float) -> int:
    """`fault`, or LATE if an answer that is missing says nothing.

    `uploaded`: the photo was complete at the ingress; `predicted`: the latency (s) expected when
    the request was decided; `deadline` in s from sending.
    """
    missing = fault in (UNANSWERED, UNDELIVERED)
    return LATE if missing and not (uploaded and predicted <= deadline) else fault


@jit_no_refcount(inline=True)
def on_attempt(
    belief: Belief, ingress: int, s: int, fault: int, decided_at: float, now: float
) -> None:
    """Take in how an attempt of `ingress` at server `s` ended, of a request decided at `decided_at`
    (s). `fault` is one of the above."""
    if fault == ANSWERED:
        on_good(belief, belief.servers.size, s, decided_at, now)
        if ingress != s:
            on_good(belief, ingress, s, decided_at, now)
    else:
        on_fault(belief, ingress, s, fault, decided_at, now)


@jit_no_refcount(inline=True)
def on_good(belief: Belief, a: int, s: int, decided_at: float, now: float) -> None:
    """Take in a good answer of target [a, s]."""
    target = belief.targets[a, s]
    target.good_at = now
    if target.watched != 0:
        on_good_watched(belief, a, s, decided_at, now)


@jit_no_refcount
def on_good_watched(belief: Belief, a: int, s: int, decided_at: float, now: float) -> None:
    """Take in a good answer of a target that has failed lately."""
    target = belief.targets[a, s]
    if decided_at < target.since:
        return
    if target.state == EJECTED:
        end_probe_of(belief, a, s, decided_at)
        target.good += 1
        if target.good >= belief.ejection[0].probes:
            bring_back(belief, a, s, now)
        return
    target.failures = 0
    target.failing -= FAILING_MEMORY * target.failing
    if target.state == WELL and target.failing < FORGOTTEN:
        target.failing = 0.0
        target.watched = 0


@jit_no_refcount
def on_fault(
    belief: Belief, ingress: int, s: int, fault: int, decided_at: float, now: float
) -> None:
    """Take in an attempt without an answer."""
    own = belief.servers.size
    remote = ingress != s
    of_server = fault == ERROR
    of_path = fault == UNREACHABLE
    if fault == UNDELIVERED and remote:
        link = belief.links[belief.path[ingress, s]]
        works = belief.targets[ingress, s].good_at >= decided_at or link.rate_at >= decided_at
        of_path = not works
    elif fault == UNANSWERED and belief.servers[s].report_at > 0.5 * (decided_at + now):
        of_server = is_stuck(belief, s, decided_at)
    if of_server:
        on_failure(belief, own, s, decided_at, now)
    else:
        end_probe_of(belief, own, s, decided_at)
    if not remote:
        return
    if of_path:
        on_failure(belief, ingress, s, decided_at, now)
    elif fault in (ERROR, REFUSED, BAD_REQUEST):  # the path has brought this answer
        on_good(belief, ingress, s, decided_at, now)
    else:
        end_probe_of(belief, ingress, s, decided_at)


@jit_no_refcount
def is_stuck(belief: Belief, s: int, decided_at: float) -> bool:
    """Whether server `s`, by its last report, has served nobody since `decided_at`, nor for `STUCK`
    times its longest service time."""
    longest = 0.0
    for k in range(belief.first[s], belief.first[s + 1]):
        longest = max(longest, belief.services[k].service_time)
    target = belief.targets[belief.servers.size, s]
    idle: float = belief.servers[s].report_at - target.served_at
    stuck: bool = target.served_at < decided_at and idle >= STUCK * longest
    return stuck


@jit_no_refcount
def on_failure(belief: Belief, a: int, s: int, decided_at: float, now: float) -> None:
    """Take in a failure of target [a, s]."""
    target = belief.targets[a, s]
    settings = belief.ejection[0]
    if decided_at < target.since:
        return
    target.watched = 1
    if target.state == EJECTED:
        if now >= target.until:
            target.good = 0
            start_timeout(belief, a, s, now, PROBE)
            settings.changes += 1
        return
    target.failures += 1
    target.failing += FAILING_MEMORY * (1.0 - target.failing)
    if target.failures >= settings.failures:
        eject(belief, a, s, now, IN_A_ROW)
    elif target.failing >= settings.failing:
        eject(belief, a, s, now, SHARE)


@jit_no_refcount
def on_served(belief: Belief, s: int, served: int, at: float) -> None:
    """Take in how many requests server `s` has served, by its report of time `at`."""
    target = belief.targets[belief.servers.size, s]
    if served != target.served or not (target.served_at <= at):
        target.served = served
        target.served_at = at


@jit_no_refcount
def on_signs(belief: Belief, ingress: int, s: int, signs: int, now: float) -> None:
    """Take in the signs of life that `s` gave to `ingress`, by the newest report of `ingress`.

    `signs` counts those given in a row; negative: those not given in a row.
    """
    target = belief.targets[ingress, s]
    settings = belief.ejection[0]
    before = target.signs
    if signs != before:
        # What is new since the report before. A count that has begun anew is all new.
        new = abs(signs)
        if (signs > 0) == (before > 0) and new > abs(before):
            new -= abs(before)
        target.signs = signs
        if signs > 0:
            target.unanswered = 0
            target.good += new if target.state == EJECTED else 0
        elif signs < 0:
            target.unanswered += new
            target.good = 0
            if target.unanswered >= settings.unanswered and target.state != EJECTED:
                eject(belief, ingress, s, now, NO_SIGN)
    if target.state == EJECTED and target.good >= settings.probes and now >= target.until:
        bring_back(belief, ingress, s, now)


# -- changes of state ----------------------------------------------------------------------------


@jit_no_refcount
def eject(belief: Belief, a: int, s: int, now: float, reason: int) -> None:
    """Eject target [a, s], unless it is a server and too many are ejected already."""
    target = belief.targets[a, s]
    settings = belief.ejection[0]
    if a == belief.servers.size:
        if settings.servers >= settings.servers_max:
            return
        settings.servers += 1
    if target.state == WELL:
        settings.active += 1
    # Every time-out's length without a failure makes the next one shorter again.
    if target.times > 0:
        calm = (now - target.since) / timeout(belief, target.times - 1)
        target.times = max(0, target.times - int(min(calm, 64.0)))
    target.state = EJECTED
    target.watched = 1
    target.since = now
    target.good = 0
    target.failures = 0
    target.failing = 0.0
    target.unanswered = 0
    start_timeout(belief, a, s, now, reason)
    settings.changes += 1


@jit_no_refcount
def start_timeout(belief: Belief, a: int, s: int, now: float, reason: int) -> None:
    """Begin the next time-out of an ejected target."""
    target = belief.targets[a, s]
    count = belief.servers.size
    vary = 1.0 + JITTER * (2.0 * nth_uniform(a * count + s, target.count) - 1.0)
    target.until = now + vary * timeout(belief, target.times)
    target.probing_until = -math.inf
    target.times += 1
    target.count += 1
    target.reason = reason


@jit_no_refcount(inline=True)
def timeout(belief: Belief, times: int) -> float:
    """The length of a time-out (s) after `times` others, before it is varied."""
    settings = belief.ejection[0]
    length: float = min(settings.timeout * 2.0 ** min(times, 64), settings.timeout_max)
    return length


@jit_no_refcount
def bring_back(belief: Belief, a: int, s: int, now: float) -> None:
    """End the ejection of target [a, s]; a slow start begins."""
    target = belief.targets[a, s]
    settings = belief.ejection[0]
    if a == belief.servers.size:
        settings.servers -= 1
    target.state = RETURNING
    target.since = now
    target.until = now + settings.slow_start
    target.probing_until = -math.inf
    target.unanswered = 0
    target.good = 0
    target.credit = 0.0
    settings.changes += 1


@jit_no_refcount
def forget_target(belief: Belief, a: int, s: int) -> None:
    """Forget all that is known of the failures of target [a, s]. Its count of ejections stays, and
    so do the signs of life last reported, which would otherwise count again."""
    target = belief.targets[a, s]
    settings = belief.ejection[0]
    if target.state != WELL:
        settings.active -= 1
        settings.changes += 1
        if target.state == EJECTED and a == belief.servers.size:
            settings.servers -= 1
    target.state = WELL
    target.watched = 0
    target.since = -math.inf
    target.failures = 0
    target.failing = 0.0
    target.unanswered = 0
    target.times = 0


@jit_no_refcount
def forget_server(belief: Belief, s: int) -> None:
    """Forget the failures of server `s`, which has restarted, and of the paths to and from it."""
    count = belief.servers.size
    forget_target(belief, count, s)
    for other in range(count):
        forget_target(belief, s, other)
        forget_target(belief, other, s)


# -- decisions -----------------------------------------------------------------------------------


@jit_no_refcount(inline=True)
def is_ejected(belief: Belief, ingress: int, s: int) -> bool:
    """Whether server `s`, or the path to it from `ingress`, is ejected."""
    here: bool = belief.targets[belief.servers.size, s].state == EJECTED
    way: bool = belief.targets[ingress, s].state == EJECTED
    return here or way


@jit_no_refcount(inline=True)
def only_for_probe(belief: Belief, ingress: int, s: int) -> bool:
    """Whether `s` may only be a request's first choice, as a probe, and no alternative.

    For the request that was observed last.
    """
    settings = belief.ejection[0]
    if settings.active == 0 or settings.all_barred != 0:
        return False
    return is_ejected(belief, ingress, s)


FREE, HELD_BACK, BARRED = range(3)
"""A target for one request: admissible, held back by a slow start, or ejected."""


@jit_no_refcount
def bar(belief: Belief, table: CandidateTable, now: float) -> int:
    """Mask the rows of `table` whose server or path is ejected; returns how many rows besides shed
    stay admissible."""
    settings = belief.ejection[0]
    own = belief.servers.size
    ingress = int(table.context.ingress)
    rows, mask = table.rows, table.mask
    shed = mask.size - 1
    for s in range(own):
        level = level_of(belief, own, s, now)
        if s != ingress:
            level = max(level, level_of(belief, ingress, s, now))
        belief.targets[own, s].barred = level
    settings.all_barred = 0
    least = BARRED + 1
    for r in range(shed):
        if mask[r] != 0:
            least = min(least, belief.targets[own, int(rows.server[r])].barred)
    if least > BARRED:
        return 0
    if least == BARRED:
        settings.all_barred = 1
        settings.all_barred_count += 1
    admissible = 0
    for r in range(shed):
        if mask[r] != 0:
            if belief.targets[own, int(rows.server[r])].barred > least:
                mask[r] = 0
            else:
                admissible += 1
    for s in range(own):
        if belief.targets[own, s].barred > least:
            table.servers[s].up = 0.0
    return admissible


@jit_no_refcount
def level_of(belief: Belief, a: int, s: int, now: float) -> int:
    """Whether target [a, s] is FREE, HELD_BACK or BARRED for a request decided now."""
    target = belief.targets[a, s]
    if target.state == WELL:
        return FREE
    if target.state == EJECTED:
        ready = now >= target.until and now >= target.probing_until and target.signs >= 0
        return FREE if ready else BARRED
    if now >= target.until:  # the slow start is over
        target.state = WELL
        belief.ejection[0].active -= 1
        return FREE
    share = (now - target.since) / (target.until - target.since)
    target.credit = min(1.0, target.credit) + max(LEAST_SHARE, share)
    if target.credit < 1.0:
        return HELD_BACK
    target.credit -= 1.0
    return FREE


@jit_no_refcount
def on_chosen(belief: Belief, ingress: int, s: int, deadline: float, now: float) -> None:
    """Note that a request decided now, with that absolute `deadline`, goes to `s`: to an ejected
    one, it is the only probe until its outcome is known."""
    if belief.ejection[0].all_barred != 0:
        return
    until = deadline + PROBE_PATIENCE
    own = belief.targets[belief.servers.size, s]
    if own.state == EJECTED:
        own.probe_at = now
        own.probing_until = until
    path = belief.targets[ingress, s]
    if ingress != s and path.state == EJECTED:
        path.probe_at = now
        path.probing_until = until


@jit_no_refcount
def end_probe(belief: Belief, ingress: int, s: int, decided_at: float) -> None:
    """Note that a request decided at `decided_at` no longer counts as a probe of `s`."""
    end_probe_of(belief, belief.servers.size, s, decided_at)
    end_probe_of(belief, ingress, s, decided_at)


@jit_no_refcount(inline=True)
def end_probe_of(belief: Belief, a: int, s: int, decided_at: float) -> None:
    """Do as `end_probe` for one target."""
    target = belief.targets[a, s]
    if target.probe_at == decided_at:
        target.probing_until = -math.inf
