"""Read recorded arrival times.

A file has one time a line, or is a CSV file whose first line names its columns. Times are numbers,
or ISO 8601 dates such as the ``TIMESTAMP`` of Azure's traces. Empty lines and lines that begin with
``#`` are skipped. In a file without columns a comma before the fraction of a second is read as a
point, as Python's logging writes it: ``2023-01-01 00:00:00,123``.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.errors import ScenarioError
from edgewise.network.trace_reader import PER_SECOND
from edgewise.scenario.workload_schema import TraceArrivals

Floats: TypeAlias = NDArray[np.float64]


class RecordedArrivals(Struct, frozen=True):
    """The arrivals in a file."""

    times: Floats
    """s from the first, in order."""
    backwards: str
    """Where the file's times go back, for a warning; "" if they do not."""


def read_arrivals(arrivals: TraceArrivals) -> RecordedArrivals:
    """The arrivals in the file of `arrivals`. Raises ScenarioError naming file and line."""
    file = arrivals.file
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as lines:
            read = list(_read(lines, file, arrivals.column, PER_SECOND[arrivals.unit]))
    except OSError as error:
        raise ScenarioError(file, "", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScenarioError(file, "", "expected UTF-8 text") from None
    if not read:
        raise ScenarioError(file, "", "expected arrival times, got none")
    times = np.array([time for _, time in read], dtype=np.float64)
    back = np.flatnonzero(np.diff(times) < 0.0)
    backwards = ""
    if len(back):
        first = int(back[0])
        backwards = (
            f"line {read[first + 1][0]} is {times[first] - times[first + 1]:.6g} s before the line "
            f"above it; {len(back)} such lines, all times were sorted"
        )
    times.sort()
    since: Floats = times - times[0]
    return RecordedArrivals(since, backwards)


def _read(
    lines: Iterator[str], file: str, column: str | None, per_second: float
) -> Iterator[tuple[int, float]]:
    """The number of each line that has a time, and the time in s."""
    index: int | None = None
    columns = 1
    dated: bool | None = None
    rows = csv.reader(lines)
    for row in rows:
        if not any(cell.strip() for cell in row) or row[0].lstrip().startswith("#"):
            continue
        at = f"line {rows.line_num}"
        if index is None:
            index = 0
            if column is not None or (row[0].lstrip()[:1].isalpha() and not _is_number(row[0])):
                index, columns = _column(row, column, file, at), len(row)
                continue
        if len(row) > columns == 1:
            row = [",".join(row)]
        if index >= len(row) or any(row[columns:]):
            raise ScenarioError(file, at, f"expected {columns} columns, got {len(row)}")
        parsed = _time(row[index], per_second)
        if parsed is None:
            hint = "; a CSV file needs a first line that names its columns"
            raise ScenarioError(
                file,
                at,
                f"expected seconds or an ISO 8601 time, got {row[index].strip()!r:.60}"
                + (hint if "," in row[index] else ""),
            )
        time, is_date = parsed
        if dated is not None and dated is not is_date:
            raise ScenarioError(file, at, "expected seconds or dates throughout, got both")
        dated = is_date
        yield rows.line_num, time


def _column(row: list[str], column: str | None, file: str, at: str) -> int:
    names = [name.strip() for name in row]
    if column is None:
        return 0
    if column not in names:
        raise ScenarioError(file, at, f"expected a column {column!r}, got {', '.join(names)}")
    return names.index(column)


def _is_number(text: str) -> bool:
    """Also for NaN and infinity, which name no column."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _time(text: str, per_second: float) -> tuple[float, bool] | None:
    """Seconds, and whether they are those of a date; None if it is neither."""
    text = text.strip()
    if _is_number(text):
        seconds = float(text) / per_second
        return (seconds, False) if math.isfinite(seconds) and abs(seconds) < 1e12 else None
    try:
        # Azure has seven decimals; fromisoformat truncates to six.
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return date.timestamp(), True
