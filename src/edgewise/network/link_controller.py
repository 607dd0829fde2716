"""Named links at work: time 0, planned and live changes, the control API. Every backend is one.

What differs between the backends is what a :class:`LinkBackend` does with bytes; what a link is
told, by
whom and when, is the same for all and stands here.
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
from typing import Any, Protocol

import msgspec
import numpy as np

from edgewise.errors import BadInput, MissingExtra
from edgewise.network.link import Link, LinkSettings
from edgewise.network.relay.config import Address, LinkConfig, LinkPatch
from edgewise.network.relay.timers import Timer, Timers

try:
    import uvloop
    from aiohttp import web

    from edgewise.network.control import control_app
except ImportError as e:
    raise MissingExtra("live", e.name or "uvloop") from e

Intervals = list[tuple[float, float]]


class LinkBackend(Protocol):
    """A link at work. ``now`` is monotonic time, s."""

    name: str
    link: Link

    def change(self, now: float, settings: LinkSettings) -> None:
        """Apply other settings; nothing is dropped. BadInput if the backend cannot play them."""

    def outage(self, now: float, duration: float) -> None:
        """Send nothing for ``duration`` seconds; BadInput unless it is above 0."""

    def restart(self, now: float, settings: LinkSettings, outages: Intervals) -> None:
        """Make ``now`` the link's time 0."""

    def restore(self, now: float, settings: LinkSettings, outages: Intervals) -> None:
        """Undo live changes and outages, and keep time 0."""

    def state(self, now: float) -> dict[str, Any]:
        """As the control API shows it."""


class LinkController:
    """The links of a configuration and what they are told.

    Args:
        links: by name.
        folder: where relative trace files start.
        seed: of jitter and loss; each link draws from its own stream.

    Raises:
        BadInput: a link is wrong; the message names it.
    """

    def __init__(self, links: Mapping[str, LinkConfig], folder: Path, seed: int) -> None:
        self._configured = dict(links)
        self._folder = folder
        self._initial: dict[str, LinkSettings] = {}
        self._links: dict[str, Link] = {}
        self._events: list[tuple[float, str, dict[str, Any]]] = []
        for i, (name, link) in enumerate(links.items()):
            rng = np.random.default_rng([seed, i])
            try:
                self._initial[name] = settings = link.settings(folder)
                self._links[name] = Link(settings, outages=link.intervals(), rng=rng)
                # Read now: a wrong trace must not wait for its moment, nor a file hold up traffic.
                self._events += [(e.at, name, e.set.changes(folder)) for e in link.events]
            except BadInput as e:
                raise BadInput(f"links.{name}: {e}") from e
        self._events.sort(key=lambda event: event[0])
        self._timers: Timers
        self._pending: list[Timer] = []
        self._runner: web.AppRunner | None = None

    def at_work(self) -> Mapping[str, LinkBackend]:
        """The links, by name."""
        raise NotImplementedError

    def health(self) -> dict[str, Any]:
        """What ``GET /healthz`` says beyond its status."""
        return {"realtime": os.sched_getscheduler(0) == os.SCHED_RR}

    # -- what the control API does

    def start(self) -> None:
        """Make now the time 0 of every link: configured settings, outages and events anew."""
        now = time.monotonic()
        for name, shaper in self.at_work().items():
            shaper.restart(now, self._initial[name], self._configured[name].intervals())
        self.forget_events()
        self._pending = [self._event(name, what, now + at) for at, name, what in self._events]

    async def patch(self, name: str, patch: LinkPatch) -> None:
        """Change a link now, or when its trace has been read.

        Raises:
            BadInput: the change does not make sense; then nothing is changed.
        """
        changes = await asyncio.to_thread(patch.changes, self._folder)
        self._change(name, changes, time.monotonic())

    def restore(self, name: str) -> None:
        """Give a link its configured settings again and end outages that were asked for live."""
        self.at_work()[name].restore(
            time.monotonic(), self._initial[name], self._configured[name].intervals()
        )

    def outage(self, name: str, duration: float) -> None:
        """Stop a link for ``duration`` seconds from now.

        Raises:
            BadInput: the duration is not above 0.
        """
        self.at_work()[name].outage(time.monotonic(), duration)

    # -- for the backends

    def forget_events(self) -> None:
        """Cancel what was planned."""
        for timer in self._pending:
            timer.cancel()
        self._pending = []

    async def serve_control(self, address: Address) -> tuple[str, int]:
        """Listen for the control API; returns where. BadInput if the port cannot be bound."""
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
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _change(self, name: str, changes: dict[str, Any], at: float) -> None:
        shaper = self.at_work()[name]
        shaper.change(at, msgspec.structs.replace(shaper.link.settings, **changes))

    def _event(self, name: str, changes: dict[str, Any], at: float) -> Timer:
        # The change counts from when it was planned, not from when the timer fired.
        return self._timers.at(at, lambda _now: self._change(name, changes, at))


def reason(error: Exception) -> str:
    """Why a socket could not be had, as a person would say it."""
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError) or not error.errno:
        return str(error)
    return os.strerror(error.errno)


def run_until_signal(
    serve: Callable[[Callable[[dict[str, Any]], None]], Coroutine[Any, Any, None]],
    ready: Callable[[dict[str, Any]], None] | None,
    *,
    realtime: bool,
) -> None:
    """Be a backend's process, on uvloop, until SIGTERM or SIGINT.

    Args:
        serve: runs until cancelled, and calls what it is given once everything listens.
        ready: called then.
        realtime: ask for SCHED_RR, which needs CAP_SYS_NICE; without it nothing changes.
    """
    if realtime:
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))

    def started(ports: dict[str, Any]) -> None:
        # What start-up made lives until the end: collections need not visit it again.
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
