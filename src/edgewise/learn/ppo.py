"""Proximal policy optimisation of the learned policy, from top to bottom in one file.

Schulman et al., Proximal policy optimization algorithms, 2017, with these additions:

- *The policy* is the live one (`edgewise.policies.learned`), row by row the same function of its
  parameters: the calibrated heuristic with learned factors, permutation-equivariant, with pooled
  context. It starts as exactly the heuristic. Its own compiled kernel plays the episodes, with rows
  drawn from softmax(score / temperature). `edgewise.learn.actor_critic` computes the same
  probabilities again in torch, for the gradient.
- *Credit by decision*: a decision's reward is the score of its own request, whenever that was
  known.
- *Discount by time*: τ = 2 s, see `edgewise.learn.gae`.
- *Same-world baselines*: every world is played K times with the same arrivals, links and noise. The
  mean reward of the same request in the other plays is subtracted from its reward (leave-one-out,
  so the gradient stays unbiased: Kool et al., Buy 4 REINFORCE samples, 2019; Mao et al., Variance
  reduction for RL in input-driven environments, 2019). The critic then learns how much better than
  the others' a state is, not how busy the world will be.
- *Truncation*: a trace ends, the fleet does not. The last decision of a trace is not learned from;
  the critic's value of it stands for everything that would have come after.
- *Large batches of whole episodes*: some 100,000 decisions, ragged (only admissible rows count), a
  few epochs in minibatches of thousands.
- *Threads*: torch runs on one thread in each of ours, because its own threads wait for each other
  by spinning: on a busy machine they took twenty times longer than one. A minibatch is always cut
  into `SHARDS`, whose gradients are added in order, so the result does not depend on the number of
  threads.

One flat vector `x` is optimised; params = start + SCALES · x, so that one step of Adam means about
the same everywhere. All randomness derives from the seed and the number of the iteration.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.errors import BadInput, MissingExtra
from edgewise.learn.actor_critic import Batch, Learner
from edgewise.learn.gae import by_time, gae
from edgewise.learn.ppo_settings import PpoSettings
from edgewise.learn.rollout import Rollout, joined, rollout
from edgewise.learn.search import Arrays, Step, fingerprint
from edgewise.policies import learned
from edgewise.sim import engine
from edgewise.sim.build import simulation
from edgewise.sim.source import WorldSource
from edgewise.worlds import families

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra("train", "torch") from error

Floats = NDArray[np.float64]

SHARDS = 2
"""Parts of a minibatch: as many as the smallest machine has cores."""


class Ppo:
    """The search, as a `search.Algorithm`. Its steps are iterations.

    Parameters
    ----------
    source:
        The worlds to train in.
    start:
        Parameters of the learned policy to begin from.
    threads:
        Episodes played, or shards learned from, at a time; the result does not depend on it.
    """

    def __init__(
        self, source: WorldSource, start: Floats, settings: PpoSettings, threads: int = 2
    ) -> None:
        self._source, self._settings, self._threads = source, settings, threads
        torch.manual_seed(settings.seed)
        self._learner = Learner(start, settings)
        self._optimiser = torch.optim.Adam(
            [
                {"params": [self._learner.x], "lr": settings.rate, "betas": (0.9, 0.98)},
                {"params": self._learner.critic.parameters(), "lr": settings.value_rate},
            ]
        )
        self._iteration = 0
        self.fingerprint = fingerprint("ppo", source, settings, start)

    def step(self, used: float) -> Step:
        """Play some worlds and learn from them."""
        settings, n = self._settings, self._iteration
        rates = (settings.rate, settings.value_rate)
        for group, rate in zip(self._optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * (1.0 - 0.9 * used)
        seeds = families.training_seeds(settings.seed, n * settings.worlds, settings.worlds)
        began = time.monotonic()
        with _torch_on_one_thread(), ThreadPoolExecutor(self._threads) as pool:
            plays = play(self._source, seeds, self._learner.params(), settings, n, pool)
            played = time.monotonic()
            stats = update(self._learner, self._optimiser, plays, settings, n, pool)
        self._iteration += 1
        return Step(
            decisions=stats.decisions,
            figures={
                "playing": (played - began) / (time.monotonic() - began),  # share of the time
                "utility": stats.utility,
                "kl": stats.kl,
                "explained": stats.explained,
            },
        )

    def params(self) -> Floats:
        """The policy's parameters as they are now, set to take the best row; no limits yet."""
        params = self._learner.params()
        learned.named(params).options.temperature = 0.0
        return params

    def state(self) -> dict[str, NDArray[Any]]:
        """Policy and critic, the scale of returns, and Adam's moments and step of each."""
        own = self._learner.state_dict()
        arrays = {f"learner.{name}": tensor.numpy() for name, tensor in own.items()}
        arrays["value_scale"] = np.array([self._learner.value_scale])
        for n, moments in self._optimiser.state_dict()["state"].items():
            for name, tensor in moments.items():
                arrays[f"adam.{n}.{name}"] = tensor.numpy()
        return arrays

    def restore(self, steps: int, state: Arrays) -> None:
        """Go on from a checkpoint. Raises BadInput if it is of another policy."""
        own = self._learner.state_dict()
        try:
            self._learner.load_state_dict({name: _tensor(state[f"learner.{name}"]) for name in own})
        except (KeyError, RuntimeError) as error:
            raise BadInput(f"a checkpoint of another policy: {error}") from None
        self._learner.value_scale = float(state["value_scale"][0])
        whole = self._optimiser.state_dict()
        for name, array in state.items():
            if name.startswith("adam."):
                _, n, moment = name.split(".")
                value = _tensor(array)
                whole["state"].setdefault(int(n), {})[moment] = (
                    value[0] if moment == "step" else value
                )
        self._optimiser.load_state_dict(whole)
        self._iteration = steps


