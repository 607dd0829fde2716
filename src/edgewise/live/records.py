"""The Parquet files of a run, and the writer that makes them while the run goes on.

Theory of operation
-------------------
A Parquet file is unreadable until its footer is written, so nothing can be appended to one. Rows
are gathered in memory and written as *segments*, ``NAME.parts/000000.parquet`` and so on, each
whole: into a temporary file that is then renamed. `Recorder.close` joins the segments into
``NAME.parquet``, one row group after the other. Memory stays flat however long the run; a process
that is killed leaves its segments, and `read` reads those as well.

What may never happen: a reader sees half a file; rows that were there vanish. A recorder opened on
a folder with older rows adds to them.

Writing happens in a thread of its own. The thread that adds rows only ever appends to a list.

Columns are SI units (seconds, bytes, bytes/s); stamps are s since the epoch, on the clock said.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from edgewise.domain import Command, Decision, Outcome, Report, Request, Score, Stamps
from edgewise.errors import BadInput

log = logging.getLogger(__name__)

SEGMENT_ROWS = 2048
"""Rows of a segment. An experience row has about 3 kB, so a full buffer stays at a few MB."""
GROUP_BYTES = 16 * 2**20
"""Uncompressed size of a row group of the joined file; what closing needs of memory."""
BEHIND_MAX = 16
"""Segments that may wait for the disk. Beyond, rows are dropped and counted: a full disk must not
take the balancer with it."""


class Table(Struct, frozen=True):
    """A file of a run: its name without suffix, and its columns."""

    name: str
    schema: pa.Schema


_CANDIDATE = pa.struct([("server", pa.string()), ("model", pa.string()), ("form", pa.int8())])
_SECONDS = pa.float64()

REQUESTS = Table(
    "requests",
    pa.schema(
        [
            ("request", pa.string()),
            ("ingress", pa.string()),
            ("payload_bytes", pa.int64()),
            ("sent_at", _SECONDS),  # client's clock
            ("deadline", _SECONDS),
            ("accuracy", pa.float64()),
            ("task", pa.string()),
            ("image", pa.string()),  # file name; null: generated
            ("label", pa.int32()),
        ]
    ),
)
"""What the client sent."""

OUTCOMES = Table(
    "outcomes",
    pa.schema(
        [
            ("request", pa.string()),
            ("status", pa.string()),
            ("latency", _SECONDS),
            ("server", pa.string()),
            ("model", pa.string()),
            ("form", pa.int8()),
            ("predicted", pa.int32()),
            ("label", pa.int32()),
            ("accuracy", pa.float64()),
            ("reason", pa.string()),
            *((f"stamp_{name}", _SECONDS) for name in Stamps.__struct_fields__),
            *((f"stage_{name}", _SECONDS) for name in Stamps().stages()),
            ("expected", pa.float64()),
            ("realised", pa.float64()),
            ("effective", pa.bool_()),
            ("timeliness", pa.float64()),
            ("meets_demand", pa.bool_()),
        ]
    ),
)
"""How it ended, with its score: one row per request."""

DECISIONS = Table(
    "decisions",
    pa.schema(
        [
            ("request", pa.string()),
            ("ingress", pa.string()),
            ("at", _SECONDS),  # this and sent_at: balancer's clock
            ("sent_at", _SECONDS),
            ("deadline", _SECONDS),
            ("accuracy", pa.float64()),
            ("payload_bytes", pa.int64()),
            ("trigger", pa.string()),  # who came first: metadata or ask
            ("policy", pa.string()),
            ("version", pa.string()),
            ("probability", pa.float64()),
            ("server", pa.string()),  # null = shed
            ("model", pa.string()),
            ("form", pa.int8()),
            ("reason", pa.string()),
            ("predicted_latency", _SECONDS),
            ("rows", pa.list_(pa.int32())),
            ("ranked", pa.list_(_CANDIDATE)),
            ("sequence", pa.int64()),
            ("dispatch", pa.int64()),
        ]
    ),
)
"""What the balancer decided."""

REPORTS = Table(
    "reports",
    pa.schema(
        [
            ("server", pa.string()),
            ("at", _SECONDS),  # the reporter's clock, as all stamps in it
            ("received", _SECONDS),  # balancer's clock
            ("clock_ahead", _SECONDS),  # of the reporter's clock against the balancer's
            ("workers", pa.int32()),
            ("running", pa.list_(_SECONDS)),
            ("queue_deadlines", pa.list_(_SECONDS)),
            ("queue_works", pa.list_(_SECONDS)),
            ("prepare_backlog", _SECONDS),
            ("utilisation", pa.float64()),
            ("draining", pa.bool_()),
            ("commands_seen", pa.int64()),
            ("arrivals_low", pa.int64()),
            ("arrivals_bits", pa.int64()),
            (
                "services",
                pa.list_(
                    pa.struct(
                        [
                            ("model", pa.string()),
                            ("service_time", _SECONDS),
                            ("batch", pa.float64()),
                            ("served", pa.int64()),
                        ]
                    )
                ),
            ),
            (
                "peers",
                pa.list_(
                    pa.struct(
                        [
                            ("server", pa.string()),
                            ("throughput", pa.float64()),
                            ("measured_at", _SECONDS),
                            ("rtt", _SECONDS),
                            ("backlog", pa.int64()),
                            ("flows", pa.int64()),
                        ]
                    )
                ),
            ),
        ]
    ),
)
"""What the nodes said of themselves."""


def request_row(request: Request, image: str | None = None, label: int | None = None) -> Any:
    """A row of `REQUESTS`."""
    return (
        request.id,
        request.ingress,
        request.payload_bytes,
        request.sent_at,
        request.deadline,
        request.accuracy,
        request.task,
        image,
        label,
    )


def outcome_row(outcome: Outcome, score: Score) -> Any:
    """A row of `OUTCOMES`."""
    stamps = outcome.stamps
    return (
        outcome.request,
        outcome.status.value,
        outcome.latency,
        outcome.server,
        outcome.model,
        outcome.form,
        outcome.predicted,
        outcome.label,
        outcome.accuracy,
        outcome.reason,
        *(getattr(stamps, name) for name in Stamps.__struct_fields__),
        *stamps.stages().values(),
        score.expected,
        score.realised,
        score.effective,
        score.timeliness,
        score.meets_demand,
    )


def decision_row(
    request: Request,
    decision: Decision,
    command: Command,
    trigger: str,
    predicted_latency: float | None,
) -> Any:
    """A row of `DECISIONS`."""
    return (
        request.id,
        request.ingress,
        decision.at,
        request.sent_at,
        request.deadline,
        request.accuracy,
        request.payload_bytes,
        trigger,
        decision.policy,
        decision.version,
        decision.probability,
        command.server,
        command.model,
        command.form if command.server is not None else None,
        decision.reason.value if decision.reason is not None else None,
        predicted_latency,
        decision.rows,
        [(each.server, each.model, each.form) for each in decision.ranked],
        command.sequence,
        command.dispatch,
    )


def report_row(report: Report, received: float, clock_ahead: float) -> Any:
    """A row of `REPORTS`."""
    return (
        report.server,
        report.at,
        received,
        clock_ahead,
        report.workers,
        report.running,
        [item.deadline for item in report.queue],
        [item.work for item in report.queue],
        report.prepare_backlog,
        report.utilisation,
        report.draining,
        report.commands_seen,
        report.arrivals_low,
        report.arrivals_bits,
        [
            (model, each.service_time, each.batch, each.served)
            for model, each in report.services.items()
        ],
        [
            (peer, each.throughput, each.measured_at, each.rtt, each.backlog, each.flows)
            for peer, each in report.peers.items()
        ],
    )


class Recorder:
    """Writes tables of a run into a folder; with `out` None it keeps nothing.

    Use it as a context manager, or call `close`. `add` and `flush` are for one thread, and never
    wait for the disk. Raises BadInput if the folder cannot be made or holds files of one of the
    names with other columns.

    Parameters
    ----------
    out:
        The folder; made if it is not there.
    tables:
        What will be added.
    segment_rows:
        Rows after which a segment is written of itself; `flush` writes what there is.
    """

    def __init__(
        self, out: Path | None, tables: Sequence[Table], segment_rows: int = SEGMENT_ROWS
    ) -> None:
        self.dropped = 0
        """Rows that could not be written."""
        self._rows_max = segment_rows
        self._parts: dict[str, _Parts] = {}
        self._rows: dict[str, list[Any]] = {table.name: [] for table in tables}
        self._behind: list[Future[None]] = []
        if out is None:
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._parts = {table.name: _Parts(out, table) for table in tables}
        except OSError as error:
            raise BadInput(f"{out}: cannot be written to: {error.strerror}") from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="records")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, table: Table, row: Any) -> None:
        """Add a row, a tuple in the order of the table's columns."""
        if not self._parts:
            return
        rows = self._rows[table.name]
        rows.append(row)
        if len(rows) >= self._rows_max:
            self._write(table.name)

    def flush(self) -> None:
        """Begin to write what has been gathered. Call it every few seconds: what is not written is
        lost if the process is killed."""
        for name in self._parts:
            self._write(name)

    def close(self) -> None:
        """Write the rest and join the segments; waits until that is done. Idempotent."""
        if not self._parts:
            return
        self.flush()
        self._thread.shutdown(wait=True)
        self._reap()
        for parts in self._parts.values():
            parts.join()
        self._parts = {}

    def _write(self, name: str) -> None:
        rows = self._rows[name]
        if not rows:
            return
        self._rows[name] = []
        self._reap()
        if len(self._behind) >= BEHIND_MAX:
            self._lose(len(rows), "the disk is too slow")
            return
        future = self._thread.submit(self._parts[name].write, rows)
        self._behind.append(future)

    def _reap(self) -> None:
        """Look at what the thread has finished."""
        waiting = []
        for future in self._behind:
            if not future.done():
                waiting.append(future)
            elif (error := future.exception()) is not None:
                if not isinstance(error, _NotWritten):
                    raise error
                self._lose(error.rows, str(error))
        self._behind = waiting

    def _lose(self, rows: int, why: str) -> None:
        self.dropped += rows
        log.error("records: %d rows were not written: %s", rows, why)


