"""The learned policy: exactly the heuristic when untrained, blind to order, guarded, and better."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save

from edgewise.benchmark.episodes import ReplayableWorld
from edgewise.domain import Observation
from edgewise.errors import BadInput
from edgewise.fleet.rng import new_rng
from edgewise.fleet.table import (
    CandidateTable,
    best_row,
    blank_table,
    table_of,
    table_of_observation,
)
from edgewise.policies import POLICIES, Policy, features, find, learned, make, weight_files
from edgewise.policies.explain import explain, params_of
from edgewise.sim.build import SimOptions
from edgewise.worlds import families
from fleet_case import NOW, queue, report, request, tracker

pytestmark = pytest.mark.study

BARE = SimOptions(store=False)
PRICED = POLICIES["priced_greedy"]
SHIPPED = POLICIES["edgewise"]


def params(seed: int = 0, network: bool = True) -> np.ndarray:
    """Something learned, at random; no guard."""
    made = learned.untrained(PRICED.params)
    rng = np.random.default_rng(seed)
    for part in ("server_heads", "row_heads", "shed_head", "out"):
        made[learned.LAYOUT[part]] = rng.normal(0.0, 0.3, made[learned.LAYOUT[part]].size)
    learned.named(made).options.network = network
    return made


def table(seed: int = 0, servers: int = 4, each: int = 3) -> CandidateTable:
    """A plausible table with random numbers in it; server 0 is the ingress."""
    seen = observation()
    rng = np.random.default_rng(seed)
    row, server = seen.rows[0], seen.servers[1]
    made = blank_table(servers, servers * each)
    count = made.mask.size
    rows, known = made.rows, made.servers
    made.arrays.rows[:] = np.tile(row, (count, 1)) * rng.uniform(0.5, 2.0, (count, row.size))
    of = np.arange(count - 1) // (2 * each)
    rows.server[:-1], rows.service[:-1] = of, np.arange(count - 1) // 2
    rows.form[:] = np.arange(count) % 2
    rows.local[:-1] = of == 0
    rows.accuracy[:] = rng.uniform(0.5, 0.9, count)
    rows.wait[:] = rng.exponential(0.1, count)
    rows.latency[:] = rows.until_input + rows.wait + rows.service_time + rows.return_time
    rows.server[-1] = rows.service[-1] = -1.0
    made.mask[:] = rng.random(count) < 0.8
    made.mask[-1] = 1
    factors = rng.uniform(0.5, 2.0, (servers, server.size))
    made.arrays.servers[:] = np.tile(server, (servers, 1)) * factors
    known.up, known.workers = 1.0, rng.choice([1.0, 2.0, 4.0], servers)
    known.backlog = rng.exponential(0.2, servers)
    known.rate, known.rate_age = rng.uniform(5e5, 5e6, servers), 0.3
    shares = rng.uniform(0.0, 1.0, (servers, 3)).T
    known.offered_1s, known.offered_5s, known.demand_1s = shares
    made.arrays.context[:] = seen.context
    made.context.ingress = 0.0
    return made


def observation() -> Observation:
    made = tracker()
    made.on_report(report("a", queue=queue((0.1, 0.05))), NOW)
    made.on_report(report("b"), NOW)
    return made.observe(request(), NOW, NOW)


def scores(
    numbers: np.ndarray, seen: CandidateTable, state: np.ndarray | None = None
) -> np.ndarray:
    state = SHIPPED.new_memory(len(seen.servers)) if state is None else state
    SHIPPED.kernel(seen, numbers, state, new_rng(1))
    return seen.scores.copy()


# -- what it is ------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [False, True])
def test_untrained_is_the_heuristic_bit_for_bit(network: bool) -> None:
    untrained = learned.untrained(PRICED.params)
    learned.named(untrained).options.network = network
    for seed in range(20):
        seen = table(seed)
        mine = scores(untrained, seen)
        PRICED.kernel(
            seen, np.array(PRICED.params), PRICED.new_memory(len(seen.servers)), new_rng(1)
        )
        assert np.array_equal(mine, seen.scores)


def test_untrained_plays_a_whole_world_as_the_heuristic_does() -> None:
    stage = ReplayableWorld(families.scenario("volatile", 11).with_overrides(duration=5.0), BARE)
    spec = weight_files.learned_spec(learned.untrained(PRICED.params), "untrained")
    assert stage.utility(spec) == stage.utility(PRICED)
    assert stage.utility(weight_files.learned_spec(params(), "random")) != stage.utility(PRICED)


def test_the_order_of_servers_changes_nothing() -> None:
    numbers = params()
    for seed in range(10):
        seen = table(seed)
        mine = scores(numbers, seen)
        order = np.random.default_rng(seed).permutation(len(seen.servers))
        where = np.argsort(order)  # old index → new index
        rows = [r for s in order for r in range(len(seen.mask) - 1) if seen.rows.server[r] == s]
        rows.append(len(seen.mask) - 1)
        arrays = seen.arrays
        moved = table_of(
            arrays.rows[rows], arrays.mask[rows], arrays.servers[order], arrays.context.copy()
        )
        moved.rows.server[:-1] = where[moved.rows.server[:-1].astype(int)]
        moved.context.ingress = where[int(seen.context.ingress)]
        # Sums over servers are taken in another order: equal to the last bits only.
        assert np.allclose(scores(numbers, moved), mine[rows], rtol=1e-12, atol=1e-12)


def test_rows_that_are_not_admissible_change_nothing() -> None:
    numbers = params()
    seen = table(3)
    mine = scores(numbers, seen)
    rows, servers = seen.arrays.rows, seen.arrays.servers
    rows[seen.mask == 0] = 1e9
    down = np.vstack([servers, np.zeros(servers.shape[1])])  # a server that is not up
    wide = np.vstack([rows[:-1], np.full((2, rows.shape[1]), -7.0), rows[-1:]])
    mask = np.concatenate([seen.mask[:-1], [0, 0], seen.mask[-1:]]).astype(np.uint8)
    padded = table_of(wide, mask, down, seen.arrays.context)
    found = scores(numbers, padded)
    assert np.array_equal(np.delete(found, [len(mask) - 3, len(mask) - 2]), mine)


def test_live_and_simulated_scores_are_the_same() -> None:
    """`Policy` and the pointer that the engine calls, on one table."""
    from edgewise.sim import engine

    seen = observation()
    policy = Policy("edgewise", SHIPPED)
    decided = policy.decide(seen)
    copied = table_of_observation(seen)
    state = SHIPPED.new_memory(len(seen.servers))
    kernel = engine.compiled(SHIPPED.kernel)
    assert _through(kernel, copied, np.array(SHIPPED.params), state, new_rng(0)) == 1.0
    assert np.array_equal(copied.scores, policy._table.scores)
    assert decided.rows[0] == best_row(copied)


def _through(kernel: object, *arguments: object) -> float:
    """Call a compiled pointer as the engine does."""
    from edgewise.compile import by_reference, jit_no_refcount

    @jit_no_refcount
    def call(kernel, seen, numbers, state, draws):  # type: ignore[no-untyped-def]
        return kernel(by_reference(seen), numbers, state, draws)

    return call(kernel, *arguments)


def test_a_drawn_row_comes_with_its_probability() -> None:
    numbers = params()
    learned.named(numbers).options.temperature = 0.05
    seen = table(5)
    state = SHIPPED.new_memory(len(seen.servers))
    draws = new_rng(3)
    count, said, times = 4000, np.zeros(seen.mask.size), np.zeros(seen.mask.size)
    for _ in range(count):
        probability = SHIPPED.kernel(seen, numbers, state, draws)
        row = best_row(seen)
        said[row] = probability
        times[row] += 1
    assert times.max() < count
    assert np.abs(times / count - said).max() < 4 * math.sqrt(0.25 / count)
    assert said.sum() == pytest.approx(1.0, abs=0.02)


def test_it_remembers_how_a_link_moves() -> None:
    memory = SHIPPED.named_memory(SHIPPED.new_memory(4))
    seen = table(0)
    for second, rate in enumerate((1e6, 1e6, 4e6, 1e6, 4e6)):
        seen.context.now = 100.0 + second
        seen.servers.rate, seen.servers.rate_age = rate, 0.2
        features.remember(seen, memory)
        seen.context.now += 0.5  # the same measurement, faded: no step
        seen.servers.rate, seen.servers.rate_age = 1.1 * rate, 0.7
        features.remember(seen, memory)
    known = memory.servers[0]
    log, slow, moves, at = (
        known.log_rate, known.slow_rate, known.rate_moves, known.measured_at
    )  # fmt: skip
    assert log == pytest.approx(math.log(4e6))
    assert math.log(1e6) < slow < math.log(4e6)
    assert moves == pytest.approx(math.log(4.0) * (1.0 - 0.8**3))
    assert at == pytest.approx(103.8)
    seen.servers.rate_age = 60.0  # never measured: the prior says nothing
    seen.servers.rate = 9e9
    features.remember(seen, memory)
    assert known.log_rate == log


# -- the guard -------------------------------------------------------------------------------------


def guarded() -> np.ndarray:
    wide = np.full(learned.FEATURES, 5.0)
    return weight_files.release(params(), -wide, wide, 5.0)


def counters(state: np.ndarray) -> dict[str, float]:
    return dict(zip(SHIPPED.counters, state.tolist(), strict=False))


def heuristic(seen: CandidateTable) -> np.ndarray:
    PRICED.kernel(seen, np.array(PRICED.params), PRICED.new_memory(len(seen.servers)), new_rng(1))
    return seen.scores.copy()


def test_the_guard_lets_the_policy_decide_where_it_was_trained() -> None:
    seen = table(0)
    state = SHIPPED.new_memory(len(seen.servers))
    mine = scores(guarded(), seen, state)
    assert state[:4].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert not np.array_equal(mine, heuristic(seen))


@pytest.mark.parametrize("feature", range(learned.FEATURES))
def test_any_feature_outside_its_range_trips_the_guard(feature: int) -> None:
    numbers = guarded()
    numbers[learned.LAYOUT["low"]][feature] = 4.0  # none is ever that large
    seen = table(0)
    state = SHIPPED.new_memory(len(seen.servers))
    mine = scores(numbers, seen, state)
    assert counters(state)["outside"] == 1.0
    assert np.array_equal(mine, heuristic(seen))


def test_a_belief_too_old_trips_the_guard() -> None:
    seen = table(0)
    seen.servers.report_age = 6.0
    state = SHIPPED.new_memory(len(seen.servers))
    mine = scores(guarded(), seen, state)
    assert counters(state)["stale"] == 1.0
    assert np.array_equal(mine, heuristic(seen))
    seen.servers[0].report_age = 1.0  # one that was heard is enough
    scores(guarded(), seen, state)
    assert counters(state)["stale"] == 1.0


@pytest.mark.parametrize("part", ["server_heads", "row_heads", "shed_head", "out"])
def test_a_score_that_is_no_number_trips_the_guard(part: str) -> None:
    numbers = guarded()
    numbers[learned.LAYOUT[part]] = math.nan
    seen = table(0)
    state = SHIPPED.new_memory(len(seen.servers))
    mine = scores(numbers, seen, state)
    assert counters(state)["not_finite"] == 1.0
    assert np.array_equal(mine, heuristic(seen))


def test_whatever_the_weights_scores_are_numbers() -> None:
    numbers = params()
    for part in ("server_heads", "row_heads", "shed_head", "out"):
        numbers[learned.LAYOUT[part]] *= 1e6
    seen = table(1)
    mine = scores(numbers, seen)
    assert np.isfinite(mine[seen.mask == 1]).all()


# -- weights ---------------------------------------------------------------------------------------


def card(**more: object) -> weight_files.WeightsCard:
    fields: dict[str, object] = {
        "name": "test", "command": "-", "seeds": (1,), "families": ("train",), "commit": "",
        "decisions": 0, "heuristic": {},
    }  # fmt: skip
    return weight_files.WeightsCard(**{**fields, **more})  # type: ignore[arg-type]


def written(folder: Path, numbers: np.ndarray) -> Path:
    path = folder / "mine.safetensors"
    weight_files.save(path, numbers, card(), Path.write_bytes)
    return path


def test_weights_come_back_as_they_were_and_are_a_policy(tmp_path: Path) -> None:
    path = written(tmp_path, guarded())
    numbers, read = weight_files.load(path)
    assert np.array_equal(numbers, guarded())
    assert read.name == "test"
    policy = make(str(path))
    assert policy.name == "mine"
    decided = policy.decide(observation())
    assert decided.policy == "mine"
    assert policy.counters["decisions"] == 1


def edited(path: Path, **changes: object) -> None:
    """Change the card and nothing else."""
    beside = path.with_suffix(".json")
    read = msgspec.json.decode(beside.read_bytes())
    beside.write_bytes(msgspec.json.encode({**read, **changes}))


def poison(path: Path, arrays: dict[str, np.ndarray], names: dict[str, str] | None = None) -> None:
    """Other numbers, with a card whose checksum is right."""
    import hashlib

    data = save(arrays, names)
    path.write_bytes(data)
    edited(path, sha256=hashlib.sha256(data).hexdigest())


def test_what_a_file_does_not_have_is_neutral(tmp_path: Path) -> None:
    """So a feature, a head or a parameter that is new leaves old files valid."""
    path = written(tmp_path, guarded())
    poison(path, {"server_heads.price": np.array([0.5, -0.25])}, {"server_heads.price": "rate one"})
    numbers, _ = weight_files.load(path)
    expected = learned.untrained(PRICED.params)
    head = learned.named(expected).server_heads[0]
    head[list(features.SERVER_FEATURES).index("rate")], head[0] = 0.5, -0.25
    assert np.array_equal(numbers, expected)
    poison(path, {})
    numbers, _ = weight_files.load(path)
    for seed in range(3):
        assert np.array_equal(scores(numbers, table(seed)), heuristic(table(seed)))


def test_the_network_is_stored_only_when_it_is_on(tmp_path: Path) -> None:
    for network in (False, True):
        numbers = params(network=network)
        path = written(tmp_path, numbers)
        assert (b'"hidden"' in path.read_bytes()) == network
        read, _ = weight_files.load(path)
        assert np.array_equal(scores(read, table(1)), scores(numbers, table(1)))


def test_poisoned_weights_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = written(tmp_path, guarded())
    good = path.read_bytes()

    def refused(reason: str) -> None:
        with pytest.raises(BadInput, match=reason):
            find(str(path))

    path.write_bytes(good[:-8] + b"\0" * 8)
    refused("sha256")
    names = {"shed_head": "one fleet"}
    poison(path, {"shed_head": np.zeros(3)}, names)
    refused(r"shed_head: expected float64 \(2,\), got float64 \(3,\)")
    poison(path, {"shed_head": np.zeros(2, np.float32)}, names)
    refused("shed_head: expected float64")
    poison(path, {"shed_head": np.zeros(2)}, {"shed_head": "one luck"})
    refused("shed_head has luck, which this version does not know")
    poison(path, {"shed_head": np.zeros(2)}, {"shed_head": "one one"})
    refused("shed_head names a number twice")
    poison(path, {"params": np.zeros(3)})
    refused("unknown tensor params; known: options, priced")
    poison(path, {"shed_head": np.array([0.0, math.nan])}, names)
    refused("shed_head: not all are finite numbers")
    import hashlib

    path.write_bytes(b"\x80\x04cos\nsystem\n.")  # a pickle
    edited(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    refused("not safetensors")
    header = b'{"shed_head":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    edited(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    refused("expected float64, got BF16")
    path.write_bytes(good)
    edited(path, sha256=hashlib.sha256(good).hexdigest(), version=1)
    refused("version 1, expected 3")
    edited(path, version=2, surprise=1)
    refused("not a card")
    path.with_suffix(".json").unlink()
    refused("no such file")


# -- what is shipped -------------------------------------------------------------------------------


def test_the_shipped_policy_beats_the_heuristic() -> None:
    """Ten worlds that it was neither trained nor chosen on; the table is docs/learning.md."""
    differences = []
    for at, family in enumerate(("medium", "heavy", "bursty", "hot_spot", "combined") * 2):
        world = families.scenario(family, families.EVALUATION[500 + at])
        stage = ReplayableWorld(world.with_overrides(duration=8.0), BARE)
        differences.append(stage.utility(SHIPPED) - stage.utility(PRICED))
    assert np.mean(differences) > 0.0


def test_the_shipped_policy_plays_the_same_twice() -> None:
    world = families.scenario("combined", families.EVALUATION[600]).with_overrides(duration=4.0)
    assert ReplayableWorld(world, BARE).utility(SHIPPED) == ReplayableWorld(world, BARE).utility(
        SHIPPED
    )


# -- why -------------------------------------------------------------------------------------------


def test_an_explanation_adds_up() -> None:
    numbers = params()
    seen = table(2)
    mine = scores(numbers, seen)
    found = explain([seen], numbers)
    assert found.guard == ""
    assert found.shed == mine[-1]
    assert len(found.rows) == seen.mask[:-1].sum()
    for why in found.rows:
        assert why.score == mine[why.row]
        assert why.utility - why.price == pytest.approx(why.score, abs=1e-12)
        assert why.score - why.correction == pytest.approx(why.heuristic, abs=1e-12)
    assert [why.score for why in found.rows] == sorted((w.score for w in found.rows), reverse=True)


def test_the_heuristic_explains_itself_without_correction() -> None:
    numbers = params_of(PRICED)
    assert numbers is not None
    assert all(why.correction == 0.0 for why in explain([table(4)], numbers).rows)
    assert params_of(POLICIES["jsq"]) is None


def test_an_explanation_says_that_the_guard_decided() -> None:
    seen = table(0)
    seen.servers.report_age = 6.0
    found = explain([seen], guarded())
    assert found.guard == "stale"
    assert all(why.score == why.heuristic for why in found.rows)
