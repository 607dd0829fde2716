"""Payload forms as a priced choice, against the original only and against always re-encoding.

All three use the same weights, with rows of the candidate table masked.
"""

from __future__ import annotations

import msgspec

from edgewise.benchmark.statistics import interval
from edgewise.policies.base import PolicySpec
from edgewise.worlds import families
from studies.experiment import (
    Arm,
    Experiment,
    Section,
    family_condition,
    grid,
    held_out,
    percent,
)
from studies.privileged_kernels import always_ready, original_only


def study(experiment: Experiment, policy: PolicySpec) -> Section:
    """The gain of the priced choice, by family."""
    conditions = [family_condition(name) for name in families.STANDARD]
    everyone = [
        Arm(name="priced choice", policy=policy),
        Arm(name="original only", policy=msgspec.structs.replace(policy, kernel=original_only)),
        Arm(name="always re-encoded", policy=msgspec.structs.replace(policy, kernel=always_ready)),
    ]
    values, seeds = experiment.utilities("forms", conditions, everyone)
    gains = values[:, :1] - values[:, 1:]
    heads = ["over original only", "over always re-encoded"]
    lines, means = grid(conditions, heads, gains)
    below = [
        f"{condition.name} ({head})"
        for c, condition in enumerate(conditions)
        for h, head in enumerate(heads)
        if interval(gains[c, h]).sign < 0
    ]
    out = [
        "Gain of choosing the form, over the same weights with the other rows masked; "
        f"{held_out(seeds)}.",
        "",
        *lines,
        "",
        "In %: "
        + ", ".join(
            f"{percent(mean, float(values[:, h + 1].mean()))} {head}"
            for h, (head, mean) in enumerate(zip(heads, means, strict=True))
        )
        + f". Significantly below in: {', '.join(below) or 'none'}.",
    ]
    return Section(
        lines=out,
        figures={
            "seeds": seeds,
            "means": dict(zip(heads, means, strict=True)),
            "by_family": {
                condition.name: {head: interval(gains[c, h]) for h, head in enumerate(heads)}
                for c, condition in enumerate(conditions)
            },
            "below": below,
        },
    )
