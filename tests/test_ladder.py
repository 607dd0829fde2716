"""The ladder of baselines: tables (an observation, and the decision the rule must make), the
propensities against frequencies, and the rules' memories over several decisions."""

from __future__ import annotations

import functools
import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgewise as ew
from edgewise import scenario as sc
from edgewise.fleet import table as t
from edgewise.fleet.rng import new_rng
from edgewise.policies import POLICIES, Parameter, Policy, PolicySpec, learned, priced
from edgewise.policies.rules import linucb, prequal

pytestmark = pytest.mark.study

FAST, SLOW, SHED = 0, 1, -1
"""Services of each server of `fleet`: rows 4s + 2·service + form."""


def fill(record: Any, **values: float) -> None:
    for name, value in values.items():
        record[name] = value


def fleet(servers: int = 3, forms: int = 1, **context: float) -> t.CandidateTable:
    """`servers` alike, two services each: 0.6 in 20 ms and 0.8 in 80 ms; deadline 0.4 s, nothing
    queued, 10 ms of network. Server 0 is the ingress."""
    table = t.blank_table(servers, 2 * servers)
    given = {"deadline": 0.4, "grace": 1.0, "accuracy_weight": 1.0, "now": 1000.0}
    fill(table.context, **{**given, **context})
    for s in range(servers):
        fill(table.servers[s], up=1, workers=1, speed=1, report_age=0.05)
        for service, (accuracy, seconds) in enumerate(((0.6, 0.02), (0.8, 0.08))):
            for form in range(forms):
                r = row_of(s, service, form)
                table.mask[r] = 1
                set_row(table, r, server=s, service=2 * s + service, form=form)
                set_row(table, r, local=s == 0, accuracy=accuracy, until_input=0.01)
                set_row(table, r, service_time=seconds, latency=seconds + 0.01)
    table.mask[SHED] = 1
    return table


def row_of(server: int, service: int, form: int = 0) -> int:
    return 4 * server + 2 * service + form


def set_server(table: t.CandidateTable, server: int, **values: float) -> None:
    fill(table.servers[server], **values)


def set_row(table: t.CandidateTable, row: int, **values: float) -> None:
    for name, value in values.items():
        getattr(table.rows, name)[row] = value


class Run:
    """A rule with its memory: called as the simulator calls it.

    With the parameters' defaults: the tables test the rule, not what a tuner found.
    """

    def __init__(self, name: str, servers: int = 3, seed: int = 1, **params: float) -> None:
        self.spec = POLICIES[name]
        defaults = [each.default for each in self.spec.parameters]
        self.params = self.spec.new_params(defaults or None)
        self.named = self.spec.named_params(self.params)
        for key, value in params.items():
            self.params[self.spec.names.index(key)] = value
        self.array = self.spec.new_memory(servers)
        self.memory = self.spec.named_memory(self.array)
        self.rng = new_rng(seed)
        self.probability = math.nan

    def __call__(self, table: t.CandidateTable) -> int:
        """The chosen row, −1 = shed."""
        self.probability = self.spec.kernel(table, self.params, self.array, self.rng)
        best = int(t.best_row(table))
        return SHED if best == table.mask.size - 1 else best

    def server(self, table: t.CandidateTable, after: float = 0.0) -> int:
        """The chosen server, −1 = shed; the clock goes on by `after` s first."""
        table.context.now += after
        row = self(table)
        return int(table.rows.server[row]) if row >= 0 else SHED


# -- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_chooses_an_admissible_row_or_sheds_and_says_how_likely(name: str) -> None:
    table = fleet(forms=2)
    table.mask[row_of(1, SLOW)] = 0
    run = Run(name)
    for _ in range(40):
        row = run(table)
        assert row == SHED or table.mask[row] == 1
        assert 0.0 < run.probability <= 1.0
        assert (table.scores[:-1][table.mask[:-1] == 0] == -np.inf).all()


@pytest.mark.parametrize("name", POLICIES)
def test_sheds_when_nothing_is_admissible(name: str) -> None:
    table = fleet()
    table.mask[:-1] = 0
    run = Run(name)
    assert run(table) == SHED
    assert run.probability == 1.0


@pytest.mark.parametrize("name", [n for n in POLICIES if n != "edgewise"])  # it has weights
def test_parameters_are_described_and_within_bounds(name: str) -> None:
    spec = POLICIES[name]
    assert len(spec.params) == len(spec.parameters) == len(set(spec.names))
    for parameter, value in zip(spec.parameters, spec.params, strict=True):
        assert parameter.low <= value <= parameter.high
        assert parameter.about
        assert not parameter.log or parameter.low > 0.0


@pytest.mark.parametrize("name", [n for n in POLICIES if n not in ("linucb",)])
def test_propensity_is_the_frequency(name: str) -> None:
    """Unequal servers, one decision each from the same memory and many seeds."""
    table = fleet(forms=2)
    for s, (busy, load) in enumerate(((0.9, 3), (0.2, 1), (0.4, 1))):
        set_server(table, s, utilisation=busy, outstanding=load, rif=load, peak=0.1, response=0.1)
    set_row(table, row_of(1, FAST), latency=0.5)
    set_row(table, row_of(2, SLOW), latency=2.0)
    seen: dict[int, list[float]] = {}
    trials = 3000
    for seed in range(trials):
        run = Run(name, seed=seed * 7919)
        seen.setdefault(run(table), []).append(run.probability)
    for row, said in seen.items():
        assert max(said) - min(said) < 1e-12, row
        spread = math.sqrt(said[0] * (1.0 - said[0]) / trials)
        assert abs(len(said) / trials - said[0]) <= 4.0 * spread + 1e-9, (row, said[0])


