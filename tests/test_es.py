"""Evolution strategies: they climb, can be resumed, and the same seed gives the same weights."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgewise.benchmark.episodes import ReplayableWorld
from edgewise.benchmark.statistics import Interval
from edgewise.cli.main import app
from edgewise.cli.train import _verdict
from edgewise.errors import BadInput
from edgewise.files import write_atomically
from edgewise.learn import checkpoint, es, train
from edgewise.learn.es import EsSettings, EvolutionStrategies
from edgewise.learn.search import Budget, Progress, SearchResult, SearchStopped, search, seconds
from edgewise.learn.space import MEMORY, PARTS, SearchSpace
from edgewise.learn.train import TrainOptions, TrainResult, beginning, guarded, survey
from edgewise.learn.validation import Judgement, Validator, judge
from edgewise.policies import POLICIES, find, learned, weight_files
from edgewise.policies.features import REQUEST_FEATURES, ROW_FEATURES, SERVER_FEATURES
from edgewise.scenario import loads
from edgewise.sim.source import WorldSource
from edgewise.worlds import families

pytestmark = pytest.mark.study

PRICED = POLICIES["priced_greedy"]
SMALL = """
name: small
report_period: 0.1
executor: replay
servers:
  a: {services: [{model: lite0-96, accuracy: 0.6, latency: [0.02]}]}
  b: {workers: 2, services: [{model: lite2, accuracy: 0.9, latency: [0.05]}]}
workload:
  duration: 1
  arrivals: {kind: poisson, rate: 40}
  ingress: {a: 2, b: 1}
  demands: [{share: 1, deadline: [0.1, 0.4], accuracy: 0}]
  payload: {kind: lognormal, median_bytes: 60000, sigma: 0.5}
