"""The learned policy against the heuristic, its re-tuned control and the rules; its ablation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgewise.benchmark.statistics import interval, over_families
from edgewise.learn.train import survey
from edgewise.policies import POLICIES, PolicySpec, learned, weight_files
from edgewise.policies.features import SERVER_FEATURES
from edgewise.sim.source import WorldSource
from edgewise.worlds import families
from studies.experiment import Arm, Experiment, Section, family_condition, percent, pm

SHIPPED = Path(weight_files.__file__).parent / "weights"
CONTROL = SHIPPED / "control.safetensors"
RULES = (
    "earliest_completion_margin",
    "sed_admission",
    "peak_ewma_admission",
    "prequal_admission",
)
MARGIN = "earliest_completion_margin"
LOADS = ("light", "medium", "heavy", "overload")
GUARD_SEEDS = 8
"""Seeds of each family on which the guard's decisions are counted."""
ABLATION_FAMILIES = ("light", "medium", "heavy", "overload", "volatile", "stale_2s", "combined")
PARTS = (
    *learned.SERVER_HEADS, "row price", "row value", "shed", "memory of links", "base", "guard",
)  # fmt: skip


def table(experiment: Experiment, control: PolicySpec, policy: PolicySpec) -> Section:
    """Utility by family: the policy, the heuristic and the control; then the best rules."""
    names = families.STANDARD
    specs = {"priced_greedy": POLICIES["priced_greedy"], "control": control, "edgewise": policy}
    specs |= {name: POLICIES[name] for name in RULES}
    arms = [Arm(name=name, policy=spec) for name, spec in specs.items()]
    values, seeds = experiment.utilities("table", [family_condition(n) for n in names], arms)
    utility = {name: values[:, a] for a, name in enumerate(specs)}
    mine, greedy, tuned = (utility[name] for name in ("edgewise", "priced_greedy", "control"))
    lines = [
        *training_cards(),
        "",
        f"Mean expected utility, {len(seeds)} held-out seeds from {seeds[0]:,}, paired; ± is half "
        "a 95 % interval, over seeds. *control* is `priced_greedy` re-tuned by the same search, "
        "with the number of decisions above.",
        "",
        "| family | priced_greedy | control | edgewise | − priced_greedy | − control | in % |",
        "|---|---|---|---|---|---|---|",
    ]
    gains = [interval(row) for row in mine - tuned]
    for f, name in enumerate(names):
        lines.append(
            f"| {name} | {greedy[f].mean():.4f} | {tuned[f].mean():.4f} | {mine[f].mean():.4f} "
            f"| {pm(interval(mine[f] - greedy[f]))} | {pm(gains[f])} "
            f"| {percent(gains[f], tuned[f].mean())} |"
        )
    over_greedy, over_control = over_families(mine - greedy), over_families(mine - tuned)
    above, below = (sum(gain.sign == sign for gain in gains) for sign in (1, -1))
    lines += [
        f"| **mean** | {greedy.mean():.4f} | {tuned.mean():.4f} | {mine.mean():.4f} "
        f"| {pm(over_greedy)} | {pm(over_control)} | **{percent(over_control, tuned.mean())}** |",
        "",
        f"Over the control: interval above 0 in {above} of {len(names)} families, below 0 in "
        f"{below}. Over `priced_greedy` as shipped: {percent(over_greedy, greedy.mean())}. "
        "Intervals of the means are clustered by seed.",
        "",
        "| edgewise over | mean | in % | least, in % | family |",
        "|---|---|---|---|---|",
    ]
    for name in RULES:
        rule = utility[name]
        over = over_families(mine - rule)
        by_family = 100 * (mine - rule).mean(axis=1) / rule.mean(axis=1)
        least = int(by_family.argmin())
        lines.append(
            f"| {name} | {pm(over)} | {percent(over, rule.mean())} | {by_family[least]:+.1f} "
            f"| {names[least]} |"
        )
    margin = utility[MARGIN]
    by_load = ", ".join(
        f"{name} {100 * (mine[f] - margin[f]).mean() / margin[f].mean():+.0f} %"
        for f, name in enumerate(names)
        if name in LOADS
    )
    lines += ["", f"Over `{MARGIN}` by load: {by_load}.", ""]
    lines.append(guard_share(policy, seeds[:GUARD_SEEDS], experiment.threads))
    return Section(
        lines=lines,
        figures={
            "seeds": seeds, "over_control": over_control, "over_priced_greedy": over_greedy,
        },
    )  # fmt: skip


