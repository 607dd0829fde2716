"""Load that was announced and never comes: it must not keep other requests out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from edgewise.domain import HELD_MAX, Outcome, Request, Status
from edgewise.fleet.announcements import CLIENTS_MAX, CREDIT_MAX, CREDIT_START, Announcements
from edgewise.fleet.belief import acknowledge
from edgewise.fleet.open_dispatches import UNHEARD_AFTER, held_numbers
from edgewise.fleet.timeouts import photo_patience
from edgewise.fleet.tracker import Tracker
from edgewise.live.balancer.balancer import PULSE, STALE_FOR, STALL, Balancer
from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.balancer.node_connection import NodeConnection
from edgewise.live.clock import Clock
from edgewise.live.wire import messages
from edgewise.policies import make as make_policy
from edgewise.scenario import loads
from edgewise.testing import run_virtual
from fleet_case import NOW, report, request, tracker, two_servers

PATIENCE = photo_patience(0.1)
CLIENT = "10.0.0.7"


def dispatcher(policy: str = "edgewise") -> Dispatcher:
    made = Dispatcher(two_servers(), make_policy(policy), NOW)
    for server in ("a", "b"):
        made.tracker.connect(server, NOW)
        made.tracker.on_report(report(server, held=()), NOW)
    return made


def announce(made: Dispatcher, name: str, at: float = NOW, **more: object) -> None:
    what = request(name, **{"sent_at": at, **more})
    made.decide(what, at, "metadata", announced_by=CLIENT)


def reports(
    fleet: Tracker, at: float, held: Sequence[int] | None = (), seen: int | None = None
) -> None:
    """Both nodes report; `a`, the ingress, has seen the command `seen` and holds `held`."""
    seen = int(fleet.belief.servers[0]["commands"]) if seen is None else seen
    own = None if held is None else held_numbers(held, seen)
    fleet.on_report(report("a", at, held=own, commands_seen=seen), at)
    fleet.on_report(report("b", at, held=()), at)


def load_of(fleet: Tracker, now: float) -> dict[str, float]:
    """What the belief counts, over all servers."""
    fleet.state(now)
    servers = fleet.belief.servers
    return {
        "jobs": float(servers["jobs"].sum()),
        "outstanding": float(servers["outstanding"].sum()),
        "unconfirmed": float(servers["flights"].sum()),
        "offered": float(servers["offered_1s"].sum()),
        "demand": float(servers["demand_1s"].sum()),
    }


# -- when a request counts -------------------------------------------------------------------------


def test_a_request_whose_photo_never_begins_stops_counting() -> None:
    made = dispatcher()
    announce(made, "r1", deadline=3600.0)
    assert load_of(made.tracker, NOW)["outstanding"] == 1
    reports(made.tracker, NOW + PATIENCE - 0.01)
    assert load_of(made.tracker, NOW + PATIENCE - 0.01)["outstanding"] == 1
    reports(made.tracker, NOW + PATIENCE)
    counted = load_of(made.tracker, NOW + PATIENCE)
    assert counted == pytest.approx(dict.fromkeys(counted, 0.0), abs=1e-12)
    assert made.tracker.withdrawn == 1


def test_a_request_that_its_ingress_holds_counts_until_it_ends() -> None:
    made = dispatcher()
    announce(made, "r1")
    command = int(made.tracker.belief.servers[0]["commands"])
    for n in range(1, 20):
        reports(made.tracker, NOW + 0.1 * n, [command])
        assert load_of(made.tracker, NOW + 0.1 * n)["outstanding"] == 1
    made.tracker.on_outcome(Outcome(request="r1", status=Status.SERVED, server="b"), NOW + 2.0)
    assert load_of(made.tracker, NOW + 2.0)["outstanding"] == 0


@pytest.mark.parametrize("asked", [False, True])
def test_a_photo_that_begins_late_counts_again(asked: bool) -> None:
    made = dispatcher()
    announce(made, "r1")
    before = load_of(made.tracker, NOW)
    command = int(made.tracker.belief.servers[0]["commands"])
    reports(made.tracker, NOW + 0.5)
    late = NOW + 0.5
    if asked:
        made.decide(request("r1"), late, "ask")
    else:
        reports(made.tracker, late, [command])
    after = load_of(made.tracker, late)
    assert (after["outstanding"], after["unconfirmed"]) == (1, 1)
    assert after["offered"] == pytest.approx(before["offered"] * 2.718281828**-0.5)


def test_a_request_that_comes_again_is_not_waited_for_where_it_has_arrived() -> None:
    made = dispatcher()
    announce(made, "r1")
    entry = made.decisions.get("r1")
    assert entry is not None
    assert entry.command.server == "a"
    reports(made.tracker, NOW + 0.5)
    numbers = {"commands_seen": entry.command.sequence, "arrivals_low": entry.command.dispatch}
    made.tracker.on_report(report("a", NOW + 0.6, held=(0,), **numbers), NOW + 0.6)
    counted = load_of(made.tracker, NOW + 0.6)
    assert (counted["outstanding"], counted["unconfirmed"]) == (1, 0)


def test_a_node_that_does_not_say_what_it_holds_is_believed() -> None:
    """One of an older version."""
    made = dispatcher()
    announce(made, "r1")
    for n in range(1, 9):
        reports(made.tracker, NOW + 0.1 * n, None)
    assert load_of(made.tracker, NOW + 0.8)["outstanding"] == 1


def test_an_old_report_says_nothing_of_newer_requests() -> None:
    """After a stall the reports of many seconds are read at once."""
    made = dispatcher()
    announce(made, "r1")
    reports(made.tracker, NOW + 0.1)
    made.tracker.on_report(report("a", NOW + 0.15, held=()), NOW + 8.0)
    assert load_of(made.tracker, NOW + 8.0)["outstanding"] == 1


def test_a_list_that_is_full_says_nothing_of_older_commands() -> None:
    fleet = tracker()
    made = dispatcher()
    fleet = made.tracker
    made.decide(request("r0"), NOW, "ask")
    first = int(fleet.belief.servers[0]["commands"])
    newer = range(first + 1, first + 1 + HELD_MAX)
    fleet.on_report(
        report("a", NOW + 1, held=held_numbers(newer, newer[-1]), commands_seen=newer[-1]), NOW + 1
    )
    assert load_of(fleet, NOW + 1)["outstanding"] == 1
    fleet.on_report(
        report("a", NOW + 2, held=held_numbers(newer[1:], newer[-1]), commands_seen=newer[-1]),
        NOW + 2,
    )
    assert load_of(fleet, NOW + 2)["outstanding"] == 0


def test_what_a_restarted_ingress_has_forgotten_stops_counting_elsewhere() -> None:
    """Its clients' requests are gone, also those dispatched to other servers."""
    made = dispatcher()
    made.decide(request("r1", deadline=3600.0), NOW, "ask")
    assert load_of(made.tracker, NOW)["outstanding"] == 1
    made.tracker.disconnect("a")
    made.tick(NOW + 1.0)
    assert load_of(made.tracker, NOW + 1.0)["outstanding"] == 0
    made.tracker.connect("a", NOW + 2.0)
    reports(made.tracker, NOW + 2.0)
    assert load_of(made.tracker, NOW + 2.0)["outstanding"] == 0


