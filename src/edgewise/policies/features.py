"""The features of the learned policy: the candidate table in numbers of similar size. Compiled.

Every feature is a fixed function of the table and uses no statistics of a training set. Most lie in
[−1, 1]. A quantity x ≥ 0 with the natural scale a becomes x / (a + x), which is nearly linear below
a and never exceeds 1; a signed quantity becomes x / (1 + |x|); x compared with a becomes
(x − a) / (x + a), which is tanh(½ log(x / a)).

No feature has a unit. Times are compared with deadlines: with that of the request, or with the
usual one that `priced.Units` measures.

*Memory.* A link's bandwidth is measured only when something is transferred, so the measurement ages
until the next transfer. The table has the last measurement and its age. The policy itself remembers
how much the rate varies and where it usually lies, for each ingress: a slow mean of the logarithm
of the measured rates, and an EWMA of the absolute steps between them. These tell a link that has
just dropped to a tenth from one that has always been this slow.
"""

from __future__ import annotations

import math

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Record
from edgewise.fleet.table import RATE_AGE_MAX, CandidateTable
from edgewise.policies.base import Memory, record_of
from edgewise.policies.priced import FRESH_DEADLINES, Units, fleet_load, load_of

SERVER_FEATURES = {
    "one": "1",
    "utilisation": "as reported, 0–1",
    "offered_1s": "load offered over the last 1 s; scale 1",
    "offered_5s": "load offered over the last 5 s; scale 1",
    "backlog": "time until its workers are done; scale a usual deadline",
    "captive": "share of its workers that its own clients need at the cheapest service; scale 1",
    "fleet": "mean load of the fleet; scale 1",
    "fleet_backlog": "mean backlog of the fleet; scale a usual deadline",
    "workers": "their number compared with 1",
    "speed": "its speed compared with the fleet's mean",
    "deadline": "the deadline compared with a usual one",
    "demanded": "accuracy that the request demands, less ½",
    "local": "1 if it is the ingress",
    "report_age": "age of its last report; scale a usual deadline",
    "failure": "share of failed answers",
    "trend": "load offered over 1 s less that over 5 s, signed",
    "in_flight": "requests believed to wait or run, per worker; scale 4",
    "link_backlog": "backlog of the link to it; scale a usual deadline; 0 for the ingress itself",
    "rate_age": "age of the link's rate; scale two usual deadlines; 0 for the ingress itself",
    "rate": "the deadline compared with the time that the link takes for the original payload; 0 "
    "for the ingress itself",
    "rate_moves": "EWMA of the steps of the log rate of the ingress's links; scale 1",
    "rate_off": "log of the rate of the ingress's links over its slow mean, signed",
    "loaded_deadline": "load × deadline: with long deadlines many others go first (EDF)",
    "aged_moves": "rate_moves × rate_age",
}
"""The features of a server, and what each is."""
ROW_FEATURES = {
    "service": "service time in deadlines; scale 1",
    "dearer": "its work (service time × speed) over the least admissible one, less 1; scale 4",
    "accuracy": "accuracy of the service, less ½",
    "surplus": "accuracy above the demanded one",
    "form": "1 if the payload is sent model-ready",
    "late": "the predicted latency compared with the deadline",
}
"""The features of a row, and what each is."""
REQUEST_FEATURES = {
    "one": "1",
    "fleet": "mean load of the fleet; scale 1",
    "fleet_backlog": "mean backlog of the fleet; scale a usual deadline",
    "deadline": "the deadline compared with a usual one",
    "demanded": "accuracy that it demands, less ½",
    "trend": "the servers' trend, averaged by capacity over those that are up",
    "elapsed": "time since it was sent, in deadlines",
    "rate_moves": "EWMA of the steps of the log rate of the ingress's links; scale 1",
}
"""The features of the request, and what each is."""

SERVER_FEATURES_TYPE = record_of(list(SERVER_FEATURES))
ROW_FEATURES_TYPE = record_of(list(ROW_FEATURES))
REQUEST_FEATURES_TYPE = record_of(list(REQUEST_FEATURES))

REMEMBERED = (
    ("log_rate", "f8"),  # log of the last measured rate; 0 = none yet
    ("slow_rate", "f8"),  # slow mean of log_rate
    ("rate_moves", "f8"),  # EWMA of the absolute steps between measurements
    ("measured_at", "f8"),  # time of the newest measurement, s on the balancer's clock
)
"""Memory about the links of each server as an ingress."""
SLOW = 0.1
"""Weight of a new measurement in the slow mean: it spans about ten, some seconds of a busy link."""
MOVES = 0.2
"""Weight of a new step in the mean step, which spans about five."""
SAME = 1e-6
"""s. Two measurements closer together are the same one: now − age has rounding errors."""


@jit_no_refcount(inline=True)
def squash(x: float, scale: float) -> float:
    """Map x ≥ 0 to [0, 1)."""
    return x / (scale + x)


@jit_no_refcount(inline=True)
def signed(x: float) -> float:
    """Map any x to (−1, 1)."""
    return x / (1.0 + abs(x))


@jit_no_refcount(inline=True)
def compared(x: float, a: float) -> float:
    """Map x ≥ 0 to [−1, 1]: 0 where it equals a > 0."""
    return (x - a) / (x + a)