@pytest.mark.parametrize("name", ["peak_ewma_admission", "prequal_admission"])
def test_propensity_of_shedding_adds_up_over_servers(name: str) -> None:
    """Servers 0 and 1 are hopeless, 2 is not: shedding has two ways to happen."""
    table = fleet()
    for s in (0, 1):
        for service in (FAST, SLOW):
            set_row(table, row_of(s, service), latency=9.0)
    set_server(table, 0, outstanding=0)
    set_server(table, 1, outstanding=1)
    set_server(table, 2, outstanding=2)
    trials = 3000
    said: dict[int, float] = {}
    count: dict[int, int] = {}
    for seed in range(trials):
        run = Run(name, seed=seed * 7919)
        row = run(table)
        said[row] = run.probability
        count[row] = count.get(row, 0) + 1
    assert sum(said.values()) == pytest.approx(1.0)
    for row in said:
        assert count.get(row, 0) / trials == pytest.approx(said[row], abs=0.04)
    if name == "peak_ewma_admission":
        assert said == {SHED: pytest.approx(1.0)}  # 2 loses against both
    else:
        assert said[SHED] == pytest.approx(2 / 3)


def test_service_on_the_chosen_server() -> None:
    """The most accurate under 0.4 × deadline, else the cheapest; never the model-ready form."""
    table = fleet(forms=2)
    run = Run("sed")
    assert run(table) == row_of(0, SLOW)
    table.context.deadline = 0.19  # 80 ms is not under 0.4 × 190 ms
    assert run(table) == row_of(0, FAST)
    table.context.deadline = 0.02
    assert run(table) == row_of(0, FAST)


# -- server-only ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("jsq", {"rif": (3, 1, 2)}, 1),
        ("jsq", {"rif": (2, 2, 2)}, 0),
        ("sed", {"outstanding": (3, 1, 5), "speed": (1, 1, 4)}, 2),  # 4, 2, 1.5
        ("sed", {"outstanding": (1, 3, 9), "workers": (1, 4, 2)}, 1),  # 2, 1, 5
        ("sed_admission", {"outstanding": (3, 1, 5), "speed": (1, 1, 4)}, 2),
        # R − s + q̂³ s with s = 0.08: 0.1 + 0, 0.05 − 0.08 + 8 × 0.08, 0.02 − 0.08 + 27 × 0.08
        ("c3", {"response": (0.1, 0.05, 0.02), "outstanding": (0, 1, 1), "queued": (0, 0, 1)}, 0),
        ("c3", {"response": (0.9, 0.05, 0.02), "outstanding": (0, 1, 1), "queued": (0, 0, 1)}, 1),
        # The ingress while it has under 5 a worker.
        ("ray_p2c", {"rif": (4, 0, 0)}, 0),
        ("ray_p2c", {"rif": (9, 0, 0), "workers": (2, 1, 1)}, 0),
    ],
)
def test_server_only(name: str, columns: dict[str, tuple[float, ...]], expected: int) -> None:
    table = fleet()
    for column, values in columns.items():
        for s, value in enumerate(values):
            set_server(table, s, **{column: value})
    run = Run(name)
    assert run.server(table) == expected
    assert run.probability == 1.0


@pytest.mark.parametrize(
    ("peaks", "pending", "expected"),
    [
        ((0.1, 0.3), (5, 0), 1),  # 0.6 against 0.3
        ((0.1, 0.3), (1, 0), 0),  # 0.2 against 0.3
        ((0.9, 0.0), (0, 0), 0),  # a cold one counts as 1 s
        ((1.1, 0.0), (0, 0), 1),
    ],
)
def test_peak_ewma(peaks: tuple[float, ...], pending: tuple[float, ...], expected: int) -> None:
    table = fleet(2)
    for s in range(2):
        set_server(table, s, peak=peaks[s], outstanding=pending[s])
    run = Run("peak_ewma", 2)
    assert run.server(table) == expected
    assert run.probability == 1.0


def test_peak_ewma_penalises_an_unknown_server_with_requests_pending() -> None:
    """Finagle's own rule, without a default round trip."""
    table = fleet(2)
    set_server(table, 0, peak=50.0, outstanding=9)
    set_server(table, 1, peak=0.0, outstanding=0)
    run = Run("peak_ewma", 2, cold=0.0)
    assert run.server(table) == 1
    set_server(table, 1, outstanding=1)
    assert run.server(table) == 0


def test_two_choices_have_the_propensity_of_pairs() -> None:
    table = fleet(4)
    for s, load in enumerate((0, 1, 1, 2)):
        set_server(table, s, outstanding=load)
    said = {}
    for seed in range(200):
        run = Run("least_outstanding", 4, seed=seed)
        server = run.server(table)
        said[server] = run.probability
    assert said == {0: pytest.approx(6 / 12), 1: pytest.approx(3 / 12), 2: pytest.approx(3 / 12)}


