"""Trace files and synthetic traces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgewise.errors import BadInput, ScenarioError
from edgewise.network.link import Link
from edgewise.network.settings import LinkSettings, checked
from edgewise.network.trace import FileTrace, Kind, LinkTrace, WifiTrace, read_trace, synthetic
from edgewise.network.transmission import bytes_between, capacity_time


def write(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_mahimahi_semantics(tmp_path: Path) -> None:
    """One 1,504-byte opportunity per line; the last number is the period."""
    capacity = read_trace(write(tmp_path, "0\n5\n5\n\n20  # period\n"))
    assert capacity.period == 0.02
    assert capacity.cumulative[-1] == 4 * 1504
    finish = [capacity_time(*capacity, 0.0, n * 1504) for n in range(1, 9)]
    # The one at 0 is over for who begins at 0; it comes again at 20, along with the last line's.
    assert finish == pytest.approx([0.005, 0.005, 0.02, 0.02, 0.025, 0.025, 0.04, 0.04])


def test_mahimahi_packets_as_mm_link_sends_them(tmp_path: Path) -> None:
    """1,500-byte packets that wait take turns; what a late one finds is its next opportunity."""
    link = Link(LinkSettings(), read_trace(write(tmp_path, "2\n4\n6\n10\n")))
    departures = [link.depart(1504, i / 1000, since=0.0).departure for i in range(6)]
    assert departures == pytest.approx([0.002, 0.004, 0.006, 0.010, 0.012, 0.014])
    assert link.depart(1504, 0.0155).departure == pytest.approx(0.016)
    assert link.depart(1504, 0.0165).departure == pytest.approx(0.020)  # the one at 16 is used up


def test_constant_rate_as_mahimahi(tmp_path: Path) -> None:
    """12 Mbit/s is one packet of 1,500 bytes per millisecond; Mahimahi counts 1,504."""
    capacity = read_trace(write(tmp_path, "1\n"))
    assert capacity.mean_bps == pytest.approx(12.032e6)
    assert capacity_time(*capacity, 100.0005, 150_400) == pytest.approx(100.1)


def test_rates(tmp_path: Path) -> None:
    capacity = read_trace(write(tmp_path, "# s Mbit/s\n10\t8\r\n11\t0\r\n13\t16\r\n"))
    assert capacity.times.tolist() == [0.0, 1.0, 3.0, 5.0]
    assert capacity.cumulative.tolist() == [0.0, 1e6, 1e6, 5e6]
    assert capacity.period == 5.0
    assert capacity_time(*capacity, 0.5, 1.5e6) == pytest.approx(3.5)


def test_one_line_of_rates_is_a_constant(tmp_path: Path) -> None:
    capacity = read_trace(write(tmp_path, "0\t8\n"))
    assert capacity_time(*capacity, 0.25, 10e6) == pytest.approx(10.25)


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("", "line 1", "empty file"),
        ("# nothing\n", "line 1", "empty file"),
        ("5\nx\n", "line 2", "whole milliseconds, got 'x'"),
        ("5\n-6\n", "line 2", "whole milliseconds"),
        ("9" * 16, "line 1", "whole milliseconds, got '9999"),
        ("9" * 5000, "line 1", "whole milliseconds, got '9999"),
        ("5\n6 7\n", "line 2", "whole milliseconds, got '6 7'"),
        ("5\n\n3\n", "line 3", "not below the line before, 5, got 3"),
        ("0\n0\n", "line 2", "the period"),
        ("0\t1\n1\t-2\n", "line 2", "seconds<TAB>Mbit/s"),
        ("0\t1\n1\n", "line 2", "seconds<TAB>Mbit/s"),
        ("0\t1\n1\tnan\n", "line 2", "seconds<TAB>Mbit/s"),
        ("0\t1\n1\t1e308\n", "line 2", "a rate from 0 to 1e6"),
        ("0\t1\n1e300\t1\n", "line 2", "seconds<TAB>Mbit/s"),
        ("0\t1\n2\t1\n2\t1\n", "line 3", "above those of the line before, 2, got 2"),
        ("0\t0\n1\t0\n", "", "at least one rate above 0"),
    ],
)
def test_errors_name_file_line_and_expectation(
    tmp_path: Path, text: str, where: str, problem: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ScenarioError) as caught:
        read_trace(path)
    assert caught.value.file == str(path)
    assert caught.value.path == where
    assert problem in str(caught.value)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="readable trace file"):
        read_trace(tmp_path / "none")
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match="readable trace file"):
        read_trace(tmp_path / "b")
    with pytest.raises(ScenarioError, match="readable trace file"):
        read_trace(tmp_path / "a\0b")


@pytest.mark.parametrize("kind", ["cellular", "wifi", "backhaul"])
def test_synthetic(kind: Kind) -> None:
    capacity = synthetic(kind, 7, 20e6, 120.0)
    assert capacity.mean_bps == pytest.approx(20e6)
    assert capacity.period == pytest.approx(120.0)
    no_outage = np.empty((0, 2))
    assert bytes_between(*capacity, no_outage, 30.0, 270.0) == pytest.approx(2 * 300e6)
    again, other = synthetic(kind, 7, 20e6, 120.0), synthetic(kind, 8, 20e6, 120.0)
    assert np.array_equal(capacity.cumulative, again.cumulative)
    assert not np.array_equal(capacity.cumulative, other.cumulative)


def test_kinds_differ_in_variation() -> None:
    def variation(kind: Kind) -> float:
        values = []
        for seed in range(8):
            c = synthetic(kind, seed, 1e6)
            rates = np.diff(c.cumulative) / np.diff(c.times)
            values.append(float(rates.std() / rates.mean()))
        return float(np.mean(values))

    assert variation("cellular") > 1.5 * variation("wifi") > 1.5 * variation("backhaul") > 0.0
    gaps = [np.any(np.diff(synthetic("cellular", s, 1e6, 600.0).cumulative) == 0) for s in range(5)]
    assert any(gaps)


def test_a_trace_of_the_settings_is_loaded(tmp_path: Path) -> None:
    write(tmp_path, "0\t8\n1\t24\n")
    assert FileTrace(path="trace").load(tmp_path).mean_bps == pytest.approx(16e6)
    scaled = FileTrace(path="trace", mean_mbps=5.0, scale=2.0).load(tmp_path)
    assert scaled.mean_bps == pytest.approx(10e6)
    made = WifiTrace(seed=3, mean_mbps=1.0, duration=10.0).load(tmp_path)
    assert np.array_equal(made.cumulative, synthetic("wifi", 3, 1e6, 10.0).cumulative)


@pytest.mark.parametrize(
    ("trace", "problem"),
    [
        (WifiTrace(mean_mbps=-1.0), "trace.mean_mbps: expected a number > 0.0"),
        (WifiTrace(mean_mbps=1.0, duration=0.0), "trace.duration: expected a number >= 1.0"),
        (WifiTrace(mean_mbps=1.0, duration=1e9), "trace.duration: expected a number <= 86400.0"),
        (WifiTrace(mean_mbps=1.0, seed=-1), "trace.seed: expected a whole number >= 0"),
        (FileTrace(path=""), "trace.path"),
    ],
)
def test_a_bad_trace_is_named(trace: LinkTrace, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        checked(LinkSettings(trace=trace))
