"""Configuration of the backends ``tc`` and ``tun``: links that are network devices.

::

    backend: tc
    control: {host: 127.0.0.1, port: 0}
    links:
      uplink:a: {rate_mbps: 20}
    devices:
      - {link: uplink:a, namespace: ew-4711-0, device: net, peer: 198.19.0.2}

With ``tc`` each link is the egress of a device, which the launcher has made (`live.run.netns`).
With ``tun`` the process itself makes a device in each namespace. A packet that comes out of one of
them crosses the link that ``routes`` names for its addresses, and goes into the device that has the
target's address::

    backend: tun
    devices:
      - {namespace: ew-4711-0, device: net, address: 198.18.7.129, prefix: 25}
      - {namespace: "", device: ew4711t, address: 198.18.7.128, prefix: 25}
    routes:
      - {from: 198.18.7.128, to: 198.18.7.129, link: access:a}
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgewise.documents import parse_yaml, read_text
from edgewise.errors import ScenarioError
from edgewise.network.relay.config import NetworkConfig, RelayConfig, parse_config


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network device.

    Attributes:
        namespace: its namespace; empty = the host's.
        device: its name there.
        link: ``tc``: the link that its egress is.
        peer: ``tc``: an address behind it. A packet to it makes a queue move on after an outage.
        address, prefix: ``tun``: its IPv4 address and the length of its network's prefix.
    """

    namespace: str
    device: str
    link: str = ""
    peer: str = ""
    address: str = ""
    prefix: int = 32


class DeviceRoute(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}
):
    """The link that packets from one address to another cross (``tun``)."""

    source: str
    to: str
    link: str


class DevicesConfig(NetworkConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that the process of a ``tc`` or ``tun`` backend does."""

    backend: Literal["tc", "tun"]
    devices: Annotated[tuple[Device, ...], msgspec.Meta(min_length=1)]
    routes: tuple[DeviceRoute, ...] = ()

    def check(self, file: str = "configuration") -> None:
        """Raise ScenarioError if a name or an address leads nowhere."""
        super().check(file)
        if self.backend == "tc":
            for i, device in enumerate(self.devices):
                if not device.link:
                    raise ScenarioError(file, f"devices[{i}].link", "expected a link for 'tc'")
        addresses = {device.address for device in self.devices}
        for i, route in enumerate(self.routes):
            for field, address in (("from", route.source), ("to", route.to)):
                if address not in addresses:
                    raise ScenarioError(
                        file,
                        f"routes[{i}].{field}",
                        f"expected a device's address, got {address!r}",
                    )

    def links_used(self) -> Iterable[tuple[str, str]]:
        for i, device in enumerate(self.devices):
            if device.link:
                yield f"devices[{i}].link", device.link
        for i, route in enumerate(self.routes):
            yield f"routes[{i}].link", route.link


def load(path: Path) -> RelayConfig | DevicesConfig:
    """Read the configuration of any backend: a relay's has no field ``backend``.

    Raises:
        ScenarioError: it cannot be read or is wrong; the message names the field.
    """
    raw = parse_yaml(read_text(path), str(path))
    if isinstance(raw, dict) and "backend" in raw:
        return parse_config(path, raw, DevicesConfig)
    return parse_config(path, raw, RelayConfig)
