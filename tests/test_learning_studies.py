"""The studies of the learned policy: they resume, compare in pairs, and change what they say."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewise.benchmark.episodes import ReplayableWorld
from edgewise.errors import BadInput
from edgewise.learn.es import EsSettings
from edgewise.learn.search import Budget
from edgewise.learn.train import beginning
from edgewise.policies import POLICIES, weight_files
from edgewise.scenario import Scenario, Spell
from edgewise.sim.source import WorldSource
from edgewise.worlds import families
from edgewise.worlds.random_world import base, offered_load
from studies import comparison, forms, gap, information, shift, training
from studies.experiment import Arm, Experiment, ResultStore, WorldCondition, ratio
from studies.privileged_kernels import always_ready, original_only

pytestmark = pytest.mark.study

EDGEWISE = POLICIES["edgewise"]
SEEDS = (2_000_000, 2_000_001)


def short(family: str = "medium") -> WorldCondition:
    return WorldCondition(
        name=family, world=lambda seed: families.scenario(family, seed).with_overrides(duration=1.0)
    )


def arm(name: str, kernel: object = None) -> Arm:
    policy = EDGEWISE if kernel is None else msgspec.structs.replace(EDGEWISE, kernel=kernel)
    return Arm(name=name, policy=policy)


def test_what_was_played_is_not_played_again(tmp_path: Path) -> None:
    path = tmp_path / "figures.jsonl"
    arms = [arm("one"), Arm(name="two", policy=POLICIES["priced_greedy"])]
    first, seeds = Experiment(ResultStore(path), SEEDS).utilities("x", [short()], arms)
    assert seeds == SEEDS
    lines = path.read_bytes()
    again, _ = Experiment(ResultStore(path), SEEDS, until=0.0).utilities("x", [short()], arms)
    assert (first == again).all()
    assert path.read_bytes() == lines
    path.write_bytes(lines[:-5])  # killed while it wrote
    torn, _ = Experiment(ResultStore(path), SEEDS).utilities("x", [short()], arms)
    assert (first == torn).all()
    path.write_bytes(b"{}\n")
    with pytest.raises(BadInput, match="not a figure"):
        ResultStore(path)


def test_only_seeds_that_all_played_are_counted() -> None:
    played = Experiment(ResultStore(None), SEEDS)
    table = {(0, 0, SEEDS[0]): 1.0, (0, 1, SEEDS[0]): 2.0, (0, 0, SEEDS[1]): 3.0}
    values, seeds = played.complete(1, 2, lambda p, a, s: table.get((p, a, s)))
    assert seeds == SEEDS[:1]
    assert values.tolist() == [[[1.0], [2.0]]]
    with pytest.raises(BadInput, match="larger budget"):
        played.complete(2, 2, lambda p, a, s: table.get((p, a, s)))


def test_a_ratio_has_the_interval_of_the_bootstrap() -> None:
    whole = np.linspace(0.8, 1.2, 40)
    middle, low, high = ratio(0.4 * whole, whole)
    assert (middle, low, high) == pytest.approx((0.4, 0.4, 0.4))
    assert np.isnan(ratio(whole, -whole)).all()
    assert np.isnan(ratio(whole, np.concatenate([whole[:20], -whole[:19], [0.0]]))[1])


def test_masks_leave_the_forms_they_should() -> None:
    world = families.scenario("thin_links", SEEDS[0]).with_overrides(duration=3.0)
    replayable = ReplayableWorld(world)
    assert replayable.measure(arm("", original_only).policy).ready == 0.0
    free = replayable.measure(EDGEWISE).ready
    always = replayable.measure(arm("", always_ready).policy).ready
    assert 0.0 < free <= always
    assert always > 0.95  # where the smaller form's accuracy is enough


def test_knowing_slow_spells_helps() -> None:
    plain, informed = (information.arms("edgewise", EDGEWISE)[n] for n in (0, 3))

    def play(world: Scenario, arm: Arm) -> float:
        return ReplayableWorld(world).utility(arm.policy_in(world))

    gains = []
    for seed in range(2_000_000, 2_000_008):
        world = base("slow", seed, report_period=1.0)
        noise = msgspec.structs.replace(
            world.service_noise, spell=Spell(rate=0.15, duration=2.0, factor=(4.0, 6.0))
        )
        world = msgspec.structs.replace(world, service_noise=noise).with_overrides(duration=8.0)
        gains.append(play(world, informed) - play(world, plain))
    assert np.mean(gains) > 0.01, gains


def test_informed_worlds_are_told() -> None:
    change = information.fresh_reports_and_bandwidth
    world = WorldSource(family="volatile", change=change).scenario(3)
    assert (world.report_period, world.network_state) == (0.01, "emulator")
    assert world == change(families.scenario("volatile", 3))


def test_shifted_worlds_are_what_they_say() -> None:
    for name, make in shift.SHIFTS.items():
        world = make(SEEDS[0])
        assert offered_load(world) > 0.7, name
    assert len(shift.SHIFTS["32 servers"](SEEDS[0]).servers) == 32
    other = shift.SHIFTS["other models"](SEEDS[0])
    found = {s.accuracy for server in other.servers.values() for s in server.services}
    assert found == {accuracy for accuracy, _ in shift.OTHER}


def test_studies_make_their_sections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (information, forms, comparison):
        monkeypatch.setattr(module, "family_condition", short)
    monkeypatch.setattr(information, "FAMILIES", ("volatile",))
    monkeypatch.setattr(families, "STANDARD", ("thin_links",))
    experiment = Experiment(ResultStore(tmp_path / "figures.jsonl"), SEEDS)
    priced = weight_files.learned_spec(beginning()[0], "the heuristic")
    found = information.study(experiment, priced, EDGEWISE, priced)
    assert set(found.figures) >= {"gains", "recovered", "recovered_of_retuned"}
    assert forms.study(experiment, EDGEWISE).lines[4].startswith("| thin_links |")
    rules = {"control": priced, "edgewise": EDGEWISE, gap.MARGIN: POLICIES[gap.MARGIN]}
    closed = gap.study(experiment, rules, ("light",), duration=0.5, trials=20, steps=20)
    assert closed.lines[-1].startswith("| light | ")
    assert {"closed", "closed_with_information"} <= set(closed.figures)
    assert any(key.startswith("gap 0.5|edgewise, all|") for key in experiment.store.values)
    assert any(line.startswith("| **mean** |") for line in closed.lines)
    monkeypatch.setattr(comparison, "ABLATION_FAMILIES", ("light",))
    monkeypatch.setattr(comparison, "PARTS", ("price", "memory of links", "guard"))
    table = comparison.table(experiment, priced, EDGEWISE).lines
    assert any(line.startswith("| thin_links |") for line in table)
    assert table[-1].startswith("The guard left ")
    lost = comparison.ablation(experiment, EDGEWISE).figures
    assert set(lost) == {"seeds", "price", "memory of links", "guard"}


def test_runs_are_trained_once(tmp_path: Path) -> None:
    runs = training.TrainingRuns(folder=tmp_path, threads=1, surveyed=2, judged=2, validation=1)
    source, settings = WorldSource(family="light"), EsSettings(seed=2, worlds=1, pairs=1)
    start, once = beginning()[0], Budget(steps=1)
    first = runs.run("one", source, settings, start, once)
    assert first is not None
    late = training.TrainingRuns(folder=tmp_path, until=time.monotonic() - 1.0)
    again = late.run("one", source, settings, start, once)
    assert again is not None
    assert again.params == first.params
    assert late.run("two", source, settings, start, once) is None
