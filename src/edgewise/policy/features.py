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

from edgewise.compile import jit
from edgewise.fleet.arrays import Array
from edgewise.fleet.table import RATE_AGE_MAX, CandidateTable
from edgewise.policy.priced import fleet_load, load_of

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
(
    P_ONE,
    P_UTILISATION,
    P_OFFERED_1S,
    P_OFFERED_5S,
    P_BACKLOG,
    P_CAPTIVE,
    P_FLEET,
    P_FLEET_BACKLOG,
    P_WORKERS,
    P_SPEED,
    P_DEADLINE,
    P_DEMANDED,
    P_LOCAL,
    P_REPORT_AGE,
    P_FAILURE,
    P_TREND,
    P_IN_FLIGHT,
    P_LINK_BACKLOG,
    P_RATE_AGE,
    P_RATE,
    P_RATE_MOVES,
    P_RATE_OFF,
    P_LOADED_DEADLINE,
    P_AGED_MOVES,
) = range(len(PHI))

PSI = {
    "service": "its service time in deadlines; scale 1",
    "dearer": "log of its service seconds × speed over the cheapest admissible one's; scale 2",
    "accuracy": "less ½",
    "surplus": "accuracy above the demanded",
    "form": "1 model-ready",
    "late": "log of predicted latency over deadline, signed",
}
Q_SERVICE, Q_DEARER, Q_ACCURACY, Q_SURPLUS, Q_FORM, Q_LATE = range(len(PSI))

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
(
    W_ONE,
    W_FLEET,
    W_FLEET_BACKLOG,
    W_DEADLINE,
    W_DEMANDED,
    W_TREND,
    W_ELAPSED,
    W_RATE_MOVES,
) = range(len(OMEGA))

REMEMBERED = 4
"""Numbers kept per server as ingress: the last measured log rate (0: none yet), its slow mean, its
moves, and when the newest measurement was made (s on the balancer's clock)."""
SLOW = 0.1
"""Weight of a new measurement in the slow mean: ten of them, some seconds of a link in use."""
MOVES = 0.2
"""Weight of a new step in the mean step: five."""
SAME = 1e-6
"""s. Closer together, two measurements are one: now − age rounds."""


@jit
def squash(x: float, scale: float) -> float:
    """x ≥ 0 to [0, 1)."""
    return x / (scale + x)


@jit
def signed(x: float) -> float:
    """To (−1, 1)."""
    return x / (1.0 + abs(x))


@jit
def remember(table: CandidateTable, memory: Array) -> None:
    """Take in what the table says of the ingress's links; `memory` (S × REMEMBERED,).

    A rate that was never measured is a prior, and says nothing. The mean is over the links, of
    which there is one where they share an uplink.
    """
    ingress = int(table.context.ingress)
    total = 0.0
    count = 0
    youngest = RATE_AGE_MAX
    for s in range(table.servers.shape[0]):
        server = table.servers[s]
        if s != ingress and server.rate > 0.0 and server.rate_age < RATE_AGE_MAX:
            total += math.log(server.rate)
            count += 1
            youngest = min(youngest, server.rate_age)
    if count == 0:
        return
    at = REMEMBERED * ingress
    measured_at = table.context.now - youngest
    last = memory[at]
    # The rate the table has fades with its age; only a new measurement is a step.
    if last != 0.0 and measured_at <= memory[at + 3] + SAME:
        return
    now = total / count
    if last == 0.0:
        memory[at + 1] = now
    else:
        memory[at + 1] += SLOW * (now - memory[at + 1])
        memory[at + 2] += MOVES * (abs(now - last) - memory[at + 2])
    memory[at] = now
    memory[at + 3] = measured_at


@jit
def describe_request(table: CandidateTable, memory: Array, omega: Array) -> None:
    """Fill `omega`, in the order of `OMEGA`; after `remember`."""
    context = table.context
    capacity = 0.0
    backlog = 0.0
    trend = 0.0
    for s in range(table.servers.shape[0]):
        server = table.servers[s]
        if server.up > 0.0:
            weight = server.workers * server.speed
            capacity += weight
            backlog += weight * server.backlog
            trend += weight * (server.offered_1s - server.offered_5s)
    if capacity > 0.0:
        backlog /= capacity
        trend /= capacity
    omega[W_ONE] = 1.0
    omega[W_FLEET] = squash(fleet_load(table), 1.0)
    omega[W_FLEET_BACKLOG] = squash(backlog, 0.3)
    omega[W_DEADLINE] = signed(math.log(context.deadline / 0.5))
    omega[W_DEMANDED] = context.accuracy - 0.5
    omega[W_TREND] = signed(trend)
    omega[W_ELAPSED] = squash(max(0.0, context.elapsed / context.deadline), 1.0)
    omega[W_RATE_MOVES] = squash(memory[REMEMBERED * int(context.ingress) + 2], 1.0)


