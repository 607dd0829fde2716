"""The information ablation: what perfect information would bring, and how much of it is recovered.

*Reports*: one every 10 ms. *Bandwidth*: the balancer is told the links' true state
(``network_state: emulator``). *Slow spells*: it is told by what factor each server is slower now.
The recovered share is what the learned policy gains over the heuristic with none of it, over what
the heuristic gains by all of it.

A heuristic that was tuned for stale reports makes less of fresh ones than one that was tuned for
them, so the heuristic is also re-tuned with the information, if the study is given its weights.
"""

from __future__ import annotations

import msgspec

from edgewise.bench.statistics import interval, over_families
from edgewise.learn.worlds import bandwidth, fresh, informed
from edgewise.policy.base import PolicySpec
from edgewise.worlds import families
from studies.experiment import (
    Arm,
    Change,
    Experiment,
    Section,
    WorldCondition,
    grid,
    held_out,
    percent,
    ratio,
    share,
)
from studies.privileged_kernels import slow_spells, slow_spells_known

FAMILIES = ("volatile", "trace_bandwidth", "stale_500ms", "stale_2s", "combined")


CASES: dict[str, tuple[Change | None, bool]] = {
    "as it is": (None, False),
    "reports": (fresh, False),
    "bandwidth": (bandwidth, False),
    "slow spells": (None, True),
    "all": (informed, True),
}
"""(what is done to a world, whether slow spells are known)."""


def family_condition(family: str) -> WorldCondition:
    """A family of the suite."""
    return WorldCondition(name=family, world=lambda seed: families.scenario(family, seed))


def arms(name: str, rule: PolicySpec) -> list[Arm]:
    """A policy with each piece of information."""
    spells = msgspec.structs.replace(rule, kernel=slow_spells_known)
    return [
        Arm(
            name=f"{name}, {case}",
            rule=spells if known else rule,
            change=change,
            told=slow_spells if known else None,
        )
        for case, (change, known) in CASES.items()
    ]


def study(
    experiment: Experiment,
    heuristic: PolicySpec,
    policy: PolicySpec,
    retuned: PolicySpec | None = None,
) -> Section:
    """The ablation. `heuristic` and `policy` are params of the learned policy's kernel; `retuned`
    is the heuristic tuned with all of the information."""
    places = [family_condition(name) for name in FAMILIES]
    everyone = [*arms("heuristic", heuristic), *arms("edgewise", policy)]
    if retuned is not None:
        everyone.append(
            msgspec.structs.replace(arms("re-tuned", retuned)[-1], name="heuristic re-tuned, all")
        )
    values, seeds = experiment.utilities("information", places, everyone)
    plain = values[:, :1]
    n = len(CASES)
    lines, means = grid(places, [arm.name for arm in everyone[1:]], (values - plain)[:, 1:])
    could = values[:, n - 1] - plain[:, 0]
    has = values[:, n] - plain[:, 0]
    base = float(plain.mean())
    rest = over_families(values[:, 2 * n - 1] - values[:, n])
    found = ratio(has.mean(axis=0), could.mean(axis=0))
    each = {one.name: ratio(has[p], could[p]) for p, one in enumerate(places)}
    out = [
        f"Gain in utility over the heuristic (the re-tuned control) without any of it; "
        f"{held_out(seeds)}. No policy was trained with any of it unless it says so.",
        "",
        *lines,
        "",
        f"All of it would bring the heuristic {percent(means[n - 2], base)}; edgewise gains "
        f"{percent(means[n - 1], base)} with none of it: {share(found)} of that gain. All of it "
        f"would bring edgewise another {percent(rest, base)}.",
        "",
        "By family: " + "; ".join(f"{name} {share(one)}" for name, one in each.items()) + ".",
    ]
    figures: dict[str, object] = {
        "seeds": seeds,
        "gains": {arm.name: mean for arm, mean in zip(everyone[1:], means, strict=True)},
        "by_family": {
            one.name: {
                arm.name: interval(values[p, a] - plain[p, 0])
                for a, arm in enumerate(everyone)
                if a
            }
            for p, one in enumerate(places)
        },
        "recovered": found,
        "recovered_by_family": each,
    }
    if retuned is not None:
        best = values[:, -1] - plain[:, 0]
        again = ratio(has.mean(axis=0), best.mean(axis=0))
        out += ["", f"Of the gain of a heuristic re-tuned with all of it: {share(again)}."]
        figures["recovered_of_retuned"] = again
    return Section(lines=out, figures=figures)
