"""A policy of one's own, in one file.

edgewise simulate three-sites --policy examples/own_policy.py:frugal,sed
edgewise up three-sites --policy examples/own_policy.py:frugal,examples/own_policy.py:lottery
edgewise tune examples/own_policy.py:frugal
"""

import edgewise as ew


@ew.policy(parameters=[ew.Parameter(name="margin", default=1.3, low=0.5, high=3.0)])
def frugal(table, params, memory, rng):
    """The cheapest service predicted in time with a margin; nothing if all would be late."""
    for r in range(len(table.mask) - 1):
        in_time = params.margin * table.rows.latency[r] <= table.context.deadline
        table.scores[r] = -table.rows.service_time[r] if in_time else -float("inf")


@ew.policy(compiled=False)
def lottery(table, params, memory, rng):
    """A row at random, the faster the likelier, or shedding; plain Python, not compiled."""
    table.scores[:-1] = 1.0 / (0.01 + table.rows.latency[:-1])
    table.scores[-1] = 1.0
    return ew.draw(table, rng)
