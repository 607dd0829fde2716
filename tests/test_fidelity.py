"""Fits that find what was put in, comparisons that see what differs, profiles that fill in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from edgewise.cli import main
from edgewise.documents import read_document
from edgewise.errors import BadInput, ScenarioError
from edgewise.fidelity import comparison_report, fitting, live_comparison, validation
from edgewise.fidelity import profiling as measuring
from edgewise.fidelity.calibration import calibrate
from edgewise.fidelity.comparison import (
    LATENCY,
    STAGES,
    RecordedRun,
    compare_runs,
    number_of,
    read_run,
)
from edgewise.fidelity.recording import record_episode
from edgewise.scenario import MmppArrivals, PoissonArrivals, Scenario, dump, load, loads
from edgewise.scenario.measured_profile import MeasuredForm, ModelProfile, Prepared, Profile
from edgewise.sim.build import SimOptions
from edgewise.sim.simulate import episode
from edgewise.tasks import task_of
from edgewise.tasks.imagenet import zoo
from edgewise.tasks.imagenet.images import load_images
from edgewise.tasks.services import services_of

RNG = np.random.default_rng


# -- fits ----------------------------------------------------------------------------------------


def test_equal_sharing_by_hand() -> None:
    # 10 bytes/s: alone 0..1 s, then two share until the first is across, then one is alone.
    ends = fitting.shared_link_ends(np.array([0.0, 1.0]), np.array([20.0, 20.0]), 10.0)
    assert ends == pytest.approx([3.0, 4.0])
    # Given in another order, and a link that falls idle in between.
    ends = fitting.shared_link_ends(np.array([9.0, 0.0]), np.array([10.0, 10.0]), 10.0)
    assert ends == pytest.approx([10.0, 1.0])


def test_a_link_is_fitted_through_queues_and_streamed_uploads() -> None:
    rng = RNG(1)
    starts = np.cumsum(rng.exponential(0.05, 300))
    sizes = rng.lognormal(math.log(1e5), 0.5, 300)
    least = starts + rng.exponential(0.05, 300)
    ends = np.maximum(fitting.shared_link_ends(starts, sizes, 2.5e6), least) + 0.012
    ends += rng.exponential(0.0005, 300)
    ends[::20] += 0.5  # something else was going on
    found = fitting.fit_link(fitting.Transfers(starts, sizes, ends, least))
    assert found.rate == pytest.approx(2.5e6, rel=0.03)
    assert found.delay == pytest.approx(0.012, abs=0.001)
    blind = fitting.fit_link(fitting.Transfers(starts, sizes, ends))
    assert blind.error > found.error  # that the upload holds it up is seen


def test_transfers_that_only_share_the_link_are_not_fitted() -> None:
    rng = RNG(2)
    starts = np.cumsum(rng.exponential(0.05, 200))
    sizes = rng.lognormal(math.log(1e5), 0.5, 200)
    ends = fitting.shared_link_ends(starts, sizes, 2.5e6) + 0.01
    judged = rng.random(200) < 0.4
    ends[~judged] += 0.2
    transfers = fitting.Transfers(starts, sizes, ends, None, judged)
    assert fitting.fit_link(transfers).delay == pytest.approx(0.01, abs=1e-4)
    assert fitting.fit_link(fitting.Transfers(starts, sizes, ends)).delay > 0.05
    with pytest.raises(ValueError, match="at least one"):
        fitting.fit_link(fitting.Transfers(starts[:0], sizes[:0], ends[:0]))


def test_conversions_wait_for_what_runs_and_for_each_other() -> None:
    started, finished = np.array([0.0, 5.0]), np.array([1.0, 6.0])
    done = fitting.conversion_ends(np.array([0.5, 0.6, 4.95]), 0.1, 1, started, finished)
    assert done == pytest.approx([1.1, 1.2, 5.05])
    done = fitting.conversion_ends(np.array([0.5, 0.6, 4.95]), 0.1, 2, started, finished)
    assert done == pytest.approx([0.6, 0.7, 5.05])


def test_noise_is_fitted_in_spite_of_slow_spells() -> None:
    rng = RNG(3)
    sigma = math.sqrt(math.log1p(0.2**2))
    seconds = 0.02 * np.exp(sigma * rng.standard_normal(2000) - 0.5 * sigma**2)
    seconds[:60] *= 2.0
    mean, found = fitting.fit_lognormal(seconds)
    assert mean == pytest.approx(0.02, rel=0.03)
    assert found == pytest.approx(sigma, rel=0.1)
    assert fitting.pooled_sigma([seconds, 3.0 * seconds]) == pytest.approx(found, rel=0.02)


def test_arrivals_are_told_apart() -> None:
    rng = RNG(4)
    poisson = np.sort(rng.random(700)) * 20.0
    assert fitting.fit_arrivals(poisson, 20.0) == pytest.approx(35.0)
    even = np.arange(400) / 20.0 + rng.exponential(0.0005, 400)
    assert fitting.fit_arrivals(even, 20.0) is None


def test_bursts_are_fitted() -> None:
    text = dump(load("smoke").with_overrides(duration=400.0))
    world = msgspec.structs.replace(loads(text), seed=5)
    bursts = MmppArrivals(rates=(15.0, 90.0), sojourns=(6.0, 2.0))
    workload = msgspec.structs.replace(world.workload, arrivals=bursts)
    from edgewise.worlds.workload import generate

    trace = generate(msgspec.structs.replace(world, workload=workload), None)
    found = fitting.fit_arrivals(trace.time, 400.0)
    assert isinstance(found, fitting.Bursts)
    assert found.rates == pytest.approx((15.0, 90.0), rel=0.15)
    assert found.sojourns == pytest.approx((6.0, 2.0), rel=0.4)  # some fifty of each were seen


def test_early_reports_do_not_change_the_report_period() -> None:
    rng = RNG(6)
    gaps = np.where(rng.random(200) < 0.3, rng.uniform(0.02, 0.1, 200), 0.1)
    sent = np.cumsum(gaps + rng.exponential(0.0003, 200))
    assert fitting.fit_report_period(sent) == pytest.approx(0.1, rel=0.02)
    assert fitting.fit_report_period(sent[:2]) is None


# -- comparing -----------------------------------------------------------------------------------


def run_of(utility: np.ndarray, latency: float = 0.1) -> RecordedRun:
    count = len(utility)
    times = {stage: np.full(count, latency / 6) for stage in STAGES}
    return RecordedRun(
        sent=np.arange(count) / 20.0,
        demands=np.ones((count, 3)),
        utility=utility,
        served=np.ones(count, bool),
        moved=np.zeros(count, bool),
        ready=np.zeros(count, bool),
        times=times | {LATENCY: np.full(count, latency)},
    )


def two(runs: dict[str, tuple[RecordedRun, RecordedRun]]) -> object:
    return compare_runs(runs, scenario="x", sides=("a", "b"), seeds=(1,), tolerance=0.02)


def test_a_run_agrees_with_itself_and_not_with_a_worse_one() -> None:
    utility = RNG(7).random(400)
    same = run_of(utility)
    found = two({"p": (same, same)})
    assert found.within  # type: ignore[attr-defined]
    (pair,) = found.policies  # type: ignore[attr-defined]
    assert (pair.difference, pair.plus_minus, pair.paired) == (0.0, 0.0, True)
    (pair,) = two({"p": (same, run_of(utility - 0.03))}).policies  # type: ignore[attr-defined]
    assert pair.difference == pytest.approx(-0.03)
    assert not pair.within


def test_a_different_ranking_is_listed_with_its_noise() -> None:
    good, bad = RNG(8).random(400), RNG(9).random(400) - 0.1
    found = two({"p": (run_of(good), run_of(bad)), "q": (run_of(bad), run_of(good))})
    assert found.rankings == (("p", "q"), ("q", "p"))  # type: ignore[attr-defined]
    assert not found.same_ranking  # type: ignore[attr-defined]
    (inversion,) = found.inversions  # type: ignore[attr-defined]
    assert inversion.gaps[0] > 0 > inversion.gaps[1]
    assert inversion.noise > 0.0


def test_the_picture_and_the_page_show_both_sides() -> None:
    runs = {"p<q": (run_of(RNG(1).random(50)), run_of(RNG(1).random(50), 0.2))}
    found = compare_runs(runs, scenario="x", sides=("one", "other"), seeds=(1,), tolerance=0.02)
    drawn = comparison_report.svg(runs, found.sides)
    assert drawn.count("<polyline") == 2 * 6  # no transfer: nothing was moved
    assert "p&lt;q" in drawn
    page = comparison_report.page(found, drawn, "edgewise x")
    assert drawn in page
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_requests_are_matched_by_their_number() -> None:
    assert number_of("s1-r0000012") == number_of("r0000012") == 12
    with pytest.raises(BadInput, match="ends with a number"):
        number_of("x")


def test_both_sides_run_the_same_scenario_and_differences_are_noted() -> None:
    volatile = load("volatile")
    shared, notes = live_comparison.shared_scenario(volatile)
    assert shared.service_noise == volatile.service_noise
    assert shared.failures == volatile.failures
    assert shared.executor == "replay"
    assert not notes
    shared, notes = live_comparison.shared_scenario(load("direct"))
    assert shared.network.emulate
    assert len(notes) == 1


# -- profiles ------------------------------------------------------------------------------------


def profile_of(**batch: float) -> Profile:
    form = MeasuredForm(mean=0.02, p50=0.02, p95=0.03, cpu=0.018, sigma=0.2)
    ready = msgspec.structs.replace(form, mean=0.015, cpu=0.012)
    curve = {1: 0.01, **{int(key[1:]): value for key, value in batch.items()}}
    model = ModelProfile(
        original=form,
        model_ready=ready,
        decode=0.005,
        predict=0.01,
        slowdown={1: 1.0, 2: 1.5},
        batch=curve,
    )
    prepared = Prepared(seconds=0.009, cpu=0.007, sigma=0.1)
    return Profile(prepare=prepared, models={"lite0-96": model})


def test_a_profile_fills_in_what_the_scenario_leaves_open(tmp_path: Path) -> None:
    measuring.write_profile(profile_of(), tmp_path / "p.yaml")
    text = """
