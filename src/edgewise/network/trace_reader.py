"""Read bandwidth traces from files.

Mahimahi's format has one number per line, in milliseconds: at that moment one packet of 1,504 bytes
may leave. A repeated line allows another packet. An opportunity that finds nothing to send is lost.
The last number is the period, after which the trace starts over. (Mahimahi, ``man mm-link``.)

The format *rates* is ``seconds<TAB>Mbit/s``, as in the published HSDPA and broadband traces. A rate
holds from its second until that of the next line; the last one holds as long as the one before it,
and then the trace starts over. (Pensieve's simulator reads the same files with each rate one line
*earlier*, and so ignores the first.) Spaces, a comma or a semicolon may stand for the tab.

The same may stand in two columns of a CSV file whose first line names its columns, as in the
published 4G and 5G measurements; their times are often dates with whole seconds, and the rates of
one second are averaged.

In all formats empty lines and everything after a ``#`` are skipped.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from msgspec import Struct

from edgewise.errors import ScenarioError
from edgewise.network.capacity import Capacity, stepwise

OPPORTUNITY_BYTES = 1504
"""Mahimahi's PACKET_SIZE: an Ethernet payload of 1,500 bytes and the tunnel's 4-byte header."""

Format = Literal["auto", "mahimahi", "rates"]

PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
MBPS = {"Mbit/s": 1.0, "kbit/s": 1e-3, "bit/s": 1e-6, "MB/s": 8.0, "kB/s": 8e-3, "B/s": 8e-6}

MEAN_MAX = 1e9
"""bits/s. A higher mean is no uplink of an edge server but most likely a wrong unit."""
PERIOD_MAX = 86_400.0
"""s. A longer trace is most likely a wrong unit, too."""
_LISTED = 12
"""Columns that an error names; published measurements have dozens."""


class TraceUnits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The units of a trace file."""

    time: Literal["s", "ms", "us", "ns"] | None = None
    """Unit of its times. Default: s; ms in Mahimahi's format."""
    rate: Literal["Mbit/s", "kbit/s", "bit/s", "MB/s", "kB/s", "B/s"] | None = None
    """Unit of its rates. Default: Mbit/s."""


Line = tuple[int, list[str]]
"""The number of a line, and its words."""


