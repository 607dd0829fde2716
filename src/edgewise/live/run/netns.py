"""Runs whose servers are each in a network namespace, with the backends ``tc`` and ``tun``.

Theory of operation
-------------------
As with relays, a backend only hands out other addresses, and the same processes run. Balancer,
client and launcher stay where they are. Each node runs in a namespace of its own, where it is
reached

- by the balancer over ``ctl``, a veth pair without shaping: the control channel belongs to another
  network, as it does with relays;
- by clients and peers over the shaped devices.

With ``tc`` a link is the traffic that leaves one device. ``access:a`` is the host's end of a's
``acc`` pair and ``return:a`` the other end. With the topology *uplink*, ``uplink:a`` is a's ``net``
into a switch, which is a bridge in a namespace of its own; with *pair*, ``a>b`` is a's end of a
pair with b. With ``tun`` each namespace has one TUN device, and the process between them tells the
links apart by address.

Nothing may be left behind. Everything is in namespaces that `close` removes; if a launcher is
killed, the next one cleans up after it (`namespaces.remove_leftovers`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

from edgewise.errors import BadInput
from edgewise.live.process_config import Listen
from edgewise.live.run.addresses import Addresses, relay_events, relay_links, return_of, url_of
from edgewise.live.run.platforms import LocalPlatform, display_name
from edgewise.live.run.processes import ChildProcess
from edgewise.network import capabilities
from edgewise.network.kernel.devices import Device, DeviceRoute, DevicesConfig
from edgewise.network.kernel.namespaces import HOST, PREFIX, Namespaces, remove_leftovers
from edgewise.network.kernel.tc import has_netem, unsupported_fields
from edgewise.network.relay.config import Address
from edgewise.scenario import Scenario

Backend = Literal["tc", "tun"]
MAX_SERVERS = 62
"""A /24 has room for two addresses of control and two of access for each of so many servers."""
BETWEEN_SERVERS = IPv4Network("198.19.0.0/16")
"""Addresses between servers. They exist in namespaces only, so runs do not conflict."""


def require_backend(backend: Backend) -> None:
    """Raise BadInput, naming what is missing, unless this machine can run the backend."""
    namespaces = capabilities.network_namespaces()
    needed = (
        capabilities.qdisc("tbf", namespaces) if backend == "tc" else capabilities.tun(namespaces)
    )
    for each in (namespaces, needed):
        if not each.ok:
            raise BadInput(
                f"network.backend: {backend!r} needs {each.name} ({each.found}); {each.needs}; "
                "`edgewise doctor` says what else this machine can do"
            )


def choose_backend(setting: Literal["relay", "tc", "tun", "auto"]) -> Backend | None:
    """The backend that a scenario's ``network.backend`` stands for here; None: relays.

    *auto* is tc only where the kernel can do both rate and delay.
    """
    if setting == "relay":
        return None
    if setting != "auto":
        return setting
    namespaces = capabilities.network_namespaces()
    able = all(capabilities.qdisc(kind, namespaces).ok for kind in ("tbf", "netem"))
    return "tc" if able else None


def ignored_settings(scenario: Scenario, backend: Backend) -> tuple[str, ...]:
    """The parts of a scenario's network that have no effect here, one sentence each."""
    if backend == "tun":
        return ()
    netem = has_netem()
    links = scenario.all_links().values()
    fields = dict.fromkeys(field for link in links for field in unsupported_fields(link, netem))
    if not fields:
        return ()
    why = "" if netem.ok else f": {netem.found}; {netem.needs}"
    return (f"the network has no {', '.join(fields)}{why}",)


class NamespacedProcess(ChildProcess):
    """A child process in a network namespace; it shares everything else with the machine."""

    def __init__(self, name: str, arguments: Iterable[str], log: Path, namespace: str) -> None:
        super().__init__(name, arguments, log)
        self._namespace = namespace

    def command(self) -> list[str]:
        # nsenter replaces itself by the command, so signals and the tie to this process still work.
        return [_nsenter(), f"--net=/run/netns/{self._namespace}", *super().command()]