name: x
profile: p.yaml
servers:
  a: {workers: 2, speed: 0.5, services: [lite0-96, {model: lite1, latency: [0.5]}]}
  b: {services: [lite0-96]}
workload:
  duration: 1
  arrivals: {kind: constant, rate: 1}
  ingress: {a: 1}
  demands: [{deadline: 1}]
"""
    found = loads(text, folder=tmp_path)
    first, second, third = services_of(found)
    # Two at a time take 30 ms elapsed; slowed to half they are held for 18 / 0.5 = 36 ms.
    assert first.latency == pytest.approx((0.036,))
    assert first.ready_saving == pytest.approx(0.006 / 0.5)
    assert second.latency == (1.0,)  # its own
    assert third.latency == pytest.approx((0.02,))  # at full speed it takes what it took
    assert third.ready_saving == pytest.approx(0.005)
    # Barely slowed, and two at a time: waiting for a core is the longer.
    assert found.servers["a"].services[0].latency == pytest.approx((0.018,))
    assert profile_of().models["lite0-96"].latency(2, 0.9) == pytest.approx((0.027,))
    assert found.service_noise.cv == pytest.approx(math.sqrt(math.expm1(0.04)))
    assert found.prepare.seconds == 0.007
    (tmp_path / "p.yaml").unlink()
    assert loads(dump(found)) == found  # no longer needs the file
    own = loads(text.replace("profile: p.yaml", "service_noise: {cv: 0.3}"), folder=tmp_path)
    assert own.service_noise.cv == 0.3


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read"), ("models: 3", "models: expected a mapping"), ("{", "not YAML")],
)
def test_a_bad_profile_is_named(content: str | None, problem: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "p.yaml").write_text(content)
    text = dump(load("smoke")).replace("profile: null", "profile: p.yaml")
    with pytest.raises(ScenarioError, match=problem) as caught:
        loads(text, folder=tmp_path)
    assert "p.yaml" in str(caught.value)


def test_a_curve_is_as_long_as_batching_pays() -> None:
    flat = profile_of(b2=0.0196, b4=0.039).models["lite0-96"]
    assert len(flat.latency(1)) == 1
    lucky = profile_of(b2=0.0196, b4=0.02).models["lite0-96"]
    assert len(lucky.latency(1)) == 1
    falling = profile_of(b2=0.012, b4=0.02).models["lite0-96"].latency(1)
    assert falling == pytest.approx((0.02, 0.027, 0.036, 0.045))  # 3 between 2 and 4


def test_measuring_counts_its_steps_and_its_file_is_read_again(tmp_path: Path) -> None:
    pytest.importorskip("foolbox")
    if zoo.converted_file("lite0-96") is None:
        pytest.skip("lite0-96 is not prepared")
    said: list[str] = []
    found = measuring.measure_profile(
        task_of(),
        ["lite0-96"],
        load_images("builtin"),
        runs=4,
        concurrency=(1, 2),
        batches=(1, 2),
        step=said.append,
    )
    assert len(said) == measuring.step_count(["lite0-96"], (1, 2), (1, 2))
    each = found.models["lite0-96"]
    assert 0.0 < each.original.p50 <= each.original.p95
    assert set(each.slowdown) == {1, 2}
    measuring.write_profile(found, tmp_path / "p.yaml")
    assert read_document(tmp_path / "p.yaml", Profile) == found


# -- a simulated run, calibrated -----------------------------------------------------------------

TRUTH = """
name: truth
executor: replay
report_period: 0.07
service_noise: {cv: 0.2}
servers:
  a: {workers: 1, speed: 0.5, services: [{model: s, accuracy: 0.6, latency: [0.02]}]}
  b:
    workers: 2
    services:
      - {model: l, accuracy: 0.9, latency: [0.03], ready_saving: 0.004}
