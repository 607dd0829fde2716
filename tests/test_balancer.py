"""The balancer: decisions, outcomes, records and the HTTP interface, over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pyarrow as pa
import pytest
from aiohttp import WSMessage, WSMsgType, web
from aiohttp.test_utils import TestServer

from edgewise import __version__
from edgewise.domain import (
    Attempt,
    Command,
    Fault,
    Outcome,
    PeerReport,
    Report,
    Request,
    Stamps,
    Status,
)
from edgewise.errors import BadInput, ScenarioError, WireError
from edgewise.live.balancer import node_connection
from edgewise.live.balancer.api import BalancerApi
from edgewise.live.balancer.balancer import STALE_FOR, Balancer
from edgewise.live.balancer.balancer_metrics import BalancerMetrics
from edgewise.live.balancer.balancer_process import make_dispatcher, serve
from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.balancer.experience import load_experience
from edgewise.live.balancer.node_connection import (
    CROSSING,
    ClockOffset,
    NodeConnection,
    shift_report,
)
from edgewise.live.balancer.open_decisions import OpenDecisions, OutcomeSource
from edgewise.live.balancer.relay_poller import link_figures, poll_relay
from edgewise.live.clock import Clock
from edgewise.live.process_config import BalancerConfig, Listen
from edgewise.live.recorder import VERSIONS, Recorder, RecordTable, read
from edgewise.live.records import DECISIONS, OUTCOMES, REPORTS, REQUESTS
from edgewise.live.wire import messages
from edgewise.policies import make as make_policy
from edgewise.score import ScoreShape, score
from fleet_case import NOW, TEXT, queue, report, request, two_servers

MODELS = {"a": ("small", "large"), "b": ("large",)}


class ManualClock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> float:
        return self.time


def dispatcher(rule: str = "earliest_completion", out: Path | None = None) -> Dispatcher:
    made = Dispatcher(two_servers(), make_policy(rule), NOW)
    made.recorder = Recorder(out, made.tables)
    for server in MODELS:
        made.tracker.connect(server, NOW)
        made.tracker.on_report(report(server), NOW)
    return made


def served(name: str = "r1", latency: float | None = 0.5, **more: Any) -> Outcome:
    fields = {"status": Status.SERVED, "server": "a", "model": "small", "latency": latency}
    return Outcome(request=name, **{**fields, **more})


# -- deciding and crediting ------------------------------------------------------------------------


def test_a_request_is_decided_once() -> None:
    made = dispatcher("round_robin")
    first = made.decide(request(), NOW, "metadata")
    again = made.decide(request(payload_bytes=7), NOW + 0.1, "ask")
    assert again is first
    assert again.trigger == "metadata"
    assert (made.counts.requests, made.counts.again) == (1, 1)
    assert made.tracker.open == 1


def test_an_id_at_another_ingress_is_refused() -> None:
    made = dispatcher()
    made.decide(request(), NOW, "ask")
    with pytest.raises(WireError, match="arrived at a"):
        made.decide(request(ingress="b"), NOW, "ask")


def test_a_restarted_balancer_numbers_its_commands_higher() -> None:
    made = dispatcher()
    first = made.decide(request(), NOW, "ask").command
    assert first.sequence == first.dispatch == NOW * 1000 + 1


def test_outcomes_go_to_the_decision_of_their_own_id() -> None:
    """In any order; crediting the latest decision instead is the commonest bug."""
    made = dispatcher()
    for name in ("r1", "r2", "r3"):
        made.decide(request(name), NOW, "ask")
    for name, latency in (("r3", 1.5), ("r1", 0.5), ("r2", 2.5)):
        assert made.on_outcome(served(name, latency), NOW + 1) == "joined"
    rewards = {}
    for name in ("r1", "r2", "r3"):
        entry = made.decisions.get(name)
        assert entry is not None
        assert entry.score is not None
        rewards[name] = entry.score.expected
    assert rewards == pytest.approx({"r1": 0.7, "r2": 0.0, "r3": 0.35})


def test_a_better_source_replaces_a_worse_one_and_each_counts_once() -> None:
    made = dispatcher()
    entry = made.decide(request(), NOW, "ask")
    made.on_answered(served(latency=None, stamps=Stamps(answered=NOW + 10.3)), NOW + 0.3, 10.0)
    assert entry.source is OutcomeSource.NODE
    assert entry.outcome is not None
    assert entry.outcome.latency == pytest.approx(0.3), "until it began to answer, on our clock"
    assert made.on_outcome(served(latency=0.4), NOW + 0.4) == "joined"
    assert made.on_outcome(served(latency=0.9), NOW + 0.4) == "duplicate"
    assert entry.outcome.latency == 0.4
    assert not entry.settled
    assert made.on_outcome(served(latency=0.4, predicted=3, label=3), NOW + 0.5) == "joined"
    assert entry.settled
    assert entry.score is not None
    assert entry.score.realised == 1.0
    assert made.on_outcome(served(latency=0.4, predicted=3, label=3), NOW + 0.6) == "duplicate"
    made.on_answered(served(latency=None), NOW + 0.7, 0.0)
    assert made.counts.settled["served"] == 1
    assert made.counts.reward == pytest.approx(0.7)
    assert made.tracker.belief.servers["outstanding"].sum() == 0.0


def fail(made: Dispatcher, name: str, now: float, fault: Fault | None) -> None:
    """Let a request go to b, whatever the policy wants, and end there."""
    entry = made.decide(request(name, accuracy=0.8), now, "ask")
    made.on_answered(
        Outcome(request=name, status=Status.FAILED, reason="broken"),
        now,
        0.0,
        (Attempt("b", fault),),
    )
    assert entry.answered


def test_a_failing_server_is_ejected_and_everybody_can_see_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = dispatcher()
    metrics = BalancerMetrics(made, ManualClock())
    for number in range(5):
        fail(made, f"r{number}", NOW, Fault.ERROR)
    entry = made.decide(request("next"), NOW, "ask")
    assert {entry.command.server, *(each.server for each in entry.command.alternatives)} == {"a"}
    state = made.tracker.state(NOW)["servers"]
    assert state["a"]["ejection"] is None
    assert state["b"]["ejection"]["state"] == "ejected"
    assert state["b"]["ejection"]["reason"] == "failures in a row"
    text = metrics.render().decode()
    assert 'server_ejected{server="b"} 1.0' in text
    assert 'ejection_total{reason="failures_in_a_row",what="server"} 1.0' in text
    assert len(caplog.messages) == 1
    assert "server b is ejected for" in caplog.messages[0]

    back = NOW + state["b"]["ejection"]["left"]
    for number in range(3):
        made.tracker.on_report(report("b", at=back), back)
        made.tracker.on_report(report("a", at=back), back)
        fail(made, f"probe{number}", back, None)
    assert made.tracker.state(back)["servers"]["b"]["ejection"]["state"] == "slow_start"
    assert len(caplog.messages) == 2
    assert "server b gets requests again" in caplog.messages[1]


def test_an_unreachable_path_is_named(caplog: pytest.LogCaptureFixture) -> None:
    made = dispatcher()
    unreachable = PeerReport(None, None, None, 0, 0, unanswered=3)
    made.on_report(report("a", at=NOW + 1, peers={"b": unreachable}), NOW + 1, 0.0)
    assert made.tracker.state(NOW + 1)["ejected_paths"]["a>b"]["reason"] == "no sign of life"
    assert len(caplog.messages) == 1
    assert "path a>b is ejected" in caplog.messages[0]


def test_requests_that_only_ejected_servers_can_answer_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = dispatcher()
    for number in range(3):
        fail(made, f"r{number}", NOW, Fault.UNREACHABLE)
        made.tracker.on_attempts("a", "a", (Attempt("a", Fault.ERROR),), NOW, True, NOW)
    caplog.clear()
    entry = made.decide(request("next"), NOW, "ask")
    assert {entry.command.server, *(each.server for each in entry.command.alternatives)} == {
        "a",
        "b",
    }
    assert made.tracker.state(NOW)["all_ejected"] == 1
    made.tick(NOW + 1)
    made.tick(NOW + 2)
    assert caplog.messages == [
        "1 requests could only go where a server or path is ejected; they did"
    ]


def test_a_restarted_server_begins_anew_and_one_that_connects_again_does_not() -> None:
    made = dispatcher()
    made.tracker.connect("b", NOW, instance=7)
    for number in range(3):
        fail(made, f"r{number}", NOW, Fault.ERROR)
    made.tracker.connect("b", NOW, instance=7)
    assert made.tracker.state(NOW)["servers"]["b"]["ejection"] is not None
    made.tracker.connect("b", NOW, instance=8)
    state = made.tracker.state(NOW)["servers"]["b"]
    assert state["ejection"] is None
    assert state["failure"] == 0.0


def test_the_client_overrules_a_node_that_served_a_lost_answer() -> None:
    made = dispatcher()
    entry = made.decide(request(), NOW, "ask")
    made.on_answered(served(latency=None), NOW + 0.3, 0.0)
    made.on_outcome(Outcome(request="r1", status=Status.LOST), NOW + 2)
    made.tick(NOW + 100)
    assert made.counts.settled == {
        "served": 0,
        "shed": 0,
        "expired": 0,
        "failed": 0,
        "lost": 1,
    }
    assert entry.score is not None
    assert entry.score.expected == 0.0


def test_an_unknown_outcome_changes_nothing() -> None:
    made = dispatcher()
    assert made.on_outcome(served("never-seen"), NOW) == "unknown"
    assert made.counts.joined == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [({"latency": None}, "latency"), ({"server": None}, "accuracy"), ({"model": "x"}, "accuracy")],
)
def test_a_served_outcome_needs_latency_and_accuracy(change: dict[str, Any], field: str) -> None:
    made = dispatcher()
    made.decide(request(), NOW, "ask")
    with pytest.raises(WireError) as caught:
        made.on_outcome(served(**change), NOW)
    assert caught.value.field == field


def test_every_decision_settles_once_even_without_an_outcome(tmp_path: Path) -> None:
    made = dispatcher(out=tmp_path)
    for i in range(5):
        made.decide(request(f"r{i}"), NOW, "ask")
    made.on_answered(served("r0", None, stamps=Stamps(answered=NOW + 0.2)), NOW + 0.2, 0.0)
    made.on_outcome(served("r1", 0.1, predicted=1, label=2), NOW + 0.3)
    made.tick(NOW + 6.99)  # 2 × 1 s and 5 s more
    assert len(made.decisions) == 4
    made.tick(NOW + 7.01)
    assert len(made.decisions) == 0
    made.finish()
    made.recorder.close()
    rows = read(tmp_path, made.experience.name).to_pylist()
    assert [(row["request"], row["source"], row["reward"], row["realised"]) for row in rows] == [
        ("r1", "evaluator", 0.7, 0.0),
        ("r0", "node", 0.7, None),
        ("r2", None, None, None),
        ("r3", None, None, None),
        ("r4", None, None, None),
    ]
    assert [row["status"] for row in rows] == ["served", "served", "lost", "lost", "lost"]
    assert sum(made.counts.settled.values()) == made.counts.requests
    assert made.counts.silent == 3


def test_experience_is_what_the_policy_saw(tmp_path: Path) -> None:
    """Enough to decide again and to weigh by propensity, which is what it is kept for."""
    made = dispatcher("random", tmp_path)
    entries = []
    for i in range(8):
        entries.append(made.decide(request(f"r{i}", deadline=0.5 + i), NOW, "ask"))
        made.on_outcome(served(f"r{i}", 0.4, predicted=1, label=1), NOW + 0.4)
    made.recorder.close()
    kept = load_experience(tmp_path)
    assert kept.columns.servers == ("a", "b")
    assert kept.columns.candidates == made.tracker.candidates
    for i, entry in enumerate(entries):
        assert (kept.rows[i] == entry.observation.rows).all()
        assert (kept.mask[i] == entry.observation.mask).all()
        assert (kept.servers[i] == entry.observation.servers).all()
        assert (kept.context[i] == entry.observation.context).all()
        assert kept.action[i] == entry.decision.rows[0]
        assert entry.score is not None
        assert kept.reward[i] == entry.score.expected
    assert kept.probability.tolist() == [0.5] * 8
    assert len(set(kept.action.tolist())) > 1


def test_memory_stays_flat_in_a_long_run() -> None:
    """Ten thousand requests, half of them without an outcome."""
    made = dispatcher()
    now = NOW
    for i in range(10_000):
        now += 0.01
        made.decide(request(f"r{i}", sent_at=now), now, "ask")
        if i % 2:
            made.on_outcome(served(f"r{i}", 0.1, predicted=1, label=1), now)
        if i % 100 == 0:
            made.tick(now)
    assert len(made.decisions) < 500
    assert len(made.decisions._recent) == 2048
    assert len(made.decisions._due) < 2500
    assert made.tracker.open < 500


def test_too_many_open_decisions_settle_the_first_due() -> None:
    ledger = OpenDecisions(open_max=3, recent_max=2)
    made = dispatcher()
    for i, deadline in enumerate((5.0, 1.0, 9.0, 2.0, 7.0)):
        entry = made.decide(request(f"r{i}", deadline=deadline), NOW, "ask")
        ledger.enter(entry)
    due = [entry.request.id for entry in ledger.due(NOW)]
    assert due == ["r1", "r3"]


def test_a_decision_cannot_be_entered_twice() -> None:
    made = dispatcher()
    entry = made.decide(request(), NOW, "ask")
    with pytest.raises(ValueError, match="decided already"):
        made.decisions.enter(entry)


# -- clocks ----------------------------------------------------------------------------------------


def test_the_shortest_round_trip_gives_the_clock_offset() -> None:
    """A clock 5 s ahead; the second pong was held up by 0.8 s on the way back."""
    offset = ClockOffset()
    for start, there, back in ((0.0, 0.01, 0.01), (1.0, 0.01, 0.81), (2.0, 0.3, 0.01)):
        ping = offset.ping(NOW + start)
        offset.pong(messages.Pong(ping=ping.at, at=ping.at + there + 5.0), ping.at + there + back)
    assert offset.ahead == pytest.approx(5.0)
    assert offset.rtt == pytest.approx(0.02)


def test_a_pong_that_answers_nothing_is_ignored() -> None:
    offset = ClockOffset()
    ping = offset.ping(NOW)
    offset.pong(messages.Pong(ping=ping.at - 1, at=NOW + 99), NOW + 0.01)
    assert offset.ahead == 0.0
    offset.hint(NOW + 7, NOW)
    assert offset.ahead == 7.0
    offset.pong(messages.Pong(ping=ping.at, at=NOW + 5.005), NOW + 0.01)
    offset.pong(messages.Pong(ping=ping.at, at=NOW + 99), NOW + 0.01)
    assert offset.ahead == pytest.approx(5.0)


def test_all_stamps_of_a_report_are_shifted() -> None:
    original = report("a", NOW + 60, queue=queue((61.0, 0.1)))
    ours = shift_report(original, 60.0)
    assert ours.at == NOW
    assert ours.queue[0].deadline == NOW + 1.0
    assert ours.peers["b"].measured_at == NOW - 60


def test_the_clock_is_the_wall_clock_and_never_goes_back() -> None:
    import time

    clock = Clock()
    assert abs(clock.now() - time.time()) < 1.0
    times = [clock.now() for _ in range(100)]
    assert times == sorted(times)


def test_link_figures_are_bytes_and_round_trips() -> None:
    settings = {"delay": 0.01, "jitter": 0.002}
    state = {"rate_bps": 8e6, "settings": settings, "backlog_bytes": 500}
    assert link_figures(state) == pytest.approx((1e6, 0.022, 500.0))
    assert link_figures(state | {"rate_bps": None})[0] == float("inf")


async def test_relays_are_polled_and_may_start_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first call fails; the next ones are read, period after period."""
    monkeypatch.setattr("edgewise.live.balancer.relay_poller.RETRY", 0.0)
    monkeypatch.setattr("edgewise.live.balancer.relay_poller.PERIOD", 0.0)
    calls = 0
    heard: list[tuple[str, float, float, float]] = []
    enough = asyncio.Event()

    async def links(_: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        if calls == 1:
            return web.Response(status=503, text="{}")
        settings = {"delay": 0.01, "jitter": 0.0}
        link = {"rate_bps": 8e6 * calls, "settings": settings, "backlog_bytes": 9}
        return web.json_response({"uplink:a": link})

    def on_link(*figures: Any) -> None:
        heard.append(figures)
        if len(heard) == 2:
            enough.set()

    app = web.Application()
    app.router.add_get("/links", links)
    async with TestServer(app) as relay:
        task = asyncio.create_task(poll_relay(str(relay.make_url("")).rstrip("/"), on_link))
        async with asyncio.timeout(10):
            await enough.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert heard[:2] == [("uplink:a", 2e6, 0.02, 9.0), ("uplink:a", 3e6, 0.02, 9.0)]


# -- records ---------------------------------------------------------------------------------------


def rows_of(count: int, start: int = 0) -> list[Any]:
    return [(request(f"r{i}"), "photo.jpg", 7) for i in range(start, start + count)]


def test_segments_are_joined_when_it_closes(tmp_path: Path) -> None:
    with Recorder(tmp_path, [REQUESTS, OUTCOMES], segment_rows=3) as recorder:
        for row in rows_of(8):
            recorder.add(REQUESTS, *row)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "outcomes.parquet",
        "requests.parquet",
    ]
    kept = read(tmp_path, REQUESTS.name)
    assert kept["request"].to_pylist() == [f"r{i}" for i in range(8)]
    assert kept["label"].to_pylist() == [7] * 8
    assert read(tmp_path, OUTCOMES.name).num_rows == 0


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, [REQUESTS], segment_rows=3)
    for row in rows_of(7):
        recorder.add(REQUESTS, *row)
    recorder._thread.shutdown(wait=True)  # the process is killed here
    assert read(tmp_path, REQUESTS.name).num_rows == 6
    (tmp_path / "requests.parts" / "000009.tmp").write_bytes(b"half a")
    with Recorder(tmp_path, [REQUESTS]) as again:
        again.add(REQUESTS, *rows_of(1, 7)[0])
    assert read(tmp_path, REQUESTS.name)["request"].to_pylist() == [
        "r0",
        "r1",
        "r2",
        "r3",
        "r4",
        "r5",
        "r7",
    ]


