"""The suite, its statistics and documents, and the tuner, on worlds of half a second."""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewise.api import specs_of
from edgewise.benchmark import compare, document, page, report, suite, tune
from edgewise.benchmark.episodes import METRICS, ReplayableWorld
from edgewise.benchmark.statistics import Interval, interval, over_families
from edgewise.cores import for_each
from edgewise.errors import BadInput
from edgewise.learn.search import Budget
from edgewise.policies import POLICIES
from edgewise.policies.base import Parameter
from edgewise.policies.tuning import Tuned, read_tuned, shipped_values, with_tuned, write_tuned
from edgewise.scenario import Scenario
from edgewise.sim import layout
from edgewise.worlds import families
from studies import disciplines, published

pytestmark = pytest.mark.study

PLAYED = ("earliest_completion", "round_robin", "least_outstanding")


def short(world: Scenario) -> Scenario:
    return world.with_overrides(duration=0.5)


def run(threads: int = 1, policies: tuple[str, ...] = PLAYED) -> suite.Result:
    return suite.run(
        ("light", "combined"),
        {name: POLICIES[name] for name in policies},
        families.evaluation_seeds(4),
        threads=threads,
        change=short,
    )


@pytest.fixture(scope="module")
def result() -> suite.Result:
    return run()


# -- statistics ----------------------------------------------------------------------------------


def test_interval_by_hand() -> None:
    # Mean 2, s = 1, n = 3; Student's 97.5 % quantile with 2 degrees of freedom is 4.3027.
    found = interval(np.array([1.0, 2.0, 3.0]))
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert found.sign == 0
    assert interval(np.array([1.0, 1.1, 1.2])).sign == 1


def test_an_interval_of_too_few_numbers() -> None:
    assert math.isnan(interval(np.array([1.0])).half)
    assert math.isnan(interval(np.array([np.nan])).mean)
    assert interval(np.array([1.0, np.nan, 3.0])).mean == 2.0


def test_families_are_not_independent_samples() -> None:
    """Two families with equal values for every seed give no more information than one."""
    one = np.array([0.1, 0.3, 0.2, 0.6])
    assert over_families(np.stack([one, one])) == pytest.approx(interval(one))
    pooled = interval(np.concatenate([one, one]))
    assert pooled.half < 0.7 * over_families(np.stack([one, one])).half


# -- the suite -----------------------------------------------------------------------------------


def test_same_result_whatever_the_number_of_threads(result: suite.Result) -> None:
    other = run(threads=3)
    for metric in METRICS:
        assert result.array(metric).tobytes() == other.array(metric).tobytes()


def test_a_world_can_be_played_again() -> None:
    """A play leaves no trace for the next one."""
    world = ReplayableWorld(short(families.scenario("combined", 3)))
    first = world.measure(POLICIES["earliest_completion"])
    other = world.measure(POLICIES["round_robin"])
    assert other != first
    assert world.measure(POLICIES["earliest_completion"]) == first


def test_metrics_are_those_of_the_results() -> None:
    replayable = ReplayableWorld(short(families.scenario("medium", 3)))
    world = replayable.play(POLICIES["earliest_completion"]).world
    in_time, effective, utility = 0, 0.0, 0.0
    for request, outcome in zip(world.requests, world.results, strict=True):
        utility += outcome["utility"]
        if outcome["status"] != layout.SERVED or outcome["latency"] > request["deadline"]:
            continue
        in_time += 1
        service = world.services[outcome["service"]]
        accuracy = service["ready_accuracy"] if outcome["form"] else service["accuracy"]
        effective += accuracy if accuracy >= request["accuracy"] else 0.0
    found = replayable.measure(POLICIES["earliest_completion"])
    assert found.requests == len(world.requests)
    assert found.missed == pytest.approx(1.0 - in_time / found.requests)
    assert found.effective == pytest.approx(effective / found.requests)
    assert found.utility == pytest.approx(utility / found.requests)


def test_a_result_comes_back_from_json(result: suite.Result) -> None:
    back = suite.Result.from_json(result.to_json())
    assert back == result
    assert back.array("p99").shape == (2, 3, 4)
    with pytest.raises(BadInput, match="not a result"):
        suite.Result.from_json(b"{}")


