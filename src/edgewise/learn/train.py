"""Train the learned policy: search, limits, acceptance, and weights that may be used.

*Search*: evolution strategies (`es`) or PPO (`ppo`), both in the loop of `search`.

*Limits*: the policy plays training worlds once more. The guard lets it decide only within the range
of every feature that it met there.

*Acceptance*: on validation worlds of every family the policy, guard included, is compared with the
heuristic that ships. If the paired confidence interval of any family lies below 0, the weights are
still written, but marked as not accepted, and weights that are not accepted are never shipped.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.benchmark.statistics import Interval, student_quantile
from edgewise.cores import for_each, usable_cores
from edgewise.errors import BadInput
from edgewise.files import write_atomically
from edgewise.fleet.rng import new_rng
from edgewise.learn.es import EsSettings, EvolutionStrategies
from edgewise.learn.ppo_settings import PpoSettings
from edgewise.learn.search import Algorithm, Budget, Progress, SearchResult, search
from edgewise.learn.validation import SPECIALISTS, Judgement, Validator, judge
from edgewise.policies import POLICIES, find, learned, weight_files
from edgewise.policies.base import PolicySpec
from edgewise.policies.guard import COUNTERS
from edgewise.policies.weight_files import Effect, WeightsCard
from edgewise.sim import engine
from edgewise.sim.source import WorldSource
from edgewise.worlds import families

Floats = NDArray[np.float64]
Settings = TypeVar("Settings", EsSettings, PpoSettings)

HEURISTIC = "priced_greedy"
"""The heuristic that the policy begins from, is compared with and falls back to."""
FILE = "edgewise.safetensors"
SURVEYED = 300
"""Training worlds from which the limits are taken."""
SURVEY_FIRST = 40_000
"""The first of them: at the far end of the run's worlds, which no search comes to."""
OLDEST = 20.0
"""Usual deadlines without any report before the heuristic decides: about 5 s for photo classifiers.
Training has report periods up to 2 s, and a server counts as down after a few of them."""


class TrainOptions(Struct, frozen=True, kw_only=True):
    """Options of a training run. None stands for the algorithm's own default."""

    source: WorldSource
    budget: Budget | None
    """None: nothing is searched, but the limits and the heuristic to fall back to are renewed."""
    folder: Path
    """Folder of checkpoints, TensorBoard files and the weights."""
    init: str = HEURISTIC
    """The policy to begin from: the heuristic, `edgewise` or a weights file."""
    algorithm: Literal["es", "ppo"] = "es"
    groups: tuple[str, ...] = ("base", "heads")
    """The groups of parameters that are searched (`space.GROUPS`)."""
    seed: int = 1
    worlds: int | None = None
    """Per generation."""
    pairs: int | None = None
    """Antithetic pairs per world (es), or plays of each world (ppo)."""
    rate: float | None = None
    """Length of the first step, in sigmas (es), or Adam's learning rate (ppo)."""
    threads: int = 0
    """0: all cores."""

    @property
    def settings(self) -> EsSettings | PpoSettings:
        """The algorithm's settings. Raises BadInput for groups that PPO cannot learn."""
        given = {"worlds": self.worlds, "rate": self.rate}
        if self.algorithm == "es":
            return settings_of(
                EsSettings, seed=self.seed, groups=self.groups, pairs=self.pairs, **given
            )
        # The heuristic's own parameters are no differentiable part of a score: they stay.
        if not {"heads"} <= set(self.groups) <= {"base", "heads", "network"}:
            raise BadInput("--algorithm ppo: expected --free heads, or heads,network")
        network = "network" in self.groups
        return settings_of(PpoSettings, seed=self.seed, network=network, plays=self.pairs, **given)

    def command(self, generations: int) -> str:
        """The command that makes the same weights again."""
        settings = self.settings
        pairs = settings.pairs if isinstance(settings, EsSettings) else settings.plays
        return (
            f"edgewise train {self.source.option} --init {self.init} --algorithm {self.algorithm} "
            f"--generations {generations} --seed {self.seed} --free {','.join(self.groups)} "
            f"--worlds {settings.worlds} --pairs {pairs} --rate {settings.rate:g}"
        )


def settings_of(kind: type[Settings], **values: Any) -> Settings:
    """Settings with these values; those that are None keep their default."""
    return kind(**{name: value for name, value in values.items() if value is not None})


class TrainResult(Struct, frozen=True, kw_only=True):
    """The result of a training run."""

    path: Path
    """The weights file."""
    card: WeightsCard
    judgement: Judgement
    """The trained policy against the heuristic."""
    over_init: Interval | None
    """Its gain over the policy it began from; None: that was the heuristic."""
    search: SearchResult | None
    """None: nothing was searched."""

    @property
    def kept_init(self) -> bool:
        """Whether the policy it began from was better, so that its weights were written."""
        return self.over_init is not None and self.over_init.mean < 0.0

    @property
    def improved(self) -> bool:
        """Whether it is better than the heuristic and than what it began from."""
        gains = (self.judgement.mean, self.over_init)
        return all(gain is None or gain.mean > 0.0 for gain in gains)


