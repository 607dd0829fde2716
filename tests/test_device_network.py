"""Namespaces, qdiscs, TUN devices: their configuration and, as root, the time that bytes take."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console

pytest.importorskip("pyroute2", reason="extra netns")

from edgewise.errors import BadInput, ScenarioError
from edgewise.live.run import netns
from edgewise.live.run.addresses import relay_events, relay_links
from edgewise.live.run.deployment import Deployment
from edgewise.live.run.progress_view import _links
from edgewise.network import capabilities
from edgewise.network.capacity import stepwise
from edgewise.network.kernel.device_network import DeviceNetwork
from edgewise.network.kernel.devices import Device, DeviceRoute, DevicesConfig, load
from edgewise.network.kernel.meter import ThroughputMeter
from edgewise.network.kernel.namespaces import HOST, Namespaces, remove_leftovers
from edgewise.network.kernel.tc import TcShaper
from edgewise.network.kernel.tun import PacketShaper
from edgewise.network.link import Link
from edgewise.network.relay.config import RelayConfig
from edgewise.network.relay.timers import Timer
from edgewise.network.settings import LinkChange, LinkSettings, Outage
from edgewise.network.trace import FileTrace
from edgewise.scenario import Scenario, loads

FLEET = """
name: three
executor: replay
servers:
  a: {services: [{model: small, accuracy: 0.6, latency: [0.004], input_size: 96}]}
  b: {services: [{model: small, accuracy: 0.6, latency: [0.004], input_size: 96}]}
  c: {services: [{model: small, accuracy: 0.6, latency: [0.004], input_size: 96}]}
network:
  topology: uplink
  access: {rate_mbps: 50, delay: 0.001}
  link: {rate_mbps: 20, delay: 0.002}
workload:
  duration: 2
  arrivals: {kind: constant, rate: 15}
  ingress: {a: 1, b: 1, c: 1}
  demands: [{share: 1, deadline: 1.0, accuracy: 0.5}]
  payload: {kind: lognormal, median_bytes: 20000, sigma: 0.3}
"""
BLOCK = IPv4Network("198.18.7.0/24")


def fleet(topology: str = "uplink") -> Scenario:
    return loads(FLEET.replace("topology: uplink", f"topology: {topology}"))


def laid(topology: str, backend: netns.Backend) -> tuple[Any, DevicesConfig]:
    where = netns.assign_addresses(
        fleet(topology), itertools.count(9000).__next__, backend, BLOCK, 4711
    )
    assert isinstance(where.relay, DevicesConfig)
    where.relay.check()
    return where, where.relay


# -- configurations and addresses ------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["uplink", "pair"])
def test_tc_has_one_device_for_each_link(topology: str) -> None:
    where, config = laid(topology, "tc")
    assert sorted(device.link for device in config.devices) == sorted(config.links)
    assert config.links == relay_links(fleet(topology))
    assert config.events == relay_events(fleet(topology))
    # What a calls b is where b's end of their pair is; a client's view is another device.
    assert where.peers["a"]["b"] != where.ingress["b"]
    by_link = {device.link: device for device in config.devices}
    assert by_link["access:a"].namespace == HOST
    assert by_link["return:a"].namespace == "ew-4711-0"
    if topology == "uplink":
        assert by_link["uplink:b"].namespace == "ew-4711-1"
    else:
        assert (by_link["b>c"].namespace, by_link["b>c"].device) == ("ew-4711-1", "to2")
        assert where.peers["b"]["c"].split(":")[1] == f"//{by_link['b>c'].peer}"


@pytest.mark.parametrize("topology", ["uplink", "pair"])
def test_tun_has_the_link_of_every_route(topology: str) -> None:
    where, config = laid(topology, "tun")
    link = {(route.source, route.to): route.link for route in config.routes}
    host = {d.namespace: d.address for d in config.devices}
    a, b = host["ew-4711-0"], host["ew-4711-1"]
    assert link[host[HOST], a] == "access:a"
    assert link[a, host[HOST]] == "return:a"
    assert link[a, b] == ("uplink:a" if topology == "uplink" else "a>b")
    assert len(link) == len(config.routes) == 3 * 2 + 6
    assert where.ingress["b"].startswith(f"http://{b}:")
    assert where.peers["a"]["b"] == where.ingress["b"]


def test_addresses_are_unique() -> None:
    plan = netns.AddressPlan(BLOCK, 1, netns.MAX_SERVERS)
    servers = range(netns.MAX_SERVERS)
    control = [address for i in servers for address in plan.control(i)]
    access = [address for i in servers for address in plan.access(i)]
    tun = [plan.client, *(plan.tun(i) for i in servers)]
    pairs = [plan.pair(i, j) for i in servers for j in servers if i != j]
    for group in (control + access, control + tun, pairs):
        assert len(set(group)) == len(group)
    assert all(len(f"{plan.stem}a{i}") <= 15 for i in servers)


def test_a_configuration_of_devices_and_one_of_a_relay_are_told_apart(tmp_path: Path) -> None:
    _, config = laid("uplink", "tun")
    file = tmp_path / "relay.yaml"
    file.write_bytes(msgspec.yaml.encode(config))
    assert load(file) == msgspec.structs.replace(config, folder=str(tmp_path))
    file.write_text("routes: [{to: {port: 80}}]")
    assert isinstance(load(file), RelayConfig)
    file.write_text("backend: tc\ndevices: [{namespace: x, device: y, link: nosuch}]")
    with pytest.raises(ScenarioError, match=r"devices\[0\]\.link: expected the name of a link"):
        load(file)


# -- packets ---------------------------------------------------------------------------------------


class Clock:
    """Timers that fire when `run` is called."""

    def __init__(self) -> None:
        self.heap: list[Timer] = []

    def at(self, when: float, callback: Callable[[float], None]) -> Timer:
        timer = Timer(when, len(self.heap), callback)
        if when < float("inf"):
            self.heap.append(timer)
        return timer

    def run(self, until: float) -> None:
        while due := [t for t in self.heap if t.callback is not None and t.when <= until]:
            timer = min(due)
            self.heap.remove(timer)
            assert timer.callback is not None
            timer.callback(timer.when)


class Far:
    """Where packets arrive."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def write(self, packet: bytes) -> None:
        self.got.append(packet)


