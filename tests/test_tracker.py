"""The belief by name: what the balancer holds, fed with what comes over the wire."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest

from edgewise.domain import (
    Candidate,
    Command,
    Decision,
    Outcome,
    PayloadForm,
    PeerReport,
    Request,
    ServiceReport,
    ShedReason,
    Status,
)
from edgewise.fleet.belief import acknowledge
from edgewise.fleet.intake import FORGET_AFTER, RATE_MIN
from edgewise.fleet.table import table_of_observation
from edgewise.fleet.tracker import Tracker
from fleet_case import (
    B_LARGE,
    NOW,
    RATE,
    SIZE,
    measured,
    queue,
    report,
    request,
    tracker,
)

ROWS = {("a", "small"): 0, ("a", "large"): 2, ("b", "large"): 4}


def decide(
    fleet: Tracker,
    what: Request,
    server: str | None = "b",
    model: str = "large",
    form: PayloadForm = PayloadForm.ORIGINAL,
    now: float = NOW,
) -> Command:
    """Commit a choice made here."""
    fleet.on_request(what, now)
    seen = fleet.observe(what, now, now)
    shed = server is None
    return fleet.commit(
        what,
        Decision(
            request=what.id,
            ranked=() if server is None else (Candidate(server, model, form),),
            rows=(6,) if server is None else (ROWS[server, model] + form,),
            probability=1.0,
            policy="test",
            at=now,
            reason=ShedReason.PRICE if shed else None,
        ),
        seen,
    )


def outcome(name: str, status: Status = Status.SERVED, server: str | None = "b") -> Outcome:
    return Outcome(request=name, status=status, server=server)


def of(fleet: Tracker, server: str, now: float = NOW) -> dict[str, float]:
    found: dict[str, float] = fleet.state(now)["servers"][server]
    return found


def test_commands_count_per_ingress_and_dispatches_per_destination() -> None:
    fleet = tracker()
    made = [
        decide(fleet, request("r1")),
        decide(fleet, request("r2", ingress="b")),
        decide(fleet, request("r3"), "a", "small"),
        decide(fleet, request("r4"), None),
        decide(fleet, request("r5")),
    ]
    assert [command.sequence for command in made] == [1, 1, 2, 3, 4]
    assert [command.dispatch for command in made] == [1, 2, 1, 0, 3]


def test_numbers_can_begin_anywhere() -> None:
    fleet = tracker()
    fleet.number_from(1_700_000_000_000)
    command = decide(fleet, request())
    assert (command.sequence, command.dispatch) == (1_700_000_000_001, 1_700_000_000_001)
    low, bits = acknowledge(0, 0, command.dispatch)
    fleet.on_report(report("b", arrivals_low=low, arrivals_bits=bits), NOW)
    assert of(fleet, "b")["unconfirmed"] == 0


def test_a_command_says_what_to_do_and_what_else_to_try() -> None:
    fleet = tracker()
    what = request()
    seen = fleet.observe(what, NOW, NOW)
    ranked = tuple(c for c in (seen.candidates[5], seen.candidates[0]) if c is not None)
    decision = Decision(
        request="r1", ranked=ranked, rows=(5, 0), probability=1.0, policy="test", at=NOW
    )
    command = fleet.commit(what, decision, seen)
    assert (command.server, command.model, command.form) == ("b", "large", PayloadForm.MODEL_READY)
    assert command.alternatives == (Candidate("a", "small", PayloadForm.ORIGINAL),)
    assert command.reason is None


def test_a_dispatch_is_on_the_link_and_in_the_queue_at_once() -> None:
    fleet = tracker()
    fleet.on_report(report("a"), NOW)
    fleet.on_report(report("b"), NOW)
    decide(fleet, request())
    state = fleet.state(NOW)
    assert state["servers"]["b"]["believed_queue"] == 1
    assert state["servers"]["b"]["outstanding"] == 1
    assert state["links"]["uplink:a"]["backlog"] == SIZE
    left = fleet.state(NOW + 0.05)["links"]["uplink:a"]["backlog"]
    assert left == pytest.approx(SIZE / 2, rel=0.01)  # the measured rate fades meanwhile


def test_a_dispatch_counts_exactly_once_from_decision_to_outcome() -> None:
    """Decided, then on the way through two reports, then in a report, then running, then done."""
    fleet = tracker()
    for server in ("a", "b"):
        fleet.on_report(report(server), NOW)

    def count(now: float) -> int:
        table = table_of_observation(fleet.observe(request("probe"), now, now))
        return int(table.servers[1].rif)

    decide(fleet, request())
    assert count(NOW) == 1
    for i in (1, 2):
        fleet.on_report(report("b", NOW + 0.01 * i), NOW + 0.01 * i)
        assert count(NOW + 0.01 * i) == 1
    waiting = report("b", NOW + 0.03, queue=queue((1.0, 0.04)), running=(0.5, 0.5), arrivals_low=1)
    fleet.on_report(waiting, NOW + 0.03)
    assert count(NOW + 0.03) == 3  # two of others, and ours
    fleet.on_report(report("b", NOW + 0.04, running=(0.04,), arrivals_low=1), NOW + 0.04)
    assert count(NOW + 0.04) == 1
    assert fleet.on_outcome(outcome("r1"), NOW + 0.08)
    fleet.on_report(report("b", NOW + 0.09, arrivals_low=1), NOW + 0.09)
    assert count(NOW + 0.09) == 0
    assert of(fleet, "b")["outstanding"] == 0


def test_an_outcome_counts_once() -> None:
    fleet = tracker()
    decide(fleet, request("r1"))
    decide(fleet, request("r2"))
    assert fleet.on_outcome(outcome("r1"), NOW + 0.1)
    assert not fleet.on_outcome(outcome("r1"), NOW + 0.2)
    assert not fleet.on_outcome(outcome("nobody's"), NOW + 0.2)
    assert of(fleet, "b")["outstanding"] == 1
    assert fleet.open == 1


def test_a_local_failure_that_answers_fast_does_not_look_fast() -> None:
    fleet = tracker()
    decide(fleet, request("r1"))
    fleet.on_outcome(outcome("r1", Status.FAILED), NOW + 0.001)
    table = table_of_observation(fleet.observe(request("probe"), NOW + 0.001, NOW))
    assert table.servers[1].response == pytest.approx(2.0), "until it is worth nothing"
    assert table.servers[1].failure == pytest.approx(0.1)


def test_a_fallback_that_served_it_is_a_failure_of_the_one_picked() -> None:
    fleet = tracker()
    decide(fleet, request("r1"))
    fleet.on_outcome(outcome("r1", server="a"), NOW + 0.1)
    assert of(fleet, "b")["failure"] == pytest.approx(0.1)
    assert of(fleet, "a")["failure"] == 0.0


def test_what_nobody_speaks_of_is_written_off() -> None:
    """1 s of deadline: worthless at 2, written off 5 s later."""
    fleet = tracker()
    decide(fleet, request("r1"))
    assert fleet.forget(NOW + 2.0 + FORGET_AFTER - 0.01) == []
    assert fleet.forget(NOW + 2.0 + FORGET_AFTER + 0.01) == ["r1"]
    assert fleet.open == 0
    assert of(fleet, "b")["outstanding"] == 0
    assert of(fleet, "b")["failure"] == pytest.approx(0.1)


def test_a_shed_request_is_not_waited_for() -> None:
    fleet = tracker()
    command = decide(fleet, request("r1"), None)
    assert command.server is None
    assert command.reason is ShedReason.PRICE
    assert fleet.open == 0


def test_a_server_that_reconnects_begins_empty() -> None:
    fleet = tracker()
    decide(fleet, request("r1"))
    fleet.disconnect("b")
    assert not of(fleet, "b")["connected"]
    fleet.connect("b", NOW)
    assert of(fleet, "b")["connected"]
    assert of(fleet, "b")["outstanding"] == 0
    assert not fleet.on_outcome(outcome("r1"), NOW + 1)
    assert of(fleet, "b")["outstanding"] == 0
    again = decide(fleet, request("r2"))
    fleet.on_report(report("b", NOW + 0.01, arrivals_low=1), NOW + 0.01)
    assert again.dispatch == 2
    assert of(fleet, "b", NOW + 0.01)["unconfirmed"] == 1, "1 was of the earlier life"


@pytest.mark.parametrize("ahead", [0.0, 3600.0, -3600.0])
def test_a_clock_that_is_wrong_changes_nothing(ahead: float) -> None:
    """The same report as told by clocks an hour apart."""
    fleet = tracker()
    told = report(
        "a",
        NOW + ahead - 0.1,
        running=(0.3,),
        queue=queue((0.5 + ahead, 0.2), (2.0 + ahead, 0.4)),
        peers={"b": measured(at=NOW + ahead - 5.0), "a": measured(at=NOW + ahead)},
    )
    fleet.on_report(told, NOW, ahead)
    table = table_of_observation(fleet.observe(request(), NOW, NOW))
    assert table.servers[0].report_age == pytest.approx(0.1)
    assert table.servers[0].ahead == pytest.approx(0.4)
    assert table.servers[1].rate_age == pytest.approx(5.0)


def test_a_report_from_the_future_is_of_now() -> None:
    fleet = tracker()
    fleet.on_report(report("a", NOW + 5.0), NOW)
    assert of(fleet, "a")["report_age"] == 0.0


def test_a_report_that_was_overtaken_is_refused() -> None:
    fleet = tracker()
    assert fleet.on_report(report("a", NOW), NOW)
    assert not fleet.on_report(report("a", NOW - 0.1, running=(9.0,)), NOW)
    assert of(fleet, "a")["backlog"] == 0.0


def test_names_of_others_in_a_report_do_no_harm() -> None:
    fleet = tracker()
    strange = report(
        "a", services={"other": ServiceReport(1.0, 1.0, 3)}, peers={"elsewhere": measured()}
    )
    assert fleet.on_report(strange, NOW)


@pytest.mark.parametrize("peers", [{}, {"a": measured()}])
def test_a_report_that_leaves_a_link_out_leaves_the_link_alone(
    peers: dict[str, PeerReport],
) -> None:
    """Its bytes would grow with every report until the command is acknowledged."""
    fleet = tracker()
    fleet.on_report(report("a"), NOW)
    decide(fleet, request("r1"))
    for n in range(1, 4):
        fleet.on_report(report("a", NOW + 0.001 * n, peers=peers), NOW + 0.001 * n)
    link = fleet.state(NOW)["links"]["uplink:a"]
    assert link["backlog"] == pytest.approx(SIZE)
    assert link["flows"] == pytest.approx(1.0)


def test_a_service_that_has_served_nothing_keeps_its_profile() -> None:
    fleet = tracker()
    fleet.on_report(report("a", services={"small": ServiceReport(0.0, 0.0, 0)}), NOW)
    assert of(fleet, "a")["services"]["small"]["service_time"] == 0.02  # type: ignore[index]


def test_a_link_that_has_not_been_used_is_of_unknown_rate() -> None:
    fleet = tracker()
    link = fleet.state(NOW)["links"]["uplink:a"]
    assert link["rate_bps"] is None
    assert link["rate_age"] is None
    assert link["rtt"] is None
    fleet.on_report(report("a", peers={"b": measured(at=NOW - 2.0)}), NOW)
    link = fleet.state(NOW)["links"]["uplink:a"]
    assert link["rate_bps"] == 8 * RATE
    assert link["rate_age"] == pytest.approx(2.0)


def test_the_way_from_the_clients_stands_under_the_servers_own_name() -> None:
    fleet = tracker()
    own = PeerReport(2e6, NOW, 0.02, 0, 0)
    fleet.on_report(report("a", peers={"a": own}), NOW)
    assert fleet.state(NOW)["links"]["access:a"]["rate_bps"] == 16e6
    assert fleet.state(NOW)["links"]["uplink:a"]["rate_bps"] is None


def test_pairs_have_links_of_their_own() -> None:
    fleet = tracker("network: {topology: pair}\n")
    fleet.on_report(report("a", peers={"b": measured()}), NOW)
    links = fleet.state(NOW)["links"]
    assert links["a>b"]["rate_bps"] == 8 * RATE
    assert links["b>a"]["rate_bps"] is None


# -- the emulator's own figures --------------------------------------------------------------------

EMULATOR = "network_state: emulator\n"


def test_the_emulators_figures_replace_the_reports() -> None:
    fleet = tracker(EMULATOR)
    fleet.on_report(report("a"), NOW)
    assert fleet.state(NOW)["links"]["uplink:a"]["rate_bps"] is None
    fleet.on_link("uplink:a", 5e5, 0.03, 20_000.0, NOW)
    fleet.on_link("nobody's", 5e5, 0.03, 0.0, NOW)
    link = fleet.state(NOW)["links"]["uplink:a"]
    assert (link["rate_bps"], link["rtt"], link["backlog"]) == (4e6, 0.03, 20_000.0)


def test_what_has_not_reached_the_emulator_yet_is_not_forgotten() -> None:
    """A command is out, its photo not on the relay: the relay says the link is empty."""
    fleet = tracker(EMULATOR)
    fleet.on_link("uplink:a", RATE, 0.01, 0.0, NOW)
    decide(fleet, request("r1"))
    fleet.on_link("uplink:a", RATE, 0.01, 0.0, NOW + 0.02)
    left = fleet.state(NOW + 0.02)["links"]["uplink:a"]["backlog"]
    assert left == pytest.approx(80_000, rel=0.01)  # the rate given fades meanwhile
    fleet.on_link("uplink:a", RATE, 0.01, 95_000.0, NOW + 0.03)
    assert fleet.state(NOW + 0.03)["links"]["uplink:a"]["backlog"] == pytest.approx(95_000)
    fleet.on_link("uplink:a", RATE, 0.01, 0.0, NOW + 9.0)
    assert fleet.state(NOW + 9.0)["links"]["uplink:a"]["backlog"] == 0.0


def test_a_report_adds_nothing_to_links_that_the_emulator_speaks_for() -> None:
    """Its link states already count what is on the way; measured links count it again instead."""
    fleet = tracker(EMULATOR)
    fleet.on_link("uplink:a", RATE, 0.01, 0.0, NOW)
    decide(fleet, request("r1"))
    fleet.on_report(report("a", NOW + 0.01), NOW + 0.01)  # made before the command arrived
    left = fleet.state(NOW + 0.01)["links"]["uplink:a"]["backlog"]
    assert left == pytest.approx(90_000, rel=0.01)


def test_a_link_that_is_out_is_slow_beyond_any_deadline() -> None:
    fleet = tracker(EMULATOR)
    fleet.on_link("uplink:a", 0.0, 0.01, 0.0, NOW)
    table = table_of_observation(fleet.observe(request(), NOW, NOW))
    assert table.rows.transfer[B_LARGE] == SIZE / RATE_MIN


# -- prior use -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda table: table.servers[1].offered_1s, 0.04 / 2),  # per worker
        (lambda table: table.servers[1].offered_5s, 0.04 / 2 / 5),
        (lambda table: table.servers[0].demand_1s, 1.0),
    ],
)
def test_what_was_sent_lately_is_remembered(
    read: Callable[[object], float], expected: float
) -> None:
    fleet = tracker()
    decide(fleet, request("r1"))
    assert read(table_of_observation(fleet.observe(request("probe"), NOW, NOW))) == pytest.approx(
        expected
    )
    later = read(table_of_observation(fleet.observe(request("probe"), NOW + 60.0, NOW)))
    assert later == pytest.approx(0.0, abs=1e-6)


def test_an_observation_is_a_snapshot() -> None:
    """The next request must not change what was seen for this one."""
    fleet = tracker()
    first = fleet.observe(request(), NOW, NOW)
    before = first.rows.copy()
    decide(fleet, request("r1"))
    fleet.observe(request("r2", payload_bytes=10**7), NOW, NOW)
    assert (first.rows == before).all()


def test_the_state_is_json() -> None:
    fleet = tracker()
    assert json.loads(msgspec.json.encode(fleet.state(NOW)))["servers"]["a"]["connected"] is True
