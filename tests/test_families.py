"""Random worlds: valid, reproducible, what their names say, and never seen by the other side."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewise.errors import BadInput
from edgewise.scenario import (
    CellularTrace,
    Demand,
    DownFailure,
    ErrorsFailure,
    LinkSettings,
    PoissonArrivals,
    Scenario,
    ServerSpec,
    ServiceSpec,
    SlowFailure,
    WorkloadSpec,
    WrongFailure,
    check,
    dump,
    loads,
    warnings_of,
)
from edgewise.worlds import families, random_world, recorded
from edgewise.worlds.workload import generate

pytestmark = pytest.mark.study

SEEDS = (0, 1, 1_000_000, 2_000_000, 2_000_007)


def seeds_of(family: str) -> list[int]:
    """Those of `SEEDS` for which the family has a world."""
    return [s for s in SEEDS if s in families.EVALUATION or not families.find(family).failing]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("family", families.FAMILIES)
def test_worlds_are_valid_and_come_back_from_a_file(family: str) -> None:
    for seed in seeds_of(family):
        world = families.scenario(family, seed)
        assert check(world) is world
        assert world.seed == seed
        assert not [w for w in warnings_of(world) if "cannot be served" in w]
    assert loads(dump(world)) == world


@pytest.mark.parametrize("family", families.FAMILIES)
def test_same_seed_same_world(family: str) -> None:
    seed, other = seeds_of(family)[-2:]
    one, two = (families.scenario(family, seed) for _ in range(2))
    assert one == two
    a, b = generate(one, None), generate(two, None)
    assert a.time.tobytes() == b.time.tobytes()
    assert families.scenario(family, other) != one


@pytest.mark.parametrize("family", families.FAILING)
def test_failing_families_cannot_be_trained_or_tuned_on(family: str) -> None:
    assert family not in families.STANDARD
    for seed in (families.TRAINING.start, families.VALIDATION.stop - 1):
        with pytest.raises(BadInput, match="for evaluation only"):
            families.scenario(family, seed)


def test_failing_families_fail() -> None:
    kinds = {
        family: {type(failure) for failure in families.scenario(family, SEEDS[-1]).failures}
        for family in families.FAILING
    }
    assert kinds == {
        "failing_fast": {ErrorsFailure},
        "dead_path": set(),
        "wrong_answers": {WrongFailure},
        "forgotten_spell": {SlowFailure},
        "lost_photos": set(),
    }
    dead = families.scenario("dead_path", SEEDS[-1]).network
    assert dead.topology == "pair"
    assert [name for name, link in dead.links.items() if link.outages]
    assert families.scenario("lost_photos", SEEDS[-1]).workload.lost_photos > 0.0


def test_seeds_of_training_validation_and_evaluation_are_disjoint() -> None:
    ranges = (families.TRAINING, families.VALIDATION, families.EVALUATION)
    for i, one in enumerate(ranges):
        for other in ranges[i + 1 :]:
            assert max(one[0], other[0]) > min(one[-1], other[-1])


def test_traces_of_links_are_disjoint_too() -> None:
    """A trace is random beyond the scenario's seed: no two worlds share one."""

    def traces(seed: int) -> set[int]:
        links = families.scenario("trace_bandwidth", seed).network.links.values()
        return {link.trace.seed for link in links if isinstance(link.trace, CellularTrace)}

    seen: set[int] = set()
    for seed in (*range(40), *families.EVALUATION[:40]):
        found = traces(seed)
        assert len(found) >= 3
        assert not found & seen
        seen |= found


def test_families_share_worlds() -> None:
    light, heavy = (families.scenario(name, 5) for name in ("light", "heavy"))
    assert light.servers == heavy.servers
    assert light.network.links == heavy.network.links
    assert light.workload.demands == heavy.workload.demands


# -- load ----------------------------------------------------------------------------------------


def by_hand() -> Scenario:
    cheap = ServiceSpec(model="cheap", accuracy=0.6, latency=(0.010,))
    costly = ServiceSpec(model="costly", accuracy=0.9, latency=(0.050, 0.07))
    return Scenario(
        name="hand",
        servers={
            "a": ServerSpec(services=(cheap, costly), workers=2, speed=0.5),
            "b": ServerSpec(services=(cheap,), workers=1, speed=2.0),
        },
        workload=WorkloadSpec(
            duration=1.0,
            arrivals=PoissonArrivals(rate=60.0),
            ingress={"a": 1.0},
            demands=(
                Demand(share=3.0, deadline=0.1),
                Demand(share=1.0, deadline=0.1, accuracy=0.8),
            ),
        ),
    )


def test_load_by_hand() -> None:
    # ¾ at 10 ms and ¼ at 50 ms are 20 ms at speed 1; 2 × 0.5 + 1 × 2 workers; 60/s.
    assert random_world.offered_load(by_hand()) == pytest.approx(60 * 0.020 / 3.0)
    assert random_world.at_load(by_hand(), 0.8).workload.arrivals.mean_rate == pytest.approx(120.0)


def test_a_demand_that_nothing_meets_offers_no_work() -> None:
    world = by_hand()
    hopeless = tuple(msgspec.structs.replace(d, accuracy=0.99) for d in world.workload.demands)
    workload = msgspec.structs.replace(world.workload, demands=hopeless)
    assert random_world.offered_load(msgspec.structs.replace(world, workload=workload)) == 0.0


