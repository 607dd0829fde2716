"""Real processes: the launcher, processes started by hand, and processes that are killed.

Bounds on time are loose, for these run on busy machines; what is counted is exact. Every test ends
with none of its processes alive.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from edgewise.domain import Outcome, Request, Status
from edgewise.errors import PeerError
from edgewise.live.client.client import Client, SentRequest
from edgewise.live.client.prepared_load import read_load
from edgewise.live.process_config import ClientConfig
from edgewise.live.run.deployment import Deployment
from edgewise.live.run.evaluation import evaluate, read_requests
from edgewise.scenario import Scenario, loads
from edgewise.score import ScoreShape

pytestmark = pytest.mark.system

EDGEWISE = [sys.executable, "-m", "edgewise"]
DOCUMENT = Path(__file__).parent.parent / "docs" / "by-hand.md"

# `far` is the only one that can serve what asks for 0.8, so those requests queue on it.
PAIR = """
name: pair
executor: replay
service_noise: {cv: 0}
report_period: 0.05
servers:
  near: {services: [{model: small, accuracy: 0.6, latency: [0.02], input_size: 96}]}
  far:
    services:
      - {model: small, accuracy: 0.6, latency: [0.02], input_size: 96}
      - {model: large, accuracy: 0.9, latency: [0.08], input_size: 224}
network:
  access: {rate_mbps: 100, delay: 0.03}
  link: {rate_mbps: 100, delay: 0.002}
workload:
  duration: 3
  arrivals: {kind: constant, rate: 20}
  ingress: {near: 2, far: 1}
  demands:
    - {share: 1, deadline: 1.0, accuracy: 0.5}
    - {share: 1, deadline: 1.0, accuracy: 0.8}
  payload: {kind: lognormal, median_bytes: 20000, sigma: 0.3}
"""


def pair(old: str = "", new: str = "") -> Scenario:
    assert old in PAIR
    return loads(PAIR.replace(old, new) if old else PAIR)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A run's folder; no process with it on its command line may outlive the test."""
    yield tmp_path
    left = alive(tmp_path)
    for process in left:
        process.kill()
    assert not left, [process.cmdline() for process in left]