class NamespacePlatform(LocalPlatform):
    """Hosts the processes of one run, for `deployment.Deployment`. Raises BadInput if this machine
    cannot run the backend."""

    def __init__(self, scenario: Scenario, backend: Backend) -> None:
        names = scenario.server_names
        if len(names) > MAX_SERVERS:
            raise BadInput(
                f"servers: the {backend} backend takes up to {MAX_SERVERS}, got {len(names)}"
            )
        require_backend(backend)
        remove_leftovers()
        self._backend: Backend = backend
        self._scenario = scenario
        self._names = names
        self._namespaces = Namespaces()
        self._block = self._namespaces.free_block()

    def assign_addresses(self, scenario: Scenario, free_port: Callable[[], int]) -> Addresses:
        return assign_addresses(scenario, free_port, self._backend, self._block, os.getpid())

    def process(
        self,
        role: str,
        server: str,
        arguments: Sequence[str],
        log: Path,
        ports: Sequence[int],
        keys: Path | None = None,
    ) -> ChildProcess:
        if role != "node":
            return super().process(role, server, arguments, log, ports, keys)
        namespace = namespace_of(os.getpid(), self._names.index(server))
        return NamespacedProcess(display_name(role, server), arguments, log, namespace)

    async def open(self) -> None:
        """Make the devices. Raises BadInput."""
        namespaces = self._namespaces
        plan = AddressPlan(self._block, os.getpid(), len(self._names))
        for i in range(len(self._names)):
            namespace = namespaces.add(str(i))
            ours, theirs = plan.control(i)
            namespaces.veth((namespace, "ctl"), (HOST, f"{plan.stem}c{i}"))
            namespaces.address(HOST, f"{plan.stem}c{i}", ours, 31)
            namespaces.address(namespace, "ctl", theirs, 31)
            if i:
                # The balancer has one address: that of the host towards the first server.
                namespaces.route(namespace, f"{plan.balancer}/32", device="ctl", via=ours)
        if self._backend == "tc":
            self._connect(namespaces, plan)

    async def close(self) -> None:
        self._namespaces.close()

    def _connect(self, namespaces: Namespaces, plan: AddressPlan) -> None:
        count = len(self._names)
        for i in range(count):
            namespace = namespace_of(plan.pid, i)
            ours, theirs = plan.access(i)
            namespaces.veth((namespace, "acc"), (HOST, f"{plan.stem}a{i}"))
            namespaces.address(HOST, f"{plan.stem}a{i}", ours, 31)
            namespaces.address(namespace, "acc", theirs, 31)
        if self._scenario.network.topology == "uplink":
            switch = namespaces.add("switch")
            for i in range(count):
                namespace = namespace_of(plan.pid, i)
                namespaces.veth((namespace, "net"), (switch, f"port{i}"))
                namespaces.address(namespace, "net", plan.uplink(i), BETWEEN_SERVERS.prefixlen)
            namespaces.bridge(switch, "switch", [f"port{i}" for i in range(count)])
            return
        for i, j in combinations(range(count), 2):
            for here, there in ((i, j), (j, i)):
                if here == i:
                    namespaces.veth(
                        (namespace_of(plan.pid, i), f"to{j}"), (namespace_of(plan.pid, j), f"to{i}")
                    )
                namespaces.address(
                    namespace_of(plan.pid, here), f"to{there}", plan.pair(here, there), 31
                )


def namespace_of(pid: int, server: int) -> str:
    """The namespace of the server with this number."""
    return f"{PREFIX}-{pid}-{server}"


class AddressPlan:
    """The address of every device, computed.

    The lower half of the block is for control, the upper half for access; each server has two
    addresses of either.
    """

    def __init__(self, block: IPv4Network, pid: int, servers: int) -> None:
        self.pid = pid
        self.stem = f"{PREFIX}{pid}"  # of devices in the host: 15 characters at most
        self._first = block.network_address
        self._inside = BETWEEN_SERVERS.network_address
        self._servers = servers
        self.balancer = self.control(0)[0]

    def control(self, i: int) -> tuple[str, str]:
        """Addresses of the host's end and the server's end."""
        return str(self._first + 2 * i), str(self._first + 2 * i + 1)

    def access(self, i: int) -> tuple[str, str]:
        """Addresses of the host's end and the server's end, with tc."""
        return str(self._first + 128 + 2 * i), str(self._first + 129 + 2 * i)

    @property
    def client(self) -> str:
        """Address of the host, with tun."""
        return str(self._first + 129)

    def tun(self, i: int) -> str:
        """Address of the server, with tun."""
        return str(self._first + 130 + i)

    def uplink(self, i: int) -> str:
        """Address of the server on the switch."""
        return str(self._inside + 1 + i)

    def pair(self, here: int, there: int) -> str:
        """Address of server `here` on its pair with `there`."""
        low, high = min(here, there), max(here, there)
        return str(self._inside + 2 * (low * self._servers + high) + (here == high))


