"""A calibrated scenario held against another run of the same fleet."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgewise.errors import BadInput
from edgewise.fidelity.calibrate import Calibration
from edgewise.fidelity.compare import Run, WorldsComparison, compare, read_run
from edgewise.fidelity.files import record
from edgewise.live import records
from edgewise.live.recorder import read
from edgewise.scenario import Scenario
from edgewise.sim.build import SimOptions
from edgewise.sim.simulate import Photos, episode

TOLERANCE = 0.04
"""Of the expected utility, absolute. Two runs of 700 requests differ by 0.02 through their requests
alone, so less would tell of these."""
SEEDS = 8
"""Simulated worlds: their spread should not be what is seen."""


def policy_of(run: Path) -> str:
    """Who decided in a run. Raises BadInput if its decisions were not kept or are of several."""
    names = set(read(run, records.DECISIONS.name).column("policy").to_pylist())
    if len(names) != 1:
        raise BadInput(f"{run}: expected decisions of one policy, found {len(names)}")
    return str(names.pop())


def hold(
    scenario: Scenario, calibration: Calibration, run: Path, policy: str, seeds: int = SEEDS
) -> tuple[WorldsComparison, tuple[Run, Run]]:
    """Simulate the calibrated `scenario` on `seeds` seeds and compare with the recorded `run`.

    The requests are others of the same kind, so the difference has theirs in it: its ± says how
    much. Raises BadInput for a run that cannot be read.
    """
    options = SimOptions()
    if calibration.report_delay is not None:
        options = SimOptions(report_delay=calibration.report_delay)
    photos = Photos.of(scenario)
    numbers = [scenario.seed + 1000 + n for n in range(seeds)]  # none that a run had
    with tempfile.TemporaryDirectory(prefix="edgewise-held-") as scratch:
        folders = [Path(scratch) / str(seed) for seed in numbers]
        for seed, folder in zip(numbers, folders, strict=True):
            record(folder, episode(scenario.with_overrides(seed=seed), policy, photos, options))
        both = (read_run(folders), read_run([run]))
    found = compare(
        {policy: both},
        scenario=scenario.name,
        worlds=("calibrated", "recorded"),
        seeds=numbers,
        tolerance=TOLERANCE,
    )
    return found, both
