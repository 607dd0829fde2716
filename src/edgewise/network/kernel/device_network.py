"""The backends ``tc`` and ``tun``; `devices` has their configuration."""

from __future__ import annotations

from typing import Any

from edgewise.errors import BadInput
from edgewise.network.emulated_network import EmulatedNetwork
from edgewise.network.kernel.devices import DevicesConfig
from edgewise.network.kernel.namespaces import Namespaces
from edgewise.network.kernel.tc import TcShaper, has_netem
from edgewise.network.kernel.tun import PacketShaper, Tun


class DeviceNetwork(EmulatedNetwork):
    """A running ``tc`` or ``tun`` backend, used as ``async with DeviceNetwork(config) as network``.

    Raises:
        BadInput: the configuration is wrong, or the kernel refuses something.
    """

    def __init__(self, config: DevicesConfig) -> None:
        super().__init__(config)
        self._config = config
        self._shapers: list[TcShaper | PacketShaper] = []
        self._tuns: list[Tun] = []
        self._namespaces = Namespaces()

    def health(self) -> dict[str, Any]:
        return {"backend": self._config.backend, **super().health()}

    def make_backends(self) -> dict[str, TcShaper] | dict[str, PacketShaper]:
        shapers = self._tc() if self._config.backend == "tc" else self._tun()
        self._shapers = list(shapers.values())
        return shapers

    async def close_routes(self) -> None:
        """Remove our own devices; those of others stay as they are."""
        for tun in self._tuns:
            tun.close()
        for shaper in self._shapers:
            shaper.close()

    async def close(self) -> None:
        await super().close()
        self._namespaces.close()

    def _tc(self) -> dict[str, TcShaper]:
        netem = has_netem()
        devices = {device.link: device for device in self._config.devices}
        shapers = {}
        for name, link in self._links.items():
            if name not in devices:
                raise BadInput(f"links.{name}: expected a device with this link, found none")
            self._namespaces.open(devices[name].namespace)
            shapers[name] = TcShaper(
                name, link, self._timers, self._namespaces, devices[name], netem=netem
            )
        return shapers

    def _tun(self) -> dict[str, PacketShaper]:
        shapers = {
            name: PacketShaper(name, link, self._timers) for name, link in self._links.items()
        }
        by_address: dict[str, Tun] = {}
        for device in self._config.devices:
            self._namespaces.open(device.namespace)
            by_address[device.address] = Tun(self._namespaces, device)
            self._tuns.append(by_address[device.address])
        for route in self._config.routes:
            target = by_address[route.to]
            by_address[route.source].add_route(route.to, shapers[route.link], target)
        for tun in self._tuns:
            tun.start()
        return shapers
