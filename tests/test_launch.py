"""The launcher: addresses, configuration files, options, and the view of a run."""

from __future__ import annotations

import asyncio
import io
import itertools
import random
import socket
from pathlib import Path

import pytest
from msgspec import UNSET
from rich.console import Console

from edgewise.cli import options as cli_options
from edgewise.errors import BadInput, ScenarioError
from edgewise.live.process_config import BalancerConfig, ClientConfig, NodeConfig, load_config
from edgewise.live.run import launcher, progress_view
from edgewise.live.run.addresses import Addresses, assign_addresses, relay_events, relay_links
from edgewise.live.run.deployment import Deployment, ignored_settings
from edgewise.live.run.processes import FreePorts
from edgewise.network.relay.config import RelayConfig
from edgewise.network.relay.config import load_config as load_relay
from edgewise.network.settings import LinkChange
from edgewise.network.trace import CellularTrace
from edgewise.scenario import MuteFailure, Scenario, load, loads

FLEET = """
name: two
servers:
  a: {services: [{model: m, accuracy: 0.9, latency: [0.01]}]}
  b: {services: [{model: m, accuracy: 0.9, latency: [0.01]}]}
  c: {services: [{model: m, accuracy: 0.9, latency: [0.01]}]}
executor: replay
network:
  access: {rate_mbps: 50, delay: 0.004, jitter: 0.001}
  link: {rate_mbps: 20, delay: 0.005, outages: [{at: 3, duration: 1}]}
  links: {b: {rate_mbps: null, loss: 0.01, queue_bytes: 70000}}
  events:
    - {at: 5, link: a, set: {rate_mbps: 2, delay: 0.04}}
    - {at: 6, link: "access:a", set: {delay: 0.02}}
    - {at: 7, link: b, set: {rate_mbps: null}}
workload:
  duration: 10
  arrivals: {kind: poisson, rate: 20}
  ingress: {a: 1}
  demands: [{deadline: 0.5}]
  payload: {kind: lognormal, median_bytes: 20000}
failures:
  - {at: 1, server: a, duration: 2, kind: slow, factor: 2}
  - {at: 4, server: b, duration: 2, kind: down}
"""


def fleet() -> Scenario:
    return loads(FLEET)


def addresses(scenario: Scenario) -> Addresses:
    return assign_addresses(scenario, itertools.count(9000).__next__)


def ways(relay: RelayConfig) -> dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """By the address at which a route begins: where it ends and which links it crosses."""
    return {
        f"http://{r.listen.host}:{r.listen.port}": (
            f"http://{r.to.host}:{r.to.port}",
            r.forward,
            r.backward,
        )
        for r in relay.routes
    }


def test_with_the_emulator_every_route_crosses_its_links() -> None:
    where = addresses(fleet())
    assert where.relay is not None
    there = ways(where.relay)
    real = {name: f"http://{at.host}:{at.port}" for name, at in where.nodes.items()}
    for name in "abc":
        assert there[where.ingress[name]] == (
            real[name],
            (f"access:{name}",),
            (f"return:{name}",),
        )
    assert there[where.peers["a"]["b"]] == (real["b"], ("uplink:a",), ("uplink:b",))
    assert there[where.peers["c"]["a"]] == (real["a"], ("uplink:c",), ("uplink:a",))
    assert set(where.peers["a"]) == {"b", "c"}
    # Nobody is known a real address of a node, and no two ways begin at the same one.
    known = [
        *where.ingress.values(),
        *(url for each in where.peers.values() for url in each.values()),
    ]
    assert len(set(known)) == len(known) == 3 + 6
    assert not set(known) & set(real.values())
    where.relay.check()


def test_a_pair_topology_has_a_link_each_way() -> None:
    text = FLEET.replace(
        "links: {b: {rate_mbps: null, loss: 0.01, queue_bytes: 70000}}",
        'topology: pair\n  links: {"a>b": {rate_mbps: 3}}',
    )
    text = text.replace("link: a,", 'link: "a>b",').replace("link: b,", 'link: "b>a",')
    where = addresses(loads(text))
    assert where.relay is not None
    _, forward, backward = ways(where.relay)[where.peers["a"]["b"]]
    assert (forward, backward) == (("a>b",), ("b>a",))
    assert where.relay.links["a>b"].rate_mbps == 3.0
    assert where.relay.links["b>a"].rate_mbps == 20.0


def test_without_the_emulator_the_addresses_are_the_real_ones() -> None:
    where = addresses(fleet().with_overrides(emulate=False))
    real = {name: f"http://{at.host}:{at.port}" for name, at in where.nodes.items()}
    assert where.relay is None
    assert where.ingress == real
    assert where.peers["a"] == {"b": real["b"], "c": real["c"]}