def test_ray_leaves_a_full_ingress() -> None:
    table = fleet(2)
    set_server(table, 0, rif=5)
    set_server(table, 1, rif=4)
    assert Run("ray_p2c", 2).server(table) == 1


def test_jiq_serves_idle_servers_in_the_order_of_their_reports() -> None:
    table = fleet()
    run = Run("jiq")
    for s in range(3):
        set_server(table, s, rif=1, report_age=0.0)
    assert run.server(table) in (0, 1, 2)
    assert run.probability == pytest.approx(1 / 3)

    table.context.now += 1.0
    for s in range(3):
        set_server(table, s, report_age=1.0)
    set_server(table, 2, rif=0, report_age=0.0)
    assert run.server(table) == 2
    assert run.probability == 1.0
    run.server(table)  # it has left the queue, and no new report has come
    assert run.probability == pytest.approx(1 / 3)

    table.context.now += 1.0
    set_server(table, 2, report_age=0.0)
    run.server(table)
    set_server(table, 2, report_age=1.0)
    table.context.now += 1.0
    set_server(table, 1, rif=0, report_age=0.0)
    assert run.server(table) == 1


@pytest.mark.parametrize(
    ("busy", "share"),
    [
        ((0.4, 0.3, 0.3), (0.97, 0.015, 0.015)),  # not above 0.3 + 0.1
        ((0.7, 0.3, 0.4), (3 / 16, 7 / 16, 6 / 16)),  # Envoy's worked example
        ((1.0, 0.5, 1.0), (0.0, 1.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.97, 0.015, 0.015)),
    ],
)
def test_load_aware_locality(busy: tuple[float, ...], share: tuple[float, ...]) -> None:
    table = fleet()
    for s, value in enumerate(busy):
        set_server(table, s, utilisation=value)
    for seed in range(300):
        run = Run("load_aware_locality", seed=seed)
        server = run.server(table)
        assert run.probability == pytest.approx(share[server])
        assert share[server] > 0.0


def test_load_aware_locality_smooths_once_a_period() -> None:
    table = fleet()
    run = Run("load_aware_locality")
    run.server(table)
    set_server(table, 0, utilisation=1.0)
    run.server(table, after=0.5)
    assert run.memory.servers[0].utilisation == 0.0
    run.server(table, after=0.5)
    assert run.memory.servers[0].utilisation == pytest.approx(0.3)


# -- weighted round robin -------------------------------------------------------------------------


def reporting(rates: tuple[float, ...], busy: tuple[float, ...]) -> t.CandidateTable:
    table = fleet(len(rates))
    for s in range(len(rates)):
        set_server(table, s, answers_1s=rates[s], utilisation=busy[s], report_age=0.0)
    return table


def test_weighted_round_robin_is_round_robin_in_the_blackout_and_weighted_after() -> None:
    table = reporting((40, 10, 10), (0.5, 0.5, 0.5))
    run = Run("weighted_round_robin")
    assert [run.server(table, after=0.01) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    run.server(table, after=9.0)
    table.context.now += 2.0
    picks = [run.server(table, after=0.001) for _ in range(60)]
    assert [picks.count(s) for s in range(3)] == [40, 10, 10]
    assert max(len(list(g)) for k, g in itertools.groupby(picks) if k == 0) <= 3  # smooth


def test_weighted_round_robin_weights() -> None:
    """qps / (utilisation + eps/qps × penalty); no weight → the mean of those with one."""
    table = reporting((20, 20, 0), (0.5, 0.25, 0.0))
    set_server(table, 1, errors_1s=5)  # 20 / (0.25 + 0.25) = 40 = 20 / 0.5
    run = Run("weighted_round_robin", blackout=0.1)
    run.server(table)
    picks = [run.server(table, after=1.0) for _ in range(60)]
    assert [picks.count(s) for s in range(3)] == [20, 20, 20]
    set_server(table, 1, errors_1s=0)  # 80 against 40, and 60 for the third
    run.server(table, after=1.0)
    picks = [run.server(table, after=1.0) for _ in range(90)]
    assert [picks.count(s) for s in range(3)] == [
        pytest.approx(share, abs=1.0) for share in (20, 40, 30)
    ]


def test_weighted_round_robin_forgets_an_old_weight_and_blacks_out_again() -> None:
    table = reporting((40, 10), (0.5, 0.5))
    run = Run("weighted_round_robin", 2, blackout=2.0, expiration=5.0)
    for _ in range(4):
        run.server(table, after=1.0)
    assert run.memory.fleet.mean_weight > 0.0
    for _ in range(6):  # no new report: the age grows with the clock
        table.servers.report_age += 1.0
        run.server(table, after=1.0)
    assert run.memory.fleet.mean_weight == 0.0
    table.servers.report_age = 0.0
    run.server(table, after=1.0)
    assert run.memory.fleet.mean_weight == 0.0
    for _ in range(3):
        run.server(table, after=1.0)
    assert run.memory.fleet.mean_weight > 0.0


# -- prequal --------------------------------------------------------------------------------------


def pool(run: Run) -> dict[int, tuple[float, float]]:
    """server → (requests in flight, latency)"""
    found = run.memory.fleet.pool
    return {
        int(e["owner"]) - 1: (float(e["rif"]), float(e["latency"])) for e in found if e["owner"] > 0
    }


def settings(run: Run) -> prequal.PoolSettings:
    return prequal.PoolSettings(*run.params[: len(prequal.PREQUAL)].tolist())


def probed(run: Run, table: t.CandidateTable, *entries: tuple[int, float, float]) -> None:
    """Put replies into the pool by hand."""
    run.array[:] = 0.0
    for server, rif, latency in entries:
        set_server(table, server, rif=rif, rif_response=latency)
        prequal.probe(table, settings(run), run.memory, server, 0.0)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        # 3 of 4 are below 9: hot at the quantile 0.7; of the cold ones the fastest.
        (((0, 1, 0.30), (1, 2, 0.10), (2, 9, 0.01), (3, 1, 0.20)), 1),
        # The fastest is cold.
        (((0, 1, 0.30), (1, 2, 0.10), (2, 2, 0.01), (3, 9, 0.20)), 2),
    ],
)
def test_prequal_hot_and_cold(entries: tuple[tuple[int, float, float], ...], expected: int) -> None:
    table = fleet(8)
    run = Run("prequal", 8, quantile=0.7)
    probed(run, table, *entries)
    before = pool(run)[expected]
    assert run.server(table) == expected
    assert run.probability == 1.0
    after = pool(run).get(expected)
    assert after is None or after[0] in (before[0], before[0] + 1.0)