def shaper(clock: Clock, **settings: Any) -> PacketShaper:
    link = Link(LinkSettings(**settings), rng=np.random.default_rng(1))
    made = PacketShaper("link", link, clock)  # type: ignore[arg-type]
    made.restore(0.0, LinkSettings(**settings), restart=True)
    return made


def test_packets_arrive_in_order_at_the_rate_and_after_the_delay() -> None:
    clock, far = Clock(), Far()
    link = shaper(clock, rate_mbps=8, delay=0.01)
    for i in range(3):
        link.put(bytes([i]) * 1000, 0.0, far)  # type: ignore[arg-type]
    clock.run(0.0119)
    assert [packet[0] for packet in far.got] == [0]  # 1 ms on the wire, 10 on its way
    clock.run(0.0121)
    assert [packet[0] for packet in far.got] == [0, 1]
    clock.run(1.0)
    assert [packet[0] for packet in far.got] == [0, 1, 2]
    assert link.backlog == 0
    assert link.delivered == 3000


def test_packets_that_a_full_queue_drops_or_the_link_loses_are_counted() -> None:
    clock, far = Clock(), Far()
    link = shaper(clock, rate_mbps=8, queue_bytes=2500)
    for _ in range(4):
        link.put(bytes(1000), 0.0, far)  # type: ignore[arg-type]
    clock.run(1.0)
    assert (len(far.got), link.dropped) == (2, 2)
    clock, far = Clock(), Far()
    link = shaper(clock, loss=0.3)
    for i in range(1000):
        link.put(bytes(1000), float(i), far)  # type: ignore[arg-type]
    assert len(far.got) + link.dropped == 1000
    assert 230 < link.dropped < 370


def test_an_outage_and_a_change_hold_for_the_packet_on_the_wire() -> None:
    clock, far = Clock(), Far()
    link = shaper(clock, rate_mbps=0.008)  # 1 s for a packet
    link.put(bytes(1000), 0.0, far)  # type: ignore[arg-type]
    clock.run(0.4)
    link.outage(0.5, 2.0)
    clock.run(2.9)
    assert not far.got
    clock.run(3.0)
    assert len(far.got) == 1
    link.put(bytes(1000), 10.0, far)  # type: ignore[arg-type]
    link.change(10.5, LinkSettings(rate_mbps=8))
    clock.run(10.51)
    assert len(far.got) == 2