def test_a_second_run_adds_to_the_first(tmp_path: Path) -> None:
    for start in (0, 4):
        with Recorder(tmp_path, [REQUESTS]) as recorder:
            for row in rows_of(4, start):
                recorder.add(REQUESTS, *row)
    assert read(tmp_path, REQUESTS.name)["request"].to_pylist() == [f"r{i}" for i in range(8)]


def test_a_kill_after_joining_does_not_double_the_rows(tmp_path: Path) -> None:
    with Recorder(tmp_path, [REQUESTS]) as recorder:
        recorder.add(REQUESTS, *rows_of(1)[0])
    parts = tmp_path / "requests.parts"
    parts.mkdir()
    (parts / "000000.parquet").write_bytes((tmp_path / "requests.parquet").read_bytes())
    with Recorder(tmp_path, [REQUESTS]):
        pass
    assert read(tmp_path, REQUESTS.name).num_rows == 1


def test_other_columns_are_refused(tmp_path: Path) -> None:
    with Recorder(tmp_path, [REQUESTS]):
        pass
    (tmp_path / "requests.parquet").rename(tmp_path / "reports.parquet")
    with pytest.raises(BadInput, match=r"reports\.parquet: has other columns"):
        Recorder(tmp_path, [REPORTS])


def test_a_failing_disk_loses_rows_and_nothing_else(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, [REQUESTS])
    (tmp_path / "requests.parts").rmdir()
    recorder.add(REQUESTS, *rows_of(1)[0])
    recorder._write("requests")
    recorder._thread.submit(lambda: None).result()
    (tmp_path / "requests.parts").mkdir()
    recorder.close()
    assert recorder.dropped == 1
    assert read(tmp_path, REQUESTS.name).num_rows == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_line_and_the_segments_stay(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, [REQUESTS, OUTCOMES])
    recorder.add(REQUESTS, *rows_of(1)[0])
    (tmp_path / "requests.tmp").symlink_to("/dev/full")  # where the segments are joined
    with pytest.raises(BadInput) as raised:
        recorder.close()
    assert str(raised.value) == (
        f"{tmp_path}/requests.parquet: cannot be written: No space left on device; "
        f"its rows stay in {tmp_path}/requests.parts"
    )
    assert read(tmp_path, REQUESTS.name)["request"].to_pylist() == ["r0"]
    assert read(tmp_path, OUTCOMES.name).num_rows == 0
    recorder.close()
    with Recorder(tmp_path, [REQUESTS]) as again:
        again.add(REQUESTS, *rows_of(1, 1)[0])
    assert read(tmp_path, REQUESTS.name)["request"].to_pylist() == ["r0", "r1"]


