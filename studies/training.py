"""Studies that train: what a specialist gains, and what each part of the policy gives.

Every training run has a folder of its own, named by all that decides what it finds, and goes on
from its checkpoint there. A run that is through leaves its weights, which are then only read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.bench.statistics import interval, over_families
from edgewise.learn import release, trainer
from edgewise.learn.checkpoint import write_atomically
from edgewise.learn.space import PARTS
from edgewise.learn.worlds import Worlds, limits, rule_of
from edgewise.policy import POLICIES, learned, weight_files
from edgewise.policy.base import PolicySpec
from edgewise.policy.weight_files import WeightsCard
from studies.experiment import Arm, Experiment, Floats, Section, held_out, percent, pm
from studies.information import family_condition

SPECIALISTS = ("bursty", "overload", "combined")
PART_FAMILIES = ("light", "medium", "heavy", "overload", "volatile", "stale_2s", "combined")
ARMS: dict[str, tuple[str, ...]] = {
    "control": ("base",),
    "learned": ("base", "heads"),
    **{f"without {part}": ("base", *(p for p in PARTS if p != part)) for part in PARTS},
    "with wide": ("base", "heads", "wide"),
    "with network": ("base", "heads", "network"),
    "heads alone": ("heads",),
}
"""Groups that are searched (`space.GROUPS`)."""


class Trainer(Struct, frozen=True, kw_only=True):
    """Where and how runs of a study are trained."""

    folder: Path
    threads: int = 2
    surveyed: int = release.SURVEYED
    """Worlds that the guard's limits are taken from."""
    judged: int = release.JUDGED
    """Validation worlds, by which a specialist is kept or dropped."""
    until: float = float("inf")
    """On the monotonic clock: no run begins after it."""
    progress: Callable[[str, trainer.EsProgress], None] = lambda _run, _progress: None

    def run(
        self, name: str, recipe: trainer.Recipe, start: Floats, budget: float | None = None
    ) -> PolicySpec | None:
        """The policy that a recipe finds from the params `start`, guarded; None: out of time."""
        folder = self.folder / name
        path = folder / "edgewise.safetensors"
        if path.exists():
            params, card = weight_files.load(path)
            return weight_files.rule(params, name, card)
        if time.monotonic() >= self.until:
            return None
        heuristic = msgspec.structs.replace(
            POLICIES["priced_greedy"], params=tuple(start[learned.LAYOUT["calibrated"]].tolist())
        )
        found = trainer.train(
            recipe,
            start,
            heuristic,
            folder,
            budget=budget,
            threads=self.threads,
            progress=lambda step: self.progress(name, step),
        )
        seen = recipe.worlds.training(recipe.seed, 40_000, self.surveyed)
        rule = rule_of(found.params)
        low, high, _ = limits(recipe.worlds, rule, found.params, seen, self.threads)
        final = weight_files.release(found.params, low, high, release.OLDEST)
        card = WeightsCard(
            name="edgewise",
            command=f"study {name}",
            seeds=(recipe.seed,),
            families=recipe.worlds.names,
            commit=release.commit(),
            decisions=found.decisions,
            heuristic={},
        )
        return weight_files.rule(
            final, name, weight_files.save(path, final, card, write_atomically)
        )


