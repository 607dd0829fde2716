"""Addresses of all processes: the one place that knows whether the network is emulated.

From a scenario and free ports follow where every process listens, under which addresses each knows
the others, and what the relay does. With the emulator those addresses are the relay's; without it,
they are the real ones, and there is no relay. Nothing else differs.

Routes through the relay::

    client → ingress a      forward access:a (the upload),   backward return:a (its delay only)
    node a → node b         forward link_between(a, b),      backward link_between(b, a)

The answer to a client is a few hundred bytes, so its way back is only a delay. A peer's answer
takes that peer's own link and shares it with the photos that leave there. The control channel
between node and balancer is not relayed: it belongs to another network.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import UNSET, Struct

from edgewise.live.process_config import Listen
from edgewise.network.kernel.devices import DevicesConfig
from edgewise.network.relay.config import Address, RelayConfig, Route
from edgewise.network.settings import LinkChange, LinkEvent, LinkSettings
from edgewise.scenario import Scenario, link_events

HOST = "127.0.0.1"
"""All processes of a launcher are on one machine, and cannot be reached from outside."""


class Addresses(Struct, frozen=True, kw_only=True):
    """Where every process listens, and how it reaches the others."""

    balancer: Listen
    nodes: dict[str, Listen]
    """Where each server listens."""
    peers: dict[str, dict[str, str]]
    """By server: the URL of each of its peers."""
    ingress: dict[str, str]
    """The client's URL of each server."""
    relay: RelayConfig | DevicesConfig | None
    """The emulator's configuration, by relays or over devices; None: no emulator."""

    def balancer_url(self) -> str:
        return url_of(self.balancer.host, self.balancer.port)


def assign_addresses(scenario: Scenario, free_port: Callable[[], int]) -> Addresses:
    """Assign the addresses of a run; `free_port` returns another port each time."""
    names, emulate = scenario.server_names, scenario.network.emulate
    balancer = Listen(host=HOST, port=free_port())
    nodes = {name: Listen(host=HOST, port=free_port()) for name in names}
    routes: list[Route] = []

    def reach(to: str, forward: str, backward: str) -> str:
        """The address of server `to`: its own, or that of a new route over two links."""
        real = nodes[to]
        if not emulate:
            return url_of(real.host, real.port)
        listen = Address(HOST, free_port())
        routes.append(
            Route(
                listen=listen,
                to=Address(real.host, real.port),
                forward=(forward,),
                backward=(backward,),
            )
        )
        return url_of(listen.host, listen.port)

    ingress = {name: reach(name, scenario.access_of(name)[0], return_of(name)) for name in names}
    peers = {
        a: {
            b: reach(b, scenario.link_between(a, b)[0], scenario.link_between(b, a)[0])
            for b in names
            if b != a
        }
        for a in names
    }
    relay = None
    if emulate:
        relay = RelayConfig(
            routes=tuple(routes),
            links=relay_links(scenario),
            events=relay_events(scenario),
            control=Address(HOST, free_port()),
            seed=scenario.seed % 2**32,
        )
    return Addresses(balancer=balancer, nodes=nodes, peers=peers, ingress=ingress, relay=relay)


def relay_links(scenario: Scenario) -> dict[str, LinkSettings]:
    """Every link of a scenario by its full name, and each server's way back to the clients."""
    links = scenario.all_links()
    for server in scenario.server_names:
        delay = scenario.access_of(server)[1].delay
        links[return_of(server)] = LinkSettings(delay=delay)
    return links


def relay_events(scenario: Scenario) -> tuple[LinkEvent, ...]:
    """The planned changes of those links. A way back has the delay of its way there."""
    returns = {scenario.access_of(name)[0]: return_of(name) for name in scenario.server_names}
    events = []
    for name, event in link_events(scenario):
        events.append(msgspec.structs.replace(event, link=name))
        if name in returns and event.set.delay is not UNSET:
            change = LinkChange(delay=event.set.delay)
            events.append(LinkEvent(at=event.at, link=returns[name], set=change))
    return tuple(events)


def return_of(server: str) -> str:
    """Name of the link from a server back to the clients."""
    return f"return:{server}"


def url_of(host: str, port: int) -> str:
    """The URL of a process that listens there."""
    return f"http://{host}:{port}"
