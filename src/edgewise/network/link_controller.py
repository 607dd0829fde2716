"""The links of a running backend: time 0, planned and live changes, the control API.

The backends differ in what a `LinkBackend` does with bytes. Who changes a link, when and how is the
same for all and stands here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import BadInput, MissingExtra
from edgewise.network.capacity import Capacity
from edgewise.network.link import Link
from edgewise.network.link_backend import LinkBackend
from edgewise.network.relay.config import Address, NetworkConfig
from edgewise.network.relay.timers import Timer, Timers
from edgewise.network.settings import LinkChange, LinkEvent, LinkSettings, new_capacity
from edgewise.network.trace import FileTrace

try:
    import uvloop
    from aiohttp import web

    from edgewise.network.control import control_app
except ImportError as e:
    raise MissingExtra("live", e.name or "uvloop") from e


class LinkController:
    """The links of a configuration, and how they change.

    Args:
        config: checked here.

    Raises:
        BadInput: the configuration is wrong; the message names the link or the event.
    """

    def __init__(self, config: NetworkConfig) -> None:
        config.check()
        self._folder = Path(config.folder)
        self._configured: dict[str, tuple[LinkSettings, Capacity]] = {}
        self._links: dict[str, Link] = {}
        # Traces are read now: a wrong one must not wait for its moment, nor a file hold up traffic.
        for i, (name, settings) in enumerate(config.links.items()):
            rng = np.random.default_rng([config.seed, i])
            try:
                capacity = settings.capacity(self._folder)
                self._links[name] = Link(settings, capacity, rng=rng)
            except BadInput as e:
                raise BadInput(f"links.{name}: {e}") from e
            self._configured[name] = settings, capacity
        self._events: list[tuple[LinkEvent, Capacity | None]] = []
        for i, event in enumerate(config.events):
            try:
                self._events.append((event, new_capacity(event.set, self._folder)))
            except BadInput as e:
                raise BadInput(f"events[{i}].set: {e}") from e
        self._events.sort(key=lambda planned: planned[0].at)
        self._timers: Timers
        self._pending: list[Timer] = []
        self._runner: web.AppRunner | None = None

    def backends(self) -> Mapping[str, LinkBackend]:
        """The links at work, by name."""
        raise NotImplementedError

    def health(self) -> dict[str, Any]:
        """What ``GET /healthz`` says beyond its status."""
        return {"realtime": os.sched_getscheduler(0) == os.SCHED_RR}

    # -- called by the control API

    def start(self) -> None:
        """Make now the time 0 of every link: configured settings, outages and events anew."""
        now = time.monotonic()
        for name, backend in self.backends().items():
            backend.restore(now, *self._configured[name], restart=True)
        self.forget_events()
        self._pending = [
            self._plan(event, capacity, now + event.at) for event, capacity in self._events
        ]

    async def patch(self, name: str, change: LinkChange) -> None:
        """Change a link now, or as soon as its trace has been read.

        Raises:
            BadInput: the change does not make sense; then nothing is changed.
        """
        capacity = await asyncio.to_thread(self._load, change)
        self._change(name, change, capacity, time.monotonic())

    def restore(self, name: str) -> None:
        """Give a link its configured settings again and end outages that were added live."""
        self.backends()[name].restore(time.monotonic(), *self._configured[name])

    def outage(self, name: str, duration: float) -> None:
        """Stop a link for `duration` seconds from now.

        Raises:
            BadInput: the duration is not above 0.
        """
        self.backends()[name].outage(time.monotonic(), duration)

    # -- for the backends

    def forget_events(self) -> None:
        """Cancel the planned events."""
        for timer in self._pending:
            timer.cancel()
        self._pending = []

    async def serve_control(self, address: Address) -> tuple[str, int]:
        """Serve the control API; returns its host and port. BadInput if it cannot be bound."""
        self._runner = web.AppRunner(control_app(self), access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, address.host, address.port).start()
        except (OSError, UnicodeError) as e:
            where = f"{address.host}:{address.port}"
            raise BadInput(f"cannot listen on {where} (control): {reason(e)}") from e
        host, port = self._runner.addresses[0][:2]
        return host, port

    async def end_control(self) -> None:
        """Stop the control API."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _load(self, change: LinkChange) -> Capacity | None:
        """The bandwidth that a live change brings; its trace file must be below our folder."""
        if isinstance(change.trace, FileTrace):
            root = self._folder.resolve()
            file = (root / change.trace.path).resolve()
            if not (file.is_relative_to(root) and file.is_file()):
                raise BadInput(f"trace.path: expected a file below {root}")
        return new_capacity(change, self._folder)

    def _change(self, name: str, change: LinkChange, capacity: Capacity | None, at: float) -> None:
        backend = self.backends()[name]
        link = backend.link
        backend.change(at, link.settings.changed(change), capacity or link.capacity)

    def _plan(self, event: LinkEvent, capacity: Capacity | None, at: float) -> Timer:
        # The change counts from when it was planned, not from when the timer fired.
        return self._timers.at(at, lambda _now: self._change(event.link, event.set, capacity, at))


def reason(error: Exception) -> str:
    """Why a socket could not be opened, in words."""
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError) or not error.errno:
        return str(error)
    return os.strerror(error.errno)


def run_until_signal(
    serve: Callable[[Callable[[dict[str, Any]], None]], Coroutine[Any, Any, None]],
    ready: Callable[[dict[str, Any]], None] | None,
    *,
    realtime: bool,
) -> None:
    """Run a backend as this process, on uvloop, until SIGTERM or SIGINT.

    Args:
        serve: runs until cancelled; calls its argument with the ports once everything listens.
        ready: called with the ports.
        realtime: ask for SCHED_RR. Without CAP_SYS_NICE this has no effect.
    """
    if realtime:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    def started(ports: dict[str, Any]) -> None:
        # Objects made during start-up live until the end: the collector need not visit them again.
        gc.collect()
        gc.freeze()
        if ready is not None:
            ready(ports)

    async def until_signal() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(serve(started))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signal())
