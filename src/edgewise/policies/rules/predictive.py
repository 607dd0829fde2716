"""Rules that score each candidate by its predicted latency. Compiled.

All use the same predictions (`edgewise.fleet.observe`). Exact rules, sources and deviations are in
`docs/policies.md`.
"""

from __future__ import annotations

from edgewise.fleet.arrays import Array, Record
from edgewise.fleet.rng import integer_below, uniform
from edgewise.fleet.table import CandidateTable
from edgewise.policies.base import Memory, Parameter, policy
from edgewise.policies.servers import MARGIN, clear, utility

TIE = 1e-6
"""Score per second that breaks ties. It decides between different accuracies only above 100 s, as
they differ by more than 1e-4."""


@policy(
    about="the highest utility at the predicted latency with a margin",
    parameters=(MARGIN,),
    reads_servers=False,
)
def earliest_completion_margin(
    table: CandidateTable, params: Record, memory: Memory, rng: Array
) -> float:
    """Choose the row with the highest accuracy^w × g(margin × latency / deadline), the earliest
    among equals. It never sheds."""
    clear(table)
    for r in range(table.mask.size - 1):
        if table.mask[r] == 1:
            latency = table.rows.latency[r]
            table.scores[r] = utility(table, r, params.margin * latency) - TIE * latency
    return 1.0


@policy(
    about="the slowest service that is fast enough, on its least loaded server (INFaaS)",
    parameters=(
        Parameter(
            name="slack",
            default=1.0,
            low=0.05,
            high=1.0,
            unit="deadlines",
            about="Share of the deadline that a variant's profiled latency may take. The paper "
            "allows all of it, without time for the network and the queue.",
            log=True,
        ),
    ),
)
def infaas(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """INFaaS's query front end: choose the admissible variant that is only just fast enough by its
    profile, on the least loaded server that has it.

    Variants of equal accuracy count as the same model. If none is fast enough, choose the fastest.
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
    about="the most accurate service that fits into the budget twice (Jellyfish)",
    parameters=(
        Parameter(
            name="rounds",
            default=2.0,
            low=1.0,
            high=6.0,
            unit="service times",
            about="Number of service times that must fit into the budget. The paper uses 2: the "
            "batch under way and the request's own.",
        ),
    ),
)
def jellyfish(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """Jellyfish: choose the most accurate service whose service time fits into the budget `rounds`
    times, on the server of least backlog among equals.

    The budget is the part of the deadline that the network leaves. If no service fits, choose the
    one that exceeds its budget by least.
    """
    clear(table)
    rows = table.rows
    context = table.context
    for r in range(table.mask.size - 1):
        if table.mask[r] == 0 or rows.form[r] != 0.0:
            continue
        # The payload is streamed on as it arrives, so the slower of upload and transfer counts;
        # return_time is one way.
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
    about="the candidate in time with the least headroom (llm-d)",
    parameters=(
        Parameter(
            name="explore",
            default=0.01,
            low=0.0,
            high=0.1,
            about="Share of requests that try a candidate predicted to be late. llm-d uses 1 %.",
        ),
    ),
    reads_servers=False,
)
def slo_headroom(table: CandidateTable, params: Record, memory: Memory, rng: Array) -> float:
    """llm-d: choose the candidate with the *least* headroom among those predicted in time, which
    packs the load.

    A share `explore` of requests goes to a late candidate drawn uniformly. If all are late, choose
    the one that is least late.
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