"""


def start() -> np.ndarray:
    return beginning()[0]


def small() -> WorldSource:
    return WorldSource(scenario=loads(SMALL))


def run(
    folder: Path,
    progress: Callable[[Progress], None] = lambda _: None,
    threads: int = 1,
    **changes: object,
) -> SearchResult:
    """A search of four generations, validated after every other."""
    settings = EsSettings(**{"seed": 3, "worlds": 2, **changes})  # type: ignore[arg-type]
    return search(
        EvolutionStrategies(small(), start(), settings, threads),
        Budget(steps=4),
        validate=Validator(small(), PRICED, 2, threads),
        every=2,
        folder=folder,
        progress=progress,
    )


# -- the search ------------------------------------------------------------------------------------


def test_it_climbs_a_noisy_hill() -> None:
    """Maximise −|x − 3|² / 100 with differences drowned in noise twice as large."""
    state = es.initial_state(10)
    rng = np.random.default_rng(5)
    generations = 200
    for g in range(generations):
        epsilon = es.perturbations(1, g, 32, 10)

        def height(x: np.ndarray) -> np.ndarray:
            return -((x - 3.0) ** 2).sum(axis=1) / 100.0

        found = height(state.x + epsilon) - height(state.x - epsilon)
        noise = rng.normal(0.0, 2.0 * found.std(), len(found))
        gradient = es.whiten(found + noise) @ epsilon / len(found)
        es.update(state, gradient, 0.3, g / generations)
    assert np.abs(state.mean - 3.0).max() < 0.6
    assert np.abs(state.mean - 3.0).mean() < np.abs(state.x - 3.0).mean() + 0.1


def test_a_gradient_by_hand() -> None:
    """One pair each along the axes, differences 2, −2 and 0: whitened to 1, −1, 0."""
    state = es.initial_state(2)
    epsilon = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    gradient = es.whiten(np.array([2.0, -2.0, 0.0])) @ epsilon / 3
    es.update(state, gradient, 1.0, 0.0)
    # First step of Adam with a pooled second moment: g / rms(g) = (1, −1).
    assert state.x == pytest.approx([1.0, -1.0])


def test_one_wild_world_does_not_drown_the_others() -> None:
    found = es.whiten(np.array([0.01, -0.01, 0.012, 5.0]))
    assert found.max() == es.CLIP
    assert abs(found[0]) > 0.5
    assert not es.whiten(np.zeros(4)).any()


def test_perturbations_depend_on_seed_and_generation_only() -> None:
    one = es.perturbations(1, 5, 64, 7)
    assert np.array_equal(one, es.perturbations(1, 5, 64, 7))
    assert not np.array_equal(one, es.perturbations(1, 6, 64, 7))
    assert not np.array_equal(one, es.perturbations(2, 5, 64, 7))


# -- the space -------------------------------------------------------------------------------------


def test_the_origin_is_where_it_begins() -> None:
    space = SearchSpace(start(), ("base", "heads"))
    found = space.params(np.zeros(space.size))
    assert np.allclose(found[learned.LAYOUT["priced"]], PRICED.params, rtol=1e-12)
    rest = slice(learned.LAYOUT["calibrated"].start, None)
    assert np.array_equal(found[rest], start()[rest])


def test_groups_free_what_they_say() -> None:
    moved = {}
    for group in ("base", "heads", "network"):
        space = SearchSpace(start(), (group,))
        x = np.ones(space.size)
        made = space.params(x)
        learned.named(made).options.network = 0.0
        changed = np.flatnonzero(made != start())
        moved[group] = set(changed.tolist())
    base = learned.LAYOUT["priced"]
    assert moved["base"] <= set(range(base.start, base.stop))
    assert len(moved["base"]) >= 15
    assert not moved["heads"] & moved["base"]
    assert not moved["network"] & moved["heads"]
    out = learned.LAYOUT["out"]
    assert set(range(out.start, out.stop)) <= moved["network"]
    with pytest.raises(BadInput, match="expected some of"):
        SearchSpace(start(), ("bass",))


def test_parameters_stay_between_their_bounds() -> None:
    space = SearchSpace(start(), ("base",))
    for sign in (-1.0, 1.0):
        found = space.params(np.full(space.size, sign * 1e3))[learned.LAYOUT["priced"]]
        for value, p in zip(found, PRICED.parameters, strict=True):
            assert p.low - 1e-9 <= value <= p.high + 1e-9


# -- worlds ----------------------------------------------------------------------------------------


def test_training_validation_and_evaluation_never_share_a_world() -> None:
    trained = set(families.training_seeds(3, 0, 50))
    assert trained <= set(families.TRAINING)
    assert trained.isdisjoint(families.training_seeds(4, 0, 50))
    assert set(families.validation_seeds(20)) <= set(families.VALIDATION)
    assert set(families.evaluation_seeds(20)) <= set(families.EVALUATION)
    assert families.validation_seeds(20)[5:] == families.validation_seeds(15, skip=5)


def test_a_scenario_is_played_with_other_seeds() -> None:
    one, other = (small().scenario(seed) for seed in families.training_seeds(1, 0, 2))
    assert one.seed != other.seed
    assert one.servers == other.servers


def test_a_source_of_several_families_takes_turns() -> None:
    source = WorldSource(family=("light", "overload"), duration=2.0)
    names = [source.scenario(seed).name for seed in (10, 11, 12)]
    assert names == ["light-10", "overload-11", "light-12"]
    assert source.scenario(10) == families.scenario("light", 10).with_overrides(duration=2.0)
    assert (source.name, source.option) == ("light, overload", "--families light,overload")
    with pytest.raises(BadInput, match="unknown family"):
        WorldSource(family="lite")
    with pytest.raises(BadInput, match="not both"):
        WorldSource(scenario="three-sites", family="light")


# -- the loop --------------------------------------------------------------------------------------


def test_a_budget_is_one_of_two_and_above_0() -> None:
    for wrong in ({}, {"steps": 1, "seconds": 1.0}):
        with pytest.raises(BadInput, match="either a budget"):
            Budget(**wrong)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="above 0 s, got 0 s"):
        Budget(seconds=0.0)
    with pytest.raises(BadInput, match="at least 1 generation"):
        Budget(steps=0)
    with pytest.raises(BadInput, match="90s"):
        seconds("soon")
    assert [seconds(text) for text in ("90", "2m", "0.5h")] == [90.0, 120.0, 1800.0]


def test_the_same_seed_gives_the_same_weights_on_any_number_of_threads(tmp_path: Path) -> None:
    found = [run(tmp_path / str(threads), threads=threads).params for threads in (1, 2)]
    assert np.array_equal(*found)
    assert not np.array_equal(found[0], run(tmp_path / "other", seed=4).params)


def test_a_search_that_was_killed_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(step: Progress) -> None:
        if step.steps == 3:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "cut", kill)
    seen: list[int] = []
    resumed = run(tmp_path / "cut", lambda step: seen.append(step.steps))
    assert seen == [4]
    assert np.array_equal(whole.params, resumed.params)
    assert resumed.decisions == whole.decisions
    with pytest.raises(BadInput, match="other options"):
        run(tmp_path / "cut", rate=0.1)
    assert list((tmp_path / "whole" / "tensorboard").iterdir())


def test_ctrl_c_keeps_a_checkpoint_and_says_so(tmp_path: Path) -> None:
    def stop(step: Progress) -> None:
        if step.steps == 3:
            raise KeyboardInterrupt

    with pytest.raises(SearchStopped, match="stopped after 3 generations; run the same command"):
        run(tmp_path, stop)
    seen: list[int] = []
    run(tmp_path, lambda step: seen.append(step.steps))
    assert seen == [4]


def test_ctrl_c_in_the_first_generation_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: object, used: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(EvolutionStrategies, "step", interrupted)
    with pytest.raises(SearchStopped, match="nothing is kept"):
        run(tmp_path)
    assert not (tmp_path / checkpoint.FILE).exists()


def test_a_missing_package_shows_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(BadInput, match="extra 'bench'"):
        run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, "{}") is None
    path = tmp_path / "a" / "b"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(BadInput, match="cannot be written"):
        write_atomically(path / "below a file", b"")
    (tmp_path / checkpoint.FILE).write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(BadInput, match="not a checkpoint"):
        checkpoint.load(tmp_path, "{}")


# -- limits and acceptance -------------------------------------------------------------------------


def test_nodes_that_decide_themselves_are_surveyed_too() -> None:
    """Where the balancer falls silent there are more deciders than balancers."""
    world = loads(SMALL + "failures: [{kind: mute, at: 0.2, duration: 0.5}]\n")
    policy = weight_files.learned_spec(start(), "start")
    _, _, counters = survey(start(), WorldSource(scenario=world), [world.seed], 1)
    clock = ReplayableWorld(world).play(policy, start()).world.clock
    assert counters[0] == clock["decisions"][0] > 0


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch, **more: object) -> TrainResult:
    """A training run in the small scenario, with few worlds for limits and acceptance."""
    monkeypatch.setattr(train, "guarded", lambda *args: guarded(*args, surveyed=8))
    monkeypatch.setattr(train, "judge", partial(judge, count=6))
    fields: dict[str, object] = {
        "source": small(), "budget": None, "folder": folder, "worlds": 2, "threads": 1, **more,
    }  # fmt: skip
    return train.train(TrainOptions(**fields))  # type: ignore[arg-type]


def test_training_sets_limits_and_refuses_what_is_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = trained(tmp_path, monkeypatch)
    assert good.card.accepted
    assert good.card.results["small"].mean == 0.0
    params = np.array(find(str(good.path)).params)
    low, high = params[learned.LAYOUT["low"]], params[learned.LAYOUT["high"]]
    assert (low <= high).all()
    assert low[0] == high[0] == 1.0  # "one" of the server
    bad = start()
    bad[learned.LAYOUT["row_heads"]][learned.Q + list(ROW_FEATURES).index("accuracy")] = -50.0
    monkeypatch.setattr(train, "beginning", lambda init: (bad, PRICED))
    refused = trained(tmp_path, monkeypatch)
    assert not refused.card.accepted
    assert refused.judgement.mean.high < 0.0
    assert not refused.improved


def test_a_search_that_finds_nothing_is_no_improvement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its best parameters are those it began with: accepted, since no family is worse."""
    monkeypatch.setattr(SearchSpace, "params", lambda self, x: self.origin.copy())
    found = trained(tmp_path, monkeypatch, budget=Budget(steps=1))
    assert found.search is not None
    assert found.card.accepted
    assert not found.improved
    assert _verdict(found, "priced_greedy").startswith("[bold]nothing found")


