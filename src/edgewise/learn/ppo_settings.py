"""Settings of PPO, apart from the algorithm so that they can be read without torch."""

from __future__ import annotations

from msgspec import Struct


class PpoSettings(Struct, frozen=True, kw_only=True):
    """Settings of `ppo.Ppo`."""

    seed: int = 1
    worlds: int = 16
    """Fresh training worlds per iteration."""
    plays: int = 4
    """Plays of each world, at least 2 for a baseline. More plays make the baseline better but see
    fewer worlds."""
    temperature: float = 0.01
    """[utility] Rows are drawn from softmax(score / temperature). Exploring so costs the heuristic
    0.3 ± 0.3 % of its score on 64 validation worlds; at 0.05 it costs 2 %."""
    tau: float = 2.0
    """[s] Time constant of the discount. In the trials, a decision's effect on others was over
    within the time of two queues."""
    tau_lambda: float = 1.0
    """[s] Time constant of the advantages: longer trusts the rewards, which are noisy; shorter
    trusts the critic, which is wrong."""
    epochs: int = 3
    batch: int = 4096
    """Decisions per step of Adam."""
    rate: float = 0.02
    """Adam's learning rate, in units of `actor_critic.SCALES`; it falls to a tenth along the
    run."""
    value_rate: float = 2e-3
    """The same for the critic."""
    clip: float = 0.2
    stop: float = 0.02
    """KL divergence from the policy that played, above which no further epoch begins."""
    network: bool = False
    """Learn the small network too, not only the linear heads. An update then takes three times the
    work, and it was not tried for long enough to say whether it helps."""
