"""Write the measured sections of docs/learning.md, in place.

    python scripts/learning_table.py [--seeds 30] [--threads 2] [--cache DIR]
        [--only table,ablation]

Plays the shipped policy, the heuristic, the re-tuned control and the ladder's rules in the worlds
of the standard suite, on held-out seeds (families.EVALUATION), and writes what came of it. Numbers
in that document come from here and from the weights' cards, none from a keyboard.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.bench import suite
from edgewise.bench.document import rewrite
from edgewise.bench.statistics import Interval, interval, over_families
from edgewise.learn.worlds import Worlds, limits
from edgewise.policy import POLICIES, PolicySpec, find, learned, weight_files
from edgewise.policy.features import PHI
from edgewise.worlds import families

Floats = NDArray[np.float64]

CACHE: Path | None = None
"""Where utilities that were played are kept; None: nowhere."""
DOCUMENT = Path(__file__).parents[1] / "docs" / "learning.md"
SHIPPED = Path(weight_files.__file__).parent / "weights"
CONTROL = SHIPPED / "control.safetensors"
LADDER = (
    "earliest_completion_margin",
    "sed_admission",
    "peak_ewma_admission",
    "prequal_admission",
)
GUARDED = 8
"""Seeds of each family in which the guard's decisions are counted."""
PARTS_FAMILIES = ("light", "medium", "heavy", "overload", "volatile", "stale_2s", "combined")


def pm(found: Interval, digits: int = 4) -> str:
    return f"{found.mean:+.{digits}f} ± {found.half:.{digits}f}"


def percent(found: Interval, base: float) -> str:
    return f"{100 * found.mean / base:+.2f} ± {100 * found.half / base:.2f} %"


def utilities(
    names: Sequence[str],
    rules: dict[str, PolicySpec],
    seeds: Sequence[int],
    threads: int,
) -> Floats:
    """(families, policies, seeds). What was played before, by the same code as far as its version
    tells, is taken from the cache."""
    files = {}
    for name, rule in rules.items():
        what = (suite.versions(), names, seeds, name, rule.params)
        digest = hashlib.sha256(msgspec.json.encode(what)).hexdigest()[:24]
        files[name] = None if CACHE is None else CACHE / f"{digest}.npy"
    missing = {n: r for n, r in rules.items() if not ((f := files[n]) and f.exists())}
    found: dict[str, Floats] = {}
    if missing:
        played = suite.run(names, missing, seeds, threads=threads).array("utility")
        for p, name in enumerate(missing):
            found[name] = played[:, p]
            if (file := files[name]) is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                np.save(file, played[:, p])
    for name, file in files.items():
        if name not in found:
            assert file is not None
            found[name] = np.load(file)
    return np.stack([found[name] for name in rules], axis=1)


# -- the table -------------------------------------------------------------------------------------


def table(seeds: Sequence[int], threads: int) -> Iterator[str]:
    """The policy against the heuristic and its control, by family, and against the ladder."""
    rules = {
        "priced_greedy": POLICIES["priced_greedy"],
        "control": find(str(CONTROL)),
        "edgewise": POLICIES["edgewise"],
        **{name: POLICIES[name] for name in LADDER},
    }
    names = families.STANDARD
    values = utilities(names, rules, seeds, threads)
    by = {name: values[:, p] for p, name in enumerate(rules)}
    mine = by["edgewise"]
    yield from training()
    yield (
        f"Mean expected utility, {len(seeds)} held-out seeds from {seeds[0]:,}, paired; ± is half "
        "a 95 % interval, over seeds. *control* is `priced_greedy` re-tuned by the same search, "
        "with the decisions that stand above."
    )
    yield ""
    yield "| family | priced_greedy | control | edgewise | − priced_greedy | − control | in % |"
    yield "|---|---|---|---|---|---|---|"
    above = below = 0
    for f, name in enumerate(names):
        over = interval(mine[f] - by["control"][f])
        above, below = above + (over.sign > 0), below + (over.sign < 0)
        base = by["control"][f].mean()
        yield (
            f"| {name} | {by['priced_greedy'][f].mean():.4f} | {base:.4f} | {mine[f].mean():.4f} "
            f"| {pm(interval(mine[f] - by['priced_greedy'][f]))} | {pm(over)} "
            f"| {percent(over, base)} |"
        )
    plain, base = by["priced_greedy"].mean(), by["control"].mean()
    first, over = over_families(mine - by["priced_greedy"]), over_families(mine - by["control"])
    yield (
        f"| **mean** | {plain:.4f} | {base:.4f} | {mine.mean():.4f} | {pm(first)} | {pm(over)} "
        f"| **{percent(over, base)}** |"
    )
    yield ""
    yield (
        f"Over the control: interval above 0 in {above} of {len(names)} families, below 0 in "
        f"{below}. Over `priced_greedy` as shipped: {percent(first, plain)}. Intervals of the "
        "means are clustered by seed."
    )
    yield ""
    yield "| edgewise over | mean | in % | least, in % | family |"
    yield "|---|---|---|---|---|"
    for name in LADDER:
        found = over_families(mine - by[name])
        each = 100 * (mine - by[name]).mean(axis=1) / by[name].mean(axis=1)
        least = int(each.argmin())
        yield (
            f"| {name} | {pm(found)} | {percent(found, by[name].mean())} | {each[least]:+.1f} "
            f"| {names[least]} |"
        )
    rival = by["earliest_completion_margin"]
    gains = ", ".join(
        f"{name} {100 * (mine[f] - rival[f]).mean() / rival[f].mean():+.0f} %"
        for f, name in enumerate(names)
        if name in ("light", "medium", "heavy", "overload")
    )
    yield ""
    yield f"Over `earliest_completion_margin` by load: {gains}."
    yield ""
    yield from guarded(seeds[:GUARDED], threads)


