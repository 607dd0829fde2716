"""How far the learned policy closes the gap from the heuristic to the clairvoyant search.

The search (`edgewise.bound`) knows the whole episode. It plays short episodes, because its time
grows with the square of their length, so gains here differ from those of the suite. The same
policies with perfect information (`studies.information`) separate *information* from *foresight*:
what they do not reach is knowledge of the requests to come, and what training with that information
would bring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edgewise.benchmark.statistics import interval
from edgewise.bound.gap import DURATION, Effort, measure_gap
from edgewise.policies.base import PolicySpec
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

Floats = NDArray[np.float64]

LIMITS = ("clairvoyant", "bound")
INFORMED = "edgewise, informed"
MARGIN = "earliest_completion_margin"
LOADS = ("light", "medium", "heavy", "overload")


def study(
    experiment: Experiment,
    policies: dict[str, PolicySpec],
    names: Sequence[str] = families.STANDARD,
    *,
    duration: float = DURATION,
    trials: int | None = None,
    steps: int = 300,
) -> Section:
    """Gaps by family. `policies` must include *control* and *edgewise*, and may include `MARGIN`.

    `trials` are those of the search in each world; None: 25 per request.
    """

    def world_of(family: str, seed: int) -> Scenario:
        return families.scenario(family, seed).with_overrides(duration=duration)

    conditions = [WorldCondition(name=name, world=partial(world_of, name)) for name in names]
    arms = [information.arms(name, policies[name])[-1] for name in ("control", "edgewise")]
    informed, all_seeds = experiment.utilities(f"gap {duration:g}", conditions, arms)
    values, seeds = play(experiment, policies, conditions, trials, steps, f"{duration:g}")
    informed = informed[:, :, [all_seeds.index(seed) for seed in seeds]]
    plain, mine, top, bound = (values[name] for name in ("control", "edgewise", *LIMITS))

    lines = [
        f"Episodes of {duration:g} s, {held_out(seeds)}; *closed*: share of the gap from the "
        "re-tuned control to the clairvoyant search; *left*: the clairvoyant's lead over edgewise. "
        "The interval of a share is a bootstrap over seeds.",
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
    over = closed_share(mine, plain, top)
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
    if "priced_greedy" in values:
        from_greedy = closed_share(mine, values["priced_greedy"], top)
        lines[-1] += f" From `priced_greedy` as shipped: {share(from_greedy)}."
        figures["closed_from_priced_greedy"] = from_greedy
    shares = [closed_share(informed[:, a], plain, top) for a in range(len(arms))]
    figures["closed_with_information"] = dict(zip(("control", "edgewise"), shares, strict=True))
    lines += [
        "",
        "With perfect information (reports every 10 ms, bandwidth, slow spells), but not trained "
        f"with it, the control closes {share(shares[0])} of the gap and edgewise "
        f"{share(shares[1])}. The rest is knowledge of the requests to come, and the gain of "
        "training with the information.",
    ]
    if MARGIN in values:
        lines += ["", *over_margin(names, {**values, INFORMED: informed[:, 1]})]
    return Section(lines=lines, figures=figures)


def play(
    experiment: Experiment,
    policies: Mapping[str, PolicySpec],
    conditions: Sequence[WorldCondition],
    trials: int | None,
    steps: int,
    duration: str,
) -> tuple[dict[str, Floats], tuple[int, ...]]:
    """Utilities (conditions, seeds) of the policies, the clairvoyant search and the bound; and the
    seeds. Results are kept by `duration` too."""
    columns = [*policies, *LIMITS]
    digests = "+".join(Arm(name=name, policy=spec).digest for name, spec in policies.items())
    stem = f"gap|{digests}|{duration}|{trials}|{steps}"

    def key(c: int, seed: int, column: str) -> str:
        return f"{stem}|{conditions[c].name}|{seed}|{column}"

    def play_world(seed: int, c: int) -> None:
        known = experiment.store.values
        if experiment.over or all(key(c, seed, column) in known for column in columns):
            return
        scenario = conditions[c].world(seed)
        found = measure_gap(scenario, policies, effort=Effort(trials=trials, steps=steps))
        limits = {"clairvoyant": found.clairvoyant, "bound": found.bound}
        for column, value in {**found.policies, **limits}.items():
            experiment.store.put(key(c, seed, column), value)

    experiment.run("gap", [condition.name for condition in conditions], play_world)
    values, seeds = experiment.complete(
        len(conditions),
        len(columns),
        lambda c, a, seed: experiment.store.values.get(key(c, seed, columns[a])),
    )
    return {column: values[:, a] for a, column in enumerate(columns)}, seeds


def closed_share(mine: Floats, plain: Floats, top: Floats) -> tuple[float, float, float]:
    """The share of the gap from `plain` to `top` that `mine` closes, over families, with its
    interval."""
    return ratio((mine - plain).mean(axis=0), (top - plain).mean(axis=0))


def over_margin(names: Sequence[str], values: dict[str, Floats]) -> Iterator[str]:
    """The gains over the rule with a margin, by load."""
    yield f"Over `{MARGIN}`, in these episodes:"
    yield ""
    yield f"| family | edgewise | {INFORMED} | clairvoyant | bound |"
    yield "|---|---|---|---|---|"
    for f, name in enumerate(names):
        if name in LOADS:
            base = float(values[MARGIN][f].mean())
            cells = " | ".join(
                percent(interval(values[column][f] - values[MARGIN][f]), base)
                for column in ("edgewise", INFORMED, *LIMITS)
            )
            yield f"| {name} | {cells} |"


def mean(values: Floats) -> str:
    """The mean, or a dash if some world has none: where balancers fall silent there is no bound."""
    found = float(values.mean())
    return "–" if np.isnan(found) else f"{found:.4f}"
