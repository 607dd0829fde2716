"""Policies from outside the package: how they are named, found, allowed, run and refused."""

from __future__ import annotations

import ast
import doctest
import os
import shutil
from collections import Counter
from pathlib import Path

import msgspec
import numba
import numpy as np
import pytest
from typer.testing import CliRunner

from edgewise import policy_names
from edgewise.cli.main import app
from edgewise.errors import BadInput, ScenarioError
from edgewise.fleet.rng import new_rng
from edgewise.fleet.table import best_row
from edgewise.live.process_config import BalancerConfig, load_config
from edgewise.policies import Policy, find, own
from edgewise.policies.base import PolicyFailed, draw, policy
from edgewise.scenario import load, loads
from edgewise.scenario.workload_schema import Demand
from edgewise.sim.layout import REASON_NO_SERVICE
from edgewise.sim.simulate import episode

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_policy.py"
BOOM = "raise RuntimeError('imported')\n"


def write(folder: Path, text: str) -> str:
    file = folder / "rules.py"
    file.write_text("import edgewise as ew\n\n\n" + text)
    return str(file)


def kernel(body: str, options: str = "") -> str:
    return f"@ew.policy({options})\ndef mine(table, params, memory, rng):\n    {body}\n"


# -- names ----------------------------------------------------------------------------------------


def test_the_examples_of_the_naming_module() -> None:
    assert doctest.testmod(policy_names).failed == 0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["sed", "edgewise"], ["sed", "edgewise"]),
        (["edgewise", "/a/edgewise.safetensors"], ["edgewise", "a-edgewise"]),
        (["/a/w.safetensors", "/b/w.safetensors"], ["a-w", "b-w"]),
        (["/x/a/w.safetensors", "/y/a/w.safetensors"], ["a-w", "a-w-2"]),
        (["sed", "/r.py:sed", "/q.py:sed"], ["sed", "r-sed", "q-sed"]),
        (["sed", "sed@/t.json"], ["sed", "sed@t"]),
    ],
)
def test_labels_are_distinct(names: list[str], expected: list[str]) -> None:
    assert list(policy_names.labels(names).values()) == expected