def test_a_table_says_its_units_and_versions(tmp_path: Path) -> None:
    made = dispatcher(out=tmp_path)
    made.recorder.close()
    with Recorder(tmp_path, [REQUESTS, OUTCOMES]):
        pass
    tables = ("requests", "outcomes", "decisions", "reports", "experience")
    schemas = {name: read(tmp_path, name).schema for name in tables}
    for schema in schemas.values():
        versions = msgspec.json.decode(schema.metadata[VERSIONS])
        assert versions["edgewise"] == __version__
        assert {"python", "numba", "pyarrow"} <= versions.keys()
    units = {
        (name, field.name): field.metadata[b"unit"].decode()
        for name, schema in schemas.items()
        for field in schema
        if field.metadata and b"unit" in field.metadata
    }
    assert units[("requests", "payload_bytes")] == "bytes"
    for name, column in (
        *(("requests", column) for column in ("sent_at", "deadline")),
        *(("outcomes", column) for column in ("latency", "stamp_received", "stage_queue")),
        *(("decisions", column) for column in ("at", "predicted_latency")),
        *(("reports", column) for column in ("at", "running", "received", "clock_ahead")),
        *(("experience", column) for column in ("at", "latency")),
    ):
        assert units[(name, column)] == "s"
    assert ("decisions", "probability") not in units
    peers = schemas["reports"].field("peers").type.value_type
    assert peers.field("throughput").metadata == {b"unit": b"bytes/s"}
    # No column of a duration, a time or a size was forgotten.
    for name, schema in schemas.items():
        for field in schema:
            if re.search(r"(^|_)(at|latency|bytes|deadline|backlog|received|sent)$", field.name):
                assert (name, field.name) in units


