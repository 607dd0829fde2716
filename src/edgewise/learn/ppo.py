"""Proximal policy optimisation of the policy `edgewise`: top to bottom in one file.

Schulman et al., Proximal policy optimization algorithms, 2017; what is ours is what the problem
asks for:

- *The policy* is the live one (`edgewise.policy.learned`), row by row the same function of its
  params: the calibrated heuristic with learned factors, permutation-equivariant, with pooled
  context. It starts as the heuristic exactly. Episodes are played by its own compiled kernel with
  rows drawn from softmax(score / temperature), and `Learner.log_probabilities` says the same
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

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.errors import MissingExtra
from edgewise.learn.gae import by_time, gae
from edgewise.learn.rollout import CONSTANTS, SEEN, Rollout, greatest, joined, pick, rollout
from edgewise.learn.worlds import Worlds
from edgewise.policy import learned
from edgewise.policy.learned import CLAMP, DEPTH, LAYOUT, SHED_SCALE, WIDTH, P, Q
from edgewise.policy.priced import SPREAD, SQRT_3
from edgewise.scenario import Scenario
from edgewise.sim import engine
from edgewise.sim.world import simulation

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise MissingExtra("train", "torch") from error

Floats = NDArray[np.float64]

SCALES = {
    "server_heads": 0.1,
    "row_heads": 0.1,
    "shed_head": 0.2,
    "phi_in": 0.3,
    "psi_in": 0.3,
    "hidden": 0.3,
    "bias": 0.3,
    "out": 0.1,
}
"""Of the parts that are learned, as in `edgewise.learn.space`. The heuristic's parameters stand."""
VALUE_SCALE = 0.3
"""Times that, of the heads that change the worth of an answer: candidates differ little in it."""
SHARDS = 2
"""Of a minibatch: as many as the cores of the smallest machine."""
HEAD = ("server_heads", "row_heads", "shed_head")


class Settings(Struct, frozen=True, kw_only=True):
    """Of a training run."""

    seed: int = 1
    worlds: int = 16
    """Fresh ones per iteration."""
    plays: int = 4
    """Of each; at least 2 for a baseline. More make it better and see fewer worlds."""
    temperature: float = 0.01
    """Utility. What exploring with it costs the heuristic: 0.3 ± 0.3 % of the score on 64
    validation worlds; 2 % at 0.05."""
    tau: float = 2.0
    """s, of the discount: what a decision does to others is over in two queues' time (trials)."""
    tau_lambda: float = 1.0
    """s, of the advantages: between the critic's error and the noise of what really came."""
    epochs: int = 3
    batch: int = 4096
    """Decisions per step of Adam."""
    rate: float = 0.02
    """Of Adam, in units of `SCALES`; falls to a tenth along the run."""
    value_rate: float = 2e-3
    clip: float = 0.2
    stop: float = 0.02
    """KL divergence from the policy that played, at which an iteration's epochs end."""
    network: bool = False
    """Learn the small network too, not just the linear heads: three times the work of an update,
    and not tried for long enough to say what it brings."""


class Progress(Struct, frozen=True, kw_only=True):
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