def test_prequal_takes_the_least_in_flight_when_all_are_hot() -> None:
    table = fleet(8)
    run = Run("prequal", 8, quantile=0.0)
    probed(run, table, (0, 1, 0.1), (1, 5, 0.01), (2, 3, 0.2), (3, 1, 0.3))
    # Nothing is below 1, so 0 and 3 are cold; take them away.
    table.mask[[row_of(s, k) for s in (0, 3) for k in (FAST, SLOW)]] = 0
    assert run.server(table) == 2


def test_prequal_is_random_with_fewer_than_two_usable_and_drops_old_entries() -> None:
    table = fleet(8)
    run = Run("prequal", 8, idle=1.0)
    probed(run, table, (0, 1, 0.1))
    run.server(table)
    assert run.probability == pytest.approx(1 / 8)
    probed(run, table, (0, 1, 0.1), (1, 1, 0.2))
    run.server(table, after=1.01)
    assert run.probability == pytest.approx(1 / 8)


def test_prequal_pool_is_small_against_the_fleet_and_reuse_is_bounded() -> None:
    params = settings(Run("prequal"))
    assert [prequal.pool_size(params, n) for n in (2, 3, 8, 24, 64)] == [2, 2, 4, 12, 16]
    # (1 + 1) / ((1 − 1/2)·3 − 1) = 4; with m = 16 of 64 (0.75·3 − 1) it is 1.6; of 3 no bound.
    assert prequal.reuse_limit(params, 8) == pytest.approx(4.0)
    assert prequal.reuse_limit(params, 64) == pytest.approx(1.6)
    assert prequal.reuse_limit(params, 3) == 4.0
    assert prequal.reuse_limit(params._replace(reuse=2.0), 3) == 2.0


def test_prequal_counts_what_it_sends_and_stops_using_an_entry() -> None:
    table = fleet(8)
    run = Run("prequal", 8, probes=1.0, reuse=1.0)
    probed(run, table, (4, 0, 0.01), (5, 0, 0.5), (6, 0, 0.6), (7, 0, 0.7))
    assert run.server(table) == 4
    entries = run.memory.fleet.pool
    old = [e for e in entries if e["owner"] == 5.0 and e["rif"] == 1.0]
    assert not old  # used up, or probed afresh: never as it was


def test_prequal_removes_oldest_and_worst_in_turn() -> None:
    table = fleet(8)
    run = Run("prequal", 8, quantile=0.7)
    probed(run, table, (0, 1, 0.1))
    table.context.now += 0.1
    for server, rif, latency in ((1, 1, 0.9), (2, 8, 0.2), (3, 1, 0.3)):
        set_server(table, server, rif=rif, rif_response=latency)
        prequal.probe(table, settings(run), run.memory, server, 0.0)
    prequal.remove_one(settings(run), run.memory)
    assert set(pool(run)) == {1, 2, 3}  # 0 was the oldest
    prequal.remove_one(settings(run), run.memory)
    assert set(pool(run)) == {1, 3}  # 2 is hot
    prequal.remove_one(settings(run), run.memory)
    prequal.probe(table, settings(run), run.memory, 5, 0.0)
    prequal.probe(table, settings(run), run.memory, 1, 0.0)
    prequal.remove_one(settings(run), run.memory)
    assert 1 not in pool(run)  # none is hot: the slowest


