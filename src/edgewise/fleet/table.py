"""The candidate table: one request, and every way to answer it that the balancer knows of.

A *row* is a candidate (service, payload form); the last row is *shed*. Columns have names:

- ``table.rows.latency[r]``: a figure of row r. Row 2k + f is service k fed payload form f. A column
  is one contiguous array, so a loop over rows is vectorised.
- ``table.servers[s].failure``: a figure that all rows of server s share.
- ``table.context.deadline``: a figure that all rows share.
- ``table.mask[r]``: 1 where row r may be chosen: its accuracy is at least the demanded one, its
  server is up and not draining, and the form makes sense (model-ready only for a transfer). Shed
  always may.
- ``table.scores[r]``: where a policy writes its scores; higher is better, −inf for never.

`fleet.observe.observe` fills the table. The dictionaries `ROW`, `SERVER` and `CONTEXT` name each
column and say what it means, in the order in which `TableArrays` stores them.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.domain import Observation
from edgewise.fleet.arrays import Array, Belief


class Rows(NamedTuple):
    """The columns that differ from row to row, float64 (R,) each.

    Rows that are not admissible hold figures too. These mean nothing, except those that never
    change: server, service, form, accuracy, and the size of a model-ready payload.
    """

    server: Annotated[Array, "index of the server; −1 on the shed row"]
    service: Annotated[Array, "index of the service; −1 on the shed row"]
    form: Annotated[Array, "0 original, 1 model-ready"]
    local: Annotated[Array, "1 if the server is the ingress"]
    accuracy: Annotated[Array, "of the service fed this form, 0–1"]
    ready: Annotated[Array, "s from now until the input is at the server, in this form"]
    wait: Annotated[Array, "s in the server's queue after that"]
    service_time: Annotated[Array, "s running it"]
    return_time: Annotated[Array, "s for the answer to reach the client"]
    latency: Annotated[
        Array, "s from sent_at to the answer at the client: the four above and what has passed"
    ]
    transfer: Annotated[Array, "s of the link it takes: bytes / rate"]
    prepare: Annotated[Array, "s of the ingress's CPU it takes"]
    size: Annotated[Array, "bytes across the link"]


ROW: dict[str, str] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Rows, include_extras=True).items()
}
SERVER = {
    "up": "1 if it can be chosen",
    "workers": "count",
    "speed": "relative to the machine of the latency profiles",
    "backlog": "s until its workers are through with all that is believed to be there",
    "ahead": "s of that which go before this request",
    "queued": "requests it last reported waiting",
    "outstanding": "our dispatches without an outcome",
    "utilisation": "0–1, reported",
    "report_age": "s since its report was true; as old as its silence limit if never heard",
    "failure": "EWMA share of failed answers, 0–1",
    "offered_1s": "worker seconds per s and worker that we sent there, over 1 s",
    "offered_5s": "the same over 5 s",
    "demand_1s": "requests/s that arrive there as ingress, over 1 s",
    "rate": "bytes/s believed of the link from the ingress now; 0 for the ingress itself",
    "rate_age": "s since that was measured; 60 if never",
    "link_backlog": "s until the link is through with what is believed to be on it",
    "rtt": "s of the round trip from the ingress",
    "rif": "requests believed to wait or run there",
    "response": "EWMA s from decision to answer; 0 before the first",
    "peak": "peak EWMA of the same, decayed to now",
    "rif_response": "EWMA of the same when as many were in flight as now; 0 if that never was",
    "answers_1s": "answers/s, over 1 s",
    "errors_1s": "failed answers/s, over 1 s",
}
CONTEXT = {
    "ingress": "index of the server",
    "elapsed": "s since sent_at",
    "deadline": "s from sent_at",
    "accuracy": "demanded, 0–1",
    "payload": "bytes of the original",
    "upload": "s from now until the photo is at the ingress",
    "prepare_backlog": "s of CPU waiting in the ingress's pre-processing stage",
    "grace": "of the score: how far past the deadline an answer still counts, in deadlines",
    "accuracy_weight": "of the score: exponent of the accuracy",
    "now": "s on the balancer's clock: for timers in a policy's memory, not a feature to learn by",
}
SERVER_COLUMNS = np.dtype([(name, "f8") for name in SERVER])
CONTEXT_COLUMNS = np.dtype([(name, "f8") for name in CONTEXT])
SETTINGS = np.dtype(
    [
        ("fill_servers", "i8"),  # 0: the policy reads no column of `servers`, so none is written
        ("sampled", "i8"),  # servers considered besides the ingress; 0: all
    ]
)

RATE_AGE_MAX = 60.0
"""s. By then a mobile link's rate tells nothing any more of what it was (Norway HSDPA traces)."""

SAMPLED_ABOVE = 32
"""Servers. In a larger fleet a request is offered the ingress and a sample of the others: a look at
all of them would cost more time than the choice among the last few hundred is worth."""
SAMPLED = 15
"""Servers in the sample. Two random choices already avoid most of the queueing (Mitzenmacher, IEEE
TPDS 12(10), 2001); with unequal servers more are needed to have a fast one among them.
`benchmarks/simulator.py` prints what it costs."""