@contextmanager
def _torch_on_one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))  # a copy that may be written to


def play(
    source: WorldSource,
    seeds: Sequence[int],
    params: Floats,
    settings: PpoSettings,
    iteration: int,
    pool: ThreadPoolExecutor,
) -> list[list[Rollout]]:
    """Play every world `settings.plays` times; returns [world][play]."""
    scenarios = [source.scenario(seed) for seed in seeds]
    starts = [simulation(scenario, source.trace(scenario)) for scenario in scenarios]
    jobs = [w for w in range(len(starts)) for _ in range(settings.plays)]
    draws = np.random.SeedSequence([settings.seed, iteration, 8]).generate_state(len(jobs))

    def play_once(w: int, seed: int) -> Rollout:
        return rollout(engine.branch(starts[w]), params, seed)

    played = list(pool.map(play_once, jobs, draws.tolist()))
    return [played[w : w + settings.plays] for w in range(0, len(played), settings.plays)]


def against_the_others(plays: Sequence[Rollout]) -> list[Floats]:
    """Rewards of each play minus the same request's mean reward in the other plays.

    A request that no other play decided has no baseline and counts 0.
    """
    if len(plays) == 1:
        return [plays[0].rewards]
    size = 1 + max(int(one.decisions["request"].max(initial=0)) for one in plays)
    total, count = np.zeros(size), np.zeros(size)
    for one in plays:
        total[one.decisions["request"]] += one.rewards
        count[one.decisions["request"]] += 1.0
    compared = []
    for one in plays:
        request = one.decisions["request"]
        others = count[request] - 1.0
        baseline = (total[request] - one.rewards) / np.maximum(others, 1.0)
        compared.append(np.where(others > 0.0, one.rewards - baseline, 0.0))
    return compared


def advantages(played: Rollout, rewards: Floats, values: Floats, settings: PpoSettings) -> Floats:
    """Advantages of an episode's decisions except the last, whose value stands for the rest."""
    waits = np.diff(played.decisions["time"])
    return gae(
        rewards[:-1], values, by_time(waits, settings.tau), by_time(waits, settings.tau_lambda)
    )