def test_a_survey_counts_what_the_guard_did() -> None:
    seeds = families.training_seeds(1, 0, 2)
    low, high, counters = survey(start(), small(), seeds, 1)
    assert counters[0] > 0
    assert counters[1:].tolist() == [0.0, 0.0, 0.0]
    narrow = weight_files.release(start(), low + 1.0, high + 1.0, 5.0)
    _, _, tripped = survey(narrow, small(), seeds, 1)
    assert tripped[1] == tripped[0]


# -- the command -----------------------------------------------------------------------------------


def test_the_command_trains_a_specialist_that_is_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    options = ["--scenario", str(file), "--init", "edgewise", "--generations", "1", "--worlds", "1"]
    run = CliRunner().invoke(app, ["train", *options, "--out", str(tmp_path), "--threads", "1"])
    assert run.exit_code == 0, run.output
    assert "over edgewise" in run.output
    path = tmp_path / "edgewise.safetensors"
    _, card = weight_files.load(path)
    assert card.families == ("small",)
    assert find(str(path)).kernel is learned.edgewise.kernel
    run = CliRunner().invoke(app, ["train", *options, "--budget", "1m"])
    assert isinstance(run.exception, BadInput)
    run = CliRunner().invoke(app, ["train", "--init", "jsq", "--out", str(tmp_path / "no")])
    assert "expected priced_greedy" in str(run.exception)


