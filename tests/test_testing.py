"""`edgewise.testing` as a user has it: its exports, its docstring, and docs/testing.md."""

from __future__ import annotations

import asyncio
import doctest
import re
from pathlib import Path

import pytest

import edgewise.testing
from edgewise.scenario import load
from edgewise.testing import LiveFleet, run_live, run_virtual
from edgewise.worlds.workload import generate

DOCUMENT = Path(__file__).parents[1] / "docs" / "testing.md"


def test_every_exported_name_is_documented() -> None:
    assert edgewise.testing.__all__ == sorted(edgewise.testing.__all__)
    for name in edgewise.testing.__all__:
        assert getattr(edgewise.testing, name).__doc__, name


def test_the_example_in_the_docstring_runs() -> None:
    done = doctest.testmod(edgewise.testing)
    assert done.attempted >= 7
    assert done.failed == 0


def test_the_document_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(DOCUMENT), "exec"), names)


def test_a_fleet_needs_a_running_loop() -> None:
    scenario = load("smoke")
    with pytest.raises(RuntimeError, match="no running event loop"):
        LiveFleet(scenario, generate(scenario, None), "local")


def test_a_link_that_does_not_exist_is_named() -> None:
    scenario = load("smoke")
    disturbance = edgewise.testing.Disturbance(extra_delay={"uplink:nowhere": 1.0})
    with pytest.raises(ValueError, match=r"no link is called 'uplink:nowhere'; there are: .*left"):
        run_live(scenario, generate(scenario, None), "local", disturbance)


def test_an_exception_passes_through_virtual_time() -> None:
    async def fail() -> None:
        await asyncio.sleep(1e6)
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        run_virtual(fail())
