"""When servers and paths are ejected, probed and brought back; against numbers worked out by hand.

One report period is 0.1 s, so the first time-out is 2 s, varied by a quarter.
"""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.domain import Fault, Service
from edgewise.fleet import ejection
from edgewise.fleet.arrays import EJECTED, RETURNING, WELL, Array, Belief, new_belief
from edgewise.fleet.belief import on_report
from edgewise.fleet.commit import commit
from edgewise.fleet.ejection import (
    ANSWERED,
    BAD_REQUEST,
    ERROR,
    REFUSED,
    UNANSWERED,
    UNDELIVERED,
    UNREACHABLE,
)
from edgewise.fleet.observe import observe
from edgewise.fleet.table import CandidateTable, new_table
from edgewise.fleet.tracker import set_ejection
from edgewise.scenario import EjectionSpec

PERIOD = 0.1
SECONDS = 0.01
"""Every service time."""
NOTHING = np.zeros(0)


class Fleet:
    """A belief about a few servers, and its table. Server 0 is the ingress of every request."""

    def __init__(self, servers: int = 3, **settings: float) -> None:
        names = [f"s{i}" for i in range(servers)]
        self.belief: Belief = new_belief(
            names,
            [Service(server=n, model="m", accuracy=0.8, latency=(SECONDS,)) for n in names],
            workers=[1] * servers,
            speed=[1.0] * servers,
            prepare_seconds=[SECONDS] * servers,
            prepare_own=False,
            prepare_enabled=False,
            shared_uplink=True,
            edf=True,
            silence=1e9,
        )
        set_ejection(self.belief, EjectionSpec(**settings), PERIOD)  # type: ignore[arg-type]
        self.table: CandidateTable = new_table(self.belief)
        self.servers = servers

    def target(self, s: int, ingress: int | None = None) -> Array:
        """Server `s`, or the path to it."""
        record: Array = self.belief.targets[self.servers if ingress is None else ingress, s]
        return record

    def tried(
        self, s: int, fault: int, now: float, times: int = 1, decided_at: float | None = None
    ) -> None:
        for _ in range(times):
            at = now if decided_at is None else decided_at
            ejection.on_attempt(self.belief, 0, s, fault, at, now)

    def report(self, s: int, at: float, served: int, waiting: int = 0) -> None:
        """A report of a server on itself."""
        queue = np.full(waiting, 1e9), np.full(waiting, SECONDS)
        on_report(self.belief, s, at, at, NOTHING, *queue, 0.0, 0.0, 0.0, 0, 0, 0)
        ejection.on_served(self.belief, s, served, at)

    def admissible(self, now: float, accuracy: float = 0.0) -> set[int]:
        """The servers that a request may go to."""
        observe(self.belief, self.table, now, 0, now, 1.0, accuracy, 1e4, now, 1.0, 1.0)
        rows = np.flatnonzero(self.table.mask[:-1])
        return {int(self.table.rows.server[r]) for r in rows}

    def send(self, s: int, now: float) -> None:
        """Let a request that was just observed go to server `s`."""
        commit(self.belief, self.table, 2 * s, now, now + 1.0)

    def end_of_timeout(self, s: int, ingress: int | None = None) -> float:
        return float(self.target(s, ingress).until)


def test_faults_are_numbered_as_the_domain_lists_them() -> None:
    assert [ejection.ANSWERED, *range(1, 7)] == list(range(7))
    named = [getattr(ejection, fault.name) for fault in Fault]
    assert named == list(range(1, 1 + len(Fault)))


@pytest.mark.parametrize(
    ("fault", "server", "path"),
    [
        (ERROR, True, False),
        (UNREACHABLE, False, True),
        (UNDELIVERED, False, True),
        (REFUSED, False, False),
        (BAD_REQUEST, False, False),
    ],
)
def test_three_failures_in_a_row_eject_whose_they_are(fault: int, server: bool, path: bool) -> None:
    fleet = Fleet()
    fleet.tried(1, fault, 5.0, times=2)
    assert fleet.admissible(5.0) == {0, 1, 2}
    fleet.tried(1, fault, 5.0)
    assert fleet.admissible(5.0) == ({0, 2} if server or path else {0, 1, 2})
    assert (fleet.target(1).state == EJECTED) == server
    assert (fleet.target(1, ingress=0).state == EJECTED) == path


def test_a_path_is_ejected_for_its_own_ingress_only() -> None:
    fleet = Fleet()
    fleet.tried(1, UNREACHABLE, 5.0, times=3)
    observe(fleet.belief, fleet.table, 5.0, 2, 5.0, 1.0, 0.0, 1e4, 5.0, 1.0, 1.0)
    assert fleet.table.mask[2] == 1
    assert fleet.admissible(5.0) == {0, 2}
    assert fleet.table.servers[1].up == 0.0