def test_rows_are_made_in_the_recorders_thread(tmp_path: Path) -> None:
    """The event loop has milliseconds, a segment takes tens."""
    threads: list[str] = []

    def row(number: int) -> tuple[int]:
        threads.append(threading.current_thread().name)
        return (number,)

    table = RecordTable("numbers", row, pa.schema([("number", pa.int64())]))
    with Recorder(tmp_path, [table], segment_rows=100) as recorder:
        for number in range(250):
            recorder.add(table, number)
    assert read(tmp_path, "numbers")["number"].to_pylist() == list(range(250))
    assert {name.rpartition("_")[0] for name in threads} == {"records"}


def test_a_slow_disk_loses_rows_unless_the_recorder_is_patient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.live.recorder.BEHIND_MAX", 2)
    go = threading.Event()

    def row(number: int) -> tuple[int]:
        assert go.wait(30)
        return (number,)

    table = RecordTable("numbers", row, pa.schema([("number", pa.int64())]))
    with Recorder(tmp_path / "hasty", [table], segment_rows=1) as recorder:
        for number in range(5):
            recorder.add(table, number)
        go.set()
    assert recorder.dropped == 3
    assert read(tmp_path / "hasty", "numbers").num_rows == 2
    with Recorder(tmp_path / "patient", [table], segment_rows=1, patient=True) as recorder:
        for number in range(20):
            recorder.add(table, number)
    assert recorder.dropped == 0
    assert read(tmp_path / "patient", "numbers").num_rows == 20


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written to"):
        Recorder(tmp_path / "file" / "below", [REQUESTS])