@pytest.mark.parametrize(
    ("family", "load"),
    [("light", 0.5), ("medium", 0.8), ("heavy", 1.05), ("overload", 1.5), ("large_fleet", 0.8)],
)
def test_worlds_have_the_load_of_their_family(family: str, load: float) -> None:
    for seed in SEEDS:
        assert random_world.offered_load(families.scenario(family, seed)) == pytest.approx(load)


# -- what the names say --------------------------------------------------------------------------


def test_hot_spot() -> None:
    shares = families.scenario("hot_spot", 3).ingress_shares()
    assert max(shares) == pytest.approx(0.7, abs=1e-3)


def test_report_periods() -> None:
    assert families.scenario("stale_500ms", 3).report_period == 0.5
    assert families.scenario("stale_2s", 3).report_period == 2.0
    periods = [families.scenario("medium", s).report_period for s in range(60)]
    assert 0.05 <= min(periods) < 0.1
    assert 0.25 < max(periods) <= 0.5


def test_thin_links_are_a_fifth() -> None:
    thin, plain = (families.scenario(name, 3).network.links for name in ("thin_links", "medium"))
    for name, link in plain.items():
        assert thin[name].rate_mbps == pytest.approx(link.rate_mbps / 5, abs=1e-3)  # type: ignore[operator]
        assert 4.0 <= (link.rate_mbps or 0.0) <= 40.0


def test_volatile_links_drift_and_drop() -> None:
    world = families.scenario("volatile", 3)
    for name, link in world.network.links.items():
        rates = [
            event.set.rate_mbps
            for event in world.network.events
            if event.link == f"uplink:{name}" and isinstance(event.set.rate_mbps, float)
        ]
        assert len(rates) >= 10
        assert min(rates) < 0.5 * (link.rate_mbps or 0.0)


def test_failures() -> None:
    down, slow = (families.scenario(f, 3).failures for f in ("server_failure", "slow_server"))
    assert [type(f) for f in (*down, *slow)] == [DownFailure, SlowFailure]
    links = families.scenario("link_failure", 3).network.links.values()
    assert sum(len(link.outages) for link in links) == 1


def test_sizes_of_fleets() -> None:
    plain = {len(families.scenario("medium", s).servers) for s in range(60)}
    assert plain == {3, 4, 5, 6}
    large = {len(families.scenario("large_fleet", s).servers) for s in range(60)}
    assert large == {12, 13, 14, 15, 16}
    assert families.scenario("two_balancers", 3).balancers == 2


def test_every_demand_can_be_met_somewhere() -> None:
    for seed in range(40):
        world = families.scenario("medium", seed)
        best = max(s.accuracy or 0.0 for server in world.servers.values() for s in server.services)
        assert all(demand.accuracy <= best for demand in world.workload.demands)


def test_training_never_sees_what_is_held_out_as_a_kind() -> None:
    for seed in range(200):
        world = families.scenario("train", seed)
        assert len(world.servers) <= 6
        assert world.workload.arrivals.mean_rate is not None, "no recorded arrivals"


def test_training_sees_the_rest() -> None:
    worlds = [families.scenario("train", seed) for seed in range(200)]
    loads = [random_world.offered_load(world) for world in worlds]
    assert min(loads) < 0.5
    assert max(loads) > 1.5
    assert any(world.balancers == 2 for world in worlds)
    assert any(world.network.events for world in worlds)
    assert any(world.failures for world in worlds)
    assert any(link.outages for world in worlds for link in world.network.links.values())
    assert any(world.report_period > 1.0 for world in worlds)
    traced = [isinstance(link.trace, CellularTrace) for w in worlds for link in links_of(w)]
    assert any(traced)
    assert not all(traced)


def links_of(world: Scenario) -> list[LinkSettings]:
    return list(world.network.links.values())


# -- recorded arrivals ---------------------------------------------------------------------------


def test_flash_crowd_is_three_times_the_rate() -> None:
    world = families.scenario("flash_crowd", 3)
    time = generate(world, None).time
    counts = np.histogram(time, bins=20, range=(0.0, 20.0))[0]
    before = counts[:3].mean()
    assert 2.3 < np.sort(counts)[-4:].mean() / before < 3.7


def test_recorded_arrivals_are_burstier_than_poisson() -> None:
    dispersion = []
    for seed in range(8):
        time = generate(families.scenario("trace_arrivals", seed), None).time
        counts = np.histogram(time, bins=40)[0]
        dispersion.append(counts.var() / counts.mean())
    assert np.mean(dispersion) > 3.0, "Poisson has 1"


def test_files_are_made_once_and_whole(cache: Path) -> None:
    first = recorded.recorded_arrivals(1, 50.0, 5.0)
    assert first.is_relative_to(cache)
    text = first.read_text()
    first.write_text("0.5\n")
    assert recorded.recorded_arrivals(1, 50.0, 5.0).read_text() == "0.5\n", "kept as it is"
    first.unlink()
    assert recorded.recorded_arrivals(1, 50.0, 5.0).read_text() == text, "the same again"
    assert [path.suffix for path in first.parent.iterdir()] == [".txt"], "nothing half done is left"


def test_bad_input() -> None:
    with pytest.raises(BadInput, match="unknown family 'medum'; known: light"):
        families.scenario("medum", 1)
    with pytest.raises(BadInput, match="seed >= 0"):
        families.scenario("medium", -1)