def test_a_good_answer_starts_the_count_again() -> None:
    fleet = Fleet()
    fleet.tried(1, ERROR, 5.0, times=2)
    fleet.tried(1, ANSWERED, 5.0)
    fleet.tried(1, ERROR, 5.0, times=2)
    assert fleet.admissible(5.0) == {0, 1, 2}


def test_a_large_share_of_failures_ejects() -> None:
    fleet = Fleet(failures=1000)
    for _ in range(9):
        for fault in (ERROR, ERROR, ANSWERED):
            fleet.tried(1, fault, 5.0, decided_at=4.0)
    assert fleet.target(1).state == EJECTED
    assert ejection.REASONS[fleet.target(1).reason] == "a large share of failures"
    rare = Fleet(failures=1000)
    for number in range(300):
        rare.tried(1, ERROR if number % 5 == 0 else ANSWERED, 5.0)
    assert rare.target(1).state == WELL


def test_failures_are_forgotten() -> None:
    fleet = Fleet()
    fleet.tried(1, ERROR, 5.0, times=2)
    fleet.tried(1, ANSWERED, 5.0, times=40)
    assert not fleet.target(1).watched


def test_an_undelivered_payload_says_nothing_of_a_path_that_works() -> None:
    fleet = Fleet()
    fleet.tried(1, ANSWERED, 5.5)
    fleet.tried(1, UNDELIVERED, 6.0, times=9, decided_at=5.0)
    assert fleet.target(1, ingress=0).state == WELL
    fleet.tried(1, UNDELIVERED, 7.0, times=3, decided_at=6.0)
    assert fleet.target(1, ingress=0).state == EJECTED


def test_an_undelivered_payload_says_nothing_of_a_link_that_completes_others() -> None:
    fleet = Fleet()
    fleet.belief.links["rate_at"] = 5.5  # to another peer, over the same uplink
    fleet.tried(1, UNDELIVERED, 6.0, times=9, decided_at=5.0)
    assert fleet.target(1, ingress=0).state == WELL
    fleet.tried(1, UNDELIVERED, 7.0, times=3, decided_at=6.0)
    assert fleet.target(1, ingress=0).state == EJECTED


def test_a_missing_answer_of_a_server_that_serves_others_says_nothing() -> None:
    fleet = Fleet()
    for n in range(20):
        fleet.report(1, 5.0 + n * PERIOD, served=n, waiting=4)
    fleet.tried(1, UNANSWERED, 7.0, times=9, decided_at=5.0)
    assert fleet.admissible(7.0) == {0, 1, 2}


def test_a_server_that_holds_requests_and_serves_nobody_is_ejected() -> None:
    fleet = Fleet()
    for n in range(20):
        fleet.report(1, 5.0 + n * PERIOD, served=7, waiting=4)
    fleet.tried(1, UNANSWERED, 7.0, times=3, decided_at=5.5)
    assert fleet.target(1).state == EJECTED


def test_a_server_is_not_stuck_while_it_may_run_its_longest_service() -> None:
    fleet = Fleet()
    fleet.report(1, 4.99, served=6, waiting=4)
    fleet.report(1, 5.0, served=7, waiting=4)
    fleet.report(1, 5.0 + 2.9 * SECONDS, served=7, waiting=4)
    fleet.tried(1, UNANSWERED, 5.03, times=9, decided_at=5.01)
    assert fleet.admissible(5.1) == {0, 1, 2}


def test_a_missing_answer_says_nothing_without_a_recent_report() -> None:
    fleet = Fleet()
    fleet.report(1, 5.0, served=7)
    fleet.tried(1, UNANSWERED, 9.0, times=9, decided_at=5.0)
    assert fleet.admissible(9.0) == {0, 1, 2}


def signs(fleet: Fleet, count: int, now: float) -> None:
    ejection.on_signs(fleet.belief, 0, 1, count, now)


def test_missing_signs_of_life_eject_a_path_and_given_ones_bring_it_back() -> None:
    fleet = Fleet()
    for count in (7, -1, -1, -2):
        signs(fleet, count, 5.0)
    assert fleet.admissible(5.0) == {0, 1, 2}
    signs(fleet, -3, 5.0)
    assert fleet.admissible(5.0) == {0, 2}
    # However long it lasts: no probe, no longer time-out.
    signs(fleet, -40, 60.0)
    assert fleet.admissible(60.0) == {0, 2}
    for count in (1, 2):
        signs(fleet, count, 61.0)
        assert fleet.target(1, ingress=0).state == EJECTED
    signs(fleet, 3, 62.0)
    assert fleet.target(1, ingress=0).state == RETURNING


