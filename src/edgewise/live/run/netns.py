"""A run whose servers are each in a network namespace, over devices that the kernel or we shape.

Theory of operation
-------------------
As with relays, a backend hands out other addresses, and the same processes run. Balancer, client
and launcher stay where they are; each node runs in a namespace of its own, where it is reached

- by the balancer over ``ctl``, a veth pair that nothing shapes: the control channel is another
  network's, as it is with relays;
- by clients and peers over what is shaped.

With ``tc`` a link is what leaves one device: ``access:a`` the host's end of a's ``acc`` pair,
``return:a`` the other end; with the topology *uplink*, ``uplink:a`` is a's ``net`` into a switch (a
bridge in a namespace of its own), and with *pair* ``a>b`` is a's end of a pair with b. With ``tun``
each namespace has one TUN device, and the process between them tells the links apart by address.

What may never happen: something is left. Everything is in namespaces that `close` removes; what a
killed launcher left is removed by the next one (`namespaces.sweep`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Network
from itertools import combinations
from pathlib import Path
from typing import Literal

from edgewise.errors import BadInput
from edgewise.live.process_config import Listen
from edgewise.live.run.addresses import Addresses, relay_links, return_of, url_of
from edgewise.live.run.fleet_configs import Hosts
from edgewise.live.run.platforms import display_name
from edgewise.live.run.processes import ChildProcess
from edgewise.network import capabilities
from edgewise.network.kernel.devices import Device, DeviceRoute, DevicesConfig
from edgewise.network.kernel.namespaces import HOST, PREFIX, Spaces, sweep
from edgewise.network.relay.config import Address
from edgewise.scenario import Scenario

Backend = Literal["tc", "tun"]
MOST = 62
"""Servers: a /24 has two addresses for each one's control, and as many for its access."""
INSIDE = IPv4Network("198.19.0.0/16")
"""Between servers. It is in namespaces only, so that runs do not meet."""


def check(backend: Backend) -> None:
    """See that this machine can do it. Raises BadInput naming what is missing."""
    spaces = capabilities.namespaces()
    needed = capabilities.qdisc("tbf", spaces) if backend == "tc" else capabilities.tun(spaces)
    for each in (spaces, needed):
        if not each.ok:
            raise BadInput(
                f"network.backend: {backend!r} needs {each.name} ({each.found}); {each.needs}; "
                "`edgewise doctor` says what else this machine can do"
            )


def choose_backend(wish: Literal["relay", "tc", "tun", "auto"]) -> Backend | None:
    """The backend of namespaces that is wished for; None: relays.

    *auto* is tc only where the kernel plays all of a link, rate and delay.
    """
    if wish == "relay":
        return None
    if wish != "auto":
        return wish
    spaces = capabilities.namespaces()
    able = all(capabilities.qdisc(kind, spaces).ok for kind in ("tbf", "netem"))
    return "tc" if able else None


def ignored_settings(scenario: Scenario, backend: Backend) -> tuple[str, ...]:
    """What of a scenario's network a backend does not play here, one sentence each."""
    if backend == "tun":
        return ()
    netem = capabilities.qdisc("netem", capabilities.namespaces())
    if netem.ok:
        return ()
    links = scenario.all_links().values()
    fields = [f for f in ("delay", "jitter", "loss") if any(getattr(each, f) for each in links)]
    if not fields:
        return ()
    return (f"the network has no {', '.join(fields)}: {netem.found}; {netem.needs}",)


class InNamespace(ChildProcess):
    """A child in a network namespace; everything else of the machine it shares."""

    def __init__(self, name: str, arguments: Iterable[str], log: Path, space: str) -> None:
        super().__init__(name, arguments, log)
        self._space = space

    def command(self) -> list[str]:
        # nsenter replaces itself by what it starts, so signals and the bond to us go on.
        return [_nsenter(), f"--net=/run/netns/{self._space}", *super().command()]


