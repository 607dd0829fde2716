"""What the learned policy looks at: the candidate table in numbers of one size. Compiled.

Every feature is a fixed function of the table (no statistics of a training set in it) and most lie
in [−1, 1]: a quantity x ≥ 0 with the natural scale a becomes x / (a + x), which is linear below a
and never explodes; a signed one x / (1 + |x|). `PHI` belong to a server, `PSI` to a row, `OMEGA` to
the request.

*Memory.* Bandwidth is measured when something is transferred, and what is known then grows old
until the next time. What the table says of a link is that one number and its age; how much it moves
and where it usually is, the policy remembers by itself, per ingress: a slow mean of the logarithm
of the measured rates, and an EWMA of the absolute steps between them. So a link that has just
dropped to a tenth, and one that always was this slow, look different.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Record
from edgewise.fleet.table import RATE_AGE_MAX, CandidateTable
from edgewise.policies.base import Memory, record_of
from edgewise.policies.priced import fleet_load, load_of

PHI = {
    "one": "1",
    "utilisation": "reported, 0–1",
    "offered_1s": "offered over 1 s; scale 1",
    "offered_5s": "offered over 5 s; scale 1",
    "backlog": "until its workers are through; scale 0.3 s",
    "captive": "share of its workers that its own ingress asks for, all served cheaply; scale 1",
    "fleet": "mean load of the fleet; scale 1",
    "fleet_backlog": "mean backlog of the fleet; scale 0.3 s",
    "workers": "log2 of the count, halved, less ½",
    "speed": "log of the speed over the fleet's mean, signed",
    "deadline": "log of the deadline over 0.5 s, signed",
    "demanded": "accuracy, less ½",
    "local": "1 if it is the ingress",
    "report_age": "scale 0.3 s",
    "failure": "share of failed answers",
    "trend": "offered over 1 s less that over 5 s, signed",
    "in_flight": "requests believed there per worker; scale 4",
    "link_backlog": "scale 0.3 s; 0 for the ingress itself",
    "rate_age": "scale 1 s; 0 for the ingress itself",
    "rate": "log of the link's rate over 1 MB/s, signed; 0 for the ingress itself",
    "rate_moves": "EWMA of steps of the log rate, of the ingress's links; scale 1",
    "rate_off": "log of the rate over its slow mean, of the ingress's links, signed",
    "loaded_deadline": "load × deadline feature: who waits long is overtaken often (EDF)",
    "aged_moves": "rate_moves × rate_age",
}
PSI = {
    "service": "its service time in deadlines; scale 1",
    "dearer": "log of its service seconds × speed over the cheapest admissible one's; scale 2",
    "accuracy": "less ½",
    "surplus": "accuracy above the demanded",
    "form": "1 model-ready",
    "late": "log of predicted latency over deadline, signed",
}
OMEGA = {
    "one": "1",
    "fleet": "mean load of the fleet; scale 1",
    "fleet_backlog": "mean backlog; scale 0.3 s",
    "deadline": "log of the deadline over 0.5 s, signed",
    "demanded": "accuracy, less ½",
    "trend": "mean over the servers that are up, by capacity",
    "elapsed": "in deadlines",
    "rate_moves": "as above",
}

SERVER_FEATURES = record_of(list(PHI))
ROW_FEATURES = record_of(list(PSI))
REQUEST_FEATURES = record_of(list(OMEGA))

REMEMBERED = (
    ("log_rate", "f8"),  # last measured; 0: none yet
    ("slow_rate", "f8"),  # its slow mean
    ("rate_moves", "f8"),  # EWMA of the absolute steps between measurements
    ("measured_at", "f8"),  # when the newest was made, s on the balancer's clock
)
"""Kept for each server, as ingress."""
SLOW = 0.1
"""Weight of a new measurement in the slow mean: ten of them, some seconds of a link in use."""
MOVES = 0.2
"""Weight of a new step in the mean step: five."""
SAME = 1e-6
"""s. Closer together, two measurements are one: now − age rounds."""


@jit_no_refcount(inline=True)
def squash(x: float, scale: float) -> float:
    """x ≥ 0 to [0, 1)."""
    return x / (scale + x)


@jit_no_refcount(inline=True)
def signed(x: float) -> float:
    """To (−1, 1)."""
    return x / (1.0 + abs(x))


@jit_no_refcount(inline=True)
def remember(table: CandidateTable, memory: Memory) -> None:
    """Take in what the table says of the ingress's links.

    A rate that was never measured is a prior, and says nothing. The mean is over the links, of
    which there is one where they share an uplink.
    """
    ingress = int(table.context.ingress)
    known = memory.servers[ingress]
    youngest = RATE_AGE_MAX
    for s in range(table.servers.size):
        server = table.servers[s]
        if s != ingress and server.rate > 0.0:
            youngest = min(youngest, server.rate_age)
    measured_at = table.context.now - youngest
    # The rate the table has fades with its age; only a new measurement is a step.
    if youngest >= RATE_AGE_MAX or (
        known.log_rate != 0.0 and measured_at <= known.measured_at + SAME
    ):
        return
    total = 0.0
    count = 0
    for s in range(table.servers.size):
        server = table.servers[s]
        if s != ingress and server.rate > 0.0 and server.rate_age < RATE_AGE_MAX:
            total += math.log(server.rate)
            count += 1
    now = total / count
    if known.log_rate == 0.0:
        known.slow_rate = now
    else:
        known.slow_rate += SLOW * (now - known.slow_rate)
        known.rate_moves += MOVES * (abs(now - known.log_rate) - known.rate_moves)
    known.log_rate = now
    known.measured_at = measured_at


@jit_no_refcount(inline=True)
def describe_request(table: CandidateTable, memory: Memory, omega: Record) -> None:
    """Fill in the features of the request; after `remember`."""
    context = table.context
    capacity = 0.0
    backlog = 0.0
    trend = 0.0
    for s in range(table.servers.size):
        server = table.servers[s]
        if server.up > 0.0:
            weight = server.workers * server.speed
            capacity += weight
            backlog += weight * server.backlog
            trend += weight * (server.offered_1s - server.offered_5s)
    if capacity > 0.0:
        backlog /= capacity
        trend /= capacity
    omega.one = 1.0
    omega.fleet = squash(fleet_load(table), 1.0)
    omega.fleet_backlog = squash(backlog, 0.3)
    omega.deadline = signed(math.log(context.deadline / 0.5))
    omega.demanded = context.accuracy - 0.5
    omega.trend = signed(trend)
    omega.elapsed = squash(max(0.0, context.elapsed / context.deadline), 1.0)
    omega.rate_moves = squash(memory.servers[int(context.ingress)].rate_moves, 1.0)


@jit_no_refcount(inline=True)
def mean_speed(table: CandidateTable) -> float:
    """Mean speed of the servers that are up."""
    total = 0.0
    count = 0
    for s in range(table.servers.size):
        if table.servers[s].up > 0.0:
            total += table.servers[s].speed
            count += 1
    return total / count if count > 0 else 1.0


@jit_no_refcount(inline=True)
def describe_server(
    table: CandidateTable,
    memory: Memory,
    omega: Record,
    s: int,
    cheapest: float,
    mean: float,
    phi: Record,
) -> None:
    """Fill in the features of server `s`.

    `cheapest` s: the shortest service time of its admissible rows, 0 if it has none; `mean` is
    `mean_speed`.
    """
    server = table.servers[s]
    ingress = int(table.context.ingress)
    phi.one = 1.0
    phi.utilisation = server.utilisation
    phi.offered_1s = squash(server.offered_1s, 1.0)
    phi.offered_5s = squash(server.offered_5s, 1.0)
    phi.backlog = squash(max(0.0, server.backlog), 0.3)
    phi.captive = squash(server.demand_1s * cheapest / server.workers, 1.0)
    phi.fleet = omega.fleet
    phi.fleet_backlog = omega.fleet_backlog
    phi.workers = 0.5 * math.log2(server.workers) - 0.5
    phi.speed = signed(math.log(server.speed / mean))
    phi.deadline = omega.deadline
    phi.demanded = omega.demanded
    phi.report_age = squash(max(0.0, server.report_age), 0.3)
    phi.failure = server.failure
    phi.trend = signed(server.offered_1s - server.offered_5s)
    phi.in_flight = squash(max(0.0, server.rif) / server.workers, 4.0)
    phi.loaded_deadline = min(2.0, load_of(server)) * omega.deadline
    if s == ingress:
        phi.local = 1.0
        phi.link_backlog = 0.0
        phi.rate_age = 0.0
        phi.rate = 0.0
        phi.rate_moves = 0.0
        phi.rate_off = 0.0
        phi.aged_moves = 0.0
        return
    known = memory.servers[ingress]
    phi.local = 0.0
    phi.link_backlog = squash(server.link_backlog, 0.3)
    phi.rate_age = squash(max(0.0, server.rate_age), 1.0)
    phi.rate = signed(math.log(max(1.0, server.rate) / 1e6))
    phi.rate_moves = omega.rate_moves
    phi.rate_off = signed(known.log_rate - known.slow_rate) if known.log_rate != 0.0 else 0.0
    phi.aged_moves = omega.rate_moves * phi.rate_age


@jit_no_refcount(inline=True)
def cheapest_work(table: CandidateTable) -> float:
    """Service seconds × speed of the cheapest admissible row, s at speed 1; 0 if there is none."""
    least = math.inf
    for r in range(table.mask.size - 1):
        if table.mask[r] != 0:
            speed = table.servers[int(table.rows.server[r])].speed
            least = min(least, table.rows.service_time[r] * speed)
    return least if least < math.inf else 0.0


@jit_no_refcount(inline=True)
def describe_row(table: CandidateTable, r: int, least: float, psi: Record) -> None:
    """Fill in the features of an admissible row; `least` is `cheapest_work`."""
    rows, context = table.rows, table.context
    deadline = context.deadline
    work = rows.service_time[r] * table.servers[int(rows.server[r])].speed
    psi.service = squash(rows.service_time[r] / deadline, 1.0)
    psi.dearer = squash(math.log(work / least), 2.0) if work > least else 0.0
    psi.accuracy = rows.accuracy[r] - 0.5
    psi.surplus = rows.accuracy[r] - context.accuracy
    psi.form = rows.form[r]
    psi.late = signed(math.log(max(1e-6, rows.latency[r]) / deadline))


@jit_no_refcount(inline=True)
def cheapest_service(table: CandidateTable, first: int) -> float:
    """Shortest service time among the admissible rows of a server; `first` is its first one."""
    s = table.rows.server[first]
    least = table.rows.service_time[first]
    for r in range(first + 1, table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        if table.rows.server[r] != s:
            break
        least = min(least, table.rows.service_time[r])
    return least  # type: ignore[no-any-return]