def guard_share(policy: PolicySpec, seeds: tuple[int, ...], threads: int) -> str:
    """How many decisions the guard leaves to the heuristic, as a sentence."""
    shares = {}
    for name in (*families.STANDARD, "any_scale"):
        _, _, counters = survey(np.array(policy.params), WorldSource(family=name), seeds, threads)
        shares[name] = 100.0 * float(counters[1:].sum() / counters[0])
    elsewhere = shares.pop("any_scale")
    most = max(shares, key=shares.__getitem__)
    return (
        f"The guard left {np.mean(list(shares.values())):.2f} % of the decisions to the heuristic, "
        f"most of them in {most} ({shares[most]:.2f} %; {len(seeds)} seeds of each family); on "
        f"fleets of any scale {elsewhere:.0f} %."
    )


def training_cards() -> list[str]:
    """A table of how the shipped weights and the control were trained, from their cards."""
    lines = ["| weights | command | decisions | seeds | accepted |", "|---|---|---|---|---|"]
    for name in ("edgewise", "control"):
        _, card = weight_files.load(SHIPPED / f"{name}.safetensors")
        lines.append(
            f"| {name} | `{card.command}` | {card.decisions / 1e6:.1f} M "
            f"| {', '.join(map(str, card.seeds))} | {'yes' if card.accepted else 'no'} |"
        )
    return lines


def without(policy: PolicySpec, part: str) -> PolicySpec:
    """`policy` with one of `PARTS` of its weights set to 0."""
    numbers = np.array(policy.params)
    if part in learned.SERVER_HEADS:
        at = learned.LAYOUT["server_heads"].start + learned.SERVER_HEADS.index(part) * learned.P
        numbers[at : at + learned.P] = 0.0
    elif part in ("row price", "row value"):
        at = learned.LAYOUT["row_heads"].start + (part == "row value") * learned.Q
        numbers[at : at + learned.Q] = 0.0
    elif part == "shed":
        numbers[learned.LAYOUT["shed_head"]] = 0.0
    elif part == "base":
        numbers[learned.LAYOUT["priced"]] = numbers[learned.LAYOUT["calibrated"]]
    elif part == "network of rows":
        learned.named(numbers).options.network = 0.0
    elif part == "memory of links":
        for head in range(len(learned.SERVER_HEADS)):
            at = learned.LAYOUT["server_heads"].start + head * learned.P
            for name in ("rate_moves", "rate_off", "aged_moves"):
                numbers[at + list(SERVER_FEATURES).index(name)] = 0.0
    elif part == "guard":
        learned.named(numbers).options.guarded = 0.0
    else:
        raise ValueError(part)
    return weight_files.learned_spec(numbers, f"without {part}")


def ablation(experiment: Experiment, policy: PolicySpec) -> Section:
    """The change of utility with one part of the weights set to 0, without training again."""
    parts = list(PARTS)
    if policy.named_params(policy.new_params()).options.network > 0.0:
        parts.append("network of rows")
    arms = [Arm(name="edgewise", policy=policy)]
    arms += [Arm(name=f"without {part}", policy=without(policy, part)) for part in parts]
    conditions = [family_condition(name) for name in ABLATION_FAMILIES]
    values, seeds = experiment.utilities("ablation", conditions, arms)
    lines = [
        "Change of utility with one part of the shipped weights set to 0 (*base*: the heuristic's "
        "own parameters set back to their tuned values), without training again; "
        f"{len(seeds)} held-out seeds.",
        "",
        "| without | " + " | ".join(ABLATION_FAMILIES) + " | mean |",
        "|---" * (len(ABLATION_FAMILIES) + 2) + "|",
    ]
    figures: dict[str, object] = {"seeds": seeds}
    for p, part in enumerate(parts, 1):
        change = values[:, p] - values[:, 0]
        cells = " | ".join(f"{x:+.4f}" for x in change.mean(axis=1))
        figures[part] = over_families(change)
        lines.append(f"| {part} | {cells} | {pm(over_families(change))} |")
    return Section(lines=lines, figures=figures)