def guarded(seeds: Sequence[int], threads: int) -> Iterator[str]:
    """How often the guard let the heuristic decide."""
    rule = POLICIES["edgewise"]
    shares = {}
    for name in families.STANDARD:
        worlds = [families.scenario(name, seed) for seed in seeds]
        place = Worlds(names=(name,))
        _, _, counters = limits(place, rule, np.array(rule.params), worlds, threads)
        shares[name] = 100.0 * float(counters[1:].sum() / counters[0])
    most = max(shares, key=shares.__getitem__)
    yield (
        f"The guard left {np.mean(list(shares.values())):.2f} % of the decisions to the heuristic, "
        f"most of them in {most} ({shares[most]:.2f} %; {len(seeds)} seeds of each family)."
    )


def training() -> Iterator[str]:
    """How both were trained, from their cards."""
    yield "| weights | command | decisions | seeds | accepted |"
    yield "|---|---|---|---|---|"
    for name in ("edgewise", "control"):
        _, card = weight_files.load(SHIPPED / f"{name}.safetensors")
        yield (
            f"| {name} | `{card.command}` | {card.decisions / 1e6:.1f} M "
            f"| {', '.join(map(str, card.seeds))} | {'yes' if card.accepted else 'no'} |"
        )
    yield ""


# -- what each part gives --------------------------------------------------------------------------


def without(part: str) -> PolicySpec:
    """The shipped policy with a part of its weights set to 0."""
    numbers = np.array(POLICIES["edgewise"].params)
    if part in learned.SERVER_HEADS:
        at = learned.LAYOUT["server_heads"].start + learned.SERVER_HEADS.index(part) * learned.P
        numbers[at : at + learned.P] = 0.0
    elif part in ("row price", "row value"):
        at = learned.LAYOUT["row_heads"].start + (part == "row value") * learned.Q
        numbers[at : at + learned.Q] = 0.0
    elif part == "shed":
        numbers[learned.LAYOUT["shed_head"]] = 0.0
    elif part == "base":
        numbers[learned.LAYOUT["base"]] = numbers[learned.LAYOUT["calibrated"]]
    elif part == "network of rows":
        numbers[learned.O_NETWORK] = 0.0
    elif part == "memory of links":
        for head in range(len(learned.SERVER_HEADS)):
            at = learned.LAYOUT["server_heads"].start + head * learned.P
            for name in ("rate_moves", "rate_off", "aged_moves"):
                numbers[at + list(PHI).index(name)] = 0.0
    elif part == "guard":
        numbers[learned.O_GUARDED] = 0.0
    else:
        raise ValueError(part)
    return weight_files.rule(numbers, f"without {part}")


def ablation(seeds: Sequence[int], threads: int) -> Iterator[str]:
    """What the policy loses with one part taken out, not trained anew."""
    parts = (
        "price", "link", "network", "wait", "spread", "row price", "row value", "shed",
        "memory of links", "base", "guard",
    )  # fmt: skip
    numbers = np.array(POLICIES["edgewise"].params)
    if numbers[learned.O_NETWORK] > 0.0:
        parts = (*parts, "network of rows")
    rules = {"edgewise": POLICIES["edgewise"], **{part: without(part) for part in parts}}
    values = utilities(PARTS_FAMILIES, rules, seeds, threads)
    yield (
        "Change of utility with one part of the shipped weights set to 0 (*base*: the heuristic's "
        "own parameters put back to what they were), nothing trained anew; "
        f"{len(seeds)} held-out seeds."
    )
    yield ""
    yield "| without | " + " | ".join(PARTS_FAMILIES) + " | mean |"
    yield "|---" * (len(PARTS_FAMILIES) + 2) + "|"
    for p, part in enumerate(parts, 1):
        lost = values[:, p] - values[:, 0]
        cells = " | ".join(f"{x:+.4f}" for x in lost.mean(axis=1))
        yield f"| {part} | {cells} | {pm(over_families(lost))} |"


SECTIONS = {"table": table, "ablation": ablation}


def main() -> None:
    """Rewrite the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument(
        "--first",
        type=int,
        default=100,
        help="held-out seeds before these were looked at in training",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, help="folder to keep what was played in")
    parser.add_argument("--only", default=",".join(SECTIONS))
    wishes = parser.parse_args()
    global CACHE
    CACHE = wishes.cache
    seeds = suite.evaluation_seeds(wishes.first + wishes.seeds)[wishes.first :]
    for name in wishes.only.split(","):
        text = "\n".join(SECTIONS[name](seeds, wishes.threads))
        rewrite(DOCUMENT, f"learning {name}", text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
