"""A named link at work: the part that the relay's links, tc's and tun's have in common."""

from __future__ import annotations

from typing import Any

from edgewise.network.capacity import Capacity
from edgewise.network.link import Link, Passage
from edgewise.network.relay.timers import Timers
from edgewise.network.settings import LinkSettings


class LinkBackend:
    """One way to make bytes take the time that a `Link` says. `now` is monotonic time, s."""

    def __init__(self, name: str, link: Link, timers: Timers) -> None:
        self.name, self.link, self.timers = name, link, timers

    def change(self, now: float, settings: LinkSettings, capacity: Capacity | None = None) -> None:
        """Apply other settings; nothing is dropped. BadInput if the backend cannot."""
        settings = self.adapted(settings)
        self.settle(now)
        self.revise(self.link.change(now, settings, capacity), now)

    def outage(self, now: float, duration: float) -> None:
        """Send nothing for `duration` seconds; BadInput unless it is above 0."""
        self.settle(now)
        self.revise(self.link.outage(now, duration), now)

    def restore(
        self,
        now: float,
        settings: LinkSettings,
        capacity: Capacity | None = None,
        *,
        restart: bool = False,
    ) -> None:
        """Undo live changes and outages; with `restart`, make `now` the link's time 0."""
        settings = self.adapted(settings)
        self.settle(now)
        self.revise(self.link.restore(now, settings, capacity, restart=restart), now)

    def state(self, now: float) -> dict[str, Any]:
        """The link as the control API shows it."""
        return {"name": self.name, **self.link.state(now)}

    # -- for the backends

    def adapted(self, settings: LinkSettings) -> LinkSettings:
        """The settings that the `Link` gets."""
        return settings

    def settle(self, now: float) -> None:
        """Finish whatever ended by `now`, before the link changes."""

    def revise(self, passage: Passage | None, now: float) -> None:
        """The link changed; `passage` is the new one of the chunk on the wire, if there is one."""
        raise NotImplementedError
