"""Bandwidth traces: read from files, or generated from a seed.

Mahimahi's format has one number per line, in milliseconds: at that moment one packet of 1,504 bytes
may leave. A repeated line allows another packet. An opportunity that finds nothing to send is lost.
The last number is the period, after which the trace starts over. (Mahimahi, ``man mm-link``.)

The other format is ``seconds<TAB>Mbit/s``, as in the published HSDPA and broadband traces. A rate
holds from its second until that of the next line; the last one holds as long as the one before it,
and then the trace starts over. (Pensieve's simulator reads the same files with each rate one line
*earlier*, and so ignores the first.)

In both formats empty lines and everything after a ``#`` are skipped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from msgspec import Meta, Struct

from edgewise.errors import BadInput, ScenarioError
from edgewise.network.capacity import Capacity, FloatArray, stepwise

OPPORTUNITY_BYTES = 1504
"""Mahimahi's PACKET_SIZE: an Ethernet payload of 1,500 bytes and the tunnel's 4-byte header."""

Format = Literal["auto", "mahimahi", "rates"]
Kind = Literal["cellular", "wifi", "backhaul"]
Mbps = Annotated[float, Meta(gt=0.0, le=1e6)]


class FileTrace(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="file"
):
    """Bandwidth from a file: Mahimahi's format, or lines ``seconds<TAB>Mbit/s``."""

    path: Annotated[str, Meta(min_length=1)]
    """Relative to the scenario or configuration file."""
    format: Format = "auto"
    """*mahimahi* or *rates*. Default: one column is Mahimahi's, two are rates."""
    scale: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0
    """[times] Multiplies the bandwidth. Default: as recorded."""
    mean_mbps: Mbps | None = None
    """[Mbit/s] Scales the recording to this mean, before `scale`. Default: as recorded."""

    def load(self, folder: Path) -> Capacity:
        """Read it; a relative path starts at `folder`. Raises ScenarioError."""
        capacity = read_trace(folder / self.path, self.format)
        if self.mean_mbps is not None:
            capacity = capacity.scaled(self.mean_mbps * 1e6 / capacity.mean_bps)
        return capacity.scaled(self.scale)


