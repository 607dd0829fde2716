"""docs/environment.md describes the observation that the environments give."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

from edgewise.benchmark import document
from edgewise.sim.env.environment import BalanceEnv, Credit
from edgewise.sim.env.observation import CONTEXT, ROW, SERVER, WIDTH
from edgewise.sim.env.vector import KEYS, BalanceVectorEnv
from edgewise.sim.layout import STATUSES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "environment.md"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "environment_reference.py"
    spec = importlib.util.spec_from_file_location("environment_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_current(script: ModuleType) -> None:
    assert document.is_current(PAGE, script.MARK, script.reference()), (
        "run scripts/environment_reference.py"
    )


def test_check_finds_a_page_that_is_not_current(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    old = tmp_path / "environment.md"
    old.write_text(text.replace("| s |", "| ms |"), encoding="utf-8")
    monkeypatch.setattr(script, "DOCUMENT", old)
    monkeypatch.setattr("sys.argv", ["environment_reference.py", "--check"])
    assert script.main() == 1
    assert "| ms |" in old.read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["environment_reference.py"])
    assert script.main() == 0
    assert old.read_text(encoding="utf-8") == text


def test_the_page_numbers_the_columns_as_the_observation_has_them() -> None:
    listed = re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, _ in listed] == list(range(WIDTH))
    assert tuple(name for _, name in listed) == ROW + SERVER + CONTEXT


@pytest.mark.parametrize("description", ["s of the wait", "[bytes] time", "[s]"])
def test_a_column_without_its_unit_is_refused(script: ModuleType, description: str) -> None:
    with pytest.raises(ValueError, match="wait: "):
        script.column("wait", description)


def first_column(after: str) -> list[str]:
    """The code in the first column of the table that follows a heading or sentence."""
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(after)
    table = re.search(r"(?:^\|.*\n)+", rest, re.MULTILINE)
    assert table is not None, after
    return re.findall(r"^\| `([\w/-]+)` \|", table[0], re.MULTILINE)


def arguments(environment: type[Any]) -> set[str]:
    return {*inspect.signature(environment.__init__).parameters} - {"self"}


def test_every_argument_is_described() -> None:
    single = first_column("for libraries that want a vector |\n")
    assert set(single) == arguments(BalanceEnv)
    vector = first_column("In addition to the arguments above:")
    assert {*single, *vector} == arguments(BalanceVectorEnv)


def test_every_key_of_info_is_described() -> None:
    assert set(first_column("## `info`")) == {*KEYS, "credited"}
    assert tuple(first_column("An entry of `credited`")) == Credit._fields
    numbers = ", ".join(f"{i} {status}" for i, status in enumerate(STATUSES) if i > 0)
    assert numbers in PAGE.read_text(encoding="utf-8")


@pytest.mark.study
def test_the_code_runs() -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) >= 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert set(names["info"]) == {*KEYS, "credited"}
    assert names["observation"].shape[1] == WIDTH
    names["envs"].close()
    env = names["InTime"](gymnasium.make("edgewise/BalanceFlat-v0", scenario="smoke", duration=5.0))
    _, info = env.reset(seed=1)
    total, served, over = 0.0, 0, False
    while not over:
        _, reward, _, over, info = env.step(int(np.flatnonzero(info["action_mask"])[0]))
        total += float(reward)
        served += sum(credit.latency < 0.2 for credit in info["credited"])
    assert total == served > 0
    env.close()
