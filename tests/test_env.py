"""The environments: Gymnasium's contract, and that every score is credited to its own decision."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from edgewise.compile import jit
from edgewise.errors import BadInput
from edgewise.fleet import table as columns
from edgewise.fleet.table import CandidateTable, blank_table, flatten
from edgewise.sim import engine
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.env.batched import RESET, BatchedSims
from edgewise.sim.env.environment import BalanceEnv
from edgewise.sim.env.observation import CONTEXT, ROW, SERVER, TOP, WIDTH, write_flat, write_parts
from edgewise.sim.env.vector import BalanceVectorEnv
from edgewise.sim.source import WorldSource
from edgewise.worlds import families
from edgewise.worlds.workload import generate

pytestmark = pytest.mark.study

SHORT: dict[str, Any] = {"family": "heavy", "duration": 2.0}


def drawn(rng: np.random.Generator, mask: Any) -> Any:
    """An admissible row of each of some masks (…, R)."""
    return (rng.random(mask.shape) * mask).argmax(-1)


def played(env: BalanceEnv, world: int, seed: int = 0) -> tuple[list[int], list[Any], Any]:
    """(rows, steps, first observation) of an episode of random admissible rows."""
    rng = np.random.default_rng(seed)
    seen, info = env.reset(options={"world": world}, seed=seed)
    rows, steps = [], []
    while True:
        rows.append(int(drawn(rng, info["action_mask"])))
        steps.append(env.step(np.int64(rows[-1])))
        info = steps[-1][4]
        if steps[-1][3]:
            return rows, steps, seen


@pytest.mark.parametrize("observation", ["flat", "parts"])
@pytest.mark.parametrize("world", [{"family": "train"}, {"scenario": "volatile"}])
def test_gymnasium_has_nothing_to_say(observation: str, world: dict[str, str]) -> None:
    """Warnings are errors here, so this is `check_env` without any."""
    env = gymnasium.make(
        "edgewise.sim.env.environment:edgewise/Balance-v0",
        observation=observation,
        duration=2.0,
        **world,
    )
    check_env(env.unwrapped)
    env.close()


def test_each_score_is_credited_to_its_own_decision() -> None:
    """Against the same rows taken in the engine, with results by request."""
    env = BalanceEnv(**SHORT)
    rows, steps, _ = played(env, 7)
    credited = {
        int(decision): float(reward)
        for *_, info in steps
        for decision, reward in zip(*info["credited"], strict=True)
    }
    scenario = WorldSource(**SHORT).scenario(7)
    sim = simulation(scenario, generate(scenario, None), SimOptions(store=True))
    sim.table.settings.fill_servers = 1
    requests = []
    for row in rows:
        requests.append(engine.advance(sim))
        shed = sim.table.mask.size - 1
        engine.act(sim, shed if row == env.action_space.n - 1 else row, 1.0)
    while engine.advance(sim) >= 0:
        engine.act(sim, sim.table.mask.size - 1, 1.0)
    utility = sim.world.results["utility"][requests]
    assert len(credited) == len(rows)  # each once, or the dictionary would be shorter …
    assert sum(len(info["credited"][0]) for *_, info in steps) == len(rows)
    assert [credited[d] for d in range(len(rows))] == utility.tolist()
    assert 0 < np.count_nonzero(utility) < len(rows)
    # … and the rewards are the scores, of which the engine has the sum.
    assert sum(step[1] for step in steps) == pytest.approx(float(sim.world.clock["utility"][0]))


def test_credit_comes_late() -> None:
    """A score is not known at the decision: an environment that peeked would credit it at once."""
    _, steps, _ = played(BalanceEnv(**SHORT), 3)
    lags = [n - int(d) for n, step in enumerate(steps) for d in step[4]["credited"][0]]
    assert min(lags) >= 0
    assert np.median(lags) >= 1


def test_the_end_of_a_trace_is_a_truncation_with_a_request_still_waiting() -> None:
    env = BalanceEnv(**SHORT)
    _, steps, _ = played(env, 5)
    assert not any(terminated for _, _, terminated, _, _ in steps)
    assert [truncated for *_, truncated, _ in steps] == [False] * (len(steps) - 1) + [True]
    seen, _, _, _, info = steps[-1]
    assert info["action_mask"][:-1].any()
    assert seen[-1, -len(CONTEXT) :][CONTEXT.index("deadline")] > 0.0
    assert info["now"] == pytest.approx(2.0, abs=0.2)
    assert sum(step[4]["waited"] for step in steps) == pytest.approx(
        info["now"] - (steps[0][4]["now"] - steps[0][4]["waited"])
    )
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))


def test_a_row_that_is_not_admissible_sheds() -> None:
    env = BalanceEnv(**SHORT)
    env.reset(options={"world": 2})
    masked = int(np.flatnonzero(~env.action_masks())[0])
    one = env.step(np.int64(masked))
    assert one[4]["refused"] == 1
    env.reset(options={"world": 2})
    other = env.step(env.action_space.n - 1)
    assert other[4]["refused"] == 0
    assert (one[0] == other[0]).all()


def test_a_negative_row_is_the_first() -> None:
    """Also −1 and −2, which mean something else to lanes; of any array of integers."""
    one, other = (BalanceVectorEnv(3, **SHORT) for _ in range(2))
    one.reset(seed=3)
    other.reset(seed=3)
    for _ in range(50):
        seen, *_ = one.step(np.zeros(3, np.int64))
        same, *_, info = other.step(np.array([-1, -2, -(2**31)], np.int32))
        assert (seen == same).all()
    assert (info["decision"] == 50).all()
    with pytest.raises(ValueError, match="expected 3 rows"):
        other.step(np.int64(0))


@pytest.mark.parametrize("observation", ["flat", "parts"])
def test_the_observation_is_the_candidate_table(observation: str) -> None:
    env = BalanceEnv(**SHORT, observation=observation)
    env.reset(options={"world": 4})
    rng = np.random.default_rng(0)
    for _ in range(20):
        seen = env.step(drawn(rng, env.action_masks()))[0]
    table = env._lanes.sims[0].table  # type: ignore[union-attr]
    wide = np.zeros((table.mask.size, len(ROW) + 2 + len(SERVER) + len(CONTEXT) + 2))
    flatten(table, wide)
    mask = env.action_masks()
    assert mask[:-1].any()
    for r in np.flatnonzero(mask[:-1]).tolist():
        if observation == "flat":
            row, server = seen[r, : len(ROW)], seen[r, len(ROW) : len(ROW) + len(SERVER)]
        else:
            row, server = seen["rows"][r], seen["servers"][seen["server"][r]]
        figures = dict(
            zip((*columns.ROW, *("its " + name for name in columns.SERVER)), wide[r], strict=False)
        )
        assert row[ROW.index("latency")] == np.float32(figures["latency"])
        assert row[ROW.index("size")] == pytest.approx(figures["size"] * 1e-6)
        rate = figures["its rate"]
        assert server[SERVER.index("rate")] == pytest.approx(rate * 1e-6)
    if observation == "flat":
        assert seen.shape == (env.action_space.n, WIDTH)
        assert not seen[:-1][~mask[:-1]].any()


@jit
def write(table: CandidateTable, mask: Any, rows: Any, of: Any, servers: Any, context: Any) -> None:
    write_parts(table, mask, rows, of, servers, context)


@jit
def write_wide(rows: Any, of: Any, servers: Any, context: Any, out: Any) -> None:
    write_flat(rows, of, servers, context, out)


@pytest.mark.parametrize("fleet", [(1, 1), (2, 2), (1, 9), (3, 3), (5, 4)])
@pytest.mark.parametrize("room", [0, 3])
def test_what_is_shown_is_the_table_scaled_and_clipped(fleet: tuple[int, int], room: int) -> None:
    servers, count = fleet[0], fleet[0] * fleet[1]
    table = blank_table(servers, count)
    rng = np.random.default_rng(count)
    awkward = np.array([0.0, -1.0, np.nan, np.inf, 1e4, 1e9, 0.25])
    for array in (table.arrays.rows, table.arrays.servers, table.arrays.context):
        array[...] = np.where(
            rng.random(array.shape) < 0.4, rng.choice(awkward, array.shape), rng.random(array.shape)
        )
    shed = 2 * count
    table.rows.server[:shed] = np.arange(shed) // (2 * fleet[1])
    table.mask[:shed] = rng.random(shed) < 0.6
    rows = np.full((len(ROW), shed + 1 + room), 7.0, np.float32)
    of = np.full(shed + 1 + room, 7, np.int32)
    mask = np.full(shed + 1 + room, 7, np.int8)
    seen = np.full((servers + room, len(SERVER)), 7.0, np.float32)
    context = np.zeros(len(CONTEXT), np.float32)
    write(table, mask, rows, of, seen, context)

    def shown(figures: Any, names: tuple[str, ...], all_names: dict[str, str]) -> Any:
        figures = figures[..., [list(all_names).index(name) for name in names]]
        factors = [1e-6 if name in ("size", "rate", "payload") else 1.0 for name in names]
        scaled = figures.astype(np.float32) * np.array(factors, np.float32)
        return np.where(scaled > 0.0, np.minimum(scaled, np.float32(TOP)), np.float32(0.0))

    good = table.mask[:shed] != 0
    expected = shown(table.arrays.rows[:shed], ROW, columns.ROW) * good[:, None]
    np.testing.assert_array_equal(rows[:, :shed].T, expected)
    np.testing.assert_array_equal(of[:shed], np.where(good, table.rows.server[:shed], -1))
    np.testing.assert_array_equal(mask[:shed], table.mask[:shed])
    by_server = shown(table.arrays.servers, SERVER, columns.SERVER)
    np.testing.assert_array_equal(seen[:servers], by_server)
    shared = shown(table.arrays.context, CONTEXT, columns.CONTEXT)
    np.testing.assert_array_equal(context, shared)
    # Nothing else was written to, but that shed is always admissible.
    assert (rows[:, shed:] == 7.0).all()
    assert (of[shed:] == 7).all()
    assert mask[shed:].tolist() == [7] * room + [1]
    assert (seen[servers:] == 7.0).all()

    flat = np.zeros((shed + 1, WIDTH), np.float32)
    flat[shed // 2, len(ROW)] = 1.0  # was admissible before
    rows, of = np.ascontiguousarray(rows[:, : shed + 1]), of[: shed + 1].copy()
    of[shed] = -1
    write_wide(rows, of, seen, context, flat)
    of_row = by_server[np.arange(shed) // (2 * fleet[1])]
    wide = np.hstack([expected, of_row, np.broadcast_to(shared, (shed, len(CONTEXT)))])
    np.testing.assert_array_equal(flat[:shed], wide * good[:, None])
    np.testing.assert_array_equal(flat[shed, -len(CONTEXT) :], shared)
    assert not flat[shed, : -len(CONTEXT)].any()


def test_every_column_is_shown_but_indices_and_the_clock() -> None:
    hidden = {"server", "service", "ingress", "now"}
    for shown, names in ((ROW, columns.ROW), (SERVER, columns.SERVER), (CONTEXT, columns.CONTEXT)):
        assert set(names) - set(shown) == set(names) & hidden


def test_without_copies_the_same_is_returned() -> None:
    """Views: what was returned before shows what is now."""
    copies, views = (BalanceVectorEnv(3, **SHORT, copy=each) for each in (True, False))
    (first, info), (seen, told) = copies.reset(seed=2), views.reset(seed=2)
    mask, before = told["action_mask"], told["action_mask"].copy()
    rng = np.random.default_rng(0)
    episodes = 0
    while episodes < 4:
        rows = drawn(rng, info["action_mask"])
        first, reward, _, ended, info = copies.step(rows)
        seen, given, terminated, over, told = views.step(rows)
        assert not terminated.any()
        for one, other in ((first, seen), (reward, given), (ended, over)):
            np.testing.assert_array_equal(one, other)
        assert info.keys() == told.keys()
        for name in ("action_mask", "decision", "now", "waited", "world"):
            np.testing.assert_array_equal(info[name], told[name])
        for name, credited in info["credited"].items():
            np.testing.assert_array_equal(credited, told["credited"][name])
        episodes += int(ended.sum())
    assert (mask == told["action_mask"]).all()
    assert (mask != before).any()


def test_a_world_without_room_beside_the_others_plays_the_same() -> None:
    supply = WorldSource(**SHORT)
    beside, apart = (BatchedSims.of(supply, 2, wide=True) for _ in range(2))
    apart._memory = np.zeros((2, 64), np.uint8)
    for lanes in (beside, apart):
        for lane in range(2):
            lanes.put(lane, supply.world(lane))
        lanes.step(np.full(2, RESET))
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows = drawn(rng, beside.mask)
        for lanes in (beside, apart):
            lanes.step(rows)
        np.testing.assert_array_equal(beside.observations(False), apart.observations(False))
    slots = [lanes.sims[0].world.slots for lanes in (beside, apart)]  # type: ignore[union-attr]
    memory = [lanes._memory for lanes in (beside, apart)]
    assert list(map(np.shares_memory, slots, memory)) == [True, False]


def test_the_same_seed_gives_the_same_episodes() -> None:
    env = BalanceEnv(**SHORT)
    first, info = env.reset(seed=11)
    again, told = env.reset(seed=11)
    other, _ = env.reset()
    assert (first == again).all()
    assert info["world"] == told["world"]
    assert info["world"] in families.TRAINING
    assert (first != other).any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("observation", ["flat", "parts"])
def test_vectorised_is_the_same_to_the_last_bit(threads: int, observation: str) -> None:
    """On any number of threads, as environments of their own on the same worlds."""
    envs = BalanceVectorEnv(5, **SHORT, observation=observation, threads=threads)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    seen, info = envs.reset(seed=1)
    alone = [BalanceEnv(**SHORT, observation=observation) for _ in range(5)]
    for i, env in enumerate(alone):
        env.reset(options={"world": int(info["world"][i])})
    rng = np.random.default_rng(0)
    ended = np.zeros(5, bool)
    episodes = 0

    def same(one: Any, many: Any, i: int) -> bool:
        if observation == "flat":
            return bool((one == many[i]).all())
        return all((one[key] == many[key][i]).all() for key in one)

    while episodes < 8:
        rows = drawn(rng, info["action_mask"])
        seen, rewards, terminated, ended, info = envs.step(rows)
        assert not terminated.any()
        for i, env in enumerate(alone):
            one, reward, _, over, told = env.step(rows[i])
            assert (reward, over) == (rewards[i], ended[i])
            mine = info["credited"]["env"] == i
            assert (info["credited"]["decision"][mine] == told["credited"][0]).all()
            assert (info["credited"]["reward"][mine] == told["credited"][1]).all()
            if over:
                last = info["final_obs"][i]
                final = info["final_info"][i]
                assert (
                    same(one, {k: v[None] for k, v in last.items()}, 0)
                    if isinstance(last, dict)
                    else (one == last).all()
                )
                assert (final["action_mask"] == told["action_mask"]).all()
                assert final["decisions"] == told["decision"]
                one, _ = env.reset(options={"world": int(info["world"][i])})
                episodes += 1
            assert same(one, seen, i)
    envs.close()


def test_a_world_can_be_played_again() -> None:
    envs = BalanceVectorEnv(2, **SHORT, plays=2)
    first, info = envs.reset(seed=5)
    worlds = [info["world"].copy()]
    shed = np.full(2, envs.single_action_space.n - 1)
    began = {0: [first[0]], 1: [first[1]]}
    while any(len(each) < 3 for each in began.values()):
        seen, _, _, ended, info = envs.step(shed)
        for i in np.flatnonzero(ended).tolist():
            began[i].append(seen[i])
            worlds.append(info["world"].copy())
    for each in began.values():
        assert (each[0] == each[1]).all()
        assert (each[1] != each[2]).any()
    envs.close()


def test_make_vec_finds_it() -> None:
    envs = gymnasium.make_vec("edgewise/Balance-v0", num_envs=2, **SHORT)
    assert isinstance(envs, BalanceVectorEnv)
    assert envs.reset(seed=0)[0] in envs.observation_space
    envs.close()


def test_lanes_refuse_what_does_not_fit_and_leave_ended_ones_alone() -> None:
    supply = WorldSource(**SHORT)
    with pytest.raises(ValueError, match="larger"):
        BatchedSims(1, 6, 3, supply.slots, wide=True).put(0, supply.world(0))
    lanes = BatchedSims.of(supply, 1, wide=True)
    world = supply.world(0)
    with pytest.raises(ValueError, match="not compiled for"):
        lanes.put(0, world._replace(script=world.reports.heads))
    lanes.step(np.array([0]))  # nothing has been put there
    lanes.put(0, supply.world(0))
    lanes.step(np.array([RESET]))
    shed = np.array([supply.rows - 1])
    while not lanes.lanes["ended"][0]:
        lanes.step(shed)
    before = lanes.lanes.copy()
    lanes.step(shed)
    assert (lanes.lanes == before).all()
    assert len(lanes.credits()["reward"]) == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "a scenario or a family"),
        ({"scenario": "volatile", "family": "light"}, "not both"),
        ({"family": "hevy"}, "hevy"),
        ({"family": "light", "observation": "wide"}, "flat, parts"),
    ],
)
def test_bad_input_is_told(given: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        BalanceEnv(**given)  # type: ignore[arg-type]


def example() -> Any:
    path = Path(__file__).parent.parent / "examples" / "maskable_ppo.py"
    spec = importlib.util.spec_from_file_location("maskable_ppo", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.system
def test_stable_baselines_trains_on_it() -> None:
    """The example, for a few hundred steps: its weights move, and its policy can be scored."""
    maskable = example()
    model, speed = maskable.train(None, "medium", 512, envs=2)
    assert model.num_timesteps >= 512
    assert speed > 0.0
    env = maskable.make(None, "medium")
    assert 0.0 <= maskable.score(env, model, range(1_000_000, 1_000_001)) <= 1.0
    env.close()
