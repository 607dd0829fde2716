"""The link's arithmetic, against numbers worked out by hand. 8 kbit/s is 1,000 bytes per second."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import BadInput
from edgewise.network.capacity import Capacity, LinkArrays, constant, stepwise
from edgewise.network.link import Link
from edgewise.network.settings import LinkSettings, Outage
from edgewise.network.transmission import bytes_between, capacity_time, time_to_send

NO_OUTAGE = np.empty((0, 2))
# 1,000 B/s for 1 s, nothing for 1 s, 3,000 B/s for 1 s; 4,000 bytes in a period of 3 s.
TRACE = stepwise([0, 1, 2, 3], [8e3, 0.0, 24e3], repeat=True)
# Opportunities of 1,504 bytes at 10 ms (two) and 30 ms; period 40 ms with one at its end.
STAIRS = Capacity(
    np.array([0.0, 0.01, 0.01, 0.03, 0.03, 0.04, 0.04]),
    np.array([0.0, 0.0, 3008.0, 3008.0, 4512.0, 4512.0, 6016.0]),
    0.04,
)


def kb_per_s(rate: float) -> LinkSettings:
    return LinkSettings(rate_mbps=rate * 0.008)


@pytest.mark.parametrize(
    ("capacity", "start", "size", "finish"),
    [
        (constant(8e3), 0.0, 500, 0.5),
        (constant(8e3), 7.25, 2000, 9.25),
        (constant(8e3), 3.0, 0, 3.0),
        (constant(0.0), 3.0, 1, math.inf),
        (constant(None), 3.0, 10**9, 3.0),
        (TRACE, 0.0, 1000, 1.0),  # the brink of the gap is not beyond it
        (TRACE, 0.0, 1003, 2.001),  # the gap in mid-transfer, then the faster rate
        (TRACE, 1.5, 300, 2.1),  # begins in the gap
        (TRACE, 2.5, 1500, 3.0),  # the last byte of the period
        (TRACE, 2.5, 2000, 3.5),  # wraps
        (TRACE, 2.5, 1500 + 2 * 4000 + 500, 9.5),  # wraps three times
        (TRACE, 300.5, 500 + 3 * 4000, 310.0),  # far out; the brink again
        (stepwise([0, 1, 2], [8e3, 16e3], repeat=False), 0.5, 500 + 2000 + 2000, 3.0),
        (stepwise([0, 1, 2], [8e3, 0.0], repeat=False), 0.5, 501, math.inf),
        (STAIRS, 0.0, 1, 0.01),
        (STAIRS, 0.0, 3008, 0.01),
        (STAIRS, 0.0, 3009, 0.03),
        (STAIRS, 0.01, 1, 0.03),  # an opportunity at the very start is over
        (STAIRS, 0.035, 1504 + 1, 0.05),
        (STAIRS, 0.04, 3008, 0.05),
    ],
)
def test_capacity_time(capacity: Capacity, start: float, size: float, finish: float) -> None:
    assert capacity_time(*capacity, start, size) == pytest.approx(finish, abs=1e-9)


@pytest.mark.parametrize(
    ("t0", "size", "finish"),
    [
        (0.0, 200, 0.2),
        (0.0, 500, 0.5),  # ready when the outage begins
        (0.0, 600, 1.1),  # 0.5 s before the outage of 0.5 s, 0.1 s after
        (0.7, 100, 1.1),  # begins in it
        (0.7, 0, 1.0),  # not even an end of stream passes
        (0.4, 1200, 2.35),  # two outages
    ],
)
def test_time_to_send_with_outages(t0: float, size: float, finish: float) -> None:
    outages = np.array([[0.5, 1.0], [2.0, 2.25]])
    assert time_to_send(*constant(8e3), outages, t0, size) == pytest.approx(finish)


def test_the_trace_runs_on_in_an_outage() -> None:
    # 500 bytes until 0.5; then lost until 2.5; 1,500 until 3.0; 100 more at 1,000 B/s.
    outages = np.array([[0.5, 2.5]])
    assert time_to_send(*TRACE, outages, 0.0, 2100) == pytest.approx(3.1)
    assert bytes_between(*TRACE, outages, 0.0, 3.1) == pytest.approx(2100)


@pytest.mark.parametrize(
    ("t0", "t1", "amount"),
    [(0.0, 1.0, 1000), (0.5, 2.5, 2000), (2.5, 3.5, 2000), (1.0, 13.0, 16000), (2.0, 1.0, 0)],
)
def test_bytes_between(t0: float, t1: float, amount: float) -> None:
    assert bytes_between(*TRACE, NO_OUTAGE, t0, t1) == pytest.approx(amount)


def test_unlimited() -> None:
    arrays = LinkArrays(*constant(None), np.array([[1.0, 2.0]]))
    assert bytes_between(*arrays, 0.0, 1.0) == math.inf
    assert time_to_send(*arrays, 0.5, 10**12) == 0.5
    assert time_to_send(*arrays, 1.5, 1) == 2.0


@settings(max_examples=200, deadline=None)
@given(
    rates=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    start=st.integers(0, 4000),
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=5),
    outage=st.tuples(st.integers(0, 6000), st.integers(1, 3000)),
)
def test_inverse_and_additive(
    rates: list[int], start: int, sizes: list[int], outage: tuple[int, int]
) -> None:
    """The finish has carried what was asked, and parts in a row take as long as the whole."""
    capacity = stepwise(range(len(rates) + 1), [8e3 * r for r in rates], repeat=True)
    begin, length = outage
    outages = np.array([[begin / 1000, (begin + length) / 1000]])
    t0 = t = start / 1000
    finish = time_to_send(*capacity, outages, t0, sum(sizes))
    assert bytes_between(*capacity, outages, t0, finish) == pytest.approx(sum(sizes))
    for size in sizes:
        t = time_to_send(*capacity, outages, t, size)
    assert t == pytest.approx(finish)


def test_chunks_in_a_row_do_not_pay_for_a_late_timer() -> None:
    link = Link(kb_per_s(1))
    assert link.depart(100, 5.0).departure == pytest.approx(5.1)
    # The timer fired 30 ms late, but the chunk had been waiting.
    assert link.depart(100, 5.13, since=5.0).departure == pytest.approx(5.2)
    # This one came when the link had been free for a while.
    assert link.depart(100, 5.43, since=5.4).departure == pytest.approx(5.5)


def test_delay_is_added_after_the_departure() -> None:
    link = Link(LinkSettings(rate_mbps=0.008, delay=0.25))
    passage = link.depart(100, 1.0)
    assert (passage.departure, passage.delivery) == pytest.approx((1.1, 1.35))


def test_opportunities_are_shared_by_waiting_chunks_and_lost_otherwise() -> None:
    link = Link(LinkSettings(), STAIRS)
    assert link.depart(1000, 0.0).departure == pytest.approx(0.01)
    assert link.depart(2000, 0.0101, since=0.0).departure == pytest.approx(0.01)  # 3,000 of 3,008
    assert link.depart(9, 0.0101, since=0.0).departure == pytest.approx(0.03)
    assert link.depart(1495, 0.0301, since=0.0).departure == pytest.approx(0.03)
    assert link.depart(1, 0.0301, since=0.0301).departure == pytest.approx(0.04)


def test_rate_change_in_mid_transfer() -> None:
    link = Link(kb_per_s(1))
    assert link.depart(1000, 10.0).departure == pytest.approx(11.0)
    revised = link.change(10.5, kb_per_s(5))
    assert revised is not None
    assert revised.departure == pytest.approx(10.6)
    revised = link.change(10.55, kb_per_s(0.5))  # twice in one chunk: 250 bytes are left
    assert revised is not None
    assert revised.departure == pytest.approx(11.05)
    assert link.change(11.05, kb_per_s(1)) is None
    assert link.depart(100, 11.05).departure == pytest.approx(11.15)


def test_a_stopped_link_goes_on_when_it_is_changed() -> None:
    link = Link(kb_per_s(0))
    assert link.depart(100, 1.0).departure == math.inf
    revised = link.change(9.0, LinkSettings(delay=0.5))
    assert revised is not None
    assert (revised.departure, revised.delivery) == pytest.approx((9.0, 9.5))


def test_outage_in_mid_transfer() -> None:
    planned = LinkSettings(rate_mbps=0.008, outages=(Outage(at=7.0, duration=1.0),))
    link = Link(planned, origin=100.0)
    link.depart(1000, 103.0)
    revised = link.outage(103.2, 2.0)
    assert revised is not None
    assert revised.departure == pytest.approx(106.0)
    assert link.rate_bps(104.0) == 0.0
    assert link.rate_bps(106.0) == pytest.approx(8e3)
    revised = link.restore(104.0, kb_per_s(1))  # over early: 200 bytes sent, 800 to go
    assert revised is not None
    assert revised.departure == pytest.approx(104.8)
    assert link.depart(2500, 104.9).departure == pytest.approx(107.4)


def test_restart_moves_time_zero() -> None:
    link = Link(LinkSettings(), TRACE, origin=50.0)
    assert link.depart(1000, 51.0).departure == pytest.approx(52 + 1 / 3)
    again = LinkSettings(outages=(Outage(at=0.5, duration=0.2),))
    revised = link.restore(51.5, again, TRACE, restart=True)
    assert revised is not None
    assert revised.departure == pytest.approx(51.5 + 2 + 0.2 / 3)


def test_idle_capacity_is_not_saved_up_over_a_change() -> None:
    link = Link(kb_per_s(1))
    link.change(5.0, kb_per_s(1))
    assert link.depart(100, 5.2, since=4.0).departure == pytest.approx(5.1)


def test_jitter_and_a_shorter_delay_keep_the_order() -> None:
    rng = np.random.default_rng(3)
    jittery = LinkSettings(rate_mbps=8, delay=0.1, jitter=0.05)
    link = Link(jittery, rng=rng)
    passages = [link.depart(1000, i / 1000, since=0.0) for i in range(200)]
    link.change(0.2, LinkSettings(rate_mbps=8))
    passages.append(link.depart(1000, 0.2))
    deliveries = [p.delivery for p in passages]
    assert deliveries == sorted(deliveries)
    assert all(0.1 <= p.delivery - p.departure <= 0.15 for p in passages[:-1])
    assert len({round(p.delivery - p.departure, 6) for p in passages}) > 2


def test_loss_stalls_one_chunk_and_not_the_next() -> None:
    link = Link(LinkSettings(loss=0.3, stall=0.2), rng=np.random.default_rng(1))
    passages = [link.depart(1500, 1.0) for _ in range(4000)]
    stalls = [(p.delivery - 1.0) / 0.2 for p in passages]
    assert stalls == pytest.approx([round(n) for n in stalls])
    assert not any(p.reset for p in passages)
    share = [np.mean([n > k - 0.5 for n in stalls]) for k in (1, 2)]
    assert share == pytest.approx([0.3, 0.09], abs=0.03)  # 4 standard deviations


def test_loss_counts_packets() -> None:
    settings = LinkSettings(loss=0.02, loss_mode="reset")
    link = Link(settings, rng=np.random.default_rng(2))
    resets = np.mean([link.depart(15_000, 1.0).reset for _ in range(4000)])
    assert resets == pytest.approx(1 - 0.98**10, abs=0.025)
    assert not any(link.depart(0, 1.0).reset for _ in range(1000))


def test_the_same_seed_gives_the_same_delays() -> None:
    def fates(seed: int) -> list[tuple[float, ...]]:
        settings = LinkSettings(loss=0.2, jitter=0.1)
        link = Link(settings, rng=np.random.default_rng(seed))
        return [link.depart(3000, float(i)) for i in range(50)]

    assert fates(1) == fates(1) != fates(2)


def test_room() -> None:
    assert Link(LinkSettings()).room(10**9) == math.inf
    link = Link(LinkSettings(queue_bytes=1000))
    assert [link.room(n) for n in (0, 400, 1000, 2000)] == [1000, 600, 0, 0]


def test_rate_of_stairs_is_a_mean() -> None:
    link = Link(LinkSettings(), STAIRS)
    assert link.rate_bps(20.0) == pytest.approx(8 * 6016 / 0.04, rel=0.01)
    assert STAIRS.mean_bps == pytest.approx(8 * 6016 / 0.04)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: constant(-1.0), "rate_bps"),
        (lambda: constant(math.nan), "rate_bps"),
        (lambda: stepwise([0, 1], [1.0, 2.0], repeat=True), "n \\+ 1 times"),
        (lambda: stepwise([0, 1, 1], [1.0, 2.0], repeat=True), "increasing"),
        (lambda: stepwise([0, 1], [-1.0], repeat=True), "rates >= 0"),
        (lambda: stepwise([0, 1], [0.0], repeat=True), "above 0"),
        (lambda: Link(LinkSettings(delay=-1.0)), "delay: expected a number >= 0.0, got -1.0"),
        (lambda: Link(LinkSettings(loss=1.0)), "loss: expected a number < 1.0"),
        (lambda: Link(LinkSettings(queue_bytes=0)), "queue_bytes"),
        (lambda: Link(LinkSettings(loss_mode="drop")), "loss_mode: expected one of reset, stall"),
        (lambda: Link(LinkSettings(loss=0.1)), "rng"),
        (
            lambda: Link(LinkSettings(outages=(Outage(at=2.0, duration=-1.0),))),
            "outages.0..duration",
        ),
        (lambda: Link(LinkSettings()).outage(0.0, 0.0), "duration"),
    ],
)
def test_bad_input(make: object, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        make()  # type: ignore[operator]
