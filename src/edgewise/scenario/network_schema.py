"""The network part of a scenario: links, their traces, outages and events."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from edgewise.domain import Name
from edgewise.scenario.ranges import Delay, Factor, Loss, Mbps, Seed, Span, Strict, Time


class FileTrace(Strict, frozen=True, kw_only=True, tag_field="kind", tag="file"):
    """Bandwidth from a file: Mahimahi's format, or lines ``seconds<TAB>Mbit/s``."""

    path: Annotated[str, Meta(min_length=1)]
    """Relative to the scenario file."""
    scale: Factor = 1.0
    """[times] Multiplies the bandwidth. Default: as recorded."""


class CellularTrace(Strict, frozen=True, kw_only=True, tag_field="kind", tag="cellular"):
    """Generated: deep, slow swings, as in a moving phone's uplink."""

    mean_mbps: Mbps
    """[Mbit/s] Mean bandwidth."""
    seed: Seed = 1
    """Of this trace alone. Default: any; the scenario's seed does not change the network."""


class WifiTrace(Strict, frozen=True, kw_only=True, tag_field="kind", tag="wifi"):
    """Generated: fast, shallow variation with short drops, as on a shared channel."""

    mean_mbps: Mbps
    """[Mbit/s] Mean bandwidth."""
    seed: Seed = 1
    """Of this trace alone. Default: any; the scenario's seed does not change the network."""


class BackhaulTrace(Strict, frozen=True, kw_only=True, tag_field="kind", tag="backhaul"):
    """Generated: steady with spells of cross traffic, as on a wired backhaul."""

    mean_mbps: Mbps
    """[Mbit/s] Mean bandwidth."""
    seed: Seed = 1
    """Of this trace alone. Default: any; the scenario's seed does not change the network."""


LinkTrace: TypeAlias = FileTrace | CellularTrace | WifiTrace | BackhaulTrace


class Outage(Strict, frozen=True, kw_only=True):
    """A link that carries nothing for a while; what is under way waits."""

    at: Time
    """[s] From the start of the run."""
    duration: Span
    """[s] How long."""


class LinkSpec(Strict, frozen=True, kw_only=True):
    """A link. Give `rate_mbps` or `trace`, or neither: unlimited."""

    rate_mbps: Mbps | None = None
    """[Mbit/s] Constant rate; null = unlimited. Default: a link is ideal until told otherwise."""
    delay: Delay = 0.0
    """[s] One-way propagation. Default: ideal."""
    jitter: Delay = 0.0
    """[s] Each chunk takes up to this much longer, uniformly; order is kept. Default: ideal."""
    loss: Loss = 0.0
    """[probability] Of losing a packet of 1,500 bytes. Default: ideal."""
    loss_mode: Literal["stall", "reset"] = "stall"
    """What a loss does to a byte stream: *stall* until resent, or *reset* the connection.
    Default: what TCP does."""
    queue_bytes: Annotated[int, Meta(ge=1, le=2**40)] | None = None
    """[bytes] Buffered before the sender is held back; null = unlimited. Default: sharing among
    flows is then exact, as in the simulator."""
    outages: tuple[Outage, ...] = ()
    """Planned outages. Default: none."""
    trace: LinkTrace | None = None
    """Bandwidth over time instead of `rate_mbps`. Default: constant."""


class LinkSet(Strict, frozen=True, kw_only=True):
    """What an event sets; a field that is left out stays as it was."""

    rate_mbps: Mbps | UnsetType | None = UNSET
    """[Mbit/s] New constant rate, null = unlimited; ends a trace. Default: unchanged."""
    delay: Delay | UnsetType = UNSET
    """[s] New one-way delay. Default: unchanged."""
    jitter: Delay | UnsetType = UNSET
    """[s] New jitter. Default: unchanged."""
    loss: Loss | UnsetType = UNSET
    """[probability] New loss. Default: unchanged."""


class LinkEvent(Strict, frozen=True, kw_only=True):
    """A change of a link while the run goes on."""

    at: Time
    """[s] From the start of the run."""
    link: str
    """A server (its uplink), ``a>b`` (topology pair), or a full name such as ``access:a``."""
    set: LinkSet
    """What changes."""


class NetworkSpec(Strict, frozen=True, kw_only=True):
    """The network between clients and servers and among servers."""

    emulate: bool = True
    """Whether the launcher puts relays between the processes. The simulator always uses the
    figures below. Default: on one machine the real network is a loopback."""
    backend: Literal["relay", "tc", "tun", "auto"] = "relay"
    """What plays the network live: *relay* (TCP in user space), *tc* (the kernel's queues, each
    server in a network namespace), *tun* (packets in user space, TCP as it is), *auto* (tc where
    the kernel shapes rate and delay, else relay). Default: it needs no privileges, and keeps
    closest to the figures that the simulator has."""
    topology: Literal["uplink", "pair"] = "uplink"
    """*uplink*: all that leaves a server shares one link; *pair*: a link per ordered pair.
    Default: an edge site has one line to the world."""
    access: LinkSpec = LinkSpec(rate_mbps=50.0, delay=0.004)
    """The clients' link to every server. Default: good 5G or Wi-Fi, one hop away."""
    access_links: dict[Name, LinkSpec] = msgspec.field(default_factory=dict)
    """By server; what is not given is as in `access`. Default: all alike."""
    link: LinkSpec = LinkSpec(rate_mbps=20.0, delay=0.005)
    """Every link between servers. Default: a business uplink within one town; slow enough
    that a photo of 100 kB takes 40 ms."""
    links: dict[str, LinkSpec] = msgspec.field(default_factory=dict)
    """By server (uplink) or ``a>b`` (pair); what is not given is as in `link`.
    Default: all alike."""
    events: tuple[LinkEvent, ...] = ()
    """Changes during the run. Default: none."""