# -- admission ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sed_admission", "peak_ewma_admission", "prequal_admission"])
def test_admission_chooses_the_service_by_deadline_and_sheds_the_hopeless(name: str) -> None:
    table = fleet(1, forms=2)
    assert Run(name, 1)(table) == row_of(0, SLOW)
    set_row(table, row_of(0, SLOW), latency=0.6)  # 0.8 × g(1.2 × 1.5) = 0.16 < 0.6
    set_row(table, row_of(0, SLOW, 1), latency=0.6)
    assert Run(name, 1)(table) == row_of(0, FAST)
    set_row(table, row_of(0, SLOW, 1), latency=0.2)
    assert Run(name, 1)(table) == row_of(0, SLOW, 1)
    for r in range(4):
        set_row(table, r, latency=0.65)  # 1.95 deadlines with the margin: 0.05 × 0.8 at most
    run = Run(name, 1)
    assert run(table) == SHED
    assert run.probability == 1.0
    assert Run(name, 1, threshold=0.0)(table) == row_of(0, SLOW)


# -- by prediction --------------------------------------------------------------------------------


def test_earliest_completion_margin() -> None:
    table = fleet(2)
    run = Run("earliest_completion_margin", 2)
    set_row(table, row_of(1, SLOW), latency=0.08)
    assert run(table) == row_of(1, SLOW)  # equal utility: the earlier
    set_row(table, row_of(0, SLOW), latency=0.39)
    set_row(table, row_of(1, SLOW), latency=0.39)
    set_row(table, row_of(0, FAST), latency=0.33)
    assert run(table) == row_of(0, SLOW)  # 0.8 × (2 − 1.17) = 0.66 > 0.6
    set_row(table, row_of(0, SLOW), latency=0.43)  # 0.8 × (2 − 1.29) = 0.568 < 0.6
    set_row(table, row_of(1, SLOW), latency=0.43)
    assert run(table) == row_of(1, FAST)
    table.rows.latency[:] = (9.0, 9.0, 8.0, 9.0, 7.0, 9.0, 7.5, 9.0, 0.0)
    assert run(table) == row_of(1, FAST)  # worthless: the earliest


def test_infaas() -> None:
    table = fleet()
    for s, backlog in enumerate((0.3, 0.1, 0.2)):
        set_server(table, s, backlog=backlog)
    run = Run("infaas")
    assert run(table) == row_of(1, SLOW)  # the slowest that fits, the least loaded
    set_row(table, row_of(1, SLOW), service_time=0.5)  # this server's is too slow
    assert run(table) == row_of(2, SLOW)
    table.context.deadline = 0.05
    assert run(table) == row_of(1, FAST)
    table.context.deadline = 0.01
    set_row(table, row_of(2, FAST), service_time=0.015)
    assert run(table) == row_of(2, FAST)  # none fits: the fastest


def test_jellyfish() -> None:
    table = fleet(2)
    set_server(table, 0, backlog=0.2)
    run = Run("jellyfish", 2)
    assert run(table) == row_of(1, SLOW)
    set_row(table, row_of(1, SLOW), transfer=0.25)  # 0.4 − 0.25 < 2 × 0.08
    assert run(table) == row_of(0, SLOW)
    table.context.elapsed = 0.25
    assert run(table) == row_of(1, FAST)
    table.context.upload = 0.5
    set_row(table, row_of(0, FAST), service_time=0.01)
    assert run(table) == row_of(0, FAST)  # late by least
    table.context.upload = 0.0
    table.context.elapsed = 0.0
    for r in (row_of(0, SLOW), row_of(1, SLOW)):
        set_row(table, r, return_time=0.13)  # 0.4 − 2 × 0.13 < 2 × 0.08
    assert run(table) == row_of(1, FAST)


def test_slo_headroom() -> None:
    table = fleet()
    set_row(table, row_of(2, FAST), latency=0.39)
    set_row(table, row_of(0, SLOW), latency=0.41)
    set_row(table, row_of(1, SLOW), latency=0.5)
    tally: dict[int, float] = {}
    for seed in range(600):
        run = Run("slo_headroom", seed=seed, explore=0.2)
        row = run(table)
        tally[row] = run.probability
    assert tally == {
        row_of(2, FAST): pytest.approx(0.8),
        row_of(0, SLOW): pytest.approx(0.1),
        row_of(1, SLOW): pytest.approx(0.1),
    }
    table.rows.latency[:-1] += 1.0
    run = Run("slo_headroom")
    assert run(table) == row_of(0, FAST)  # least late, the first of equals
    assert run.probability == 1.0


# -- linucb ---------------------------------------------------------------------------------------


def test_linucb_is_ridge_regression_with_a_bound() -> None:
    """State after some rewards = the closed form, and the score = θᵀx + α√(xᵀA⁻¹x)."""
    table = fleet(forms=2)
    run = Run("linucb", ridge=2.0)
    luck = np.random.default_rng(3)
    gram, target = 2.0 * np.eye(linucb.D), np.zeros(linucb.D)
    for _ in range(200):
        x, reward = luck.normal(size=linucb.D), luck.uniform()
        run.spec.learn(run.params, run.array, x, reward)
        gram += np.outer(x, x)
        target += reward * x
    run(table)
    theta = np.linalg.solve(gram, target)
    x = np.zeros(linucb.D)
    for r in range(table.mask.size - 1):
        linucb.describe(table, r, x)
        bound = theta @ x + 0.3 * math.sqrt(x @ np.linalg.solve(gram, x))
        assert table.scores[r] == pytest.approx(bound, abs=1e-9)