network:
  access: {rate_mbps: 40, delay: 0.006}
  link: {rate_mbps: 12, delay: 0.009}
workload:
  duration: 60
  arrivals: {kind: poisson, rate: 30}
  ingress: {a: 3, b: 1}
  demands:
    - {share: 1, deadline: 0.5, accuracy: 0.5}
    - {share: 1, deadline: [0.3, 0.8], accuracy: 0.8}
  payload: {kind: lognormal, median_bytes: 60000, sigma: 0.4}
"""


def wrong(truth: Scenario) -> str:
    """The scenario with figures that are not true, to be corrected by the record."""
    text = TRUTH.replace("latency: [0.02]", "latency: [0.05]")
    text = text.replace("latency: [0.03], ready_saving: 0.004", "latency: [0.01]")
    text = text.replace("report_period: 0.07", "report_period: 0.5")
    text = text.replace("cv: 0.2", "cv: 0.6").replace("rate_mbps: 40", "rate_mbps: 100")
    text = text.replace("rate_mbps: 12, delay: 0.009", "rate_mbps: 50, delay: 0.001")
    text = text.replace("{kind: poisson, rate: 30}", "{kind: constant, rate: 3}")
    text = text.replace("{a: 3, b: 1}", "{a: 1, b: 1}").replace("60000", "9000")
    assert loads(text) != truth
    return text


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two simulated runs of the true scenario, told a wrong one."""
    folder = tmp_path_factory.mktemp("runs")
    truth = loads(TRUTH)
    for seed in (1, 2):
        out = folder / f"run-{seed}"
        one, kept = (
            truth.with_overrides(seed=seed),
            SimOptions(keep_reports=True, report_delay=0.004),
        )
        record_episode(out, episode(one, "earliest_completion", None, kept))
        (out / "scenario.yaml").write_text(wrong(truth))
    return folder


