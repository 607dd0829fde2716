"""The load balancer as a Gymnasium environment. Importing this module registers it::

    import edgewise.sim.env
    env = gymnasium.make("edgewise/Balance-v0", scenario="three-sites")
    envs = gymnasium.make_vec("edgewise/Balance-v0", num_envs=64, family="train")

or, without the import, ``gymnasium.make("edgewise.sim.env.environment:edgewise/Balance-v0", …)``.

A step is one decision. The *observation* is the candidate table of the request that waits
(`edgewise.sim.env.observation`), the *action* a row of it, the last of which sheds. Rows that are
not
admissible are masked: ``action_masks()``, as MaskablePPO wants it, or ``info["action_mask"]``. One
that is taken all the same sheds, and is counted in ``info["refused"]``.

The *reward* of a step is the sum of the scores that became known to the balancer since the decision
before: a score comes a queue and a transfer after its decision. ``info["credited"]`` says whose
they are, as two arrays: the decision's number in this episode and its score. Decisions are numbered
from 0 in the order of steps. Over an episode every decision is credited once, the rewards add up to
the scores, and a learner that knows what it does credits each score to its own decision.

``info["waited"]`` is the s between this decision and the one before: for a discount by time.

An episode is a trace and ends where no more requests arrive. The fleet does not end there, so the
end is a *truncation*, never a termination: the observation returned with it is of a request that
waits and that is not yours to decide, good for bootstrapping a value. The scores of all that is
still under way are in that step's reward.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.errors import BadInput, MissingExtra
from edgewise.scenario import Scenario
from edgewise.sim.env.batched import RESET, BatchedSims
from edgewise.sim.env.observation import CONTEXT, ROW, SERVER, TOP, WIDTH
from edgewise.sim.source import WorldSource

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:
    raise MissingExtra("train", "gymnasium") from error

Observed = Any
"""float32 (R, WIDTH), or a dict of arrays: see `observation_space`."""

SHAPES = ("flat", "parts")


def observation_space(observation: str, supply: WorldSource) -> spaces.Space[Any]:
    """Of one environment. Raises BadInput for a shape that is not known.

    *flat*: Box float32 (R, WIDTH). *parts*: Dict of ``rows`` (R, len(ROW)), ``server`` int32 (R,):
    the server of each row, −1 if masked; ``servers`` (S, len(SERVER)), ``context`` (len(CONTEXT),)
    and ``action_mask`` int8 (R,).
    """
    rows, servers = supply.rows, supply.servers
    if observation == "flat":
        return spaces.Box(0.0, TOP, (rows, WIDTH), np.float32)
    if observation == "parts":
        return spaces.Dict(
            rows=spaces.Box(0.0, TOP, (rows, len(ROW)), np.float32),
            server=spaces.Box(-1, servers - 1, (rows,), np.int32),
            servers=spaces.Box(0.0, TOP, (servers, len(SERVER)), np.float32),
            context=spaces.Box(0.0, TOP, (len(CONTEXT),), np.float32),
            action_mask=spaces.Box(0, 1, (rows,), np.int8),
        )
    raise BadInput(f"observation: expected one of {', '.join(SHAPES)}, got {observation!r}")


class BalanceEnv(gymnasium.Env[Observed, np.int64]):
    """One balancer's decisions, one at a time.

    Parameters
    ----------
    scenario, family, duration:
        The world: see `edgewise.sim.source.WorldSource`. Every episode has another seed.
    observation:
        ``"flat"`` or ``"parts"``: see `observation_space`.
    render_mode:
        None; there is nothing to render.

    ``reset(options={"world": n})`` plays world `n`; else its number is drawn from the environment's
    own generator, and for a family only from the training seeds.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(
        self,
        scenario: str | Path | Scenario | None = None,
        family: str | None = None,
        duration: float | None = None,
        observation: str = "flat",
        render_mode: str | None = None,
    ) -> None:
        self._supply = WorldSource(scenario, family, duration)
        self.observation_space = observation_space(observation, self._supply)
        self.action_space = spaces.Discrete(self._supply.rows)
        self.render_mode = render_mode
        self._lanes = BatchedSims.of(self._supply, 1, wide=observation == "flat")
        self._rows = np.zeros(1, np.int64)
        self._world = -1
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observed, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = (options or {}).get("world")
        seeds = self._supply.seeds
        # A world in which nothing arrives has nothing to decide: the next one.
        for attempt in range(100):
            drawn = int(self.np_random.integers(seeds.start, seeds.stop))
            self._world = drawn if chosen is None else int(chosen) + attempt
            self._lanes.put(0, self._supply.world(self._world))
            self._rows[0] = RESET
            self._lanes.step(self._rows)
            if self._lanes.lanes[0]["ended"] == 0:
                self._over = False
                return self._lanes.observation(0), self._info()
        raise BadInput("a hundred worlds, and not two requests in any of them")

    def step(self, action: np.int64) -> tuple[Observed, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise gymnasium.error.ResetNeeded("the episode is over")
        self._rows[0] = max(0, int(action))
        self._lanes.step(self._rows)
        self._over = bool(self._lanes.lanes[0]["ended"])
        reward = float(self._lanes.rewards[0])
        return self._lanes.observation(0), reward, False, self._over, self._info()

    def action_masks(self) -> NDArray[np.bool_]:
        """(R,): rows that may be taken now; the name that sb3-contrib's MaskablePPO asks for."""
        found: NDArray[np.bool_] = self._lanes.mask[0].astype(np.bool_)
        return found

    def close(self) -> None:
        self._lanes.close()

    def _info(self) -> dict[str, Any]:
        lane = self._lanes.lanes[0]
        credited = self._lanes.credits()
        return {
            "action_mask": self._lanes.mask[0].copy(),
            "credited": (credited["decision"], credited["reward"]),
            "decision": int(lane["decisions"]),
            "now": float(lane["now"]),
            "waited": float(lane["waited"]),
            "refused": int(lane["refused"]),
            "world": self._world,
        }


gymnasium.register(
    id="edgewise/Balance-v0",
    entry_point="edgewise.sim.env.environment:BalanceEnv",
    vector_entry_point="edgewise.sim.env.vector:BalanceVectorEnv",
)
