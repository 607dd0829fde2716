"""Measure how closely the simulator matches processes, and write docs/fidelity.md.

    python -m studies.fidelity [--quick] [--work DIR] [--seeds N] [--policies P,P]
                               [--only PART,…] [--write-only]

Runs the commands one after the other, each with the JSON of its answer in the work folder; what is
there is not measured again, so an interrupted run goes on, and a part is measured anew by removing
its file. Needs a machine with nothing else on it. On two cores the whole takes about 40 minutes,
``--quick`` (a third of the duration, one seed, two policies) about 10. With ``--write-only`` the
document is made of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from edgewise.benchmark.document import rewrite
from edgewise.cli.failures import in_one_line
from edgewise.scenario import dump, load, presets
from edgewise.tasks.imagenet import zoo
from edgewise.worlds import families

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "fidelity.md"
PICTURE = ROOT / "docs" / "fidelity.svg"

POLICIES = "edgewise,earliest_completion,priced_greedy,local"
"""The learned one, the plain rule, the heuristic that it corrects, and one that knows nothing."""
QUICK_POLICIES = "earliest_completion,local"
WORLDS = (2, 7, 11)
"""Seeds of the training family: three sampled worlds, by no result."""
REAL = ("three-sites", "single-model", "volatile")
"""The presets of real models: half a core to two thirds of one, which two cores can carry. *direct*
is three-sites once more, for here both are emulated."""


class Part:
    """One command and where its JSON goes."""

    def __init__(self, name: str, *arguments: str) -> None:
        self.name = name
        self.arguments = arguments


def parts(options: argparse.Namespace, work: Path) -> Iterator[Part]:
    """Every part, in order; later ones use files of earlier ones."""
    few = ["--seeds", str(options.seeds)]
    for name in presets():
        yield Part(
            f"emulated-{name}", "compare-live", name, "--policy", options.policies,
            *duration(name, options.quick), *few, "--out", str(work / f"emulated-{name}"),
        )  # fmt: skip
    for seed in WORLDS:
        file = work / f"train-{seed}.yaml"
        if not file.exists():
            file.write_text(dump(families.scenario("train", seed)), encoding="utf-8")
        yield Part(
            f"emulated-train-{seed}", "compare-live", str(file), "--policy", options.policies,
            *duration(str(file), options.quick), *few,
            "--out", str(work / f"emulated-train-{seed}"),
        )  # fmt: skip
    if all(zoo.converted_file(rung.name) is not None for rung in zoo.models()):
        profile = work / "profile.yaml"
        yield Part(
            "profile", "profile", "--runs", "20" if options.quick else "100", "--out", str(profile)
        )
        # The preset gives no latencies, noise or preparation time: the profile has them all.
        for name in REAL:
            file = work / f"real-{name}.yaml"
            text = presets()[name].read_text(encoding="utf-8")
            file.write_text(f"{text}profile: {profile}\n", encoding="utf-8")
            yield Part(
                f"real-{name}", "compare-live", str(file), "--real",
                "--policy", options.policies, *duration(name, options.quick), *few,
                "--out", str(work / f"real-{name}"),
            )  # fmt: skip
    # The same fleet recorded twice, on other requests.
    for seed in (101, 102):
        yield Part(
            f"recorded-{seed}", "compare-live", "three-sites", "--seed", str(seed),
            *duration("three-sites", options.quick), "--out", str(work / f"recorded-{seed}"),
        )  # fmt: skip
    runs = [
        work / f"recorded-{seed}" / "emulated" / load("three-sites").policy / f"seed-{seed}"
        for seed in (101, 102)
    ]
    yield Part(
        "calibrate", "calibrate", str(runs[0]), "--against", str(runs[1]),
        "--out", str(work / "calibrated.yaml"),
    )  # fmt: skip


def duration(scenario: str, quick: bool) -> Sequence[str]:
    """A third of it, at least 3 s."""
    if not quick:
        return ()
    return ("--duration", f"{max(3.0, load(scenario).workload.duration / 3.0):.3g}")


def measure(part: Part, work: Path) -> None:
    """Run a part unless its JSON is there. Ends the program with the command's own message."""
    file = work / f"{part.name}.json"
    if file.exists():
        return
    print(f"{part.name}: edgewise {' '.join(part.arguments)}", flush=True)
    partial = file.with_suffix(".part")
    done = subprocess.run(
        [sys.executable, "-m", "edgewise", *part.arguments, "--json", str(partial)],
        env=os.environ | {"COLUMNS": "120"},
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{part.name}: ended with {done.returncode}")
    os.replace(partial, file)


# -- the document --------------------------------------------------------------------------------


def read(work: Path, name: str) -> Any:
    file = work / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def verdict_rows(name: str, found: dict[str, Any]) -> Iterator[str]:
    ranking = "same" if found["same_ranking"] else "differs"
    for each in found["policies"]:
        first, second = (side["utility"] for side in each["sides"])
        half = "" if each["plus_minus"] is None else f" ± {each['plus_minus']:.3f}"
        within = "yes" if each["within"] else "**no**"
        yield (
            f"| {name} | {each['policy']} | {first:.3f} | {second:.3f} | "
            f"{each['difference']:+.3f}{half} | {within} | {ranking} |"
        )


def verdict_table(work: Path, names: Sequence[str]) -> list[str]:
    lines = [
        "| scenario | policy | simulated | processes | Δ utility | within | ranking |",
        "|---|---|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for name in names:
        found = read(work, name)
        if found is None:
            lines.append(f"| {name} | not measured | | | | | |")
            continue
        short = name.removeprefix("emulated-")
        lines += verdict_rows(short, found)
        notes += [f"- {short}: {note}." for note in found["notes"]]
        notes += [
            f"- {short}: {a} − {b} is {each['gaps'][0]:+.3f} simulated and "
            f"{each['gaps'][1]:+.3f} on processes"
            + (f", the smaller gap ± {each['noise']:.3f}." if each["noise"] is not None else ".")
            for each in found["inversions"]
            for a, b in [each["policies"]]
        ]
    return [*lines, "", *notes]


def stage_table(pair: dict[str, Any], worlds: Sequence[str]) -> list[str]:
    heads = " | ".join(f"{p} {w}" for p in ("p50", "p95") for w in worlds)
    lines = [f"| ms | {heads} |", "|---|---|---|---|---|"]
    for stage in pair["sides"][0]["times"]:
        spreads = [side["times"][stage] for side in pair["sides"]]
        cells = [spread[p] for p in ("p50_ms", "p95_ms") for spread in spreads]
        line = " | ".join("–" if cell is None else f"{cell:.1f}" for cell in cells)
        lines.append(f"| {stage} | {line} |")
    return lines


def measured(work: Path, options: argparse.Namespace) -> str:
    """The tables as Markdown."""
    names = [f"emulated-{each}" for each in (*presets(), *(f"train-{s}" for s in WORLDS))]
    quick = " --quick" if options.quick else ""
    command = f"python -m studies.fidelity{quick} --seeds {options.seeds}"
    versions = ", ".join(f"{each} {version(each)}" for each in ("edgewise", "numpy", "onnxruntime"))
    lines = [
        f"`{command} --policies {options.policies}`, Python {platform.python_version()}, "
        f"{versions}, {os.cpu_count()} cores.", "",
        "### Simulated and emulated", "",
        "Same requests, recorded latencies, relays. ± is a 95 % interval; within: |Δ| ≤ 0.02.", "",
        *verdict_table(work, names),
    ]  # fmt: skip
    found = read(work, "emulated-three-sites")
    if found is not None:
        pair = found["policies"][0]
        lines += ["", f"Stage by stage, three-sites under {pair['policy']}; transfer: of those "
                  "that were moved.", "", *stage_table(pair, found["sides"])]  # fmt: skip
        picture = work / "emulated-three-sites" / "stages.svg"
        if picture.exists():
            PICTURE.write_bytes(picture.read_bytes())
            lines += ["", "![Share of requests by time in each stage](fidelity.svg)"]
    lines += ["", "### Simulated and real models", ""]
    profile = read(work, "profile")
    if profile is None:
        lines += ["Not measured: the models are not prepared (`edgewise models prepare`)."]
    else:
        lines += [
            f"`{profile['command']}` on {profile['machine']}; ms.", "",
            "| model | mean | p95 | CPU | model-ready | σ of log | × with 2 | batch of 4, each |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name, each in profile["models"].items():
            original, batch = each["original"], each["batch"]
            lines.append(
                f"| {name} | {1e3 * original['mean']:.1f} | {1e3 * original['p95']:.1f} | "
                f"{1e3 * original['cpu']:.1f} | {1e3 * each['model_ready']['mean']:.1f} | "
                f"{original['sigma']:.2f} | {each['slowdown'].get('2', 1.0):.2f} | "
                f"{1e3 * batch.get('4', 0.0) / 4:.1f} |"
            )
        lines += ["", "With that profile; within: |Δ| ≤ 0.04.", "",
                  *verdict_table(work, [f"real-{name}" for name in REAL])]  # fmt: skip
    lines += ["", "### Calibrated", ""]
    calibrated = read(work, "calibrate")
    if calibrated is None:
        lines += ["Not measured."]
    else:
        lines += [
            "An emulated run of three-sites, fitted; *was* is what its scenario says.", "",
            "| figure | was | found | unit | observations | |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for each in calibrated["calibration"]["fitted"]:
            was, now = ("–" if v is None else f"{v:.4g}" for v in (each["was"], each["found"]))
            cells = (each["field"], was, now, each["unit"], str(each["count"]), each["note"])
            lines.append(f"| {' | '.join(cells)} |")
        if calibrated["against"] is not None:
            pair = calibrated["against"]["policies"][0]
            first, second = (side["utility"] for side in pair["sides"])
            lines += [
                "", f"Simulated on {len(calibrated['against']['seeds'])} seeds and compared with a "
                f"second run (other requests): expected utility {first:.3f} and {second:.3f}, "
                f"Δ {pair['difference']:+.3f} ± {pair['plus_minus'] or 0:.3f}.", "",
                *stage_table(pair, calibrated["against"]["sides"]),
            ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a third of the time, one seed")
    parser.add_argument("--work", type=Path, default=Path("runs/fidelity"), help="folder of parts")
    parser.add_argument("--seeds", type=int, default=None, help="per scenario; default 3")
    parser.add_argument("--policies", default=None, metavar="P,P", help=f"default {POLICIES}")
    parser.add_argument("--only", default=None, metavar="PART,PART", help="by name, to try")
    parser.add_argument("--write-only", action="store_true", help="measure nothing")
    options = parser.parse_args()
    options.seeds = options.seeds or (1 if options.quick else 3)
    options.policies = options.policies or (QUICK_POLICIES if options.quick else POLICIES)
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if not options.write_only:
        every = list(parts(options, work))
        if options.only is not None:
            every = [part for part in every if part.name in options.only.split(",")]
        for number, part in enumerate(every, 1):
            print(f"[{number}/{len(every)}] {part.name}", flush=True)
            measure(part, work)
    rewrite(DOCUMENT, "measured", measured(work, options))
    print(f"written: {DOCUMENT}")


if __name__ == "__main__":
    with in_one_line():
        main()