def test_old_weights_fall_back_to_the_heuristic_of_today(tmp_path: Path) -> None:
    file = Path(weight_files.__file__).parent / "weights" / "edgewise.safetensors"
    params, card = weight_files.load(file)
    older = params.copy()
    older[learned.LAYOUT["calibrated"]] *= 0.5
    weight_files.save(tmp_path / "older.safetensors", older, card, write_atomically)
    start, heuristic = beginning(str(tmp_path / "older.safetensors"))
    assert heuristic.params == POLICIES["priced_greedy"].params
    assert tuple(start[learned.LAYOUT["calibrated"]]) == heuristic.params
    assert (start[learned.LAYOUT["priced"]] == params[learned.LAYOUT["priced"]]).all()


def test_no_generation_searches_nothing(tmp_path: Path) -> None:
    options = ["--init", "edgewise", "--generations", "0", "--families", "light"]
    run = CliRunner().invoke(app, ["train", *options, "--out", str(tmp_path)])
    assert run.exit_code == 0, run.output
    made, _ = weight_files.load(tmp_path / "edgewise.safetensors")
    shipped = np.array(POLICIES["edgewise"].params)
    searched = np.ones(learned.LENGTH, np.bool_)
    searched[learned.LAYOUT["low"]] = searched[learned.LAYOUT["high"]] = False
    assert (made[searched] == shipped[searched]).all()


def test_the_command_trains_by_ppo_too(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    options = ["--scenario", str(file), "--algorithm", "ppo", "--free", "heads", "--worlds", "1"]
    options += ["--generations", "1", "--threads", "1", "--out", str(tmp_path / "out")]
    run = CliRunner().invoke(app, ["train", *options])
    assert run.exit_code == 0, run.output
    _, card = weight_files.load(tmp_path / "out" / "edgewise.safetensors")
    assert "--algorithm ppo" in card.command
    assert (tmp_path / "out" / checkpoint.FILE).exists()
    run = CliRunner().invoke(app, ["train", *options[:-1], str(tmp_path / "no"), "--free", "base"])
    assert "expected --free heads" in str(run.exception)
    run = CliRunner().invoke(app, ["train", "--algorithm", "dqn"])
    assert "expected es or ppo" in str(run.exception)
    # One algorithm does not resume from the other's checkpoint.
    run = CliRunner().invoke(app, ["train", *options, "--algorithm", "es"])
    assert "other options" in str(run.exception)


def test_parts_are_the_heads() -> None:
    whole = SearchSpace(start(), ("heads",))
    assert sum(SearchSpace(start(), (part,)).size for part in PARTS) == whole.size
    rest = SearchSpace(start(), tuple(part for part in PARTS if part != "memory"))
    at = learned.LAYOUT["server_heads"]
    heads = whole.params(np.ones(whole.size))[at] - rest.params(np.ones(rest.size))[at]
    names = [*SERVER_FEATURES] * len(learned.SERVER_HEADS)
    assert {names[i] for i in np.flatnonzero(heads)} == set(MEMORY)


@pytest.mark.parametrize(
    ("low", "high", "accepted"),
    [(0.01, 0.03, True), (-0.01, 0.02, True), (-0.03, -0.01, False), (-0.01, 0.0, True)],
)
def test_one_family_that_is_worse_is_enough_to_refuse(
    low: float, high: float, accepted: bool
) -> None:
    """However much better the others are."""
    good = Interval(0.5, 0.01)
    other = Interval((low + high) / 2, (high - low) / 2)
    judged = Judgement({"a": good, "b": other, "c": good}, Interval(0.3, 0.01))
    assert judged.accepted is accepted


def test_what_was_not_measured_is_not_accepted() -> None:
    nan = float("nan")
    assert not Judgement({"a": Interval(0.1, nan)}, Interval(0.1, nan)).accepted
    assert not Judgement({}, Interval(nan, nan)).accepted


def test_a_policy_that_is_worse_in_a_family_is_refused() -> None:
    """It gives up where much is offered."""
    params = start()
    shed = learned.LAYOUT["shed_head"].start
    params[shed + list(REQUEST_FEATURES).index("fleet_backlog")] = 60.0
    judged = judge(
        params, PRICED, WorldSource(family="train"), count=8, skip=0, names=("light", "overload")
    )
    assert judged.families["overload"].sign < 0, judged
    assert not judged.accepted
