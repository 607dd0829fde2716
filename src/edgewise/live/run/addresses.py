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
from pathlib import Path

import msgspec
from msgspec import UNSET, Struct

from edgewise.live.process_config import Listen
from edgewise.network.kernel.devices import DevicesConfig
from edgewise.network.relay.config import (
    Address,
    Event,
    LinkConfig,
    LinkPatch,
    OutageConfig,
    RelayConfig,
    Route,
)
from edgewise.network.trace import TraceSpec, read_trace
from edgewise.scenario import (
    FileTrace,
    LinkEvent,
    LinkSet,
    LinkSpec,
    LinkTrace,
    Scenario,
    link_events,
)

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
    names = scenario.server_names
    balancer = Listen(host=HOST, port=free_port())
    nodes = {name: Listen(host=HOST, port=free_port()) for name in names}
    if not scenario.network.emulate:
        real = {name: url_of(listen.host, listen.port) for name, listen in nodes.items()}
        return Addresses(
            balancer=balancer,
            nodes=nodes,
            peers={a: {b: real[b] for b in names if b != a} for a in names},
            ingress=real,
            relay=None,
        )
    routes: list[Route] = []

    def through(to: str, forward: str, backward: str) -> str:
        """Add a route to server `to`; returns the address at which it begins."""
        port = free_port()
        routes.append(
            Route(
                listen=Address(HOST, port),
                to=Address(nodes[to].host, nodes[to].port),
                forward=(forward,),
                backward=(backward,),
            )
        )
        return url_of(HOST, port)

    ingress = {name: through(name, scenario.access_of(name)[0], return_of(name)) for name in names}
    peers = {
        a: {
            b: through(b, scenario.link_between(a, b)[0], scenario.link_between(b, a)[0])
            for b in names
            if b != a
        }
        for a in names
    }
    return Addresses(
        balancer=balancer,
        nodes=nodes,
        peers=peers,
        ingress=ingress,
        relay=RelayConfig(
            routes=tuple(routes),
            links=relay_links(scenario),
            control=Address(HOST, free_port()),
            seed=scenario.seed % 2**32,
        ),
    )


def relay_links(scenario: Scenario) -> dict[str, LinkConfig]:
    """Every link of a scenario by its full name, and the ways back, as the relay takes them."""
    events: dict[str, list[LinkEvent]] = {}
    for name, event in link_events(scenario):
        events.setdefault(name, []).append(event)
    links = {name: _link(spec, events.get(name, ())) for name, spec in scenario.all_links().items()}
    for server in scenario.server_names:
        name, spec = scenario.access_of(server)
        delays = [
            Event(at=event.at, set=LinkPatch(delay=event.set.delay))
            for event in events.get(name, ())
            if event.set.delay is not UNSET
        ]
        links[return_of(server)] = LinkConfig(delay=spec.delay, events=tuple(delays))
    return links


def return_of(server: str) -> str:
    """Name of the link from a server back to the clients."""
    return f"return:{server}"


def url_of(host: str, port: int) -> str:
    """Address of a process that listens there."""
    return f"http://{host}:{port}"


def _link(spec: LinkSpec, events: list[LinkEvent] | tuple[()]) -> LinkConfig:
    return LinkConfig(
        rate_bps=_bps(spec.rate_mbps),
        trace=None if spec.trace is None else _trace(spec.trace),
        delay=spec.delay,
        jitter=spec.jitter,
        loss=spec.loss,
        loss_mode=spec.loss_mode,
        queue_bytes=spec.queue_bytes,
        outages=tuple(OutageConfig(at=each.at, duration=each.duration) for each in spec.outages),
        events=tuple(Event(at=each.at, set=_patch(each.set)) for each in events),
    )


def _patch(change: LinkSet) -> LinkPatch:
    """The same change in the relay's units; what is left out stays left out."""
    given = {
        name: value
        for name in ("delay", "jitter", "loss")
        if (value := getattr(change, name)) is not UNSET
    }
    if change.rate_mbps is not UNSET:
        given["rate_bps"] = _bps(change.rate_mbps)
    return msgspec.convert(given, LinkPatch)


def _trace(trace: LinkTrace) -> TraceSpec:
    if isinstance(trace, FileTrace):
        # The relay scales to a mean, the scenario by a factor.
        mean = None
        if trace.scale != 1.0:
            mean = read_trace(Path(trace.path)).mean_bps * trace.scale
        return TraceSpec(file=trace.path, mean_bps=mean)
    kind = trace.__struct_config__.tag
    assert kind in ("cellular", "wifi", "backhaul")
    return TraceSpec(kind=kind, seed=trace.seed, mean_bps=1e6 * trace.mean_mbps)  # type: ignore[arg-type]


def _bps(mbps: float | None) -> float | None:
    return None if mbps is None else 1e6 * mbps
