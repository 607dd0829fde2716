"""Writes a run's Parquet files while the run goes on.

Theory of operation
-------------------
A Parquet file is unreadable until its footer is written, so nothing can be appended to one. Rows
are therefore gathered in memory and written as *segments*, ``NAME.parts/000000.parquet`` and so on,
each into a temporary file that is then renamed. `Recorder.close` joins the segments into
``NAME.parquet``, one row group after the other. Memory stays flat however long the run. A process
that is killed leaves its segments, and `read` reads those as well.

The caller must not wait. `Recorder.add` only appends to a list; a thread turns the added objects
into rows and the rows into columns. That thread shares the interpreter with an event loop that has
milliseconds to spare, so it works on a few rows at a time and rests in between. Compressing and
writing take most of its time and run outside the interpreter.

What may never happen: a reader sees half a file; rows that were there vanish. A recorder opened on
a folder with older rows adds to them.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from edgewise.errors import BadInput
from edgewise.versions import versions

log = logging.getLogger(__name__)

SEGMENT_ROWS = 1024
"""Rows of a segment. A decision that waits to be written takes some 5 kB, so a segment 5 MB."""
GROUP_BYTES = 16 * 2**20
"""Uncompressed bytes of a row group of the joined file, and so the memory that closing takes."""
BEHIND_MAX = 16
"""Segments that may wait for the disk. Beyond that, rows are dropped and counted, so that a full
disk does not stop the balancer."""
SLICE_ROWS = 16
"""Rows that are turned into columns at a time. This holds the interpreter for a third of a
millisecond, against the 5 ms that a decision may take at p99."""
REST = 0.002
"""s between two slices. With two tables of 500 rows/s each, the thread is still idle most of the
time."""


VERSIONS = b"versions"
"""Key of a table's metadata: the versions that wrote it, as JSON."""


class RecordTable(Struct, frozen=True):
    """A table of a run: its file name without suffix, and its columns."""

    name: str
    row: Callable[..., tuple[Any, ...]]
    """Makes a row, in the order of the columns, from the arguments of `Recorder.add`. It is called
    later and in another thread, so the arguments must not change any more."""
    schema: pa.Schema


def with_versions(schema: pa.Schema) -> pa.Schema:
    """The schema with the versions in its metadata.

    >>> import json
    >>> "edgewise" in json.loads(with_versions(pa.schema([])).metadata[VERSIONS])
    True
    """
    found = msgspec.json.encode(versions("pyarrow"))
    return schema.with_metadata({**(schema.metadata or {}), VERSIONS: found})


class Recorder:
    """Writes the tables of a run into a folder.

    Use it as a context manager, or call `close`. `add` and `flush` are for one thread, and never
    wait for the disk. Raises BadInput if the folder cannot be made, or has one of the files with
    other columns; on closing also if the disk is full, naming what was lost and where the rest is.

    Parameters
    ----------
    out:
        The folder, made if necessary; None: nothing is recorded.
    tables:
        The tables that rows will be added to.
    segment_rows:
        Rows after which a segment is written; `flush` writes one at once.
    patient:
        Wait for the disk rather than lose rows, and write without resting: for a process that
        answers no requests meanwhile.
    """

    def __init__(
        self,
        out: Path | None,
        tables: Sequence[RecordTable],
        segment_rows: int = SEGMENT_ROWS,
        *,
        patient: bool = False,
    ) -> None:
        self.dropped = 0
        """Rows that could not be written."""
        self._rows_max = segment_rows
        self._patient = patient
        self._hurry = threading.Event()
        if patient:
            self._hurry.set()
        self._parts: dict[str, _Parts] = {}
        self._gathered: dict[str, list[tuple[Any, ...]]] = {table.name: [] for table in tables}
        self._behind: list[Future[tuple[int, str]]] = []
        if out is None:
            return
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._parts = {table.name: _Parts(out, table, self._hurry) for table in tables}
        except OSError as error:
            raise BadInput(f"{out}: cannot be written to: {error.strerror}") from None
        # Arrow's first array from NumPy loads code for 50 ms, with the interpreter held.
        _column((np.zeros(1),), pa.list_(pa.float64(), 1))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="records")

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, table: RecordTable, *arguments: Any) -> None:
        """Add a row, which ``table.row(*arguments)`` will make."""
        if not self._parts:
            return
        gathered = self._gathered[table.name]
        gathered.append(arguments)
        if len(gathered) >= self._rows_max:
            self._write(table.name)

    def flush(self) -> None:
        """Start to write the rows gathered so far.

        Call it every few seconds: rows that are not written are lost if the process is killed.
        """
        for name in self._parts:
            self._write(name)

    def close(self) -> None:
        """Write the rest and join the segments, and wait for that. Idempotent.

        Raises BadInput, in one line, if a file cannot be written. Segments that cannot be joined
        stay, and `read` reads them.
        """
        if not self._parts:
            return
        self._hurry.set()
        self.flush()
        self._thread.shutdown(wait=True)
        self._reap()
        joined, self._parts = self._parts, {}
        problems = [problem for parts in joined.values() if (problem := parts.join())]
        if problems:
            lost = f"; {self.dropped} rows were lost" if self.dropped else ""
            raise BadInput(f"{'; '.join(problems)}{lost}")

    def _write(self, name: str) -> None:
        gathered = self._gathered[name]
        if not gathered:
            return
        self._gathered[name] = []
        self._reap()
        if len(self._behind) >= BEHIND_MAX:
            if not self._patient:
                self._lose(len(gathered), "the disk is too slow")
                return
            self._behind[0].exception()  # waits for it
        self._behind.append(self._thread.submit(self._parts[name].write, gathered))

    def _reap(self) -> None:
        """Count the rows of segments that the thread could not write."""
        waiting = []
        for future in self._behind:
            if not future.done():
                waiting.append(future)
            else:
                rows, why = future.result()
                if rows:
                    self._lose(rows, why)
        self._behind = waiting

    def _lose(self, rows: int, why: str) -> None:
        self.dropped += rows
        log.error("records: %d rows were not written: %s", rows, why)


