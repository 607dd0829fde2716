"""Studies that train: the gain of specialists, and the contribution of each part of the policy.

Every training run has a folder of its own, named by everything that decides its result, and resumes
from its checkpoint there. A run that is finished leaves its weights, which are then only read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.benchmark.statistics import interval, over_families
from edgewise.files import write_atomically
from edgewise.learn import train
from edgewise.learn.es import EsSettings, EvolutionStrategies
from edgewise.learn.search import Budget, Progress, search
from edgewise.learn.space import PARTS
from edgewise.learn.validation import JUDGED, SPECIALISTS, Validator, judge
from edgewise.policies import POLICIES, learned, weight_files
from edgewise.policies.base import PolicySpec
from edgewise.policies.weight_files import WeightsCard
from edgewise.sim.source import WorldSource
from studies.experiment import (
    Arm,
    Experiment,
    Floats,
    Section,
    family_condition,
    held_out,
    percent,
    pm,
)
from studies.information import fresh_reports_and_bandwidth

SPECIALIST_FAMILIES = ("bursty", "overload", "combined")
SPECIALIST = EsSettings(seed=11, worlds=40, rate=0.15)
PART_FAMILIES = ("light", "medium", "heavy", "overload", "volatile", "stale_2s", "combined")
ARMS: dict[str, tuple[str, ...]] = {
    "control": ("base",),
    "learned": ("base", "heads"),
    **{f"without {part}": ("base", *(p for p in PARTS if p != part)) for part in PARTS},
    "with wide": ("base", "heads", "wide"),
    "with network": ("base", "heads", "network"),
    "heads alone": ("heads",),
}
"""The groups of parameters that each arm searches (`space.GROUPS`)."""


class TrainingRuns(Struct, frozen=True, kw_only=True):
    """Trains policies for a study, each once."""

    folder: Path
    threads: int = 2
    surveyed: int = train.SURVEYED
    """Worlds from which the guard's limits are taken."""
    judged: int = JUDGED
    """Validation worlds by which a specialist is kept or dropped."""
    validation: int = 48
    """Validation worlds by which a search chooses its best parameters."""
    until: float = float("inf")
    """On the monotonic clock: no run begins after it."""
    progress: Callable[[str, Progress], None] = lambda _run, _progress: None

    def run(
        self, name: str, source: WorldSource, settings: EsSettings, start: Floats, budget: Budget
    ) -> PolicySpec | None:
        """The guarded policy that a search from the params `start` finds; None: out of time."""
        folder = self.folder / name
        path = folder / train.FILE
        if path.exists():
            params, card = weight_files.load(path)
            return weight_files.learned_spec(params, name, card)
        if time.monotonic() >= self.until:
            return None
        heuristic = msgspec.structs.replace(
            POLICIES["priced_greedy"], params=tuple(start[learned.LAYOUT["calibrated"]].tolist())
        )
        found = search(
            EvolutionStrategies(source, start, settings, self.threads),
            budget,
            validate=Validator(source, heuristic, self.validation, self.threads),
            folder=folder,
            progress=lambda step: self.progress(name, step),
        )
        final = train.guarded(found.params, source, settings.seed, self.threads, self.surveyed)
        card = WeightsCard(
            name="edgewise",
            command=f"study {name}",
            seeds=(settings.seed,),
            families=source.families,
            commit=train.commit(),
            decisions=found.decisions,
            heuristic={},
        )
        return weight_files.learned_spec(
            final, name, weight_files.save(path, final, card, write_atomically)
        )


