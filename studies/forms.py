"""Payload forms as a priced choice, against the original only and against always re-encoding.

The same weights, with rows of the candidate table masked: nothing is trained anew.
"""

from __future__ import annotations

import msgspec

from edgewise.bench.statistics import interval
from edgewise.policy.base import PolicySpec
from edgewise.worlds import families
from studies.experiment import Arm, Experiment, Section, grid, held_out, percent
from studies.information import family_condition
from studies.privileged_kernels import always_ready, original_only


def study(experiment: Experiment, policy: PolicySpec) -> Section:
    """The priced choice's gain, by family."""
    places = [family_condition(name) for name in families.STANDARD]
    everyone = [
        Arm(name="priced choice", rule=policy),
        Arm(name="original only", rule=msgspec.structs.replace(policy, kernel=original_only)),
        Arm(name="always re-encoded", rule=msgspec.structs.replace(policy, kernel=always_ready)),
    ]
    values, seeds = experiment.utilities("forms", places, everyone)
    gains = values[:, :1] - values[:, 1:]
    heads = ["over original only", "over always re-encoded"]
    lines, means = grid(places, heads, gains)
    below = [
        f"{one.name} ({head})"
        for p, one in enumerate(places)
        for c, head in enumerate(heads)
        if interval(gains[p, c]).sign < 0
    ]
    out = [
        "What choosing the form brings the shipped weights, over the same weights with the other "
        f"rows masked; {held_out(seeds)}.",
        "",
        *lines,
        "",
        "In %: "
        + ", ".join(
            f"{percent(mean, float(values[:, c + 1].mean()))} {head}"
            for c, (head, mean) in enumerate(zip(heads, means, strict=True))
        )
        + f". Significantly below in: {', '.join(below) or 'none'}.",
    ]
    return Section(
        lines=out,
        figures={
            "seeds": seeds,
            "means": dict(zip(heads, means, strict=True)),
            "by_family": {
                one.name: {head: interval(gains[p, c]) for c, head in enumerate(heads)}
                for p, one in enumerate(places)
            },
            "below": below,
        },
    )