def test_signs_of_life_from_before_an_ejection_do_not_end_it() -> None:
    fleet = Fleet()
    signs(fleet, 50, 4.0)
    fleet.tried(1, UNREACHABLE, 5.0, times=3)
    until = fleet.end_of_timeout(1, ingress=0)
    signs(fleet, 52, until + 1.0)
    assert fleet.target(1, ingress=0).state == EJECTED
    signs(fleet, 53, until + 2.0)
    assert fleet.target(1, ingress=0).state == RETURNING


def test_signs_of_life_do_not_end_an_ejection_before_its_time() -> None:
    fleet = Fleet()
    fleet.tried(1, UNREACHABLE, 5.0, times=3)
    until = fleet.end_of_timeout(1, ingress=0)
    signs(fleet, 9, until - 0.1)
    assert fleet.target(1, ingress=0).state == EJECTED
    signs(fleet, 9, until)
    assert fleet.target(1, ingress=0).state == RETURNING


def test_one_probe_at_a_time_after_the_timeout() -> None:
    fleet = Fleet()
    fleet.tried(1, ERROR, 5.0, times=3)
    until = fleet.end_of_timeout(1)
    assert 1.5 <= until - 5.0 <= 2.5
    assert fleet.admissible(until - 1e-6) == {0, 2}
    assert fleet.admissible(until) == {0, 1, 2}
    assert fleet.admissible(until) == {0, 1, 2}, "nobody has been sent yet"
    assert ejection.only_for_probe(fleet.belief, 0, 1)
    fleet.send(1, until)
    assert fleet.admissible(until + 0.1) == {0, 2}
    fleet.tried(1, ANSWERED, until + 0.2, decided_at=until - 0.01)
    assert fleet.admissible(until + 0.2) == {0, 2}, "that was another request"
    fleet.tried(1, ANSWERED, until + 0.2, decided_at=until)
    assert fleet.admissible(until + 0.2) == {0, 1, 2}


def test_a_probe_of_which_nothing_is_heard_is_given_up() -> None:
    fleet = Fleet()
    fleet.tried(1, ERROR, 5.0, times=3)
    until = fleet.end_of_timeout(1)
    assert fleet.admissible(until) == {0, 1, 2}
    fleet.send(1, until)  # due a second later
    assert fleet.admissible(until + 5.9) == {0, 2}
    assert fleet.admissible(until + 6.1) == {0, 1, 2}


def test_a_refused_probe_counts_neither_way() -> None:
    fleet = Fleet()
    fleet.tried(1, ERROR, 5.0, times=3)
    until = fleet.end_of_timeout(1)
    fleet.admissible(until)
    fleet.send(1, until)
    fleet.tried(1, REFUSED, until)
    assert fleet.target(1).good == 0
    assert fleet.end_of_timeout(1) == until
    assert fleet.admissible(until) == {0, 1, 2}


def test_timeouts_double_up_to_the_longest() -> None:
    fleet = Fleet(timeout_max=100.0)
    now = 5.0
    fleet.tried(1, ERROR, now, times=3)
    lengths = []
    for _ in range(6):
        until = fleet.end_of_timeout(1)
        lengths.append(until - now)
        now = until
        fleet.tried(1, ERROR, now)
    assert lengths == pytest.approx([2.0, 4.0, 8.0, 10.0, 10.0, 10.0], rel=0.25)
    assert len({round(length, 6) for length in lengths[3:]}) == 3


def test_the_same_calls_give_the_same_times_and_other_targets_others() -> None:
    one, two = Fleet(4), Fleet(4)
    for fleet in (one, two):
        fleet.tried(1, ERROR, 5.0, times=3)
        fleet.tried(2, ERROR, 5.0, times=3)
    assert one.end_of_timeout(1) == two.end_of_timeout(1) != one.end_of_timeout(2)


def recovered(fleet: Fleet) -> float:
    """Eject server 1 at 5 s and let its probes succeed; returns when it was brought back."""
    fleet.tried(1, ERROR, 5.0, times=3)
    now = fleet.end_of_timeout(1)
    for _ in range(3):
        assert 1 in fleet.admissible(now)
        fleet.send(1, now)
        fleet.tried(1, ANSWERED, now + 0.01, decided_at=now)
        now += 0.01
    return now


