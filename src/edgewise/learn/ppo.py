"""Proximal policy optimisation of the policy `edgewise`: top to bottom in one file.

Schulman et al., Proximal policy optimization algorithms, 2017; what is ours is what the problem
asks for:

- *The policy* is the live one (`edgewise.policy.learned`), row by row the same function of its
  params: the calibrated heuristic with learned factors, permutation-equivariant, with pooled
  context. It starts as the heuristic exactly. Episodes are played by its own compiled kernel with
  rows drawn from softmax(score / temperature), and `edgewise.learn.actor_critic` says the same
  probabilities once more in torch, for the gradient.
- *Credit by decision*: a decision's reward is the score of its own request, whenever it was known.
- *Discount by time*: τ = 2 s, see `edgewise.learn.gae`.
- *Same-world baselines*: every world is played K times on the same arrivals, links and luck. What
  the same request earned in the other plays is subtracted from its reward (leave-one-out, so the
  gradient stays unbiased: Kool et al., Buy 4 REINFORCE samples, 2019; Mao et al., Variance
  reduction for RL in input-driven environments, 2019). The critic then learns how much better than
  the others' a state is, not how busy the world will be.
- *Truncation*: a trace ends, the fleet does not. Its last decision is not learned from; the
  critic's value of it stands for what would have come after.
- *Large batches of whole episodes*: some 100,000 decisions, ragged (only admissible rows count), a
  few epochs in minibatches of thousands.
- *Threads*: torch runs on one thread in each of ours, for its own wait for each other by spinning:
  on a busy machine they took twenty times longer than one. A minibatch is always cut into `SHARDS`,
  whose gradients are added in order, so the result does not depend on the number of threads.

One flat vector `x` is optimised; params = start + SCALE · x, so that one step of Adam means about
the same everywhere. Everything random derives from the seed and the iteration.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.bench.statistics import Interval
from edgewise.errors import BadInput, MissingExtra
from edgewise.learn import checkpoint
from edgewise.learn.actor_critic import Batch, Learner, PpoSettings
from edgewise.learn.gae import by_time, gae
from edgewise.learn.rollout import Rollout, joined, rollout
from edgewise.learn.worlds import Worlds
from edgewise.policy import learned
from edgewise.scenario import Scenario
from edgewise.sim import engine
from edgewise.sim.build import simulation

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra("train", "torch") from error

Floats = NDArray[np.float64]

SHARDS = 2
"""Of a minibatch: as many as the cores of the smallest machine."""
NEVER = -1.0
"""Utility that no look at the validation worlds finds: nobody has looked yet."""


class PpoProgress(Struct, frozen=True, kw_only=True):
    """An iteration."""

    iteration: int
    decisions: int
    """So far."""
    per_second: float
    """Training decisions end to end: making worlds, playing, updating."""
    playing: float
    """Share of the time that went into worlds and episodes."""
    utility: float
    """Mean score of the decisions, rows drawn."""
    kl: float
    explained: float
    """Share of the returns' variance that the critic explains."""
    done: float
    """Share of the budget."""
    left: float
    """s."""
    gain: Interval | None
    """Over the heuristic on validation worlds; None: not looked at in this iteration."""


class PpoResult(Struct, frozen=True, kw_only=True):
    """What a run came to."""

    params: Floats
    """Of the policy: it takes the best row, and has no limits yet (`release`)."""
    iterations: int
    decisions: int
    seconds: float
    gain: Interval | None
    """Of the best look at the validation worlds; None: nobody looked."""


def play(
    place: Worlds,
    scenarios: Sequence[Scenario],
    params: Floats,
    settings: PpoSettings,
    iteration: int,
    pool: ThreadPoolExecutor,
) -> list[list[Rollout]]:
    """Every world `settings.plays` times; [world][play]."""
    starts = [simulation(each, place.trace(each)) for each in scenarios]
    jobs = [w for w in range(len(starts)) for _ in range(settings.plays)]
    seeds = np.random.SeedSequence([settings.seed, iteration, 8]).generate_state(len(jobs))

    def one(w: int, seed: int) -> Rollout:
        return rollout(engine.branch(starts[w]), params, seed)

    played = list(pool.map(one, jobs, seeds.tolist()))
    return [played[w : w + settings.plays] for w in range(0, len(played), settings.plays)]


def against_the_others(plays: Sequence[Rollout]) -> list[Floats]:
    """Rewards of each play less what the same request earned, on average, in the other plays; a
    request that no other play decided is compared with nothing and counts 0."""
    if len(plays) == 1:
        return [plays[0].rewards]
    size = 1 + max(int(each.decisions["request"].max(initial=0)) for each in plays)
    total, count = np.zeros(size), np.zeros(size)
    for each in plays:
        total[each.decisions["request"]] += each.rewards
        count[each.decisions["request"]] += 1.0
    found = []
    for each in plays:
        at = each.decisions["request"]
        others = count[at] - 1.0
        baseline = (total[at] - each.rewards) / np.maximum(others, 1.0)
        found.append(np.where(others > 0.0, each.rewards - baseline, 0.0))
    return found