def train(
    options: TrainOptions, progress: Callable[[Progress], None] = lambda _: None
) -> TrainResult:
    """Run a training, and write weights and card to the folder.

    If the policy it began from is better on validation worlds, that one's weights are written. Run
    the same training again to resume one that was interrupted. Raises BadInput for options that
    cannot be used, MissingExtra without scipy or torch, and SearchStopped for Ctrl-C.
    """
    student_quantile()  # a missing package should show before the search, not after it
    threads = options.threads or usable_cores()
    source = options.source
    start, heuristic = beginning(options.init)
    found = None
    if options.budget is not None:
        found = search(
            _algorithm(options, start, threads),
            options.budget,
            validate=Validator(source, heuristic, threads=threads),
            folder=options.folder,
            progress=progress,
        )
    params = guarded(start if found is None else found.params, source, options.seed, threads)
    judgement = judge(params, heuristic, source, threads=threads)
    card = WeightsCard(
        name="edgewise",
        command=options.command(0 if found is None else found.steps),
        seeds=(options.seed,),
        families=source.families or (source.name,),
        commit=commit(),
        decisions=0 if found is None else found.decisions,
        heuristic=dict(zip(heuristic.names, heuristic.params, strict=True)),
        results={
            name: Effect(mean=gain.mean, half=gain.half)
            for name, gain in judgement.families.items()
        },
        accepted=judgement.accepted,
    )
    over_init = None
    if options.init != HEURISTIC:
        init = find(options.init)
        over_init = judge(params, init, source, skip=SPECIALISTS, threads=threads).mean
        if over_init.mean < 0.0:  # a specialist must not be worse than what it began from
            params = np.array(init.params)
            card = msgspec.structs.replace(card, command=init.tuned, results={})
    path = options.folder / FILE
    card = weight_files.save(path, params, card, write_atomically)
    return TrainResult(path=path, card=card, judgement=judgement, over_init=over_init, search=found)


def _algorithm(options: TrainOptions, start: Floats, threads: int) -> Algorithm:
    settings = options.settings
    if isinstance(settings, EsSettings):
        return EvolutionStrategies(options.source, start, settings, threads)
    from edgewise.learn.ppo import Ppo

    return Ppo(options.source, start, settings, threads)


def beginning(init: str = HEURISTIC) -> tuple[Floats, PolicySpec]:
    """The learned policy's parameters to begin from, and the heuristic to beat.

    The heuristic is the one that ships today, however old the weights are, and the guard falls back
    to it: heuristics are tuned again and again, and no policy should fall back to an old one.
    Raises BadInput if `init` is neither the heuristic nor a learned policy.
    """
    heuristic = POLICIES[HEURISTIC]
    if init == HEURISTIC:
        return learned.untrained(heuristic.params), heuristic
    policy = find(init)
    if policy.kernel is not learned.edgewise.kernel:
        raise BadInput(f"--init: expected {HEURISTIC}, edgewise or a weights file, got {init}")
    params = np.array(policy.params)
    learned.named(params).options.guarded = 0.0  # in training it goes where it has not been
    params[learned.LAYOUT["calibrated"]] = heuristic.params
    return params, heuristic


def guarded(
    params: Floats, source: WorldSource, seed: int, threads: int, surveyed: int = SURVEYED
) -> Floats:
    """Params as they are used: with the guard on, and its limits from training worlds."""
    seeds = families.training_seeds(seed, SURVEY_FIRST, surveyed)
    low, high, _ = survey(params, source, seeds, threads)
    return weight_files.release(params, low, high, OLDEST)


def survey(
    params: Floats, source: WorldSource, seeds: Sequence[int], threads: int
) -> tuple[Floats, Floats, Floats]:
    """The features that the learned policy with `params` meets in worlds of `source`.

    Returns the lowest and the highest of each, (FEATURES,), and the sums of the guard's counters.
    """
    surveying = params.copy()
    learned.named(surveying).options.survey = 1.0
    policy = weight_files.learned_spec(params, "being surveyed")
    kernel = engine.compiled(policy.kernel)
    memories: list[Floats] = [np.zeros(0)] * len(seeds)

    def play(w: int) -> None:
        sim = source.world(seeds[w])
        sim.table.settings.fill_servers = 1
        deciders = len(sim.beliefs.servers)  # nodes too, where the balancer falls silent
        memory = np.repeat(policy.new_memory(len(sim.world.servers))[None], deciders, axis=0)
        rng = np.stack([new_rng(seeds[w] * 64 + decider) for decider in range(deciders)])
        engine.run(sim, kernel, surveying, memory, rng, -1)
        memories[w] = memory

    for_each(range(len(seeds)), play, threads)
    counted, n = len(COUNTERS), learned.FEATURES
    low, high = np.full(n, np.inf), np.full(n, -np.inf)
    counters = np.zeros(counted)
    for own in (own for memory in memories for own in memory):
        counters += own[:counted]
        fleet = policy.named_memory(own).fleet
        lowest, highest = (
            np.concatenate([limit["server"], limit["row"], limit["request"]])
            for limit in (fleet.low, fleet.high)
        )
        if highest.any():  # it decided something
            low, high = np.minimum(low, lowest), np.maximum(high, highest)
    return low, high, counters


def commit() -> str:
    """The commit of the source this runs from; "" if it is not in a git work tree."""
    try:
        ran = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ran.stdout.strip()
