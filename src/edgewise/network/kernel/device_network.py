"""The process of the backends ``tc`` and ``tun``; `devices` has its configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from edgewise.errors import BadInput
from edgewise.network.kernel.devices import DevicesConfig
from edgewise.network.kernel.namespaces import Namespaces
from edgewise.network.kernel.tc import TcShaper, has_netem
from edgewise.network.kernel.tun import PacketShaper, Tun
from edgewise.network.link import warm_up
from edgewise.network.link_backend import LinkBackend
from edgewise.network.link_controller import LinkController, run_until_signal
from edgewise.network.relay.timers import Timers


class DeviceNetwork(LinkController):
    """A running ``tc`` or ``tun`` backend, used as ``async with DeviceNetwork(config) as network``.

    Attributes:
        ports: ``{"control": {"host", "port"}, "routes": []}`` after start.

    Raises:
        BadInput: the configuration is wrong, or the kernel refuses something.
    """

    def __init__(self, config: DevicesConfig) -> None:
        super().__init__(config)
        self._config = config
        self.shapers: dict[str, TcShaper] | dict[str, PacketShaper] = {}
        self.ports: dict[str, Any] = {}
        self._tuns: list[Tun] = []
        self._namespaces = Namespaces()

    def backends(self) -> dict[str, LinkBackend]:
        return dict(self.shapers)

    def health(self) -> dict[str, Any]:
        return {"backend": self._config.backend, **super().health()}

    async def __aenter__(self) -> DeviceNetwork:
        warm_up()
        self._timers = Timers(asyncio.get_running_loop())
        try:
            if self._config.backend == "tc":
                self._start_tc()
            else:
                self._start_tun()
            self.start()
            host, port = await self.serve_control(self._config.control)
        except BaseException:
            await self.close()
            raise
        self.ports = {"control": {"host": host, "port": port}, "routes": []}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Remove our own devices; those of others stay as they are."""
        await self.end_control()
        self.forget_events()
        for tun in self._tuns:
            tun.close()
        for shaper in self.shapers.values():
            shaper.close()
        self._timers.close()
        self._namespaces.close()

    def _start_tc(self) -> None:
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
        self.shapers = shapers

    def _start_tun(self) -> None:
        shapers = {
            name: PacketShaper(name, link, self._timers) for name, link in self._links.items()
        }
        self.shapers = shapers
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


async def serve(
    config: DevicesConfig, ready: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Run until cancelled; `ready` is called with the ports. Raises BadInput."""
    async with DeviceNetwork(config) as network:
        if ready is not None:
            ready(network.ports)
        await asyncio.Event().wait()


def run(config: DevicesConfig, ready: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Run as this process until SIGTERM or SIGINT. Raises BadInput."""
    run_until_signal(partial(serve, config), ready, realtime=config.realtime)
