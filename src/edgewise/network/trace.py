"""Bandwidth over time: from a file (`network.trace_reader`), or generated from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

from edgewise.errors import BadInput
from edgewise.network.capacity import Capacity, FloatArray, stepwise
from edgewise.network.trace_reader import Format, TraceUnits, read_trace

Kind = Literal["cellular", "wifi", "backhaul"]
Mbps = Annotated[float, Meta(gt=0.0, le=1e6)]
Offset = Annotated[float, Meta(ge=0.0, le=1e9)] | Literal["seed"]

OFFSET_DRAWN = 1e6
"""s. Drawn offsets lie below it; taken modulo a period, which is much shorter, they are even."""

T = TypeVar("T", bound="_Trace")


class _Trace(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    offset: Offset = 0.0
    """[s] Where in the trace the link begins; ``seed``: at a place that is drawn for each link from
    the scenario's seed. Default: at its beginning, as recorded."""

    def drawn(self: T, seed: int, link: str) -> T:
        """The same with an offset in seconds, drawn if it is to be, for the link of this name."""
        if self.offset != "seed":
            return self
        rng = np.random.default_rng([seed, *link.encode()])
        return msgspec.structs.replace(self, offset=float(rng.uniform(0.0, OFFSET_DRAWN)))

    def _begin(self, capacity: Capacity) -> Capacity:
        if isinstance(self.offset, str):
            raise BadInput("trace.offset: 'seed' is for scenarios; expected seconds here")
        return capacity.shifted(self.offset)


class FileTrace(_Trace, frozen=True, tag_field="kind", tag="file"):
    """Bandwidth from a file: Mahimahi's format, or times and rates in two columns."""

    path: Annotated[str, Meta(min_length=1)]
    """Relative to the scenario or configuration file."""
    format: Format = "auto"
    """*mahimahi* or *rates*. Default: one column is Mahimahi's, two are rates."""
    column: str | None = None
    """Name of the column with the rates, in a CSV file whose first line names its columns.
    Default: the file has no names, but two columns, seconds and Mbit/s."""
    time_column: str | None = None
    """Name of the column with the times, which are numbers or dates. Default: the first column."""
    units: TraceUnits = TraceUnits()
    """Units of the file, if they are not s and Mbit/s: ``{time: ms, rate: kbit/s}``. Default: as
    the format has it."""
    scale: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0
    """[times] Multiplies the bandwidth. Default: as recorded."""
    mean_mbps: Mbps | None = None
    """[Mbit/s] Scales the recording to this mean, before `scale`. Default: as recorded."""

    def load(self, folder: Path) -> Capacity:
        """Read it; a relative path starts at `folder`. Raises ScenarioError."""
        capacity = self.recorded(folder)
        if self.mean_mbps is not None:
            capacity = capacity.scaled(self.mean_mbps * 1e6 / capacity.mean_bps)
        return self._begin(capacity.scaled(self.scale))

    def recorded(self, folder: Path = Path()) -> Capacity:
        """The bandwidth in the file, neither scaled nor shifted. Raises ScenarioError."""
        return read_trace(
            folder / self.path,
            self.format,
            column=self.column,
            time_column=self.time_column,
            units=self.units,
        )


class _SyntheticTrace(_Trace, frozen=True):
    mean_mbps: Mbps
    """[Mbit/s] Mean bandwidth."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 1
    """Seed of this trace alone. Default: any; the scenario's seed does not change the trace."""
    duration: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 300.0
    """[s] Period after which it repeats. Default: long against every fade of the three kinds, short
    against an experiment."""

    def load(self, folder: Path) -> Capacity:
        """Generate it."""
        kind: Any = self.__struct_config__.tag
        return self._begin(synthetic(kind, self.seed, self.mean_mbps * 1e6, self.duration))


class CellularTrace(_SyntheticTrace, frozen=True, tag_field="kind", tag="cellular"):
    """Generated: deep, slow swings, as in a moving phone's uplink."""


class WifiTrace(_SyntheticTrace, frozen=True, tag_field="kind", tag="wifi"):
    """Generated: fast, shallow variation with short drops, as on a shared channel."""


class BackhaulTrace(_SyntheticTrace, frozen=True, tag_field="kind", tag="backhaul"):
    """Generated: steady with spells of cross traffic, as on a wired backhaul."""


LinkTrace: TypeAlias = FileTrace | CellularTrace | WifiTrace | BackhaulTrace


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
