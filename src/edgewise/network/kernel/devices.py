"""A network of real devices: what the process of the backends ``tc`` and ``tun`` is told.


::

    backend: tc
    control: {host: 127.0.0.1, port: 0}
    links:
      uplink:a: {rate_bps: 20e6}
    devices:
      - {link: uplink:a, space: ew-4711-0, device: net, peer: 198.19.0.2}

With ``tc`` each link is the egress of a device, which the launcher has made (``live.run.netns``).
With
``tun`` the process itself makes a device per namespace; a packet that comes out of one of them for
an address crosses the link that ``ways`` names and goes into the device that has the address::

    backend: tun
    devices:
      - {space: ew-4711-0, device: net, address: 198.18.7.129, prefix: 25}
      - {space: "", device: ew4711t, address: 198.18.7.128, prefix: 25}
    ways:
      - {from: 198.18.7.128, to: 198.18.7.129, link: access:a}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from edgewise.errors import ScenarioError
from edgewise.network.relay.config import Address, LinkConfig, RelayConfig, load_config


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network device.

    Attributes:
        space: its namespace; empty = the host's.
        device: its name there.
        link: ``tc``: the link that its egress is.
        peer: ``tc``: an address behind it. A packet to it makes a queue move on after an outage.
        address, prefix: ``tun``: what it is to have.
    """

    space: str
    device: str
    link: str = ""
    peer: str = ""
    address: str = ""
    prefix: int = 32


class DeviceRoute(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"source": "from"}
):
    """Which link a packet crosses."""

    source: str
    to: str
    link: str


class DevicesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that the process of a ``tc`` or ``tun`` backend does."""

    backend: Literal["tc", "tun"]
    devices: Annotated[tuple[Device, ...], msgspec.Meta(min_length=1)]
    ways: tuple[DeviceRoute, ...] = ()
    links: dict[str, LinkConfig] = {}
    control: Address = Address()
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    realtime: bool = False
    folder: str = "."

    def check(self, file: str = "configuration") -> None:
        """See that every name leads somewhere. Raises ScenarioError."""
        named = [("devices", i, d.link) for i, d in enumerate(self.devices) if d.link]
        named += [("ways", i, way.link) for i, way in enumerate(self.ways)]
        for what, i, link in named:
            if link not in self.links:
                known = ", ".join(sorted(self.links)) or "none is defined"
                raise ScenarioError(
                    file,
                    f"{what}[{i}].link",
                    f"expected the name of a link ({known}), got {link!r}",
                )
        if self.backend == "tc":
            for i, device in enumerate(self.devices):
                if not device.link:
                    raise ScenarioError(file, f"devices[{i}].link", "expected a link for 'tc'")
        addresses = {device.address for device in self.devices}
        for i, way in enumerate(self.ways):
            for field, address in (("from", way.source), ("to", way.to)):
                if address not in addresses:
                    raise ScenarioError(
                        file, f"ways[{i}].{field}", f"expected a device's address, got {address!r}"
                    )


def load(path: Path) -> RelayConfig | DevicesConfig:
    """Read the configuration of any backend: one that has a ``backend`` is not a relay's.

    Raises:
        ScenarioError: it cannot be read or is wrong.
    """
    try:
        raw = msgspec.yaml.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return load_config(path)  # says what is wrong
    if not isinstance(raw, dict) or "backend" not in raw:
        return load_config(path)
    try:
        config = msgspec.convert(raw, DevicesConfig, strict=False)
    except msgspec.ValidationError as e:
        raise ScenarioError(str(path), "", str(e)) from e
    if config.folder == ".":
        config = msgspec.structs.replace(config, folder=str(path.parent))
    config.check(str(path))
    return config
