"""Run the same scenario in the simulator and on real processes, and compare the recorded files.

::

    OUT/scenario.yaml
    OUT/simulated/POLICY/seed-N/   requests, outcomes, decisions
    OUT/emulated/POLICY/seed-N/    the files of `edgewise up`

A folder that holds a finished run is not made again, so an interrupted comparison resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from edgewise.errors import BadInput
from edgewise.fidelity.comparison import RecordedRun, RunComparison, compare_runs, read_run
from edgewise.fidelity.recording import record_episode
from edgewise.files import write_atomically
from edgewise.live.run.launcher import RunOptions, launch
from edgewise.policy_names import labels
from edgewise.scenario import Scenario, dump
from edgewise.sim.build import SimOptions
from edgewise.sim.simulate import Photos, episode

SIMULATED, EMULATED = "simulated", "emulated"
TOLERANCE = 0.02
"""Absolute difference of the expected utility: a tenth of what good policies here have over poor
ones."""
TOLERANCE_REAL = 0.04
"""The same with real models, whose times depend on the photo and on other users of the cores."""

Say = Callable[[str], None]
Runs = dict[str, tuple[RecordedRun, RecordedRun]]
"""By policy: simulated, and on processes."""


def shared_scenario(scenario: Scenario, *, real: bool = False) -> tuple[Scenario, tuple[str, ...]]:
    """The scenario as both sides run it, and a sentence for each difference from the given one.

    Both have its network by relays, and recorded latencies unless `real`.
    """
    notes = []
    if not scenario.network.emulate:
        notes.append("the network is emulated here, though the scenario says emulate: false")
    network = msgspec.structs.replace(scenario.network, emulate=True)
    executor = "onnx" if real else "replay"
    return msgspec.structs.replace(scenario, executor=executor, network=network), tuple(notes)


def compare_live(
    scenario: Scenario,
    policies: Sequence[str],
    seeds: int,
    out: Path,
    console: Console,
    *,
    real: bool = False,
    say: Say = lambda line: None,
) -> tuple[RunComparison, Runs]:
    """Run `policies` on both sides, on `seeds` seeds from the scenario's own, and compare.

    Parameters
    ----------
    out:
        Folder of all files. Finished runs in it are used again, if the scenario is the same.
    console:
        Where the live runs show their progress.
    real:
        Use real models in place of recorded latencies.
    say:
        Called with a sentence for every live run that begins.

    Returns the comparison and the runs that it compares. Raises BadInput for a folder of another
    scenario, PeerError for a process that fails.
    """
    scenario, notes = shared_scenario(scenario, real=real)
    file = _new_comparison(out, scenario)
    photos = Photos.of(scenario)
    numbers = [scenario.seed + n for n in range(seeds)]
    label = labels(policies)
    total, done = len(policies) * seeds, 0
    runs: Runs = {}
    for policy in policies:
        folders = {
            side: [out / side / label[policy] / f"seed-{seed}" for seed in numbers]
            for side in (SIMULATED, EMULATED)
        }
        for seed, simulated, emulated in zip(numbers, *folders.values(), strict=True):
            if not _is_finished(simulated):
                one = scenario.with_overrides(seed=seed, policy=policy)
                options = SimOptions(keep_reports=True)
                record_episode(simulated, episode(one, policy, photos, options))
            done += 1
            if not _is_finished(emulated):
                _clear(emulated)
                say(f"{policy}, seed {seed}: run {done} of {total}")
                launch(
                    RunOptions(
                        scenario=str(file),
                        policies=(policy,),
                        allow_code=True,  # only `policy` is run
                        seed=seed,
                        out=emulated,
                    ),
                    console,
                )
        runs[policy] = read_run(folders[SIMULATED]), read_run(folders[EMULATED])
    comparison = compare_runs(
        runs,
        scenario=scenario.name,
        sides=(SIMULATED, "real models" if real else EMULATED),
        seeds=numbers,
        tolerance=TOLERANCE_REAL if real else TOLERANCE,
        notes=notes,
    )
    return comparison, runs


def _new_comparison(out: Path, scenario: Scenario) -> Path:
    """Make the folder `out`, or resume the comparison in it; returns the scenario's file."""
    file = out / "scenario.yaml"
    text = dump(scenario)
    if not file.exists() and out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out}: expected a new folder, or one of an earlier comparison")
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise BadInput(f"{out}: holds a comparison of another scenario; choose another folder")
    write_atomically(file, text.encode())
    return file


def _is_finished(folder: Path) -> bool:
    """Recorders join their segments last: a run that was cut short has none of these files."""
    return all((folder / f"{name}.parquet").is_file() for name in ("requests", "outcomes"))


def _clear(folder: Path) -> None:
    """Remove the files of a run that was cut short; such a folder holds nothing else."""
    if folder.is_dir():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
