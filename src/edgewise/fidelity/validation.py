"""Validate a calibrated scenario: simulate it and compare with another run of the same fleet."""

from __future__ import annotations

import tempfile
from pathlib import Path

from edgewise.errors import BadInput
from edgewise.fidelity.calibration import Calibration
from edgewise.fidelity.comparison import RunComparison, compare_runs, read_run
from edgewise.fidelity.recording import record_episode
from edgewise.live import records
from edgewise.live.recorder import read
from edgewise.scenario import Scenario
from edgewise.sim.build import SimOptions
from edgewise.sim.simulate import Photos, episode

TOLERANCE = 0.04
"""Absolute difference of the expected utility. Two runs of 700 requests differ by 0.02 because of
their requests alone, so a smaller tolerance would measure these."""
SEEDS = 8
"""Simulated seeds: enough that their own spread hardly counts."""


def policy_of(run: Path) -> str:
    """The policy that decided in a run. Raises BadInput unless its decisions name exactly one."""
    names = set(read(run, records.DECISIONS.name).column("policy").to_pylist())
    if len(names) != 1:
        raise BadInput(f"{run}: expected decisions of one policy, found {len(names)}")
    return str(names.pop())


def validate(
    scenario: Scenario, calibration: Calibration, run: Path, policy: str, seeds: int = SEEDS
) -> RunComparison:
    """Simulate the calibrated `scenario` on `seeds` seeds and compare with the recorded `run`.

    The requests are others of the same kind. That is part of the difference, and its ± says how
    much. Raises BadInput for a run that cannot be read.
    """
    options = SimOptions(report_delay=calibration.report_delay)
    photos = Photos.of(scenario)
    numbers = [scenario.seed + 1000 + n for n in range(seeds)]  # seeds that no run had
    with tempfile.TemporaryDirectory(prefix="edgewise-validate-") as scratch:
        folders = [Path(scratch) / str(seed) for seed in numbers]
        for seed, folder in zip(numbers, folders, strict=True):
            simulated = episode(scenario.with_overrides(seed=seed), policy, photos, options)
            record_episode(folder, simulated)
        both = read_run(folders), read_run([run])
    return compare_runs(
        {policy: both},
        scenario=scenario.name,
        sides=("calibrated", "recorded"),
        seeds=numbers,
        tolerance=TOLERANCE,
    )
