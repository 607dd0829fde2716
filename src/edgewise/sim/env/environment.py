"""The load balancer as a Gymnasium environment.

A step is one decision. The *observation* is the candidate table of the request that waits
(`edgewise.sim.env.observation`); the *action* is a row of that table, and the last row sheds the
request. Rows that may not be chosen are masked: `BalanceEnv.action_masks` returns the mask as
sb3-contrib's MaskablePPO asks for it, and ``info["action_mask"]`` holds it too. Choosing a masked
row sheds the request, and ``info["refused"]`` counts that.

The *reward* of a step is the sum of the scores that became known to the balancer since the previous
decision: the score of a decision arrives a queue and a transfer later. ``info["credited"]`` says
which decisions the scores belong to, with the latency, accuracy, server and status of each request,
so a wrapper can compute a reward of its own. Decisions are numbered from 0 in each episode. Every
decision is credited exactly once, and the rewards of an episode add up to its scores.

An episode is a trace, and ends where no more requests arrive. The fleet does not end there, so the
end is a *truncation*, never a termination: the observation returned with it is of a request that
still waits and that nobody will ask about, good for bootstrapping a value. That step's reward
includes the scores of everything still under way.

``info`` also holds ``decision``, the number of the waiting decision; ``now``, its time in s;
``waited``, the s since the previous decision (for a discount by time); and ``world``, the number
of the world.

`edgewise.gym` registers the environments with Gymnasium.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.domain import Status
from edgewise.errors import BadInput, MissingExtra
from edgewise.scenario import Scenario
from edgewise.sim.env import render
from edgewise.sim.env.batched import RESET, BatchedSims
from edgewise.sim.env.observation import CONTEXT, ROW, SERVER, TOP, WIDTH
from edgewise.sim.layout import STATUSES, Sim
from edgewise.sim.source import WorldSource

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:
    raise MissingExtra("train", "gymnasium") from error

ObservationArrays = Any
"""One float32 array, or a dict of arrays: see `observation_space`."""

OBSERVATIONS = ("table", "flat", "parts")
RENDER_MODES = ["ansi", "rgb_array"]
WORLDS_TRIED = 100
"""A world in which fewer than two requests arrive has nothing to decide, and the next is tried."""


class Credit(NamedTuple):
    """How one request ended, credited to the decision that was made about it."""

    decision: int
    """Number of the decision in this episode, from 0."""
    reward: float
    """Its score, in [0, 1]."""
    latency: float
    """s from sending to the last byte at the client; infinite unless served."""
    accuracy: float
    """Of the service that answered, for the payload form it got; 0 unless served."""
    server: int
    """That answered, as an index into the scenario's servers; −1 unless served."""
    status: Status
    """How the request ended."""


def observation_space(observation: str, source: WorldSource) -> spaces.Space[Any]:
    """The space of one environment's observations. Raises BadInput for an unknown name.

    - ``"table"``: Box float32 (R, WIDTH), one row per candidate;
    - ``"flat"``: Box float32 (R × WIDTH,), the same in one dimension;
    - ``"parts"``: Dict of ``rows`` (R, len(ROW)), ``server`` int32 (R,) with the server of each row
      (−1 if masked), ``servers`` (S, len(SERVER)), ``context`` (len(CONTEXT),) and ``action_mask``
      int8 (R,).
    """
    rows, servers = source.rows, source.servers
    if observation == "table":
        return spaces.Box(0.0, TOP, (rows, WIDTH), np.float32)
    if observation == "flat":
        return spaces.Box(0.0, TOP, (rows * WIDTH,), np.float32)
    if observation == "parts":
        return spaces.Dict(
            rows=spaces.Box(0.0, TOP, (rows, len(ROW)), np.float32),
            server=spaces.Box(-1, servers - 1, (rows,), np.int32),
            servers=spaces.Box(0.0, TOP, (servers, len(SERVER)), np.float32),
            context=spaces.Box(0.0, TOP, (len(CONTEXT),), np.float32),
            action_mask=spaces.Box(0, 1, (rows,), np.int8),
        )
    raise BadInput(f"observation: expected one of {', '.join(OBSERVATIONS)}, got {observation!r}")


