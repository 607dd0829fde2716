"""Learning by gradient: advantages by hand, torch against the kernel, and that it learns."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgewise.benchmark.statistics import Interval
from edgewise.errors import BadInput
from edgewise.learn import actor_critic, ppo
from edgewise.learn.gae import by_time, gae
from edgewise.learn.ppo_settings import PpoSettings
from edgewise.learn.rollout import DECISION, Rollout, joined, rollout
from edgewise.learn.search import Budget, Progress, SearchResult, search
from edgewise.policies import POLICIES, learned, weight_files
from edgewise.policies.learned import LAYOUT, untrained
from edgewise.policies.priced import PRICED_GREEDY
from edgewise.scenario import Scenario
from edgewise.sim import engine
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.play import play
from edgewise.sim.source import WorldSource
from edgewise.worlds import families
from edgewise.worlds.workload import generate

pytestmark = pytest.mark.study

HEURISTIC = POLICIES["priced_greedy"].params


def short(family: str, seed: int, duration: float = 3.0) -> Scenario:
    return families.scenario(family, seed).with_overrides(duration=duration)


def simulated(scenario: Scenario) -> Any:
    return simulation(scenario, generate(scenario, None))


def anything(seed: int, network: bool) -> np.ndarray:
    """Params with weights of a size that training may come to."""
    params = untrained(HEURISTIC)
    rng = np.random.default_rng(seed)
    for name in actor_critic.SCALES:
        if network or name in actor_critic.HEADS:
            params[LAYOUT[name]] += rng.normal(0.0, 0.2, params[LAYOUT[name]].size)
    learned.named(params).options.network = float(network)
    return params


# -- advantages ----------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    """Three decisions; γ and λ differ from step to step; truncated, so the value after counts."""
    rewards, values = np.array([1.0, 0.0, 2.0]), np.array([0.5, 1.0, 1.5, 4.0])
    discounts, decays = np.array([0.5, 0.8, 0.25]), np.array([0.5, 0.25, 1.0])
    last = 2.0 + 0.25 * 4.0 - 1.5  # 1.5
    middle = 0.0 + 0.8 * 1.5 - 1.0 + 0.8 * 0.25 * last  # 0.2 + 0.3
    first = 1.0 + 0.5 * 1.0 - 0.5 + 0.5 * 0.5 * middle  # 1.0 + 0.125
    assert gae(rewards, values, discounts, decays).tolist() == pytest.approx([first, middle, last])
    assert [first, middle, last] == pytest.approx([1.125, 0.5, 1.5])


def test_gae_of_an_end_has_no_value_after_it() -> None:
    found = gae(np.array([1.0]), np.array([0.25, 0.0]), np.array([0.9]), np.array([0.9]))
    assert found.tolist() == [0.75]


def test_gae_between_one_step_and_the_whole_return() -> None:
    rewards, values = np.arange(5.0), np.linspace(1.0, 2.0, 6)
    ones, zeros = np.ones(5), np.zeros(5)
    whole = np.array([rewards[t:].sum() + values[5] - values[t] for t in range(5)])
    one_step = rewards + values[1:] - values[:5]
    assert gae(rewards, values, ones, ones) == pytest.approx(whole)
    assert gae(rewards, values, ones, zeros) == pytest.approx(one_step)


def test_discount_is_by_time() -> None:
    """A second is worth the same in one step as in ten."""
    assert by_time(np.array([1.0]), 2.0)[0] == pytest.approx(math.exp(-0.5))
    assert np.prod(by_time(np.full(10, 0.1), 2.0)) == pytest.approx(math.exp(-0.5))
    assert by_time(np.array([1.0]), 0.0).tolist() == [0.0]
    assert by_time(np.array([1.0]), math.inf).tolist() == [1.0]


def fake(requests: list[int], rewards: list[float], times: list[float] | None = None) -> Rollout:
    """As much of a rollout as credit needs."""
    decisions = np.zeros(len(requests), DECISION)
    decisions["request"] = requests
    decisions["time"] = times or list(range(len(requests)))
    nothing = np.zeros((0, 1))
    return Rollout(decisions, np.array(rewards), nothing, nothing, nothing, nothing, nothing)


def test_rewards_are_compared_with_the_same_request_in_the_other_plays() -> None:
    plays = [
        fake([0, 1, 2], [1.0, 0.0, 0.5]),
        fake([0, 2], [0.4, 0.5]),
        fake([0, 1, 2, 3], [0.0, 0.6, 0.2, 0.9]),
    ]
    one, other, third = ppo.against_the_others(plays)
    assert one.tolist() == pytest.approx([1.0 - 0.2, 0.0 - 0.6, 0.5 - 0.35])
    assert other.tolist() == pytest.approx([0.4 - 0.5, 0.5 - 0.35])
    assert third.tolist() == pytest.approx([0.0 - 0.7, 0.6, 0.2 - 0.5, 0.0])  # 3 has no other


def test_the_last_decision_of_a_trace_only_lends_its_value() -> None:
    played = fake([0, 1], [0.5, 99.0], [0.0, 2.0])
    settings = PpoSettings(tau=2.0)
    found = ppo.advantages(played, played.rewards, np.array([0.25, 3.0]), settings)
    assert found.tolist() == pytest.approx([0.5 + math.exp(-1.0) * 3.0 - 0.25])


# -- the policy, twice ---------------------------------------------------------------------------


@pytest.mark.parametrize("network", [False, True])
@pytest.mark.parametrize("family", ["medium", "combined", "two_balancers"])
def test_torch_and_the_kernel_say_the_same_probabilities(family: str, network: bool) -> None:
    """Of what the kernel drew with, for weights far from the heuristic."""
    params = anything(1, network)
    settings = PpoSettings(network=network, temperature=0.05)
    learner = actor_critic.Learner(params, settings)
    played = joined(
        [rollout(simulated(short(family, seed)), learner.params(), seed) for seed in (1, 2)]
    )
    order = np.random.default_rng(0).permutation(len(played.decisions))
    batch = actor_critic.Batch(played, order)
    with torch.no_grad():
        found = learner.log_probabilities(batch)
    assert len(order) > 50
    assert float(batch.before.min()) < -0.5  # there was something to choose
    assert found.numpy() == pytest.approx(batch.before.numpy(), abs=2e-4)


def test_untrained_it_is_the_heuristic() -> None:
    """Zero steps, and the params play every world as `priced_greedy`, to the last bit."""
    learner = actor_critic.Learner(untrained(HEURISTIC), PpoSettings())
    params = learner.params()
    learned.named(params).options.temperature = 0.0
    assert (params == untrained(HEURISTIC)).all()
    spec = weight_files.learned_spec(untrained(HEURISTIC), "untrained")
    scenario = short("heavy", 3)
    mine = play(simulated(scenario), spec, 0, tuple(params.tolist()))
    theirs = play(simulated(scenario), POLICIES["priced_greedy"], 0)
    assert (mine.world.results["row"] == theirs.world.results["row"]).all()


def test_a_rollout_credits_each_decision_with_its_own_request() -> None:
    sim = simulated(short("heavy", 4))
    played = rollout(sim, actor_critic.Learner(untrained(HEURISTIC), PpoSettings()).params(), 0)
    at = played.decisions["request"]
    assert len(set(at.tolist())) == len(at)
    assert (played.rewards == sim.world.results["utility"][at]).all()
    assert played.rewards.sum() == pytest.approx(float(sim.world.clock["utility"][0]))
    assert (np.diff(played.decisions["time"]) >= 0.0).all()


def test_the_gradient_is_that_of_the_probabilities() -> None:
    """Against finite differences, in the coordinates that are optimised."""
    settings = PpoSettings(network=True, temperature=0.1)
    learner = actor_critic.Learner(anything(2, True), settings)
    played = rollout(simulated(short("medium", 5, 1.0)), learner.params(), 1)
    batch = actor_critic.Batch(played, np.arange(len(played.decisions)))
    learner.log_probabilities(batch).sum().backward()
    gradient = learner.x.grad
    assert gradient is not None
    for part in actor_critic.SCALES:
        span = LAYOUT[part]
        i = span.start + int(gradient[span].abs().argmax())
        with torch.no_grad():
            learner.x[i] += 0.02
            up = float(learner.log_probabilities(batch).double().sum())
            learner.x[i] -= 0.04
            down = float(learner.log_probabilities(batch).double().sum())
            learner.x[i] += 0.02
        assert float(gradient[i]) == pytest.approx((up - down) / 0.04, rel=0.05, abs=0.02), part
    still = np.ones(learned.LENGTH, bool)
    for part in actor_critic.SCALES:
        still[LAYOUT[part]] = False
    assert not gradient.numpy()[still].any()


# -- training ------------------------------------------------------------------------------------

FAST = PpoSettings(
    worlds=4, plays=4, rate=0.3, temperature=0.05, epochs=4, batch=512, stop=0.1, seed=1
)


def test_it_learns() -> None:
    """An overloaded fleet whose heuristic thinks that seconds cost nothing: it must find out that
    they do, within a dozen small batches, and earn a tenth more on worlds that it has not seen."""
    cheap = dict.fromkeys(("utilisation_gain", "fleet_gain", "threshold_gain"), 0.0)
    cheap |= {"load_gain": 0.002, "backlog_gain": 0.02}
    pairs = zip(PRICED_GREEDY, HEURISTIC, strict=True)
    start = untrained([cheap.get(parameter.name, value) for parameter, value in pairs])
    source = WorldSource(scenario=short("overload", 4, 5.0))
    params = search(ppo.Ppo(source, start, FAST), Budget(steps=12)).params

    def scores(given: np.ndarray) -> np.ndarray:
        found = []
        for scenario in map(source.scenario, families.validation_seeds(10)):
            sim = simulation(scenario, generate(scenario, None), SimOptions(store=False))
            play(sim, weight_files.learned_spec(start, "start"), 0, tuple(given.tolist()))
            found.append(float(sim.world.clock["utility"][0]) / len(sim.world.requests))
        return np.array(found)

    before, after = scores(start), scores(params)
    gain = after - before
    assert gain.mean() > 0.06 * before.mean()
    assert gain.mean() > 2.0 * gain.std() / math.sqrt(len(gain))


def test_the_same_seed_gives_the_same_weights_on_any_number_of_threads() -> None:
    source = WorldSource(scenario=short("heavy", 3, 2.0))
    settings = PpoSettings(worlds=2, plays=2, batch=128, network=True)
    start = untrained(HEURISTIC)
    seen: list[Progress] = []
    found = [
        search(
            ppo.Ppo(source, start, settings, threads), Budget(steps=2), progress=seen.append
        ).params
        for threads in (1, 2)
    ]
    assert (found[0] == found[1]).all()
    assert (found[0] != start).any()
    assert [each.steps for each in seen] == [1, 2, 1, 2]
    assert seen[1].decisions > seen[0].decisions > 0


def test_plays_of_a_world_meet_the_same_requests() -> None:
    """On the same luck, other rows: what the baseline rests on."""
    settings = PpoSettings(plays=3, temperature=0.05)
    source = WorldSource(scenario=short("heavy", 3, 2.0))
    params = actor_critic.Learner(untrained(HEURISTIC), settings).params()
    with ThreadPoolExecutor(2) as pool:
        (plays,) = ppo.play(source, [50_000], params, settings, 0, pool)
    requests = [set(each.decisions["request"].tolist()) for each in plays]
    assert requests[0] == requests[1] == requests[2]
    assert (plays[0].decisions["time"] == plays[1].decisions["time"]).all()
    assert (plays[0].decisions["chosen"] != plays[1].decisions["chosen"]).any()


def test_a_run_that_was_killed_resumes_to_the_same_weights(tmp_path: Path) -> None:
    source = WorldSource(scenario=short("heavy", 3, 1.0))
    settings = PpoSettings(worlds=2, plays=2, batch=64)
    start = untrained(HEURISTIC)

    class Killed(Exception):
        pass

    validated: list[int] = []

    def validate(params: np.ndarray) -> Interval:
        assert learned.named(params).options.temperature == 0.0
        validated.append(1)
        return Interval(0.01 * len(validated) * (1 if len(validated) < 3 else -1), 0.001)

    def kill(step: Progress) -> None:
        if step.steps == 2:
            raise Killed

    def run(folder: Path | None, progress: object = lambda _: None) -> SearchResult:
        return search(
            ppo.Ppo(source, start, settings, threads=1), Budget(steps=4), folder=folder,
            validate=validate, every=1, progress=progress,  # type: ignore[arg-type]
        )  # fmt: skip

    whole = run(None)
    validated.clear()
    with pytest.raises(Killed):
        run(tmp_path, kill)
    again = run(tmp_path)
    assert len(validated) == 4
    assert (again.params == whole.params).all()
    assert (again.decisions, again.gain) == (whole.decisions, Interval(0.02, 0.001))
    assert (run(tmp_path).params == whole.params).all()  # it was finished
    with pytest.raises(BadInput, match="other options"):
        search(ppo.Ppo(source, start, settings), Budget(steps=5), folder=tmp_path)


def test_branches_do_not_touch_what_they_came_from() -> None:
    sim = simulated(short("medium", 1))
    before = sim.world.clock.copy()
    rollout(
        engine.branch(sim),
        actor_critic.Learner(untrained(HEURISTIC), PpoSettings()).params(),
        0,
    )
    assert (sim.world.clock == before).all()
