"""Rules that go by predicted latency, candidate by candidate, as kernels.

Each sees the same predictions (`edgewise.fleet.table`); they differ in what they make of them.
Exact rules, sources and deviations: `docs/policies.md`.
"""

from __future__ import annotations

from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.rng import integer_below, uniform
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, Parameter, policy
from edgewise.policies.servers import clear, utility

TIE = 1e-6
"""per s. Orders what is equal otherwise. Accuracies differ by over 1e-4, which 100 s outweigh."""


@policy(
    about="most expected utility at a margined predicted latency",
    parameters=(
        Parameter(
            name="margin",
            default=1.2,
            low=0.5,
            high=3.0,
            about="on the predicted latency; a fifth more, as predictions miss what arrives later",
            log=True,
        ),
    ),
    reads_servers=False,
)
def earliest_completion_margin(
    table: CandidateTable, params: Record, memory: Memory, rng: Array
) -> float:
    """Most accuracy^w × g(margin × latency / deadline); of equals the earliest. It never sheds."""
    clear(table)
    for r in range(table.mask.size - 1):
        if table.mask[r] == 1:
            latency = table.rows.latency[r]
            table.scores[r] = utility(table, r, params.margin * latency) - TIE * latency
    return 1.0


@policy(
    about="the slowest service that is fast enough, on the least loaded server (INFaaS)",
    parameters=(
        Parameter(
            name="slack",
            default=1.0,
            low=0.05,
            high=1.0,
            unit="deadlines",
            about="that a variant's profiled latency may take: the whole deadline as published, "
            "which counts no network and no queue",
            log=True,
        ),
    ),
)
def infaas(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """INFaaS's query front end: of the variants that are accurate and by profile fast enough the
    one of least slack; of the servers with that variant the least loaded.

    Equal accuracy = the same model. If none is fast enough, the fastest.
    """
    clear(table)
    rows = table.rows
    limit = params.slack * table.context.deadline
    variant = -1
    fastest = -1
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0 or rows.form[r] != 0.0:
            continue
        time = rows.service_time[r]
        if fastest < 0 or time < rows.service_time[fastest]:
            fastest = r
        if time <= limit and (variant < 0 or time > rows.service_time[variant]):
            variant = r
    if variant < 0:
        if fastest >= 0:
            table.scores[fastest] = 0.0
        return 1.0
    for r in range(table.mask.size - 1):
        if (
            table.mask[r] == 1
            and rows.form[r] == 0.0
            and rows.accuracy[r] == rows.accuracy[variant]
            and rows.service_time[r] <= limit
        ):
            table.scores[r] = -table.servers[int(rows.server[r])].backlog
    return 1.0


@policy(
    about="the most accurate service that fits twice into the budget (Jellyfish)",
    parameters=(
        Parameter(
            name="rounds",
            default=2.0,
            low=1.0,
            high=6.0,
            unit="service times",
            about="that must fit into the budget: 2 as published, the batch under way and the own",
        ),
    ),
)
def jellyfish(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Jellyfish: the most accurate service with budget ≥ 2 × latency(batch 1), the budget being
    what the network leaves of the deadline; of equals the server of least backlog. If none is
    feasible, the one that misses its budget by least.
    """
    clear(table)
    rows = table.rows
    context = table.context
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0 or rows.form[r] != 0.0:
            continue
        # Streamed on as it arrives: the slower of upload and transfer; 2·wire is both ways back.
        network = max(context.upload, rows.transfer[r]) + 2.0 * rows.return_time[r]
        budget = context.deadline - context.elapsed - network
        spare = budget - params.rounds * rows.service_time[r]
        if spare >= 0.0:
            backlog = table.servers[int(rows.server[r])].backlog
            table.scores[r] = rows.accuracy[r] - TIE * backlog
        else:
            table.scores[r] = spare - 1.0
    return 1.0


@policy(
    about="of those in time the one of least headroom (llm-d)",
    parameters=(
        Parameter(
            name="explore",
            default=0.01,
            low=0.0,
            high=0.1,
            about="share of requests that tries one predicted to be late: llm-d's 1 %",
        ),
    ),
    reads_servers=False,
)
def slo_headroom(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """llm-d: of the candidates predicted in time the one of *least* headroom (bin packing); 1 % of
    the time one of the others, uniformly. None in time: the one that is least late.
    """
    clear(table)
    deadline = table.context.deadline
    early = 0
    late = 0
    for r in range(table.mask.size - 1):
        if table.mask[r] == 1:
            headroom = deadline - table.rows.latency[r]
            if headroom >= 0.0:
                early += 1
                table.scores[r] = 1.0 / (1.0 + headroom)
            else:
                late += 1
                table.scores[r] = headroom
    if early == 0 or late == 0:
        return 1.0
    if uniform(rng) >= params.explore:
        return 1.0 - params.explore  # type: ignore[no-any-return]
    n = integer_below(rng, late)
    for r in range(table.mask.size - 1):
        if table.mask[r] == 1 and table.scores[r] < 0.0:
            if n == 0:
                table.scores[r] = 2.0
                break
            n -= 1
    return params.explore / late  # type: ignore[no-any-return]