def check_render_mode(mode: str | None) -> None:
    """Raises BadInput unless `mode` is None or one of `RENDER_MODES`."""
    if mode is not None and mode not in RENDER_MODES:
        raise BadInput(f"render_mode: expected one of {', '.join(RENDER_MODES)}, got {mode!r}")


def render_frame(mode: str, sim: Sim, scenario: Scenario) -> Any:
    """One simulation in a render mode: text, or uint8 (height, width, 3)."""
    draw = render.ansi if mode == "ansi" else render.rgb_array
    return draw(sim, scenario)


class BalanceEnv(gymnasium.Env[ObservationArrays, np.int64]):
    """One balancer's decisions, one at a time.

    Copies (`copy.deepcopy`) and pickles are independent of the original.

    Parameters
    ----------
    scenario, family, duration:
        Where the worlds come from: see `edgewise.sim.source.WorldSource`. Every episode has another
        seed.
    observation:
        ``"table"``, ``"flat"`` or ``"parts"``: see `observation_space`.
    render_mode:
        ``"ansi"`` for text, ``"rgb_array"`` for a picture (needs pillow), None for neither.

    ``reset(options={"world": n})`` plays world `n`. Otherwise the world's number is drawn from the
    environment's own generator; for a family it is one of the training seeds.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 10}  # noqa: RUF012 (as Gymnasium has it)

    def __init__(
        self,
        scenario: str | Path | Scenario | None = None,
        family: str | None = None,
        duration: float | None = None,
        observation: str = "table",
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode)
        self._source = WorldSource(scenario, family, duration)
        self.observation_space = observation_space(observation, self._source)
        self.action_space = spaces.Discrete(self._source.rows)
        self.render_mode = render_mode
        self._lanes = BatchedSims.of(self._source, 1, observation=observation)
        self._rows = np.zeros(1, np.int64)
        self._world = -1
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObservationArrays, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = (options or {}).get("world")
        seeds = self._source.seeds
        for attempt in range(WORLDS_TRIED):
            drawn = int(self.np_random.integers(seeds.start, seeds.stop))
            self._world = drawn if chosen is None else int(chosen) + attempt
            self._lanes.put(0, self._source.world(self._world))
            self._rows[0] = RESET
            self._lanes.step(self._rows)
            if self._lanes.lanes[0]["ended"] == 0:
                self._over = False
                return self._lanes.observation(0), self._info()
        raise BadInput(f"{WORLDS_TRIED} worlds, and not two requests in any of them")

    def step(self, action: np.int64) -> tuple[ObservationArrays, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise gymnasium.error.ResetNeeded("the episode is over, or has not begun: call reset()")
        self._rows[0] = max(0, int(action))
        self._lanes.step(self._rows)
        self._over = bool(self._lanes.lanes[0]["ended"])
        reward = float(self._lanes.rewards[0])
        return self._lanes.observation(0), reward, False, self._over, self._info()

    def action_masks(self) -> NDArray[np.bool_]:
        """(R,): the rows that may be chosen now. sb3-contrib's MaskablePPO asks for this name."""
        mask: NDArray[np.bool_] = self._lanes.mask[0].astype(np.bool_)
        return mask

    def render(self) -> Any:
        """The fleet and the waiting request: text, or uint8 (height, width, 3).

        Raises ResetNeeded before the first `reset`, MissingExtra if a picture needs pillow.
        """
        if self.render_mode is None:
            return None
        if self._world < 0:
            raise gymnasium.error.ResetNeeded("nothing to render: call reset() first")
        sim = self._lanes.sims[0]
        assert sim is not None
        return render_frame(self.render_mode, sim, self._source.scenario(self._world))

    def close(self) -> None:
        self._lanes.close()

    def _info(self) -> dict[str, Any]:
        lane = self._lanes.lanes[0]
        return {
            "action_mask": self._lanes.mask[0].copy(),
            "credited": tuple(
                Credit(decision, reward, latency, accuracy, server, Status(STATUSES[status]))
                for decision, reward, latency, accuracy, server, status in self._lanes.credits_of(0)
            ),
            "decision": int(lane["decisions"]),
            "now": float(lane["now"]),
            "waited": float(lane["waited"]),
            "refused": int(lane["refused"]),
            "world": self._world,
        }
