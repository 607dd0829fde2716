"""The engine against queueing theory, and the laws that any queue obeys."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise import scenario as sc
from edgewise.sim import layout
from edgewise.sim.build import SimOptions
from edgewise.sim.events import kind_of
from edgewise.sim.layout import Sim
from sim_worlds import AT_ONCE, erlang_c_wait, exponential, one_server, run_local

pytestmark = pytest.mark.study

SEEDS = 12
RANDOM = SimOptions(control_delay=0.0, noise=exponential(), slots=1 << 12)


def mean_over_seeds(values: list[float], theory: float) -> None:
    """`theory` lies inside the 99.9 % confidence interval of the seeds' means (t, 11 d.f.)."""
    mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(mean - theory) < 4.44 * error, (mean, theory, error)
    # And the interval is narrow enough to say something.
    assert error < 0.04 * theory


def wait(sim: Sim) -> float:
    """Mean, without the first tenth: a queue begins empty."""
    results = sim.world.results[len(sim.world.results) // 10 :]
    return float((results["started"] - results["transferred"]).mean())


@pytest.mark.parametrize("workers", [1, 4])
def test_mmc_waits_as_erlang_says(workers: int) -> None:
    rate = 70.0 * workers
    waits = [
        wait(run_local(one_server(rate, 300.0 / workers, workers=workers, seed=seed), RANDOM))
        for seed in range(SEEDS)
    ]
    mean_over_seeds(waits, erlang_c_wait(rate, 0.01, workers))


def test_md1_waits_half_as_long() -> None:
    waits = [wait(run_local(one_server(70.0, 300.0, seed=seed), AT_ONCE)) for seed in range(SEEDS)]
    mean_over_seeds(waits, 0.7 * 0.01 / (2 * (1 - 0.7)))


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_a_shared_link_is_processor_sharing(sigma: float) -> None:
    """M/G/1-PS: the mean sojourn is that of the mean size over 1 − ρ, whatever the distribution."""
    median = 20_000.0
    mean = median * np.exp(sigma**2 / 2)
    rate = 0.6 * 1e6 / mean
    times = []
    for seed in range(SEEDS):
        scenario = one_server(
            rate,
            15_000 / rate,
            workers=64,
            seconds=(1e-6,),
            access=sc.LinkSettings(rate_mbps=8.0, delay=0.002),
            payload=sc.LognormalPayload(median_bytes=median, sigma=sigma),
            seed=seed,
        )
        sim = run_local(scenario, AT_ONCE)
        first = len(sim.world.results) // 10
        spent = sim.world.results["uploaded"] - sim.world.requests["time"] - 0.002
        times.append(float(spent[first:].mean()))
    mean_over_seeds(times, mean / 1e6 / (1 - 0.6))


@pytest.fixture(scope="module")
def busy() -> Sim:
    scenario = one_server(
        350.0,
        60.0,
        workers=4,
        access=sc.LinkSettings(rate_mbps=80.0),
        payload=sc.LognormalPayload(median_bytes=18_000.0),
        seed=3,
    )
    return run_local(scenario, RANDOM)


def test_no_worker_idles_while_a_request_waits(busy: Sim) -> None:
    results = busy.world.results
    starts, ends = np.sort(results["started"]), np.sort(results["finished"])
    waited = results["started"] > results["transferred"]
    assert waited.mean() > 0.3
    for moment in (results["transferred"][waited], results["started"][waited] - 1e-9):
        running = np.searchsorted(starts, moment, "right") - np.searchsorted(ends, moment, "right")
        assert (running == 4).all()


def test_littles_law(busy: Sim) -> None:
    """∫ number dt, kept by the engine, is the sum of the times that requests spent there."""
    results, world = busy.world.results, busy.world
    upload = results["uploaded"] - world.requests["time"]
    assert world.links["area"][0] == pytest.approx(upload.sum(), rel=1e-9)
    served = results["finished"] - results["started"]
    assert world.servers["busy_area"][0] == pytest.approx(served.sum(), rel=1e-9)


def test_nothing_is_lost_on_the_way(busy: Sim) -> None:
    world = busy.world
    assert world.clock["ended"][0].tolist() == [0, len(world.requests), 0, 0, 0, 0]
    assert (world.results["status"] == 1).all()
    assert world.links["bytes"][0] == pytest.approx(world.requests["payload"].sum(), rel=1e-9)
    # Every slot is free but for those that the outcomes of the last answers still refer to.
    in_order = world.near_codes[1 : 1 + world.clock["near"][0]].tolist()
    in_heap = world.events["code"][: world.clock["events"][0]].tolist()
    outcomes = [kind_of.py_func(code) == layout.E_OUTCOME for code in in_order + in_heap]
    assert world.slots["references"].sum() == sum(outcomes) < 3
