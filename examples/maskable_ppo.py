"""Stable-Baselines3's MaskablePPO learns to balance.

    pip install '.[train,sb3]'   # in a clone
    python examples/maskable_ppo.py [SCENARIO | --family medium] [--steps 50000] [--envs 8]

Trains in worlds of one scenario or family. Then it compares, in worlds it has not seen, the mean
score per decision with that of drawing an admissible row at random.

It shows that an ordinary library trains in this environment, and no more than that, for two
reasons. It credits a score to the decision that was last when the score became known, because that
is the reward of a step (`info["credited"]` names the right decision, but Stable-Baselines3 does not
read it). And it discounts by decision, not by time. `edgewise.learn.ppo` does both.
"""

from __future__ import annotations

import argparse
import time

import gymnasium
import numpy as np
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import DummyVecEnv


def make(scenario: str | None, family: str | None) -> gymnasium.Env:
    """One environment. Context and rows are of the order of 1, so nothing is normalised."""
    return gymnasium.make("edgewise.gym:edgewise/Balance-v0", scenario=scenario, family=family)


def score(env: gymnasium.Env, model: MaskablePPO | None, worlds: range) -> float:
    """Mean score per decision over worlds; `model` None draws admissible rows."""
    rng = np.random.default_rng(0)
    total, decisions = 0.0, 0
    for world in worlds:
        seen, info = env.reset(options={"world": world})
        over = False
        while not over:
            mask: NDArray[np.int8] = info["action_mask"]
            if model is None:
                row = rng.choice(np.flatnonzero(mask))
            else:
                row = model.predict(seen, action_masks=mask, deterministic=True)[0]
            seen, reward, _, over, info = env.step(row)
            total += float(reward)
        decisions += info["decision"]
    return total / decisions


def train(
    scenario: str | None, family: str | None, steps: int, envs: int, seed: int = 0
) -> tuple[MaskablePPO, float]:
    """The trained model and steps/s."""
    pool = DummyVecEnv([lambda: make(scenario, family) for _ in range(envs)])
    rollout = min(256, max(1, steps // envs))
    model = MaskablePPO(
        "MlpPolicy",
        pool,
        n_steps=rollout,
        batch_size=min(512, rollout * envs),
        n_epochs=4,
        gamma=0.98,
        ent_coef=0.01,
        seed=seed,
        device="cpu",
    )
    start = time.perf_counter()
    model.learn(steps)
    speed = model.num_timesteps / (time.perf_counter() - start)
    pool.close()
    return model, speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario", nargs="?")
    parser.add_argument("--family")
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--worlds", type=int, default=3, help="of the comparison")
    given = parser.parse_args()
    if given.scenario is None and given.family is None:
        given.family = "medium"
    model, speed = train(given.scenario, given.family, given.steps, given.envs)
    env = make(given.scenario, given.family)
    worlds = range(1_000_000, 1_000_000 + given.worlds)
    print(f"trained at {speed:,.0f} steps/s")
    print(f"random      {score(env, None, worlds):.3f} per decision")
    print(f"MaskablePPO {score(env, model, worlds):.3f}")
    env.close()


if __name__ == "__main__":
    main()
