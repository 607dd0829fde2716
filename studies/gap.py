"""How much of the way from the heuristic to the clairvoyant local search the policy goes.

The search (`edgewise.bound`) knows the whole episode. It plays short episodes, for its time
grows with the square of their length, so the gains here are not those of the table above. How much
of the way is *information* and how much *foresight* is told by the same policies with perfect
information (`studies.information`): what they do not reach is knowing the requests to come, and
what training with that information would bring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgewise.bench import suite
from edgewise.bench.statistics import interval
from edgewise.bound.standing import DURATION, standing
from edgewise.policy.base import PolicySpec
from edgewise.scenario import Scenario
from edgewise.worlds import families
from studies import information
from studies.experiment import (
    Arm,
    Experiment,
    Section,
    WorldCondition,
    held_out,
    percent,
    pm,
    ratio,
    share,
)

WHAT = ("clairvoyant", "bound")
INFORMED = "edgewise, informed"
MARGIN = "earliest_completion_margin"
LOADS = ("light", "medium", "heavy", "overload")


def study(
    experiment: Experiment,
    rules: dict[str, PolicySpec],
    names: Sequence[str] = families.STANDARD,
    *,
    duration: float = DURATION,
    trials: int | None = None,
    steps: int = 300,
) -> Section:
    """`rules` must have *control* and *edgewise*, and may have `MARGIN`; `trials` of the search per
    world, None: 25 per request."""
    arms = [Arm(name=name, rule=rule) for name, rule in rules.items()]
    stem = f"gap|{'+'.join(arm.digest for arm in arms)}|{duration:g}|{trials}|{steps}"
    columns = [*rules, *WHAT]

    def key(family: str, seed: int, what: str) -> str:
        return f"{stem}|{family}|{seed}|{what}"

    def world_of(family: str, seed: int) -> Scenario:
        return families.scenario(family, seed).with_overrides(duration=duration)

    places = [WorldCondition(name=name, world=partial(world_of, name)) for name in names]
    knowing = [information.arms(name, rules[name])[-1] for name in ("control", "edgewise")]
    known, known_seeds = experiment.utilities(f"gap {duration:g}", places, knowing)

    done = 0
    tasks = [(s, f) for s in range(len(experiment.seeds)) for f in range(len(names))]

    def task(s: int, f: int) -> None:
        nonlocal done
        family, seed = names[f], experiment.seeds[s]
        done += 1
        if experiment.over or all(
            key(family, seed, what) in experiment.kept.values for what in columns
        ):
            return
        found = standing(world_of(family, seed), rules, trials=trials, steps=steps)
        for name, value in found.policies.items():
            experiment.kept.put(key(family, seed, name), value)
        experiment.kept.put(key(family, seed, "clairvoyant"), found.clairvoyant)
        experiment.kept.put(key(family, seed, "bound"), found.bound)
        experiment.progress(done, len(tasks), f"gap: {family}")

    suite.each(tasks, task, experiment.threads)
    values, seeds = experiment.complete(
        len(names),
        len(columns),
        lambda p, a, s: experiment.kept.values.get(key(names[p], s, columns[a])),
    )
    at = {name: a for a, name in enumerate(columns)}
    plain, mine = values[:, at["control"]], values[:, at["edgewise"]]
    top, bound = values[:, at["clairvoyant"]], values[:, at["bound"]]
    lines = [
        f"Episodes of {duration:g} s, {held_out(seeds)}; *closed*: of the way from the re-tuned "
        "control to the clairvoyant search; *left*: the clairvoyant's lead over edgewise. The "
        "interval of a share is of the bootstrap over seeds.",
        "",
        "| family | control | edgewise | clairvoyant | bound | left | closed |",
        "|---|---|---|---|---|---|---|",
    ]
    by_family = {}
    for f, name in enumerate(names):
        closed = ratio(mine[f] - plain[f], top[f] - plain[f])
        by_family[name] = closed
        cells = " | ".join(mean(x[f]) for x in (plain, mine, top, bound))
        lines.append(f"| {name} | {cells} | {pm(interval(top[f] - mine[f]))} | {share(closed)} |")
    over = ratio((mine - plain).mean(axis=0), (top - plain).mean(axis=0))
    # Either mean of shares is a fair reading of "on average": both are given.
    average = float(np.nanmean([found[0] for found in by_family.values()]))
    cells = " | ".join(mean(x) for x in (plain, mine, top, bound))
    left = interval((top - mine).mean(axis=0))
    lines.append(f"| **mean** | {cells} | {pm(left)} | {share(over)} |")
    lines += ["", f"Mean of the families' shares: {100 * average:.0f} %."]
    figures: dict[str, object] = {
        "seeds": seeds,
        "closed": over,
        "closed_by_family": by_family,
        "mean_of_shares": average,
    }
    if "priced_greedy" in at:
        shipped = values[:, at["priced_greedy"]]
        again = ratio((mine - shipped).mean(axis=0), (top - shipped).mean(axis=0))
        lines[-1] += f" From `priced_greedy` as shipped: {share(again)}."
        figures["closed_from_priced_greedy"] = again
    known = known[:, :, [known_seeds.index(seed) for seed in seeds]]
    told = [
        ratio((known[:, a] - plain).mean(axis=0), (top - plain).mean(axis=0))
        for a in range(len(knowing))
    ]
    figures["closed_with_information"] = dict(zip(("control", "edgewise"), told, strict=True))
    lines += [
        "",
        "With perfect information (reports every 10 ms, bandwidth, slow spells), not trained with "
        f"it, the control goes {share(told[0])} of the way and edgewise {share(told[1])}: what is "
        "left is knowing the requests to come, and what training with it would bring.",
    ]
    if MARGIN in at:
        each = {name: values[:, at[name]] for name in columns}
        lines += ["", *over_margin(names, each | {INFORMED: known[:, 1]})]
    return Section(lines=lines, figures=figures)


def over_margin(names: Sequence[str], values: dict[str, NDArray[np.float64]]) -> Iterator[str]:
    """What there is to gain over the rule with a margin, by load."""
    yield f"Over `{MARGIN}`, in these episodes:"
    yield ""
    yield f"| family | edgewise | {INFORMED} | clairvoyant | bound |"
    yield "|---|---|---|---|---|"
    for f, name in enumerate(names):
        if name in LOADS:
            base = float(values[MARGIN][f].mean())
            cells = " | ".join(
                percent(interval(values[what][f] - values[MARGIN][f]), base)
                for what in ("edgewise", INFORMED, *WHAT)
            )
            yield f"| {name} | {cells} |"


def mean(values: NDArray[np.float64]) -> str:
    """A dash where some world has none: there is no bound where balancers fall silent."""
    found = float(values.mean())
    return "–" if np.isnan(found) else f"{found:.4f}"