@jit_no_refcount(inline=True)
def remember(table: CandidateTable, memory: Memory) -> None:
    """Update the memory with the table's rates of the ingress's links.

    Rates that were never measured are priors and are ignored. The rate is the mean over the links;
    where all share one uplink, they have the same rate.
    """
    ingress = int(table.context.ingress)
    known = memory.servers[ingress]
    youngest = RATE_AGE_MAX
    for s in range(table.servers.size):
        server = table.servers[s]
        if s != ingress and server.rate > 0.0:
            youngest = min(youngest, server.rate_age)
    measured_at = table.context.now - youngest
    # The table's rate fades towards the prior with age; only a new measurement counts as a step.
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
def describe_request(table: CandidateTable, memory: Memory, units: Units, out: Record) -> None:
    """Write the features of the request. Call `remember` first."""
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
    out.one = 1.0
    out.fleet = squash(fleet_load(table), 1.0)
    out.fleet_backlog = squash(backlog, units.deadline)
    out.deadline = compared(context.deadline, units.deadline)
    out.demanded = context.accuracy - 0.5
    out.trend = signed(trend)
    out.elapsed = squash(max(0.0, context.elapsed / context.deadline), 1.0)
    out.rate_moves = squash(memory.servers[int(context.ingress)].rate_moves, 1.0)


@jit_no_refcount(inline=True)
def describe_server(
    table: CandidateTable,
    memory: Memory,
    request: Record,
    s: int,
    cheapest: float,
    units: Units,
    out: Record,
) -> None:
    """Write the features of server `s`.

    `request` has the features of the request; `cheapest` is the server's `cheapest_service`, 0 if
    none is admissible.
    """
    server = table.servers[s]
    ingress = int(table.context.ingress)
    out.one = 1.0
    out.utilisation = server.utilisation
    out.offered_1s = squash(server.offered_1s, 1.0)
    out.offered_5s = squash(server.offered_5s, 1.0)
    out.backlog = squash(max(0.0, server.backlog), units.deadline)
    out.captive = squash(server.demand_1s * cheapest / server.workers, 1.0)
    out.fleet = request.fleet
    out.fleet_backlog = request.fleet_backlog
    out.workers = compared(server.workers, 1.0)
    out.speed = compared(server.speed, units.speed)
    out.deadline = request.deadline
    out.demanded = request.demanded
    out.report_age = squash(max(0.0, server.report_age), units.deadline)
    out.failure = server.failure
    out.trend = signed(server.offered_1s - server.offered_5s)
    out.in_flight = squash(max(0.0, server.rif) / server.workers, 4.0)
    out.loaded_deadline = min(2.0, load_of(server)) * request.deadline
    if s == ingress:
        out.local = 1.0
        out.link_backlog = 0.0
        out.rate_age = 0.0
        out.rate = 0.0
        out.rate_moves = 0.0
        out.rate_off = 0.0
        out.aged_moves = 0.0
        return
    known = memory.servers[ingress]
    out.local = 0.0
    out.link_backlog = squash(server.link_backlog, units.deadline)
    out.rate_age = squash(max(0.0, server.rate_age), FRESH_DEADLINES * units.deadline)
    out.rate = compared(table.context.deadline * server.rate, table.context.payload)
    out.rate_moves = request.rate_moves
    out.rate_off = signed(known.log_rate - known.slow_rate) if known.log_rate != 0.0 else 0.0
    out.aged_moves = request.rate_moves * out.rate_age


@jit_no_refcount(inline=True)
def cheapest_work(table: CandidateTable) -> float:
    """Least service time × speed of all admissible rows, s at speed 1; 0 if there are none."""
    least = math.inf
    for r in range(table.mask.size - 1):
        if table.mask[r] != 0:
            speed = table.servers[int(table.rows.server[r])].speed
            least = min(least, table.rows.service_time[r] * speed)
    return least if least < math.inf else 0.0


@jit_no_refcount(inline=True)
def describe_row(table: CandidateTable, r: int, least: float, out: Record) -> None:
    """Write the features of an admissible row; `least` is `cheapest_work`."""
    rows, context = table.rows, table.context
    deadline = context.deadline
    work = rows.service_time[r] * table.servers[int(rows.server[r])].speed
    out.service = squash(rows.service_time[r] / deadline, 1.0)
    out.dearer = squash(max(0.0, work / least - 1.0), 4.0)
    out.accuracy = rows.accuracy[r] - 0.5
    out.surplus = rows.accuracy[r] - context.accuracy
    out.form = rows.form[r]
    out.late = compared(max(0.0, rows.latency[r]), deadline)


@jit_no_refcount(inline=True)
def cheapest_service(table: CandidateTable, first: int) -> float:
    """Shortest service time of a server's admissible rows, s; `first` is the first of them."""
    s = table.rows.server[first]
    least = table.rows.service_time[first]
    for r in range(first + 1, table.mask.size - 1):
        if table.mask[r] == 0:
            continue
        if table.rows.server[r] != s:
            break
        least = min(least, table.rows.service_time[r])
    return least  # type: ignore[no-any-return]
