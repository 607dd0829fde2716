"""The environments: Gymnasium's contract, and that each score is credited to its own decision."""

from __future__ import annotations

import copy
import gc
import importlib.util
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector as vector_wrappers

from edgewise.compile import PLAIN_PYTHON, jit
from edgewise.domain import PayloadForm, Status
from edgewise.errors import BadInput
from edgewise.fleet import table as columns
from edgewise.fleet.table import CandidateTable, blank_table, flatten
from edgewise.sim import engine
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.env import render
from edgewise.sim.env.batched import CREDIT, RESET, BatchedSims
from edgewise.sim.env.environment import BalanceEnv
from edgewise.sim.env.observation import CONTEXT, ROW, SERVER, TOP, WIDTH, write_parts, write_table
from edgewise.sim.env.vector import KEYS, BalanceVectorEnv
from edgewise.sim.layout import PENDING, SERVED, STATUSES
from edgewise.sim.source import WorldSource
from edgewise.tasks.services import services_of
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


@pytest.mark.parametrize("observation", ["table", "flat", "parts"])
@pytest.mark.parametrize("world", [{"family": "train"}, {"scenario": "volatile"}])
def test_gymnasium_has_nothing_to_say(observation: str, world: dict[str, str]) -> None:
    """Warnings are errors here, so this is `check_env` without any."""
    env = gymnasium.make(
        "edgewise.gym:edgewise/Balance-v0",
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
    credited = {credit.decision: credit.reward for *_, info in steps for credit in info["credited"]}
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
    assert sum(len(info["credited"]) for *_, info in steps) == len(rows)
    assert [credited[d] for d in range(len(rows))] == utility.tolist()
    assert 0 < np.count_nonzero(utility) < len(rows)
    # … and the rewards are the scores, of which the engine has the sum.
    assert sum(step[1] for step in steps) == pytest.approx(float(sim.world.clock["utility"][0]))


def test_credit_comes_late() -> None:
    """A score is not known at the decision: an environment that peeked would credit it at once."""
    _, steps, _ = played(BalanceEnv(**SHORT), 3)
    lags = [n - credit.decision for n, step in enumerate(steps) for credit in step[4]["credited"]]
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


@pytest.mark.parametrize("observation", ["table", "parts"])
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
        if observation == "table":
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
    if observation == "table":
        assert seen.shape == (env.action_space.n, WIDTH)
        assert not seen[:-1][~mask[:-1]].any()


@jit
def write(table: CandidateTable, mask: Any, rows: Any, of: Any, servers: Any, context: Any) -> None:
    write_parts(table, mask, rows, of, servers, context)


@jit
def write_wide(rows: Any, of: Any, servers: Any, context: Any, out: Any) -> None:
    write_table(rows, of, servers, context, out)


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
        for name in KEYS:
            np.testing.assert_array_equal(info[name], told[name])
        for name, credited in info["credited"].items():
            np.testing.assert_array_equal(credited, told["credited"][name])
        assert not np.shares_memory(terminated, over)
        episodes += int(ended.sum())
    assert (mask == told["action_mask"]).all()
    assert (mask != before).any()


def test_a_world_without_room_beside_the_others_plays_the_same() -> None:
    supply = WorldSource(**SHORT)
    beside, apart = (BatchedSims.of(supply, 2) for _ in range(2))
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
@pytest.mark.parametrize("observation", ["table", "parts"])
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

    def same_credits(info: dict[str, Any], i: int, credited: Any) -> bool:
        columns = info["credited"]
        known = columns["status"][i] != PENDING
        mine = zip(*(columns[name][i][known].tolist() for name in CREDIT.names or ()), strict=True)
        return repr([(*e[:-1], Status(STATUSES[e[-1]])) for e in mine]) == repr(
            [tuple(credit) for credit in credited]
        )

    def same(one: Any, many: Any, i: int) -> bool:
        if observation == "table":
            return bool((one == many[i]).all())
        return all((one[key] == many[key][i]).all() for key in one)

    while episodes < 8:
        rows = drawn(rng, info["action_mask"])
        seen, rewards, terminated, ended, info = envs.step(rows)
        assert not terminated.any()
        for i, env in enumerate(alone):
            one, reward, _, over, told = env.step(rows[i])
            assert (reward, over) == (rewards[i], ended[i])
            assert same_credits(info["final_info"] if over else info, i, told["credited"])
            if over:
                last = info["final_obs"][i]
                assert (
                    same(one, {k: v[None] for k, v in last.items()}, 0)
                    if isinstance(last, dict)
                    else (one == last).all()
                )
                for name in KEYS:
                    assert (info["final_info"][name][i] == told[name]).all()
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


@pytest.mark.parametrize("name", ["Balance-v0", "BalanceFlat-v0"])
def test_gymnasium_finds_them(name: str) -> None:
    """In a process that has imported nothing of edgewise."""
    code = f"""
        import gymnasium
        name = "edgewise.gym:edgewise/{name}"
        for env in (
            gymnasium.make(name, family="light", duration=2.0),
            gymnasium.make_vec(name, num_envs=2, family="light", duration=2.0),
        ):
            assert env.reset(seed=0)[0] in env.observation_space
            print(env.observation_space.shape, type(env.unwrapped).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert not done.returncode, done.stderr
    shape = (2 * 24 + 1, WIDTH) if name == "Balance-v0" else ((2 * 24 + 1) * WIDTH,)
    assert done.stdout.splitlines() == [f"{shape} BalanceEnv", f"{(2, *shape)} BalanceVectorEnv"]


def test_the_flat_observation_is_the_table_in_one_dimension() -> None:
    table, flat = BalanceEnv(**SHORT), BalanceEnv(**SHORT, observation="flat")
    _, steps, first = played(table, 3)
    _, flat_steps, flat_first = played(flat, 3)
    assert (first.ravel() == flat_first).all()
    for one, other in zip(steps, flat_steps, strict=True):
        assert (one[0].ravel() == other[0]).all()
        assert (one[4]["action_mask"] == other[4]["action_mask"]).all()
    assert (flat.action_masks() == other[4]["action_mask"]).all()


def test_a_credit_tells_how_its_request_ended() -> None:
    """The score computed anew from what it tells is the reward."""
    env = BalanceEnv(**SHORT)
    _, steps, _ = played(env, 7)
    scenario = WorldSource(**SHORT).scenario(7)
    trace = generate(scenario, None)
    credits = {credit.decision: credit for step in steps for credit in step[4]["credited"]}
    assert {Status.SERVED, Status.SHED} <= {credit.status for credit in credits.values()}
    services = services_of(scenario)
    accuracies = {a for s in services for a in (s.accuracy, s.accuracy_of(PayloadForm.MODEL_READY))}
    for credit in credits.values():
        assert credit.status in Status
        if credit.status is Status.SERVED:
            assert credit.latency > 0.0
            assert credit.accuracy in accuracies
            assert 0 <= credit.server < len(scenario.servers)
            assert credit.reward <= credit.accuracy
        else:
            assert credit[1:-1] == (0.0, np.inf, 0.0, -1)
    assert len(credits) <= len(trace)


class LatencyReward(gymnasium.Wrapper):  # type: ignore[type-arg]
    """A reward of one's own: minus the latency of each answer, and a fine where there is none."""

    fine = 2.0

    def step(self, action: Any) -> Any:
        seen, _, terminated, truncated, info = self.env.step(action)
        reward = 0.0
        for credit in info["credited"]:
            reward -= credit.latency if credit.status is Status.SERVED else self.fine
        return seen, reward, terminated, truncated, info


class LatencyRewards(gymnasium.vector.VectorWrapper):  # type: ignore[type-arg]
    """The same for many environments. Where an episode ended, its scores are in `final_info`."""

    def step(self, actions: Any) -> Any:
        seen, rewards, terminated, truncated, info = self.env.step(actions)
        rewards = self.rewards(info["credited"])
        if truncated.any():
            rewards[truncated] = self.rewards(info["final_info"]["credited"])[truncated]
        return seen, rewards, terminated, truncated, info

    def rewards(self, credited: dict[str, Any]) -> Any:
        status = credited["status"]
        losses = np.where(status == SERVED, credited["latency"], LatencyReward.fine)
        return -(losses * (status != PENDING)).sum(1)


def test_a_wrapper_can_make_a_reward_of_its_own() -> None:
    envs = LatencyRewards(BalanceVectorEnv(2, **SHORT))
    _, info = envs.reset(seed=4)
    alone = [LatencyReward(BalanceEnv(**SHORT)) for _ in range(2)]
    for i, env in enumerate(alone):
        env.reset(options={"world": int(info["world"][i])})
    rng = np.random.default_rng(0)
    episodes, total = 0, 0.0
    while episodes < 3:
        rows = drawn(rng, info["action_mask"])
        _, rewards, _, ended, info = envs.step(rows)
        for i, env in enumerate(alone):
            _, reward, _, over, _ = env.step(rows[i])
            assert rewards[i] == pytest.approx(reward)
            assert over == ended[i]
            total += reward
            if over:
                env.reset(options={"world": int(info["world"][i])})
                episodes += 1
    assert total < 0.0


def copies_of(env: Any) -> list[Any]:
    return [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]  # noqa: S301


@pytest.mark.parametrize("observation", ["table", "parts"])
def test_copies_are_independent(observation: str) -> None:
    """Also of the original's memory: it is gone before the copies go on."""
    env = BalanceEnv(**SHORT, observation=observation)
    rows, steps, _ = played(env, 7)
    env.reset(options={"world": 7})
    for row in rows[:20]:
        env.step(np.int64(row))
    copies = copies_of(env)
    for row in rows[20:]:  # does not move the copies
        env.step(np.int64(row))
    del env
    gc.collect()
    for other in copies:
        for row, (seen, reward, _, over, info) in zip(rows[20:], steps[20:], strict=True):
            again = other.step(np.int64(row))
            assert (reward, over) == (again[1], again[3])
            assert repr(info["credited"]) == repr(again[4]["credited"])
            for one, same in zip(leaves(seen), leaves(again[0]), strict=True):
                np.testing.assert_array_equal(one, same)
        other.reset()


def leaves(observation: Any) -> list[Any]:
    return list(observation.values()) if isinstance(observation, dict) else [observation]


def test_a_copy_before_the_first_reset_can_be_reset() -> None:
    env = BalanceEnv(**SHORT)
    first, _ = env.reset(seed=1)
    for other in copies_of(BalanceEnv(**SHORT)):
        with pytest.raises(gymnasium.error.ResetNeeded):
            other.step(np.int64(0))
        assert (other.reset(seed=1)[0] == first).all()


@pytest.mark.parametrize("options", [{"plays": 2}, {"copy": False}, {"threads": 2}])
def test_copies_of_a_vector_are_independent(options: dict[str, Any]) -> None:
    envs = BalanceVectorEnv(2, **SHORT, **options)
    _, info = envs.reset(seed=8)
    shed = np.full(2, envs.single_action_space.n - 1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        *_, info = envs.step(drawn(rng, info["action_mask"]))
    copies = copies_of(envs)
    for _ in range(10):
        envs.step(shed)  # does not move the copies
    envs.close()
    del envs
    gc.collect()
    episodes = 0
    while episodes < 3:  # with new worlds, which the copies draw alike
        rows = drawn(rng, info["action_mask"])
        (seen, reward, _, ended, info), (same, again, _, over, told) = (
            other.step(rows) for other in copies
        )
        np.testing.assert_array_equal(seen, same)
        np.testing.assert_array_equal(reward, again)
        np.testing.assert_array_equal(ended, over)
        np.testing.assert_array_equal(info["world"], told["world"])
        episodes += int(ended.sum())
    for other in copies:
        other.close()


def test_a_vector_has_to_be_reset_first() -> None:
    with pytest.raises(gymnasium.error.ResetNeeded):
        BalanceVectorEnv(2, **SHORT).step(np.zeros(2, np.int64))


def test_info_of_a_vector_is_as_gymnasium_has_it() -> None:
    """An array of each figure by environment, with a mask, also in what an episode ended with."""
    envs = BalanceVectorEnv(3, **SHORT)
    _, info = envs.reset(seed=2)
    kinds = {name: info[name].dtype for name in KEYS}
    shed = np.full(3, envs.single_action_space.n - 1)
    ended = np.zeros(3, bool)
    while not ended.any():
        for name in (*KEYS, "credited"):
            assert info[f"_{name}"].tolist() == [True] * 3
        assert "final_info" not in info
        _, _, _, ended, info = envs.step(shed)
    assert (info["decision"][ended] == 0).all()
    for name in ("final_obs", "final_info"):
        assert (info[f"_{name}"] == ended).all()
    for name in KEYS:
        assert info[name].dtype == info["final_info"][name].dtype == kinds[name]
        assert (info["final_info"][f"_{name}"] == ended).all()
    assert [each is not None for each in info["final_obs"]] == ended.tolist()
    assert (info["final_info"]["decision"][ended] > 0).all()
    assert not info["final_info"]["credited"]["status"][~ended].any()


@pytest.mark.parametrize("copies", [True, False])
def test_gymnasiums_vector_wrappers_run(copies: bool) -> None:
    def wrapped(*wrappers: Any, **options: Any) -> Any:
        envs: Any = BalanceVectorEnv(2, **SHORT, copy=copies, **options)
        for wrapper in wrappers:
            envs = wrapper(envs)
        return envs

    stacks = [
        wrapped(vector_wrappers.NormalizeObservation, autoreset_mode="NextStep"),
        wrapped(vector_wrappers.FlattenObservation, autoreset_mode="NextStep"),
        wrapped(vector_wrappers.FlattenObservation, observation="parts", autoreset_mode="Disabled"),
        wrapped(vector_wrappers.RecordEpisodeStatistics),
        wrapped(vector_wrappers.RecordEpisodeStatistics, vector_wrappers.DictInfoToList),
    ]
    for envs in stacks:
        seen, info = envs.reset(seed=3)
        shed = np.full(2, envs.single_action_space.n - 1)
        ended = np.zeros(2, bool)
        decisions = 0
        while not ended.any():
            assert seen in envs.observation_space
            seen, _, _, ended, info = envs.step(shed)
            decisions += 1
        if isinstance(envs, vector_wrappers.RecordEpisodeStatistics):
            assert info["episode"]["l"][ended].tolist() == [decisions] * int(ended.sum())
        if isinstance(info, list):
            last = info[int(ended.argmax())]
            assert last["final_info"]["decision"] == decisions
            assert last["episode"]["l"] == decisions
            assert last["final_info"]["action_mask"].shape == (shed[0] + 1,)
        envs.close()


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_an_episode_can_begin_at_the_next_step_or_on_request(mode: str) -> None:
    same, other = (BalanceVectorEnv(2, **SHORT, autoreset_mode=m) for m in ("SameStep", mode))
    assert other.metadata["autoreset_mode"] is AutoresetMode(mode)
    same.reset(seed=2)
    _, info = other.reset(seed=2)
    shed = np.full(2, same.single_action_space.n - 1)
    ended = np.zeros(2, bool)
    while not ended.any():
        first, rewards, _, ended, told = same.step(shed)
        last, reward, terminated, over, info = other.step(shed)
        np.testing.assert_array_equal(ended, over)
        np.testing.assert_array_equal(rewards, reward)
        assert not terminated.any()
    i = int(ended.argmax())
    np.testing.assert_array_equal(last[i], told["final_obs"][i])
    assert "final_obs" not in info
    assert info["decision"][i] == told["final_info"]["decision"][i] > 0
    going = ~ended
    before = info["decision"].copy()
    if mode == "NextStep":
        begun, reward, _, over, info = other.step(shed)
        assert (info["decision"][going] == before[going] + 1).all()
        assert (reward[ended] == 0.0).all()
        assert not over[i]
    else:
        with pytest.raises(gymnasium.error.ResetNeeded):
            other.step(shed)
        begun, info = other.reset(options={"reset_mask": ended})
        assert (info["decision"][going] == before[going]).all()
        with pytest.raises(ValueError, match="reset_mask"):
            other.reset(options={"reset_mask": [True, False]})
    np.testing.assert_array_equal(begun[i], first[i])
    assert info["decision"][i] == 0
    assert (info["world"][i] == told["world"][i]).all()
    *_, info = other.step(shed)
    assert info["decision"][i] == 1


def test_an_unknown_autoreset_mode_is_refused() -> None:
    with pytest.raises(BadInput, match="SameStep"):
        BalanceVectorEnv(2, **SHORT, autoreset_mode="later")


def test_render_modes(monkeypatch: pytest.MonkeyPatch) -> None:
    def ansi(sim: Any, scenario: Any) -> str:
        """To see which simulation and which scenario are drawn."""
        return f"{scenario.seed} {float(sim.world.clock['now'][0])}"

    monkeypatch.setattr(render, "ansi", ansi)
    env = BalanceEnv(**SHORT, render_mode="ansi")
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.render()
    _, info = env.reset(options={"world": 6})
    assert env.render() == f"6 {info['now']}"
    assert BalanceEnv(**SHORT).render() is None
    envs = BalanceVectorEnv(2, **SHORT, render_mode="ansi")
    with pytest.raises(gymnasium.error.ResetNeeded):
        envs.render()
    _, info = envs.reset(seed=0)
    assert envs.render() == tuple(
        f"{world} {now}" for world, now in zip(info["world"], info["now"], strict=True)
    )
    env = BalanceEnv(**SHORT, render_mode="rgb_array")
    env.reset(options={"world": 6})
    assert env.render().dtype == np.uint8
    assert env.render().shape[2] == 3
    for make in (BalanceEnv, BalanceVectorEnv):
        with pytest.raises(BadInput, match="ansi, rgb_array"):
            make(**SHORT, render_mode="human")  # type: ignore[operator]


def test_lanes_refuse_what_does_not_fit_and_leave_ended_ones_alone() -> None:
    supply = WorldSource(**SHORT)
    with pytest.raises(ValueError, match="larger"):
        BatchedSims(1, 6, 3, supply.slots).put(0, supply.world(0))
    lanes = BatchedSims.of(supply, 1)
    world = supply.world(0)
    if not PLAIN_PYTHON:  # which has no types
        with pytest.raises(ValueError, match="not compiled for"):
            lanes.put(0, world._replace(script=world.reports.heads))
    lanes.step(np.array([0]))  # nothing has been put there
    lanes.put(0, supply.world(0))
    lanes.step(np.array([RESET]))
    shed = np.array([supply.rows - 1])
    while not lanes.lanes["ended"][0]:
        lanes.step(shed)
    before = lanes.lanes.copy()
    before["credited"] = 0
    lanes.step(shed)
    assert (lanes.lanes == before).all()
    assert lanes.credits(copy=False)["reward"].shape == (1, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "a scenario or a family"),
        ({"scenario": "volatile", "family": "light"}, "not both"),
        ({"family": "hevy"}, "hevy"),
        ({"family": "light", "observation": "wide"}, "table, flat, parts"),
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
