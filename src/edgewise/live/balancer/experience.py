"""The experience of a run, for learning: observation, action, propensity and reward by decision.

One row per decision, written once its outcome is settled. The candidate table is stored flat, row
after row, as lists of one length, which are blocks of memory to Arrow and to NumPy alike. The
file's metadata (key ``edgewise``, JSON) names its columns, its servers and the candidate of each
row, so the file can be read without the scenario.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.domain import Candidate, own_id
from edgewise.fleet.table import CONTEXT, ROW, SERVER
from edgewise.live.balancer.open_decisions import TrackedDecision
from edgewise.live.recorder import RecordTable, read
from edgewise.live.records import seconds

NAME = "experience"
KEY = b"edgewise"


class Columns(Struct, frozen=True):
    """The meaning of the numbers in an experience file."""

    row: tuple[str, ...]
    server: tuple[str, ...]
    context: tuple[str, ...]
    servers: tuple[str, ...]
    """Names by index."""
    candidates: tuple[Candidate | None, ...]
    """By row; None sheds."""


def experience_table(
    servers: tuple[str, ...], candidates: tuple[Candidate | None, ...]
) -> RecordTable:
    """The experience table of a fleet; `candidates` by row, the last one (None) sheds."""
    columns = Columns(tuple(ROW), tuple(SERVER), tuple(CONTEXT), servers, candidates)
    schema = pa.schema(
        [
            ("request", pa.string()),
            seconds("at"),  # s since the epoch, balancer's clock
            ("policy", pa.string()),
            ("version", pa.string()),
            ("rows", pa.list_(pa.float64(), len(candidates) * len(ROW))),  # (R, len(ROW)), flat
            ("mask", pa.list_(pa.uint8(), len(candidates))),
            ("servers", pa.list_(pa.float64(), len(servers) * len(SERVER))),  # (S, len(SERVER))
            ("context", pa.list_(pa.float64(), len(CONTEXT))),
            ("action", pa.int32()),  # the row chosen
            ("probability", pa.float64()),  # of choosing it (propensity)
            ("reward", pa.float64()),  # expected utility; null: no outcome was reported
            ("realised", pa.float64()),  # realised utility; null: the right class is not known
            ("status", pa.string()),  # of the outcome; "lost" also if none was reported
            ("source", pa.string()),  # node, client or evaluator; null: none
            seconds("latency"),  # s; from a node: until it began to answer
            ("server", pa.string()),  # that served it in the end
            ("model", pa.string()),
            ("form", pa.int8()),
        ]
    )
    metadata = {KEY: msgspec.json.encode(columns)}
    return RecordTable(NAME, experience_row, schema.with_metadata(metadata))


def experience_row(entry: TrackedDecision) -> tuple[Any, ...]:
    """A settled decision as a row of `experience_table`."""
    seen, decision, outcome, score = entry.observation, entry.decision, entry.outcome, entry.score
    labelled = outcome is not None and outcome.label is not None
    return (
        own_id(decision.request),
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
        *(
            (None,) * 4
            if outcome is None
            else (outcome.latency, outcome.server, outcome.model, outcome.form)
        ),
    )


class Experience(Struct, frozen=True, eq=False):
    """An experience file in arrays: N decisions, R rows, S servers."""

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


def load_experience(run: Path) -> Experience:
    """Read the experience in a run's folder. Raises BadInput if there is none."""
    table = read(run, NAME)
    columns = msgspec.json.decode(table.schema.metadata[KEY], type=Columns)
    count, rows, servers = table.num_rows, len(columns.candidates), len(columns.servers)

    def flat(name: str) -> Any:
        chunks = (chunk.flatten().to_numpy(False) for chunk in table[name].chunks)
        return np.concatenate([np.zeros(0), *chunks])

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
