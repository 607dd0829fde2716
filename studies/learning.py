"""Write the studies of docs/learning.md, in place, and their figures as JSON.

    python -m studies.learning table ablation [--seeds 30] [--budget 10m]
    python -m studies.learning information forms shift [--seeds 30] [--budget 10m]
    python -m studies.learning gap --seeds 4 --trials 6000 --budget 10m
    python -m studies.learning parts --generations 60 --budget 20m [--arms control,learned]
    python -m studies.learning specialist --minutes 1,5 [--specialists bursty]

Every result is kept in --out and is not computed again. Run the same command again to resume, with
more --seeds to add some. --budget is a limit for each study: no episode and no training run begins
after it, and the section then rests on the seeds that every policy has played.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import msgspec

from edgewise.benchmark.document import rewrite
from edgewise.cli.failures import in_one_line
from edgewise.errors import EdgewiseError
from edgewise.learn.search import Progress as SearchProgress
from edgewise.learn.search import seconds
from edgewise.policies import POLICIES, find
from edgewise.worlds import families
from studies import comparison, forms, gap, information, shift, training
from studies.experiment import Experiment, ResultStore, Section

DOCUMENT = Path(__file__).parents[1] / "docs" / "learning.md"
STUDIES = (
    "table", "ablation", "information", "gap", "forms", "shift", "specialist", "parts",
)  # fmt: skip
EVERY = 2.0
"""s between two lines of progress."""


class Progress:
    """Prints progress to stderr, a line every few seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last = self._began

    def episodes(self, done: int, total: int, what: str) -> None:
        """Show how many episodes of a study are done."""
        now = time.monotonic()
        if now - self._last >= EVERY or done == total:
            self._last = now
            left = (now - self._began) / max(1, done) * (total - done) / 60
            print(
                f"  {what:<28} {done:5d} of {total}  {left:5.1f} min left",
                file=sys.stderr,
                flush=True,
            )

    def training(self, run: str, step: SearchProgress) -> None:
        """Show how far a training run is."""
        now = time.monotonic()
        if now - self._last >= EVERY or step.used >= 1.0:
            self._last = now
            print(
                f"  {run}  generation {step.steps}  {100 * step.used:3.0f} %"
                f"  {step.per_second / 1e3:.0f} k/s",
                file=sys.stderr,
                flush=True,
            )


def limit(text: str) -> float:
    """A time such as 90s, 30m or 2h in s; an empty text is no limit."""
    return seconds(text) if text else float("inf")


def study(name: str, options: argparse.Namespace) -> Section:
    """Run one of `STUDIES`."""
    until = time.monotonic() + limit(options.budget)
    progress = Progress()
    experiment = Experiment(
        ResultStore(options.out / "figures.jsonl"),
        families.evaluation_seeds(options.seeds, options.first),
        threads=options.threads,
        until=until,
        progress=progress.episodes,
    )
    runs = training.TrainingRuns(
        folder=options.out / "trained",
        threads=options.threads,
        until=until,
        surveyed=options.surveyed,
        judged=options.judged,
        progress=progress.training,
    )
    control, policy = find(str(comparison.CONTROL)), POLICIES["edgewise"]
    if name == "table":
        return comparison.table(experiment, control, policy)
    if name == "ablation":
        return comparison.ablation(experiment, policy)
    if name == "information":
        retuned = None
        if options.retune:
            retuned = training.informed_heuristic(runs, control, budget=limit(options.retune))
        return information.study(experiment, control, policy, retuned)
    if name == "gap":
        rules = {name: POLICIES[name] for name in ("priced_greedy", gap.MARGIN)}
        rules |= {"control": control, "edgewise": policy}
        names = options.families.split(",") if options.families else families.STANDARD
        return gap.study(experiment, rules, names, duration=options.duration, trials=options.trials)
    if name == "forms":
        return forms.study(experiment, policy)
    if name == "shift":
        return shift.study(experiment, POLICIES["priced_greedy"], policy)
    if name == "specialist":
        return training.specialists(
            experiment,
            runs,
            policy,
            minutes=tuple(float(each) for each in options.minutes.split(",")),
            names=options.specialists.split(","),
        )
    return training.parts(
        experiment,
        runs,
        generations=options.generations,
        training_seeds=tuple(int(each) for each in options.training_seeds.split(",")),
        arms=options.arms.split(","),
        worlds=options.worlds,
    )


def parser() -> argparse.ArgumentParser:
    """The command line; the name before a colon in a help text is the study the option is for."""
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("studies", nargs="+", choices=(*STUDIES, "all"), metavar="STUDY")
    add("--seeds", type=int, default=30, help="held-out worlds of each family")
    add("--first", type=int, default=100, help="held-out seeds to skip: training looked at these")
    add("--budget", default="", help="for each study: 90s, 10m. Default: no limit")
    add("--threads", type=int, default=2)
    add("--out", type=Path, default=Path("runs/learning"), help="folder of results and weights")
    add("--docs", type=Path, default=DOCUMENT)
    add(
        "--retune",
        default="",
        metavar="TIME",
        help="information: also re-tune the heuristic with perfect information, for this long",
    )
    add("--trials", type=int, help="gap: of the search in each world. Default: 25 per request")
    add("--duration", type=float, default=4.0, help="gap: s of an episode")
    add("--families", default="", help="gap: which. Default: the standard suite")
    add("--minutes", default="1,5,20", help="specialist: of fine-tuning")
    add(
        "--specialists", default=",".join(training.SPECIALIST_FAMILIES), help="specialist: families"
    )
    add("--generations", type=int, default=100, help="parts: of each run")
    add("--training-seeds", default="1,2,3", help="parts: one run of each arm for each seed")
    add("--arms", default=",".join(training.ARMS), help="parts: which arms to train")
    add("--worlds", type=int, default=40, help="parts: per generation")
    add("--surveyed", type=int, default=300, help="worlds from which the guard's limits are taken")
    add("--judged", type=int, default=24, help="specialist: validation worlds")
    return made


def main() -> int:
    """Run the studies asked for; returns 1 if one of them failed."""
    options = parser().parse_args()
    failed = 0
    for name in STUDIES if "all" in options.studies else options.studies:
        print(name, file=sys.stderr, flush=True)
        try:
            section = study(name, options)
        except EdgewiseError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = 1
            continue
        text = "\n".join(section.lines)
        rewrite(options.docs, f"learning {name}", text)
        options.out.mkdir(parents=True, exist_ok=True)
        data = msgspec.json.format(msgspec.json.encode(section.figures))
        (options.out / f"{name}.json").write_bytes(data + b"\n")
        print(text, flush=True)
    return failed


if __name__ == "__main__":
    with in_one_line():
        raise SystemExit(main())