class _NotWritten(Exception):
    """A segment could not be written."""

    def __init__(self, rows: int, why: str) -> None:
        self.rows = rows
        super().__init__(why)


class _Parts:
    """The segments of one table on disk."""

    def __init__(self, out: Path, table: Table) -> None:
        self._table = table
        self._whole = out / f"{table.name}.parquet"
        self._folder = out / f"{table.name}.parts"
        if self._whole.exists():
            # Both are there only if a process died after joining: then the parts are in the whole.
            shutil.rmtree(self._folder, ignore_errors=True)
            if not _schema_of(self._whole).equals(table.schema):
                raise BadInput(
                    f"{self._whole}: has other columns than this version of edgewise or this "
                    "scenario writes; move it, or choose another folder"
                )
        self._folder.mkdir(exist_ok=True)
        for left in self._folder.glob("*.tmp"):
            left.unlink()
        taken = [int(path.stem) for path in self._folder.glob("*.parquet")]
        self._next = max(taken, default=-1) + 1
        if self._whole.exists():
            os.replace(self._whole, self._part())

    def _part(self) -> Path:
        path = self._folder / f"{self._next:06d}.parquet"
        self._next += 1
        return path

    def write(self, rows: list[Any]) -> None:
        schema = self._table.schema
        columns = [
            pa.array(values, field.type)
            for values, field in zip(zip(*rows, strict=True), schema, strict=True)
        ]
        path = self._part()
        temporary = path.with_suffix(".tmp")
        try:
            table = pa.Table.from_arrays(columns, schema=schema)
            pq.write_table(table, temporary, compression="zstd")
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _NotWritten(len(rows), str(error)) from None

    def join(self) -> None:
        temporary = self._whole.with_suffix(".tmp")
        with pq.ParquetWriter(temporary, self._table.schema, compression="zstd") as writer:
            gathered: list[Any] = []
            for path in sorted(self._folder.glob("*.parquet")):
                with pq.ParquetFile(path) as part:
                    for group in range(part.num_row_groups):
                        gathered.append(part.read_row_group(group))
                        if sum(each.nbytes for each in gathered) >= GROUP_BYTES:
                            writer.write_table(pa.concat_tables(gathered))
                            gathered = []
            if gathered:
                writer.write_table(pa.concat_tables(gathered))
        os.replace(temporary, self._whole)
        shutil.rmtree(self._folder)


def _schema_of(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInput(f"{path}: expected a Parquet file: {error}") from None


def read(out: Path, table: Table) -> pa.Table:
    """All rows of a table in a run's folder, whether its recorder was closed or not.

    Raises BadInput if there is none.
    """
    whole, folder = out / f"{table.name}.parquet", out / f"{table.name}.parts"
    if whole.exists():
        return pq.read_table(whole)
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise BadInput(f"{whole}: no such file, nor segments beside it")
    return pa.concat_tables([pq.read_table(path) for path in paths])
