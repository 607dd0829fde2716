"""The candidate table: every latency here was worked out by hand (`fleet_case` has the figures)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgewise.domain import PeerReport, ServiceReport
from edgewise.fleet import table as t
from edgewise.fleet.arrays import LOW_RATE_MEMORY, RTT_PRIOR
from edgewise.fleet.estimates import RATE_PRIOR
from edgewise.fleet.observe import link_rate, sampled
from edgewise.fleet.tracker import Tracker
from fleet_case import (
    A_LARGE,
    A_SMALL,
    B_LARGE,
    B_LARGE_READY,
    NOW,
    RATE,
    RTT,
    SHED,
    SIZE,
    measured,
    queue,
    report,
    request,
    tracker,
)

READY = 0.44 * 224**2 + 1800
"""bytes of the model-ready form, rounded to a whole one."""


def seen(fleet: Tracker, uploaded: float | None = NOW, **more: object) -> t.CandidateTable:
    """What is believed of a photo that is at `a` already."""
    return t.table_of_observation(fleet.observe(request(**more), NOW, uploaded))  # type: ignore[arg-type]


def idle() -> Tracker:
    fleet = tracker()
    for server in ("a", "b"):
        fleet.on_report(report(server), NOW)
    return fleet


def figures(table: t.CandidateTable, row: int, *names: str) -> list[float]:
    return [float(getattr(table.rows, name)[row]) for name in names]


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [t.ROW, t.SERVER, t.CONTEXT])
def test_every_column_has_a_meaning(names: dict[str, str]) -> None:
    assert all(len(meaning) >= 5 for meaning in names.values())


def test_columns_are_views_of_the_arrays_in_their_order() -> None:
    table = t.blank_table(3, 4)
    for array in (table.arrays.rows, table.arrays.servers, table.arrays.context):
        array[...] = np.arange(array.size).reshape(array.shape)
    for c, name in enumerate(t.ROW):
        assert getattr(table.rows, name).tolist() == table.arrays.rows[:, c].tolist()
        assert getattr(table.rows, name).flags.c_contiguous
    for c, name in enumerate(t.SERVER):
        assert table.servers[1][name] == table.arrays.servers[1, c]
    for c, name in enumerate(t.CONTEXT):
        assert table.context[name] == table.arrays.context[c]
    table.servers[2].failure = 0.5
    table.context.deadline = 7.0
    assert 0.5 in table.arrays.servers[2]
    assert 7.0 in table.arrays.context


def test_every_field_of_the_belief_says_what_it_is() -> None:
    """Its unit stands beside it, unless the name says it all."""
    source = Path(t.__file__).with_name("arrays.py").read_text().splitlines()
    fields = [line for line in source if line.strip().startswith('("')]
    assert len(fields) > 40
    plain = {"workers", "accuracy", "deadline", "server", "model", "jobs", "flights", "sends"}
    for line in fields:
        name = line.split('"')[1]
        assert "#" in line or name.endswith(("_at", "_bytes")) or name in plain, line


# -- an idle fleet ---------------------------------------------------------------------------------


def test_running_it_here() -> None:
    """No wait, no transfer: the model and half the client's round trip."""
    table = seen(idle())
    assert figures(table, A_SMALL, "until_input", "wait", "service_time", "return_time") == (
        pytest.approx([0.0, 0.0, 0.02, 0.5 * RTT])
    )
    assert table.rows.latency[A_SMALL] == pytest.approx(0.025)
    assert figures(table, A_SMALL, "local", "size", "transfer") == [1.0, 0.0, 0.0]


def test_sending_the_original() -> None:
    """100 kB at 1 MB/s and half a round trip; back over both halves."""
    table = seen(idle())
    assert table.rows.until_input[B_LARGE] == pytest.approx(0.1 + 0.005)
    assert table.rows.return_time[B_LARGE] == pytest.approx(0.010)
    assert table.rows.latency[B_LARGE] == pytest.approx(0.105 + 0.04 + 0.010)
    assert figures(table, B_LARGE, "size", "transfer") == pytest.approx([SIZE, 0.1])


def test_sending_it_model_ready() -> None:
    """3 ms to make it, then a quarter of the bytes."""
    table = seen(idle())
    size = round(READY)
    assert table.rows.size[B_LARGE_READY] == size
    assert table.rows.prepare[B_LARGE_READY] == pytest.approx(0.003)
    assert table.rows.until_input[B_LARGE_READY] == pytest.approx(0.003 + size / RATE + 0.005)