class Learner(nn.Module):
    """The policy and its critic as functions of what is optimised."""

    def __init__(self, start: Floats, settings: Settings) -> None:
        super().__init__()
        self._origin = start.copy()
        self._origin[learned.O_TEMPERATURE] = settings.temperature
        self._origin[learned.O_GUARDED] = 0.0
        self._origin[learned.O_NETWORK] = float(settings.network)
        scale = np.zeros(learned.LENGTH)
        for name, by in SCALES.items():
            scale[LAYOUT[name]] = by if settings.network or name in HEAD else 0.0
        scale[LAYOUT["row_heads"].start + Q : LAYOUT["row_heads"].stop] *= VALUE_SCALE
        scale[LAYOUT["out"].start + DEPTH : LAYOUT["out"].stop] *= VALUE_SCALE
        self._scale = scale
        self.temperature = settings.temperature
        self.spread = float(start[LAYOUT["base"]][SPREAD])
        self.network = settings.network
        self.x = nn.Parameter(torch.zeros(learned.LENGTH))
        finite = np.where(scale > 0.0, self._origin, 0.0)
        self._start_32 = torch.from_numpy(finite).float()
        self._scale_32 = torch.from_numpy(scale).float()
        last = nn.Linear(64, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.critic = nn.Sequential(
            nn.Linear(SEEN, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), last
        )
        self.value_scale = 1.0
        """Of returns: the critic's output 1."""

    def params(self) -> Floats:
        """The policy's, as the kernel takes them; rows are drawn."""
        found: Floats = self._origin + self._scale * self.x.detach().double().numpy()
        return found

    def value(self, seen: Tensor) -> Tensor:
        """Of states: by how much the discounted return beats the other plays'."""
        out: Tensor = self.critic(seen).squeeze(-1) * self.value_scale
        return out

    def scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(of the rows, of shed): `policy.learned.score`, differentiable."""
        w = self._start_32 + self._scale_32 * self.x
        heads = batch.phi @ w[LAYOUT["server_heads"]].view(5, P).T
        bend = torch.exp(heads[:, 1:].clamp(-CLAMP, CLAMP))  # link, network, wait, spread
        dear, better = (batch.psi @ w[LAYOUT["row_heads"]].view(2, Q).T).unbind(1)
        if self.network:
            more = self._network(w, batch)
            dear, better = dear + more[:, 0], better + more[:, 1]
        better = nn.functional.softsign(better)
        price = heads[:, 0]
        link, over, wait, wider = bend[batch.server].unbind(1)
        c = dict(zip(CONSTANTS, batch.constants.unbind(1), strict=True))

        over, wait, service = over * c["network"], wait * c["wait"], c["service"]
        spread = self.spread * (wait + service) + c["network_spread"] * over + c["stale"]
        off = SQRT_3 * spread * wider
        mean = batch.elapsed[batch.of] + over + wait + service
        deadline, grace = batch.deadline[batch.of], batch.grace[batch.of].clamp_min(1e-9)

        def timely(latency: Tensor) -> Tensor:
            return (1.0 - (latency / deadline - 1.0) / grace).clamp(0.0, 1.0)

        expected = (4.0 * timely(mean) + timely(mean - off) + timely(mean + off)) / 6.0
        cost = c["cost"] * torch.exp((price[batch.server] + dear).clamp(-CLAMP, CLAMP))
        home = torch.exp(price[batch.home].clamp(-CLAMP, CLAMP))
        rows = c["worth"] * expected * (1.0 + better) - cost
        rows = rows - c["link"] * link - c["prepare"] * home[batch.of]
        shift = (batch.omega @ w[LAYOUT["shed_head"]]).clamp(-CLAMP, CLAMP)
        return rows, batch.threshold + SHED_SCALE * shift

    def _network(self, w: Tensor, batch: Batch) -> Tensor:
        """`policy.learned.network`: what it adds to the two heads of each row."""
        phi_in = batch.phi @ w[LAYOUT["phi_in"]].view(WIDTH, P).T
        psi_in = batch.psi @ w[LAYOUT["psi_in"]].view(WIDTH, Q).T
        h = nn.functional.softsign(phi_in[batch.server] + psi_in)
        m = len(batch.omega)
        mean = torch.zeros(m, WIDTH).index_add(0, batch.of, h)
        mean = mean / batch.counts.clamp_min(1.0)[:, None]
        # Where the greatest is, is found without a gradient: that of a maximum is that of its row.
        at = torch.from_numpy(greatest(h.detach().numpy(), batch.of.numpy(), m))
        most = h.gather(0, at)
        c, d, e = torch.split(w[LAYOUT["hidden"]].view(DEPTH, 3 * WIDTH).T, WIDTH)
        context = w[LAYOUT["bias"]] + mean @ d + most @ e
        z = nn.functional.softsign(h @ c + context[batch.of])
        return z @ w[LAYOUT["out"]].view(2, DEPTH).T

    def log_probabilities(self, batch: Batch) -> Tensor:
        """Of the rows that were chosen."""
        rows, shed = self.scores(batch)
        rows, shed = rows / self.temperature, shed / self.temperature
        top = shed.detach().scatter_reduce(0, batch.of, rows.detach(), "amax", include_self=True)
        total = torch.exp(shed - top).index_add(0, batch.of, torch.exp(rows - top[batch.of]))
        padded = torch.cat((rows, shed.new_zeros(1)))  # −1 is shed: any number, not looked at
        chosen = torch.where(batch.chosen >= 0, padded[batch.chosen], shed)
        return chosen - top - torch.log(total)


class Batch:
    """Some decisions of a rollout as tensors."""

    def __init__(self, played: Rollout, which: NDArray[np.int64]) -> None:
        picked = pick(played.decisions, played.server, which)
        some = played.decisions[which]
        rows = torch.from_numpy(played.rows[picked.rows])
        self.constants, self.psi = torch.split(rows, [len(CONSTANTS), Q], 1)
        self.phi = torch.from_numpy(played.phi[picked.phis])
        self.omega = torch.from_numpy(played.omega[which])
        self.seen = torch.from_numpy(played.seen[which])
        self.of = torch.from_numpy(picked.of)
        self.server = torch.from_numpy(picked.server)
        self.home = torch.from_numpy(picked.home)
        self.chosen = torch.from_numpy(picked.chosen)
        self.counts = torch.from_numpy(some["rows"].astype(np.float32))
        self.deadline, self.grace, self.elapsed, self.threshold, self.before = (
            torch.from_numpy(some[name].copy())
            for name in ("deadline", "grace", "elapsed", "threshold", "log_probability")
        )


def play(
    place: Worlds,
    scenarios: Sequence[Scenario],
    params: Floats,
    settings: Settings,
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


def advantages(played: Rollout, rewards: Floats, values: Floats, settings: Settings) -> Floats:
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
    settings: Settings,
    *,
    iterations: int | None = None,
    budget: float | None = None,
    threads: int = 2,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Floats:
    """Train from the policy's params `start`, for so many iterations or `budget` s (one must be
    given); returns params, which take the best row and have no limits yet.

    The same seed and number of iterations give the same params on one machine.
    """
    if (iterations is None) == (budget is None):
        raise ValueError("expected either a number of iterations or a budget")
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
    began = time.monotonic()
    done, decisions, playing, iteration = 0.0, 0, 0.0, 0
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
                passed = time.monotonic() - began
                done = iteration / iterations if iterations else passed / (budget or 1.0)
                progress(
                    Progress(
                        iteration=iteration,
                        decisions=decisions,
                        per_second=decisions / passed,
                        playing=playing / passed,
                        utility=made.utility,
                        kl=made.kl,
                        explained=made.explained,
                    )
                )
    finally:
        torch.set_num_threads(before)
    found = learner.params()
    found[learned.O_TEMPERATURE] = 0.0
    return found


class Made(Struct, frozen=True):
    """Of one update."""

    decisions: int
    utility: float
    kl: float
    explained: float


def update(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    plays: Sequence[Sequence[Rollout]],
    settings: Settings,
    iteration: int,
    pool: ThreadPoolExecutor,
) -> Made:
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
    return Made(len(learned_from), float(everything.rewards.mean()), kl, explained)
