"""The relay's configuration: links by name, and routes over them. YAML or JSON, or these structs.

::

    control: {host: 127.0.0.1, port: 0}
    links:
      a-up: {rate_mbps: 20, delay: 0.01, outages: [{at: 5, duration: 2}]}
      b-down: {trace: {kind: cellular, seed: 1, mean_mbps: 30}, delay: 0.02}
    events:
      - {at: 30, link: a-up, set: {rate_mbps: 5}}
    routes:
      - listen: {host: 127.0.0.1, port: 0}
        to: {host: 127.0.0.1, port: 8000}
        forward: [a-up, b-down]
        backward: []

A link has the settings that it has in a scenario. A port of 0 lets the kernel choose. Times in
events, outages and traces count from the relay's time 0: ``POST /start``, or the start of the
process if that never comes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from edgewise.documents import convert_document, parse_yaml, read_text
from edgewise.errors import ScenarioError
from edgewise.network.settings import LinkEvent, LinkSettings


class Address(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where to listen or to connect."""

    host: str = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part of the configuration that all backends share.

    Attributes:
        links: by name.
        events: planned changes of links.
        control: address of the HTTP API.
        identity: folder with this process's certificate (`security.identity`), relative to this
            file, for the HTTP API. Routes pass on what they get, TLS or not.
        trust_anyone_who_connects: without an identity, listen even where other machines can
            connect.
        seed: of the impairments' random numbers; each link has its own stream.
        realtime: ask the kernel for SCHED_RR, which needs CAP_SYS_NICE. Off by default: a relay
            that saturates a core of a small machine would hold up the servers whose network it
            emulates.
        folder: where relative trace files are; `load_config` sets the configuration's own.
        traces: folder below which the control API may read trace files, relative to this file.
            None: it reads no file.
    """

    links: dict[str, LinkSettings] = {}
    events: tuple[LinkEvent, ...] = ()
    control: Address = Address()
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    realtime: bool = False
    folder: str = "."
    traces: str | None = None
    identity: str | None = None
    trust_anyone_who_connects: bool = False

    def listening(self) -> tuple[str, ...]:
        """The addresses that this process listens on."""
        return (self.control.host,)

    def check(self, file: str = "configuration") -> None:
        """Raise ScenarioError if a name leads nowhere."""
        named = ((f"events[{i}].link", event.link) for i, event in enumerate(self.events))
        for where, link in (*named, *self.links_used()):
            if link not in self.links:
                known = ", ".join(sorted(self.links)) or "none is defined"
                raise ScenarioError(
                    file, where, f"expected the name of a link ({known}), got {link!r}"
                )

    def links_used(self) -> Iterable[tuple[str, str]]:
        """Field and link of every reference to a link, events apart."""
        raise NotImplementedError


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A port that leads to another one.

    Attributes:
        listen: where clients connect.
        to: where the relay connects for each of them.
        forward: links that bytes from the client to the target cross, in order.
        backward: links on the way back.
    """

    to: Address
    listen: Address = Address()
    forward: tuple[str, ...] = ()
    backward: tuple[str, ...] = ()


class RelayConfig(NetworkConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a relay process does.

    Attributes:
        routes: at least one.
    """

    routes: Annotated[tuple[Route, ...], msgspec.Meta(min_length=1)]

    def listening(self) -> tuple[str, ...]:
        return (*super().listening(), *(route.listen.host for route in self.routes))

    def check(self, file: str = "relay configuration") -> None:
        """Raise ScenarioError if a name leads nowhere, or a route to port 0."""
        super().check(file)
        for i, route in enumerate(self.routes):
            if route.to.port == 0:
                raise ScenarioError(file, f"routes[{i}].to.port", "expected a port from 1 on")

    def links_used(self) -> Iterable[tuple[str, str]]:
        for i, route in enumerate(self.routes):
            for direction in ("forward", "backward"):
                for j, name in enumerate(getattr(route, direction)):
                    yield f"routes[{i}].{direction}[{j}]", name


Config = TypeVar("Config", bound=NetworkConfig)


def load_config(path: Path) -> RelayConfig:
    """Read a relay's configuration, YAML or JSON.

    Raises:
        ScenarioError: it cannot be read or is wrong; the message names the field.
    """
    return parse_config(path, parse_yaml(read_text(path), str(path)), RelayConfig)


def parse_config(path: Path, raw: object, kind: type[Config]) -> Config:
    """A configuration from a document's content. Raises ScenarioError naming the field."""
    config = convert_document(raw, kind, str(path))
    if config.folder == ".":
        config = msgspec.structs.replace(config, folder=str(path.parent))
    for field in ("identity", "traces"):
        if (given := getattr(config, field)) is not None:
            config = msgspec.structs.replace(config, **{field: str(path.parent / given)})
    config.check(str(path))
    return config
