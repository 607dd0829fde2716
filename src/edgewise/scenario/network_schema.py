"""The network part of a scenario. A link's settings are in `edgewise.network.settings`."""

from __future__ import annotations

from typing import Literal

import msgspec

from edgewise.domain import Name
from edgewise.network.settings import LinkEvent, LinkSettings
from edgewise.scenario.ranges import Strict


class NetworkSpec(Strict, frozen=True, kw_only=True):
    """The network between clients and servers and among servers."""

    emulate: bool = True
    """Whether the launcher puts relays between the processes. The simulator always uses the
    figures below. Default: on one machine the real network is a loopback."""
    backend: Literal["relay", "tc", "tun", "auto"] = "relay"
    """Backend of the live network: *relay* (TCP in user space), *tc* (the kernel's queues, each
    server in a network namespace), *tun* (packets in user space, TCP as it is), *auto* (tc where
    the kernel shapes rate and delay, else relay). Default: it needs no privileges, and keeps
    closest to the figures that the simulator has."""
    topology: Literal["uplink", "pair"] = "uplink"
    """*uplink*: all that leaves a server shares one link; *pair*: a link per ordered pair.
    Default: an edge site has one line to the world."""
    access: LinkSettings = LinkSettings(rate_mbps=50.0, delay=0.004)
    """The clients' link to every server. Default: good 5G or Wi-Fi, one hop away."""
    access_links: dict[Name, LinkSettings] = msgspec.field(default_factory=dict)
    """By server; what is not given is as in `access`. Default: all alike."""
    link: LinkSettings = LinkSettings(rate_mbps=20.0, delay=0.005)
    """Every link between servers. Default: a business uplink within one town; slow enough
    that a photo of 100 kB takes 40 ms."""
    links: dict[str, LinkSettings] = msgspec.field(default_factory=dict)
    """By server (uplink) or ``a>b`` (pair); what is not given is as in `link`.
    Default: all alike."""
    events: tuple[LinkEvent, ...] = ()
    """Changes during the run. Default: none."""