def test_the_standard_suite_is_large_and_held_out() -> None:
    assert len(suite.SUITES["standard"]) >= 18
    assert "train" not in suite.SUITES["standard"]
    seeds = families.evaluation_seeds(30)
    assert all(seed in families.EVALUATION for seed in seeds)
    for count in (0, 1_000_001):
        with pytest.raises(BadInput, match="seeds"):
            families.evaluation_seeds(count)


def test_an_exception_in_a_task_is_raised_and_stops_the_rest() -> None:
    done: list[int] = []

    def task(item: int) -> None:
        done.append(item)
        if item == 0:
            raise BadInput("no")
        time.sleep(0.01)  # or the other thread could do all of them before anybody notices

    for threads in (1, 2):
        with pytest.raises(BadInput, match="no"):
            for_each(range(1000), task, threads)
    assert len(done) < 1000


# -- comparing -----------------------------------------------------------------------------------


def made_up(values: list[list[list[float]]], policies: tuple[str, ...]) -> suite.Result:
    """Utilities [family][policy][seed]; every other metric is the same."""
    shape = np.array(values)
    return suite.Result(
        suite="made up",
        families=("one", "two")[: len(values)],
        policies=policies,
        seeds=tuple(range(shape.shape[2])),
        requests=[[10] * shape.shape[2]] * len(values),
        metrics=dict.fromkeys(METRICS, values),  # type: ignore[misc]
    )


def test_each_family_has_its_best_heuristic_as_reference() -> None:
    values = [
        [[0.5, 0.7, 0.6], [0.4, 0.5, 0.5], [0.6, 0.8, 0.75]],
        [[0.3, 0.3, 0.3], [0.4, 0.5, 0.45], [0.5, 0.6, 0.5]],
    ]
    found = compare.compare(made_up(values, ("a", "b", "edgewise")))
    assert found.reference == ("a", "b"), "a learned policy is never the reference"
    first = {line.policy: line for line in found.families[0]}
    assert first["edgewise"].difference.mean == pytest.approx(np.mean([0.1, 0.1, 0.15]))
    assert math.isnan(first["a"].difference.mean)
    overall = {line.policy: line for line in found.overall}
    by_seed = [(0.1 + 0.1) / 2, (0.1 + 0.1) / 2, (0.15 + 0.05) / 2]
    assert overall["edgewise"].difference == pytest.approx(interval(np.array(by_seed)), nan_ok=True)
    # a is the reference of the first family: there its difference is 0.
    assert overall["a"].difference.mean == pytest.approx((0 - 0.15) / 2)
    assert [line.policy for line in found.overall] == ["edgewise", "b", "a"]


def test_a_reference_can_be_named() -> None:
    values = [[[0.5, 0.7], [0.4, 0.5]]]
    found = compare.compare(made_up(values, ("a", "b")), "b")
    assert found.reference == ("b",)
    with pytest.raises(BadInput, match="no policy 'c'"):
        compare.compare(made_up(values, ("a", "b")), "c")
    with pytest.raises(BadInput, match="heuristic"):
        compare.compare(made_up([[[0.5, 0.7]]], ("edgewise",)))


def test_paired_differences_cancel_what_the_world_did() -> None:
    rng = np.random.default_rng(1)
    world = rng.uniform(0.2, 0.9, 20)
    values = [[(world + 0.01).tolist(), world.tolist()]]
    found = compare.compare(made_up(values, ("a", "b")), "b").families[0][0]
    assert found.utility.half > 0.05
    assert found.difference.half < 1e-12
    assert found.difference.sign == 1


# -- writing it down -----------------------------------------------------------------------------


def test_markdown(result: suite.Result) -> None:
    text = report.markdown(compare.compare(result))
    lines = text.splitlines()
    assert sum(line.startswith("| earliest_completion") for line in lines) == 3
    assert "2,000,000 … 2,000,003" in text
    widths = {line.count("|") for line in lines if line.startswith("| policy")}
    assert widths == {9}


def test_numbers_in_tables() -> None:
    assert f"{Interval(0.61234, 0.0042):.3f}" == "0.612 ± 0.004"
    assert f"{Interval(0.61234, 0.0042).scaled(100.0):+.1f}" == "+61.2 ± 0.4"
    assert f"{Interval(0.5, math.nan):.3f}" == "0.500"
    assert f"{Interval(math.nan, math.nan):.3f}" == "–"
    assert report.percent_of(Interval(0.0102, 0.0012), 0.6) == "+1.7 % ± 0.2"


