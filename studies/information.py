"""The value of perfect information, and the share of it that the learned policy recovers.

*Reports*: one every 10 ms. *Bandwidth*: the balancer knows the true state of the links
(``network_state: emulator``). *Slow spells*: it knows the current slowdown of each server.
The recovered share is the gain of the learned policy over the heuristic without any of it, divided
by the heuristic's own gain from all of it.

A heuristic tuned for stale reports gains less from fresh ones than a heuristic tuned for those. So
the study also compares with a heuristic re-tuned with the information, if it is given one.
"""

from __future__ import annotations

import msgspec

from edgewise.benchmark.statistics import interval, over_families
from edgewise.policies.base import PolicySpec
from edgewise.scenario import Scenario
from studies.experiment import (
    Arm,
    Change,
    Experiment,
    Section,
    family_condition,
    grid,
    held_out,
    percent,
    ratio,
    share,
)
from studies.privileged_kernels import slow_spells, slow_spells_known

FAMILIES = ("volatile", "trace_bandwidth", "stale_500ms", "stale_2s", "combined")


def fresh_reports(world: Scenario) -> Scenario:
    """The world with a report every 10 ms."""
    return msgspec.structs.replace(world, report_period=0.01)


def known_bandwidth(world: Scenario) -> Scenario:
    """The world with a balancer that knows the links' true rates and loads."""
    return msgspec.structs.replace(world, network_state="emulator")


def fresh_reports_and_bandwidth(world: Scenario) -> Scenario:
    """The world with both."""
    return known_bandwidth(fresh_reports(world))


CASES: dict[str, tuple[Change | None, bool]] = {
    "as it is": (None, False),
    "reports": (fresh_reports, False),
    "bandwidth": (known_bandwidth, False),
    "slow spells": (None, True),
    "all": (fresh_reports_and_bandwidth, True),
}
"""By name: a change of every world, and whether slow spells are known."""


def arms(name: str, policy: PolicySpec) -> list[Arm]:
    """A policy with each piece of information."""
    with_spells = msgspec.structs.replace(policy, kernel=slow_spells_known)
    return [
        Arm(
            name=f"{name}, {case}",
            policy=with_spells if known else policy,
            change=change,
            privileged=slow_spells if known else None,
        )
        for case, (change, known) in CASES.items()
    ]


def study(
    experiment: Experiment,
    heuristic: PolicySpec,
    policy: PolicySpec,
    retuned: PolicySpec | None = None,
) -> Section:
    """Gains by piece of information. `heuristic`, `policy` and `retuned`, which is the heuristic
    tuned with all of the information, run on the learned policy's kernel."""
    conditions = [family_condition(name) for name in FAMILIES]
    everyone = [*arms("heuristic", heuristic), *arms("edgewise", policy)]
    if retuned is not None:
        everyone.append(
            msgspec.structs.replace(arms("re-tuned", retuned)[-1], name="heuristic re-tuned, all")
        )
    values, seeds = experiment.utilities("information", conditions, everyone)
    plain = values[:, :1]
    n = len(CASES)
    lines, means = grid(conditions, [arm.name for arm in everyone[1:]], (values - plain)[:, 1:])
    possible = values[:, n - 1] - plain[:, 0]
    gained = values[:, n] - plain[:, 0]
    base = float(plain.mean())
    rest = over_families(values[:, 2 * n - 1] - values[:, n])
    recovered = ratio(gained.mean(axis=0), possible.mean(axis=0))
    by_family = {
        condition.name: ratio(gained[c], possible[c]) for c, condition in enumerate(conditions)
    }
    out = [
        "Gain in utility over the heuristic (the re-tuned control) without any of the information; "
        f"{held_out(seeds)}. No policy was trained with any of it unless it says so.",
        "",
        *lines,
        "",
        f"All of it would gain the heuristic {percent(means[n - 2], base)}; edgewise gains "
        f"{percent(means[n - 1], base)} with none of it: {share(recovered)} of that gain. All of "
        f"it would gain edgewise another {percent(rest, base)}.",
        "",
        "By family: " + "; ".join(f"{name} {share(one)}" for name, one in by_family.items()) + ".",
    ]
    figures: dict[str, object] = {
        "seeds": seeds,
        "gains": {arm.name: mean for arm, mean in zip(everyone[1:], means, strict=True)},
        "by_family": {
            condition.name: {
                arm.name: interval(values[c, a] - plain[c, 0])
                for a, arm in enumerate(everyone)
                if a
            }
            for c, condition in enumerate(conditions)
        },
        "recovered": recovered,
        "recovered_by_family": by_family,
    }
    if retuned is not None:
        best = values[:, -1] - plain[:, 0]
        again = ratio(gained.mean(axis=0), best.mean(axis=0))
        out += ["", f"Of the gain of a heuristic re-tuned with all of it: {share(again)}."]
        figures["recovered_of_retuned"] = again
    return Section(lines=out, figures=figures)
