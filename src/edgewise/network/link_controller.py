"""The links of a running backend: time 0, planned and live changes, the control API.

The backends differ in what a `LinkBackend` does with bytes. Who changes a link, when and how is the
same for all and stands here.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import BadInput
from edgewise.network.capacity import Capacity
from edgewise.network.link import Link
from edgewise.network.link_backend import LinkBackend
from edgewise.network.relay.config import NetworkConfig
from edgewise.network.relay.timers import Timer, Timers
from edgewise.network.settings import LinkChange, LinkEvent, LinkSettings, new_capacity
from edgewise.network.trace import FileTrace


class LinkController:
    """The links of a configuration, and how they change.

    Args:
        config: checked here.

    Attributes:
        backends: the links at work, by name.

    Raises:
        BadInput: the configuration is wrong; the message names the link or the event.
    """

    def __init__(self, config: NetworkConfig) -> None:
        config.check()
        self._folder = Path(config.folder)
        self._traces = None if config.traces is None else Path(config.traces)
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
        self.backends: Mapping[str, LinkBackend] = {}
        self._timers: Timers
        self._pending: list[Timer] = []

    def health(self) -> dict[str, Any]:
        """Further fields of ``GET /healthz``."""
        return {"realtime": os.sched_getscheduler(0) == os.SCHED_RR}

    def start(self) -> None:
        """Make now the time 0 of every link: configured settings, outages and events anew."""
        now = time.monotonic()
        for name, backend in self.backends.items():
            backend.restore(now, *self._configured[name], restart=True)
        self._forget_events()
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
        self.backends[name].restore(time.monotonic(), *self._configured[name])

    def outage(self, name: str, duration: float) -> None:
        """Stop a link for `duration` seconds from now.

        Raises:
            BadInput: the duration is not above 0.
        """
        self.backends[name].outage(time.monotonic(), duration)

    def _forget_events(self) -> None:
        for timer in self._pending:
            timer.cancel()
        self._pending = []

    def _load(self, change: LinkChange) -> Capacity | None:
        """The bandwidth that a live change brings; its trace file must be below `traces`."""
        if not isinstance(change.trace, FileTrace):
            return new_capacity(change, self._folder)
        if self._traces is None:
            raise BadInput("trace.path: expected no file: the configuration names no `traces`")
        root = self._traces.resolve()
        try:
            file = (root / change.trace.path).resolve()
            below = file.is_relative_to(root) and file.is_file()
        except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a null byte
            below = False
        if not below:
            raise BadInput(f"trace.path: expected a file below {root}")
        return new_capacity(change, root)

    def _change(self, name: str, change: LinkChange, capacity: Capacity | None, at: float) -> None:
        backend = self.backends[name]
        link = backend.link
        backend.change(at, link.settings.changed(change), capacity or link.capacity)

    def _plan(self, event: LinkEvent, capacity: Capacity | None, at: float) -> Timer:
        # The change counts from when it was planned, not from when the timer fired.
        return self._timers.at(at, lambda _now: self._change(event.link, event.set, capacity, at))
