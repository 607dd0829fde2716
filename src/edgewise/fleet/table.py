"""The candidate table: the figures by which a policy decides one request.

A *row* is a candidate (service, payload form); the last row is *shed*. Columns have names:

- ``table.rows.latency[r]`` belongs to row r. Row 2k + f is service k fed payload form f. Each
  column is one contiguous array, so a loop over rows is vectorised.
- ``table.servers[s].failure`` belongs to server s; all its rows share it.
- ``table.context.deadline`` belongs to the request; all rows share it.
- ``table.mask[r]`` is 1 if row r may be chosen: its accuracy is at least the demanded one, its
  server is up and not draining, neither the server nor the path to it is ejected, and the payload
  form makes sense (model-ready only for a transfer).
  The shed row may always be chosen.
- ``table.scores[r]`` is written by the policy: higher is better, −inf means never.

`fleet.observe.observe` fills the table. The dictionaries `ROW`, `SERVER` and `CONTEXT` name each
column and describe it as ``[unit] meaning``, in the order in which `TableArrays` stores them.
``[0–1]`` and ``[0 or 1]`` are ranges. `docs/environment.md` is made from these descriptions.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple, get_type_hints

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.domain import Observation
from edgewise.fleet.arrays import Array, Belief


class Rows(NamedTuple):
    """The columns with one value per row, float64 (R,) each.

    On rows that are not admissible only the constant columns are meaningful: server, service, form,
    accuracy, and the size of a model-ready payload.
    """

    server: Annotated[Array, "[index] server that would run it; −1 on the shed row"]
    service: Annotated[Array, "[index] service that would run it; −1 on the shed row"]
    form: Annotated[Array, "[0 or 1] payload form: 0 original, 1 model-ready"]
    local: Annotated[Array, "[0 or 1] 1 if the server is the ingress"]
    accuracy: Annotated[Array, "[0–1] accuracy of the service when fed this form"]
    until_input: Annotated[Array, "[s] time from now until this form is at the server"]
    wait: Annotated[Array, "[s] time in the server's queue after that"]
    service_time: Annotated[Array, "[s] time on a worker"]
    return_time: Annotated[Array, "[s] time from there until the answer has reached the client"]
    latency: Annotated[
        Array,
        "[s] time from sending to the answer at the client:"
        " elapsed + until_input + wait + service_time + return_time",
    ]
    transfer: Annotated[Array, "[s] time that the payload occupies the link: size / rate"]
    prepare: Annotated[Array, "[s] CPU time of the ingress to make the payload model-ready"]
    size: Annotated[Array, "[bytes] what crosses the link"]


ROW: dict[str, str] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Rows, include_extras=True).items()
}
SERVER = {
    "up": "[0 or 1] 1 if the server can be chosen",
    "workers": "[workers] number of workers",
    "speed": "[ratio] speed relative to the machine on which the latency profiles were measured",
    "backlog": "[s] time until its workers have finished all the work believed to be there",
    "ahead": "[s] the same for the work that is served before this request",
    "queued": "[requests] requests waiting there, by its last report",
    "outstanding": "[requests] requests that this balancer sent there and has no outcome of",
    "utilisation": "[0–1] busy share of its workers, by its last report",
    "report_age": "[s] age of its last report; its silence limit if there was none",
    "failure": "[0–1] share of failed answers, exponentially weighted",
    "offered_1s": "[ratio] work that this balancer sent there over the last 1 s: worker seconds per"
    " second and worker",
    "offered_5s": "[ratio] the same over 5 s",
    "demand_1s": "[requests/s] rate of requests that arrive there from clients, over 1 s",
    "rate": "[bytes/s] believed rate of the link from the ingress; 0 for the ingress itself",
    "rate_age": "[s] time since that rate was measured; 60 if it never was",
    "link_backlog": "[s] time until the link has sent all that is believed to be on it",
    "rtt": "[s] round-trip time from the ingress",
    "rif": "[requests] requests in flight: believed to wait or run there",
    "response": "[s] mean time from decision to answer, exponentially weighted; 0 before the first",
    "peak": "[s] decaying peak of that time",
    "rif_response": "[s] mean of that time over answers that met about as many requests in flight"
    " as now; 0 if there were none",
    "answers_1s": "[answers/s] rate of answers, over 1 s",
    "errors_1s": "[answers/s] rate of failed answers, over 1 s",
}
CONTEXT = {
    "ingress": "[index] server at which the request arrived",
    "elapsed": "[s] time since the request was sent",
    "deadline": "[s] time allowed from sending to the answer",
    "accuracy": "[0–1] accuracy demanded",
    "payload": "[bytes] size of the original payload",
    "upload": "[s] time from now until the original payload is at the ingress",
    "prepare_backlog": "[s] CPU time of the payloads that wait in the ingress's converter",
    "grace": "[deadlines] how late an answer may be and still score; 0: a hard deadline",
    "accuracy_weight": "[exponent] exponent of the accuracy in the score",
    "now": "[s] the balancer's clock: for timers in a policy's memory, not a feature to learn by",
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
"""s. A mobile link's rate this old predicts nothing any more (Norway HSDPA traces)."""

SAMPLED_ABOVE = 32
"""Servers. In a larger fleet the candidates of a request are the ingress and a sample of the other
servers: observing all of them would cost more time than the wider choice is worth."""
SAMPLED = 15
"""Servers in the sample. Two random choices already avoid most of the queueing (Mitzenmacher, IEEE
TPDS 12(10), 2001); among unequal servers a larger sample is needed to contain a fast one.
`benchmarks/simulator.py` measures the cost."""


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
    """The input of a policy's kernel, and the scores that it writes. Allocated once.

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
    """The candidate table with `arrays` as its memory."""
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
    """Allocate a candidate table for a fleet with these numbers of servers and services."""
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
    """A candidate table with these figures and no scores yet.

    Its columns are views of the arrays, or of copies where these are not laid out as `TableArrays`
    says.
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


def table_of_observation(seen: Observation) -> CandidateTable:
    """The candidate table of an observation."""
    return table_of(seen.rows, seen.mask, seen.servers, seen.context)


def load(table: CandidateTable, observation: Observation) -> None:
    """Copy an observation of the same fleet into `table`; faster than `table_of`."""
    np.copyto(table.arrays.rows, observation.rows)
    np.copyto(table.arrays.mask, observation.mask)
    np.copyto(table.arrays.servers, observation.servers)
    np.copyto(table.arrays.context, observation.context)


def new_table(belief: Belief) -> CandidateTable:
    """Allocate the table that `observe` fills from `belief` or another belief of the same fleet."""
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
    """The admissible row with the highest score, the first among equals; shed if all are −inf."""
    scores, mask = table.scores, table.mask
    best = mask.size - 1
    value = -math.inf
    for r in range(mask.size):
        if mask[r] == 1 and scores[r] > value:
            best = r
            value = scores[r]
    return best
