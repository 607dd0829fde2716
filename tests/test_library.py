"""The public interface: its names, what importing it costs, its examples, and its page."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgewise as ew

ROOT = Path(__file__).parents[1]
PUBLIC = {
    "POLICIES", "BadInput", "Candidate", "Command", "Decision", "EdgewiseError", "Observation",
    "Outcome", "Parameter", "PayloadForm", "Report", "Request", "Scenario", "Score", "Service",
    "ShedReason", "SimulationResults", "Status", "Summary", "bench", "check", "draw", "explain",
    "load", "policy", "presets", "simulate", "train", "tune",
}  # fmt: skip


def test_the_public_names() -> None:
    assert set(ew.__all__) == PUBLIC
    assert list(ew.__all__) == sorted(ew.__all__, key=lambda name: (not name.isupper(), name))
    assert set(dir(ew)) >= PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ew.nothing  # noqa: B018


def test_importing_it_is_cheap() -> None:
    code = (
        "import sys, edgewise\n"
        "edgewise.Request\n"
        "heavy = {'numba', 'aiohttp', 'typer', 'pyarrow', 'torch', 'onnxruntime'}\n"
        "heavy &= {*sys.modules}\n"
        "sys.exit(', '.join(sorted(heavy)) or None)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_public_name_is_never_a_module() -> None:
    """``import edgewise.x`` sets the attribute x of the package."""
    package = ROOT / "src" / "edgewise"
    modules = {path.stem for path in package.glob("*.py")}
    modules |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert modules > {"policies", "score"}
    assert not modules & PUBLIC


@pytest.mark.study
@pytest.mark.parametrize("name", sorted(PUBLIC - {"POLICIES"}))
def test_examples_run(name: str) -> None:
    value = getattr(ew, name)
    module = sys.modules[value.__module__]
    globs = {**vars(module), name: value}
    tests = doctest.DocTestFinder(exclude_empty=False).find(value, name, globs=globs)
    examples = sum(len(test.examples) for test in tests)
    assert examples, f"{name} has no example in its docstring"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.study
def test_the_page_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "library.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M)
    assert len(blocks) > 5
    names: dict[str, object] = {"__name__": "library"}
    for block in blocks:
        if block.startswith("# my_rules.py"):
            (tmp_path / "my_rules.py").write_text(block)
            continue
        exec(compile(block, "docs/library.md", "exec"), names)
