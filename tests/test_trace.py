"""Trace files and synthetic traces."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

import edgewise as ew
from edgewise.errors import BadInput, ScenarioError
from edgewise.live.run.addresses import relay_links
from edgewise.network.link import Link
from edgewise.network.settings import LinkChange, LinkEvent, LinkSettings, checked
from edgewise.network.trace import FileTrace, Kind, LinkTrace, WifiTrace, synthetic
from edgewise.network.trace_reader import TraceUnits, doubt, read_trace
from edgewise.network.transmission import bytes_between, capacity_time
from edgewise.scenario import link_events


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
        (
            "5\nx\n",
            "line 2",
            "whole number of milliseconds, as in Mahimahi's format, or two columns",
        ),
        ("5\nx\n", "line 2", "got 'x'"),
        ("5\n-6\n", "line 2", "whole number of milliseconds"),
        ("9" * 16, "line 1", "got '9999"),
        ("9" * 5000, "line 1", "got '9999"),
        ("5\n6 7\n", "line 2", "got '6 7'"),
        ("5\n\n3\n", "line 3", "not below the line before, 5, got 3"),
        ("0\n0\n", "line 2", "the period"),
        ("0\t1\n1\t-2\n", "line 2", "seconds<TAB>Mbit/s"),
        ("0\t1\n1\n", "line 2", "seconds<TAB>Mbit/s"),
        ("0\t1\n1\tnan\n", "line 2", "seconds<TAB>Mbit/s"),
        ("0\t1\n1\t1e308\n", "line 2", "a rate from 0 to 1e6"),
        ("0\t1\n1e300\t1\n", "line 2", "seconds<TAB>Mbit/s"),
        ("0\t1\n2\t1\n2\t1\n", "line 3", "after that of the line before, 2 s, got 2"),
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


def test_units_of_a_file(tmp_path: Path) -> None:
    text = "1500000000000\t8000\n1500000001000\t4000\n1500000002000\t2000\n"
    units = TraceUnits(time="ms", rate="kbit/s")
    found = read_trace(write(tmp_path, text), units=units)
    expected = read_trace(write(tmp_path, "0\t8\n1\t4\n2\t2\n"))
    assert found.period == pytest.approx(3.0)
    assert found.cumulative == pytest.approx(expected.cumulative)
    megabytes = read_trace(
        write(tmp_path, "0\t1\n1\t0.5\n2\t0.25\n"), units=TraceUnits(rate="MB/s")
    )
    assert megabytes.cumulative == pytest.approx(expected.cumulative)
    packets = read_trace(write(tmp_path, "100\n5000\n"), units=TraceUnits(time="us"))
    assert packets.period == pytest.approx(0.005)
    with pytest.raises(ScenarioError, match="Mahimahi's format has no rates"):
        read_trace(write(tmp_path, "1\n2\n"), units=TraceUnits(rate="kbit/s"))


@pytest.mark.parametrize("separator", ["\t", "  ", ",", ", ", ";"])
def test_two_columns_with_any_separator(separator: str, tmp_path: Path) -> None:
    text = "".join(f"{second}{separator}{rate}\n" for second, rate in ((0, 8), (1.5, 4)))
    assert read_trace(write(tmp_path, text)).mean_bps == pytest.approx(6e6)


FIVE_G = """Timestamp;Operatorname;DL_bitrate;UL_bitrate
2019.12.14_10.16.30;B;200;8000
2019.12.14_10.16.30;B;200;4000
2019.12.14_10.16.31;B;400;1000

2019.12.14_10.16.33;B;400;0
"""


def test_a_csv_with_named_columns(tmp_path: Path) -> None:
    """As the published 5G measurements have it: kbit/s, dates, several lines of a second."""
    path = write(tmp_path, FIVE_G)
    for text in (FIVE_G, FIVE_G.replace(";", ","), "\ufeff" + FIVE_G):
        path.write_text(text, encoding="utf-8")
        found = read_trace(path, column="UL_bitrate", units=TraceUnits(rate="kbit/s"))
        assert found.times == pytest.approx([0.0, 1.0, 3.0, 5.0])
        assert np.diff(found.cumulative) == pytest.approx([6e6 / 8, 2 * 1e6 / 8, 0.0])
    with pytest.raises(ScenarioError, match="line 2: expected a time and a rate"):
        read_trace(path, column="UL_bitrate", time_column="Operatorname")
    with pytest.raises(ScenarioError, match="expected a column 'bitrate', got Timestamp, Operat"):
        read_trace(path, column="bitrate")
    with pytest.raises(ScenarioError, match="names of columns; give `column`, one of: Timestamp, "):
        read_trace(path)
    with pytest.raises(ScenarioError, match="expected `column` too"):
        read_trace(path, time_column="Timestamp")


def test_wrong_units_are_doubted(tmp_path: Path) -> None:
    fine = "".join(f"{second}\t{2 + second % 3}\n" for second in range(3600))
    assert doubt(read_trace(write(tmp_path, fine))) is None
    milliseconds = "".join(f"{1000 * second}\t{2 + second % 3}\n" for second in range(3600))
    assert "hours long" in str(doubt(read_trace(write(tmp_path, milliseconds))))
    kbps = "".join(f"{second}\t{2000 + second % 3}\n" for second in range(3600))
    assert "2 Gbit/s, more than 1" in str(doubt(read_trace(write(tmp_path, kbps))))


@pytest.mark.parametrize("text", ["0\t8\n1\t0\n3\t4\n", "0\n0\n2\n2\n7\n9\n"])
def test_an_offset_begins_later_in_the_same_trace(text: str, tmp_path: Path) -> None:
    whole = read_trace(write(tmp_path, text))
    no_outage = np.empty((0, 2))
    for offset in (0.0, 0.3, 0.5, 1.0, 0.999, 2.25) if whole.period > 1 else (0.001, 0.002, 0.008):
        later = FileTrace(path="trace", offset=offset + 2 * whole.period).load(tmp_path)
        assert later.period == whole.period
        assert later.times[0] == later.cumulative[0] == 0.0
        assert np.all(np.diff(later.times) >= 0.0)
        assert later.mean_bps == pytest.approx(whole.mean_bps)
        for t in np.linspace(0.0, 2.5 * whole.period, 23) + 1e-7:
            expected = bytes_between(*whole, no_outage, offset + 1e-9, offset + t)
            assert bytes_between(*later, no_outage, 1e-9, t) == pytest.approx(expected, abs=0.01)


def test_an_offset_drawn_by_the_seed_differs_by_link_and_seed() -> None:
    trace = {"kind": "wifi", "mean_mbps": 20.0, "offset": "seed"}
    base = ew.load("smoke")
    link = msgspec.convert({"trace": trace}, type(base.network.link))
    event = LinkEvent(at=1.0, link="left", set=LinkChange(trace=link.trace))
    network = msgspec.structs.replace(base.network, link=link, links={}, events=(event,))
    world = msgspec.structs.replace(base, network=network)
    offsets = {
        (seed, name): each.trace.offset
        for seed in (1, 2)
        for name, each in world.with_overrides(seed=seed).all_links().items()
        if each.trace is not None
    }
    assert len(set(offsets.values())) == len(offsets) == 4
    assert all(isinstance(each, float) for each in offsets.values())
    assert world.all_links() == world.all_links()
    ((_, planned),) = link_events(world)
    assert planned.set.trace.offset == offsets[(1, "uplink:left")]
    # The relay of a live run gets the same.
    assert relay_links(world)["uplink:left"] == world.all_links()["uplink:left"]
    with pytest.raises(BadInput, match="'seed' is for scenarios"):
        link.capacity()


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