def test_the_relay_has_the_links_and_events_of_the_scenario() -> None:
    links = relay_links(fleet())
    access, back, a, b = (links[n] for n in ("access:a", "return:a", "uplink:a", "uplink:b"))
    assert (access.rate_mbps, access.delay, access.jitter) == (50.0, 0.004, 0.001)
    assert (back.rate_mbps, back.delay, back.jitter) == (None, 0.004, 0.0)
    assert (a.rate_mbps, [(o.at, o.duration) for o in a.outages]) == (20.0, [(3.0, 1.0)])
    assert (b.rate_mbps, b.loss, b.queue_bytes) == (None, 0.01, 70000)
    events = {(event.link, event.at): event.set for event in relay_events(fleet())}
    assert events["uplink:a", 5.0] == LinkChange(rate_mbps=2.0, delay=0.04)
    assert events["uplink:a", 5.0].loss is UNSET  # what an event leaves out stays as it was
    assert [change.rate_mbps for (link, _), change in events.items() if link == "uplink:b"] == [
        None  # unlimited is not the same as unchanged
    ]
    # The way back is as long as the way there, also after it has changed.
    assert events["return:a", 6.0] == LinkChange(delay=0.02)


def test_traces_go_into_the_relay(tmp_path: Path) -> None:
    file = tmp_path / "rates.txt"
    file.write_text("0\t4\n1\t8\n")
    scenario = load("volatile")
    links = relay_links(scenario)
    trace = links["uplink:plaza"].trace
    assert trace is not None
    assert trace == CellularTrace(mean_mbps=9.0, seed=3)
    assert links["uplink:plaza"].rate_mbps is None
    text = FLEET.replace(
        "b: {rate_mbps: null,", f"b: {{trace: {{kind: file, path: {file}, scale: 3}},"
    )
    scaled = relay_links(loads(text))["uplink:b"].trace
    assert scaled is not None
    assert scaled.load(Path("/")).mean_bps == pytest.approx(3 * 6e6)


def test_every_preset_gets_valid_addresses() -> None:
    for name in ("three-sites", "single-model", "volatile", "direct", "smoke"):
        where = addresses(load(name))
        assert (where.relay is None) == (name == "direct")
        if where.relay is not None:
            where.relay.check()


def test_the_configurations_are_what_one_would_write_by_hand(tmp_path: Path) -> None:
    deployment = Deployment(fleet(), tmp_path)
    deployment._write_configs()
    folder = tmp_path / "config"
    where = deployment.addresses
    assert load_relay(folder / "relay.yaml").routes == where.relay.routes  # type: ignore[union-attr]
    assert load_relay(folder / "relay.yaml").links == where.relay.links  # type: ignore[union-attr]
    node = load_config(folder / "node-a.yaml", NodeConfig)
    assert (node.server, node.peers, node.listen) == ("a", where.peers["a"], where.nodes["a"])
    balancer = load_config(folder / "balancer.yaml", BalancerConfig)
    client = load_config(folder / "client.yaml", ClientConfig)
    assert balancer.out == client.out == str(tmp_path)
    assert client.ingress == where.ingress
    # Only the relay knows that there is one.
    for file in folder.glob("*.yaml"):
        assert (file.stem == "relay") == ("routes:" in file.read_text())
    assert balancer.relays == ()
    assert load(folder.parent / "scenario.yaml") == fleet()


def test_the_balancer_reads_the_relay_only_if_the_scenario_says_so(tmp_path: Path) -> None:
    scenario = loads(FLEET.replace("executor: replay", "executor: replay\nnetwork_state: emulator"))
    deployment = Deployment(scenario, tmp_path)
    deployment._write_configs()
    balancer = load_config(tmp_path / "config" / "balancer.yaml", BalancerConfig)
    control = deployment.addresses.relay.control  # type: ignore[union-attr]
    assert balancer.relays == (f"http://{control.host}:{control.port}",)


def test_free_ports_are_free_and_given_once() -> None:
    ports = FreePorts(random.Random(1))
    first = ports()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 1))
        taken.listen()
        got = [ports() for _ in range(20)]
    assert first + 1 not in got
    assert len({first, *got}) == 21
    # Below the kernel's own range for outgoing connections.
    assert all(20_000 <= port < 32_768 for port in got)


def test_ignored_settings_are_named() -> None:
    assert not ignored_settings(fleet())
    assert any(
        "outages" in each for each in ignored_settings(fleet().with_overrides(emulate=False))
    )
    assert not ignored_settings(load("smoke"))


# -- up's own arguments --------------------------------------------------------------------------