def test_linucb_learns_which_server_fails() -> None:
    """Rewards that contradict the predictions: the model-ready form earns nothing."""
    table = fleet(2, forms=2)
    run = Run("linucb", 2)
    x = np.zeros(run.spec.features)
    for _ in range(300):
        row = run(table)
        run.spec.describe(table, row, x)
        run.spec.learn(run.params, run.array, x, 0.0 if row % 2 else 0.8)
    assert all(run(table) % 2 == 0 for _ in range(10))


def test_shedding_teaches_nothing() -> None:
    table = fleet()
    run = Run("linucb")
    run(table)
    before = run.memory.fleet.theta.copy(), run.memory.fleet.inverse.copy()
    x = np.ones(run.spec.features)
    run.spec.describe(table, table.mask.size - 1, x)
    run.spec.learn(run.params, run.array, x, 0.0)
    assert (run.memory.fleet.theta == before[0]).all()
    assert (run.memory.fleet.inverse == before[1]).all()


# -- priced_greedy --------------------------------------------------------------------------------

FREE = {p.name: 0.0 for p in priced.PRICED_GREEDY if p.name.endswith(("gain", "spread", "price"))}
PLAIN = {
    **FREE,
    "knee": 0.0,
    "speed_exponent": 1.0,
    "network_margin": 1.0,
    "wait_margin": 1.0,
    "service_margin": 1.0,
}
"""No price, no margin, no spread: what remains is predicted utility."""


def score_of(table: t.CandidateTable, row: int, **params: float) -> float:
    Run("priced_greedy", table.servers.shape[0], **{**PLAIN, **params})(table)
    return float(table.scores[row])


def test_priced_greedy_without_price_is_expected_utility() -> None:
    table = fleet()
    set_row(table, row_of(1, SLOW), wait=0.51)  # 0.01 + 0.51 + 0.08 = 1.5 deadlines
    assert score_of(table, row_of(0, SLOW)) == pytest.approx(0.8)
    assert score_of(table, row_of(1, SLOW)) == pytest.approx(0.4)
    assert score_of(table, SHED) == 0.0
    set_server(table, 1, failure=0.5)
    assert score_of(table, row_of(1, SLOW), failure_weight=0.5) == pytest.approx(0.3)


def test_priced_greedy_margins_each_part_on_its_own() -> None:
    table = fleet()
    row = row_of(0, SLOW)
    set_row(table, row, until_input=0.2, wait=0.2, service_time=0.2, return_time=0.1)
    base = 0.8 * (2.0 - 0.7 / 0.4)
    assert score_of(table, row) == pytest.approx(base)
    for name, part in (("network", 0.3), ("wait", 0.2), ("service", 0.2)):
        value = score_of(table, row, **{f"{name}_margin": 0.5})
        assert value == pytest.approx(base + 0.8 * 0.5 * part / 0.4)


def test_priced_greedy_averages_over_the_spread() -> None:
    table = fleet(grace=0.0)
    row = row_of(0, SLOW)
    set_row(table, row, until_input=0.0, service_time=0.39)
    assert score_of(table, row, spread=0.0) == pytest.approx(0.8)
    assert score_of(table, row, spread=0.1) == pytest.approx(0.8 * 5 / 6)
    set_row(table, row, service_time=0.41)
    assert score_of(table, row, spread=0.1) == pytest.approx(0.8 / 6)
    set_row(table, row, service_time=0.39)
    set_server(table, 0, utilisation=1.0, report_age=1.0)
    assert score_of(table, row, stale_spread=0.1) == pytest.approx(0.8 * 5 / 6)


@pytest.mark.parametrize(
    ("params", "columns", "contention"),
    [
        ({"load_gain": 2.0}, {"utilisation": 0.5}, 1.0),
        ({"load_gain": 2.0}, {"utilisation": 0.5, "offered_5s": 0.7}, 1.4),
        ({"load_gain": 2.0}, {"utilisation": 0.5, "workers": 4.0}, 1.0),
        # The mean speed becomes 4/3, and 3 times that would be 4.
        ({"load_gain": 2.0}, {"utilisation": 0.5, "speed": 2.0}, 1.5),
        ({"load_gain": 2.0, "speed_exponent": 0.0}, {"utilisation": 0.5, "speed": 2.0}, 1.0),
        ({"utilisation_gain": 4.0, "knee": 0.5}, {"utilisation": 0.75}, 1.0),
        ({"utilisation_gain": 4.0, "knee": 0.5}, {"offered_5s": 1.0}, 2.0),
        ({"utilisation_gain": 4.0, "knee": 0.5}, {"utilisation": 0.4}, 0.0),
        ({"backlog_gain": 2.0, "backlog_scale": 0.25}, {"backlog": 0.1}, 2 * math.tanh(1.0)),
        ({"fleet_gain": 6.0, "knee": 0.2}, {"utilisation": 0.9}, 6 * (0.9 / 3 - 0.2)),
    ],
)
def test_priced_greedy_price_of_a_worker(
    params: dict[str, float], columns: dict[str, float], contention: float
) -> None:
    """In what a second could bring at most: here 0.6 in the 20 ms of the fast model."""
    table = fleet()
    set_server(table, 1, **columns)
    value = score_of(table, row_of(1, SLOW), **params)
    assert 0.8 - value == pytest.approx(0.6 / 0.02 * contention * 0.08)


