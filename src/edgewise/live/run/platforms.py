"""Where the processes of a run live: on this machine, in containers, or in network namespaces.

A platform decides how a process is started and what the others call it; nothing else of a run
depends on it. The other two are in `edgewise.live.run.containers` and `edgewise.live.run.netns`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from edgewise.live.run.addresses import Addresses, assign_addresses
from edgewise.live.run.fleet_configs import Hosts
from edgewise.live.run.processes import ChildProcess
from edgewise.scenario import Scenario


class Platform(Protocol):
    """A place for balancer, relay and nodes. The client is always a process of this machine."""

    @property
    def hosts(self) -> Hosts | None:
        """Host names by which the processes reach each other; None: all are on the loopback."""

    def assign_addresses(self, scenario: Scenario, free_port: Callable[[], int]) -> Addresses:
        """Assign all addresses. Called once, before anything else."""

    def process(
        self,
        role: str,
        server: str,
        arguments: Sequence[str],
        log: Path,
        ports: Sequence[int],
        keys: Path | None = None,
    ) -> ChildProcess:
        """Make a process, without starting it.

        Parameters
        ----------
        role:
            ``node``, ``balancer`` or ``relay``.
        server:
            The node's server; else the role.
        arguments:
            Of ``edgewise``.
        ports:
            It will listen on these.
        keys:
            The folder of its identity, not there yet; None: it has none.
        """

    async def open(self) -> None:
        """Called before anything is started. Raises PeerError."""

    async def close(self) -> None:
        """Called when everything has ended, also after a failed `open`. Raises PeerError."""


class LocalPlatform:
    """Plain processes of this machine."""

    @property
    def hosts(self) -> Hosts | None:
        return None

    def assign_addresses(self, scenario: Scenario, free_port: Callable[[], int]) -> Addresses:
        return assign_addresses(scenario, free_port)

    def process(
        self,
        role: str,
        server: str,
        arguments: Sequence[str],
        log: Path,
        ports: Sequence[int],
        keys: Path | None = None,
    ) -> ChildProcess:
        return ChildProcess(display_name(role, server), arguments, log)

    async def open(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do: processes die with the launcher."""


def display_name(role: str, server: str) -> str:
    """A process's name in messages: ``balancer``, ``node plaza``."""
    return role if role == server else f"{role} {server}"
