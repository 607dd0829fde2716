"""Make worlds by seed, for training, tuning, studies and environments.

A world is a scenario with a seed. A source makes worlds from families of random scenarios, or from
one scenario: then fleet, network and workload stay the same, and the random parts vary. The seeds
of families are split into training, validation and evaluation (`edgewise.worlds.families`), so that
these never share a world.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edgewise.errors import BadInput
from edgewise.scenario import Scenario, load
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.layout import Sim
from edgewise.sim.simulate import Photos
from edgewise.tasks.services import services_of
from edgewise.worlds import families
from edgewise.worlds.workload import Trace, generate

SLOTS = 1 << 13
"""Requests open at a time. A learner that chooses the most expensive rows of an overloaded fleet
has a few thousand, because requests that can no longer score leave their queues."""

FLEET_MAX = (6, 24)
"""(servers, services) of the largest world of a family that is not in `FLEETS_MAX`."""
FLEETS_MAX = {"large_fleet": (16, 64), "any_scale": (12, 72)}


class WorldSource:
    """Makes the world of each seed, from one scenario or from families of random scenarios.

    Parameters
    ----------
    scenario:
        Name of a preset, a file, or a `Scenario`. Its fleet and workload stay, the seed varies.
    family:
        Instead of `scenario`: one or several families of random worlds
        (`edgewise.worlds.families`). A seed uses the family at ``seed % len(families)``.
    duration:
        s of the trace; None: the scenario's.
    change:
        A function applied to every scenario.
    options:
        Options of the simulations that `world` makes.

    Raises BadInput for an unknown family, or unless exactly one of `scenario` and `family` is
    given; loading the scenario raises what `load` raises.
    """

    def __init__(
        self,
        scenario: str | Path | Scenario | None = None,
        family: str | Sequence[str] | None = None,
        duration: float | None = None,
        *,
        change: Callable[[Scenario], Scenario] | None = None,
        options: SimOptions | None = None,
    ) -> None:
        if (scenario is None) == (family is None):
            raise BadInput("give a scenario or a family, not both")
        self.families: tuple[str, ...] = ()
        self._scenario: Scenario | None = None
        self._photo_sizes: tuple[int, ...] | None = None
        if scenario is not None:
            self._scenario = (
                scenario
                if isinstance(scenario, Scenario)
                else load(scenario, allow_code=True)  # its own policy is not run
            )
            named = self._scenario.name if isinstance(scenario, Scenario) else scenario
            self.option = f"--scenario {named}"
            photos = Photos.of(self._scenario)
            self._photo_sizes = photos.sizes if photos else None
            self.servers = len(self._scenario.servers)
            self.services = len(services_of(self._scenario))
            self.seeds = range(2**31)
            self.first_seed = self._scenario.seed
        else:
            assert family is not None
            self.families = (family,) if isinstance(family, str) else tuple(family)
            for name in self.families:
                families.find(name)
            self.option = f"--families {','.join(self.families)}"
            largest = [FLEETS_MAX.get(name, FLEET_MAX) for name in self.families]
            self.servers, self.services = (max(sizes) for sizes in zip(*largest, strict=True))
            self.seeds = families.TRAINING
            self.first_seed = families.EVALUATION.start
        self._duration = duration
        self._change = change
        self._options = options or SimOptions(store=False, slots=SLOTS)

    @property
    def name(self) -> str:
        """The scenario's name, or the families' names separated by commas."""
        return ", ".join(self.families) if self._scenario is None else self._scenario.name

    @property
    def fingerprint(self) -> str:
        """JSON text that is equal for sources of the same worlds; `change` enters by its name."""
        change = "" if self._change is None else self._change.__qualname__
        text = (self.families, self._scenario, self._photo_sizes, self._duration, change)
        return msgspec.json.encode(text).decode()

    @property
    def rows(self) -> int:
        """Rows of the largest world's candidate table, shed included."""
        return 2 * self.services + 1

    @property
    def slots(self) -> int:
        """Requests that may be open at a time."""
        return self._options.slots

    def scenario(self, seed: int) -> Scenario:
        """The scenario of world `seed`."""
        if self._scenario is not None:
            world = msgspec.structs.replace(self._scenario, seed=seed)
        else:
            world = families.scenario(self.families[seed % len(self.families)], seed)
        if self._duration is not None:
            world = world.with_overrides(duration=self._duration)
        return world if self._change is None else self._change(world)

    def trace(self, scenario: Scenario) -> Trace:
        """The requests of one of this source's scenarios."""
        return generate(scenario, self._photo_sizes)

    def world(self, seed: int) -> Sim:
        """The simulation of world `seed`, at its beginning."""
        scenario = self.scenario(seed)
        return simulation(scenario, self.trace(scenario), self._options)