def test_throughput_is_of_the_last_second_whoever_asks_how_often() -> None:
    meter = ThroughputMeter()
    assert meter.read(0, 100.0) == 0.0
    assert meter.read(500, 100.5) == 0.0
    assert meter.read(1000, 101.0) == pytest.approx(8000.0)
    assert meter.read(1001, 101.1) == pytest.approx(8000.0)
    assert meter.state(1000, 102.0, 16000.0)["utilisation"] == 0.0
    assert meter.state(2000, 103.0, None)["throughput_bps"] == pytest.approx(8000.0)


class FakeNamespaces:
    """Records the settings that the kernel would get."""

    def __init__(self) -> None:
        self.settings: list[tuple[str, str, float]] = []
        self.kicks = 0

    def index(self, namespace: str, device: str) -> int:
        return 7

    def socket(self, namespace: str) -> FakeNamespaces:
        return self

    def single_packets(self, namespace: str, index: int) -> None: ...

    def connect(self, to: tuple[str, int]) -> None: ...

    def send(self, data: bytes) -> None:
        self.kicks += 1

    def tc(
        self, verb: str, kind: str, namespace: str, index: int, handle: int, **more: Any
    ) -> None:
        if kind == "tbf":
            self.settings.append((verb, kind, 8.0 * more["rate"]))


NO_NETEM = capabilities.Capability("tc netem", "", "modprobe sch_netem")


def test_the_kernel_gets_each_step_of_a_trace_and_of_an_outage() -> None:
    clock, namespaces = Clock(), FakeNamespaces()
    capacity = stepwise([0, 1, 2], [4e6, 8e6], repeat=True)
    settings = LinkSettings(outages=(Outage(at=2.5, duration=0.25),))
    device = Device(namespace=HOST, device="dev", link="link", peer="1.2.3.4")
    link = TcShaper(
        "link", Link(settings, capacity), clock, namespaces, device, netem=NO_NETEM  # type: ignore[arg-type]
    )  # fmt: skip
    link.restore(0.0, settings, capacity, restart=True)
    clock.run(3.5)
    rates = [rate for _, _, rate in namespaces.settings]
    assert rates == pytest.approx([4e6, 8e6, 4e6, 1e3, 4e6, 8e6])
    assert [verb for verb, _, _ in namespaces.settings] == ["add", *["change"] * 5]
    assert namespaces.kicks == 1
    with pytest.raises(BadInput, match=r"delay: the tc backend does not.*needs netem.*modprobe"):
        link.change(3.6, LinkSettings(delay=0.01))


# -- on this machine, as root ----------------------------------------------------------------------

NAMESPACES = capabilities.network_namespaces()
TBF = capabilities.qdisc("tbf", NAMESPACES)
TUN = capabilities.tun(NAMESPACES)
BACKENDS = [
    pytest.param(
        name,
        marks=[
            pytest.mark.system,
            pytest.mark.skipif(not can.ok, reason=f"{can.found}; {can.needs}"),
        ],
    )
    for name, can in (("tc", TBF), ("tun", TUN))
]


def ours(pid: int) -> list[str]:
    """Namespaces and devices of a process."""
    with Namespaces() as namespaces:
        devices = [d for d in namespaces.devices() if re.match(rf"^ew{pid}[a-z]\d*$", d)]
    folder = Path("/run/netns")
    namespaces_of = [p.name for p in folder.glob(f"ew-{pid}-*")] if folder.is_dir() else []
    return devices + namespaces_of


@contextlib.contextmanager
def behind(backend: str, link: LinkSettings) -> Iterator[tuple[str, DevicesConfig]]:
    """A namespace behind a link: its address, and the configuration of the backend."""
    with Namespaces() as namespaces:
        block = namespaces.free_block()
        near, far = str(block[2]), str(block[3])
        namespace, here = namespaces.add("far"), f"ew{os.getpid()}b"
        links = {"there": link, "back": LinkSettings()}
        if backend == "tc":
            namespaces.veth((HOST, here), (namespace, "far"))
            namespaces.address(HOST, here, near, 31)
            namespaces.address(namespace, "far", far, 31)
            devices = (
                Device(namespace=HOST, device=here, link="there", peer=far),
                Device(namespace=namespace, device="far", link="back", peer=near),
            )
            config = DevicesConfig(backend="tc", devices=devices, links=links)
        else:
            devices = (
                Device(namespace=HOST, device=here, address=near, prefix=31),
                Device(namespace=namespace, device="far", address=far, prefix=31),
            )
            routes = (DeviceRoute(near, far, "there"), DeviceRoute(far, near, "back"))
            config = DevicesConfig(backend="tun", devices=devices, routes=routes, links=links)
        yield far, config
    assert ours(os.getpid()) == []


