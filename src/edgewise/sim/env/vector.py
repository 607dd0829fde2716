"""Many balancing environments, stepped by one compiled call.

Everything is as in `edgewise.sim.env.environment`, with one array per figure, and follows
Gymnasium's conventions for vector environments:

- ``info`` holds an array (N, …) per key and a mask ``_key`` beside it. ``info["credited"]`` is a
  dict of arrays (N, K), where K is the largest number of scores that became known in one
  environment; the rest is padded with zeros, and status 0 marks padding.
- ``metadata["autoreset_mode"]`` is that of the object: *same step* by default, *next step* or
  *disabled* on request. (Gymnasium's `NormalizeObservation` takes *next step* only,
  `FlattenObservation` the last two.) In the mode *same step* an environment whose episode ended
  returns the first observation and ``info`` of its next episode, with the reward and the truncation
  of the old one. The old one's last observation is in ``info["final_obs"]`` (an object array, None
  where the episode goes on) and its last ``info``, credited scores included, in
  ``info["final_info"]``.
- With ``copy=False`` everything returned is a view of a buffer that the next step overwrites, which
  saves copying some kB per decision.
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
from edgewise.sim.env.batched import RESET, SKIP, BatchedSims
from edgewise.sim.env.environment import (
    RENDER_MODES,
    WORLDS_TRIED,
    ObservationArrays,
    check_render_mode,
    observation_space,
    render_frame,
)
from edgewise.sim.source import WorldSource

Bools = NDArray[np.bool_]

KEYS = ("action_mask", "decision", "now", "waited", "refused", "world")
"""The keys of `info` besides ``credited``."""


class BalanceVectorEnv(gymnasium.vector.VectorEnv[ObservationArrays, Any, NDArray[Any]]):
    """N balancers, each in a world of its own.

    Copies (`copy.deepcopy`) and pickles are independent of the original.

    Parameters
    ----------
    num_envs:
        N.
    scenario, family, duration, observation, render_mode:
        As in `BalanceEnv`.
    plays:
        Episodes that an environment plays in one world before it gets another. Making a world costs
        about as much as playing it; playing it again brings the same arrivals, links and noise.
    threads:
        How many threads share the environments; the results do not depend on it.
    copy:
        Whether the arrays returned are the caller's to keep.
    autoreset_mode:
        An `AutoresetMode` or its value: ``"SameStep"``, ``"NextStep"`` or ``"Disabled"``. With the
        last, ``reset(options={"reset_mask": mask})`` begins new episodes where `mask`, bool (N,),
        is true, and a step while an episode is over raises ResetNeeded.
    """

    metadata = {  # noqa: RUF012 (as Gymnasium has it)
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": RENDER_MODES,
        "render_fps": 10,
    }

    def __init__(
        self,
        num_envs: int = 1,
        scenario: str | Path | Scenario | None = None,
        family: str | None = None,
        duration: float | None = None,
        observation: str = "table",
        *,
        plays: int = 1,
        threads: int = 1,
        copy: bool = True,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
    ) -> None:
        if num_envs < 1 or plays < 1:
            raise BadInput("num_envs and plays: expected at least 1")
        check_render_mode(render_mode)
        try:
            self._mode = AutoresetMode(autoreset_mode)
        except ValueError:
            known = ", ".join(mode.value for mode in AutoresetMode)
            raise BadInput(
                f"autoreset_mode: expected one of {known}, got {autoreset_mode!r}"
            ) from None
        self.metadata = {**type(self).metadata, "autoreset_mode": self._mode}
        self.render_mode = render_mode
        self._source = WorldSource(scenario, family, duration)
        self.num_envs = num_envs
        self.single_observation_space = observation_space(observation, self._source)
        self.single_action_space = spaces.Discrete(self._source.rows)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._lanes = BatchedSims.of(
            self._source, num_envs, observation=observation, threads=threads
        )
        self._plays, self._copy = plays, copy
        self._played = np.full(num_envs, plays, np.int64)
        self._worlds = np.full(num_envs, -1, np.int64)
        self._terminated = np.zeros(num_envs, np.bool_)
        self._truncated = np.zeros(num_envs, np.bool_)
        self._make_views()

    def _make_views(self) -> None:
        """Make the part of `info` that is the same dict of views in every step."""
        lanes, everywhere = self._lanes.lanes, np.ones(self.num_envs, np.bool_)
        self._ended = lanes["ended"]
        everywhere.flags.writeable = False
        views = (
            self._lanes.mask,
            lanes["decisions"],
            lanes["now"],
            lanes["waited"],
            lanes["refused"],
            self._worlds,
        )
        self._views: dict[str, Any] = dict(zip(KEYS, views, strict=True))
        self._views |= {f"_{name}": everywhere for name in KEYS}
        # The key is here from the start, since adding one to a copy would make the dict grow.
        self._views |= {"credited": None, "_credited": everywhere}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationArrays, dict[str, Any]]:
        super().reset(seed=seed)
        mask = (options or {}).get("reset_mask")
        if mask is None:
            mask = np.ones(self.num_envs, np.bool_)
            self._played[:] = self._plays
        elif getattr(mask, "dtype", None) != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask: expected bool ({self.num_envs},), got {mask!r}")
        elif not (mask | (self._worlds >= 0)).all():
            raise gymnasium.error.ResetNeeded("the first reset() must begin every environment")
        self._begin(mask)
        return self._lanes.observations(self._copy), self._info()

    def step(
        self, actions: Any
    ) -> tuple[ObservationArrays, NDArray[Any], Bools, Bools, dict[str, Any]]:
        lanes, copy = self._lanes, self._copy
        if self._worlds[0] < 0:
            raise gymnasium.error.ResetNeeded("no episode has begun: call reset()")
        if self._mode is AutoresetMode.SAME_STEP or not self._ended.any():
            over = lanes.step(actions, least=0)
        elif self._mode is AutoresetMode.NEXT_STEP:
            begun = self._ended != 0
            self._begin(begun)
            over = lanes.step(np.where(begun, SKIP, np.maximum(actions, 0)))
        else:
            raise gymnasium.error.ResetNeeded("an episode is over: reset() with a reset_mask")
        rewards, terminated, truncated = lanes.rewards, self._terminated, self._truncated
        terminated.fill(False)
        truncated[:] = self._ended
        if copy:
            rewards, terminated, truncated = rewards.copy(), terminated.copy(), truncated.copy()
        if over == 0 or self._mode is not AutoresetMode.SAME_STEP:
            return lanes.observations(copy), rewards, terminated, truncated, self._info()
        rewards = rewards.copy()  # beginning an episode clears its environment's reward
        final = self._final(truncated)
        self._begin(truncated)
        info = self._info()
        info.update(final)
        return lanes.observations(copy), rewards, terminated, truncated, info

    def render(self) -> tuple[Any, ...] | None:
        """A frame of every environment, as `BalanceEnv.render` makes it."""
        mode = self.render_mode
        if mode is None:
            return None
        if self._worlds[0] < 0:
            raise gymnasium.error.ResetNeeded("nothing to render: call reset() first")
        return tuple(
            render_frame(mode, sim, self._source.scenario(int(world)))
            for sim, world in zip(self._lanes.sims, self._worlds, strict=True)
            if sim is not None
        )

    def close_extras(self, **kwargs: Any) -> None:
        self._lanes.close()

    def _begin(self, which: Bools) -> None:
        """Begin new episodes where `which`, in order of the environments, so that the worlds drawn
        depend on the seed alone."""
        for _ in range(WORLDS_TRIED):
            for i in np.flatnonzero(which).tolist():
                self._put(i)
            self._lanes.step(np.where(which, RESET, SKIP))
            which = which & (self._ended != 0)
            self._played[which] = self._plays
            if not which.any():
                return
        raise BadInput(f"{WORLDS_TRIED} worlds, and not two requests in any of them")

    def _put(self, i: int) -> None:
        """Set environment `i` to the beginning of its world, or of a new one."""
        if self._played[i] < self._plays:
            self._lanes.restart(i)
        else:
            seeds = self._source.seeds
            self._worlds[i] = self.np_random.integers(seeds.start, seeds.stop)
            world = self._source.world(int(self._worlds[i]))
            self._lanes.put(i, world, replayable=self._plays > 1)
            self._played[i] = 0
        self._played[i] += 1

    def _info(self) -> dict[str, Any]:
        info = self._views.copy()
        info["credited"] = self._lanes.credits(self._copy)
        if self._copy:
            info.update((name, info[name].copy()) for name in KEYS)
        return info

    def _final(self, ended: Bools) -> dict[str, Any]:
        """The last observation and `info` of the environments whose episode has just ended."""
        observations = np.full(self.num_envs, None, object)
        for i in np.flatnonzero(ended).tolist():
            observations[i] = self._lanes.observation(i)
        info: dict[str, Any] = {name: self._views[name].copy() for name in KEYS}
        info["credited"] = self._lanes.credits(copy=True)
        for array in [*(info[name] for name in KEYS), *info["credited"].values()]:
            array[~ended] = 0
        info |= {f"_{name}": ended.copy() for name in (*KEYS, "credited")}
        return {
            "final_obs": observations,
            "_final_obs": ended.copy(),
            "final_info": info,
            "_final_info": ended.copy(),
        }

    # -- copies: views of a copy must be of its own arrays ----------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        views = ("_views", "_ended")
        return {name: value for name, value in self.__dict__.items() if name not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_views()
