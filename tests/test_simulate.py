"""The command ``edgewise simulate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from edgewise.commands.simulate import simulate
from edgewise.errors import BadInput, ScenarioError

pytestmark = pytest.mark.study

app = typer.Typer()
app.command()(simulate)


def run(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_the_summary_and_the_files_of_up(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from edgewise.live.evaluate import evaluate

    out, summary = tmp_path / "run", tmp_path / "summary.json"
    shown = run(
        *("volatile", "--policy", "local,earliest_completion", "--seeds", "2", "--duration", "10"),
        *("--seed", "7", "--out", str(out), "--json", str(summary)),
    )
    assert "earliest_completion" in shown
    wrote = json.loads(summary.read_bytes())
    assert wrote["seed"] == 7
    for each in wrote["policies"]:
        assert sum(each["outcomes"].values()) == each["requests"] > 400
        for seed in (7, 8):
            folder = out / each["policy"] / f"seed-{seed}"
            assert (folder / "decisions.parquet").is_file()
    best = {each["policy"]: each["utility"]["expected"] for each in wrote["policies"]}
    assert best["earliest_completion"] > best["local"] + 0.05
    # What `evaluate` makes of one policy's files is what was printed.
    one = tmp_path / "one"
    run("three-sites", "--duration", "5", "--out", str(one))
    again = evaluate(one)
    first = json.loads((one / "summary.json").read_bytes())["policies"][0]
    assert again.policies[0].utility.expected == pytest.approx(first["utility"]["expected"])
    assert again.policies[0].outcomes == first["outcomes"]


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unknown policy 'nobody'"):
        run("three-sites", "--policy", "nobody")
    with pytest.raises(ScenarioError):
        run(str(tmp_path / "none.yaml"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(BadInput, match="holds something already"):
        run("three-sites", "--out", str(tmp_path / "full"))