@pytest.mark.study
def test_calibration_recovers_a_simulated_run(recorded: Path) -> None:
    found, said = calibrate(recorded / "run-1")
    small, large = found.servers["a"].services[0], found.servers["b"].services[0]
    assert small.latency is not None
    assert large.latency is not None
    # 5 %: 1,800 requests at a noise of 20 %, a half to a twentieth of them on each.
    assert small.latency[0] == pytest.approx(0.02, rel=0.05)
    assert large.latency[0] == pytest.approx(0.03, rel=0.05)
    assert found.service_noise.cv == pytest.approx(0.2, rel=0.1)
    for name in ("a", "b"):
        _, access = found.access_of(name)
        assert access.rate_mbps == pytest.approx(40, rel=0.03)
        assert access.delay == pytest.approx(0.006, abs=0.001)
    _, uplink = found.link_between("a", "b")
    assert uplink.rate_mbps == pytest.approx(12, rel=0.05)
    assert uplink.delay == pytest.approx(0.009, abs=0.002)
    assert found.workload.arrivals == PoissonArrivals(rate=pytest.approx(30, rel=0.08))
    assert found.ingress_shares() == pytest.approx((0.75, 0.25), abs=0.03)
    first, second = found.workload.demands
    assert (first.accuracy, first.deadline) == (0.5, 0.5)
    assert second.deadline == pytest.approx((0.3, 0.8), rel=0.03)
    payload = msgspec.to_builtins(found.workload.payload)
    assert payload["median_bytes"] == pytest.approx(60000, rel=0.05)
    assert payload["sigma"] == pytest.approx(0.4, rel=0.1)
    assert found.report_period == pytest.approx(0.07, rel=0.02)
    assert said.report_delay == pytest.approx(0.004, rel=0.02)
    assert loads(dump(found)) == found