def test_priced_greedy_price_for_requests_from_elsewhere() -> None:
    table = fleet()
    set_server(table, 1, utilisation=0.5, demand_1s=5.0)
    value = score_of(table, row_of(1, SLOW), load_gain=0.2, captive_gain=2.0)
    assert 0.8 - value == pytest.approx(0.6 / 0.02 * 0.1 * 0.08 * (1 + 2 * 5 * 0.08))


def test_priced_greedy_price_of_link_and_preparation() -> None:
    table = fleet(forms=2)
    row = row_of(1, SLOW, 1)
    set_row(table, row, transfer=0.05, prepare=0.004)
    set_server(table, 1, link_backlog=0.2)
    value = score_of(table, row, link_price=0.8, link_gain=1.0, backlog_scale=0.5)
    assert 0.8 - value == pytest.approx(0.8 / 0.4 * 0.05 * (1 + math.tanh(1.0)))
    set_server(table, 0, utilisation=0.5)
    value = score_of(table, row, load_gain=1.0, prepare_share=0.5)
    assert 0.8 - value == pytest.approx(0.6 / 0.02 * 0.5 * 0.5 * 0.004)


def test_priced_greedy_measures_what_a_second_could_bring() -> None:
    """The geometric mean over requests, whatever was chosen; requests that cannot score are left
    out of it, but not out of the mean deadline."""
    run = Run("priced_greedy")
    for seconds, deadline in ((0.02, 0.4), (0.08, 0.1), (9.0, 0.4)):
        table = fleet(deadline=deadline)
        for r in range(table.mask.size - 1):
            set_row(table, r, service_time=seconds)
        run(table)
    units = priced.measured_units(table, run.memory.fleet)
    assert units.price == pytest.approx(math.sqrt(0.8 / 0.02 * 0.8 / 0.08))
    assert units.deadline == pytest.approx((0.4 * 0.1 * 0.4) ** (1 / 3))
    assert units.speed == 1.0


# Not the tuned values: what the rule is for must not change with them.
USUAL = {"knee": 0.5, "utilisation_gain": 0.3, "backlog_gain": 0.3, "fleet_gain": 0.2}


def test_priced_greedy_sheds_under_load_what_it_takes_when_idle() -> None:
    table = fleet()
    for r in range(table.mask.size - 1):
        set_row(table, r, wait=0.6)
    run = Run("priced_greedy", **{**PLAIN, **USUAL, "threshold_gain": 0.3})
    assert run(table) != SHED
    for s in range(3):
        set_server(table, s, utilisation=1.0, offered_5s=1.3, backlog=0.6)
    assert run(table) == SHED


def test_priced_greedy_prefers_an_idle_server_and_the_cheap_model_under_load() -> None:
    table = fleet()
    set_server(table, 0, utilisation=0.95, backlog=0.05)
    set_server(table, 2, utilisation=0.6)
    run = Run("priced_greedy", **{**PLAIN, **USUAL})
    assert run(table) == row_of(1, SLOW)
    for s in range(3):
        set_server(table, s, utilisation=1.0, backlog=0.3)
    assert run(table) in [row_of(s, FAST) for s in range(3)]


TIMES = ("until_input", "wait", "service_time", "return_time", "transfer", "prepare", "latency")


def busy_fleet(k: float, workers: int = 1) -> Iterator[t.CandidateTable]:
    """Six requests at fleets that differ, with every time `k` times as long."""
    rng = np.random.default_rng(7)
    for _ in range(6):
        table = fleet(forms=2, deadline=0.4 * k, elapsed=0.01 * k, payload=1e5)
        for s in range(3):
            load = rng.uniform(0.2, 1.2)
            set_server(table, s, utilisation=load, offered_5s=load, workers=workers)
            set_server(table, s, speed=1.0 + s, failure=0.1 * s)
            set_server(table, s, backlog=k * rng.uniform(0, 0.3), report_age=(0.05 + s) * k)
            set_server(table, s, link_backlog=k * rng.uniform(0, 0.1), rate_age=0.5 * k)
            set_server(table, s, demand_1s=workers * rng.uniform(0, 20) / k)
            set_server(table, s, rate=0.0 if s == 0 else rng.uniform(1e5, 1e7) / k)
        for r in range(table.mask.size - 1):
            set_row(table, r, wait=rng.uniform(0, 0.2), return_time=0.005)
            set_row(table, r, transfer=rng.uniform(0, 0.1), prepare=0.004 * (r % 2))
            for name in TIMES:
                getattr(table.rows, name)[r] *= k
        yield table