def test_three_good_probes_end_it_and_a_slow_start_follows() -> None:
    fleet = Fleet()
    back = recovered(fleet)
    assert fleet.target(1).state == RETURNING
    tenths = []
    for part in range(5):
        times = back + part + np.arange(100) / 100.0
        tenths.append(sum(1 in fleet.admissible(now) for now in times) // 10)
    assert tenths == [1, 3, 5, 7, 9]
    assert fleet.admissible(back + 5.0) == {0, 1, 2}
    assert fleet.belief.ejection[0].active == 0


def test_a_failed_probe_ends_the_row_of_good_ones() -> None:
    fleet = Fleet()
    fleet.tried(1, ERROR, 5.0, times=3)
    until = fleet.end_of_timeout(1)
    fleet.tried(1, ANSWERED, until, times=2)
    fleet.tried(1, ERROR, until)
    assert fleet.end_of_timeout(1) - until == pytest.approx(4.0, rel=0.25)
    fleet.tried(1, ANSWERED, until + 6.0, times=2)
    assert fleet.target(1).state == EJECTED


def test_an_ejection_after_calm_begins_with_a_short_timeout_again() -> None:
    for calm, length in ((0.1, 4.0), (60.0, 2.0)):
        fleet = Fleet()
        now = recovered(fleet) + calm
        fleet.tried(1, ERROR, now, times=3)
        assert fleet.end_of_timeout(1) - now == pytest.approx(length, rel=0.25)


def test_requests_decided_before_say_nothing() -> None:
    fleet = Fleet()
    fleet.tried(1, ERROR, 5.0, times=3)
    until = fleet.end_of_timeout(1)
    fleet.tried(1, ANSWERED, until, times=5, decided_at=4.9)
    assert fleet.target(1).state == EJECTED
    fleet.tried(1, ERROR, until, times=5, decided_at=4.9)
    assert fleet.end_of_timeout(1) == until


def test_half_of_the_servers_may_be_ejected_but_always_one() -> None:
    for servers, most in ((2, 1), (3, 1), (5, 2)):
        fleet = Fleet(servers)
        for s in range(servers):
            fleet.tried(s, ERROR, 5.0, times=4)
        assert len(fleet.admissible(5.0)) == servers - most
    fleet = Fleet(4, share=0.0)
    for s in range(4):
        fleet.tried(s, ERROR, 5.0, times=4)
    assert fleet.admissible(5.0) == {1, 2, 3}


def test_every_path_of_a_dead_uplink_may_be_ejected() -> None:
    fleet = Fleet(6)
    for s in range(1, 6):
        fleet.tried(s, UNREACHABLE, 5.0, times=3)
    assert fleet.admissible(5.0) == {0}


def test_if_all_are_ejected_all_are_admissible_and_it_is_counted() -> None:
    fleet = Fleet(2)
    fleet.tried(0, ERROR, 5.0, times=3)
    fleet.tried(1, UNREACHABLE, 5.0, times=3)
    assert fleet.admissible(5.0) == {0, 1}
    assert fleet.belief.ejection[0].all_barred_count == 1
    assert not ejection.only_for_probe(fleet.belief, 0, 1)
    fleet.send(1, 5.0)
    assert fleet.admissible(5.1) == {0, 1}
    assert fleet.belief.ejection[0].all_barred_count == 2
    assert fleet.admissible(5.1, accuracy=0.9) == set(), "nobody could answer it anyway"
    assert fleet.belief.ejection[0].all_barred_count == 2


def test_a_slow_start_holds_nothing_back_that_nobody_else_could_take() -> None:
    fleet = Fleet(2)
    back = recovered(fleet)
    fleet.tried(0, ERROR, back, times=3)
    assert all(1 in fleet.admissible(back + 0.01 * n) for n in range(50))
    assert fleet.belief.ejection[0].all_barred_count == 0


def test_a_restart_begins_anew() -> None:
    fleet = Fleet()
    fleet.tried(1, ERROR, 5.0, times=3)
    signs(fleet, -5, 5.0)
    assert fleet.target(1, ingress=0).state == EJECTED
    ejection.forget_server(fleet.belief, 1)
    signs(fleet, -5, 5.1)  # no new sign of life has been asked for
    assert fleet.admissible(5.1) == {0, 1, 2}
    assert fleet.belief.ejection[0].active == fleet.belief.ejection[0].servers == 0


def test_nothing_is_ejected_where_it_is_off() -> None:
    fleet = Fleet(enabled=False)
    for fault in (ERROR, UNREACHABLE, UNDELIVERED):
        fleet.tried(1, fault, 5.0, times=50)
    signs(fleet, -50, 5.0)
    assert fleet.admissible(5.0) == {0, 1, 2}