def read_trace(
    path: Path,
    format: Format = "auto",
    *,
    column: str | None = None,
    time_column: str | None = None,
    units: TraceUnits | None = None,
) -> Capacity:
    """Read a trace file; `network.trace.FileTrace` describes the arguments.

    Raises:
        ScenarioError: it is missing, unreadable, or wrong at a line, which is named.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise OSError(f"{path} is no file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as e:  # ValueError: not UTF-8, or a null byte in the path
        raise ScenarioError(str(path), "", f"expected a readable trace file: {e}") from e
    file, units = str(path), units or TraceUnits()
    if column is not None:
        return _rates(file, _columns(file, text, column, time_column), units, named=True)
    if time_column is not None:
        raise ScenarioError(file, "time_column", "expected `column` too: that of the rates")
    lines = list(_lines(text))
    if not lines:
        raise ScenarioError(file, "line 1", "expected at least one line, got an empty file")
    _refuse_headings(file, text, lines[0])
    if format == "auto":
        format = "mahimahi" if len(lines[0][1]) == 1 else "rates"
    return (_mahimahi if format == "mahimahi" else _rates)(file, lines, units)


def doubt(capacity: Capacity) -> str | None:
    """Why a trace file probably has other units than it is read in; None if nothing speaks for it.

    >>> doubt(stepwise([0, 1000], [2e9], repeat=True))
    'its mean is 2 Gbit/s, more than 1; check its `units`'
    """
    if capacity.mean_bps > MEAN_MAX:
        return f"its mean is {1e-9 * capacity.mean_bps:.3g} Gbit/s, more than 1; check its `units`"
    if capacity.period > PERIOD_MAX:
        hours = capacity.period / 3600.0
        return f"it is {hours:.3g} hours long, more than a day; check its `units`"
    return None


def _lines(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.splitlines(), start=1):
        words = re.split(r"\s*[,;\s]\s*", line.partition("#")[0].strip())
        if words != [""]:
            yield number, words


def _refuse_headings(file: str, text: str, first: Line) -> None:
    """Raise ScenarioError for a table whose first line names its columns."""
    number, words = first
    if not any(re.match(r"[^\W\d]", word) for word in words if word.lower() != "nan"):
        return
    line = text.splitlines()[number - 1]
    names = [name.strip() for name in next(csv.reader([line], delimiter=_delimiter(line)))]
    raise ScenarioError(
        file,
        f"line {number}",
        f"expected numbers, got names of columns; give `column`, one of: {_listed(names)}",
    )


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _listed(names: list[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _columns(file: str, text: str, column: str, time_column: str | None) -> Iterator[Line]:
    """The times and rates of a table whose first line names its columns."""
    lines = [line.partition("#")[0] for line in text.splitlines()]
    heading = next((line for line in lines if line.strip()), "")
    rows = csv.reader(lines, delimiter=_delimiter(heading))
    names: list[str] = []
    for row in rows:
        if not any(cell.strip() for cell in row):
            continue
        cells = [cell.strip() for cell in row]
        at = f"line {rows.line_num}"
        if not names:
            names = cells
            for wanted in (column, *([] if time_column is None else [time_column])):
                if wanted not in names:
                    problem = f"expected a column {wanted!r}, got {_listed(names)}"
                    raise ScenarioError(file, at, problem)
            rate = names.index(column)
            time = 0 if time_column is None else names.index(time_column)
            continue
        if len(cells) <= max(time, rate):
            raise ScenarioError(file, at, f"expected {len(names)} columns, got {len(cells)}")
        yield rows.line_num, [cells[time], cells[rate]]


def _mahimahi(file: str, lines: list[Line], units: TraceUnits) -> Capacity:
    if units.rate is not None:
        problem = f"expected none, got {units.rate}: Mahimahi's format has no rates"
        raise ScenarioError(file, "units.rate", problem)
    per_second = PER_SECOND[units.time or "ms"]
    stamps: list[int] = []
    for number, words in lines:
        # Fifteen digits are 30,000 years.
        if len(words) != 1 or not re.fullmatch("[0-9]{1,15}", words[0]):
            raise ScenarioError(
                file,
                f"line {number}",
                "expected a whole number of milliseconds, as in Mahimahi's format, or two columns, "
                f"seconds and Mbit/s; got {' '.join(words)!r:.60}",
            )
        stamps.append(int(words[0]))
        if len(stamps) > 1 and stamps[-1] < stamps[-2]:
            raise ScenarioError(
                file,
                f"line {number}",
                f"expected a number not below the line before, {stamps[-2]}, got {stamps[-1]}",
            )
    if stamps[-1] == 0:
        raise ScenarioError(
            file, f"line {lines[-1][0]}", "expected a last number above 0: it is the period"
        )
    moments, packets = np.unique(np.array(stamps, dtype=np.int64), return_counts=True)
    after = np.cumsum(packets) * float(OPPORTUNITY_BYTES)
    # Each time is a jump: it stands twice, first with the bytes from before.
    times = np.concatenate(([0.0], np.repeat(moments / per_second, 2)))
    cumulative = np.zeros(times.shape[0])
    cumulative[2::2] = after
    cumulative[3::2] = after[:-1]
    return Capacity(times, cumulative, float(times[-1]))


def _rates(
    file: str, lines: list[Line] | Iterator[Line], units: TraceUnits, *, named: bool = False
) -> Capacity:
    """A polygon from times and rates. In `named` columns a time may occur several times, with the
    mean of its rates."""
    per_second, mbps = PER_SECOND[units.time or "s"], MBPS[units.rate or "Mbit/s"]
    seconds: list[float] = []
    rates: list[list[float]] = []
    for number, words in lines:
        second, rate = (_seconds(words[0], per_second, named), _number(words[-1]) * mbps)
        if len(words) != 2 or not (abs(second) <= 1e12 and 0.0 <= rate <= 1e6):  # false for NaN
            expected = "a time and a rate" if named else "'seconds<TAB>Mbit/s' with a rate"
            raise ScenarioError(
                file,
                f"line {number}",
                f"expected {expected} from 0 to 1e6 Mbit/s, got {' '.join(words)!r:.60}",
            )
        if named and seconds and second == seconds[-1]:
            rates[-1].append(rate)
            continue
        if seconds and second <= seconds[-1]:
            raise ScenarioError(
                file,
                f"line {number}",
                f"expected a time after that of the line before, {seconds[-1]:.13g} s, "
                f"got {second:.13g}",
            )
        seconds.append(second)
        rates.append([rate])
    means = [1e6 * math.fsum(each) / len(each) for each in rates]
    if not any(rate > 0.0 for rate in means):
        raise ScenarioError(file, "", "expected at least one rate above 0, or nothing ever passes")
    last = seconds[-1] - seconds[-2] if len(seconds) > 1 else 1.0
    return stepwise([*seconds, seconds[-1] + last], means, repeat=True)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _seconds(word: str, per_second: float, dates: bool) -> float:
    """A time in s, NaN if it is none. `dates`: it may be a date."""
    number = _number(word)
    if not math.isnan(number) or not dates:
        return number / per_second
    # The Irish 4G and 5G measurements (Raca et al. 2018, 2020) have 2019.12.14_10.16.30.
    found = re.fullmatch(r"(\d{4})\.(\d\d)\.(\d\d)_(\d\d)\.(\d\d)\.(\d\d)", word)
    text = "{}-{}-{} {}:{}:{}".format(*found.groups()) if found else word
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
