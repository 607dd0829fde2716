"""Traces written and read back, the commands for them, and what the synthetic ones are like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgewise.cli import main
from edgewise.errors import BadInput
from edgewise.network.capacity import constant, stepwise
from edgewise.network.link import Link
from edgewise.network.settings import LinkSettings
from edgewise.network.trace import Kind, synthetic
from edgewise.network.trace_files import trace_text
from edgewise.network.trace_reader import OPPORTUNITY_BYTES, read_trace
from edgewise.network.transmission import bytes_between

KINDS: tuple[Kind, ...] = ("cellular", "wifi", "backhaul")


@pytest.mark.parametrize("kind", KINDS)
def test_rates_are_read_back_as_they_were(kind: Kind, tmp_path: Path) -> None:
    made = synthetic(kind, 3, 20e6, 30.0)
    file = tmp_path / "trace"
    file.write_text(trace_text(made, "rates", "a comment"))
    again = read_trace(file)
    assert again.period == pytest.approx(made.period)
    assert np.allclose(again.cumulative, made.cumulative, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_mahimahi_s_opportunities_come_when_the_bytes_do(kind: Kind, tmp_path: Path) -> None:
    made = synthetic(kind, 3, 20e6, 30.0)
    file = tmp_path / "trace"
    file.write_text(trace_text(made, "mahimahi"))
    again = read_trace(file)
    assert again.period == pytest.approx(made.period)
    arrays = [Link(LinkSettings(), c).arrays() for c in (made, again)]
    # Never more than one opportunity behind, and never ahead.
    for t in np.arange(0.0005, 30.0, 0.0917):
        a, b = (bytes_between(*each, 0.0, float(t)) for each in arrays)
        millisecond = 1e-3 * 8e7 / 8  # of a rate that no trace here reaches
        assert b - 1e-6 <= a < b + OPPORTUNITY_BYTES + millisecond


def test_a_trace_that_ends_with_an_outage_keeps_its_period(tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.write_text(trace_text(stepwise([0, 1, 2], [1e6, 0.0], repeat=True), "mahimahi"))
    again = read_trace(file)
    assert again.period == 2.0
    assert again.cumulative[-1] == (125_000 // OPPORTUNITY_BYTES + 1) * OPPORTUNITY_BYTES


def test_a_capacity_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="repeats"):
        trace_text(constant(1e6), "rates")
    file = tmp_path / "trace"
    file.write_text("1\n2\n")
    with pytest.raises(BadInput, match="staircase"):
        trace_text(read_trace(file), "rates")


def rates(kind: Kind, seed: int, duration: float) -> np.ndarray:
    capacity = synthetic(kind, seed, 1e6, duration)
    return 8.0 * np.diff(capacity.cumulative) / np.diff(capacity.times)


@pytest.mark.parametrize(
    ("kind", "step", "sigma", "memory"),
    # As docs/network.md has them.
    [("cellular", 0.2, 0.5, 5.0), ("wifi", 0.1, 0.25, 2.0), ("backhaul", 1.0, 0.06, 30.0)],
)
def test_the_rate_is_log_normal_with_exponential_memory(
    kind: Kind, step: float, sigma: float, memory: float
) -> None:
    """Robust statistics, for fades and outages are on top of the process."""
    spread, correlation = [], []
    for seed in range(6):
        log = np.log(np.maximum(rates(kind, seed, 3000.0), 1e-9))
        quarter, median, three = np.percentile(log, [25, 50, 75])
        spread.append((three - median) / 0.6745)  # fades are below: the upper half is clean
        assert median - quarter >= 0.5 * (three - median)
        # How often neighbours lie on the same side of the median tells their correlation:
        # P(same side) = 1/2 + asin(rho)/pi for a Gaussian pair (Sheppard 1899).
        lag = max(round(memory / step / 4), 1)
        same = np.mean((log[lag:] > median) == (log[:-lag] > median))
        correlation.append(np.sin(np.pi * (same - 0.5)))
    assert np.mean(spread) == pytest.approx(sigma, rel=0.2)
    lag = max(round(memory / step / 4), 1)
    assert np.mean(correlation) == pytest.approx(np.exp(-lag * step / memory), abs=0.12)


@pytest.mark.parametrize(
    ("kind", "every", "lasting"), [("cellular", 120.0, 0.7), ("wifi", None, 0.0)]
)
def test_outages_have_the_documented_frequency_and_length(
    kind: Kind, every: float | None, lasting: float
) -> None:
    step = {"cellular": 0.2, "wifi": 0.1}[kind]
    starts, silent, total = 0, 0.0, 0.0
    for seed in range(8):
        off = rates(kind, seed, 6000.0) == 0.0
        starts += int(np.sum(off[1:] & ~off[:-1]))
        silent += step * float(np.sum(off))
        total += 6000.0
    if every is None:
        assert starts == 0
        return
    assert total / starts == pytest.approx(every, rel=0.2)
    assert silent / starts == pytest.approx(lasting, rel=0.25)


def test_the_commands(tmp_path: Path) -> None:
    file = tmp_path / "phone.tsv"
    arguments = ["traces", "generate", "cellular", "--seconds", "20", "--seed", "7"]
    assert CliRunner().invoke(main.app, [*arguments, "--out", str(file)]).exit_code == 0
    shown = CliRunner().invoke(main.app, arguments).output
    assert shown == file.read_text()
    assert shown.startswith("# edgewise traces generate cellular --seconds 20 --mean 20 --seed 7\n")
    told = CliRunner().invoke(main.app, ["traces", "show", str(file)]).output
    assert "period\t20 s\nmean\t20 Mbit/s\n" in told
    nowhere = CliRunner().invoke(main.app, [*arguments, "--out", str(file / "no")])
    assert isinstance(nowhere.exception, BadInput)


def test_a_trace_of_weeks_is_shown_at_once(tmp_path: Path) -> None:
    file = tmp_path / "us.tsv"
    file.write_text("\ufeff0\t8\n5000000\t24\n")  # a byte order mark, and microseconds for seconds
    shown = CliRunner().invoke(main.app, ["traces", "show", str(file)]).output
    assert "period\t1e+07 s\nmean\t16 Mbit/s\nleast\t8 Mbit/s" in shown