def assign_addresses(
    scenario: Scenario,
    free_port: Callable[[], int],
    backend: Backend,
    block: IPv4Network,
    pid: int,
) -> Addresses:
    """Assign the addresses of a run over devices; see `addresses.assign_addresses` for relays."""
    names = scenario.server_names
    plan = AddressPlan(block, pid, len(names))
    ports = {name: free_port() for name in names}
    network = _tc_network(scenario, plan) if backend == "tc" else _tun_network(scenario, plan)
    return Addresses(
        balancer=Listen(host=plan.balancer, port=free_port()),
        # All addresses of its namespace, which is private.
        nodes={name: Listen(host="0.0.0.0", port=port) for name, port in ports.items()},
        peers={
            a: {b: url_of(host, ports[b]) for b, host in peers.items()}
            for a, peers in network.peers.items()
        },
        ingress={name: url_of(host, ports[name]) for name, host in network.ingress.items()},
        relay=DevicesConfig(
            backend=backend,
            devices=tuple(network.devices),
            routes=tuple(network.routes),
            links=relay_links(scenario),
            events=relay_events(scenario),
            control=Address("127.0.0.1", free_port()),
            seed=scenario.seed % 2**32,
        ),
    )


class _Network(NamedTuple):
    """The devices of a run, and under which address each server is reached."""

    devices: list[Device]
    routes: list[DeviceRoute]
    ingress: dict[str, str]
    peers: dict[str, dict[str, str]]


def _tc_network(scenario: Scenario, plan: AddressPlan) -> _Network:
    names = scenario.server_names
    network = _Network([], [], {}, {name: {} for name in names})
    devices: dict[str, Device] = {}  # by link: an uplink's one device leads to all peers
    for i, a in enumerate(names):
        namespace = namespace_of(plan.pid, i)
        access, back = scenario.access_of(a)[0], return_of(a)
        ours, network.ingress[a] = plan.access(i)
        host_end = f"{plan.stem}a{i}"
        devices[access] = Device(
            namespace=HOST, device=host_end, link=access, peer=network.ingress[a]
        )
        devices[back] = Device(namespace=namespace, device="acc", link=back, peer=ours)
        for j, b in _others(names, i):
            pair = scenario.network.topology == "pair"
            peer = network.peers[a][b] = plan.pair(j, i) if pair else plan.uplink(j)
            link, device = scenario.link_between(a, b)[0], f"to{j}" if pair else "net"
            devices.setdefault(
                link, Device(namespace=namespace, device=device, link=link, peer=peer)
            )
    network.devices.extend(devices.values())
    return network


def _tun_network(scenario: Scenario, plan: AddressPlan) -> _Network:
    names = scenario.server_names
    host = Device(namespace=HOST, device=f"{plan.stem}t", address=plan.client, prefix=25)
    network = _Network([host], [], {}, {name: {} for name in names})
    for i, a in enumerate(names):
        address = network.ingress[a] = plan.tun(i)
        network.devices.append(
            Device(namespace=namespace_of(plan.pid, i), device="net", address=address, prefix=25)
        )
        network.routes.append(DeviceRoute(plan.client, address, scenario.access_of(a)[0]))
        network.routes.append(DeviceRoute(address, plan.client, return_of(a)))
        for j, b in _others(names, i):
            network.peers[a][b] = plan.tun(j)
            link = scenario.link_between(a, b)[0]
            network.routes.append(DeviceRoute(address, plan.tun(j), link))
    return network


def _others(names: Sequence[str], i: int) -> list[tuple[int, str]]:
    """Number and name of every server but `i`."""
    return [(j, name) for j, name in enumerate(names) if j != i]


def _nsenter() -> str:
    command = shutil.which("nsenter")
    if command is None:
        raise BadInput("nsenter is missing: apt-get install util-linux")
    return command
