"""Worlds for learners: from a scenario or a family to simulations at their beginning, by seed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgewise.errors import BadInput
from edgewise.scenario import Scenario, load
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.layout import Sim
from edgewise.sim.simulate import Photos
from edgewise.tasks.services import services_of
from edgewise.worlds import families
from edgewise.worlds.workload import generate

SLOTS = 1 << 13
"""Requests open at a time. A learner that takes the dearest rows of an overloaded fleet has a few
thousand: what cannot score any more leaves its queue."""

ROOM = (6, 24)
"""Servers and services of the largest world of a family, but for …"""
ROOMS = {"large_fleet": (16, 64)}
"""… these."""


class WorldSource:
    """Where worlds come from.

    Parameters
    ----------
    scenario:
        Name of a preset, a file, or a `Scenario`: the fleet and its workload stay, the seed varies.
    family:
        In its place: a family of random worlds (`edgewise.worlds.families`).
    duration:
        s of the trace, in place of the scenario's.

    Raises BadInput if not exactly one of the first two is given, and what `load` raises.
    """

    def __init__(
        self,
        scenario: str | Path | Scenario | None = None,
        family: str | None = None,
        duration: float | None = None,
    ) -> None:
        if (scenario is None) == (family is None):
            raise BadInput("give a scenario or a family, not both")
        self._family = family
        self._duration = duration
        self._photos: Photos | None = None
        if scenario is not None:
            self._base = scenario if isinstance(scenario, Scenario) else load(scenario)
            self._photos = Photos.of(self._base)
            self.servers = len(self._base.servers)
            self.services = len(services_of(self._base))
            self.seeds = range(2**31)
        else:
            assert family is not None
            self._base = families.scenario(family, 0)
            self.servers, self.services = ROOMS.get(family, ROOM)
            self.seeds = families.TRAINING
        self._options = SimOptions(store=False, slots=SLOTS)

    @property
    def rows(self) -> int:
        """Of the largest world's table, shed included."""
        return 2 * self.services + 1

    @property
    def slots(self) -> int:
        return self._options.slots

    def scenario(self, seed: int) -> Scenario:
        """World `seed`."""
        if self._family is not None:
            world = families.scenario(self._family, seed)
        else:
            world = msgspec.structs.replace(self._base, seed=seed)
        return world if self._duration is None else world.with_overrides(duration=self._duration)

    def world(self, seed: int) -> Sim:
        """World `seed`, at its beginning."""
        scenario = self.scenario(seed)
        trace = generate(scenario, self._photos.sizes if self._photos else None)
        return simulation(scenario, trace, self._options)
