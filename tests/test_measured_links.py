"""The rates, backlogs and round trips that a node measures."""

from __future__ import annotations

import pytest

from edgewise.live.node.measured_links import MeasuredLink
from edgewise.live.wire.round_trips import LeastRtt


def test_a_lone_transfer_measures_the_rate() -> None:
    link = MeasuredLink()
    with link.flow("b", 100_000, lambda: 10.0) as flow:
        report = link.report("b", None, 10.05)
        assert (report.backlog, report.flows, report.throughput) == (100_000, 1, None)
        link.arrived(flow, 10.11, delay=0.010, starved=False)
    report = link.report("b", 0.01, 10.2)
    assert report.throughput == pytest.approx(1e6)
    assert report.measured_at == 10.11
    assert (report.backlog, report.flows) == (0, 0)


def test_two_transfers_share_the_link() -> None:
    """Two of 100 kB over 1 MB/s: both arrive after 0.2 s, each at half the rate."""
    link = MeasuredLink()
    with link.flow("b", 100_000, lambda: 10.0) as one, link.flow("c", 100_000, lambda: 10.0) as two:
        link.arrived(one, 10.2, delay=0.0, starved=False)
        link.arrived(two, 10.2, delay=0.0, starved=False)
    assert link.rate == pytest.approx(1e6)


def test_transfers_that_overlap_for_a_part() -> None:
    """100 kB from 10.0, 50 kB from 10.05: 50 kB alone, then 50 kB each at half rate until 10.15."""
    link = MeasuredLink()
    with link.flow("b", 100_000, lambda: 10.0) as one, link.flow("c", 50_000, lambda: 10.05) as two:
        link.arrived(one, 10.15, delay=0.0, starved=False)
        assert link.rate == pytest.approx(100_000 / 0.15 * (0.05 + 2 * 0.1) / 0.15)
        link.arrived(two, 10.15, delay=0.0, starved=False)


def test_backlog_drains_at_the_measured_rate() -> None:
    link = MeasuredLink()
    link.measured(100_000, 0.1, 1.0, 9.0)
    with link.flow("b", 100_000, lambda: 10.0), link.flow("c", 50_000, lambda: 10.0):
        assert link.report("b", None, 10.05).backlog == pytest.approx(75_000)
        assert link.report("c", None, 10.05).backlog == pytest.approx(25_000)
        assert link.report("b", None, 99.0).backlog == 0
        assert link.report("b", None, 99.0).flows == 1
    assert link.flows == 0


def test_a_transfer_that_fails_measures_nothing() -> None:
    link = MeasuredLink()
    with pytest.raises(OSError, match="gone"), link.flow("b", 1000, lambda: 10.0):
        raise OSError("gone")
    assert link.report("b", None, 11.0).throughput is None
    assert link.flows == 0


def test_a_starved_transfer_counts_only_upwards() -> None:
    link = MeasuredLink()
    link.measured(100_000, 0.1, 1.0, 9.0)
    with link.flow("b", 100_000, lambda: 10.0) as flow:
        link.arrived(flow, 11.0, delay=0.0, starved=True)
    assert link.rate == pytest.approx(1e6)
    with link.flow("b", 100_000, lambda: 12.0) as flow:
        link.arrived(flow, 12.05, delay=0.0, starved=True)
    assert link.rate > 1.2e6


def test_a_first_starved_transfer_is_ignored_below_the_prior() -> None:
    link = MeasuredLink()
    with link.flow("b", 100_000, lambda: 10.0) as flow:
        link.arrived(flow, 11.0, delay=0.0, starved=True)  # 100 kB/s at least
    assert link.report("b", None, 11.0).throughput is None
    with link.flow("b", 100_000, lambda: 12.0) as flow:
        link.arrived(flow, 12.01, delay=0.0, starved=True)  # 10 MB/s at least
    assert link.rate == pytest.approx(1e7)


def test_the_receiver_measures_the_bytes_after_the_first_chunk() -> None:
    link = MeasuredLink()
    with link.flow("me", 100_000, lambda: 10.0) as flow:
        link.received(flow, 80_000, 0.08, 10.1)
    assert link.rate == pytest.approx(1e6)
    with link.flow("me", 500, lambda: 11.0) as flow:
        link.received(flow, 0, 0.0, 11.0)  # all of it in one chunk: nothing to measure
    assert link.rate == pytest.approx(1e6)


def test_a_transfer_of_a_few_bytes_measures_no_rate() -> None:
    link = MeasuredLink()
    with link.flow("b", 545, lambda: 10.0) as flow:
        link.arrived(flow, 10.01, delay=0.001, starved=False)
    assert link.report("b", None, 11.0).throughput is None


def test_the_least_round_trip_of_ten_seconds() -> None:
    rtts = LeastRtt()
    assert rtts.get(0.0) is None
    for at, rtt in ((1.0, 0.020), (2.0, 0.010), (3.0, 0.030), (4.0, 0.015)):
        rtts.add(rtt, at)
    assert rtts.get(5.0) == 0.010
    assert rtts.get(13.0) == 0.015
    assert rtts.get(1000.0) == 0.015  # old, but all there is