class PausableProcess:
    """A balancer's process that records how it is called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.paused = asyncio.Event()

    async def pause(self) -> None:
        self.calls.append("pause")
        self.paused.set()

    async def resume(self) -> None:
        self.calls.append("resume")


async def test_a_mute_balancer_resumes_even_if_the_run_ends_before(tmp_path: Path) -> None:
    deployment = Deployment(fleet(), tmp_path)
    balancer = PausableProcess()
    deployment.balancer = balancer  # type: ignore[assignment]
    await deployment._fail(MuteFailure(at=0.0, duration=1e-6))
    assert balancer.calls == ["pause", "resume"]
    balancer.paused.clear()
    long = asyncio.create_task(deployment._fail(MuteFailure(at=0.0, duration=1e6)))
    await balancer.paused.wait()
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    assert balancer.calls == ["pause", "resume"] * 2


def test_options_change_the_scenario(tmp_path: Path) -> None:
    options = launcher.RunOptions(scenario="smoke", duration=1.5, rate=40.0, seed=9, emulate=False)
    scenario = launcher.scenario_of(options)
    assert (scenario.workload.duration, scenario.workload.arrivals.mean_rate) == (1.5, 40.0)
    assert (scenario.seed, scenario.network.emulate) == (9, False)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            launcher.RunOptions(scenario="smoke", policies=("local", "bestest")),
            "unknown policy 'bestest'",
        ),
        (launcher.RunOptions(scenario="smoke", rate=-1.0), "rate"),
        (launcher.RunOptions(scenario="smoke", duration=0.0), "duration"),
        (launcher.RunOptions(scenario="nosuch"), "expected a file or a preset"),
        (
            launcher.RunOptions(scenario="smoke", images="/nosuch"),
            "expected 'builtin', a folder or a label file",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: launcher.RunOptions, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        launcher.scenario_of(options)


def test_images_may_be_a_label_file(tmp_path: Path) -> None:
    (tmp_path / "val.txt").write_text("a.jpg 1\n")
    options = launcher.RunOptions(scenario="smoke", images=str(tmp_path / "val.txt"))
    assert launcher.scenario_of(options).workload.images == str(tmp_path / "val.txt")


def test_a_policy_that_stands_twice_is_refused() -> None:
    with pytest.raises(BadInput, match="stands twice in local,local"):
        cli_options.policies("local,local")


def test_two_runs_never_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = launcher.run_folder(load("smoke"), None)
    second = launcher.run_folder(load("smoke"), None)
    assert first != second
    assert first.is_dir()
    (first / "something").touch()
    with pytest.raises(BadInput, match="expected an empty or a new folder"):
        launcher.run_folder(load("smoke"), first)
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="cannot be made"):
        launcher.run_folder(load("smoke"), tmp_path / "file" / "below")


# -- what is seen --------------------------------------------------------------------------------


def run_state(**changes: object) -> progress_view.RunState:
    base: dict[str, object] = {
        "title": "local (1/3)",
        "elapsed": 4.0,
        "duration": 20.0,
        "progress": {
            "total": 60,
            "sent": 12,
            "outcomes": {"served": 9, "shed": 1, "lost": 0},
            "expected": 0.5,
            "effective": 0.25,
            "per_server": {"a": 7, "b": 2},
        },
        "state": {
            "servers": {
                "a": {
                    "connected": True, "utilisation": 0.5, "report_age": 0.1,
                    "believed_queue": 3, "backlog": 0.04,
                },
                "b": {"connected": False},
            }
        },
        "links": {
            "uplink:a": {
                "rate_bps": 8e6, "utilisation": 1.0, "throughput_bps": 7.9e6,
                "backlog_bytes": 64000, "flows": 2,
            },
            "return:a": {"rate_bps": None},
        },
    }  # fmt: skip
    return progress_view.RunState(**(base | changes))  # type: ignore[arg-type]


def drawn(seen: progress_view.RunState) -> str:
    shown = io.StringIO()
    Console(width=100, file=shown).print(progress_view.status_tables(seen))
    return shown.getvalue()


def test_the_view_shows_servers_links_and_score() -> None:
    shown = drawn(run_state())
    assert "█████░░░░░  50 %" in shown
    assert "not connected" in shown
    assert "uplink:a" in shown
    assert "return:a" not in shown
    assert "utility 0.500, effective 25 %" in shown
    assert "9 served, 1 shed" in shown


def test_the_view_copes_with_missing_state() -> None:
    assert "nothing sent yet" in drawn(run_state(progress={}, state=None, links={}))
    assert "the balancer is silent" in drawn(run_state(state=None))
    assert "uplink" not in drawn(run_state(links={}))


def test_without_a_terminal_the_state_is_one_line() -> None:
    line = progress_view.status_line(run_state())
    assert "\n" not in line
    assert "4/20 s" in line
    assert "sent 12" in line


def test_a_config_with_a_wrong_field_names_it(tmp_path: Path) -> None:
    file = tmp_path / "client.yaml"
    file.write_text("scenario: smoke\nbalancer: http://127.0.0.1:1\ningres: {}\n")
    with pytest.raises(ScenarioError, match="ingres"):
        load_config(file, ClientConfig)
