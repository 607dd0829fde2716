"""The configuration files of a fleet, from its scenario and its addresses (`addresses.lay_out`).

The launcher writes them for processes on one machine; `edgewise configs` for containers, where
every process has a network of its own. There each *keeps its port*: it listens on all addresses of
its container at the port that it would have had on the loopback, and a port published under the
same number leads to it from outside. So the two views differ in host names only: `hosts` says what
each process is called inside, and from outside everything is on 127.0.0.1.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from edgewise.documents import dump_yaml
from edgewise.errors import BadInput
from edgewise.live.process_config import BalancerConfig, ClientConfig, Listen, NodeConfig
from edgewise.live.run.addresses import Addresses
from edgewise.network.kernel.devices import DevicesConfig
from edgewise.network.relay.config import Address, RelayConfig
from edgewise.scenario import Scenario

Config = BalancerConfig | NodeConfig | ClientConfig | RelayConfig | DevicesConfig
Hosts = Callable[[str], str]
"""From a process (``balancer``, ``relay``, else a server's name) to its host name."""

BALANCER, RELAY = "balancer", "relay"
ANYWHERE = "0.0.0.0"
"""All addresses of a container: its network is private, and what is published is on loopback."""


def fleet_configs(
    scenario: Scenario,
    where: Addresses,
    *,
    file: str,
    out: str | None = None,
    hosts: Hosts | None = None,
) -> dict[str, Config]:
    """By file name without ``.yaml``: balancer, node-NAME, relay if there is one, client.

    Parameters
    ----------
    file:
        The scenario's, as the configurations name it.
    out:
        Folder of balancer and client for what they record; None: nothing is kept.
    hosts:
        None: all is on this machine. Else there is also ``client-inside``, for a client that is in
        the same network as the others; ``client`` is for one outside.
    """
    clash = {BALANCER, RELAY} & set(scenario.server_names)
    if hosts is not None and clash:
        raise BadInput(f"servers.{min(clash)}: in containers that name is taken by another process")
    owners = _owners(where)

    def reach(url: str) -> str:
        if hosts is None:
            return url
        port = int(url.rpartition(":")[2])
        return f"http://{hosts(owners[port])}:{port}"

    def bind(listen: Listen) -> Listen:
        return listen if hosts is None else Listen(host=ANYWHERE, port=listen.port)

    balancer = reach(where.balancer_url())
    relays: tuple[str, ...] = ()
    if where.relay is not None and scenario.network_state == "emulator":
        control = where.relay.control
        relays = (reach(f"http://{control.host}:{control.port}"),)
    made: dict[str, Config] = {
        "balancer": BalancerConfig(
            scenario=file, listen=bind(where.balancer), out=out, relays=relays
        ),
        "client": ClientConfig(
            scenario=file, balancer=where.balancer_url(), ingress=where.ingress, out=out
        ),
    }
    for name, listen in where.nodes.items():
        made[f"node-{name}"] = NodeConfig(
            scenario=file,
            server=name,
            listen=bind(listen),
            balancer=balancer,
            peers={peer: reach(url) for peer, url in where.peers[name].items()},
        )
    if hosts is not None:
        made["client-inside"] = ClientConfig(
            scenario=file,
            balancer=balancer,
            ingress={name: reach(url) for name, url in where.ingress.items()},
            out=out,
        )
    if where.relay is not None:
        made["relay"] = where.relay
        if hosts is not None and isinstance(where.relay, RelayConfig):
            made["relay"] = _relay(where.relay, where, hosts)
    return made


def ports(where: Addresses) -> dict[str, tuple[int, ...]]:
    """The ports that each process listens on."""
    found: dict[str, list[int]] = {}
    for port, owner in _owners(where).items():
        found.setdefault(owner, []).append(port)
    return {owner: tuple(each) for owner, each in found.items()}


def write_configs(folder: Path, made: dict[str, Config]) -> None:
    """Write each as ``NAME.yaml``, readable by all: a container's user is another one.

    Raises BadInput if that cannot be done.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, config in made.items():
            file = folder / f"{name}.yaml"
            file.write_text(dump_yaml(config), encoding="utf-8")
            os.chmod(file, 0o644)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror}") from None


def _owners(where: Addresses) -> dict[int, str]:
    owners = {where.balancer.port: BALANCER}
    owners |= {listen.port: name for name, listen in where.nodes.items()}
    if where.relay is not None:
        owners[where.relay.control.port] = RELAY
        if isinstance(where.relay, RelayConfig):
            owners |= {route.listen.port: RELAY for route in where.relay.routes}
    return owners


def _relay(config: RelayConfig, where: Addresses, hosts: Hosts) -> RelayConfig:
    owners = _owners(where)
    routes = tuple(
        msgspec.structs.replace(
            route,
            listen=Address(ANYWHERE, route.listen.port),
            to=Address(hosts(owners[route.to.port]), route.to.port),
        )
        for route in config.routes
    )
    control = Address(ANYWHERE, config.control.port)
    return msgspec.structs.replace(config, routes=routes, control=control)