def test_page_stands_alone(result: suite.Result) -> None:
    made = msgspec.structs.replace(result, command="edgewise bench <x>")
    html = page.page(compare.compare(made))
    assert "edgewise bench &lt;x&gt;" in html
    assert html.count("Plotly.newPlot") >= 4
    outside = html.replace(html[html.index("<script>") : html.index("</script>")], "")
    assert "src=" not in outside, "nothing is loaded from elsewhere"
    assert 'href="http' not in outside


def test_sections_are_rewritten_in_place(tmp_path: Path) -> None:
    file = tmp_path / "doc.md"
    file.write_text("# Title\n\nwords\n\n<!-- a: begin -->\nold\n<!-- a: end -->\n\nmore words\n")
    document.rewrite(file, "a", "new\n")
    document.rewrite(file, "b", "other")
    document.rewrite(file, "a", "newer")
    assert file.read_text() == (
        "# Title\n\nwords\n\n<!-- a: begin -->\n\nnewer\n\n<!-- a: end -->\n\nmore words\n\n"
        "<!-- b: begin -->\n\nother\n\n<!-- b: end -->\n"
    )
    assert document.is_current(file, "a", "newer")
    assert not document.is_current(file, "a", "old")
    file.write_text("<!-- a: begin -->\nno end\n")
    with pytest.raises(BadInput, match="expected one"):
        document.rewrite(file, "a", "x")


# -- tuning --------------------------------------------------------------------------------------


def parameter(name: str, low: float, high: float, log: bool = False) -> Parameter:
    return Parameter(name=name, default=high, low=low, high=high, unit="", about="", log=log)


def test_the_unit_cube_and_back() -> None:
    both = (parameter("plain", -1.0, 3.0), parameter("log", 0.01, 100.0, log=True))
    assert tune.to_unit(both, [1.0, 1.0]) == pytest.approx([0.5, 0.5])
    assert tune.from_unit(both, np.array([0.5, 0.5])) == pytest.approx([1.0, 1.0])
    assert tune.from_unit(both, np.array([-1.0, 9.0])).tolist() == [-1.0, 100.0], "within bounds"


def test_worlds_of_a_search_are_training_worlds_each_once() -> None:
    seeds = [s for first in range(0, 200, 50) for s in families.training_seeds(19, first, 50)]
    assert len(set(seeds)) == 200
    assert all(seed in families.TRAINING for seed in seeds)


@pytest.mark.parametrize("name", ["least_outstanding", "sed_admission"])
def test_search_is_reproducible_and_says_how(name: str) -> None:
    def search(threads: int) -> tune.TuneResult:
        settings = tune.TuneSettings(worlds=2, threads=threads, change=short, validation=2)
        return tune.tune(name, POLICIES[name], Budget(steps=2), settings)

    found = search(1)
    assert found.params == search(2).params
    assert found.command == (
        f"edgewise tune {name} --suite wide --seed 1 --generations 2 --worlds 2"
    )
    for p in POLICIES[name].parameters:
        assert p.low <= found.params[p.name] <= p.high


def test_search_finds_a_better_value() -> None:
    """A rule that triples every latency and sheds below a utility of 0.6 serves almost nothing, so
    any search finds better values."""
    spec = POLICIES["sed_admission"]
    worst = {"threshold": 0.6, "margin": 3.0}
    bad = tuple(worst.get(p.name, p.default) for p in spec.parameters)
    settings = tune.TuneSettings(
        suite="train", worlds=3, start=bad, step=0.3, change=short, validation=4
    )
    policy = msgspec.structs.replace(spec, params=bad)
    found = tune.tune("sed_admission", policy, Budget(steps=3), settings)
    assert found.better
    assert found.over_current.sign == 1


def test_what_cannot_be_searched() -> None:
    once = Budget(steps=1)
    with pytest.raises(BadInput, match="no parameters"):
        tune.tune("earliest_completion", POLICIES["earliest_completion"], once)
    with pytest.raises(BadInput, match="unknown suite"):
        tune.tune("sed", POLICIES["sed"], once, tune.TuneSettings(suite="nope"))


def test_tuned_values_are_read_as_they_were_written(tmp_path: Path) -> None:
    tuned = {"sed": Tuned(command="edgewise tune sed", gain="+1", params={"share": 0.25})}
    file = tmp_path / "folder" / "tuned.json"
    write_tuned(file, tuned)
    assert read_tuned(file) == tuned