# -- what is wrong with it ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (kernel("return 1.0"), "other", r"rules\.py: no policy called 'other'; it has: mine"),
        ("x = 1\n", "mine", r"rules\.py: no policy called 'mine'; it has: none"),
        ("def mine():\n    pass\n", "mine", r"rules\.py:mine: not a policy; put @edgewise\.policy"),
        (BOOM, "mine", r"rules\.py: line 4: RuntimeError: imported"),
        ("def (:\n", "mine", r"rules\.py: line 4: "),
        (kernel("return 2.0"), "mine", r"rules\.py:mine: expected a probability .* got 2"),
        (
            kernel("raise KeyError('no such server')", "compiled=False"),
            "mine",
            r"rules\.py:mine: KeyError: 'no such server' \(line 6 of ",
        ),
        ("raise ValueError('two\\nlines')\n", "mine", r"rules\.py: line 4: ValueError: two$"),
        (
            kernel("params.margin", "memory=['mean']"),
            "mine",
            r"rules\.py: line 4: ValueError: 'mean' cannot name a number",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_why(
    tmp_path: Path, text: str, name: str, message: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(BadInput, match=message) as raised:
        find(f"{file}:{name}")
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="nothing is compiled")
def test_what_numba_cannot_compile_is_said_in_a_line(tmp_path: Path) -> None:
    file = write(tmp_path, kernel("open('x')"))
    with pytest.raises(BadInput, match=r"mine: cannot be compiled: .*compiled=False") as raised:
        find(f"{file}:mine")
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_names_no_policy() -> None:
    with pytest.raises(BadInput, match=r"nowhere\.py: cannot be read: No such file"):
        find("nowhere.py:mine")
    with pytest.raises(BadInput, match=r"mine\.py: expected a policy in that file"):
        find("mine.py")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file = write(tmp_path, kernel("return 1.0", "about='first'"))
    assert find(f"{file}:mine").about == "first"
    write(tmp_path, kernel("return 1.0", "about='second'"))
    os.utime(file, (1.0, 1.0))
    assert find(f"{file}:mine").about == "second"


# -- who may have it run --------------------------------------------------------------------------

SCENARIO = """
name: s
policy: {policy}
servers: {{a: {{services: [{{model: m, accuracy: 0.5, latency: [0.01]}}]}}}}
workload:
  duration: 1
  arrivals: {{kind: constant, rate: 5}}
  ingress: {{a: 1}}
  demands: [{{deadline: 1}}]
  payload: {{kind: lognormal, median_bytes: 1000}}
"""


def test_a_scenario_that_names_code_is_refused_unless_allowed(tmp_path: Path) -> None:
    write(tmp_path, BOOM)
    text = SCENARIO.format(policy="rules.py:mine")
    with pytest.raises(ScenarioError, match=r"policy: .*:mine is Python code.*--allow-code"):
        loads(text, folder=tmp_path)
    allowed = loads(text, folder=tmp_path, allow_code=True)  # and nothing is imported
    assert allowed.policy == f"{tmp_path}/rules.py:mine"
    assert allowed.runs_code


def test_a_process_configuration_that_names_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "balancer.yaml"
    file.write_text("scenario: smoke\nshadow: rules.py:mine\n")
    with pytest.raises(ScenarioError, match=r"shadow: .*Python code"):
        load_config(file, BalancerConfig)
    config = load_config(file, BalancerConfig, allow_code=True)
    assert config.shadow == f"{tmp_path}/rules.py:mine"


def test_commands_refuse_it_and_the_check_only_warns(tmp_path: Path) -> None:
    write(tmp_path, BOOM)
    file = tmp_path / "s.yaml"
    file.write_text(SCENARIO.format(policy="rules.py:mine"))
    runner = CliRunner()
    checked = runner.invoke(app, ["scenario", "check", str(file)])
    assert checked.exit_code == 0, checked.output
    assert "Python code" in " ".join(checked.output.split())
    for command in ("simulate", "up"):
        refused = runner.invoke(app, [command, str(file)])
        assert isinstance(refused.exception, ScenarioError)
    allowed = runner.invoke(app, ["simulate", str(file), "--allow-code"])
    assert isinstance(allowed.exception, BadInput)
    assert "RuntimeError: imported" in str(allowed.exception)


# -- at work --------------------------------------------------------------------------------------


def test_the_example_is_short() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        first = min(node.lineno for node in (function, *function.decorator_list))
        assert function.end_lineno is not None
        assert function.end_lineno - first < 20


@pytest.mark.parametrize("name", ["frugal", "lottery"])
def test_the_example_runs_in_the_simulator(name: str) -> None:
    ended = episode(load("smoke"), f"{EXAMPLE}:{name}", None)
    results = ended.sim.world.results
    assert (results["status"] == results["status"][0]).mean() > 0.5
    decided = results["probability"][results["decided_at"] > 0.0]
    assert decided.size > 50
    assert ((decided > 0.0) & (decided <= 1.0)).all()
    assert (decided == 1.0).all() == (name == "frugal")


def test_compiled_and_plain_decide_alike(tmp_path: Path) -> None:
    body = "table.scores[:-1] = -params.weight * table.servers[0].backlog - table.rows.latency[:-1]"
    option = "parameters=[ew.Parameter(name='weight', default=1.0, low=0.0, high=2.0)]"
    plain = write(tmp_path, kernel(body, f"{option}, compiled=False"))
    world = load("smoke")
    one = episode(world, f"{plain}:mine", None).sim.world.results
    other = tmp_path / "other"
    other.mkdir()
    compiled = write(other, kernel(body, option))
    two = episode(world, f"{compiled}:mine", None).sim.world.results
    for column in ("row", "utility", "probability", "received"):
        np.testing.assert_array_equal(one[column], two[column])


TWINS = """
def make(weight):
    @ew.policy(name=f"by_{weight}")
    def mine(table, params, memory, rng):
        table.scores[:-1] = weight
    return mine

one, two = make(1), make(2)

def counting(table, params, memory, rng):
    memory.fleet.last += 1.0
    table.scores[:-1] = memory.fleet.first

before = ew.policy(name="before", memory=["first", "last"])(counting)
after = ew.policy(name="after", memory=["last", "first"])(counting)
"""


def test_policies_made_from_one_function_are_compiled_apart(tmp_path: Path) -> None:
    """Or the second would read its memory by the fields of the first."""
    file = write(tmp_path, TWINS)
    for name, score, remembered in (
        ("by_1", 1.0, [0.0]),
        ("by_2", 2.0, [0.0]),
        ("before", 0.0, [0.0, 1.0]),
        ("after", 0.0, [1.0, 0.0]),
    ):
        spec, table = find(f"{file}:{name}"), own._sample_table()
        memory = spec.new_memory(2)
        spec.kernel(table, spec.new_params(), memory, new_rng(1))
        assert table.scores[0] == score, name
        assert memory[: len(remembered)].tolist() == remembered, name


@pytest.mark.parametrize("compiled", [False, True])
def test_a_request_without_admissible_rows_is_shed_for_certain(
    tmp_path: Path, compiled: bool
) -> None:
    """Whatever the policy says; as in the live balancer."""
    file = write(tmp_path, kernel("return 0.5", f"compiled={compiled}"))
    world = load("smoke")
    demands = tuple(Demand(deadline=1.0, accuracy=accuracy) for accuracy in (0.0, 1.0))
    workload = msgspec.structs.replace(world.workload, demands=demands)
    world = msgspec.structs.replace(world, workload=workload)
    results = episode(world, f"{file}:mine", None).sim.world.results
    impossible = results["reason"] == REASON_NO_SERVICE
    assert 10 < impossible.sum() < len(results) - 10
    assert (results["probability"][impossible] == 1.0).all()
    decided = ~impossible & (results["row"] >= 0)
    assert (results["probability"][decided] == 0.5).all()


def test_plain_python_can_learn(tmp_path: Path) -> None:
    text = """
def keep(table, row, out):
    out[0] = row

def learn(params, memory, features, reward):
    memory.fleet.learned += 1
    memory.fleet.total += reward

"""
    text += kernel(
        "memory.fleet.decided += 1",
        "compiled=False, memory=['learned', 'total', 'decided'], features=1, describe=keep, "
        "learn=learn",
    )
    from edgewise.sim.build import simulation
    from edgewise.sim.play import Player
    from edgewise.worlds.workload import generate

    world = load("smoke")
    found = []
    for code in (text, text.replace("compiled=False", "compiled=True")):
        folder = tmp_path / str(len(found))
        folder.mkdir()
        player = Player(
            simulation(world, generate(world, None)), find(f"{write(folder, code)}:mine"), 1
        )
        done = player.run()
        fleet = player.spec.named_memory(player.memory[0]).fleet
        assert fleet.decided == done > 50
        assert done - 1 <= fleet.learned <= done  # the last outcome may come after the end
        assert 0.0 < fleet.total <= done
        found.append(tuple(fleet.tolist()))
    assert found[0] == found[1]


def test_a_plain_policy_that_raises_in_a_simulation_is_named(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        kernel(
            "memory.fleet.count += 1; return (1.0, 1.0, 1.0, 1.0)[int(memory.fleet.count)]",
            "compiled=False, memory=['count']",
        ),
    )
    with pytest.raises(PolicyFailed, match=r"rules\.py:mine: IndexError: tuple index"):
        episode(load("smoke"), f"{file}:mine", None)


def test_a_draw_is_as_frequent_as_it_says() -> None:
    @policy(compiled=False)
    def weighted(table, params, memory, rng):  # type: ignore[no-untyped-def]
        table.scores[:] = [1.0, 2.0, 0.0, 3.0, 2.0]
        return draw(table, rng)

    table = own._sample_table()
    table.mask[1] = 0  # weight 2, not admissible
    rng, memory = new_rng(3), weighted.new_memory(2)
    rows: Counter[int] = Counter()
    said = {}
    for _ in range(3000):
        probability = weighted.kernel(table, weighted.new_params(), memory, rng)
        row = int(best_row(table))
        rows[row] += 1
        said[row] = probability
    assert said == {0: pytest.approx(1 / 6), 3: pytest.approx(0.5), 4: pytest.approx(1 / 3)}
    for row, probability in said.items():
        assert rows[row] / 3000 == pytest.approx(probability, abs=0.04)


def test_a_compiled_policy_can_draw(tmp_path: Path) -> None:
    body = "table.scores[:] = 1.0\n    return ew.draw(table, rng)"
    spec = find(f"{write(tmp_path, kernel(body))}:mine")
    table = own._sample_table()
    said = spec.kernel(table, spec.new_params(), spec.new_memory(2), new_rng(1))
    assert said == pytest.approx(0.2)


def test_a_draw_without_weights_sheds_for_certain() -> None:
    table = own._sample_table()
    table.scores[:] = 0.0
    assert draw(table, new_rng(1)) == 1.0
    assert int(best_row(table)) == table.mask.size - 1


def test_a_policy_that_raises_live_is_logged_and_the_request_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from test_policies import fleet, seen

    @policy(compiled=False)
    def broken(table, params, memory, rng):  # type: ignore[no-untyped-def]
        raise RuntimeError("no idea")

    made = Policy("broken", broken).decide(seen(fleet()))
    assert made.rows[0] == 0  # the earliest
    assert made.policy == "broken-failed"
    assert "policy broken: RuntimeError: no idea" in caplog.text


def test_a_policy_that_would_shed_and_then_raises_sheds_nothing() -> None:
    from test_policies import fleet, seen

    @policy(compiled=False)
    def broken(table, params, memory, rng):  # type: ignore[no-untyped-def]
        table.scores[-1] = 1.0
        raise RuntimeError("no idea")

    assert Policy("broken", broken).decide(seen(fleet())).ranked


def test_tuned_values_are_named_behind_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "tuned.json"
    file.write_text('{"sed": {"command": "c", "gain": "g", "params": {"share": 0.25}}}')
    assert find(f"sed@{file}").params == (0.25,)
    with pytest.raises(BadInput, match=r"tuned\.json: no values for the policy 'jsq'; it has: sed"):
        find(f"jsq@{file}")


def test_an_installed_package_brings_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "brought.py").write_text(EXAMPLE.read_text())
    info = tmp_path / "brought-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[edgewise.policies]\nthrifty = brought:frugal\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find("thrifty").name == "frugal"


@pytest.mark.system
def test_the_example_runs_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a relative path, and beside another policy, with real processes."""
    shutil.copy(EXAMPLE, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        app, ["up", "smoke", "--policy", "mine.py:frugal,mine.py:lottery", "--out", "run"]
    )
    assert done.exit_code == 0, done.output
    assert {each.name for each in Path("run").iterdir() if each.is_dir()} == {"frugal", "lottery"}
    assert "frugal" in done.output
