"""Three reinforcement-learning libraries run in the environments, each in a short function.

    python examples/rl_libraries.py sb3|rllib|torchrl [--scenario three-sites] [--steps 512]

- ``sb3``: PPO of Stable-Baselines3, on a vector. `examples/maskable_ppo.py` masks actions.
- ``rllib``: PPO of Ray RLlib, on a vector (its models take no two-dimensional Box).
- ``torchrl``: a rollout of TorchRL with masked random actions, on the table.

They show that the environments work with these libraries, and no more: a few hundred steps teach
nothing, the first two do not mask actions, and all credit a score to the decision at which it
became known. docs/environment.md says which versions this was run with. They are in no extra:

    pip install 'torch==2.13.0' gymnasium stable-baselines3 'ray[rllib]==2.60.0' torchrl
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib import metadata

import gymnasium

TABLE, FLAT = "edgewise.gym:edgewise/Balance-v0", "edgewise.gym:edgewise/BalanceFlat-v0"
SECONDS = 5.0
"""Length of an episode's trace: short, so that some end within a few hundred steps."""


def sb3(scenario: str, steps: int) -> str:
    """PPO of Stable-Baselines3; masked rows that it chooses are shed."""
    from stable_baselines3 import PPO

    env = gymnasium.make(FLAT, scenario=scenario, duration=SECONDS)
    rollout = min(256, steps)
    model = PPO("MlpPolicy", env, n_steps=rollout, batch_size=rollout // 4, device="cpu", seed=0)
    model.learn(steps)
    rewards = [episode["r"] for episode in model.ep_info_buffer or ()]
    env.close()
    return f"{model.num_timesteps} steps, rewards of episodes {rewards}"


def rllib(scenario: str, steps: int) -> str:
    """PPO of Ray RLlib, sampling and learning in this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune.registry import register_env

    def make(settings: dict[str, str]) -> gymnasium.Env:
        return gymnasium.make(FLAT, scenario=settings["scenario"], duration=SECONDS)

    register_env("balance", make)
    ray.init(include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    config = (
        PPOConfig()
        .environment("balance", env_config={"scenario": scenario})
        .env_runners(num_env_runners=0)
        .training(train_batch_size_per_learner=steps, minibatch_size=128, num_epochs=2)
    )
    algorithm = config.build_algo()
    result = algorithm.train()
    algorithm.stop()
    ray.shutdown()
    sampled = result["env_runners"]
    return (
        f"{sampled['num_env_steps_sampled_lifetime']:.0f} steps, "
        f"mean reward of an episode {sampled.get('episode_return_mean', float('nan')):.1f}"
    )


def torchrl(scenario: str, steps: int) -> str:
    """A rollout of TorchRL; its policy draws rows that may be chosen."""
    from torchrl.envs import GymWrapper, TransformedEnv
    from torchrl.envs.transforms import ActionMask

    env = gymnasium.make(TABLE, scenario=scenario, duration=SECONDS, observation="parts")
    wrapped = TransformedEnv(
        GymWrapper(env, categorical_action_encoding=True),
        ActionMask(mask_key="action_mask"),
    )
    wrapped.set_seed(0)
    played = wrapped.rollout(steps, break_when_any_done=False)
    reward = float(played["next", "reward"].sum())
    episodes = int(played["next", "done"].sum())
    env.close()
    return f"{played.numel()} steps, {episodes} episodes ended, sum of rewards {reward:.1f}"


LIBRARIES: dict[str, tuple[str, Callable[[str, int], str]]] = {
    "sb3": ("stable-baselines3", sb3),
    "rllib": ("ray", rllib),
    "torchrl": ("torchrl", torchrl),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("--scenario", default="three-sites")
    parser.add_argument("--steps", type=int, default=512)
    chosen = parser.parse_args()
    package, run = LIBRARIES[chosen.library]
    start = time.perf_counter()
    report = run(chosen.scenario, chosen.steps)
    seconds = time.perf_counter() - start
    print(f"{package} {metadata.version(package)}: {report}, in {seconds:.1f} s")


if __name__ == "__main__":
    main()
