"""Apply a decision to the belief; the simulator and the live balancer share this. Compiled."""

from __future__ import annotations

from edgewise.compile import jit_no_refcount
from edgewise.fleet.admission import offer, offer_shed
from edgewise.fleet.arrays import Belief
from edgewise.fleet.belief import on_decision, requests_in_flight
from edgewise.fleet.ejection import on_chosen
from edgewise.fleet.observe import link_rate
from edgewise.fleet.table import CandidateTable


@jit_no_refcount(inline=True)
def commit(
    belief: Belief, table: CandidateTable, row: int, now: float, deadline: float
) -> tuple[int, int, int]:
    """Add the choice of `row` of an observed table to the belief; `deadline` is absolute.

    Returns the number of the command, that of the dispatch (0 for shed), and the requests in flight
    at the destination before it, which `fleet.belief.on_answer` needs later.
    """
    ingress = int(table.context.ingress)
    destination = int(table.rows.server[row])
    if destination < 0:
        command, _ = on_decision(belief, now, ingress, -1, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        offer_shed(belief, table, now)
        return command, 0, 0
    if belief.ejection[0].active != 0:
        on_chosen(belief, ingress, destination, deadline, now)
    rif = requests_in_flight(belief, destination, now)
    link = belief.path[ingress, destination]
    command, dispatch = on_decision(
        belief,
        now,
        ingress,
        destination,
        deadline,
        table.rows.service_time[row],
        now + table.rows.until_input[row],
        table.rows.size[row],
        table.rows.prepare[row],
        link_rate(belief, link, now) if link >= 0 else 1.0,
    )
    offer(belief, table.rows.service_time[row], now)
    return command, dispatch, rif