def test_rows_fit_their_columns(tmp_path: Path) -> None:
    outcome = served(accuracy=0.7, predicted=1, label=1, stamps=Stamps(sent=1.0, received=2.0))
    made = dispatcher(out=tmp_path)
    made.on_report(report("a", queue=queue((1.0, 0.1)), running=(0.2,)), NOW, 0.5)
    made.decide(request(), NOW, "ask")
    made.decide(request("r2", accuracy=0.99), NOW, "ask")
    made.recorder.close()
    with Recorder(tmp_path, [OUTCOMES]) as recorder:
        recorder.add(OUTCOMES, outcome, score(request(), outcome, ScoreShape()))
    row = read(tmp_path, REPORTS.name).to_pylist()[0]
    assert (row["server"], row["clock_ahead"]) == ("a", 0.5)
    assert [item["work"] for item in row["queue"]] == [0.1]
    assert set(Report.__struct_fields__) < row.keys()
    assert row["peers"][0]["server"] == "a"
    first, shed = read(tmp_path, DECISIONS.name).to_pylist()
    assert (first["server"], first["model"], first["reason"]) == ("a", "small", None)
    assert first["ranked"][0] == {"server": "a", "model": "small", "form": 0}
    assert (shed["server"], shed["form"], shed["reason"]) == (None, None, "no_service")
    assert read(tmp_path, OUTCOMES.name).to_pylist()[0]["stamp_received"] == 2.0


# -- over sockets ----------------------------------------------------------------------------------