def alive(folder: Path) -> list[psutil.Process]:
    """Processes that have `folder` on their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in each for each in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return [p for p in found if p.pid != os.getpid() and p.status() != psutil.STATUS_ZOMBIE]


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until other processes have done something."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def up(*arguments: str, seconds: float = 150.0) -> str:
    """Run ``edgewise up``, which must succeed; returns its output."""
    done = subprocess.run(
        [*EDGEWISE, "up", *arguments], capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return list(pq.read_table(folder / f"{name}.parquet").to_pylist())


# -- the launcher --------------------------------------------------------------------------------


def test_up_serves_real_requests_and_writes_all_files(folder: Path) -> None:
    run, file = folder / "run", folder / "summary.json"
    up("smoke", "--out", str(run), "--json", str(file))
    summary = json.loads(file.read_text())
    assert summary["scenario"] == "smoke"
    (policy,) = summary["policies"]
    assert policy["policy"] == "edgewise"
    assert sum(policy["outcomes"].values()) == policy["requests"] > 30
    assert policy["outcomes"]["lost"] == policy["outcomes"]["failed"] == 0
    assert policy["outcomes"]["served"] >= 0.9 * policy["requests"]
    assert 0.5 < policy["utility"]["expected"] <= 0.9
    assert policy["effective_accuracy"] > 0.4
    assert policy["latency_ms"]["p50"] <= policy["latency_ms"]["p95"] <= policy["latency_ms"]["p99"]
    assert set(policy["per_server"]) == {"left", "right"}
    assert all(0 <= each["utilisation"] <= 1 for each in policy["per_server"].values())
    # The files: one outcome and one decision a request, and the same summary again from them.
    asked = {row["request"] for row in rows(run, "requests")}
    assert {row["request"] for row in rows(run, "outcomes")} == asked
    assert {row["request"] for row in rows(run, "decisions")} == asked
    assert len(rows(run, "reports")) > 20
    assert json.loads((run / "summary.json").read_text()) == summary
    assert json.loads(evaluate(run).to_json()) == summary


def test_policies_run_one_after_another_on_the_same_trace(folder: Path) -> None:
    run, names = folder / "run", ("earliest_completion", "round_robin", "local")
    output = up("smoke", "--policy", ",".join(names), "--duration", "1.5", "--out", str(run))
    summary = json.loads((run / "summary.json").read_text())
    assert [each["policy"] for each in summary["policies"]] == list(names)
    # A busy machine may send two of nearly the same time in another order.
    asked = [
        sorted((r.id, r.ingress, r.payload_bytes, r.deadline) for r in read_requests(run / name))
        for name in names
    ]
    assert asked[0] == asked[1] == asked[2]
    assert "vs best other" in output
    assert all(name in output for name in names)
    assert {row["policy"] for row in rows(run / "local", "decisions")} == {"local"}


def test_without_the_emulator_there_is_no_relay_and_less_latency(folder: Path) -> None:
    scenario = folder / "pair.yaml"
    scenario.write_text(PAIR)
    p50 = {}
    for switch in ("--emulate", "--no-emulate"):
        run = folder / switch.strip("-")
        up(str(scenario), switch, "--duration", "2", "--policy", "local", "--out", str(run))
        p50[switch] = evaluate(run).policies[0].latency_ms.p50
        assert (run / "logs" / "relay.log").exists() == (switch == "--emulate")
        assert (run / "config" / "relay.yaml").exists() == (switch == "--emulate")
    # 30 ms there and 30 ms back are gone, and nothing else was added.
    with_relay, without = p50["--emulate"], p50["--no-emulate"]
    assert with_relay is not None
    assert without is not None
    assert with_relay > without + 40


def test_ctrl_c_stops_everything(folder: Path) -> None:
    launcher = running(folder)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    assert "Traceback" not in errors
    assert not alive(folder / "run")
    # Stopped in order: what was there has been written.
    assert rows(folder / "run", "requests")


def test_nothing_survives_a_launcher_that_is_killed(folder: Path) -> None:
    launcher = running(folder)
    assert len(alive(folder / "run")) >= 5  # balancer, relay, two nodes, client
    launcher.kill()
    launcher.communicate(timeout=30)
    until(lambda: not alive(folder / "run"), 10)


def running(folder: Path) -> subprocess.Popen[str]:
    """A launcher whose client has begun to send."""
    launcher = subprocess.Popen(
        [*EDGEWISE, "up", "smoke", "--duration", "600", "--out", str(folder / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background lets them ignore it, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert launcher.stdout is not None
    for line in launcher.stdout:  # its first line about what was sent
        if " sent " in line:
            return launcher
    raise AssertionError(launcher.communicate()[1])


async def test_a_process_that_does_not_start_is_reported_with_its_log(folder: Path) -> None:
    deployment = Deployment(pair(), folder, with_client=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", deployment.addresses.nodes["far"].port))
        taken.listen()
        with pytest.raises(PeerError, match=r"node far ended .*(?s:.*)cannot listen on"):
            async with deployment:
                pass


# -- when something dies -------------------------------------------------------------------------


class Watched:
    """A client in this process that records when each request ended and how."""

    def __init__(self, deployment: Deployment) -> None:
        where = deployment.addresses
        config = ClientConfig(scenario="pair", balancer=where.balancer_url(), ingress=where.ingress)
        load = read_load(deployment.scenario, "s")
        self.ended: list[tuple[Request, Outcome, float]] = []
        self.client = Client(config, load, ScoreShape(), self._note, send_labels=True)

    def _note(self, entry: SentRequest, outcome: Outcome) -> None:
        self.ended.append((entry.request, outcome, time.time() - entry.request.sent_at))


async def test_a_node_is_killed_with_requests_in_its_queue(folder: Path) -> None:
    """Each of them ends once, within its deadline and a second."""
    # 16 requests/s of 0.08 s on `far` alone keep it over its capacity: there is a queue.
    scenario = pair("rate: 20", "rate: 32")
    async with Deployment(scenario, folder, with_client=False) as deployment:
        watched = Watched(deployment)
        await deployment.begin()
        sending = asyncio.create_task(watched.client.run())
        while True:  # until it has a queue
            state = await deployment.state()
            if state is not None and state["servers"]["far"]["reported_queue"] >= 2:
                break
            assert not sending.done()
            await asyncio.sleep(0.02)
        await deployment.nodes["far"].kill()
        await sending
    ended = watched.ended
    assert len(ended) == len({request.id for request, _, _ in ended}) == len(watched.client.delays)
    statuses = {outcome.status for _, outcome, _ in ended}
    assert statuses >= {Status.SERVED, Status.FAILED}
    assert Status.LOST not in statuses
    assert not [r.id for r, _, seconds in ended if seconds > r.deadline + 1.0]
    # Those that any server may answer are answered, also after it.
    easy = [o.status for r, o, _ in ended if r.accuracy < 0.8 and r.ingress == "near"]
    assert easy.count(Status.SERVED) >= 0.8 * len(easy)


async def test_nodes_go_on_when_their_balancer_is_gone(folder: Path) -> None:
    async with Deployment(pair(), folder, with_client=False) as deployment:
        watched = Watched(deployment)
        await deployment.begin()
        sending = asyncio.create_task(watched.client.run())
        while len(watched.ended) < 10:
            assert not sending.done()
            await asyncio.sleep(0.02)
        await deployment.balancer.kill()
        killed = time.time()
        await sending
    after = [outcome for request, outcome, _ in watched.ended if request.sent_at > killed]
    served = [each for each in after if each.status is Status.SERVED]
    assert len(after) > 20
    assert len(served) >= 0.8 * len(after)
    # They still know of each other: what only `far` can do is done there.
    assert any(each.model == "large" and each.server == "far" for each in served)


async def test_a_planned_failure_takes_a_node_down_and_brings_it_back(folder: Path) -> None:
    scenario = loads(PAIR + "failures: [{at: 0.5, server: far, duration: 0.5, kind: down}]\n")
    output: list[str] = []
    longer = scenario.with_overrides(duration=8.0, rate=10.0)
    async with Deployment(longer, folder, output.append) as deployment:
        before = deployment.nodes["far"].pid
        await deployment.run()
        assert deployment.nodes["far"].pid != before
    assert "node far goes down for 0.5 s" in output
    assert "node far is back" in output
    (policy,) = evaluate(folder).policies
    assert sum(policy.outcomes.values()) == policy.requests == 80
    assert policy.per_server["far"].served > 0


# -- by hand -------------------------------------------------------------------------------------


async def test_a_server_slows_down_for_a_while(folder: Path) -> None:
    slow = "failures: [{at: 1, server: near, duration: 1, kind: slow, factor: 3}]\nworkload:"
    scenario = pair("workload:", slow).with_overrides(policy="local", seed=3)
    async with Deployment(scenario, folder) as deployment:
        await deployment.run()
    began = min(row["sent_at"] for row in rows(folder, "requests"))
    at_rest: list[float] = []
    slowed: list[float] = []
    for row in rows(folder, "outcomes"):
        if row["server"] == "near" and row["status"] == "served":
            start = row["stamp_started"] - began
            if not 0.9 < start < 1.1 and not 1.9 < start < 2.1:
                (slowed if 1.0 < start < 2.0 else at_rest).append(
                    row["stamp_finished"] - row["stamp_started"]
                )
    assert min(len(at_rest), len(slowed)) >= 3
    # A job is taken when the worker was free, a little before the stamp says so.
    assert min(slowed) > 0.055 > 0.045 > min(at_rest) > 0.018


def test_the_commands_of_by_hand_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files and commands of docs/by-hand.md, on other ports; the relay comes last."""
    text = DOCUMENT.read_text()
    ports = {port: free_port() for port in sorted(set(re.findall(r"\b8[12]0\d\b", text)))}
    for port, free in ports.items():
        text = text.replace(port, str(free))
    for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        name = re.match(r"# (\S+\.yaml)\n", block)
        assert name
        (folder / name.group(1)).write_text(block)
    commands = re.findall(r"^(edgewise .*|curl .*)$", text, re.MULTILINE)
    monkeypatch.chdir(folder)
    Path("photo.jpg").write_bytes(bytes(100_000))  # replay does not look at it
    started: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            words = command.split()
            if words[0] == "curl":
                check_url(re.search(r"http://\S+", command).group(), command)  # type: ignore[union-attr]
            elif words[1] in ("balancer", "node", "relay"):
                started.append(start(words, folder))
            elif words[1] == "client":
                assert not any("relay" in str(each.args) for each in started)
                output = finish(words)
                assert json.loads(output.splitlines()[-1])["done"]["outcomes"]["served"] > 30
            elif words[1] == "evaluate":
                assert "edgewise" in finish(words)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.communicate(timeout=20)
    assert [process.returncode for process in started] == [0] * len(started)
    assert len(started) == 4
    (policy,) = evaluate(folder / "run").policies
    assert sum(policy.outcomes.values()) == policy.requests
    assert len(rows(folder / "run", "decisions")) >= policy.requests


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start a process and wait until it listens."""
    with (folder / f"{words[2]}.log").open("w") as log:
        process = subprocess.Popen(
            # The folder on the command line is how `alive` recognises it.
            [*EDGEWISE, words[1], str(folder / words[2])],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (folder / f"{words[2]}.log").read_text()
    ready = json.loads(line)["ready"]
    assert words[1] in ready
    assert ready["url"].startswith("http://127.0.0.1:")
    return process


def finish(words: list[str]) -> str:
    done = subprocess.run([*EDGEWISE, *words[1:]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_url(url: str, command: str) -> None:
    """Do what the curl command would, with its ``-X``, ``-H``, ``--json`` and ``--data-binary``."""
    body = re.search(r"--json '(.*)'", command)
    file = re.search(r"--data-binary @(\S+)", command)
    data = Path(file.group(1)).read_bytes() if file else body.group(1).encode() if body else None
    headers = {"Content-Type": "application/json"}
    headers |= dict(each.split(": ") for each in re.findall(r"-H '(.*?)'", command))
    method = re.search(r"-X (\w+)", command)
    request = urllib.request.Request(
        url,
        data=data,
        headers=headers,
        method=method.group(1) if method else None,
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200, command
    except urllib.error.HTTPError as error:
        with error:
            raise AssertionError(f"{command}: {error.code} {error.read()!r}") from None
