"""The process of the backends ``tc`` and ``tun`` (``wires`` has what it is told)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edgewise.errors import BadInput
from edgewise.network.kernel.devices import Device, DevicesConfig
from edgewise.network.kernel.namespaces import Spaces
from edgewise.network.kernel.tc import TcShaper, has_netem
from edgewise.network.kernel.tun import PacketShaper, Tun
from edgewise.network.link import warm_up
from edgewise.network.link_controller import LinkBackend, LinkController, run_until_signal
from edgewise.network.relay.timers import Timers


class DeviceNetwork(LinkController):
    """A running ``tc`` or ``tun`` backend, to be used as ``async with Wires(config) as wires``.

    Attributes:
        ports: ``{"control": {"host", "port"}, "routes": []}`` after start.

    Raises:
        BadInput: the configuration is wrong, or the kernel refuses something.
    """

    def __init__(self, config: DevicesConfig) -> None:
        config.check()
        super().__init__(config.links, Path(config.folder), config.seed)
        self.config = config
        self.shapers: dict[str, TcShaper] | dict[str, PacketShaper] = {}
        self.ports: dict[str, Any] = {}
        self._tuns: list[Tun] = []
        self._spaces = Spaces()

    def at_work(self) -> dict[str, LinkBackend]:
        return dict(self.shapers)

    def health(self) -> dict[str, Any]:
        return {"backend": self.config.backend, **super().health()}

    async def __aenter__(self) -> DeviceNetwork:
        warm_up()
        self._timers = Timers(asyncio.get_running_loop())
        try:
            if self.config.backend == "tc":
                self._start_tc()
            else:
                self._start_tun()
            self.start()
            host, port = await self.serve_control(self.config.control)
        except BaseException:
            await self.close()
            raise
        self.ports = {"control": {"host": host, "port": port}, "routes": []}
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the devices of others as they are, and remove our own."""
        await self.end_control()
        self.forget_events()
        for tun in self._tuns:
            tun.close()
        for shaper in self.shapers.values():
            shaper.close()
        self._timers.close()
        self._spaces.close()

    def _start_tc(self) -> None:
        netem = has_netem()
        devices: dict[str, Device] = {device.link: device for device in self.config.devices}
        made = {}
        for name, link in self._links.items():
            device = devices.get(name)
            if device is None:
                raise BadInput(f"links.{name}: expected a device with this link, found none")
            self._spaces.open(device.space)
            made[name] = TcShaper(
                name, link, self._timers, self._spaces, device.space, device.device, device.peer,
                netem=netem,
            )  # fmt: skip
        self.shapers = made

    def _start_tun(self) -> None:
        shapers = {
            name: PacketShaper(name, link, self._timers) for name, link in self._links.items()
        }
        self.shapers = shapers
        by_address: dict[str, Tun] = {}
        for device in self.config.devices:
            self._spaces.open(device.space)
            tun = Tun(self._spaces, device.space, device.device, device.address, device.prefix)
            self._tuns.append(tun)
            by_address[device.address] = tun
        for way in self.config.ways:
            by_address[way.source].lead(way.to, shapers[way.link], by_address[way.to])
        for tun in self._tuns:
            tun.start()


async def serve(
    config: DevicesConfig, ready: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Run until cancelled; ``ready`` is called with the ports. Raises BadInput."""
    async with DeviceNetwork(config) as wires:
        if ready is not None:
            ready(wires.ports)
        await asyncio.Event().wait()


def run(config: DevicesConfig, ready: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Be this process, until SIGTERM or SIGINT. Raises BadInput."""
    run_until_signal(partial(serve, config), ready, realtime=config.realtime)