def test_after_a_partition_the_ingress_says_what_is_still_under_way() -> None:
    made = dispatcher("round_robin")
    for name in ("r1", "r2"):
        made.decide(request(name), NOW, "ask")
    last = int(made.tracker.belief.servers[0]["commands"])
    made.tracker.disconnect("a")
    made.tick(NOW + 1.0)
    made.tracker.connect("a", NOW + 3.0)
    reports(made.tracker, NOW + 3.0, [last])
    assert load_of(made.tracker, NOW + 3.0)["outstanding"] == 1


def test_a_request_that_never_came_is_no_failure_of_its_server() -> None:
    made = dispatcher()
    for n in range(20):
        announce(made, f"r{n}", deadline=3600.0)
    reports(made.tracker, NOW + 1.0)
    for n in range(10):
        lost = Outcome(request=f"r{n}", status=Status.LOST)
        made.on_outcome(lost, NOW + 1.0)
    made.tick(NOW + UNHEARD_AFTER + 1.0)
    assert made.tracker.open == 0
    assert made.tracker.belief.servers["failure"].max() == 0.0
    assert len(made.decisions) == 10, "those without any outcome do not stay open for two hours"


# -- a bound per client ----------------------------------------------------------------------------


def test_a_client_may_announce_so_much_and_more_as_its_photos_come() -> None:
    made = Announcements()
    assert [made.announce(CLIENT) for _ in range(CREDIT_START + 2)] == [
        *[True] * CREDIT_START,
        False,
        False,
    ]
    assert made.announce("10.0.0.8"), "another client's"
    for _ in range(CREDIT_MAX):
        made.came(CLIENT)
    assert made.credit(CLIENT) == CREDIT_MAX
    for _ in range(CREDIT_MAX):
        made.never_came(CLIENT)
    assert made.credit(CLIENT) == 1


def test_the_clients_remembered_are_bounded() -> None:
    made = Announcements()
    for n in range(CLIENTS_MAX + 100):
        made.announce(f"client {n}")
    assert len(made._clients) == CLIENTS_MAX
    made.came("client 0")  # forgotten: does nothing


def test_a_flood_of_metadata_with_long_deadlines_does_not_block_the_fleet() -> None:
    """194 of them with a deadline of an hour, one server's requests beside them."""
    made = dispatcher()
    for n in range(194):
        announce(made, f"flood{n}", deadline=3600.0)
    assert load_of(made.tracker, NOW)["outstanding"] <= CREDIT_START
    reports(made.tracker, NOW + PATIENCE)
    assert load_of(made.tracker, NOW + PATIENCE)["outstanding"] == 0
    for n in range(194):
        announce(made, f"again{n}", NOW + 0.3, deadline=3600.0)
    assert load_of(made.tracker, NOW + 0.3)["outstanding"] == 1, "of a client that is known by now"
    assert made.decide(request("r1", sent_at=NOW + 0.3), NOW + 0.3, "ask").action != "shed"