def test_a_file_that_is_no_tuned_values_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.json: cannot be read"):
        read_tuned(tmp_path / "nowhere.json")
    file = tmp_path / "tuned.json"
    file.write_text('{"sed": {"command": "c", "gain": "", "params": {"share": "much"}}}')
    with pytest.raises(BadInput, match=r"tuned\.json: .*Expected `float`, got `str`"):
        read_tuned(file)


def test_tuned_values_fit_their_rules() -> None:
    for name, values in shipped_values().items():
        spec = POLICIES[name]
        assert set(values.params) == set(spec.names), f"edgewise tune {name} is due"
        assert spec.params == tuple(values.params[each] for each in spec.names)
        assert spec.tuned == values.command
        for p in spec.parameters:
            assert p.low <= values.params[p.name] <= p.high


def test_a_rule_that_changed_keeps_what_still_fits() -> None:
    spec = msgspec.structs.replace(POLICIES["sed_admission"], params=())
    values = {"sed_admission": Tuned(command="c", gain="", params={"margin": 2.0, "gone": 1.0})}
    found = with_tuned({"sed_admission": spec}, values)["sed_admission"]
    assert dict(zip(found.names, found.params, strict=True))["margin"] == 2.0
    assert found.tuned == "c"


# -- the studies ---------------------------------------------------------------------------------


def test_thin_is_a_fifth_of_everything() -> None:
    world = families.scenario("volatile", 3)
    narrow = disciplines.thin(world)
    for name, link in world.network.links.items():
        assert narrow.network.links[name].rate_mbps == pytest.approx((link.rate_mbps or 0) / 5)
    for one, other in zip(world.network.events, narrow.network.events, strict=True):
        assert other.set.rate_mbps == pytest.approx(one.set.rate_mbps / 5)  # type: ignore[operator]


def test_conditions_change_what_they_say() -> None:
    world = short(families.scenario("medium", 3))

    def changed(name: str) -> Scenario:
        change = disciplines.CONDITIONS[name].change
        return world if change is None else change(world)

    assert changed("fifo").discipline == "fifo"
    assert not changed("original only").prepare.enabled
    assert changed("own core").prepare.on == "own"
    curve = changed("gpu batches").servers["s01"].services[0].latency
    first = (world.servers["s01"].services[0].latency or (0.0,))[0]
    assert curve is not None
    assert curve[0] == pytest.approx(first)
    assert curve[7] == pytest.approx(first * (0.6 + 0.4 * 8))
    assert disciplines.CONDITIONS["fifo links"].options.fifo_links
    named = set(disciplines.CONDITIONS)
    assert {c for each in disciplines.CONTRASTS for c in (each.with_, each.without)} <= named


def test_forced_sends_nothing_as_it_came() -> None:
    replayable = ReplayableWorld(short(families.scenario("hot_spot", 3)))

    def originals(condition: str) -> int:
        spec = disciplines.policy_of(disciplines.CONDITIONS[condition])
        world = replayable.play(spec).world
        moved = world.results["server"] != world.requests["ingress"]
        served = world.results["status"] == layout.SERVED
        return int((served & moved & (world.results["form"] == 0)).sum())

    assert originals("as tuned") > 0
    assert originals("forced") == 0


def test_published_rules_are_as_published() -> None:
    rules = published.with_defaults(("prequal", "c3"), clients=8.0)
    prequal = POLICIES["prequal"]
    assert rules["prequal"].params == tuple(p.default for p in prequal.parameters)
    assert dict(zip(rules["c3"].names, rules["c3"].params, strict=True))["clients"] == 8.0


def test_a_slow_server_costs_round_robin_its_share() -> None:
    """One in eleven goes to it; its second is too short."""
    world = published.slow_server(1, 0.02, duration=20.0)
    done = (
        ReplayableWorld(world).play(published.with_defaults(("round_robin",))["round_robin"]).world
    )
    during = (done.requests["time"] >= 15.0) & (done.requests["time"] < 20.0)
    good = (done.results["status"] == layout.SERVED) & (done.results["latency"] <= 1.0)
    assert good[during].mean() == pytest.approx(10 / 11, abs=0.01)
    assert good[~during].mean() == 1.0


def test_policies_by_name() -> None:
    assert tuple(specs_of(["sed", "prequal"])) == ("sed", "prequal")
    with pytest.raises(BadInput, match="did you mean sed"):
        specs_of("sedd")
    with pytest.raises(BadInput, match="stands twice"):
        specs_of(["sed", POLICIES["sed"]])