class _Parts:
    """The segments of one table on disk."""

    def __init__(self, out: Path, table: RecordTable, hurry: threading.Event) -> None:
        self._table = table
        self._schema = with_versions(table.schema)
        self._hurry = hurry
        # Numbers hardly repeat: a dictionary of them costs as much as writing them.
        self._text_columns = [f.name for f in table.schema if pa.types.is_string(f.type)]
        self._whole = out / f"{table.name}.parquet"
        self._folder = out / f"{table.name}.parts"
        if self._whole.exists():
            # Both exist only if a process died after joining: then the file has all the parts.
            shutil.rmtree(self._folder, ignore_errors=True)
            if not _schema_of(self._whole).equals(table.schema):
                raise BadInput(
                    f"{self._whole}: has other columns than this version of edgewise or this "
                    "scenario writes; move it, or choose another folder"
                )
        self._folder.mkdir(exist_ok=True)
        for left in self._folder.glob("*.tmp"):
            left.unlink()
        self._save(table.schema.empty_table(), pa.BufferOutputStream())  # the first takes 20 ms
        taken = [int(path.stem) for path in self._folder.glob("*.parquet")]
        self._next = max(taken, default=-1) + 1
        if self._whole.exists():
            os.replace(self._whole, self._part())

    def _part(self) -> Path:
        path = self._folder / f"{self._next:06d}.parquet"
        self._next += 1
        return path

    def write(self, gathered: list[tuple[Any, ...]]) -> tuple[int, str]:
        """Write a segment, emptying `gathered`; returns how many rows were lost, and why."""
        count = len(gathered)
        batches = []
        for start in range(0, count, SLICE_ROWS):
            here = slice(start, start + SLICE_ROWS)
            batches.append(self._batch(gathered[here]))
            gathered[here] = [()] * len(gathered[here])  # frees the arguments
            if not self._hurry.is_set():
                time.sleep(REST)
        path = self._part()
        temporary = path.with_suffix(".tmp")
        try:
            self._save(pa.Table.from_batches(batches, self._schema), temporary)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            return count, str(error)
        finally:
            del batches
            # Arrow's allocator keeps the memory of its peak, and every segment is a peak.
            pa.default_memory_pool().release_unused()
        return 0, ""

    def _batch(self, gathered: list[tuple[Any, ...]]) -> pa.RecordBatch:
        schema = self._schema
        rows = [self._table.row(*arguments) for arguments in gathered]
        columns = [
            _column(values, field.type)
            for values, field in zip(zip(*rows, strict=True), schema, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def _save(self, table: pa.Table, path: Path | pa.BufferOutputStream) -> None:
        pq.write_table(table, path, compression="zstd", use_dictionary=self._text_columns)

    def join(self) -> str:
        """Make one file of the segments; returns why that was impossible, or ""."""
        temporary = self._whole.with_suffix(".tmp")
        try:
            self._join_into(temporary)
            os.replace(temporary, self._whole)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            why = os.strerror(error.errno) if error.errno else str(error)
            return f"{self._whole}: cannot be written: {why}; its rows stay in {self._folder}"
        shutil.rmtree(self._folder)
        return ""

    def _join_into(self, file: Path) -> None:
        with pq.ParquetWriter(
            file, self._schema, compression="zstd", use_dictionary=self._text_columns
        ) as writer:
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


def _column(values: tuple[Any, ...], kind: pa.DataType) -> pa.Array:
    """A column; arrays of a fixed length are copied once, as one block of memory."""
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(values, kind)
    flat = pa.array(np.concatenate(values, dtype=kind.value_type.to_pandas_dtype()))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def _schema_of(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInput(f"{path}: expected a Parquet file: {error}") from None


def read(out: Path, name: str) -> pa.Table:
    """Read the table `name` of a run's folder, whether its recorder was closed or not.

    Raises BadInput if there is no such table.
    """
    whole, folder = out / f"{name}.parquet", out / f"{name}.parts"
    if whole.exists():
        return pq.read_table(whole)
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise BadInput(f"{whole}: no such file, nor segments beside it")
    return pa.concat_tables([pq.read_table(path) for path in paths])