SINK = """
import socket, threading
def count(sock):
    n = 0
    while data := sock.recv(65536):
        n += len(data)
    sock.sendall(n.to_bytes(8, "big"))
    sock.close()
with socket.create_server(("0.0.0.0", 5001)) as server:
    print("ready", flush=True)
    while True:
        threading.Thread(target=count, args=server.accept()[:1], daemon=True).start()
"""


@contextlib.contextmanager
def sink(namespace: str) -> Iterator[None]:
    """A process in a namespace that counts the bytes it receives and answers their number."""
    command = ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, "-I", "-S", "-c", SINK]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


def transfer(to: str, size: int) -> float:
    """Seconds until the far end has said that it has got all."""
    start = time.monotonic()  # the handshake crosses the link, too
    with socket.create_connection((to, 5001), timeout=60) as sock:
        sock.sendall(bytes(size))
        sock.shutdown(socket.SHUT_WR)
        assert int.from_bytes(sock.recv(8), "big") == size
        return time.monotonic() - start


@pytest.mark.parametrize("backend", BACKENDS)
async def test_bytes_take_the_link_s_time(backend: str) -> None:
    with (
        behind(backend, LinkSettings(rate_mbps=8)) as (far, config),
        sink(config.devices[1].namespace),
    ):
        async with DeviceNetwork(config) as network:
            slow = await asyncio.to_thread(transfer, far, 400_000)  # 0.4 s and headers
            await network.patch("there", LinkChange(rate_mbps=80))
            fast = await asyncio.to_thread(transfer, far, 400_000)
            state = network.backends["there"].state(time.monotonic())
            assert state["rate_bps"] == pytest.approx(80e6)
            assert 800_000 <= state["delivered_bytes"] < 1_000_000
            console = Console(width=120)
            console.print(_links({"there": state}))  # as `edgewise up` shows it
            network.outage("there", 0.6)
            held = await asyncio.to_thread(transfer, far, 100_000)
            network.restore("there")
            again = await asyncio.to_thread(transfer, far, 400_000)
    assert slow > 0.39
    assert fast < 0.6 * slow
    assert held > 0.5
    assert again > 0.39


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_rate_that_falls_leaves_nothing_stuck(backend: str, tmp_path: Path) -> None:
    """A queue of tbf's that held a bundle larger than its new burst stood still for seconds."""
    (tmp_path / "trace").write_text("0\t40\n0.4\t20\n30\t20\n")
    link = LinkSettings(trace=FileTrace(path=str(tmp_path / "trace")))
    with behind(backend, link) as (far, config), contextlib.ExitStack() as stack:
        stack.enter_context(sink(config.devices[1].namespace))
        async with DeviceNetwork(config):
            begun = time.monotonic()
            await asyncio.gather(*(asyncio.to_thread(transfer, far, 1_000_000) for _ in range(6)))
            ideal = 0.4 + 8 * (6e6 - 2e6) / 20e6
            # Twice as long: retransmissions, a busy machine; stuck, it took until the rate rose.
            assert 0.9 * ideal < time.monotonic() - begun < 2 * ideal


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_fleet_runs_over_it_and_leaves_nothing(backend: str, tmp_path: Path) -> None:
    assert backend in ("tc", "tun")
    platform = netns.NamespacePlatform(fleet(), backend)  # type: ignore[arg-type]
    async with Deployment(fleet(), tmp_path, platform=platform) as deployment:
        assert ours(os.getpid())
        await deployment.run()
        links = await deployment.links()
    assert {name for name, link in links.items() if link["delivered_bytes"] > 20_000} >= {
        "access:a", "access:b", "access:c"
    }  # fmt: skip
    assert deployment.progress["outcomes"]["served"] >= 29
    assert ours(os.getpid()) == []


@pytest.mark.system
@pytest.mark.skipif(not NAMESPACES.ok, reason=f"{NAMESPACES.found}; {NAMESPACES.needs}")
def test_what_a_killed_process_left_is_removed() -> None:
    code = (
        "from edgewise.network.kernel.namespaces import *; import os, sys\n"
        "s = Namespaces(); a = s.add('x'); s.veth((a, 'in'), (HOST, f'ew{os.getpid()}c0'))\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        remove_leftovers()
        assert len(ours(process.pid)) == 2  # it is alive: not ours to remove
        process.send_signal(signal.SIGKILL)
    remove_leftovers()
    assert ours(process.pid) == []
