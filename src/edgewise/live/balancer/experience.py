"""What a policy learns from: what it saw, what it did, how likely, and what came of it.

One row per decision, written once its outcome is settled. The candidate table is stored flat, row
after row, as lists of one length, which are blocks of memory to Arrow and to NumPy alike; the
file's own metadata (key ``edgewise``, JSON) names its columns, its servers and who stands behind
each row, so the file is understood without the scenario.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.domain import Candidate
from edgewise.fleet.table import CONTEXT, ROW, SERVER
from edgewise.live.balancer.ledger import Entry
from edgewise.live.recorder import RecordTable, read

NAME = "experience"
KEY = b"edgewise"


def schema_of(rows: int, servers: int) -> pa.Schema:
    """The columns, for a fleet of `rows` candidates (shed counted) and `servers` servers."""
    wide = {
        "rows": pa.list_(pa.float64(), rows * len(ROW)),  # (R, len(ROW)), flat
        "mask": pa.list_(pa.uint8(), rows),
        "servers": pa.list_(pa.float64(), servers * len(SERVER)),  # (S, len(SERVER)), flat
        "context": pa.list_(pa.float64(), len(CONTEXT)),
    }
    return pa.schema(
        [
            ("request", pa.string()),
            ("at", pa.float64()),  # s since the epoch, balancer's clock
            ("policy", pa.string()),
            ("version", pa.string()),
            *wide.items(),
            ("action", pa.int32()),  # the row chosen
            ("probability", pa.float64()),  # with which it was
            ("reward", pa.float64()),  # expected utility; null: nobody said how it ended
            ("realised", pa.float64()),  # realised utility; null: nobody told the right class
            ("status", pa.string()),  # of the outcome; "lost" also if nobody said
            ("source", pa.string()),  # node, client or evaluator; null: nobody
            ("latency", pa.float64()),  # s; of a node: until it began to answer
            ("server", pa.string()),  # who really served it
            ("model", pa.string()),
            ("form", pa.int8()),
        ]
    )


class Columns(Struct, frozen=True):
    """What the numbers of an experience file are."""

    row: tuple[str, ...]
    server: tuple[str, ...]
    context: tuple[str, ...]
    servers: tuple[str, ...]
    """By index."""
    candidates: tuple[Candidate | None, ...]
    """Behind each row; None = shed."""


def table_of(servers: tuple[str, ...], candidates: tuple[Candidate | None, ...]) -> RecordTable:
    """The experience table of a fleet."""
    columns = Columns(tuple(ROW), tuple(SERVER), tuple(CONTEXT), servers, candidates)
    schema = schema_of(len(candidates), len(servers))
    return RecordTable(NAME, row_of, schema.with_metadata({KEY: msgspec.json.encode(columns)}))


def row_of(entry: Entry) -> tuple[Any, ...]:
    """A settled decision as a row of `table_of`."""
    seen, decision, outcome, score = entry.seen, entry.decision, entry.outcome, entry.score
    labelled = outcome is not None and outcome.label is not None
    return (
        decision.request,
        decision.at,
        decision.policy,
        decision.version,
        seen.rows.ravel(),
        seen.mask,
        seen.servers.ravel(),
        seen.context,
        decision.rows[0],
        decision.probability,
        None if score is None else score.expected,
        score.realised if score is not None and labelled else None,
        "lost" if outcome is None else outcome.status.value,
        None if entry.source is None else entry.source.name.lower(),
        None if outcome is None else outcome.latency,
        None if outcome is None else outcome.server,
        None if outcome is None else outcome.model,
        None if outcome is None else outcome.form,
    )


class Experience(Struct, frozen=True, eq=False):
    """An experience file in arrays, N decisions."""

    columns: Columns
    table: Any
    """The Parquet table (pyarrow), for the columns that are not below."""
    rows: NDArray[np.float64]
    """(N, R, len(ROW))"""
    mask: NDArray[np.uint8]
    """(N, R)"""
    servers: NDArray[np.float64]
    """(N, S, len(SERVER))"""
    context: NDArray[np.float64]
    """(N, len(CONTEXT))"""
    action: NDArray[np.int32]
    """(N,)"""
    probability: NDArray[np.float64]
    """(N,)"""
    reward: NDArray[np.float64]
    """(N,); NaN where it is not known."""


def load_experience(out: Path) -> Experience:
    """Read the experience of a run. Raises BadInput if there is none."""
    table = read(out, NAME)
    columns = msgspec.json.decode(table.schema.metadata[KEY], type=Columns)
    count, rows, servers = table.num_rows, len(columns.candidates), len(columns.servers)

    def flat(name: str) -> Any:
        return np.concatenate(
            [np.zeros(0), *(c.flatten().to_numpy(False) for c in table[name].chunks)]
        )

    return Experience(
        columns=columns,
        table=table,
        rows=flat("rows").reshape(count, rows, len(columns.row)),
        mask=flat("mask").astype(np.uint8).reshape(count, rows),
        servers=flat("servers").reshape(count, servers, len(columns.server)),
        context=flat("context").reshape(count, len(columns.context)),
        action=table["action"].to_numpy(),
        probability=table["probability"].to_numpy(),
        reward=table["reward"].to_numpy(),
    )
