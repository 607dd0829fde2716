"""Many of the same environment, stepped by one compiled call.

As `edgewise.sim.env.environment`, with an array per figure. What differs:

- Autoreset is *same step* (``metadata["autoreset_mode"]``): where ``truncations`` is true the
  observation, mask and number of decision are those of the next episode already, while reward and
  ``info["credited"]`` are the old one's; its last observation is in ``info["final_obs"]`` and its
  mask, sum of scores and number of decisions in ``info["final_info"]`` (object arrays, None where
  the episode goes on).
- ``info["credited"]`` is a dict of three arrays over all environments: ``env``, ``decision`` and
  ``reward``.
- With ``copy=False`` whatever is returned is a view of a buffer that the next step overwrites; so
  one saves a copy of some kB per decision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from edgewise.errors import BadInput
from edgewise.scenario import Scenario
from edgewise.sim import engine
from edgewise.sim.env.batched import RESET, SKIP, BatchedSims
from edgewise.sim.env.environment import Observed, observation_space
from edgewise.sim.source import WorldSource

Bools = NDArray[np.bool_]

VIEWS = ("action_mask", "decision", "now", "waited", "world")
"""Of what `info` tells, what lanes keep an array of."""


class BalanceVectorEnv(gymnasium.vector.VectorEnv[Observed, Any, NDArray[Any]]):
    """N balancers in worlds of their own.

    Parameters
    ----------
    num_envs:
        N.
    scenario, family, duration, observation:
        As of `BalanceEnv`.
    plays:
        Episodes that an environment plays in one world before it gets another. Making a world
        costs about as much as playing it; the same world again meets the same arrivals, links and
        luck.
    threads:
        That share the environments; the results do not depend on it.
    copy:
        Whether what is returned is the caller's to keep.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | Path | Scenario | None = None,
        family: str | None = None,
        duration: float | None = None,
        observation: str = "flat",
        plays: int = 1,
        threads: int = 1,
        copy: bool = True,
    ) -> None:
        if num_envs < 1 or plays < 1:
            raise BadInput("num_envs and plays: expected at least 1")
        self._supply = WorldSource(scenario, family, duration)
        self.num_envs = num_envs
        self.single_observation_space = observation_space(observation, self._supply)
        self.single_action_space = spaces.Discrete(self._supply.rows)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._lanes = BatchedSims.of(
            self._supply, num_envs, wide=observation == "flat", threads=threads
        )
        self._plays, self._copy = plays, copy
        self._worlds = np.zeros(num_envs, np.int64)
        told = self._lanes.lanes
        views = self._lanes.mask, told["decisions"], told["now"], told["waited"], self._worlds
        self._told: dict[str, Any] = {
            **dict(zip(VIEWS, views, strict=True)),
            "credited": None,  # room for it: a dict of five is made larger for a sixth
        }
        self._never = np.zeros(num_envs, np.bool_)
        self._played = np.zeros(num_envs, np.int64)
        self._again: list[engine.BranchCopier | None] = [None] * num_envs

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        super().reset(seed=seed)
        self._played[:] = self._plays
        self._begin(np.ones(self.num_envs, np.bool_))
        return self._lanes.observations(self._copy), self._info(self._lanes.credits(self._copy))

    def step(self, actions: Any) -> tuple[Observed, NDArray[Any], Bools, Bools, dict[str, Any]]:
        lanes, copy = self._lanes, self._copy
        over = lanes.step(actions, least=0)
        if over == 0 and not copy:
            info = self._told.copy()
            info["credited"] = lanes.credits(copy)
            return lanes.observations(copy), lanes.rewards, self._never, self._never, info
        rewards, credited = lanes.rewards.copy(), lanes.credits()
        ended = lanes.lanes["ended"] != 0
        final: dict[str, Any] = {}
        if over > 0:
            final = self._final(ended)
            self._begin(ended)
        info = self._info(credited)
        info.update(final)
        return lanes.observations(copy), rewards, self._never.copy(), ended, info

    def close_extras(self, **kwargs: Any) -> None:
        self._lanes.close()

    def _begin(self, which: Bools) -> None:
        """New episodes where `which`. In order of the environments, so the draws are too."""
        rows = np.full(self.num_envs, SKIP, np.int64)
        for _ in range(100):
            for i in np.flatnonzero(which).tolist():
                self._put(i)
            rows[:] = np.where(which, RESET, SKIP)
            self._lanes.step(rows)
            # A world in which nothing arrives has nothing to decide: the next one.
            which = which & (self._lanes.lanes["ended"] != 0)
            self._played[which] = self._plays
            if not which.any():
                return
        raise BadInput("a hundred worlds, and not two requests in any of them")

    def _put(self, i: int) -> None:
        again = self._again[i]
        if self._played[i] >= self._plays or again is None:
            seeds = self._supply.seeds
            self._worlds[i] = self.np_random.integers(seeds.start, seeds.stop)
            start = self._supply.world(int(self._worlds[i]))
            self._played[i] = 0
            sim = self._lanes.put(i, start)
            self._again[i] = engine.BranchCopier(sim, start) if self._plays > 1 else None
        else:
            again()
            self._lanes.put(i, again.target)
        self._played[i] += 1

    def _info(self, credited: dict[str, NDArray[Any]]) -> dict[str, Any]:
        info = self._told | {"credited": credited}
        if self._copy:
            info.update((name, info[name].copy()) for name in VIEWS)
        return info

    def _final(self, ended: Bools) -> dict[str, Any]:
        seen = np.full(self.num_envs, None, object)
        told = np.full(self.num_envs, None, object)
        for i in np.flatnonzero(ended).tolist():
            lane = self._lanes.lanes[i]
            seen[i] = self._lanes.observation(i)
            told[i] = {
                "action_mask": self._lanes.mask[i].copy(),
                "decisions": int(lane["decisions"]),
                "total": float(lane["total"]),
                "waited": float(lane["waited"]),
                "refused": int(lane["refused"]),
                "world": int(self._worlds[i]),
            }
        return {"final_obs": seen, "_final_obs": ended, "final_info": told, "_final_info": ended}
