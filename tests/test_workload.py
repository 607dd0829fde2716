"""Requests of a run: rates, burstiness, shares, and that one change changes one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise.errors import ScenarioError
from edgewise.scenario import (
    Arrivals,
    ConstantArrivals,
    Demand,
    DiurnalArrivals,
    LognormalPayload,
    MmppArrivals,
    PoissonArrivals,
    Scenario,
    ServerSpec,
    ServiceSpec,
    TraceArrivals,
    WorkloadSpec,
    check,
)
from edgewise.worlds import workload
from edgewise.worlds.arrivals import read_arrivals
from edgewise.worlds.doubts import doubts_of_files
from edgewise.worlds.workload import Trace, generate, mean_rate

SIZES = [10_000, 107_000, 300_000]
BURSTY = MmppArrivals(rates=(5.0, 60.0), sojourns=(4.0, 1.0))


def scenario(
    arrivals: Arrivals, duration: float = 1000.0, seed: int = 7, **changes: Any
) -> Scenario:
    server = ServerSpec(services=(ServiceSpec(model="m", accuracy=0.9, latency=(0.01,)),))
    spec = WorkloadSpec(
        duration=duration,
        arrivals=arrivals,
        ingress={"b": 3.0, "a": 1.0},
        demands=(Demand(share=3.0, deadline=(0.1, 0.4), accuracy=0.5), Demand(deadline=1.0)),
    )
    return check(
        Scenario(
            name="test",
            seed=seed,
            servers={"a": server, "idle": server, "b": server},
            workload=msgspec.structs.replace(spec, **changes),
        )
    )


def same(one: Trace, other: Trace, *but: str) -> None:
    """Equal to the bit, except in the fields `but`, which differ."""
    for field in Trace.__struct_fields__:
        equal = np.array_equal(getattr(one, field), getattr(other, field))
        assert equal == (field not in but), field


def dispersion(times: np.ndarray, duration: float, window: float = 1.0) -> float:
    """Variance over mean of the counts per window; 1 for Poisson."""
    counts = np.histogram(times, np.arange(0.0, duration + window / 2, window))[0]
    return float(counts.var() / counts.mean())


ALL: list[Arrivals] = [
    ConstantArrivals(rate=30.0),
    PoissonArrivals(rate=30.0),
    BURSTY,
    DiurnalArrivals(rate=30.0),
]


@pytest.mark.parametrize("arrivals", ALL, ids=lambda each: each.__struct_config__.tag)
def test_mean_rate_and_order(arrivals: Arrivals) -> None:
    trace = generate(scenario(arrivals), SIZES)
    assert len(trace) / 1000.0 == pytest.approx(mean_rate(arrivals), rel=0.12)
    assert np.all(np.diff(trace.time) >= 0)
    assert trace.time[0] >= 0
    assert trace.time[-1] < 1000.0


@pytest.mark.parametrize("arrivals", ALL, ids=lambda each: each.__struct_config__.tag)
def test_the_rate_can_be_overridden(arrivals: Arrivals) -> None:
    other = scenario(arrivals).with_overrides(rate=12.0)
    assert mean_rate(other.workload.arrivals) == pytest.approx(12.0)
    assert len(generate(other, SIZES)) / 1000.0 == pytest.approx(12.0, rel=0.12)


@pytest.mark.parametrize("arrivals", ALL, ids=lambda each: each.__struct_config__.tag)
def test_seeds(arrivals: Arrivals) -> None:
    same(generate(scenario(arrivals), SIZES), generate(scenario(arrivals), SIZES))
    one, other = (generate(scenario(arrivals, seed=seed), SIZES) for seed in (1, 2))
    assert one.ingress[:50].tolist() != other.ingress[:50].tolist()


@pytest.mark.parametrize("arrivals", ALL, ids=lambda each: each.__struct_config__.tag)
def test_a_longer_run_begins_with_the_shorter_one(arrivals: Arrivals) -> None:
    short = generate(scenario(arrivals, duration=100.0), SIZES)
    long = generate(scenario(arrivals, duration=1000.0), SIZES)
    for field in Trace.__struct_fields__:
        assert np.array_equal(getattr(long, field)[: len(short)], getattr(short, field))


def test_constant_is_constant() -> None:
    trace = generate(scenario(ConstantArrivals(rate=4.0), duration=1.0), SIZES)
    assert trace.time.tolist() == [0.0, 0.25, 0.5, 0.75]


def test_a_higher_rate_is_the_same_arrivals_closer_together() -> None:
    slow = generate(scenario(PoissonArrivals(rate=10.0)), SIZES)
    fast = generate(scenario(PoissonArrivals(rate=20.0)), SIZES)
    count = len(slow)
    assert np.allclose(fast.time[:count] * 2, slow.time)
    assert np.array_equal(fast.ingress[:count], slow.ingress)
    assert np.array_equal(fast.deadline[:count], slow.deadline)


def test_burstiness() -> None:
    """Index of dispersion: 0 constant, 1 Poisson, above for what comes in bursts."""

    def index(arrivals: Arrivals) -> float:
        return dispersion(generate(scenario(arrivals), SIZES).time, 1000.0)

    assert index(ConstantArrivals(rate=30.0)) < 0.05
    assert index(PoissonArrivals(rate=30.0)) == pytest.approx(1.0, abs=0.15)
    assert index(BURSTY) > 5.0
    assert index(DiurnalArrivals(rate=30.0)) > 3.0


def test_mmpp_is_silent_in_a_state_of_rate_0() -> None:
    silent = MmppArrivals(rates=(0.0, 50.0), sojourns=(2.0, 2.0))
    times = generate(scenario(silent), SIZES).time
    counts = np.histogram(times, np.arange(0.0, 1000.5, 0.5))[0]
    assert 0.3 < np.mean(counts == 0) < 0.5
    assert np.all(np.isfinite(times))


def test_mmpp_with_three_states_has_its_mean() -> None:
    three = MmppArrivals(rates=(1.0, 10.0, 100.0), sojourns=(3.0, 2.0, 1.0))
    assert three.mean_rate == pytest.approx(123 / 6)
    assert len(generate(scenario(three, duration=8000.0), SIZES)) / 8000.0 == pytest.approx(
        three.mean_rate, rel=0.1
    )


def test_diurnal_peaks_in_the_first_half_of_its_period() -> None:
    day = DiurnalArrivals(rate=30.0, amplitude=1.0, period=100.0)
    phase = generate(scenario(day), SIZES).time % 100.0
    counts = np.histogram(phase, np.arange(0.0, 101.0, 10.0))[0] / 100.0
    middle = 2 * np.pi * (np.arange(10) + 0.5) / 10
    assert counts == pytest.approx(30.0 * (1 + np.sin(middle)), abs=2.5)


def test_shares_and_ranges() -> None:
    trace = generate(scenario(PoissonArrivals(rate=30.0)), SIZES)
    share = np.bincount(trace.ingress, minlength=3) / len(trace)
    assert share[1] == 0.0, "idle gets nothing"
    assert share == pytest.approx([0.25, 0.0, 0.75], abs=0.02)
    first = trace.accuracy == 0.5
    assert first.mean() == pytest.approx(0.75, abs=0.02)
    assert np.all(trace.deadline[~first] == 1.0)
    drawn = trace.deadline[first]
    assert drawn.min() >= 0.1
    assert drawn.max() <= 0.4
    assert np.median(drawn) == pytest.approx(0.2, rel=0.03), "log-uniform"
    assert np.bincount(trace.image) / len(trace) == pytest.approx([1 / 3] * 3, abs=0.02)
    assert np.array_equal(trace.payload_bytes, np.array(SIZES)[trace.image])


def test_one_change_changes_one_thing() -> None:
    base = scenario(BURSTY, duration=50.0)
    trace = generate(base, SIZES)

    def other(**changes: Any) -> Trace:
        return generate(scenario(BURSTY, duration=50.0, **changes), SIZES)

    same(trace, other(ingress={"idle": 1.0}), "ingress")
    same(trace, other(demands=(Demand(deadline=9.0),)), "deadline", "accuracy")
    same(trace, other(payload=LognormalPayload(median_bytes=5000.0)), "payload_bytes")
    same(trace, generate(base, [1]), "image", "payload_bytes")
    different = generate(scenario(PoissonArrivals(rate=30.0), duration=50.0), SIZES)
    count = min(len(trace), len(different))
    for field in ("ingress", "image", "deadline", "accuracy", "payload_bytes"):
        assert np.array_equal(getattr(trace, field)[:count], getattr(different, field)[:count])


def test_lognormal_payloads() -> None:
    payload = LognormalPayload(median_bytes=107_000.0, sigma=0.5)
    trace = generate(scenario(PoissonArrivals(rate=30.0), payload=payload), None)
    assert np.median(trace.payload_bytes) == pytest.approx(107_000, rel=0.03)
    assert np.log(trace.payload_bytes).std() == pytest.approx(0.5, rel=0.03)
    assert np.all(trace.image == 0)


def test_the_photos_own_sizes_need_photos() -> None:
    with pytest.raises(ScenarioError, match=r"workload.payload: 'images' needs photos"):
        generate(scenario(PoissonArrivals(rate=30.0)), None)


def test_a_run_without_requests_is_empty() -> None:
    trace = generate(scenario(PoissonArrivals(rate=1e-6), duration=1.0), SIZES)
    assert len(trace) == 0


def test_far_too_many_requests() -> None:
    with pytest.raises(ScenarioError, match="expected at most 50000000 requests, got 1e"):
        generate(scenario(PoissonArrivals(rate=1e6), duration=1e6), SIZES)


# -- traces --------------------------------------------------------------------------------------


def written(folder: Path, text: str) -> Path:
    file = folder / "times.csv"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("5\n6.5\n\n# note\n9\n", None, [0.0, 1.5, 4.0]),
        ("9\n5\n6.5\n", None, [0.0, 1.5, 4.0]),
        ("t,size\n1,10\n3,20\n", None, [0.0, 2.0]),
        ("size,t\n10,1\n20,3\n", "t", [0.0, 2.0]),
        (
            "TIMESTAMP,Tokens\n2023-11-16 23:59:59.9800000,7\n2023-11-17 00:00:00.2300000,8\n",
            None,
            [0.0, 0.25],
        ),
        ("\ufeff5\n6.5\n", None, [0.0, 1.5]),
        ("\ufefft\n5\n6.5\n", "t", [0.0, 1.5]),
        (
            "2023-01-01 00:00:00,5\n2023-01-01 00:00:00,750\n2023-01-01 00:00:02\n",
            None,
            [0.0, 0.25, 1.5],
        ),
        ("time\n2023-01-01 00:00:00,5\n2023-01-01 00:00:01,250\n", None, [0.0, 0.75]),
        ("TIMESTAMP\n2023-11-16T18:17:03Z\n2023-11-16T19:17:05+01:00\n", None, [0.0, 2.0]),
    ],
)
def test_times_are_read(
    tmp_path: Path, text: str, column: str | None, expected: list[float]
) -> None:
    arrivals = TraceArrivals(file=str(written(tmp_path, text)), column=column)
    assert read_arrivals(arrivals).times == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("1\n2\nsoon\n", None, "line 3: expected seconds or an ISO 8601 time, got 'soon'"),
        ("1\nnan\n", None, "line 2: expected seconds"),
        ("t,u\n1,2\n3\n", "u", "line 3: expected 2 columns, got 1"),
        ("t,u\n1,2\n", "v", "line 1: expected a column 'v', got t, u"),
        ("1\n2023-11-16 18:17:03\n", None, "line 2: expected seconds or dates throughout"),
        ("nan\n1\n2\n", None, "line 1: expected seconds"),
        ("1e13\n1\n2\n", None, "line 1: expected seconds"),
        ("0.0s\n1\n2\n", None, "line 1: expected seconds or an ISO 8601 time, got '0.0s'"),
        ("0,5\n1,5\n", None, "line 1: expected seconds or an ISO 8601 time, got '0,5'; a CSV"),
        ("t,u\n2023-01-01 00:00:00,5,7\n", "t", "line 2: expected 2 columns, got 3"),
        ("", None, "expected arrival times, got none"),
        ("t\n", None, "expected arrival times, got none"),
    ],
)
def test_times_are_refused(tmp_path: Path, text: str, column: str | None, problem: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ScenarioError) as caught:
        read_arrivals(TraceArrivals(file=str(file), column=column))
    assert str(caught.value).startswith(f"{file}: ")
    assert problem in str(caught.value)


def test_times_that_go_back_are_sorted_with_a_warning(tmp_path: Path) -> None:
    file = written(tmp_path, "t\n0\n2\n\n1.5\n4\n3\n")
    arrivals = TraceArrivals(file=str(file))
    found = read_arrivals(arrivals)
    assert list(found.times) == [0.0, 1.5, 2.0, 3.0, 4.0]
    assert found.backwards == (
        "line 5 is 0.5 s before the line above it; 2 such lines, all times were sorted"
    )
    (doubt,) = doubts_of_files(scenario(arrivals))
    assert doubt == f"{file}: {found.backwards}"
    file.write_text("0\n1\n")
    assert not list(doubts_of_files(scenario(arrivals)))


def test_times_in_another_unit(tmp_path: Path) -> None:
    file = str(written(tmp_path, "1700000000000\n1700000000250\n"))
    assert list(read_arrivals(TraceArrivals(file=file, unit="ms")).times) == [0.0, 0.25]


def test_an_offset_begins_later_in_the_recording(tmp_path: Path) -> None:
    file = str(written(tmp_path, "0\n1\n4\n"))  # repeats every 6 s

    def times(seed: int = 1, **more: Any) -> list[float]:
        made = scenario(TraceArrivals(file=file, **more)).with_overrides(seed=seed)
        return [round(each, 9) for each in generate(made, SIZES).time.tolist() if each < 7.0]

    assert times() == [0.0, 1.0, 4.0, 6.0]
    assert times(offset=0.5) == times(offset=6.5) == [0.5, 3.5, 5.5, 6.5]
    assert times(offset=0.5, loop=False) == [0.5, 3.5]
    assert times(offset=0.5, scale=2.0)[:3] == [0.25, 1.75, 2.75]
    drawn = [times(seed, offset="seed") for seed in (1, 2, 3)]
    assert drawn == [times(seed, offset="seed") for seed in (1, 2, 3)]
    assert len({tuple(each) for each in drawn}) == 3


def test_a_trace_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read: No such file"):
        read_arrivals(TraceArrivals(file=str(tmp_path / "none.csv")))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="expected UTF-8"):
        read_arrivals(TraceArrivals(file=str(tmp_path / "bytes")))
    one = TraceArrivals(file=str(written(tmp_path, "1\n")))
    with pytest.raises(ScenarioError, match="at least two different times"):
        generate(scenario(one), SIZES)


def test_replay_loops_scales_and_keeps_its_mean(tmp_path: Path) -> None:
    file = str(written(tmp_path, "0\n1\n4\n"))  # 2 s apart on average, so it repeats every 6 s

    def times(duration: float, **how: Any) -> list[float]:
        found = generate(scenario(TraceArrivals(file=file, **how), duration=duration), SIZES).time
        return [round(float(each), 9) for each in found]

    assert times(8.0) == [0.0, 1.0, 4.0, 6.0, 7.0]
    assert times(8.0, loop=False) == [0.0, 1.0, 4.0]
    assert times(4.0, scale=2.0) == [0.0, 0.5, 2.0, 3.0, 3.5]
    assert times(4.0, rate=1.0) == [0.0, 0.5, 2.0, 3.0, 3.5]
    assert mean_rate(TraceArrivals(file=file)) == pytest.approx(0.5)
    assert mean_rate(TraceArrivals(file=file, scale=3.0)) == pytest.approx(1.5)
    assert mean_rate(TraceArrivals(file=file, rate=9.0)) == 9.0
    override = scenario(TraceArrivals(file=file, scale=3.0)).with_overrides(rate=30.0)
    assert len(generate(check(override), SIZES)) == pytest.approx(30_000, abs=3)


def test_the_streams_are_those_of_every_published_result() -> None:
    """Whoever changes this on purpose makes old seeds mean something else: say so in CHANGELOG."""
    trace = generate(scenario(PoissonArrivals(rate=30.0), seed=1), SIZES)
    assert workload._STREAMS[:3] == ("arrivals", "states", "ingress")
    assert [round(float(each), 6) for each in trace.time[:3]] == FIRST_TIMES
    assert trace.ingress[:8].tolist() == FIRST_INGRESSES


FIRST_TIMES = [0.091412, 0.092648, 0.112154]
FIRST_INGRESSES = [0, 0, 2, 2, 2, 2, 0, 2]