def specialists(
    experiment: Experiment,
    runs: Trainer,
    policy: PolicySpec,
    *,
    minutes: Sequence[float] = (1.0, 5.0, 20.0),
    names: Sequence[str] = SPECIALISTS,
    worlds: int = 40,
    rate: float = 0.15,
    seed: int = 11,
) -> Section:
    """What fine-tuning the shipped policy to one family gains, on held-out seeds.

    As ``edgewise train --init edgewise`` does, the weights are only kept if they are better than
    the generalist's on validation worlds, so a specialist is never below it but by chance.
    """
    start = np.array(policy.params)
    start[learned.O_GUARDED] = 0.0
    lines = [
        "| family | minutes | k decisions | kept | edgewise | specialist | gain | in % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    figures: dict[str, object] = {}
    seeds: tuple[int, ...] = ()
    for name in names:
        where = Worlds(names=(name,))
        for span in minutes:
            recipe = trainer.Recipe(
                worlds=where, seed=seed, count=worlds, pairs_each=2, rate=rate, validation=48
            )
            stem = f"specialist-{name}-{span:g}m-{seed}-{worlds}-{rate:g}"
            found = runs.run(stem, recipe, start, budget=60.0 * span)
            if found is None:
                lines.append(f"| {name} | {span:g} | not trained yet | | | | | |")
                continue
            _, card = weight_files.load(runs.folder / stem / "edgewise.safetensors")
            judged = release.judge(
                np.array(found.params), policy, where, count=runs.judged, skip=release.SKIP + 500,
                threads=runs.threads, names=(name,),
            )  # fmt: skip
            kept = judged.mean.mean > 0.0
            arms = [
                Arm(name="edgewise", rule=policy),
                Arm(name=stem, rule=found if kept else policy),
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
    about = (
        f"`edgewise` fine-tuned to a family for some minutes, {held_out(seeds)}. *Kept*: better "
        "than the generalist on validation worlds; else the generalist's weights stay. "
    ) if seeds else "No specialist is trained yet."  # fmt: skip
    return Section(lines=[about, "", *lines], figures={"seeds": seeds, **figures})


def parts(
    experiment: Experiment,
    runs: Trainer,
    *,
    generations: int,
    training_seeds: Sequence[int] = (1, 2, 3),
    arms: Sequence[str] = tuple(ARMS),
    worlds: int = 40,
    rate: float = 0.25,
) -> Section:
    """What each part gives: every arm trained from the heuristic with the same generations, worlds
    and seeds, and compared with the control of the same training seed."""
    start = trainer.initial(POLICIES["priced_greedy"])
    names = ["control", *(arm for arm in arms if arm != "control")]
    found: dict[tuple[str, int], PolicySpec] = {}
    for seed in training_seeds:  # all arms of a seed before the next, so that stopping is fair
        for name in names:
            recipe = trainer.Recipe(
                groups=ARMS[name], seed=seed, count=worlds, pairs_each=2, rate=rate,
                generations=generations, validation=48,
            )  # fmt: skip
            stem = f"part-{name.replace(' ', '-')}-{seed}-{generations}-{worlds}-{rate:g}"
            rule = runs.run(stem, recipe, start)
            if rule is not None:
                found[name, seed] = rule
    whole = [seed for seed in training_seeds if all((name, seed) in found for name in names)]
    if not whole:
        return Section(lines=["Not one training seed is through yet."], figures={})
    everyone = [
        Arm(name=f"{name}, seed {seed}", rule=found[name, seed]) for name in names for seed in whole
    ]
    places = [family_condition(name) for name in PART_FAMILIES]
    values, seeds = experiment.utilities("parts", places, everyone)
    shaped = values.reshape(len(places), len(names), len(whole), len(seeds))
    base = float(shaped[:, 0].mean())
    differences = shaped - shaped[:, :1]
    lines = [
        f"Every line trained from the heuristic with {generations} generations of {worlds} worlds, "
        f"once for each of the training seeds {', '.join(map(str, whole))}; utility over the "
        f"control of the same training seed; families {', '.join(PART_FAMILIES)}; "
        f"{held_out(seeds)}. Intervals are over held-out seeds, of the mean over training seeds.",
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
    runs: Trainer, control: PolicySpec, *, budget: float, worlds: int = 40, seed: int = 5
) -> PolicySpec | None:
    """The control, tuned on for `budget` s where reports are fresh and bandwidths known."""
    start = np.array(control.params)
    start[learned.O_GUARDED] = 0.0
    recipe = trainer.Recipe(
        worlds=Worlds(informed=True),
        groups=("base",), seed=seed, count=worlds, pairs_each=2, rate=0.2, validation=48,
    )  # fmt: skip
    return runs.run(f"informed-{budget:g}s-{seed}-{worlds}", recipe, start, budget=budget)