def test_a_photo_that_is_still_coming_is_waited_for() -> None:
    """Sent now over a client's link of 1 MB/s: here in half a round trip and 0.1 s. The original
    goes on as it comes; the model-ready form has to wait for all of it."""
    table = seen(idle(), uploaded=None)
    upload = 0.5 * RTT + SIZE / RATE
    assert table.context.upload == pytest.approx(upload)
    assert table.rows.until_input[A_SMALL] == pytest.approx(upload)
    assert table.rows.until_input[B_LARGE] == pytest.approx(upload + 0.005)
    assert table.rows.until_input[B_LARGE_READY] == pytest.approx(
        upload + 0.003 + round(READY) / RATE + 0.005
    )


def test_what_has_passed_counts() -> None:
    table = seen(idle(), sent_at=NOW - 0.3)
    assert table.context.elapsed == pytest.approx(0.3)
    assert table.rows.latency[A_SMALL] == pytest.approx(0.3 + 0.025)


def test_a_measured_service_time_replaces_the_profile() -> None:
    fleet = idle()
    fleet.on_report(report("a", NOW, services={"small": ServiceReport(0.03, 1.0, 5)}), NOW)
    assert seen(fleet).rows.service_time[A_SMALL] == pytest.approx(0.03)


# -- waiting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discipline", "ahead", "wait"),
    [
        ("edf", 0.3, 0.3),  # due 0.5 and 2.0: only the first, behind the 0.1 s that run
        ("fifo", 0.7, 0.7),
    ],
)
def test_who_is_ahead_depends_on_the_discipline(discipline: str, ahead: float, wait: float) -> None:
    fleet = tracker(f"discipline: {discipline}\n")
    fleet.on_report(report("a", running=(0.1,), queue=queue((0.5, 0.2), (2.0, 0.4))), NOW)
    table = seen(fleet)
    assert table.servers[0].ahead == pytest.approx(ahead)
    assert table.servers[0].backlog == pytest.approx(0.7)
    assert table.rows.wait[A_LARGE] == pytest.approx(wait)


def test_a_less_urgent_job_that_runs_is_not_interrupted() -> None:
    """Both workers of b are busy with later work when the photo gets there: the first to finish
    takes it, after a third of a mean job (the least of two residual lives and ours)."""
    fleet = tracker()
    later = queue(*[(50.0, 0.6)] * 8)
    fleet.on_report(report("a"), NOW)
    fleet.on_report(report("b", running=(0.1, 0.1), queue=later), NOW)
    table = seen(fleet)
    arrival = 0.105
    assert table.rows.wait[B_LARGE] == pytest.approx(0.6 / 3.0)
    assert table.servers[1].ahead == pytest.approx(0.1)
    assert table.rows.until_input[B_LARGE] == pytest.approx(arrival)


def test_a_photo_under_way_hides_the_wait() -> None:
    """b is busy for 60 ms more; the transfer takes 105."""
    fleet = tracker()
    fleet.on_report(report("a"), NOW)
    fleet.on_report(report("b", running=(0.06, 0.06)), NOW)
    assert seen(fleet).rows.wait[B_LARGE] == 0.0


def test_conversions_wait_behind_the_models_they_share_workers_with() -> None:
    """a: 80 ms run, 10 ms of conversions wait; then ours."""
    fleet = tracker()
    fleet.on_report(report("a", running=(0.08,), prepare_backlog=0.01), NOW)
    fleet.on_report(report("b"), NOW)
    table = seen(fleet)
    expected = 0.08 + 0.01 + 0.003 + round(READY) / RATE + 0.005
    assert table.rows.until_input[B_LARGE_READY] == pytest.approx(expected)
    assert table.context.prepare_backlog == pytest.approx(0.01)
    assert table.rows.wait[A_SMALL] == pytest.approx(0.09)  # conversions are most urgent


def test_a_stage_of_its_own_does_not_touch_the_workers() -> None:
    fleet = tracker("prepare: {on: own}\n")
    fleet.on_report(report("a", running=(0.08,), prepare_backlog=0.01), NOW)
    fleet.on_report(report("b"), NOW)
    table = seen(fleet)
    assert table.rows.until_input[B_LARGE_READY] == pytest.approx(
        0.01 + 0.003 + round(READY) / RATE + 0.005
    )
    assert table.rows.wait[A_SMALL] == pytest.approx(0.08)


