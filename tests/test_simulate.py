"""The command ``edgewise simulate``."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from edgewise.cli.simulate import over_seeds, simulate
from edgewise.errors import BadInput, ScenarioError
from edgewise.scenario import load

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
    from edgewise.live.run.evaluation import evaluate

    out, summary = tmp_path / "run", tmp_path / "summary.json"
    shown = run(
        *("volatile", "--policy", "local,earliest_completion", "--seeds", "2", "--duration", "10"),
        *("--seed", "7", "--out", str(out), "--json", str(summary)),
    )
    assert "earliest_completion" in shown
    assert "mean over seeds ± 95 % confidence interval" in shown
    wrote = json.loads(summary.read_bytes())
    assert wrote["seed"] == 7
    for each in wrote["policies"]:
        assert sum(each["outcomes"].values()) == each["requests"] > 400
        for seed in (7, 8):
            folder = out / each["policy"] / f"seed-{seed}"
            assert (folder / "decisions.parquet").is_file()
    # `evaluate` pools the seeds, as the summary does.
    pooled = {each.policy: each for each in evaluate(out).policies}
    for each in wrote["policies"]:
        again = pooled[each["policy"]]
        assert again.requests == each["requests"]
        assert again.utility.expected == pytest.approx(each["utility"]["expected"])
        assert again.latency_ms.p99 == pytest.approx(each["latency_ms"]["p99"])
        assert again.seconds == pytest.approx(each["seconds"], rel=0.1)
        for name, server in each["per_server"].items():
            busy = again.per_server[name].utilisation
            assert busy == pytest.approx(server["utilisation"], abs=0.1)
        assert load(out / each["policy"] / "seed-8" / "scenario.yaml").policy == each["policy"]
    best = {each["policy"]: each["utility"]["expected"] for each in wrote["policies"]}
    assert best["earliest_completion"] > best["local"] + 0.05
    # What `evaluate` makes of one policy's files is what was printed.
    one = tmp_path / "one"
    run("three-sites", "--duration", "5", "--out", str(one))
    again = evaluate(one)
    first = json.loads((one / "summary.json").read_bytes())["policies"][0]
    assert again.policies[0].utility.expected == pytest.approx(first["utility"]["expected"])
    assert again.policies[0].outcomes == first["outcomes"]


def test_reports_are_written_as_the_live_balancer_writes_them(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    from edgewise.live.records import REPORTS

    run("three-sites", "--duration", "3", "--out", str(tmp_path))
    table = parquet.read_table(tmp_path / "reports.parquet")
    assert table.schema.names == REPORTS.schema.names
    rows = table.to_pylist()
    plaza = [row for row in rows if row["server"] == "plaza"]
    apart = np.diff([row["at"] for row in plaza])
    assert len(plaza) >= 29
    assert (apart <= 0.1 + 1e-9).all()  # the period …
    assert (apart >= 0.02 - 1e-9).all()  # … and the gap that jumps keep
    assert (apart < 0.099).any()
    assert all(row["received"] == pytest.approx(row["at"] + 0.0005) for row in rows)
    last = plaza[-1]
    assert sum(service["served"] for service in last["services"]) > 20
    assert {peer["server"] for peer in last["peers"]} == {"plaza", "depot", "campus"}
    assert any(row["running"] for row in plaza)


def test_intervals_are_over_seeds_and_differences_paired() -> None:
    def of(*utilities: float) -> list[SimpleNamespace]:
        episodes = []
        for value in utilities:
            results = np.zeros(2, [("utility", "f8"), ("status", "i4"), ("latency", "f8")])
            results["utility"], results["status"] = value, 1
            sim = SimpleNamespace(world=SimpleNamespace(results=results))
            episodes.append(SimpleNamespace(sim=sim, trace=SimpleNamespace(deadline=np.ones(2))))
        return episodes

    table = over_seeds({"a": of(0.2, 0.4, 0.6), "b": of(0.3, 0.5, 0.7)})  # type: ignore[dict-item]
    cells = [list(column.cells) for column in table.columns]
    # Student's t for two degrees of freedom: 4.303 · 0.2 / √3.
    assert cells[:3] == [
        ["b", "a"],
        ["0.500 ± 0.497", "0.400 ± 0.497"],
        ["+0.100 ± 0.000", "-0.100 ± 0.000"],
    ]


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="unknown policy 'nobody'"):
        run("three-sites", "--policy", "nobody")
    with pytest.raises(ScenarioError):
        run(str(tmp_path / "none.yaml"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(BadInput, match="not empty"):
        run("three-sites", "--out", str(tmp_path / "full"))