def advantages(played: Rollout, rewards: Floats, values: Floats, settings: PpoSettings) -> Floats:
    """Of all decisions of an episode but the last, whose value stands for what comes after."""
    waits = np.diff(played.decisions["time"])
    return gae(
        rewards[:-1], values, by_time(waits, settings.tau), by_time(waits, settings.tau_lambda)
    )


def minibatches(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """All of 0 … count − 1 in random order, `size` at a time, the last few left out."""
    order = rng.permutation(count)
    size = min(size, count)
    for first in range(0, count - size + 1, size):
        yield order[first : first + size]


def train(
    worlds: Worlds,
    start: Floats,
    settings: PpoSettings,
    *,
    iterations: int | None = None,
    budget: float | None = None,
    threads: int = 2,
    out: Path | None = None,
    look: Callable[[Floats], Interval] | None = None,
    every: int = 10,
    progress: Callable[[PpoProgress], None] = lambda _: None,
) -> PpoResult:
    """Train from the policy's params `start`, for so many iterations or `budget` s: one must be
    given.

    Checkpoints go to `out`, and a run goes on from the one there. `look` says what params are worth
    on validation worlds; it is asked every so many iterations, and then the best come back, else
    the last. The same seed and number of iterations give the same params on one machine, also if
    the run was killed in between. Raises BadInput if `out` holds another run.
    """
    if (iterations is None) == (budget is None):
        raise BadInput("expected either a number of iterations or a budget")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(settings.seed)
    learner = Learner(start, settings)
    optimiser = torch.optim.Adam(
        [
            {"params": [learner.x], "lr": settings.rate, "betas": (0.9, 0.98)},
            {"params": learner.critic.parameters(), "lr": settings.value_rate},
        ]
    )
    rates = [float(group["lr"]) for group in optimiser.param_groups]
    digest = hashlib.sha256(start.tobytes()).hexdigest()
    text = msgspec.json.encode(("ppo", worlds, settings, iterations, every, digest)).decode()
    done, decisions, playing, iteration, spent, here = 0.0, 0, 0.0, 0, 0.0, 0
    best, at_best, best_gain = -math.inf, start, None
    found = None if out is None else checkpoint.load_arrays(out, text)
    if found is not None:
        arrays, kept = found
        restore(learner, optimiser, arrays)
        iteration, decisions, spent = kept.generation, kept.decisions, kept.seconds
        at_best = arrays["best"]
        if kept.best > NEVER:
            best = kept.best
            best_gain = Interval(*arrays["gain"].tolist())
        done = iteration / iterations if iterations else spent / (budget or 1.0)
    began = time.monotonic()
    try:
        with ThreadPoolExecutor(threads) as pool:
            while done < 1.0:
                for group, rate in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = rate * (1.0 - 0.9 * done)
                entered = time.monotonic()
                first = iteration * settings.worlds
                scenarios = worlds.training(settings.seed, first, settings.worlds)
                plays = play(worlds, scenarios, learner.params(), settings, iteration, pool)
                playing += time.monotonic() - entered
                made = update(learner, optimiser, plays, settings, iteration, pool)
                iteration += 1
                decisions += made.decisions
                here += made.decisions
                passed = time.monotonic() - began
                done = iteration / iterations if iterations else (spent + passed) / (budget or 1.0)
                gain = None
                if look is not None and (done >= 1.0 or iteration % every == 0):
                    now = greedy(learner)
                    gain = look(now)
                    if gain.mean > best:
                        best, best_gain, at_best = gain.mean, gain, now
                passed = time.monotonic() - began
                if out is not None:
                    checkpoint.save_arrays(
                        out,
                        state_of(learner, optimiser)
                        | {"best": at_best, "gain": np.array(best_gain or (0.0, 0.0))},
                        checkpoint.SearchCheckpoint(
                            recipe=text,
                            generation=iteration,
                            decisions=decisions,
                            seconds=spent + passed,
                            best=best if math.isfinite(best) else NEVER,
                        ),
                    )
                progress(
                    PpoProgress(
                        iteration=iteration,
                        decisions=decisions,
                        per_second=here / passed,
                        playing=playing / passed,
                        utility=made.utility,
                        kl=made.kl,
                        explained=made.explained,
                        done=min(1.0, done),
                        left=max(0.0, 1.0 - done) / max(done, 1e-9) * (spent + passed),
                        gain=gain,
                    )
                )
    finally:
        torch.set_num_threads(before)
    return PpoResult(
        params=greedy(learner) if best_gain is None else at_best,
        iterations=iteration,
        decisions=decisions,
        seconds=spent + time.monotonic() - began,
        gain=best_gain,
    )


def greedy(learner: Learner) -> Floats:
    """The policy's params as they are now, taking the best row."""
    found = learner.params()
    found[learned.O_TEMPERATURE] = 0.0
    return found


def state_of(learner: Learner, optimiser: torch.optim.Optimizer) -> dict[str, NDArray[Any]]:
    """All that must be kept to go on: policy and critic, the scale of its returns, and Adam's
    moments and step of each."""
    found = {f"learner.{name}": each.numpy() for name, each in learner.state_dict().items()}
    found["value_scale"] = np.array([learner.value_scale])
    for n, kept in optimiser.state_dict()["state"].items():
        for name, each in kept.items():
            found[f"adam.{n}.{name}"] = each.numpy()
    return found


def restore(
    learner: Learner, optimiser: torch.optim.Optimizer, arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Take up what `state_of` says. Raises BadInput if it is of another shape."""
    own = learner.state_dict()
    try:
        learner.load_state_dict({name: _tensor(arrays[f"learner.{name}"]) for name in own})
    except (KeyError, RuntimeError) as error:
        raise BadInput(f"a checkpoint of another policy: {error}") from None
    learner.value_scale = float(arrays["value_scale"][0])
    whole = optimiser.state_dict()
    for name, each in arrays.items():
        if name.startswith("adam."):
            _, n, what = name.split(".")
            kept = _tensor(each)
            whole["state"].setdefault(int(n), {})[what] = kept[0] if what == "step" else kept
    optimiser.load_state_dict(whole)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))  # a copy that may be written to


class UpdateStats(Struct, frozen=True):
    """Of one update."""

    decisions: int
    utility: float
    kl: float
    explained: float


def update(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    plays: Sequence[Sequence[Rollout]],
    settings: PpoSettings,
    iteration: int,
    pool: ThreadPoolExecutor,
) -> UpdateStats:
    """Learn from the plays of some worlds."""
    flat = [each for world in plays for each in world if len(each.decisions) > 1]
    compared = [
        rewards
        for world in plays
        for each, rewards in zip(world, against_the_others(world), strict=True)
        if len(each.decisions) > 1
    ]
    everything = joined(flat)
    lengths = [len(each.decisions) for each in flat]
    with torch.no_grad():
        values = learner.value(torch.from_numpy(everything.seen)).double().numpy()
    bounds = np.cumsum([0, *lengths])
    gained = [
        advantages(each, rewards, values[a:b], settings)
        for each, rewards, a, b in zip(flat, compared, bounds, bounds[1:], strict=False)
    ]
    learned_from = np.concatenate([np.arange(a, b - 1) for a, b in itertools.pairwise(bounds)])
    advantage = np.concatenate(gained)
    returns = advantage + values[learned_from]
    explained = 1.0 - float(np.var(advantage)) / max(float(np.var(returns)), 1e-12)
    if iteration == 0:
        learner.value_scale = max(float(returns.std()), 1e-6)
    targets = torch.from_numpy(returns / learner.value_scale).float()
    weights = torch.from_numpy((advantage - advantage.mean()) / (advantage.std() + 1e-8)).float()

    def shard(part: NDArray[np.int64], of: int) -> tuple[tuple[Tensor, ...], float]:
        """(gradient, divergence) of its share of a minibatch of `of` decisions."""
        batch = Batch(everything, learned_from[part])
        log_ratio = learner.log_probabilities(batch) - batch.before
        ratio, weight = torch.exp(log_ratio), weights[part]
        clipped = ratio.clamp(1.0 - settings.clip, 1.0 + settings.clip)
        policy_loss = -torch.minimum(ratio * weight, clipped * weight).sum() / of
        guess = learner.value(batch.seen) / learner.value_scale
        value_loss = nn.functional.huber_loss(guess, targets[part], reduction="sum") / of
        # Never negative, and of little variance (Schulman, Approximating KL divergence, 2020).
        divergence = float((ratio - 1.0 - log_ratio).detach().sum()) / of
        return torch.autograd.grad(policy_loss + 0.5 * value_loss, weights_of), divergence

    weights_of = tuple(learner.parameters())
    rng = np.random.default_rng([settings.seed, iteration, 9])
    kl = 0.0
    for _ in range(settings.epochs):
        divergences = []
        for part in minibatches(len(learned_from), settings.batch, rng):
            shards = np.array_split(part, SHARDS)
            found = list(pool.map(shard, shards, [len(part)] * SHARDS))
            for weight, *gradients in zip(weights_of, *(each[0] for each in found), strict=True):
                weight.grad = torch.stack(gradients).sum(0)
            nn.utils.clip_grad_norm_(weights_of, 1.0)
            optimiser.step()
            divergences += [each[1] for each in found]
        kl = math.fsum(divergences) / (len(divergences) / SHARDS)
        if kl > settings.stop:
            break
    return UpdateStats(len(learned_from), float(everything.rewards.mean()), kl, explained)
