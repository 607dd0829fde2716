"""The bound exceeds everything that can be attained, and the clairvoyant plan can be attained."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from edgewise import scenario as sc
from edgewise.bound import clairvoyant, dual, plans
from edgewise.bound.gap import Effort, closed_share, measure_gap
from edgewise.bound.plan_replay import replay
from edgewise.bound.relaxation import Relaxation, relax
from edgewise.cli import bound as command
from edgewise.policies import POLICIES
from edgewise.scenario import Scenario
from edgewise.sim import engine, layout
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.layout import Sim
from edgewise.sim.play import play
from edgewise.worlds import families
from edgewise.worlds.workload import generate

pytestmark = pytest.mark.study

STEPS = 60
PLANS_MAX = 3000
"""Plans of a tiny world; worlds with more are left out."""


def tiny(seed: int) -> Scenario:
    """A world of two or three servers and a few requests at once, with a bit of everything."""
    rng = np.random.default_rng([seed, 77])
    names = ("a", "b", "c")[: int(rng.integers(2, 4))]

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    def link() -> sc.LinkSettings:
        outage = sc.Outage(at=float(rng.uniform(0.0, 0.2)), duration=float(rng.uniform(0.02, 0.2)))
        return sc.LinkSettings(
            rate_mbps=None if chance(0.1) else float(rng.choice([2.0, 10.0, 40.0])),
            delay=float(rng.choice([0.0, 0.002, 0.01])),
            jitter=0.004 if chance(0.3) else 0.0,
            loss=0.02 if chance(0.2) else 0.0,
            loss_mode="reset" if chance(0.2) else "stall",
            outages=(outage,) if chance(0.2) else (),
        )

    def services() -> tuple[sc.ServiceSpec, ...]:
        curve = (1.0, 1.3, 1.6) if chance(0.3) else (1.0,)
        ladder = (("lite0-96", 0.6, 0.02), ("lite2", 0.9, 0.06))
        found = tuple(
            sc.ServiceSpec(
                model=model, accuracy=accuracy, latency=tuple(latency * each for each in curve)
            )
            for model, accuracy, latency in ladder
            if chance(0.6)
        )
        return found or (sc.ServiceSpec(model="lite2", accuracy=0.9, latency=(0.06,)),)

    access = {name: link() for name in names}
    pair = chance(0.3)
    ends = [f"{a}>{b}" for a in names for b in names if a != b] if pair else list(names)
    failures: list[sc.DownFailure | sc.SlowFailure] = []
    if chance(0.2):
        at, duration = float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.05, 0.3))
        failures.append(sc.DownFailure(at=at, server="b", duration=duration))
    if chance(0.3):
        failures.append(sc.SlowFailure(at=0.05, server="a", duration=0.1, factor=3.0))
    event = sc.LinkEvent(at=0.1, link=ends[0], set=sc.LinkChange(rate_mbps=5.0, delay=0.001))
    world = Scenario(
        name="tiny",
        seed=seed,
        discipline="edf" if chance(0.7) else "fifo",
        prepare=sc.Prepare(on="own" if chance(0.3) else "workers", seconds=0.01),
        servers={
            name: sc.ServerSpec(
                services=services(),
                workers=int(rng.integers(1, 3)),
                speed=float(rng.choice([0.5, 1.0])),
            )
            for name in names
        },
        service_noise=sc.ServiceNoise(
            cv=0.3, spell=sc.Spell(rate=5.0, duration=0.1) if chance(0.3) else sc.Spell()
        ),
        network=sc.NetworkSpec(
            topology="pair" if pair else "uplink",
            access_links=access,
            links={end: link() for end in ends},
            events=(event,) if chance(0.3) else (),
        ),
        workload=sc.WorkloadSpec(
            duration=float(rng.uniform(0.02, 0.1)),
            arrivals=sc.ConstantArrivals(rate=1.0),
            ingress={names[0]: 0.7, names[1]: 0.3},
            demands=(
                sc.Demand(share=0.6, deadline=(0.06, 0.3)),
                sc.Demand(share=0.4, deadline=(0.06, 0.4), accuracy=0.7),
            ),
            payload=sc.LognormalPayload(median_bytes=60e3, sigma=0.5),
        ),
        failures=tuple(failures),
        score=sc.ScoreSpec(lateness="hard" if chance(0.3) else "soft"),
    )
    return world.with_overrides(rate=float(rng.integers(2, 6)) / world.workload.duration)


def begin(world: Scenario, fifo_links: bool = False) -> Sim:
    return simulation(world, generate(world, None), SimOptions(fifo_links=fifo_links))


def _flat(sim: Sim) -> list[np.ndarray]:
    """Its arrays as bytes, but for those that branches share: ready to be copied many times."""
    parts = [*sim.world._asdict().items(), *sim.reports._asdict().items()]
    parts += [*sim.beliefs._asdict().items(), *sim.table.arrays._asdict().items()]
    return [
        engine.as_bytes(array).reshape(-1) for name, array in parts if name not in layout.CONSTANTS
    ]


def best_of_all(sim: Sim, rows: list[list[int]]) -> float:
    """The most utility of any combination of rows, each played by the engine."""
    work = engine.branch(sim)
    arrays = [_flat(each) for each in (work, sim)]
    best, order = 0.0, np.empty(len(rows), np.int64)
    for plan in itertools.product(*rows):
        for to, of in zip(*arrays, strict=True):
            to[:] = of
        replay(work, np.array(plan, np.int64), -1, order)
        best = max(best, float(work.world.clock["utility"][0]))
    return best


class Tiny:
    """A tiny world, its best plan by enumeration, and its relaxation."""

    def __init__(self, seed: int) -> None:
        self.sim = begin(tiny(seed), fifo_links=seed % 4 == 0)
        self.relaxation = relax(self.sim)
        self.requests = len(self.sim.world.requests)
        # What the candidate table admits, as a policy would see it: not what `relax` says.
        shed = self.sim.table.mask.size - 1
        self.rows = [[shed] for _ in range(self.requests)]
        play = engine.branch(self.sim)
        while (r := engine.advance(play)) >= 0:
            self.rows[r] = np.flatnonzero(play.table.mask).tolist()
            engine.act(play, shed, 1.0)
        self.plans = int(np.prod([float(len(rows)) for rows in self.rows]))
        self.best = best_of_all(self.sim, self.rows) if self.plans <= PLANS_MAX else -1.0

    def bound(self, episode: Relaxation | None = None) -> float:
        """The bound on the utility of all requests together."""
        return dual.upper_bound(episode or self.relaxation, STEPS).utility * self.requests


@pytest.fixture(scope="module")
def tinies() -> list[Tiny]:
    found = [Tiny(seed) for seed in range(70)]
    return [each for each in found if each.best >= 0.0 and each.requests]


def test_no_plan_exceeds_the_bound(tinies: list[Tiny]) -> None:
    assert len(tinies) > 30
    assert sum(each.plans for each in tinies) > 10_000
    loose = []
    for each in tinies:
        bound = each.bound()
        assert bound >= each.best, each.sim.world.settings["seed"]
        loose.append(bound - each.best)
    # The test has teeth: most of these bounds are close.
    assert np.median(loose) < 0.05


def _cheaper(episode: Relaxation, field: str, factor: float, plus: float = 0.0) -> Relaxation:
    candidates = episode.candidates.copy()
    candidates[field] = candidates[field] * factor + plus
    if field == "utility":
        candidates["best_utility"] *= factor
    return episode._replace(candidates=candidates)


def _slower_links(episode: Relaxation) -> Relaxation:
    transfers = episode.transfers.copy()
    transfers["arrival_bin"] += 1
    return episode._replace(transfers=transfers)


UNSOUND: dict[str, Callable[[Relaxation], Relaxation]] = {
    "work 10 % too long": lambda episode: _cheaper(episode, "work", 1.1),
    "starts 5 ms late": lambda episode: _cheaper(episode, "start", 1.0, 0.005),
    "answers 5 ms late": lambda episode: _cheaper(episode, "return_delay", 1.0, 0.005),
    "utility 2 % too low": lambda episode: _cheaper(episode, "utility", 0.98),
    "half the capacity": lambda episode: episode._replace(capacity=episode.capacity * 0.5),
    "links a bin late": _slower_links,
}


@pytest.mark.parametrize("mistake", UNSOUND)
def test_an_unsound_bound_would_be_caught(mistake: str, tinies: list[Tiny]) -> None:
    caught = [each for each in tinies if each.bound(UNSOUND[mistake](each.relaxation)) < each.best]
    assert caught


def test_one_request_alone_is_bounded_by_what_it_gets() -> None:
    world = sc.Scenario(
        name="alone",
        servers={
            "a": sc.ServerSpec(
                services=(sc.ServiceSpec(model="lite2", accuracy=0.9, latency=(0.06,)),)
            )
        },
        network=sc.NetworkSpec(access=sc.LinkSettings(rate_mbps=80.0, delay=0.004)),
        workload=sc.WorkloadSpec(
            duration=1.0,
            arrivals=sc.ConstantArrivals(rate=1.0),
            ingress={"a": 1.0},
            demands=(sc.Demand(deadline=0.06),),
            payload=sc.LognormalPayload(median_bytes=10e3, sigma=0.0),
        ),
        service_noise=sc.ServiceNoise(cv=0.0),
    )
    sim = begin(world)
    assert len(sim.world.requests) == 1
    # 1 ms to send, 4 ms there, 60 ms of work, 4 ms back: 69 ms, 15 % over the deadline.
    bound = dual.upper_bound(relax(sim), 200).utility
    assert bound == pytest.approx(0.9 * (1.0 - 9.0 / 60.0), abs=1e-4)
    assert best_of_all(sim, [[0, 2]]) == pytest.approx(0.9 * 0.85)


SOME = ("priced_greedy", "earliest_completion", "local", "sed_admission")
FAMILIES = (
    "heavy",
    "volatile",
    "server_failure",
    "link_failure",
    "slow_server",
    "two_balancers",
    "trace_bandwidth",
    "thin_links",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_policy_exceeds_the_bound(family: str) -> None:
    world = families.scenario(family, families.TRAINING.start + 11)
    duration = 6.0 if family in ("server_failure", "link_failure", "slow_server") else 1.5
    sim = begin(world.with_overrides(duration=duration))
    bound = dual.upper_bound(relax(sim), STEPS).utility
    for name in SOME:
        over = play(engine.branch(sim), POLICIES[name], 1)
        assert over.world.clock["utility"][0] / len(sim.world.requests) <= bound
    assert bound < 0.99


def test_uploads_do_not_depend_on_decisions() -> None:
    """The claim of step 3a of the proof about the engine."""
    sim = begin(families.scenario("volatile", 3).with_overrides(duration=2.0))
    plays = [play(engine.branch(sim), POLICIES[name], 1).world.results for name in SOME]
    episode = relax(sim)
    for results in plays:
        seen = ~np.isnan(results["uploaded"])
        assert seen.sum() > 20
        ready = np.maximum(results["uploaded"], results["decided"])
        np.testing.assert_array_equal(episode.requests["ready"][seen], ready[seen])


@pytest.mark.parametrize("seed", range(6))
def test_the_slope_is_a_subgradient(seed: int) -> None:
    """B(q) ≥ B(p) + slope(p) · (q − p): only a right slope of a convex function has that."""
    if seed < 3:
        sim = begin(tiny(seed))
    else:
        sim = begin(families.scenario("combined", seed).with_overrides(duration=1.0))
    episode = relax(sim)
    rng = np.random.default_rng(seed)
    slope = np.empty_like(episode.capacity)
    for scale in (0.3, 3.0, 30.0):
        p = scale * rng.exponential(size=slope.shape) * (episode.free == 0)
        value = plans.evaluate(episode, p, slope)
        for _ in range(4):
            q = np.maximum(0.0, p + rng.normal(size=p.shape) * scale * rng.random())
            q *= episode.free == 0
            line = value + float((slope * (q - p)).sum())
            assert plans.evaluate(episode, q, np.empty_like(slope)) >= line - 1e-6 * abs(line)


def test_descent_helps() -> None:
    episode = relax(begin(families.scenario("heavy", 5).with_overrides(duration=1.5)))
    seen: list[float] = []
    bound = dual.upper_bound(episode, STEPS, lambda step, value: seen.append(value))
    assert len(seen) == STEPS
    assert seen == sorted(seen, reverse=True)
    assert bound.utility == seen[-1] < seen[0]
    assert (bound.prices >= 0.0).all()


def test_relaxation_refuses_a_world_that_has_begun() -> None:
    sim = begin(tiny(1))
    engine.advance(sim)
    with pytest.raises(ValueError, match="at its beginning"):
        relax(sim)


def test_relaxation_leaves_the_world_as_it_is() -> None:
    sim = begin(tiny(1))
    before = engine.branch(sim)
    relax(sim)
    for name, array in sim.world._asdict().items():
        assert array.tobytes() == getattr(before.world, name).tobytes(), name


# -- the clairvoyant -----------------------------------------------------------------------------


def _search(sim: Sim, trials: int, seed: int = 0) -> clairvoyant.SearchedPlan:
    episode = relax(sim)
    values = plans.row_values(episode, dual.upper_bound(episode, STEPS).prices, sim.table.mask.size)
    spec = POLICIES["earliest_completion"]
    plan = play(engine.branch(sim), spec, 1).world.results["row"].astype(np.int64)
    return clairvoyant.search(sim, values, [plan], trials=trials, seed=seed)


def test_the_search_finds_the_best_plan_of_tiny_worlds(tinies: list[Tiny]) -> None:
    chosen = [each for each in tinies if each.requests >= 3][:10]
    found = [_search(each.sim, 300).utility * each.requests for each in chosen]
    for each, utility in zip(chosen, found, strict=True):
        assert utility <= each.best + 1e-9
    right = [u >= each.best - 1e-9 for each, u in zip(chosen, found, strict=True)]
    assert sum(right) >= 8


def test_the_search_is_deterministic_and_its_plan_can_be_played() -> None:
    sim = begin(families.scenario("heavy", 4).with_overrides(duration=1.0))
    one, other = _search(sim, 400), _search(sim, 400)
    assert one.utility == other.utility
    np.testing.assert_array_equal(one.rows, other.rows)
    assert not np.array_equal(one.rows, _search(sim, 400, seed=1).rows)
    assert one.utility > one.start_utility
    assert clairvoyant.plan_utility(sim, one.rows) == one.utility
    # Decision by decision, through the step interface.
    play = engine.branch(sim)
    while (r := engine.advance(play)) >= 0:
        assert play.table.mask[one.rows[r]]
        engine.act(play, int(one.rows[r]), 1.0)
    assert play.world.clock["utility"][0] / len(one.rows) == one.utility


def test_a_search_without_time_gives_the_best_plan_it_was_given() -> None:
    sim = begin(families.scenario("light", 4).with_overrides(duration=1.0))
    found = _search(sim, 0)
    assert found.utility == found.start_utility == clairvoyant.plan_utility(sim, found.rows)


# -- the gap -------------------------------------------------------------------------------------


def test_a_gap_is_in_order() -> None:
    world = families.scenario("heavy", 2).with_overrides(duration=1.0)
    rules = {name: POLICIES[name] for name in SOME}
    shares: list[float] = []
    found = measure_gap(
        world,
        rules,
        effort=Effort(steps=STEPS, trials=300),
        progress=lambda share, what: shares.append(share),
    )
    assert tuple(found.policies) == SOME
    assert found.policies[found.best] < found.clairvoyant <= found.bound
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert closed_share(found.clairvoyant, found.policies[found.best], found.clairvoyant) == 1.0
    assert np.isnan(closed_share(0.5, 0.5, 0.5))


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command.bound)
    file = tmp_path / "bound.json"
    arguments = ["family:light", "--duration", "0.5", "--seeds", "2", "--trials", "50"]
    arguments += ["--policy", "priced_greedy,local", "--steps", "40", "--json", str(file)]
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert shown.exit_code == 0, shown.output
    for word in ("priced_greedy", "local", "clairvoyant", "upper bound"):
        assert word in shown.output
    data = json.loads(file.read_text())
    assert [each["seed"] for each in data["worlds"]] == [2_000_000, 2_000_001]
    for each in [*data["worlds"], data["mean"]]:
        assert max(each["policies"].values()) <= each["clairvoyant"] <= each["bound"]
    assert msgspec.json.decode(file.read_bytes())["scenario"] == "light-2000000"