# -- links -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "age", "believed"),
    [
        (RATE_PRIOR / 16, 0.0, RATE_PRIOR / 16),
        (RATE_PRIOR / 16, LOW_RATE_MEMORY * math.log(2), RATE_PRIOR / 4),  # half the weight
        (RATE_PRIOR / 16, LOW_RATE_MEMORY * math.log(4), RATE_PRIOR / 2),
        (RATE_PRIOR / 16, 1e6, RATE_PRIOR),
        (RATE_PRIOR / 16, -0.1, RATE_PRIOR / 16),  # a clock that was read too early
        (RATE_PRIOR * 4, 1e6, RATE_PRIOR * 4),  # only upwards
        (math.nan, 0.0, RATE_PRIOR),
    ],
)
def test_a_low_rate_fades_towards_the_prior(rate: float, age: float, believed: float) -> None:
    fleet = tracker()
    link = int(fleet.belief.path[0, 1])
    fleet.belief.links[link]["rate"] = rate
    fleet.belief.links[link]["rate_at"] = math.nan if math.isnan(rate) else NOW - age
    assert link_rate(fleet.belief, link, NOW) == pytest.approx(believed)
    fleet.on_report(report("b", peers={}), NOW)
    assert seen(fleet).servers[1].rate == pytest.approx(believed)


def test_a_link_that_one_bad_sample_made_slow_is_tried_again() -> None:
    """The demand can be met at `b` alone; 10 kB/s would take the photo 10 s there."""
    fleet = tracker()

    def latency(now: float) -> float:
        for server in ("a", "b"):
            slow = {"b": PeerReport(1e4, NOW, RTT, 0, 0)} if server == "a" else {}
            fleet.on_report(report(server, at=now, peers=slow), now)
        photo = request(sent_at=now, accuracy=0.85)
        return float(t.table_of_observation(fleet.observe(photo, now, now)).rows.latency[B_LARGE])

    assert latency(NOW) > 10.0
    assert latency(NOW + LOW_RATE_MEMORY) < 2.0
    assert latency(NOW + 5 * LOW_RATE_MEMORY) < 0.2


@pytest.mark.parametrize(
    ("backlog", "flows", "seconds"),
    [
        (0, 0, 0.1),
        (100_000, 1, 0.2),  # one other of our size: half the rate each
        (50_000, 1, 0.15),  # a shorter one: done early
        (900_000, 1, 0.2),  # a longer one: it cannot hold us up by more than our own size
        (900_000, 3, 0.4),
        (150_000, 3, 0.25),
    ],
)
def test_transfers_share_a_link_equally(backlog: int, flows: int, seconds: float) -> None:
    fleet = tracker()
    peers = {"a": measured(), "b": PeerReport(RATE, NOW, RTT, backlog, flows)}
    fleet.on_report(report("a", peers=peers), NOW)
    fleet.on_report(report("b"), NOW)
    table = seen(fleet)
    assert table.rows.until_input[B_LARGE] == pytest.approx(seconds + 0.005)
    assert table.servers[1].link_backlog == pytest.approx(backlog / RATE)


def test_while_it_is_converted_the_link_drains() -> None:
    """400 kB on the link, 300 ms of other work first: 97 kB are left, and one flow of them."""
    fleet = tracker()
    peers = {"a": measured(), "b": PeerReport(RATE, NOW, RTT, 400_000, 4)}
    fleet.on_report(report("a", peers=peers, running=(0.3,)), NOW)
    fleet.on_report(report("b"), NOW)
    made, size = 0.303, round(READY)
    left = 400_000 - made * RATE
    shared = min(left, 4 * left / 400_000 * size)
    assert seen(fleet).rows.until_input[B_LARGE_READY] == pytest.approx(
        made + (shared + size) / RATE + 0.005
    )


def test_before_a_measurement_the_prior_is_used_and_its_age_says_so() -> None:
    table = seen(tracker())
    assert table.servers[1].rate == RATE_PRIOR
    assert table.servers[1].rtt == RTT_PRIOR
    assert table.servers[1].rate_age == t.RATE_AGE_MAX
    assert table.rows.until_input[B_LARGE] == pytest.approx(SIZE / RATE_PRIOR + 0.5 * RTT_PRIOR)


# -- ages and masks --------------------------------------------------------------------------------


def test_ages_are_those_of_what_was_heard() -> None:
    fleet = tracker()
    peers = {"a": measured(), "b": measured(at=NOW - 7.0)}
    fleet.on_report(report("a", NOW - 0.25, peers=peers), NOW)
    table = seen(fleet)
    assert table.servers[0].report_age == pytest.approx(0.25)
    assert table.servers[1].report_age == 1.0, "never heard: its silence limit"
    assert table.servers[1].rate_age == pytest.approx(7.0)
    assert table.servers[0].rate == 0.0, "no link leads to itself"