@pytest.mark.study
def test_it_reproduces_a_second_run_and_the_wrong_scenario_does_not(recorded: Path) -> None:
    found, said = calibrate(recorded / "run-1")
    second = recorded / "run-2"
    comparison = validation.validate(found, said, second, validation.policy_of(second), seeds=3)
    (pair,) = comparison.policies
    assert comparison.within
    assert not pair.paired
    one, other = (side.times[LATENCY].p50_ms for side in pair.sides)
    assert one == pytest.approx(other, rel=0.1)
    lie = loads(wrong(loads(TRUTH)))
    comparison = validation.validate(lie, said, second, validation.policy_of(second), seeds=3)
    (pair,) = comparison.policies
    one, other = (side.times[LATENCY].p50_ms for side in pair.sides)
    assert one != pytest.approx(other, rel=0.1)


@pytest.mark.study
def test_the_command_prints_the_fitted_values(recorded: Path, tmp_path: Path) -> None:
    out, answer = tmp_path / "fitted.yaml", tmp_path / "a.json"
    arguments = ["calibrate", str(recorded / "run-1"), "--out", str(out), "--json", str(answer)]
    arguments += ["--against", str(recorded / "run-2"), "--seeds", "1"]
    shown = CliRunner().invoke(main.app, arguments, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "uplink:a.rate_mbps" in shown.output
    assert "expected utility" in shown.output
    assert load(out).name == "truth-calibrated"
    assert json.loads(answer.read_text())["against"]["sides"] == ["calibrated", "recorded"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"requests\.parquet"):
        calibrate(tmp_path)


@pytest.mark.study
def test_a_run_is_read_as_it_was_written(recorded: Path) -> None:
    one = read_run([recorded / "run-1"])
    both = read_run([recorded / "run-1", recorded / "run-2"])
    assert len(both.sent) > len(one.sent)
    assert (np.diff(both.sent) >= 0.0).all()
    assert both.times["execute"].shape == both.utility.shape


# -- simulator and processes ----------------------------------------------------------------------


@pytest.mark.system
def test_compare_live_on_smoke(tmp_path: Path) -> None:
    arguments = ["compare-live", "smoke", "--duration", "2", "--out", str(tmp_path / "w")]
    arguments += ["--json", str(tmp_path / "a.json")]
    shown = CliRunner().invoke(main.app, arguments, env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    found = json.loads((tmp_path / "a.json").read_text())
    (pair,) = found["policies"]
    assert pair["paired"]
    assert abs(pair["difference"]) < 0.15  # loose: other tests run beside it
    assert (tmp_path / "w" / "page.html").is_file()
    simulated, emulated = pair["sides"]
    assert emulated["times"]["execute"]["count"] > 0
    assert simulated["requests"] == emulated["requests"]
    # Begun again it has everything, and another scenario is not mixed in.
    again = CliRunner().invoke(main.app, arguments, env={"COLUMNS": "200"})
    assert again.exit_code == 0
    assert json.loads((tmp_path / "a.json").read_text()) == found
    mixed = CliRunner().invoke(main.app, [*arguments, "--rate", "5"])
    assert isinstance(mixed.exception, BadInput)