class NamespacePlatform:
    """How the parts of one run are hosted, as `launch.Deployment` asks for it.

    Raises BadInput if this machine cannot do it.
    """

    hosts: Hosts | None = None

    def __init__(self, scenario: Scenario, backend: Backend) -> None:
        names = scenario.server_names
        if len(names) > MOST:
            raise BadInput(f"servers: the {backend} backend takes up to {MOST}, got {len(names)}")
        check(backend)
        sweep()
        self._backend: Backend = backend
        self._scenario = scenario
        self._names = names
        self._spaces = Spaces()
        self._block = self._spaces.free_block()

    def assign_addresses(self, scenario: Scenario, free_port: Callable[[], int]) -> Addresses:
        return assign_addresses(scenario, free_port, self._backend, self._block, os.getpid())

    def process(
        self, role: str, server: str, arguments: Sequence[str], log: Path, ports: Sequence[int]
    ) -> ChildProcess:
        if role != "node":
            return ChildProcess(display_name(role, server), arguments, log)
        space = space_of(os.getpid(), self._names.index(server))
        return InNamespace(display_name(role, server), arguments, log, space)

    async def open(self) -> None:
        """Make the devices. Raises BadInput."""
        spaces = self._spaces
        plan = Plan(self._block, os.getpid(), len(self._names))
        for i in range(len(self._names)):
            space = spaces.add(str(i))
            ours, theirs = plan.control(i)
            spaces.veth((space, "ctl"), (HOST, f"{plan.stem}c{i}"))
            spaces.address(HOST, f"{plan.stem}c{i}", ours, 31)
            spaces.address(space, "ctl", theirs, 31)
            if i:
                # The balancer has one address: the host's towards the first server.
                spaces.route(space, f"{plan.balancer}/32", device="ctl", via=ours)
        if self._backend == "tc":
            self._wire(spaces, plan)

    async def close(self) -> None:
        self._spaces.close()

    def _wire(self, spaces: Spaces, plan: Plan) -> None:
        count = len(self._names)
        for i in range(count):
            space = space_of(plan.pid, i)
            ours, theirs = plan.access(i)
            spaces.veth((space, "acc"), (HOST, f"{plan.stem}a{i}"))
            spaces.address(HOST, f"{plan.stem}a{i}", ours, 31)
            spaces.address(space, "acc", theirs, 31)
        if self._scenario.network.topology == "uplink":
            switch = spaces.add("switch")
            for i in range(count):
                space = space_of(plan.pid, i)
                spaces.veth((space, "net"), (switch, f"port{i}"))
                spaces.address(space, "net", plan.uplink(i), INSIDE.prefixlen)
            spaces.bridge(switch, "switch", [f"port{i}" for i in range(count)])
            return
        for i, j in combinations(range(count), 2):
            for here, there in ((i, j), (j, i)):
                if here == i:
                    spaces.veth(
                        (space_of(plan.pid, i), f"to{j}"), (space_of(plan.pid, j), f"to{i}")
                    )
                spaces.address(space_of(plan.pid, here), f"to{there}", plan.pair(here, there), 31)


def space_of(pid: int, server: int) -> str:
    """The namespace of a server, by its place among them."""
    return f"{PREFIX}-{pid}-{server}"


class Plan:
    """Who has which address: figures only.

    The lower half of the block is for control, the upper for access, two addresses per server.
    """

    def __init__(self, block: IPv4Network, pid: int, servers: int) -> None:
        self.pid = pid
        self.stem = f"{PREFIX}{pid}"  # of devices in the host: 15 characters at most
        self._first = block.network_address
        self._inside = INSIDE.network_address
        self._servers = servers
        self.balancer = self.control(0)[0]

    def control(self, i: int) -> tuple[str, str]:
        """The host's and the server's end."""
        return str(self._first + 2 * i), str(self._first + 2 * i + 1)

    def access(self, i: int) -> tuple[str, str]:
        """The host's and the server's end, with tc."""
        return str(self._first + 128 + 2 * i), str(self._first + 129 + 2 * i)

    @property
    def client(self) -> str:
        """The host's, with tun."""
        return str(self._first + 129)

    def tun(self, i: int) -> str:
        """The server's, with tun."""
        return str(self._first + 130 + i)

    def uplink(self, i: int) -> str:
        """The server's on the switch."""
        return str(self._inside + 1 + i)

    def pair(self, here: int, there: int) -> str:
        """The address of `here` on its pair with `there`."""
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
    plan = Plan(block, pid, len(names))
    ports = [free_port() for _ in names]
    pair = scenario.network.topology == "pair"
    devices: list[Device] = []
    ways: list[DeviceRoute] = []
    ingress: dict[str, str] = {}
    peers: dict[str, dict[str, str]] = {name: {} for name in names}
    if backend == "tun":
        devices.append(Device(space=HOST, device=f"{plan.stem}t", address=plan.client, prefix=25))
    for i, a in enumerate(names):
        space = space_of(pid, i)
        up, down = scenario.access_of(a)[0], return_of(a)
        if backend == "tun":
            ingress[a] = url_of(plan.tun(i), ports[i])
            devices.append(Device(space=space, device="net", address=plan.tun(i), prefix=25))
            ways += [
                DeviceRoute(plan.client, plan.tun(i), up),
                DeviceRoute(plan.tun(i), plan.client, down),
            ]
        else:
            ours, theirs = plan.access(i)
            ingress[a] = url_of(theirs, ports[i])
            devices.append(Device(space=HOST, device=f"{plan.stem}a{i}", link=up, peer=theirs))
            devices.append(Device(space=space, device="acc", link=down, peer=ours))
        for j, b in enumerate(names):
            if i == j:
                continue
            link = scenario.link_between(a, b)[0]
            if backend == "tun":
                ways.append(DeviceRoute(plan.tun(i), plan.tun(j), link))
                peers[a][b] = url_of(plan.tun(j), ports[j])
                continue
            there = plan.pair(j, i) if pair else plan.uplink(j)
            peers[a][b] = url_of(there, ports[j])
            known = any(device.link == link for device in devices)
            if not known:
                name = f"to{j}" if pair else "net"
                devices.append(Device(space=space, device=name, link=link, peer=there))
    return Addresses(
        balancer=Listen(host=plan.balancer, port=free_port()),
        # All addresses of its namespace, which is private.
        nodes={a: Listen(host="0.0.0.0", port=port) for a, port in zip(names, ports, strict=True)},
        peers=peers,
        ingress=ingress,
        relay=DevicesConfig(
            backend=backend,
            devices=tuple(devices),
            ways=tuple(ways),
            links=relay_links(scenario),
            control=Address("127.0.0.1", free_port()),
            seed=scenario.seed % 2**32,
        ),
    )


def _nsenter() -> str:
    found = shutil.which("nsenter")
    if found is None:
        raise BadInput("nsenter is not here: apt-get install util-linux")
    return found
