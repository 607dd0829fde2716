"""The same scenario in the simulator and on real processes: runs both, keeps both sets of files.

::

    OUT/scenario.yaml
    OUT/simulated/POLICY/seed-N/   requests, outcomes, decisions
    OUT/emulated/POLICY/seed-N/    what `edgewise up` writes

A folder that holds a finished run is not made again, so an interrupted comparison goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from rich.console import Console

from edgewise.errors import BadInput
from edgewise.fidelity.compare import WorldsComparison, compare, read_run
from edgewise.fidelity.files import record
from edgewise.live.run.launcher import RunOptions, launch
from edgewise.policy_names import labels
from edgewise.scenario import Scenario, dump
from edgewise.sim.build import SimOptions
from edgewise.sim.simulate import Photos, episode

SIMULATED, EMULATED = "simulated", "emulated"
TOLERANCE = 0.02
"""Of the expected utility, absolute: a tenth of what tells good policies from poor ones here."""
TOLERANCE_REAL = 0.04
"""With real models, whose times depend on the photo and on who else uses the cores."""

Say = Callable[[str], None]


def common(scenario: Scenario, *, real: bool = False) -> tuple[Scenario, tuple[str, ...]]:
    """What both worlds can play of `scenario`, and a sentence for each thing left out.

    Both get the network of the file by relays, and recorded latencies unless `real`.
    """
    notes = []
    executor = "onnx" if real else "replay"
    network = msgspec.structs.replace(scenario.network, emulate=True)
    if not scenario.network.emulate:
        notes.append("the network is emulated here, though the scenario says emulate: false")
    shared = msgspec.structs.replace(scenario, executor=executor, network=network)
    return shared, tuple(notes)


def compare_worlds(
    scenario: Scenario,
    policies: Sequence[str],
    seeds: int,
    out: Path,
    console: Console,
    *,
    real: bool = False,
    say: Say = lambda line: None,
) -> WorldsComparison:
    """Run `policies` on `seeds` seeds from the scenario's own, in both worlds, and compare.

    Parameters
    ----------
    out:
        Folder of all files; what is there and whole is used again, if the scenario is the same.
    console:
        Where the live runs show themselves.
    real:
        Real models in place of recorded latencies.
    say:
        Called with a sentence for every run that begins.

    Raises BadInput for a folder of another scenario, PeerError for a process that fails.
    """
    scenario, notes = common(scenario, real=real)
    file = out / "scenario.yaml"
    text = dump(scenario)
    if not file.exists() and out.is_dir() and any(out.iterdir()):
        raise BadInput(f"{out}: expected a new folder, or one of an earlier comparison")
    if file.exists() and file.read_text(encoding="utf-8") != text:
        raise BadInput(f"{out}: holds a comparison of another scenario; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{out}: cannot be written: {error.strerror}") from None
    photos = Photos.of(scenario)
    numbers = [scenario.seed + n for n in range(seeds)]
    label = labels(policies)
    total, done = len(policies) * seeds, 0
    runs = {}
    for policy in policies:
        for seed in numbers:
            one = scenario.with_overrides(seed=seed, policy=policy)
            folder = out / SIMULATED / label[policy] / f"seed-{seed}"
            if not _whole(folder):
                record(folder, episode(one, policy, photos, SimOptions(keep_reports=True)))
            done += 1
            folder = out / EMULATED / label[policy] / f"seed-{seed}"
            if not _whole(folder):
                _clear(folder)
                say(f"{policy}, seed {seed}: run {done} of {total}")
                launch(
                    RunOptions(
                        scenario=str(file),
                        policies=(policy,),
                        allow_code=True,  # only `policy` is run
                        seed=seed,
                        out=folder,
                    ),
                    console,
                )
        runs[policy] = (
            read_run([out / SIMULATED / label[policy] / f"seed-{seed}" for seed in numbers]),
            read_run([out / EMULATED / label[policy] / f"seed-{seed}" for seed in numbers]),
        )
    return compare(
        runs,
        scenario=scenario.name,
        worlds=(SIMULATED, "real models" if real else EMULATED),
        seeds=numbers,
        tolerance=TOLERANCE_REAL if real else TOLERANCE,
        notes=notes,
    )


def _whole(folder: Path) -> bool:
    """Recorders join their segments last: a run that was cut short has none of these files."""
    return all((folder / f"{name}.parquet").is_file() for name in ("requests", "outcomes"))


def _clear(folder: Path) -> None:
    """Remove what is left of a run that was cut short; there is nothing else in such a folder."""
    if folder.is_dir():
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
