"""A shadow policy changes nothing; `edgewise explain` on live and simulated runs."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from edgewise.cli.explain import explain
from edgewise.cli.main import app
from edgewise.errors import BadInput, ScenarioError
from edgewise.live.balancer.balancer_metrics import BalancerMetrics
from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.balancer.shadow import SHADOW
from edgewise.live.process_config import BalancerConfig, load_config
from edgewise.live.recorder import Recorder, read
from edgewise.live.records import DECISIONS
from edgewise.policies import POLICIES, learned, weight_files
from edgewise.policies import make as make_policy
from fleet_case import NOW, report, request, two_servers

pytestmark = pytest.mark.study


class FixedClock:
    """A clock that always reads the same."""

    def now(self) -> float:
        return NOW


def dispatcher(shadow: str | None, out: Path | None = None, rule: str = "local") -> Dispatcher:
    other = None if shadow is None else make_policy(shadow)
    made = Dispatcher(two_servers(), make_policy(rule), NOW, other)
    made.recorder = Recorder(out, made.tables)
    for server in ("a", "b"):
        made.tracker.connect(server, NOW)
        made.tracker.on_report(report(server), NOW)
    return made


def test_the_shadow_changes_nothing_and_is_recorded(tmp_path: Path) -> None:
    alone, watched = dispatcher(None), dispatcher("edgewise", tmp_path)
    for i in range(20):
        one = alone.decide(request(f"r{i}"), NOW + 0.001 * i, "metadata")
        other = watched.decide(request(f"r{i}"), NOW + 0.001 * i, "metadata")
        assert one.decision == other.decision
        assert one.command.server == other.command.server
    watched.recorder.close()
    counts = watched.counts
    assert counts.shadow_agreed + counts.shadow_differed == 20
    assert counts.shadow_differed > 0  # local never moves anything, nor sheds
    rows = read(tmp_path, SHADOW.name).to_pylist()
    decided = read(tmp_path, DECISIONS.name).to_pylist()
    assert [row["request"] for row in rows] == [row["request"] for row in decided]
    assert {row["policy"] for row in rows} == {"edgewise"}
    assert {row["decided"] for row in rows} == {"local"}
    same = sum(row["row"] == row["decided_row"] for row in rows)
    assert same == counts.shadow_agreed


def test_the_shadow_sees_what_the_policy_saw() -> None:
    made = dispatcher("earliest_completion", rule="earliest_completion")
    for i in range(20):
        made.decide(request(f"r{i}"), NOW + 0.001 * i, "metadata")
    assert made.counts.shadow_agreed == 20


def test_without_a_shadow_there_is_no_table() -> None:
    assert SHADOW not in dispatcher(None).tables


def test_metrics_show_the_guard_and_the_shadow() -> None:
    made = dispatcher("edgewise", rule="edgewise")
    made.decide(request(), NOW, "metadata")
    text = BalancerMetrics(made, FixedClock()).render().decode()  # type: ignore[arg-type]
    assert 'policy_count_total{role="decides",what="decisions"} 1.0' in text
    assert 'policy_count_total{role="shadow",what="stale"} 0.0' in text
    assert 'shadow_decision_total{same="yes"} 1.0' in text


def test_a_scenario_and_a_balancer_can_name_weights_and_a_shadow(tmp_path: Path) -> None:
    made = two_servers("policy: mine/edgewise.safetensors\nshadow: priced_greedy\n")
    assert made.policy.endswith("mine/edgewise.safetensors")
    assert Path(made.policy).is_absolute()
    assert made.shadow == "priced_greedy"
    with pytest.raises(ScenarioError):
        two_servers("policy: no/such/thing\n")
    file = tmp_path / "balancer.yaml"
    file.write_text("scenario: three-sites\npolicy: edgewise.safetensors\nshadow: local\n")
    config = load_config(file, BalancerConfig)
    assert config.policy == str(tmp_path / "edgewise.safetensors")
    assert config.shadow == "local"
    with pytest.raises(BadInput, match="no such file"):
        make_policy(config.policy)


def test_explain_shows_a_run(tmp_path: Path) -> None:
    made = dispatcher(None, tmp_path, rule="edgewise")
    for i in range(3):
        made.decide(request(f"r{i}"), NOW + 0.01 * i, "metadata")
    made.finish()
    made.recorder.close()
    run = CliRunner().invoke(app, ["explain", str(tmp_path), "r2"])
    assert run.exit_code == 0, run.output
    for word in ("correction", "a/small", "b/large", "shed"):
        assert word in run.output
    run = CliRunner().invoke(app, ["explain", str(tmp_path), "r2", "--json"])
    found = msgspec.json.decode(run.stdout_bytes)
    entry = made.decisions.get("r2")
    assert entry is not None
    assert found["rows"][0]["row"] == entry.decision.rows[0]
    run = CliRunner().invoke(app, ["explain", str(tmp_path), "r9"])
    assert isinstance(run.exception, BadInput)


@pytest.mark.parametrize("columns", [None, "80", "60", "200"])
def test_explain_cuts_no_figure(columns: str | None, tmp_path: Path) -> None:
    """Neither in a narrow terminal nor in a pipe, which has no width."""
    made = dispatcher(None, tmp_path, rule="edgewise")
    made.decide(request(), NOW, "metadata")
    made.finish()
    made.recorder.close()
    shown = CliRunner().invoke(app, ["explain", str(tmp_path), "r1"], env={"COLUMNS": columns})
    whole = CliRunner().invoke(app, ["explain", str(tmp_path), "r1", "--json"])
    assert "…" not in shown.output
    for row in msgspec.json.decode(whole.stdout_bytes)["rows"]:
        for part in ("utility", "server_price", "link_price", "prepare_price"):
            assert f" {row[part]:.3f}" in shown.output
        assert f" {row['score']:+.3f}" in shown.output


def test_the_example_in_the_help_of_explain_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^ +edgewise (.*)$", explain.__doc__ or "", re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["simulate", "explain"]
    for command in commands:
        run = CliRunner().invoke(app, command.split())
        assert run.exit_code == 0, run.output
    assert "s1-r0000042 at " in run.output


@pytest.mark.parametrize("rule", ["edgewise", "priced_greedy"])
def test_explain_simulates_a_simulated_run_again(tmp_path: Path, rule: str) -> None:
    options = ["--policy", rule, "--duration", "1.5", "--out", str(tmp_path), "--threads", "1"]
    run = CliRunner().invoke(app, ["simulate", "volatile", *options])
    assert run.exit_code == 0, run.output
    decisions = read(tmp_path, "decisions").to_pylist()
    for at in (0, len(decisions) // 2, len(decisions) - 1):
        made = decisions[at]
        run = CliRunner().invoke(app, ["explain", str(tmp_path), made["request"], "--json"])
        found = msgspec.json.decode(run.stdout_bytes)
        best = found["rows"][0] if found["rows"] else {"score": -math.inf}
        if best["score"] >= found["shed"]:
            assert [best["row"]] == made["rows"][:1]
            assert best["latency"] == made["predicted_latency"]
        else:
            assert made["server"] is None
    run = CliRunner().invoke(app, ["explain", str(tmp_path), "s1-r9999999"])
    assert "no decision on" in str(run.exception)
    run = CliRunner().invoke(app, ["explain", str(tmp_path / "no"), "s1-r0000001"])
    assert "expected the folder of a policy's run" in str(run.exception)


def test_explain_finds_the_weights_that_decided(tmp_path: Path) -> None:
    """Not the shipped ones, which may have the same label."""
    own = tmp_path / "mine" / "edgewise.safetensors"
    own.parent.mkdir()
    _, card = weight_files.shipped()
    untrained = learned.untrained(POLICIES["priced_greedy"].params)
    weight_files.save(own, untrained, card, Path.write_bytes)
    for policies, folder in ((str(own), "one"), (f"{own},edgewise", "two/mine-edgewise")):
        out = tmp_path / folder.partition("/")[0]
        options = ["--duration", "1", "--out", str(out), "--threads", "1"]
        run = CliRunner().invoke(app, ["simulate", "volatile", "--policy", policies, *options])
        assert run.exit_code == 0, run.output
        request_id = read(tmp_path / folder, "decisions")["request"][0].as_py()
        told = ["explain", str(tmp_path / folder), request_id]
        own_scores, same, others = (
            CliRunner().invoke(app, [*told, "--json", *more]).stdout
            for more in ([], ["--policy", str(own)], ["--policy", "edgewise"])
        )
        assert own_scores == same != others