def learned_at_random() -> Run:
    """The learned policy with random weights in all its heads and no limits."""
    run = Run("edgewise")
    run.params[:] = learned.untrained(POLICIES["priced_greedy"].params)
    rng = np.random.default_rng(3)
    for part in ("server_heads", "row_heads", "shed_head", "out"):
        run.params[learned.LAYOUT[part]] = rng.normal(
            0.0, 0.3, run.params[learned.LAYOUT[part]].size
        )
    run.named.options.network = 1.0
    return run


@pytest.mark.parametrize("k", [0.05, 0.3, 7.0, 50.0])
@pytest.mark.parametrize("make", [functools.partial(Run, "priced_greedy"), learned_at_random])
def test_priced_policies_have_no_units(make: Callable[[], Run], k: float) -> None:
    """With all times multiplied and all rates divided by k, every score is the same."""
    plain, scaled = make(), make()
    for table, other in zip(busy_fleet(1.0), busy_fleet(k), strict=True):
        assert plain(table) == scaled(other)
        np.testing.assert_allclose(other.scores, table.scores, rtol=1e-9, atol=1e-12)


def test_the_price_of_a_worker_is_the_same_among_many() -> None:
    one, many = Run("priced_greedy"), Run("priced_greedy")
    for table, other in zip(busy_fleet(1.0), busy_fleet(1.0, workers=16), strict=True):
        one(table), many(other)
        np.testing.assert_allclose(other.scores, table.scores, rtol=1e-9)


@pytest.mark.parametrize("k", [1.0, 30.0])
def test_priced_greedy_sheds_nothing_on_an_idle_fleet(k: float) -> None:
    """It takes the most accurate service that is in time, however slow the models are."""
    run = Run("priced_greedy")
    for _ in range(20):
        table = fleet(deadline=0.4 * k)
        for r in range(table.mask.size - 1):
            for name in TIMES:
                getattr(table.rows, name)[r] *= k
        assert run(table) == row_of(0, SLOW)


def test_priced_policies_serve_a_burst_that_can_wait(tmp_path: Path) -> None:
    """One server, 60 ms a request, sixteen at once that may take 10 s, and nobody else waiting."""
    (tmp_path / "arrivals").write_text("\n".join(f"{t}" for t in [1.0] * 16 + [21.0] * 16))
    service = sc.ServiceSpec(model="m", accuracy=0.8, latency=(0.06,))
    scenario = sc.Scenario(
        name="burst",
        servers={"a": sc.ServerSpec(services=(service,))},
        workload=sc.WorkloadSpec(
            duration=40.0,
            arrivals=sc.TraceArrivals(file=str(tmp_path / "arrivals")),
            ingress={"a": 1.0},
            demands=(sc.Demand(deadline=10.0),),
            payload=sc.LognormalPayload(median_bytes=1e5, sigma=0.1),
        ),
    )
    for each in ew.simulate(scenario, ["edgewise", "priced_greedy"]).summary().policies:
        assert each.outcomes["served"] >= 32
        assert each.deadline_met == 1.0


# -- Rule and KernelPolicy ------------------------------------------------------------------------


def test_a_rule_refuses_values_that_do_not_match_its_parameters() -> None:
    parameter = Parameter(name="p", default=1.0, low=0.0, high=2.0, unit="s", about="x")
    spec = functools.partial(
        PolicySpec, name="own", kernel=POLICIES["sed"].kernel, parameters=(parameter,), about=""
    )
    assert spec().params == (1.0,)
    assert spec(params=(0.5,)).params == (0.5,)
    with pytest.raises(ValueError, match="own has 1 parameters, got 2 values"):
        spec(params=(0.5, 1.0))


def test_kernel_policy_learns_from_the_features_of_its_own_decision() -> None:
    from edgewise.domain import Candidate, Observation, PayloadForm, Request

    table = fleet()
    request = Request(id="r", ingress="s0", payload_bytes=1, sent_at=0.0, deadline=0.4)
    candidates = [
        Candidate(server=f"s{r // 4}", model=f"m{r // 2}", form=PayloadForm(r % 2))
        for r in range(table.mask.size - 1)
    ]
    observation = Observation(
        request=request,
        at=0.0,
        rows=table.arrays.rows,
        mask=table.mask,
        servers=table.arrays.servers,
        context=table.arrays.context,
        candidates=(*candidates, None),
    )
    policy = Policy("linucb", POLICIES["linucb"])
    decision = policy.decide(observation)
    kept = policy.features(observation, decision.rows[0])
    assert kept.size == linucb.D
    assert kept[1] == table.rows.accuracy[decision.rows[0]]
    before = table.scores.copy()
    for _ in range(50):
        policy.learn(kept, 0.0)
    policy.decide(observation)
    assert (before == table.scores).all()  # the policy has scores of its own
    assert policy.decide(observation).rows[0] != decision.rows[0]
    plain = Policy("sed", POLICIES["sed"])
    assert plain.features(observation, 0).size == 0
    plain.learn(np.zeros(0), 1.0)


def test_the_document_has_the_parameters_of_the_rules() -> None:
    script = Path(__file__).parents[1] / "scripts" / "policy_reference.py"
    assert subprocess.run([sys.executable, str(script), "--check"], check=False).returncode == 0
    text = (script.parents[1] / "docs" / "policies.md").read_text()
    for name in POLICIES:
        assert f"`{name}`" in text