class TableArrays(NamedTuple):
    """The memory of a candidate table, without names: for copying it and for generic loops.

    R rows, S servers.
    """

    rows: Array  # float64 (R, len(ROW)), in Fortran's order: a column is contiguous
    servers: Array  # float64 (S, len(SERVER))
    context: Array  # float64 (len(CONTEXT),)
    mask: Array  # uint8 (R,)
    scores: Array  # float64 (R,)
    settings: Array  # int64 (2,)


class CandidateTable(NamedTuple):
    """What a policy's kernel sees, and where it writes its scores. Allocated once.

    The named columns are views of `arrays`.
    """

    rows: Rows
    servers: Array  # SERVER_COLUMNS (S,)
    context: Any  # a record of CONTEXT_COLUMNS
    mask: Array  # uint8 (R,)
    scores: Array  # float64 (R,)
    settings: Any  # a record of SETTINGS
    arrays: TableArrays


def named(arrays: TableArrays) -> CandidateTable:
    """The table whose memory is `arrays`."""
    return CandidateTable(
        rows=Rows(*arrays.rows.T),
        servers=arrays.servers.view(SERVER_COLUMNS).view(np.recarray)[:, 0],
        context=arrays.context.view(CONTEXT_COLUMNS).view(np.recarray)[0],
        mask=arrays.mask,
        scores=arrays.scores,
        settings=arrays.settings.view(SETTINGS).view(np.recarray)[0],
        arrays=arrays,
    )


def blank_table(servers: int, services: int) -> CandidateTable:
    """Allocate the table of a fleet of so many."""
    count = 2 * services + 1
    table = named(
        TableArrays(
            rows=np.zeros((count, len(ROW)), order="F"),
            servers=np.zeros((servers, len(SERVER))),
            context=np.zeros(len(CONTEXT)),
            mask=np.zeros(count, np.uint8),
            scores=np.zeros(count),
            settings=np.zeros(2, np.int64),
        )
    )
    table.rows.server[-1] = table.rows.service[-1] = -1.0
    table.settings.fill_servers = 1
    table.settings.sampled = SAMPLED if servers > SAMPLED_ABOVE else 0
    return table


def table_of(rows: Array, mask: Array, servers: Array, context: Array) -> CandidateTable:
    """The table with these figures, named; no scores yet.

    The columns are views of the arrays, unless these lie in another order than `TableArrays` says.
    """
    table = named(
        TableArrays(
            rows=np.asfortranarray(rows),
            servers=np.ascontiguousarray(servers),
            context=np.ascontiguousarray(context),
            mask=np.ascontiguousarray(mask),
            scores=np.zeros(len(mask)),
            settings=np.zeros(2, np.int64),
        )
    )
    table.settings.fill_servers = 1
    return table


def observed(seen: Observation) -> CandidateTable:
    """The table that an observation shows."""
    return table_of(seen.rows, seen.mask, seen.servers, seen.context)


def load(table: CandidateTable, observation: Observation) -> None:
    """Copy an observation of the same fleet into `table`; quicker than `table_of`."""
    np.copyto(table.arrays.rows, observation.rows)
    np.copyto(table.arrays.mask, observation.mask)
    np.copyto(table.arrays.servers, observation.servers)
    np.copyto(table.arrays.context, observation.context)


def new_table(belief: Belief) -> CandidateTable:
    """Allocate the table that `observe` fills from `belief`, or from one of the same fleet."""
    services = belief.services
    table = blank_table(len(belief.servers), len(services))
    rows = table.rows
    for form, accuracy in enumerate(("accuracy", "ready_accuracy")):
        rows.server[form:-1:2] = services["server"]
        rows.service[form:-1:2] = np.arange(len(services))
        rows.form[form:-1:2] = form
        rows.accuracy[form:-1:2] = services[accuracy]
    rows.size[1:-1:2] = services["ready_bytes"]
    return table


@jit_no_refcount
def flatten(table: CandidateTable, out: Array) -> None:
    """Gather the table into `out` (R, len(ROW) + len(SERVER) + len(CONTEXT)); masked rows are 0."""
    rows, servers, context = table.arrays.rows, table.arrays.servers, table.arrays.context
    wide = rows.shape[1]
    deep = servers.shape[1]
    for r in range(rows.shape[0]):
        admissible = table.mask[r] != 0
        s = int(table.rows.server[r])
        for c in range(wide):
            out[r, c] = rows[r, c] if admissible else 0.0
        for c in range(deep):
            out[r, wide + c] = servers[s, c] if admissible and s >= 0 else 0.0
        for c in range(context.size):
            out[r, wide + deep + c] = context[c] if admissible else 0.0


@jit_no_refcount(inline=True)
def best_row(table: CandidateTable) -> int:
    """The admissible row of highest score, the first of equals; shed if none is above −inf."""
    scores, mask = table.scores, table.mask
    best = mask.size - 1
    value = -math.inf
    for r in range(mask.size):
        if mask[r] == 1 and scores[r] > value:
            best = r
            value = scores[r]
    return best