@jit
def mean_speed(table: CandidateTable) -> float:
    """Of the servers that are up."""
    total = 0.0
    count = 0
    for s in range(table.servers.shape[0]):
        if table.servers[s].up > 0.0:
            total += table.servers[s].speed
            count += 1
    return total / count if count > 0 else 1.0


@jit
def describe_server(
    table: CandidateTable,
    memory: Array,
    omega: Array,
    s: int,
    cheapest: float,
    mean: float,
    phi: Array,
) -> None:
    """Fill `phi` of server `s`, in the order of `PHI`.

    `cheapest` s: the shortest service time of its admissible rows, 0 if it has none; `mean` as
    `mean_speed` has it.
    """
    server = table.servers[s]
    ingress = int(table.context.ingress)
    local = s == ingress
    phi[P_ONE] = 1.0
    phi[P_UTILISATION] = server.utilisation
    phi[P_OFFERED_1S] = squash(server.offered_1s, 1.0)
    phi[P_OFFERED_5S] = squash(server.offered_5s, 1.0)
    phi[P_BACKLOG] = squash(max(0.0, server.backlog), 0.3)
    phi[P_CAPTIVE] = squash(server.demand_1s * cheapest / server.workers, 1.0)
    phi[P_FLEET] = omega[W_FLEET]
    phi[P_FLEET_BACKLOG] = omega[W_FLEET_BACKLOG]
    phi[P_WORKERS] = 0.5 * math.log2(server.workers) - 0.5
    phi[P_SPEED] = signed(math.log(server.speed / mean))
    phi[P_DEADLINE] = omega[W_DEADLINE]
    phi[P_DEMANDED] = omega[W_DEMANDED]
    phi[P_LOCAL] = 1.0 if local else 0.0
    phi[P_REPORT_AGE] = squash(max(0.0, server.report_age), 0.3)
    phi[P_FAILURE] = server.failure
    phi[P_TREND] = signed(server.offered_1s - server.offered_5s)
    phi[P_IN_FLIGHT] = squash(max(0.0, server.rif) / server.workers, 4.0)
    phi[P_LINK_BACKLOG] = 0.0
    phi[P_RATE_AGE] = 0.0
    phi[P_RATE] = 0.0
    phi[P_RATE_MOVES] = 0.0
    phi[P_RATE_OFF] = 0.0
    phi[P_AGED_MOVES] = 0.0
    if not local:
        at = REMEMBERED * ingress
        phi[P_LINK_BACKLOG] = squash(server.link_backlog, 0.3)
        phi[P_RATE_AGE] = squash(max(0.0, server.rate_age), 1.0)
        phi[P_RATE] = signed(math.log(max(1.0, server.rate) / 1e6))
        phi[P_RATE_MOVES] = omega[W_RATE_MOVES]
        if memory[at] != 0.0:
            phi[P_RATE_OFF] = signed(memory[at] - memory[at + 1])
        phi[P_AGED_MOVES] = phi[P_RATE_MOVES] * phi[P_RATE_AGE]
    phi[P_LOADED_DEADLINE] = min(2.0, load_of(server)) * omega[W_DEADLINE]


@jit
def cheapest_work(table: CandidateTable) -> float:
    """Service seconds × speed of the cheapest admissible row, s at speed 1; 0 if there is none."""
    least = math.inf
    for r in range(table.mask.size - 1):
        if table.mask[r] != 0:
            least = min(
                least, table.rows.service_time[r] * table.servers[int(table.rows.server[r])].speed
            )
    return least if least < math.inf else 0.0


@jit
def describe_row(table: CandidateTable, r: int, least: float, psi: Array) -> None:
    """Fill `psi` of an admissible row, in the order of `PSI`; `least` as `cheapest_work` has it."""
    context = table.context
    deadline = context.deadline
    work = table.rows.service_time[r] * table.servers[int(table.rows.server[r])].speed
    psi[Q_SERVICE] = squash(table.rows.service_time[r] / deadline, 1.0)
    psi[Q_DEARER] = squash(math.log(max(1.0, work / least)), 2.0)
    psi[Q_ACCURACY] = table.rows.accuracy[r] - 0.5
    psi[Q_SURPLUS] = table.rows.accuracy[r] - context.accuracy
    psi[Q_FORM] = table.rows.form[r]
    psi[Q_LATE] = signed(math.log(max(1e-6, table.rows.latency[r]) / deadline))


@jit
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