ONE_SERVER = """
name: one
report_period: 0.1
servers:
  a: {workers: 1, services: [{model: only, accuracy: 0.8, latency: [0.06]}]}
workload:
  duration: 1
  arrivals: {kind: constant, rate: 10}
  ingress: {a: 1}
  demands: [{share: 1, deadline: [1, 1], accuracy: 0}]
"""


@pytest.mark.parametrize("lost_per_s", [2, 5])
def test_lost_photos_beside_honest_requests_cost_none_of_them(lost_per_s: int) -> None:
    """117 honest requests of the same client, at a quarter of what one server can do."""
    made = Dispatcher(loads(ONE_SERVER), make_policy("edgewise"), NOW)
    fleet = made.tracker
    fleet.connect("a", NOW)
    held: dict[int, tuple[str, float]] = {}
    seen = low = bits = honest = lost = shed = 0
    tick = -1
    while honest < 117:
        tick += 1
        now = NOW + 0.01 * tick
        for command, (name, ends_at) in [*held.items()]:
            if ends_at <= now:
                del held[command]
                fleet.on_outcome(Outcome(request=name, status=Status.SERVED, server="a"), now)
        if tick % 10 == 0:
            numbers = {"commands_seen": seen, "arrivals_low": low, "arrivals_bits": bits}
            own = held_numbers(held, seen)
            fleet.on_report(report("a", now, held=own, peers={}, **numbers), now)
        while honest < 4.17 * (now - NOW):
            honest += 1
            announce(made, f"r{honest}", now, deadline=0.4, payload_bytes=1000)
            entry = made.decisions.get(f"r{honest}")
            assert entry is not None
            seen = entry.command.sequence
            if entry.action == "shed":
                shed += 1
                continue
            held[seen] = (f"r{honest}", now + 0.07)
            low, bits = acknowledge(low, bits, entry.command.dispatch)
        while lost < lost_per_s * (now - NOW):
            lost += 1
            announce(made, f"lost{lost}", now, deadline=0.4, payload_bytes=1000)
    assert shed == 0


# -- a balancer that stood still -------------------------------------------------------------------


def test_what_queued_up_while_the_balancer_stood_still_is_not_taken_as_fresh() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        ahead = [0.0]
        clock = Clock(lambda: loop.time() + ahead[0], epoch=NOW)
        balancer = Balancer(dispatcher(), clock)
        await balancer.start()
        await asyncio.sleep(1.0)
        assert not balancer.stood_still(clock.now())
        await asyncio.sleep(PULSE)
        ahead[0] += 8.0  # SIGSTOP, SIGCONT
        assert balancer.stood_still(clock.now()), "before its timers have run"
        await asyncio.sleep(STALE_FOR - 0.01)
        assert balancer.stood_still(clock.now())
        await asyncio.sleep(0.02)
        assert not balancer.stood_still(clock.now())
        ahead[0] += STALL  # a pause, but no standstill
        assert not balancer.stood_still(clock.now())
        await balancer.stop()

    run_virtual(run())


def test_an_ask_that_was_long_on_its_way_is_not_decided() -> None:
    """Its stamp is on the node's clock, so its age is known exactly."""

    async def run() -> list[bytes]:
        loop = asyncio.get_running_loop()
        balancer = Balancer(dispatcher(), Clock(loop.time, epoch=NOW))
        sent: list[bytes] = []

        class Socket:
            async def send_bytes(self, data: bytes) -> None:
                sent.append(data)

            async def close(self, **_: object) -> None: ...

        connection = NodeConnection("a", Socket(), NOW)
        for name, at in (("old", NOW), ("new", NOW + 7.9)):
            ask = messages.Ask(request=request(name, sent_at=at, deadline=1.0))
            await balancer._on_ask(connection, ask, NOW + 8.0)
        return sent

    (command,) = map(messages.decode_from_balancer, run_virtual(run()))
    assert isinstance(command, messages.Command)
    assert command.request == "new"


# -- what it costs ---------------------------------------------------------------------------------


def test_fifty_requests_held_add_little_to_a_report() -> None:
    def size(held: Sequence[int]) -> int:
        made = report("a", held=held_numbers(held, 2_000_000_000_000), commands_seen=2 * 10**12)
        return len(messages.encode(messages.ReportMessage(report=made)))

    recent = range(2 * 10**12 - 100, 2 * 10**12, 2)
    assert size(recent) - size(()) < 70
    every_tenth = range(2 * 10**12 - 10 * HELD_MAX * 2, 2 * 10**12, 10)
    assert size(every_tenth) - size(()) < 800


def test_numbers_of_commands_are_written_newest_first() -> None:
    assert held_numbers({5, 9, 7}, 12) == (3, 5, 7)
    many = range(1000)
    assert held_numbers(many, 999) == tuple(range(HELD_MAX))


def test_requests_are_unchanged_by_their_client() -> None:
    """The client's address is no part of the request: nothing of it is recorded."""
    assert "client" not in {each.name for each in msgspec.structs.fields(Request)}