def specialists(
    experiment: Experiment,
    runs: TrainingRuns,
    policy: PolicySpec,
    *,
    minutes: Sequence[float] = (1.0, 5.0, 20.0),
    names: Sequence[str] = SPECIALIST_FAMILIES,
    settings: EsSettings = SPECIALIST,
) -> Section:
    """The gain of fine-tuning the shipped policy to one family, on held-out seeds.

    As with ``edgewise train --init edgewise``, the weights are kept only if they are better than
    the generalist's on validation worlds. So a specialist is below the generalist only by chance.
    """
    start = np.array(policy.params)
    learned.named(start).options.guarded = 0.0
    lines = [
        "| family | minutes | k decisions | kept | edgewise | specialist | gain | in % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    figures: dict[str, object] = {}
    seeds: tuple[int, ...] = ()
    for name in names:
        source = WorldSource(family=name)
        for span in minutes:
            stem = (
                f"specialist-{name}-{span:g}m-{settings.seed}-{settings.worlds}-{settings.rate:g}"
            )
            found = runs.run(stem, source, settings, start, Budget(seconds=60.0 * span))
            if found is None:
                lines.append(f"| {name} | {span:g} | not trained yet | | | | | |")
                continue
            _, card = weight_files.load(runs.folder / stem / train.FILE)
            judged = judge(
                np.array(found.params), policy, source, names=(name,), count=runs.judged,
                skip=SPECIALISTS, threads=runs.threads,
            )  # fmt: skip
            kept = judged.mean.mean > 0.0
            arms = [
                Arm(name="edgewise", policy=policy),
                Arm(name=stem, policy=found if kept else policy),
            ]
            values, seeds = experiment.utilities("specialist", [family_condition(name)], arms)
            plain, mine = values[0]
            gain = interval(mine - plain)
            lines.append(
                f"| {name} | {span:g} | {card.decisions / 1e3:.0f} | {'yes' if kept else 'no'} "
                f"| {plain.mean():.4f} | {mine.mean():.4f} | {pm(gain)} "
                f"| {percent(gain, float(plain.mean()))} |"
            )
            figures[f"{name}, {span:g} min"] = gain
    about = "No specialist is trained yet."
    if seeds:
        about = (
            f"`edgewise` fine-tuned to a family for some minutes, {held_out(seeds)}. *Kept*: "
            "better than the generalist on validation worlds; otherwise the generalist's weights "
            "are kept."
        )
    return Section(lines=[about, "", *lines], figures={"seeds": seeds, **figures})


def parts(
    experiment: Experiment,
    runs: TrainingRuns,
    *,
    generations: int,
    training_seeds: Sequence[int] = (1, 2, 3),
    arms: Sequence[str] = tuple(ARMS),
    worlds: int = 40,
    rate: float = 0.25,
) -> Section:
    """The contribution of each part of the policy.

    Every arm is trained from the heuristic with the same generations, worlds and seeds, and is
    compared with the control of the same training seed.
    """
    start, _ = train.beginning()
    names = ["control", *(arm for arm in arms if arm != "control")]
    found: dict[tuple[str, int], PolicySpec] = {}
    for seed in training_seeds:  # all arms of a seed before the next, so that stopping is fair
        for name in names:
            settings = EsSettings(groups=ARMS[name], seed=seed, worlds=worlds, rate=rate)
            stem = f"part-{name.replace(' ', '-')}-{seed}-{generations}-{worlds}-{rate:g}"
            policy = runs.run(
                stem, WorldSource(family="train"), settings, start, Budget(steps=generations)
            )
            if policy is not None:
                found[name, seed] = policy
    whole = [seed for seed in training_seeds if all((name, seed) in found for name in names)]
    if not whole:
        return Section(lines=["No training seed is finished yet."], figures={})
    everyone = [
        Arm(name=f"{name}, seed {seed}", policy=found[name, seed])
        for name in names
        for seed in whole
    ]
    conditions = [family_condition(name) for name in PART_FAMILIES]
    values, seeds = experiment.utilities("parts", conditions, everyone)
    shaped = values.reshape(len(conditions), len(names), len(whole), len(seeds))
    base = float(shaped[:, 0].mean())
    differences = shaped - shaped[:, :1]
    lines = [
        f"Every line is trained from the heuristic with {generations} generations of {worlds} "
        f"worlds, once for each of the training seeds {', '.join(map(str, whole))}. Utility over "
        f"the control of the same training seed; families {', '.join(PART_FAMILIES)}; "
        f"{held_out(seeds)}. Intervals are those of the mean over training seeds, over held-out "
        "seeds.",
        "",
        "| searched | " + " | ".join(f"seed {seed}" for seed in whole) + " | mean | in % |",
        "|---" * (len(whole) + 3) + "|",
    ]
    figures: dict[str, object] = {"seeds": seeds, "training_seeds": whole}
    for a, name in enumerate(names):
        if a == 0:
            continue
        mean = over_families(differences[:, a].mean(axis=1))
        each = [float(differences[:, a, s].mean()) for s in range(len(whole))]
        cells = " | ".join(f"{x:+.4f}" for x in each)
        lines.append(f"| {name} | {cells} | {pm(mean)} | {percent(mean, base)} |")
        figures[name] = {"mean": mean, "by_training_seed": each}
    return Section(lines=lines, figures=figures)


def informed_heuristic(
    runs: TrainingRuns, control: PolicySpec, *, budget: float, worlds: int = 40, seed: int = 5
) -> PolicySpec | None:
    """The control, tuned further for `budget` s where reports are fresh and bandwidths known."""
    start = np.array(control.params)
    learned.named(start).options.guarded = 0.0
    return runs.run(
        f"informed-{budget:g}s-{seed}-{worlds}",
        WorldSource(family="train", change=fresh_reports_and_bandwidth),
        EsSettings(groups=("base",), seed=seed, worlds=worlds, rate=0.2),
        start,
        Budget(seconds=budget),
    )