def test_what_is_admissible() -> None:
    """Local rows have no model-ready form; shed always may be."""
    assert seen(idle()).mask.tolist() == [1, 0, 1, 0, 1, 1, 1]
    assert seen(idle(), accuracy=0.8).mask.tolist() == [0, 0, 1, 0, 1, 1, 1]
    assert seen(idle(), accuracy=0.95).mask.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_a_stage_that_is_off_makes_no_model_ready_rows() -> None:
    assert seen(tracker("prepare: {enabled: false}\n")).mask.tolist() == [1, 0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("why", ["disconnected", "draining", "silent"])
def test_a_server_that_is_not_up_has_no_rows(why: str) -> None:
    fleet = idle()
    if why == "disconnected":
        fleet.disconnect("b")
    elif why == "draining":
        fleet.on_report(report("b", draining=True), NOW)
    else:
        fleet.on_report(report("a", NOW + 1.01), NOW + 1.01)
    now = NOW + 1.01 if why == "silent" else NOW
    table = t.table_of_observation(fleet.observe(request(), now))
    assert table.mask.tolist() == [1, 0, 1, 0, 0, 0, 1]
    assert table.servers[1].up == 0.0


def test_the_row_of_shed_stands_for_no_server() -> None:
    assert idle().candidates[SHED] is None
    table = seen(idle())
    assert figures(table, SHED, "server", "service") == [-1.0, -1.0]


def test_no_number_is_ever_nan_or_infinite() -> None:
    fleet = tracker()
    fleet.on_link("uplink:a", 0.0, 0.0, 0.0, NOW)
    for table in (seen(tracker()), seen(idle()), seen(fleet), seen(fleet, uploaded=None)):
        for array in (table.arrays.rows, table.arrays.servers, table.arrays.context):
            assert np.isfinite(array).all()


# -- flat ------------------------------------------------------------------------------------------


def test_flatten_gathers_what_belongs_to_a_row() -> None:
    fleet = idle()
    source = fleet.observe(request(accuracy=0.8), NOW, NOW)
    table = t.table_of_observation(source)
    wide = len(t.ROW), len(t.ROW) + len(t.SERVER)
    out = np.full((7, wide[1] + len(t.CONTEXT)), np.nan)
    t.flatten(table, out)
    assert out[B_LARGE, : wide[0]].tolist() == source.rows[B_LARGE].tolist()
    assert out[B_LARGE, wide[0] : wide[1]].tolist() == source.servers[1].tolist()
    assert out[B_LARGE, wide[1] :].tolist() == source.context.tolist()
    assert not out[A_SMALL].any(), "masked"
    assert not out[SHED, wide[0] : wide[1]].any()
    assert out[SHED, wide[1] :].tolist() == source.context.tolist()


def test_best_row_takes_the_first_of_equals_and_never_a_masked_one() -> None:
    table = t.blank_table(2, 3)
    table.mask[:] = [1, 0, 1, 0, 1, 1, 1]
    table.scores[:] = [1, 9, 3, 9, 3, 2, -math.inf]
    assert t.best_row(table) == 2
    table.scores[:] = -math.inf
    assert t.best_row(table) == SHED


# -- large fleets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [33, 40, 128, 511])
def test_the_sample_of_a_large_fleet_has_every_server_once_and_all_alike(count: int) -> None:
    """The ingress is no part of it; another command draws anew, the same one does not."""
    ingress, commands = count - 2, 4000
    times = np.zeros(count)
    for command in range(commands):
        drawn = [sampled(ingress, command, j, t.SAMPLED, count) for j in range(t.SAMPLED)]
        assert len(set(drawn)) == t.SAMPLED
        times[drawn] += 1
    assert times[ingress] == 0
    assert drawn == [sampled(ingress, command, j, t.SAMPLED, count) for j in range(t.SAMPLED)]
    expected = commands * t.SAMPLED / (count - 1)
    others = np.delete(times, ingress)
    # Parts differ by one server in size; five standard deviations for the draws.
    size = (count - 1) // t.SAMPLED
    assert others.max() <= commands / size + 5 * math.sqrt(expected)
    assert others.min() >= commands / (size + 1) - 5 * math.sqrt(expected)


@pytest.mark.parametrize(
    ("count", "known"), [(t.SAMPLED_ABOVE, False), (t.SAMPLED_ABOVE + 1, True)]
)
def test_only_fleets_above_the_limit_are_sampled(count: int, known: bool) -> None:
    table = t.blank_table(count, count)
    assert bool(table.settings.sampled) is known
