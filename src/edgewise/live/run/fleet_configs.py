"""The configuration files of a fleet, from its scenario and its addresses.

The launcher writes them for processes on one machine, ``edgewise configs`` also for containers,
where every process has a network of its own. A process in a container *keeps its port*: it listens
on all its addresses at the port that it would have on the loopback, and that port is published
under the same number. So inside and outside differ in host names only: `hosts` names each process
inside, and from outside everything is on 127.0.0.1.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from edgewise.documents import dump_yaml
from edgewise.errors import BadInput
from edgewise.live.process_config import BalancerConfig, ClientConfig, Listen, NodeConfig
from edgewise.live.run.addresses import Addresses
from edgewise.network.kernel.devices import DevicesConfig
from edgewise.network.relay.config import Address, RelayConfig
from edgewise.scenario import Scenario
from edgewise.security import identity as identities
from edgewise.security.identity import Identity, Role

Config = BalancerConfig | NodeConfig | ClientConfig | RelayConfig | DevicesConfig
Hosts = Callable[[str], str]
"""Host name of a process: ``balancer``, ``relay``, or a server's name."""

BALANCER, RELAY = "balancer", "relay"
EVALUATOR = Identity(Role.EVALUATOR, "evaluator")
"""``edgewise client``: it knows the right classes."""
OPERATOR = Identity(Role.OPERATOR, "operator")
OTHERS = (
    EVALUATOR,
    OPERATOR,
    Identity(Role.CLIENT, "client"),
    Identity(Role.MONITOR, "monitor"),
)
"""Whom else a fleet knows beside its own processes, each with one identity to begin with."""
ANYWHERE = "0.0.0.0"
"""All addresses of a container: its network is private, and ports are published on loopback."""


def fleet_configs(
    scenario: Scenario,
    addresses: Addresses,
    *,
    file: str,
    out: str | None = None,
    hosts: Hosts | None = None,
    identity: str | None = None,
    trust_anyone: bool = False,
) -> dict[str, Config]:
    """Configurations by file name without ``.yaml``: balancer, node-NAME, relay, client.

    Parameters
    ----------
    file:
        The scenario's file, as the configurations name it.
    out:
        Folder in which balancer and client record; None: they record nothing.
    hosts:
        None: everything is on this machine. Otherwise there is also ``client-inside``, for a client
        in the same network as the others; ``client`` is for one outside.
    identity:
        Folder in which each process finds its identity, as its configuration names it; ``{}``
        stands for `Identity.folder`. None: there are no identities.
    trust_anyone:
        Say so to processes that listen where others can connect.
    """
    clash = {BALANCER, RELAY} & set(scenario.server_names)
    if hosts is not None and clash:
        raise BadInput(f"servers.{min(clash)}: in containers another process has that name")
    owners = _owners(addresses)

    scheme = "http" if identity is None else "https"

    def outside(url: str) -> str:
        return f"{scheme}:{url.partition(':')[2]}"

    def reach(url: str) -> str:
        if hosts is None:
            return outside(url)
        port = int(url.rpartition(":")[2])
        return f"{scheme}://{hosts(owners[port])}:{port}"

    def own(who: Identity) -> str | None:
        return None if identity is None else identity.replace("{}", who.folder)

    def bind(listen: Listen) -> Listen:
        return listen if hosts is None else Listen(host=ANYWHERE, port=listen.port)

    balancer = reach(addresses.balancer_url())
    relays: tuple[str, ...] = ()
    if addresses.relay is not None and scenario.network_state == "emulator":
        control = addresses.relay.control
        relays = (reach(f"http://{control.host}:{control.port}"),)
    configs: dict[str, Config] = {
        "balancer": BalancerConfig(
            scenario=file,
            identity=own(identities.BALANCER),
            listen=bind(addresses.balancer),
            trust_anyone_who_connects=trust_anyone,
            out=out,
            relays=relays,
        ),
        "client": ClientConfig(
            scenario=file,
            identity=own(EVALUATOR),
            balancer=outside(addresses.balancer_url()),
            ingress={name: outside(url) for name, url in addresses.ingress.items()},
            out=out,
        ),
    }
    for name, listen in addresses.nodes.items():
        configs[file_name(name)] = NodeConfig(
            scenario=file,
            identity=own(identities.node(name)),
            server=name,
            listen=bind(listen),
            trust_anyone_who_connects=trust_anyone,
            balancer=balancer,
            peers={peer: reach(url) for peer, url in addresses.peers[name].items()},
        )
    if hosts is not None:
        configs["client-inside"] = ClientConfig(
            scenario=file,
            identity=own(EVALUATOR),
            balancer=balancer,
            ingress={name: reach(url) for name, url in addresses.ingress.items()},
            out=out,
        )
    if addresses.relay is not None:
        relay = addresses.relay
        if hosts is not None and isinstance(relay, RelayConfig):
            relay = _relay(relay, addresses, hosts)
        configs["relay"] = msgspec.structs.replace(
            relay, identity=own(identities.RELAY), trust_anyone_who_connects=trust_anyone
        )
    return configs


def fleet_hosts(
    servers: Iterable[str], hosts: Hosts | None = None
) -> dict[Identity, tuple[str, ...]]:
    """The identities of a fleet and the host names of each: what `authority.issue_all` takes."""

    def of(process: str) -> tuple[str, ...]:
        return () if hosts is None else (hosts(process),)

    # A client may reach a server by the relay's host.
    found = {identities.node(name): (*of(name), *of(RELAY)) for name in servers}
    found[identities.BALANCER], found[identities.RELAY] = of(BALANCER), of(RELAY)
    return found | dict.fromkeys(OTHERS, ())


def file_name(process: str) -> str:
    """Name of a process's configuration file, without ``.yaml``."""
    return process if process in (BALANCER, RELAY) else f"node-{process}"


def ports(addresses: Addresses) -> dict[str, tuple[int, ...]]:
    """The ports on which each process listens."""
    by_owner: dict[str, tuple[int, ...]] = {}
    for port, owner in _owners(addresses).items():
        by_owner[owner] = (*by_owner.get(owner, ()), port)
    return by_owner


def write_configs(folder: Path, configs: dict[str, Config]) -> None:
    """Write each as ``NAME.yaml``, readable by all, since a container has another user.

    Raises BadInput if a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, config in configs.items():
            file = folder / f"{name}.yaml"
            file.write_text(dump_yaml(config), encoding="utf-8")
            os.chmod(file, 0o644)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written: {error.strerror}") from None


def _owners(addresses: Addresses) -> dict[int, str]:
    owners = {addresses.balancer.port: BALANCER}
    owners |= {listen.port: name for name, listen in addresses.nodes.items()}
    if addresses.relay is not None:
        owners[addresses.relay.control.port] = RELAY
        if isinstance(addresses.relay, RelayConfig):
            owners |= {route.listen.port: RELAY for route in addresses.relay.routes}
    return owners


def _relay(config: RelayConfig, addresses: Addresses, hosts: Hosts) -> RelayConfig:
    owners = _owners(addresses)
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
