"""docs/environment.md describes the observation that the environments give."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from edgewise.sim.env.observation import CONTEXT, ROW, SERVER, WIDTH

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
    text = PAGE.read_text(encoding="utf-8")
    assert script.updated(text) == text, "run scripts/environment_reference.py"


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