class Node:
    """A node's end of a control channel, driven by the test."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def say(self, message: Any) -> None:
        await self.socket.send_bytes(messages.encode(message))

    async def hear(self) -> Any:
        frame = await self.socket.receive(timeout=10)
        assert frame.type is WSMsgType.BINARY, frame
        return messages.decode_from_balancer(frame.data)

    async def hear_end(self) -> tuple[int | None, str]:
        """Read until the other side closes; returns code and reason."""
        while True:
            frame = await self.socket.receive(timeout=10)
            if frame.type is WSMsgType.CLOSE:
                return frame.data, frame.extra or ""
            assert frame.type is WSMsgType.BINARY, frame


class Stack:
    """A balancer that listens, with clients and nodes."""

    def __init__(
        self, server: TestServer, session: aiohttp.ClientSession, clock: ManualClock
    ) -> None:
        self.server, self.session, self.clock = server, session, clock
        self.balancer: Balancer
        self._nodes: list[Node] = []  # one that is collected hangs up

    async def open(self) -> Node:
        node = Node(await self.session.ws_connect(self.server.make_url("/v1/control")))
        self._nodes.append(node)
        return node

    async def node(self, server: str, ahead: float = 0.0) -> Node:
        """Connect a node whose clock is `ahead`, up to its first report."""
        node = await self.open()
        await node.say(messages.Hello(server=server, models=MODELS[server]))
        welcome = await node.hear()
        assert isinstance(welcome, messages.Welcome)
        ping = await node.hear()
        await node.say(messages.Pong(ping=ping.at, at=ping.at + ahead))
        await node.say(messages.ReportMessage(report=report(server, NOW + ahead, peers={})))
        return node

    async def call(self, path: str, body: Any = None) -> tuple[int, Any]:
        if body is None:
            call = self.session.get(self.server.make_url(path))
        else:
            data = body if isinstance(body, bytes | io.BytesIO) else msgspec.json.encode(body)
            call = self.session.post(self.server.make_url(path), data=data)
        async with call as response:
            text = await response.text()
            return response.status, json.loads(text) if text.startswith(("{", "[")) else text

    async def until(self, true: Callable[[], bool]) -> None:
        """Let the balancer read until a condition holds."""
        async with asyncio.timeout(10):
            while not true():  # noqa: ASYNC110 - what it waits for is the code under test
                await asyncio.sleep(0)


@asynccontextmanager
async def stack(rule: str = "earliest_completion") -> AsyncIterator[Stack]:
    clock = ManualClock()
    made = Dispatcher(two_servers(), make_policy(rule), NOW)
    balancer = Balancer(made, clock)  # type: ignore[arg-type]
    async with (
        TestServer(BalancerApi(balancer).app()) as server,
        aiohttp.ClientSession() as session,
    ):
        running = Stack(server, session, clock)
        running.balancer = balancer
        try:
            yield running
        finally:
            await balancer.stop()
            await running.until(lambda: not balancer.connections)


def submission(what: Request, budget: float = 1.0) -> messages.Submission:
    return messages.Submission(request=what, budget=budget)


async def test_metadata_of_a_request_that_is_over_is_not_decided() -> None:
    async with stack() as s:
        await s.node("a")
        status, reply = await s.call("/v1/requests", submission(request(), budget=-0.1))
        assert (status, "deadline" in reply["error"]) == (504, True)
        assert s.balancer.dispatcher.counts.requests == 0


async def test_metadata_that_queued_up_while_the_balancer_stood_still_is_not_used() -> None:
    """The ingress of a request that is still alive asks, and gets its command."""
    async with stack() as s:
        node = await s.node("a")
        await s.balancer.start()
        await asyncio.sleep(0)  # its timers begin
        s.clock.time += 2.0  # less than a node may be silent
        status, reply = await s.call("/v1/requests", submission(request()))
        assert (status, "stood still" in reply["error"]) == (503, True)
        assert s.balancer.dispatcher.counts.requests == 0
        await node.say(messages.Ask(request=request(sent_at=NOW + 2.0)))
        while not isinstance(await node.hear(), Command):
            pass
        s.clock.time += STALE_FOR
        status, _ = await s.call("/v1/requests", submission(request("r2", sent_at=NOW + 3.0)))
        assert status == 200


async def test_metadata_first_then_ask_gives_one_command() -> None:
    async with stack() as s:
        node = await s.node("a")
        status, reply = await s.call("/v1/requests", submission(request()))
        assert status == 200
        assert reply == {
            "request": "r1",
            "action": "run",
            "server": "a",
            "model": "small",
            "form": 0,
            "reason": None,
            "retry_after": None,
            "probability": 1.0,
            "policy": "earliest_completion",
        }
        command = await node.hear()
        assert isinstance(command, Command)
        assert (command.request, command.server, command.model) == ("r1", "a", "small")
        # Its Ask crossed the command: nothing more comes before the next request's.
        await node.say(messages.Ask(request=request()))
        await node.say(messages.Ask(request=request("r2")))
        following = await node.hear()
        assert following.request == "r2"
        assert s.balancer.dispatcher.counts.requests == 2


async def test_ask_first_then_metadata_gives_one_command_and_the_same_answer() -> None:
    async with stack("round_robin") as s:
        node = await s.node("a")
        await s.node("b")
        await s.until(lambda: len(s.balancer.connections) == 2)
        await node.say(messages.Ask(request=request(), uploaded=NOW))
        command = await node.hear()
        for _ in range(2):
            status, reply = await s.call("/v1/requests", submission(request()))
            assert (status, reply["server"], reply["model"]) == (200, command.server, command.model)
        await node.say(messages.Ask(request=request("r2")))
        assert (await node.hear()).request == "r2"


@pytest.mark.parametrize("how", ["again", "late", "reconnected"])
async def test_an_ask_for_what_did_not_arrive_gets_the_same_command(how: str) -> None:
    async with stack("round_robin") as s:
        node = await s.node("a")
        await s.call("/v1/requests", submission(request()))
        command = await node.hear()
        if how == "again":
            await node.say(messages.Ask(request=request()))
        elif how == "late":
            s.clock.time += CROSSING + 0.01
        else:
            await node.socket.close()
            await s.until(lambda: not s.balancer.connections)
            node = await s.node("a")
        await node.say(messages.Ask(request=request()))
        assert await node.hear() == command
        assert s.balancer.dispatcher.counts.requests == 1


async def test_an_ingress_that_a_client_has_gone_on_to_keeps_its_channel() -> None:
    async with stack() as made:
        await made.node("a")
        b = await made.node("b")
        assert (await made.call("/v1/requests", submission(request())))[0] == 200
        await b.say(messages.Ask(request=request(ingress="b")))
        outcome = served(latency=None, server="b")
        await b.say(messages.OutcomeMessage(outcome=outcome, attempts=(Attempt("b"),)))
        await b.say(messages.Ask(request=request("r2", ingress="b")))
        assert (await b.hear()).request == "r2"  # it was not cut off
        assert made.balancer.dispatcher.counts.joined == 0


async def test_nothing_is_decided_for_an_ingress_that_is_not_connected() -> None:
    async with stack() as s:
        status, reply = await s.call("/v1/requests", submission(request()))
        assert (status, reply["error"]) == (503, "a is not connected")
        assert s.balancer.dispatcher.counts.requests == 0
        node = await s.node("a")
        await node.say(messages.Ask(request=request()))
        assert (await node.hear()).request == "r1"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (b"{", 400, ""),
        (b"\xff", 400, ""),
        ({"request": {"id": "r1"}, "budget": 1}, 400, "request.ingress"),
        ({"request": msgspec.to_builtins(request()) | {"deadline": -1}}, 400, "request.deadline"),
        ({"request": msgspec.to_builtins(request())}, 400, "budget"),
        (
            {"request": msgspec.to_builtins(request(ingress="zoo")), "budget": 1},
            404,
            "request.ingress",
        ),
    ],
)
async def test_bad_metadata_is_refused_by_field(body: Any, status: int, field: str) -> None:
    async with stack() as s:
        await s.node("a")
        got, reply = await s.call("/v1/requests", body)
        assert (got, reply.get("field", "")) == (status, field), reply
        assert reply["error"]


async def test_an_id_used_at_two_ingresses_is_a_conflict() -> None:
    async with stack() as s:
        await s.node("a")
        await s.node("b")
        assert (await s.call("/v1/requests", submission(request())))[0] == 200
        status, reply = await s.call("/v1/requests", submission(request(ingress="b")))
        assert (status, reply["field"]) == (409, "request.id")


async def test_outcomes_are_joined_and_counted() -> None:
    async with stack() as s:
        await s.node("a")
        for name in ("r1", "r2"):
            await s.call("/v1/requests", submission(request(name)))
        one = served("r1", 0.2)
        assert await s.call("/v1/outcomes", one) == (
            200,
            {"joined": 1, "duplicates": 0, "unknown": 0},
        )
        many = [one, served("r2", 0.3, predicted=1, label=1), served("nobodys")]
        assert (await s.call("/v1/outcomes", many))[1] == {
            "joined": 1,
            "duplicates": 1,
            "unknown": 1,
        }
        status, reply = await s.call("/v1/outcomes", served("r1", None))
        assert (status, reply["field"]) == (400, "latency")
        status, reply = await s.call("/v1/outcomes", {"request": "r1", "status": "eaten"})
        assert (status, reply["field"]) == (400, "status")


async def test_the_state_and_a_decision_can_be_read() -> None:
    async with stack() as s:
        await s.node("a", ahead=3.0)
        await s.node("b")
        await s.until(lambda: s.balancer.dispatcher.counts.reports == 2)
        assert await s.call("/readyz") == (200, {"ready": True, "missing": []})
        assert await s.call("/healthz") == (200, {"status": "ok"})
        await s.call("/v1/requests", submission(request()))
        _, state = await s.call("/v1/state")
        assert state["policy"] == "earliest_completion"
        assert state["servers"]["a"]["connected"] is True
        assert state["servers"]["a"]["clock_ahead"] == pytest.approx(3.0)
        assert state["servers"]["a"]["report_age"] == pytest.approx(0.0)
        figures = state["servers"]["a"]["report"]
        assert figures["workers"] == 1
        assert figures.keys() >= {"utilisation", "prepare_backlog", "draining"}
        assert not figures.keys() & {"queue", "running", "peers", "services", "server"}
        assert state["counts"]["actions"]["run"] == 1
        _, reply = await s.call("/v1/decisions/r1")
        assert reply["action"] == "run"
        assert reply["ranked"][0]["row"]["latency"] == pytest.approx(0.07), "45 ms is the upload"
        assert reply["ranked"][0]["server_row"]["up"] == 1.0
        assert reply["context"]["deadline"] == 1.0
        assert (await s.call("/v1/decisions/r9"))[0] == 404
        assert (await s.call("/nowhere"))[0] == 404
        assert (await s.call("/v1/outcomes"))[0] == 405
        text = (await s.call("/metrics"))[1]
        assert "request_total 1.0" in text
        assert 'decision_total{action="run"} 1.0' in text
        assert "ready_endpoints 2.0" in text
        assert 'request_error_total{code="404"} 2.0' in text
        assert "decision_duration_seconds_count 1.0" in text


async def test_a_body_over_the_limit_is_refused_with_the_limit() -> None:
    async with stack() as s:
        status, reply = await s.call("/v1/outcomes", io.BytesIO(b" " * (8 * 2**20 + 1)))
        assert status == 413
        assert "8388608 bytes" in reply["error"]


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (messages.Hello(server="zoo", models=()), "no server 'zoo'"),
        (messages.Hello(server="a", models=("small", "large"), protocol=99), "protocol 99"),
        (messages.Hello(server="a", models=("small",)), "should run large"),
        (messages.Pong(ping=1.0, at=1.0), "expected a hello first"),
    ],
)
async def test_a_node_that_does_not_fit_is_refused_with_a_reason(hello: Any, reason: str) -> None:
    async with stack() as s:
        node = await s.open()
        await node.say(hello)
        code, why = await node.hear_end()
        assert code == 1008
        assert reason in why
        assert not s.balancer.connections


def hello(instance: int) -> messages.Hello:
    return messages.Hello(server="a", models=MODELS["a"], instance=instance)


@pytest.mark.parametrize("instance", [0, 1])
async def test_a_second_of_the_same_name_is_refused_while_the_first_lives(
    monkeypatch: pytest.MonkeyPatch, instance: int
) -> None:
    monkeypatch.setattr(node_connection, "ANSWER_TO_PING", 10.0)
    async with stack() as s:
        first, second = await s.node("a"), await s.open()
        await second.say(hello(instance))
        if instance == 0:  # perhaps the same process: the first is asked
            await first.say(messages.Pong(ping=(await first.hear()).at, at=NOW))
        assert await second.hear_end() == (1008, "another a is connected and lives")
        assert s.balancer.missing() == ["b"]
        await s.call("/v1/requests", submission(request()))
        assert (await first.hear()).request == "r1"


async def test_a_node_takes_the_place_of_its_own_dead_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_connection, "ANSWER_TO_PING", 0.01)
    async with stack() as s:
        await s.node("a")  # answers nothing from here on
        again = await s.node("a")
        await s.until(lambda: len(s.balancer._open) == 1)
        assert s.balancer.missing() == ["b"]
        await s.call("/v1/requests", submission(request()))
        assert (await again.hear()).request == "r1"


@pytest.mark.parametrize(("version", "understood"), [(0, False), (1, True), (2, True), (3, False)])
async def test_the_protocol_one_version_back_is_understood(version: int, understood: bool) -> None:
    async with stack() as s:
        node = await s.open()
        await node.say(msgspec.structs.replace(hello(0), protocol=version, version="0.9"))
        if not understood:
            why = f"a (edgewise 0.9) speaks protocol {version}, understood are 2 and 1"
            assert await node.hear_end() == (1008, why)
            return
        assert isinstance(await node.hear(), messages.Welcome)
        # A report of version 1 has no version.
        old = msgspec.to_builtins(messages.ReportMessage(report=report("a")))
        assert old.pop("protocol") == 1
        await node.socket.send_bytes(msgspec.msgpack.encode(old))
        await s.until(lambda: s.balancer.dispatcher.counts.reports == 1)
        await node.say(messages.ReportMessage(report=report("a"), protocol=3))
        code, why = await node.hear_end()
        assert (code, why) == (1007, "a speaks protocol 3, understood are 2 and 1")


async def test_a_node_reports_outcomes_of_its_own_requests_alone() -> None:
    async with stack() as s:
        await s.node("a")
        b = await s.node("b")
        await s.call("/v1/requests", submission(request()))
        await b.say(messages.OutcomeMessage(outcome=served(server="b")))
        code, why = await b.hear_end()
        assert (code, why) == (1007, "outcome of a request of a on the channel of b")
        assert s.balancer.dispatcher.counts.joined == 0


async def test_a_disconnected_server_is_no_candidate() -> None:
    async with stack() as s:
        await s.node("a")
        b = await s.node("b")
        await s.until(lambda: len(s.balancer.connections) == 2)
        await b.socket.close()
        await s.until(lambda: len(s.balancer.connections) == 1)
        assert await s.call("/readyz") == (503, {"ready": False, "missing": ["b"]})
        await s.call("/v1/requests", submission(request()))
        _, reply = await s.call("/v1/decisions/r1")
        assert {each["server"] for each in reply["ranked"]} == {"a"}


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x00noise",
        messages.encode(messages.Hello(server="a", models=MODELS["a"])),
        messages.encode(messages.Ask(request=request(ingress="b"))),
        messages.encode(messages.ReportMessage(report=report("b"))),
        messages.encode(messages.Welcome(policy="p", at=1.0)),
    ],
)
async def test_a_node_that_breaks_the_protocol_is_cut_off(wrong: bytes) -> None:
    async with stack() as s:
        node = await s.node("a")
        await node.socket.send_bytes(wrong)
        code, why = await node.hear_end()
        assert code == 1007
        assert why
        await s.until(lambda: not s.balancer.connections)


async def test_a_node_on_another_clock_is_understood() -> None:
    """Its clock is 100 s ahead; the request was sent 0.2 s ago on it."""
    async with stack() as s:
        node = await s.node("a", ahead=100.0)
        ask = messages.Ask(request=request(sent_at=NOW + 99.8), uploaded=NOW + 99.9)
        await node.say(ask)
        await node.hear()
        _, reply = await s.call("/v1/decisions/r1")
        assert reply["context"]["elapsed"] == pytest.approx(0.2)
        assert reply["context"]["upload"] == 0.0


async def test_nodes_get_each_others_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.live.balancer.balancer.TICK", 0.001)
    async with stack() as s:
        await s.node("a", ahead=100.0)
        b = await s.node("b")
        while True:
            message = await b.hear()
            if isinstance(message, messages.FleetReports) and message.reports:
                break
        assert [each.server for each in message.reports] == ["a"]
        assert message.reports[0].at == pytest.approx(NOW), "on the balancer's clock"


async def test_a_silent_node_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.live.balancer.balancer.TICK", 0.001)
    async with stack() as s:
        await s.node("a")
        await s.until(lambda: s.balancer.dispatcher.counts.reports == 1)
        s.clock.time += 60.0
        await s.until(lambda: not s.balancer.connections)


async def test_a_command_to_a_broken_channel_is_no_error() -> None:
    class Broken:
        async def send_bytes(self, data: bytes) -> None:
            raise ConnectionResetError

    channel = NodeConnection("a", Broken(), NOW)
    assert not await channel.send(messages.Ping(at=NOW))


# -- the process -----------------------------------------------------------------------------------


def config_file(folder: Path, more: str = "") -> Path:
    (folder / "two.yaml").write_text(TEXT)
    file = folder / "balancer.yaml"
    file.write_text(f"scenario: two.yaml\nout: {folder / 'out'}\n{more}")
    return file


def test_an_unusable_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(TEXT)
    scenario = str(tmp_path / "two.yaml")
    with pytest.raises(BadInput, match="unknown policy 'rounded'"):
        make_dispatcher(BalancerConfig(scenario=scenario, policy="rounded"), Clock())
    with pytest.raises(BadInput, match="network_state: emulator"):
        make_dispatcher(BalancerConfig(scenario=scenario, relays=("http://127.0.0.1:1",)), Clock())
    with pytest.raises(ScenarioError):
        make_dispatcher(BalancerConfig(scenario=str(tmp_path / "none.yaml")), Clock())


def start(file: Path) -> subprocess.Popen[bytes]:
    code = "import sys, typer; from edgewise.cli.balancer import balancer; typer.run(balancer)"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stopped_process_has_written_everything(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start(config_file(tmp_path))
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        greeting = json.loads(await asyncio.to_thread(process.stdout.readline))["ready"]
        assert greeting["balancer"] == "two"
        async with aiohttp.ClientSession(greeting["url"]) as session:
            socket = await session.ws_connect("/v1/control")
            node = Node(socket)
            await node.say(messages.Hello(server="a", models=MODELS["a"]))
            await node.hear()
            ping = await node.hear()
            await node.say(messages.Pong(ping=ping.at, at=ping.at))
            now = Clock().now()
            await node.say(messages.ReportMessage(report=report("a", now, peers={})))
            await node.say(messages.Ask(request=request(sent_at=now)))
            command = await node.hear()
            assert (command.request, command.server) == ("r1", "a")
            process.send_signal(number)
            await node.hear_end()
            await socket.close()
        assert await asyncio.to_thread(process.wait, 20) == 0
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "decisions.parquet",
        "experience.parquet",
        "reports.parquet",
    ]
    assert read(out, DECISIONS.name)["request"].to_pylist() == ["r1"]
    assert load_experience(out).table["status"].to_pylist() == ["lost"]


@pytest.mark.system
async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = BalancerConfig(
            scenario=str(config_file(tmp_path).with_name("two.yaml")), listen=Listen(port=port)
        )
        with pytest.raises(BadInput, match=f"cannot listen on 127.0.0.1:{port}: Address already"):
            await serve(config, asyncio.Event())


async def test_a_ping_on_a_connection_that_has_just_ended_is_no_error() -> None:
    """aiohttp answers it while the frames are read, and raises what sending raises."""

    class Ending:
        closed = False

        async def receive(self, timeout: float) -> WSMessage:  # noqa: ASYNC109
            return WSMessage(WSMsgType.BINARY, messages.encode(hello(0)), None)

        async def send_bytes(self, data: bytes) -> None:
            pass

        def __aiter__(self) -> Ending:
            return self

        async def __anext__(self) -> WSMessage:
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    async with stack() as s:
        await s.balancer.serve_channel(Ending(), "somewhere", lambda: None)  # type: ignore[arg-type]
        assert s.balancer.missing() == ["a", "b"]
