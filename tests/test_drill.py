"""`edgewise drill --virtual`: kept seeds, and faults put back in that it must find."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest
from typer.testing import CliRunner

from edgewise.cli.main import app
from edgewise.live.balancer.open_decisions import OpenDecisions
from edgewise.live.node.request_handler import RequestHandler
from edgewise.live.node.single_flight import SingleFlight
from edgewise.live.node.worker_queue import QueueTicket, WorkerQueue
from edgewise.live.recorder import Recorder
from edgewise.testing.drill import play, run_drill
from edgewise.testing.faults import KINDS, Fault, draw_plan

FEW = 100
"""Requests of a run here, about: most of them take half a second."""

QUICK = (5, 8, 17, 28, 31, 43, 65, 66, 71, 78)
"""Seeds of small fleets."""


@pytest.mark.parametrize("seed", QUICK)
def test_everything_holds(seed: int) -> None:
    result = run_drill(seed, FEW)
    assert result.violations == [], result.command


def test_a_run_is_the_same_to_the_bit_in_another_process() -> None:
    here = run_drill(5, FEW)
    assert here.digest != run_drill(78, FEW).digest
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = here.command.split()[1:]
    ended = subprocess.run(
        [sys.executable, "-m", "edgewise", *command],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert f"digest of the run: {here.digest}" in ended.stdout


def test_every_kind_of_fault_is_drawn_and_fits_its_run() -> None:
    plans = [draw_plan(seed) for seed in range(60)]
    assert {each.kind for plan in plans for each in plan.faults} == set(KINDS)
    for plan in plans:
        assert all(each.duration >= 0.0 and each.until <= plan.faults_end for each in plan.faults)
        assert 0.3 <= plan.load <= 2.0


# -- faults put back in --------------------------------------------------------------------------


def _run_twice(patch: pytest.MonkeyPatch) -> None:
    """A retry runs again."""
    patch.setattr(SingleFlight, "run", lambda self, key, work, *more, **named: work())


def _keep_tickets(patch: pytest.MonkeyPatch) -> None:
    """Requests that end keep their place in the queue."""
    patch.setattr(QueueTicket, "leave", lambda self: None)


def _never_settle(patch: pytest.MonkeyPatch) -> None:
    """Decisions without an outcome are never written off."""
    patch.setattr(OpenDecisions, "due", lambda self, now: [])
    patch.setattr(OpenDecisions, "all_open", lambda self: [])


def _no_limit(patch: pytest.MonkeyPatch) -> None:
    """A node goes on with a request that can no longer score."""
    patch.setattr(RequestHandler, "_in_time", lambda self, received, work: work)


def _no_order(patch: pytest.MonkeyPatch) -> None:
    """A worker that is done does not take the next job."""
    start = WorkerQueue._start_jobs

    def start_unless_others_wait(self: WorkerQueue) -> None:
        if len(self._heap) < 2:
            start(self)

    patch.setattr(WorkerQueue, "_start_jobs", start_unless_others_wait)


def _lose_rows(patch: pytest.MonkeyPatch) -> None:
    """Rows that the disk does not take are lost without a word."""
    patch.setattr(Recorder, "_lose", lambda self, rows, why: None)


PUT_BACK: list[tuple[Callable[[pytest.MonkeyPatch], None], int, str]] = [
    (_keep_tickets, 78, "requests that wait are left"),
    (_never_settle, 66, "settled"),
    (_no_limit, 78, "after the limit"),
    (_no_order, 78, "a worker is idle"),
    (_lose_rows, 1441, "said to be lost"),
]


@pytest.mark.parametrize(
    ("put_back", "seed", "problem"), PUT_BACK, ids=[each[0].__name__ for each in PUT_BACK]
)
def test_a_fault_that_is_put_back_is_found(
    put_back: Callable[[pytest.MonkeyPatch], None],
    seed: int,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_back(monkeypatch)
    result = run_drill(seed, FEW)
    assert any(re.search(problem, each) for each in result.violations), result.violations


def test_retries_that_run_again_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    _run_twice(monkeypatch)
    twice = Fault(kind="duplicate", at=3.0, duration=5.0, amount=1.0)
    plan = msgspec.structs.replace(draw_plan(78, FEW), faults=(twice,))
    problems = play(plan).violations
    assert any(re.search("runs a second time|is answered a second time", each) for each in problems)


# -- the command ---------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_what_repeats_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _keep_tickets(monkeypatch)
    ended = CliRunner().invoke(app, ["drill", "--virtual", "--seed", "78", "--requests", "30"])
    assert ended.exit_code == 1
    assert "edgewise drill --virtual --seed 78 --requests 30" in ended.output
    assert "again" in ended.output


def test_the_plan_of_a_seed_is_json() -> None:
    ended = CliRunner().invoke(app, ["drill", "--virtual", "--seed", "5", "--plan"])
    assert ended.exit_code == 0
    assert '"faults"' in ended.output


def test_without_faults_nothing_is_wrong() -> None:
    plan = msgspec.structs.replace(draw_plan(78, FEW), faults=())
    result = play(plan)
    assert result.violations == []
    assert result.kinds["none"].requests == result.sent
    assert result.kinds["none"].broken == 0
