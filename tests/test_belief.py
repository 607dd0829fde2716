"""The belief's compiled functions, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.domain import Service
from edgewise.fleet import belief as core
from edgewise.fleet.arrays import FLIGHTS_MAX, QUEUE_MAX, Belief, copy, new_belief

QUICK = settings(max_examples=40, deadline=None)
"""No deadline: compiling, or a busy machine, is no failure."""

T = 1000.0
NOTHING = np.zeros(0)


def service(server: str, seconds: float = 0.1) -> Service:
    return Service(server=server, model="m", accuracy=0.8, latency=(seconds,))


def fleet(workers: tuple[int, ...] = (1, 2), edf: bool = True, shared: bool = True) -> Belief:
    names = [f"s{i}" for i in range(len(workers))]
    made = new_belief(
        names,
        [service(name) for name in names],
        workers=workers,
        speed=[1.0] * len(workers),
        prepare_seconds=[0.01] * len(workers),
        prepare_own=False,
        prepare_enabled=True,
        shared_uplink=shared,
        edf=edf,
        silence=1.0,
    )
    return made


def report(
    belief: Belief,
    s: int,
    at: float,
    now: float | None = None,
    *,
    running: tuple[float, ...] = (),
    queue: tuple[tuple[float, float], ...] = (),
    prepare: float = 0.0,
    seen: int = 0,
    low: int = 0,
    bits: int = 0,
) -> bool:
    """A report of (deadline, work) pairs."""
    return bool(
        core.on_report(
            belief,
            s,
            at,
            at if now is None else now,
            np.array(running, float),
            np.array([deadline for deadline, _ in queue], float),
            np.array([work for _, work in queue], float),
            prepare,
            0.5,
            0.0,
            seen,
            low,
            bits,
        )
    )


def dispatch(
    belief: Belief,
    now: float,
    to: int,
    *,
    ingress: int = 0,
    work: float = 0.1,
    ready: float | None = None,
    deadline: float | None = None,
    size: float = 1000.0,
    prepare: float = 0.0,
    rate: float = 1000.0,
) -> tuple[int, int]:
    return core.on_decision(
        belief,
        now,
        ingress,
        to,
        now + 1.0 if deadline is None else deadline,
        work,
        now if ready is None else ready,
        size if ingress != to else 0.0,
        prepare,
        rate,
    )


def jobs(belief: Belief, s: int) -> list[tuple[float, float, int]]:
    """(ready, work, dispatch) of what waits on a server."""
    rows = belief.jobs[s, : belief.servers[s]["jobs"]]
    return sorted((float(j["input_at"]), float(j["work"]), int(j["dispatch"])) for j in rows)


def backlog(belief: Belief, s: int, now: float) -> float:
    """s until the server is through with everything."""
    core.play_forward(belief, s, now)
    n = int(belief.servers[s]["workers"])
    work = float(belief.jobs[s, : belief.servers[s]["jobs"]]["work"].sum())
    return float(core.water_level(belief.free[s], n, now, work)) - now


# -- layout ----------------------------------------------------------------------------------------


def test_services_must_be_sorted_by_server() -> None:
    with pytest.raises(ValueError, match="sorted by server"):
        new_belief(
            ["x", "y"],
            [service("y"), service("x")],
            workers=[1, 1],
            speed=[1.0, 1.0],
            prepare_seconds=[0.0, 0.0],
            prepare_own=False,
            prepare_enabled=True,
            shared_uplink=True,
            edf=True,
            silence=1.0,
        )


def test_uplinks_are_shared_and_pairs_are_not() -> None:
    uplink, pair = fleet((1, 1, 1)).path, fleet((1, 1, 1), shared=False).path
    assert uplink.tolist() == [[-1, 3, 3], [4, -1, 4], [5, 5, -1]]
    off_diagonal = [int(pair[i, j]) for i in range(3) for j in range(3) if i != j]
    assert len(set(off_diagonal)) == 6
    assert min(off_diagonal) >= 3  # 0–2 are the clients' links


def test_a_copy_knows_the_same_and_learns_apart() -> None:
    one = fleet()
    other = copy(one)
    dispatch(one, T, 1)
    assert one.servers[1]["dispatches"] == 1
    assert other.servers[1]["dispatches"] == 0


# -- workers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "work", "expected"),
    [
        ([5.0], 0.0, 5.0),
        ([5.0], 2.0, 7.0),
        ([0.0], 2.0, 12.0),  # idle since 0: counts from now = 10
        ([10.0, 14.0], 0.0, 10.0),
        ([10.0, 14.0], 3.0, 13.0),  # the first alone, below the second's level
        ([10.0, 14.0], 4.0, 14.0),
        ([10.0, 14.0], 8.0, 16.0),  # both rise together
        ([11.0, 12.0, 20.0], 5.0, 14.0),
        ([11.0, 12.0, 20.0], 17.0, 20.0),
        ([11.0, 12.0, 20.0], 20.0, 21.0),
    ],
)
def test_level(free: list[float], work: float, expected: float) -> None:
    now = 4.0 if free == [5.0] else 10.0
    assert core.water_level(np.array(free), len(free), now, work) == pytest.approx(expected)


@QUICK
@given(
    st.lists(st.floats(0, 20), min_size=1, max_size=6).map(sorted),
    st.floats(0, 50),
)
def test_level_is_where_the_poured_work_stands(free: list[float], work: float) -> None:
    """Its definition: Σ max(0, t − max(free, now)) = work."""
    now = 10.0
    t = core.water_level(np.array(free), len(free), now, work)
    poured = sum(max(0.0, t - max(f, now)) for f in free)
    assert poured == pytest.approx(work, abs=1e-9) or (work == 0 and t == max(free[0], now))


def test_set_free_keeps_the_order() -> None:
    free = np.array([1.0, 4.0, 6.0, math.inf])
    core.set_free(free, 3, 0, 5.0)
    assert free.tolist() == [4.0, 5.0, 6.0, math.inf]
    core.set_free(free, 3, 0, 9.0)
    assert free.tolist() == [5.0, 6.0, 9.0, math.inf]


# -- dead reckoning --------------------------------------------------------------------------------


def test_a_report_is_played_forward() -> None:
    """1 worker: 0.2 s left, then 0.3 s and 0.5 s wait; 0.6 s later 0.4 s are left."""
    b = fleet()
    report(b, 0, T, running=(0.2,), queue=((T + 9, 0.3), (T + 9, 0.5)))
    assert backlog(b, 0, T) == pytest.approx(1.0)
    assert backlog(b, 0, T + 0.6) == pytest.approx(0.4)
    assert b.servers[0]["jobs"] == 0  # the last one started at 0.5
    assert backlog(b, 0, T + 5.0) == 0.0


def test_an_old_report_is_as_good_as_a_fresh_one_of_the_same_moment() -> None:
    late, prompt = fleet(), fleet()
    for b, now in ((late, T + 0.25), (prompt, T)):
        report(b, 1, T, now, running=(0.1, 0.4), queue=((T + 1, 0.3), (T + 2, 0.3)))
    assert backlog(late, 1, T + 0.25) == pytest.approx(backlog(prompt, 1, T + 0.25))


def test_two_workers_take_the_queue_in_parallel() -> None:
    """Left 0.1 and 0.4; 0.3 starts at 0.1 (to 0.4), 0.2 starts at 0.4 (to 0.6)."""
    b = fleet()
    report(b, 1, T, running=(0.1, 0.4), queue=((T + 1, 0.3), (T + 2, 0.2)))
    core.play_forward(b, 1, T + 0.45)
    assert b.free[1, :2] == pytest.approx([T + 0.4, T + 0.6])


@pytest.mark.parametrize(("edf", "second"), [(True, 0.25), (False, 0.5)])
def test_the_queue_is_served_in_its_discipline(edf: bool, second: float) -> None:
    """While 0.1 s run, a job of 0.5 s due late arrives, then one of 0.25 s due early."""
    b = fleet(edf=edf)
    report(b, 0, T, running=(0.1,))
    dispatch(b, T, 0, ingress=0, work=0.5, ready=T + 0.01, deadline=T + 9)
    dispatch(b, T, 0, ingress=0, work=0.25, ready=T + 0.02, deadline=T + 1)
    core.play_forward(b, 0, T + 0.11)
    assert b.free[0, 0] == pytest.approx(T + 0.1 + second)


def test_no_job_starts_before_its_input_is_there() -> None:
    """An urgent job whose photo arrives at 0.3 does not hold up one that is there."""
    b = fleet()
    report(b, 0, T)
    dispatch(b, T, 0, work=0.5, ready=T + 0.3, deadline=T + 0.4)
    dispatch(b, T, 0, work=0.2, ready=T + 0.05, deadline=T + 9)
    core.play_forward(b, 0, T + 0.1)
    assert b.free[0, 0] == pytest.approx(T + 0.25)
    core.play_forward(b, 0, T + 0.31)
    assert b.free[0, 0] == pytest.approx(T + 0.8)


@QUICK
@given(
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(("look", "dispatch", "report", "outcome", "reset")),
            st.floats(0.0, 0.3),
            st.floats(0.01, 0.5),
        ),
        max_size=40,
    ),
)
def test_it_never_misses_the_moment_at_which_the_next_job_starts(
    edf: bool, steps: list[tuple[str, float, float]]
) -> None:
    """Against one that goes through all jobs at every look."""
    trusting, thorough = fleet(edf=edf), fleet(edf=edf)
    now, number = T, 0
    for what, later, seconds in steps:
        now += later
        for b in (trusting, thorough):
            if b is thorough:
                b.servers["next_start"] = -math.inf
            if what == "look":
                core.play_forward(b, 1, now)
            elif what == "dispatch":
                dispatch(b, now, 1, work=seconds, ready=now + later, deadline=now + 1.0 - later)
            elif what == "report":
                queue = ((now + seconds, seconds), (now + later, later))
                report(b, 1, now, running=(seconds,), queue=queue, low=number // 2)
            elif what == "outcome":
                core.on_outcome(b, 1, number, False)
            else:
                core.reset_server(b, 1, now)
        number += what == "dispatch"
        assert jobs(trusting, 1) == jobs(thorough, 1)
        assert trusting.free[1].tolist() == thorough.free[1].tolist()


# -- never twice, never not at all -----------------------------------------------------------------


def test_a_dispatch_counts_from_the_decision_on() -> None:
    b = fleet()
    report(b, 1, T)
    dispatch(b, T, 1, work=0.2, ready=T + 0.05)
    dispatch(b, T, 1, work=0.2, ready=T + 0.05)
    dispatch(b, T, 1, work=0.2, ready=T + 0.05)
    assert len(jobs(b, 1)) == 3
    assert b.servers[1]["outstanding"] == 3


@pytest.mark.parametrize(
    ("low", "bits", "left"),
    [
        (0, 0, [1, 2, 3]),  # none has arrived
        (1, 0, [2, 3]),
        (0, 0b10, [1, 3]),  # the second overtook the first: a hole
        (1, 0b10, [2]),  # 1 and 3
        (3, 0, []),
    ],
)
def test_after_a_report_exactly_the_unseen_dispatches_are_put_back(
    low: int, bits: int, left: list[int]
) -> None:
    """What it has seen stands in its queue (0.2 s each); what not, is ours to remember."""
    b = fleet()
    for _ in range(3):
        dispatch(b, T, 1, work=0.2, ready=T + 0.5)
    seen = 3 - len(left)
    report(b, 1, T + 0.1, queue=((T + 9, 0.2),) * seen, low=low, bits=bits)
    ours = [number for _, _, number in jobs(b, 1) if number > 0]
    assert ours == left
    # In all: three times 0.2 s, in the queue, on a worker or on the way.
    assert b.servers[1]["jobs"] + int((b.free[1, :2] > T + 0.1).sum()) == 3
    total = sum(work for _, work, _ in jobs(b, 1)) + sum(
        max(0.0, float(f) - T - 0.1) for f in b.free[1, :2]
    )
    assert total == pytest.approx(0.6)


def test_reports_without_end_do_not_multiply_a_dispatch() -> None:
    b = fleet()
    dispatch(b, T, 1, work=0.2, ready=T + 10)
    for i in range(20):
        report(b, 1, T + 0.1 * i)
        assert len(jobs(b, 1)) == 1
    report(b, 1, T + 3, low=1)
    assert jobs(b, 1) == []


def test_a_dispatch_that_is_overdue_is_not_there_before_the_report_that_lacks_it() -> None:
    """Predicted for T + 0.1, but the report of T + 0.5 has not seen it."""
    b = fleet()
    dispatch(b, T, 1, work=0.2, ready=T + 0.1)
    report(b, 1, T + 0.5)
    assert b.servers[1]["jobs"] == 0  # it starts at T + 0.5 at the earliest: now
    assert b.free[1, :2].tolist() == pytest.approx([T + 0.5, T + 0.7])


def test_a_late_report_is_ignored() -> None:
    b = fleet()
    assert report(b, 0, T + 1, running=(0.5,))
    assert not report(b, 0, T, running=(9.0,))
    assert b.free[0, 0] == pytest.approx(T + 1.5)


def test_an_outcome_takes_a_waiting_job_out() -> None:
    b = fleet()
    report(b, 1, T)
    _, first = dispatch(b, T, 1, ready=T + 5)
    dispatch(b, T, 1, ready=T + 5)
    core.on_outcome(b, 1, first, False)
    assert [number for _, _, number in jobs(b, 1)] == [2]
    assert b.servers[1]["outstanding"] == 1
    report(b, 1, T + 0.1)
    assert [number for _, _, number in jobs(b, 1)] == [2], "a report must not bring it back"


def test_a_shed_request_is_a_command_and_no_dispatch() -> None:
    b = fleet()
    assert core.on_decision(b, T, 0, -1, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0) == (1, 0)
    assert b.servers["outstanding"].tolist() == [0.0, 0.0]
    assert b.servers["dispatches"].tolist() == [0, 0]


def test_numbers_go_on_when_a_server_reconnects() -> None:
    """Else it would confirm with its old numbers what it has never seen."""
    b = fleet()
    for _ in range(5):
        dispatch(b, T, 1)
    core.reset_server(b, 1, T)
    assert jobs(b, 1) == []
    _, number = dispatch(b, T, 1, ready=T + 5)
    assert number == 6
    report(b, 1, T + 0.1, low=5)
    assert [n for _, _, n in jobs(b, 1)] == [6]


def test_more_jobs_than_fit_keep_their_work() -> None:
    b = fleet()
    many = QUEUE_MAX + 50
    report(b, 0, T, running=(1.0,), queue=((T + 99, 0.1),) * many)
    assert b.servers[0]["jobs"] == QUEUE_MAX
    assert backlog(b, 0, T) == pytest.approx(1.0 + 0.1 * many)


def test_more_flights_than_fit_forget_the_oldest() -> None:
    b = fleet()
    for _ in range(FLIGHTS_MAX + 3):
        dispatch(b, T, 1, ready=T + 50)
    assert b.servers[1]["flights"] == FLIGHTS_MAX
    assert b.flights[1, 0]["dispatch"] == 4
    assert b.servers[0]["sends"] == FLIGHTS_MAX


# -- acknowledgement -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrived", "low", "bits"),
    [
        ([1, 2, 3], 3, 0),
        ([2], 0, 0b10),
        ([2, 1], 2, 0),
        ([3, 1], 1, 0b10),
        ([1, 1, 2, 2], 2, 0),  # a retry
        ([64], 1, 1 << 62),  # 1 is given up: the window is 63 wide
        ([2, 66], 3, 1 << 62),
        ([1_700_000_000_000], 1_700_000_000_000 - 63, 1 << 62),
        ([1_700_000_000_000, 1_700_000_000_001], 1_700_000_000_001 - 63, 0b11 << 61),
    ],
)
def test_acknowledge(arrived: list[int], low: int, bits: int) -> None:
    state = (0, 0)
    for number in arrived:
        state = core.acknowledge(*state, number)
    assert state == (low, bits)


@QUICK
@given(st.permutations(list(range(1, 41))), st.integers(0, 40))
def test_every_arrival_is_acknowledged_and_nothing_else(order: list[int], some: int) -> None:
    """Within a window of 63, whatever overtakes what."""
    low, bits = 0, 0
    for number in order[:some]:
        low, bits = core.acknowledge(low, bits, number)
    seen = {n for n in range(1, 41) if core.acknowledged(n, low, bits)}
    assert seen == set(order[:some])
    assert 0 <= bits < 2**63


# -- links -----------------------------------------------------------------------------------------


def test_a_transfer_fills_the_link_and_drains_at_its_rate() -> None:
    b = fleet()
    link = int(b.path[0, 1])
    dispatch(b, T, 1, size=1000.0, rate=1000.0)
    dispatch(b, T, 1, size=1000.0, rate=1000.0)
    assert (b.links[link]["backlog"], b.links[link]["flows"]) == (2000.0, 2.0)
    core.drain_link(b, link, T + 0.5, 1000.0)
    assert (b.links[link]["backlog"], b.links[link]["flows"]) == (1500.0, 1.5)
    core.drain_link(b, link, T + 9, 1000.0)
    assert (b.links[link]["backlog"], b.links[link]["flows"]) == (0.0, 0.0)


def test_local_work_leaves_the_links_alone() -> None:
    b = fleet()
    dispatch(b, T, 0, ingress=0)
    assert b.links["backlog"].sum() == 0.0
    assert b.servers[0]["sends"] == 0


def test_bytes_of_commands_the_ingress_has_not_seen_come_back_after_its_report() -> None:
    b = fleet()
    link = int(b.path[0, 1])
    for _ in range(3):
        dispatch(b, T, 1, size=1000.0, prepare=0.01)
    report(b, 0, T + 0.1, seen=2, prepare=0.02)
    core.on_peer_report(b, link, T + 0.1, 500.0, T, 0.02, 1800.0, 2.0, True)
    core.restore_sends(b, 0, T + 0.1)
    assert b.links[link]["backlog"] == 2800.0  # 1800 it knows of, 1000 it does not
    assert b.links[link]["flows"] == 3.0
    assert b.servers[0]["prepare_backlog"] == pytest.approx(0.03)


def test_peers_behind_one_uplink_add_up() -> None:
    b = fleet((1, 1, 1))
    link = int(b.path[0, 1])
    core.on_peer_report(b, link, T, 500.0, T, 0.02, 100.0, 1.0, True)
    core.on_peer_report(b, link, T, 400.0, T - 5, 0.03, 50.0, 1.0, False)
    state = b.links[link]
    assert (state["backlog"], state["flows"]) == (150.0, 2.0)
    assert state["rate"] == 500.0, "the older measurement must not win"


def test_an_unmeasured_peer_leaves_the_rate_as_it_was() -> None:
    b = fleet()
    core.on_peer_report(b, 2, T, 500.0, T, 0.02, 0.0, 0.0, True)
    core.on_peer_report(b, 2, T + 1, math.nan, math.nan, math.nan, 0.0, 0.0, True)
    assert (b.links[2]["rate"], b.links[2]["rate_at"], b.links[2]["rtt"]) == (500.0, T, 0.02)


# -- outcomes --------------------------------------------------------------------------------------


def test_failures_raise_the_share_and_answers_lower_it() -> None:
    b = fleet()
    dispatch(b, T, 1)
    core.on_outcome(b, 1, 1, True)
    assert b.servers[1]["failure"] == pytest.approx(0.1)
    dispatch(b, T, 1)
    core.on_outcome(b, 1, 2, False)
    assert b.servers[1]["failure"] == pytest.approx(0.09)


def test_outstanding_never_falls_below_zero() -> None:
    b = fleet()
    core.on_outcome(b, 1, 7, False)
    assert b.servers[1]["outstanding"] == 0.0


def test_peak_ewma_jumps_up_and_sinks_slowly() -> None:
    b = fleet()
    core.on_answer(b, 0, T, 0.1, 0, False)
    core.on_answer(b, 0, T, 0.5, 0, False)
    assert b.servers[0]["peak"] == 0.5
    core.on_answer(b, 0, T + 10.0, 0.1, 0, False)
    keep = math.exp(-1.0)
    assert b.servers[0]["peak"] == pytest.approx(0.5 * keep + 0.1 * (1 - keep))


@pytest.mark.parametrize(("rif", "bucket"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (500, 7)])
def test_requests_in_flight_fall_into_powers_of_two(rif: int, bucket: int) -> None:
    assert core.rif_bucket(rif) == bucket


def test_requests_in_flight_are_those_that_wait_and_run() -> None:
    b = fleet()
    report(b, 1, T, running=(0.1, 0.2), queue=((T + 1, 0.1),))
    assert core.requests_in_flight(b, 1, T) == 3
    core.play_forward(b, 1, T + 0.15)  # the queued one took the first worker until T + 0.2
    assert core.requests_in_flight(b, 1, T + 0.15) == 2


def test_first_in_first_out_keeps_the_order_of_a_report() -> None:
    """Jobs of one report have come at the same moment: only their place says which was first."""
    belief = fleet((1,), edf=False)
    report(belief, 0, T, queue=((T + 9.0, 0.1), (T + 8.0, 0.2), (T + 7.0, 0.4), (T + 6.0, 0.8)))

    def waiting() -> list[float]:
        return list(belief.jobs[0, : belief.servers[0]["jobs"]]["work"])

    core.play_forward(belief, 0, T + 0.05)
    assert waiting() == [0.2, 0.4, 0.8]
    core.play_forward(belief, 0, T + 0.15)
    assert waiting() == [0.4, 0.8]