def minibatches(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """0 … `count` − 1 in random order, `size` at a time, an incomplete last one left out."""
    order = rng.permutation(count)
    size = min(size, count)
    for first in range(0, count - size + 1, size):
        yield order[first : first + size]


class UpdateStats(Struct, frozen=True):
    """Figures of one update."""

    decisions: int
    """Learned from."""
    utility: float
    """Mean score of the decisions, with rows drawn."""
    kl: float
    """Divergence from the policy that played, in the last epoch."""
    explained: float
    """Share of the returns' variance that the critic explains."""


def update(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    plays: Sequence[Sequence[Rollout]],
    settings: PpoSettings,
    iteration: int,
    pool: ThreadPoolExecutor,
) -> UpdateStats:
    """Learn from the plays of some worlds."""
    pairs = [
        (one, rewards)
        for world in plays
        for one, rewards in zip(world, against_the_others(world), strict=True)
        if len(one.decisions) > 1
    ]
    everything = joined([one for one, _ in pairs])
    lengths = [len(one.decisions) for one, _ in pairs]
    with torch.no_grad():
        values = learner.value(torch.from_numpy(everything.critic_input)).double().numpy()
    bounds = np.cumsum([0, *lengths])
    spans = list(itertools.pairwise(bounds))
    advantage = np.concatenate(
        [
            advantages(one, rewards, values[a:b], settings)
            for (one, rewards), (a, b) in zip(pairs, spans, strict=True)
        ]
    )
    learned_from = np.concatenate([np.arange(a, b - 1) for a, b in spans])
    returns = advantage + values[learned_from]
    explained = 1.0 - float(np.var(advantage)) / max(float(np.var(returns)), 1e-12)
    if iteration == 0:
        learner.value_scale = max(float(returns.std()), 1e-6)
    targets = torch.from_numpy(returns / learner.value_scale).float()
    weights = torch.from_numpy((advantage - advantage.mean()) / (advantage.std() + 1e-8)).float()

    def shard(part: NDArray[np.int64], of: int) -> tuple[tuple[Tensor, ...], float]:
        """Gradient and divergence of a part of a minibatch of `of` decisions."""
        batch = Batch(everything, learned_from[part])
        log_ratio = learner.log_probabilities(batch) - batch.before
        ratio, weight = torch.exp(log_ratio), weights[part]
        clipped = ratio.clamp(1.0 - settings.clip, 1.0 + settings.clip)
        policy_loss = -torch.minimum(ratio * weight, clipped * weight).sum() / of
        value = learner.value(batch.critic_input) / learner.value_scale
        value_loss = nn.functional.huber_loss(value, targets[part], reduction="sum") / of
        # This estimate is never negative and has little variance (Schulman, Approximating KL
        # divergence, 2020).
        divergence = float((ratio - 1.0 - log_ratio).detach().sum()) / of
        return torch.autograd.grad(policy_loss + 0.5 * value_loss, parameters), divergence

    parameters = tuple(learner.parameters())
    rng = np.random.default_rng([settings.seed, iteration, 9])
    kl = 0.0
    for _ in range(settings.epochs):
        divergences = []
        for part in minibatches(len(learned_from), settings.batch, rng):
            shards = np.array_split(part, SHARDS)
            results = list(pool.map(shard, shards, [len(part)] * SHARDS))
            by_shard = (gradients for gradients, _ in results)
            for parameter, *gradients in zip(parameters, *by_shard, strict=True):
                parameter.grad = torch.stack(gradients).sum(0)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            divergences += [divergence for _, divergence in results]
        kl = math.fsum(divergences) / (len(divergences) / SHARDS)
        if kl > settings.stop:
            break
    return UpdateStats(len(learned_from), float(everything.rewards.mean()), kl, explained)
