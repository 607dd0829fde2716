"""Write the studies of docs/learning.md, in place, and their figures as JSON.

    python scripts/learning_studies.py information forms shift [--seeds 30] [--budget 10m]
    python scripts/learning_studies.py gap --seeds 4 --trials 6000 --budget 10m
    python scripts/learning_studies.py parts --generations 60 --budget 20m [--arms control,learned]
    python scripts/learning_studies.py specialist --minutes 1,5 [--specialists bursty]

What has been played or trained is kept in --out and not done again: run the same command again
to go on, with more --seeds to add some. No episode and no training run begins after --budget (for
each study); what is written then rests on the seeds that everybody has played.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import msgspec
from studies import forms, gap, information, shift, trained
from studies.played import Played, Section, StoredResults

from edgewise.bench import suite, tune
from edgewise.bench.document import rewrite
from edgewise.errors import EdgewiseError
from edgewise.learn.trainer import EsProgress
from edgewise.policy import POLICIES, find, weight_files
from edgewise.worlds import families

DOCUMENT = Path(__file__).parents[1] / "docs" / "learning.md"
CONTROL = Path(weight_files.__file__).parent / "weights" / "control.safetensors"
STUDIES = ("information", "gap", "forms", "shift", "specialist", "parts")
EVERY = 2.0
"""s between two lines of progress."""


class Shown:
    """Progress on stderr, a line every few seconds."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last = self._began

    def __call__(self, done: int, of: int, what: str) -> None:
        now = time.monotonic()
        if now - self._last >= EVERY or done == of:
            self._last = now
            left = (now - self._began) / max(1, done) * (of - done) / 60
            print(
                f"  {what:<28} {done:5d} of {of}  {left:5.1f} min left", file=sys.stderr, flush=True
            )

    def training(self, run: str, step: EsProgress) -> None:
        """Of a training run."""
        now = time.monotonic()
        if now - self._last >= EVERY or step.done >= 1.0:
            self._last = now
            print(
                f"  {run}  generation {step.generation}  {100 * step.done:3.0f} %"
                f"  {step.per_second / 1e3:.0f} k/s",
                file=sys.stderr,
                flush=True,
            )


def seconds(text: str) -> float:
    """90s, 30m, 2h; "" is no limit."""
    return tune.seconds(text) if text else float("inf")


def study(name: str, wishes: argparse.Namespace) -> Section:
    """One of `STUDIES`."""
    first = wishes.first
    seeds = suite.evaluation_seeds(first + wishes.seeds)[first:]
    until = time.monotonic() + seconds(wishes.budget)
    shown = Shown()
    played = Played(
        StoredResults(wishes.out / "figures.jsonl"),
        seeds,
        threads=wishes.threads,
        until=until,
        progress=shown,
    )
    runs = trained.Trainer(
        folder=wishes.out / "trained",
        threads=wishes.threads,
        until=until,
        surveyed=wishes.surveyed,
        judged=wishes.judged,
        progress=shown.training,
    )
    control, policy = find(str(CONTROL)), POLICIES["edgewise"]
    if name == "information":
        retuned = None
        if wishes.retune:
            retuned = trained.informed_heuristic(runs, control, budget=seconds(wishes.retune))
        return information.study(played, control, policy, retuned)
    if name == "gap":
        rules = {name: POLICIES[name] for name in ("priced_greedy", gap.MARGIN)}
        rules |= {"control": control, "edgewise": policy}
        names = wishes.families.split(",") if wishes.families else families.STANDARD
        return gap.study(played, rules, names, duration=wishes.duration, trials=wishes.trials)
    if name == "forms":
        return forms.study(played, policy)
    if name == "shift":
        return shift.study(played, POLICIES["priced_greedy"], policy)
    if name == "specialist":
        return trained.specialists(
            played,
            runs,
            policy,
            minutes=tuple(float(each) for each in wishes.minutes.split(",")),
            names=wishes.specialists.split(","),
        )
    return trained.parts(
        played,
        runs,
        generations=wishes.generations,
        training_seeds=tuple(int(each) for each in wishes.training_seeds.split(",")),
        arms=wishes.arms.split(","),
        worlds=wishes.worlds,
    )


def main() -> int:
    """Make the studies asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="+", choices=(*STUDIES, "all"), metavar="STUDY")
    parser.add_argument("--seeds", type=int, default=30, help="held-out worlds of each family")
    parser.add_argument("--first", type=int, default=100, help="held-out seeds to leave out")
    parser.add_argument("--budget", default="", help="for each study: 90s, 10m. Default: no limit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="figures, weights")
    parser.add_argument("--docs", type=Path, default=DOCUMENT)
    parser.add_argument(
        "--retune",
        default="",
        metavar="TIME",
        help="information: re-tune the heuristic with perfect information for so long, too",
    )
    parser.add_argument("--trials", type=int, help="gap: of the search per world (25 per request)")
    parser.add_argument("--duration", type=float, default=4.0, help="gap: s of an episode")
    parser.add_argument("--families", default="", help="gap: which. Default: the standard suite")
    parser.add_argument("--minutes", default="1,5,20", help="specialist: of fine-tuning")
    parser.add_argument("--specialists", default=",".join(trained.SPECIALISTS))
    parser.add_argument("--generations", type=int, default=100, help="parts: of each run")
    parser.add_argument("--training-seeds", default="1,2,3", help="parts")
    parser.add_argument("--arms", default=",".join(trained.ARMS), help="parts")
    parser.add_argument("--worlds", type=int, default=40, help="parts: per generation")
    parser.add_argument("--surveyed", type=int, default=300, help="worlds for the guard's limits")
    parser.add_argument("--judged", type=int, default=24, help="specialist: validation worlds")
    wishes = parser.parse_args()
    failed = 0
    for name in STUDIES if "all" in wishes.studies else wishes.studies:
        print(name, file=sys.stderr, flush=True)
        try:
            found = study(name, wishes)
        except EdgewiseError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = 1
            continue
        text = "\n".join(found.lines)
        rewrite(wishes.docs, f"learning {name}", text)
        wishes.out.mkdir(parents=True, exist_ok=True)
        data = msgspec.json.format(msgspec.json.encode(found.figures))
        (wishes.out / f"{name}.json").write_bytes(data + b"\n")
        print(text, flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