class _SyntheticTrace(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    mean_mbps: Mbps
    """[Mbit/s] Mean bandwidth."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 1
    """Seed of this trace alone. Default: any; the scenario's seed does not change the network."""
    duration: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 300.0
    """[s] Period after which it repeats. Default: long against every fade of the three kinds, short
    against an experiment."""

    def load(self, folder: Path) -> Capacity:
        """Generate it."""
        kind: Any = self.__struct_config__.tag
        return synthetic(kind, self.seed, self.mean_mbps * 1e6, self.duration)


class CellularTrace(_SyntheticTrace, frozen=True, tag_field="kind", tag="cellular"):
    """Generated: deep, slow swings, as in a moving phone's uplink."""


class WifiTrace(_SyntheticTrace, frozen=True, tag_field="kind", tag="wifi"):
    """Generated: fast, shallow variation with short drops, as on a shared channel."""


class BackhaulTrace(_SyntheticTrace, frozen=True, tag_field="kind", tag="backhaul"):
    """Generated: steady with spells of cross traffic, as on a wired backhaul."""


LinkTrace: TypeAlias = FileTrace | CellularTrace | WifiTrace | BackhaulTrace


def read_trace(path: Path, format: Format = "auto") -> Capacity:
    """Read a trace file.

    Raises:
        ScenarioError: it is missing, unreadable, or wrong at a line, which is named.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would never end
            raise OSError(f"{path} is no file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as e:  # ValueError: not UTF-8, or a null byte in the path
        raise ScenarioError(str(path), "", f"expected a readable trace file: {e}") from e
    lines = list(_lines(text))
    if not lines:
        raise ScenarioError(str(path), "line 1", "expected at least one line, got an empty file")
    if format == "auto":
        format = "mahimahi" if len(lines[0][1]) == 1 else "rates"
    return (_mahimahi if format == "mahimahi" else _rates)(str(path), lines)


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if words:
            yield number, words


def _mahimahi(file: str, lines: list[tuple[int, list[str]]]) -> Capacity:
    stamps: list[int] = []
    for number, words in lines:
        # Fifteen digits are 30,000 years.
        if len(words) != 1 or not re.fullmatch("[0-9]{1,15}", words[0]):
            raise ScenarioError(
                file,
                f"line {number}",
                f"expected whole milliseconds, got {' '.join(words)!r:.60}",
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
    times_ms, packets = np.unique(np.array(stamps, dtype=np.int64), return_counts=True)
    after = np.cumsum(packets) * float(OPPORTUNITY_BYTES)
    # Each time is a jump: it stands twice, first with the bytes from before.
    times = np.concatenate(([0.0], np.repeat(times_ms / 1000.0, 2)))
    cumulative = np.zeros(times.shape[0])
    cumulative[2::2] = after
    cumulative[3::2] = after[:-1]
    return Capacity(times, cumulative, float(times[-1]))


def _rates(file: str, lines: list[tuple[int, list[str]]]) -> Capacity:
    seconds: list[float] = []
    rates_bps: list[float] = []
    for number, words in lines:
        try:
            second, mbit = (float(word) for word in words)
        except ValueError:
            second = mbit = math.nan
        if not (abs(second) <= 1e12 and 0.0 <= mbit <= 1e6):  # false for NaN, too
            raise ScenarioError(
                file,
                f"line {number}",
                "expected 'seconds<TAB>Mbit/s' with a rate from 0 to 1e6, "
                f"got {' '.join(words)!r:.60}",
            )
        if seconds and second <= seconds[-1]:
            raise ScenarioError(
                file,
                f"line {number}",
                f"expected seconds above those of the line before, {seconds[-1]:g}, got {second:g}",
            )
        seconds.append(second)
        rates_bps.append(mbit * 1e6)
    if not any(rate > 0.0 for rate in rates_bps):
        raise ScenarioError(file, "", "expected at least one rate above 0, or nothing ever passes")
    last = seconds[-1] - seconds[-2] if len(seconds) > 1 else 1.0
    return stepwise([*seconds, seconds[-1] + last], rates_bps, repeat=True)


class _Character(NamedTuple):
    """How the bandwidth of a kind of network varies.

    The rate is log-normal with exponential memory, times fades and outages, which begin as a
    Poisson process and last exponentially long.
    """

    step: float  # s between changes of rate
    sigma: float  # standard deviation of the logarithm of the rate
    memory: float  # s until the correlation has fallen to 1/e
    fade_every: float  # s, mean
    fade_for: float  # s, mean
    fade_to: float  # share of the rate left
    outage_every: float  # s, mean; inf = never
    outage_for: float  # s, mean


# Orders of magnitude, not a fit to one network. cellular: the 142 Norwegian HSDPA commutes (Riiser
# et al. 2013) have coefficients of variation from 0.1 to 0.6; this is at the upper end of these,
# with gaps as at handovers. wifi: steadier, with short dips while others send. backhaul: a fixed
# line shared with others, which slows down for seconds at busy times.
_CHARACTERS: dict[str, _Character] = {
    "cellular": _Character(0.2, 0.5, 5.0, 40.0, 3.0, 0.15, 120.0, 0.7),
    "wifi": _Character(0.1, 0.25, 2.0, 8.0, 0.5, 0.35, math.inf, 0.0),
    "backhaul": _Character(1.0, 0.06, 30.0, 90.0, 8.0, 0.5, math.inf, 0.0),
}


def synthetic(kind: Kind, seed: int, mean_bps: float, duration: float = 300.0) -> Capacity:
    """A repeating trace made from a seed; the same arguments give the same trace.

    Args:
        kind: ``cellular`` (swings, fades, outages), ``wifi`` (dips), ``backhaul`` (nearly even).
        seed: >= 0. Traces of different kinds with the same seed are unrelated.
        mean_bps: exact mean over the period, bits/s.
        duration: period, s.

    Raises:
        BadInput: an argument is out of range.
    """
    if kind not in _CHARACTERS:
        raise BadInput(f"trace.kind: expected one of {', '.join(_CHARACTERS)}, got {kind!r}")
    if seed < 0:
        raise BadInput(f"trace.seed: expected a whole number >= 0, got {seed!r}")
    if not (math.isfinite(mean_bps) and mean_bps > 0.0):
        raise BadInput(f"trace.mean_bps: expected bits/s above 0, got {mean_bps!r}")
    c = _CHARACTERS[kind]
    steps = round(duration / c.step) if math.isfinite(duration) else 0
    if steps < 1:
        raise BadInput(f"trace.duration: expected at least {c.step:g} s, got {duration!r}")
    rng = np.random.default_rng([seed, *kind.encode()])
    correlation = math.exp(-c.step / c.memory)
    innovations = rng.standard_normal(steps) * c.sigma * math.sqrt(1.0 - correlation * correlation)
    log_rate = np.empty(steps)
    level = rng.standard_normal() * c.sigma
    for i in range(steps):
        level = correlation * level + innovations[i]
        log_rate[i] = level
    rates = np.exp(log_rate)
    _dips(rates, c.step, c.fade_every, c.fade_for, c.fade_to, rng.exponential)
    _dips(rates, c.step, c.outage_every, c.outage_for, 0.0, rng.exponential)
    if not np.any(rates > 0.0):
        rates[:] = 1.0  # all of it is one outage, but it must send something
    rates *= mean_bps / rates.mean()
    return stepwise(np.arange(steps + 1) * (duration / steps), rates, repeat=True)


def _dips(
    rates: FloatArray,
    step: float,
    every: float,
    mean_length: float,
    share: float,
    exponential: Callable[[float], float],
) -> None:
    """Multiply `rates` in place by `share`, in intervals of random begin and length."""
    if math.isinf(every):
        return
    t = exponential(every)
    while t < step * rates.shape[0]:
        length = max(exponential(mean_length), step)
        rates[int(t / step) : int((t + length) / step)] *= share
        t += length + exponential(every)
