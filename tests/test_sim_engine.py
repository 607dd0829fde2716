"""The engine by hand-computed cases, and what must not change a result."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgewise import scenario as sc
from edgewise.domain import Status
from edgewise.policies import POLICIES, PolicySpec, find
from edgewise.sim import engine, layout, simulate
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.layout import Sim
from edgewise.sim.next_times import new_next_times
from edgewise.sim.play import TooManyOpenRequests, play
from edgewise.worlds import families
from edgewise.worlds.workload import generate
from sim_worlds import AT_ONCE, IDEAL, one_server, run_local, trace_of

pytestmark = pytest.mark.study

KB = 8e-3  # Mbit/s of 1,000 bytes/s


def uploads(
    access: sc.LinkSettings, times: list[float], sizes: list[int], **options: object
) -> list:
    scenario = one_server(1.0, 10.0, access=access, seconds=(1e-4,), workers=8)
    scenario = msgspec.structs.replace(
        scenario, network=sc.NetworkSpec(access=access, events=options.pop("events", ()))
    )
    settings = SimOptions(control_delay=0.0, **options)
    sim = run_local(scenario, settings, trace_of(times, sizes))
    return sim.world.results["uploaded"].tolist()


# -- links ---------------------------------------------------------------------------------------


def test_two_transfers_share_a_link() -> None:
    # Alone 0–0.5 (500 B), then at half speed: 500 B in 1 s. The other then has 500 B left, alone.
    link = sc.LinkSettings(rate_mbps=KB, delay=0.25)
    assert uploads(link, [0.0, 0.5], [1000, 1000]) == pytest.approx([1.75, 2.25], abs=1e-12)


def test_a_short_transfer_overtakes_a_long_one() -> None:
    # At 0.2 the long one has 800 B left. Both at 500 B/s: the short one's 100 B take 0.2 s, the
    # long one has 700 left then.
    link = sc.LinkSettings(rate_mbps=KB)
    assert uploads(link, [0.0, 0.2], [1000, 100]) == pytest.approx([1.1, 0.4], abs=1e-12)


def test_fifo_serves_one_after_the_other() -> None:
    link = sc.LinkSettings(rate_mbps=KB)
    ends = uploads(link, [0.0, 0.2, 5.0], [1000, 100, 300], fifo_links=True)
    assert ends == pytest.approx([1.0, 1.1, 5.3], abs=1e-12)


def test_an_outage_in_mid_transfer_only_waits() -> None:
    link = sc.LinkSettings(rate_mbps=KB, outages=(sc.Outage(at=0.6, duration=2.0),))
    # Shared from 0.5 on: at 0.6 there are 450 and 950 B left, at 2.6 it goes on.
    ends = uploads(link, [0.0, 0.5], [1000, 1000])
    assert ends == pytest.approx([2.6 + 0.9, 2.6 + 0.9 + 0.5], abs=1e-9)


def test_a_change_of_rate_in_mid_transfer() -> None:
    events = (sc.LinkEvent(at=0.5, link="access:a", set=sc.LinkChange(rate_mbps=4 * KB)),)
    ends = uploads(sc.LinkSettings(rate_mbps=KB), [0.0], [2500], events=events)
    assert ends == pytest.approx([1.0], abs=1e-12)


def test_a_stopped_link_goes_on_when_it_is_given_a_rate() -> None:
    events = (
        sc.LinkEvent(at=0.5, link="access:a", set=sc.LinkChange(rate_mbps=0.0)),
        sc.LinkEvent(at=3.0, link="access:a", set=sc.LinkChange(rate_mbps=KB)),
    )
    ends = uploads(sc.LinkSettings(rate_mbps=KB), [0.0], [1000], events=events)
    assert ends == pytest.approx([3.5], abs=1e-12)


def test_an_unlimited_link_takes_its_delay_and_its_outages() -> None:
    link = sc.LinkSettings(delay=0.1, outages=(sc.Outage(at=1.0, duration=1.0),))
    assert uploads(link, [0.0, 1.5], [10**9, 10]) == pytest.approx([0.1, 2.1], abs=1e-12)


def test_a_trace_of_rates_repeats(tmp_path: Path) -> None:
    file = tmp_path / "rates.tsv"
    file.write_text("0\t0.008\n1\t0.016\n")
    link = sc.LinkSettings(trace=sc.FileTrace(path=str(file)))
    # 1,000 B/s in even seconds, 2,000 in odd ones.
    assert uploads(link, [0.0], [2500]) == pytest.approx([1.75], abs=1e-9)
    assert uploads(link, [0.5], [3000]) == pytest.approx([2.5], abs=1e-9)
    # Shared: of the 6,000 B there are 4,000 left at 1.5 and 3,500 at 2; then 2,500 at 3, 500 at 4.
    assert uploads(link, [0.0, 1.5], [6000, 500]) == pytest.approx([4.5, 2.0], abs=1e-9)


def test_loss_stalls_or_resets() -> None:
    many = [float(i) for i in range(400)]
    sizes = [15_000] * 400  # ten packets: 1 − 0.95¹⁰ = 40 % are hit
    link = sc.LinkSettings(loss=0.05)
    late = np.array(uploads(link, many, sizes)) - many
    assert 0.3 < (late > 0.1).mean() < 0.5
    assert set(np.round(late / 0.2).astype(int)) <= {0, 1, 2, 3}
    scenario = one_server(1.0, 10.0, access=sc.LinkSettings(loss=0.05, loss_mode="reset"))
    sim = run_local(scenario, AT_ONCE, trace_of(many, sizes))
    assert 0.3 < (sim.world.results["status"] == layout.FAILED).mean() < 0.5


# -- servers -------------------------------------------------------------------------------------


def test_batches_take_what_waits() -> None:
    scenario = one_server(1.0, 10.0, seconds=(0.010, 0.012, 0.014))
    trace = trace_of([0.0, 0.001, 0.002, 0.003, 0.004], [1] * 5)
    ends = run_local(scenario, AT_ONCE, trace).world.results["finished"]
    assert ends.tolist() == pytest.approx([0.010, 0.024, 0.024, 0.024, 0.034])
    alone = SimOptions(control_delay=0.0, batching=False)
    ends = run_local(scenario, alone, trace).world.results["finished"]
    assert ends.tolist() == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])


def test_a_batch_does_not_make_its_first_late() -> None:
    scenario = one_server(1.0, 10.0, seconds=(0.010, 0.012, 0.014))
    trace = trace_of([0.0, 0.001, 0.002, 0.003], [1] * 4)
    trace.deadline[2] = 0.0205  # due at 0.0225: with one more at 0.022, with two at 0.024
    ends = run_local(scenario, AT_ONCE, trace).world.results["finished"]
    assert ends.tolist() == pytest.approx([0.010, 0.022, 0.022, 0.032])


@pytest.mark.parametrize(("discipline", "order"), [("edf", [0, 2, 1]), ("fifo", [0, 1, 2])])
def test_the_order_of_a_queue(discipline: str, order: list[int]) -> None:
    scenario = msgspec.structs.replace(one_server(1.0, 10.0), discipline=discipline)
    trace = trace_of([0.0, 0.001, 0.002], [1] * 3)
    trace.deadline[1] = 200.0
    started = run_local(scenario, AT_ONCE, trace).world.results["started"]
    assert np.argsort(started).tolist() == order


def test_a_request_that_cannot_score_is_dropped_and_a_full_queue_refuses() -> None:
    scenario = one_server(1.0, 10.0)
    scenario = msgspec.structs.replace(
        scenario, servers={"a": msgspec.structs.replace(scenario.servers["a"], queue_limit=2)}
    )
    trace = trace_of([0.0, 0.001, 0.002, 0.003], [1] * 4)
    trace.deadline[1] = 0.004  # worth something until 0.009; the worker is free at 0.010
    sim = run_local(scenario, AT_ONCE, trace)
    status = [layout.STATUSES[s] for s in sim.world.results["status"]]
    assert status == ["served", "expired", "served", "shed"]
    assert layout.REASONS[sim.world.results["reason"][3]] == "queue_full"


def test_slow_failures_stretch_what_starts_in_them() -> None:
    scenario = msgspec.structs.replace(
        one_server(1.0, 10.0),
        failures=(sc.SlowFailure(at=1.0, server="a", duration=1.0, factor=3.0),),
    )
    sim = run_local(scenario, AT_ONCE, trace_of([0.5, 1.5, 2.5], [1] * 3))
    took = sim.world.results["finished"] - sim.world.results["started"]
    assert took.tolist() == pytest.approx([0.01, 0.03, 0.01])


# -- reports -------------------------------------------------------------------------------------


def report_ages(times: list[float], period: float) -> list[float]:
    """How old the newest report is that each decision sees."""
    scenario = msgspec.structs.replace(one_server(1.0, 10.0), report_period=period)
    sim = simulation(scenario, trace_of(times, [1] * len(times)), AT_ONCE)
    sim.world.next_times[:] = new_next_times(len(sim.world.links), np.zeros(1))
    ages = []
    while engine.advance(sim) >= 0:
        now = sim.world.clock["now"][0]
        ages.append(now - sim.beliefs.servers["report_at"][0, 0])
        engine.act(sim, 0, 1.0)
    return ages


def test_a_jump_is_reported_at_once_and_no_oftener_than_the_gap() -> None:
    # 10 ms each: at the eleventh there is a period's work, at the twelfth more, which is told; the
    # next jump, a period's work later, is told a gap of 0.02 s after that.
    burst = [0.05 + 1e-5 * i for i in range(30)]
    ages = report_ages([*burst, 0.0513, 0.0699, 0.0705, 0.1], 0.1)
    told = burst[10]  # ten and a bit of work wait
    assert ages[10] == pytest.approx(burst[10])
    assert ages[12] == pytest.approx(burst[12] - told, abs=1e-5)
    assert ages[-3] == pytest.approx(0.0699 - told, abs=1e-5)
    assert ages[-2] == pytest.approx(0.0705 - told - 0.02, abs=1e-5)
    assert ages[-1] < 0.1 - 0.07 + 1e-5
    # What drains as it should is no news: the period holds.
    calm = report_ages([0.05, 0.0999, 0.1501], 0.1)
    assert calm == pytest.approx([0.05, 0.0999, 0.0501], abs=1e-9)


# -- a fleet that fails --------------------------------------------------------------------------


def fleet(**changes: object) -> sc.Scenario:
    service = sc.ServiceSpec(model="m", accuracy=0.8, latency=(0.02,))
    scenario = sc.Scenario(
        name="fleet",
        servers={name: sc.ServerSpec(services=(service,)) for name in "abc"},
        network=sc.NetworkSpec(link=sc.LinkSettings(rate_mbps=20.0, delay=0.005)),
        workload=sc.WorkloadSpec(
            duration=8.0,
            arrivals=sc.PoissonArrivals(rate=90.0),
            ingress={"a": 4.0, "b": 1.0, "c": 1.0},
            demands=(sc.Demand(deadline=0.4),),
            payload=sc.LognormalPayload(median_bytes=30_000),
        ),
    )
    return msgspec.structs.replace(scenario, **changes)


def run_fleet(scenario: sc.Scenario, policy: str = "earliest_completion") -> Sim:
    sim = play(simulation(scenario, generate(scenario, None)), POLICIES[policy], 1)
    clock = sim.world.clock[0]
    assert clock["open"] == 0
    assert clock["ended"].sum() == len(sim.world.requests)
    counts = np.bincount(sim.world.results["status"], minlength=6)
    assert counts.tolist() == clock["ended"].tolist()
    assert counts[layout.PENDING] == 0
    return sim


def test_a_server_that_dies_loses_its_own_clients_and_the_others_fail_over() -> None:
    quiet = run_fleet(fleet())
    assert (quiet.world.results["status"] == layout.SERVED).mean() > 0.99
    down = sc.DownFailure(at=3.0, server="b", duration=2.0)
    sim = run_fleet(fleet(failures=(down,)))
    results, sent = sim.world.results, sim.world.requests["time"]
    mine = sim.world.requests["ingress"] == 1
    gone = mine & (sent > 3.0) & (sent < 5.0)
    assert (results["status"][gone] == layout.LOST).all()
    others = ~mine
    assert (results["status"][others] == layout.SERVED).mean() > 0.97
    assert (results["attempts"][others] > 0).sum() > 0
    # Nothing runs on it while it is down, and it is used again afterwards.
    there = results[(results["server"] == 1)]
    assert not ((there["finished"] > 3.0) & (there["finished"] < 5.0)).any()
    assert (there["finished"] > 5.5).any()


def test_second_tries_at_other_servers_are_paid_from_the_budget() -> None:
    servers = {
        name: msgspec.structs.replace(spec, queue_limit=1) for name, spec in fleet().servers.items()
    }
    scenario = fleet(servers=servers)

    def second_tries(tokens: float) -> int:
        sim = simulation(scenario, generate(scenario, None))
        sim.world.servers["retry_tokens"] = tokens
        play(sim, POLICIES["random"], 1)
        results = sim.world.results
        elsewhere = results["server"] != sim.world.requests["ingress"]
        served = results["status"] == layout.SERVED
        return int((served & elsewhere & (results["attempts"] > 0)).sum())

    assert second_tries(30.0) > 10
    assert second_tries(-1e9) == 0


def test_a_server_that_is_down_makes_no_report() -> None:
    down = sc.DownFailure(at=3.0, server="b", duration=2.0)
    scenario = fleet(failures=(down,))
    options = SimOptions(keep_reports=True)
    sim = play(simulation(scenario, generate(scenario, None), options), POLICIES["local"], 1)
    heads = sim.reports.heads[: int(sim.world.clock["free_report"][0])]
    gone = (heads["at"] > 3.0) & (heads["at"] < 5.0)
    assert set(heads["server"][gone]) == {0, 2} == set(heads["server"]) - {1}
    assert heads["at"][heads["server"] == 1].max() > 5.0


def test_a_link_that_stays_out_ends_in_an_outcome_for_everyone() -> None:
    out = sc.LinkSettings(rate_mbps=20.0, outages=(sc.Outage(at=2.0, duration=1e6),))
    scenario = fleet(
        network=sc.NetworkSpec(link=sc.LinkSettings(rate_mbps=20.0), links={"a": out}),
        ejection=sc.EjectionSpec(enabled=False),
    )
    sim = run_fleet(scenario, "round_robin")
    results, requests = sim.world.results, sim.world.requests
    assert (results["status"] != layout.LOST).all()
    # What a's uplink holds is given up in time to run at a, which has time for it or has not.
    stuck = (requests["ingress"] == 0) & (requests["time"] > 2.0) & (results["row"] // 2 != 0)
    again = stuck & (results["attempts"] > 0)
    assert again.sum() > 50
    assert (results["server"][again & (results["status"] == layout.SERVED)] == 0).all()
    assert np.nanmin(results["latency"][again]) > 0.4 * 1.75
    # A dispatch whose client has given up is written off in the belief.
    assert sim.beliefs.servers["outstanding"].max() < 100


def test_what_a_peer_runs_when_it_is_given_up_keeps_its_worker() -> None:
    weak = sc.ServiceSpec(model="weak", accuracy=0.3, latency=(0.01,))
    good = sc.ServiceSpec(model="good", accuracy=0.9, latency=(0.5,))
    scenario = sc.Scenario(
        name="two",
        servers={"a": sc.ServerSpec(services=(weak,)), "b": sc.ServerSpec(services=(good,))},
        service_noise=sc.ServiceNoise(cv=0.0),
        network=sc.NetworkSpec(access=IDEAL, link=IDEAL),
        failures=(sc.SlowFailure(at=0.0, server="b", duration=1.0, factor=8.0),),
        workload=one_server(1.0, 30.0).workload,
    )
    trace = trace_of([0.5, 3.0, 20.0], [1000] * 3)
    trace.accuracy[:2] = 0.8  # which a has not
    trace.deadline[0] = 1.0  # worth something until 2.5 s; b takes 4 s
    sim = play(simulation(scenario, trace, AT_ONCE), POLICIES["earliest_completion"], 1)
    results, clock = sim.world.results, sim.world.clock[0]
    assert [layout.STATUSES[s] for s in results["status"]] == ["expired", "served", "served"]
    # Given up half a second after its deadline; of what b did of it its ingress knows nothing.
    assert results["answered"][0] == pytest.approx(2.0)
    assert np.isnan(results["started"][0])
    assert results["started"][1] == pytest.approx(0.5 + 8 * 0.5)
    assert clock["ended"].sum() == 3
    assert clock["open"] == 0
    free, i = [], int(clock["free"])
    while i >= 0:
        free.append(i)
        i = int(sim.world.slots["next"][i])
    assert len(free) == len(set(free))
    held = set(range(len(sim.world.slots))) - set(free)
    assert set(sim.world.slots["request"][list(held)].tolist()) <= {2}  # its balancer has no word
    assert (sim.world.workers["slot"] < 0).all()


@pytest.mark.parametrize("changes", [{"balancers": 3}, {"network_state": "emulator"}])
def test_several_balancers_and_given_links(changes: dict) -> None:
    sim = run_fleet(fleet(**changes))
    assert (sim.world.results["status"] == layout.SERVED).mean() > 0.95
    balancers = changes.get("balancers", 1)
    assert len(set(sim.world.results["balancer"])) == balancers
    dispatched = sim.beliefs.servers["dispatches"].sum(axis=1)
    assert (dispatched > 0.8 * len(sim.world.results) / balancers).all()
    # At the end all that was dispatched has come in, and every balancer has been told.
    assert (sim.beliefs.servers["outstanding"] <= 5).all()


def test_nodes_decide_themselves_while_the_balancer_is_mute() -> None:
    workload = msgspec.structs.replace(fleet().workload, duration=16.0)
    mute = sc.MuteFailure(at=3.0, duration=8.0)
    sim = run_fleet(fleet(failures=(mute,), workload=workload))
    results, requests = sim.world.results, sim.world.requests
    sent, alone = requests["time"], results["balancer"] > 0
    # Silent from 3 to 11 s, found again 2 s later; the first 6 s everyone waits for it.
    asked = sent + fleet().network.access.delay
    assert (alone == ((asked > 3.0) & (asked < 13.0))).all()
    assert (results["balancer"][alone] == 1 + requests["ingress"][alone]).all()
    waited = results["decided_at"] - asked
    assert waited[alone & (asked < 9.0)] == pytest.approx(0.1)  # a quarter of the deadline
    assert waited[alone & (asked > 9.0)] == pytest.approx(0.0)
    assert waited[~alone] == pytest.approx(0.0)
    served = results["status"] == layout.SERVED
    assert served[alone & (asked > 9.0)].mean() > 0.98
    # Afterwards the balancer goes on where it was.
    assert served[sent > 13.0].mean() > 0.98
    assert (sim.beliefs.servers["outstanding"][0] <= 5).all()


def test_a_model_ready_payload_pays_where_links_are_thin() -> None:
    thin = fleet(network=sc.NetworkSpec(link=sc.LinkSettings(rate_mbps=4.0, delay=0.005)))
    large = sc.LognormalPayload(median_bytes=110_000)
    workload = msgspec.structs.replace(thin.workload, payload=large)
    sim = run_fleet(msgspec.structs.replace(thin, workload=workload))
    moved = sim.world.results["server"] != sim.world.requests["ingress"]
    moved &= sim.world.results["status"] == layout.SERVED
    assert (sim.world.results["form"][moved] == 1).mean() > 0.5


# -- what must not change a result -----------------------------------------------------------------


def fields_equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.tobytes() == other.tobytes()


def test_the_same_bits_on_any_number_of_threads() -> None:
    policies = {name: POLICIES[name] for name in ("earliest_completion", "random")}
    one = simulate.episodes(fleet(), policies, range(1, 4), threads=1)
    four = simulate.episodes(fleet(), policies, range(1, 4), threads=4)
    for policy in policies:
        for a, b in zip(one[policy], four[policy], strict=True):
            assert fields_equal(a.sim.world.results, b.sim.world.results)
        assert not fields_equal(one[policy][0].sim.world.results, one[policy][1].sim.world.results)


def test_two_policies_meet_the_same_world() -> None:
    one = run_fleet(fleet(), "round_robin").world
    other = run_fleet(fleet(), "random").world
    np.testing.assert_array_equal(one.results["uploaded"], other.results["uploaded"])
    same = (one.results["service"] == other.results["service"]) & (
        one.results["form"] == other.results["form"]
    )
    same &= (one.results["status"] == layout.SERVED) & (other.results["status"] == layout.SERVED)
    assert 50 < same.sum() < len(same)
    took = [w.results["finished"] - w.results["started"] for w in (one, other)]
    np.testing.assert_allclose(took[0][same], took[1][same], rtol=1e-9)
    assert np.std(took[0][same]) > 0.05 * 0.02  # and it varies


def test_a_branch_goes_on_as_the_original_would() -> None:
    scenario = fleet()
    rule = POLICIES["earliest_completion"]
    kernel = engine.compiled(rule.kernel)
    params = rule.new_params()
    memory, rng = rule.new_memory(len(scenario.servers))[None], np.zeros((1, 1), np.uint64)

    def go_on(sim: Sim, decisions: int = -1) -> Sim:
        engine.run(sim, kernel, params, memory, rng.copy(), decisions)
        return sim

    whole = go_on(simulation(scenario, generate(scenario, None)))
    start = go_on(simulation(scenario, generate(scenario, None)), 300)
    assert engine.advance(start) == 300
    twin, odd = engine.branch(start), engine.branch(start)
    usual = int(whole.world.results["row"][300])
    engine.act(twin, usual, 1.0)
    engine.act(odd, len(start.table.mask) - 1, 1.0)  # shed
    assert fields_equal(go_on(twin).world.results, whole.world.results)
    go_on(odd)
    assert odd.world.results["status"][300] == layout.SHED
    uploaded = [np.delete(sim.world.results["uploaded"], 300) for sim in (odd, whole)]
    np.testing.assert_array_equal(*uploaded)
    assert not fields_equal(odd.world.results[301:], whole.world.results[301:])
    # The same where all arrays of the copy lie in one piece of memory, one after the other.
    space = np.zeros(engine.bytes_of(start), np.uint8)
    packed = engine.branch(start, space)
    assert np.shares_memory(packed.world.slots, space)
    assert np.shares_memory(packed.belief.servers, space)
    engine.act(packed, usual, 1.0)
    assert fields_equal(go_on(packed).world.results, whole.world.results)
    # Back to where it branched off, in place.
    engine.BranchCopier(odd, start)()
    engine.act(odd, usual, 1.0)
    assert fields_equal(go_on(odd).world.results, whole.world.results)
    assert start.world.clock["decisions"][0] == 300


def test_too_many_open_requests_are_said_and_made_room_for() -> None:
    scenario = one_server(200.0, 5.0, seconds=(0.02,))
    with pytest.raises(TooManyOpenRequests, match="over 64 requests"):
        run_local(scenario, SimOptions(slots=64))
    over = simulate.episode(scenario, "local", None, SimOptions(slots=64))
    assert over.sim.world.clock["ended"][0, layout.SERVED] == len(over.trace)


# -- results ---------------------------------------------------------------------------------------


def test_outcomes_in_the_words_of_the_domain() -> None:
    over = simulate.episode(fleet(balancers=2), "earliest_completion", None)
    requests, outcomes = list(over.requests()), list(over.outcomes())
    summary = simulate.summary_of("earliest_completion", [over])
    assert summary.requests == len(requests) == len(outcomes)
    assert summary.outcomes["served"] == sum(o.status is Status.SERVED for o in outcomes)
    expected = over.sim.world.results["utility"].mean()
    assert summary.utility.expected == pytest.approx(expected)
    assert summary.utility.expected == pytest.approx(
        over.sim.world.clock["utility"][0] / len(requests)
    )
    assert abs(summary.utility.realised - summary.utility.expected) < 0.05
    for request, outcome in zip(requests, outcomes, strict=True):
        if outcome.status is Status.SERVED:
            stages = outcome.stamps.stages()
            assert sum(s or 0.0 for s in stages.values()) == pytest.approx(outcome.latency)
            assert outcome.stamps.sent == request.sent_at


def test_a_policy_that_learns_is_told_every_score() -> None:
    over = simulate.episode(fleet(), "linucb", None)
    assert over.sim.world.clock["ended"].sum() == len(over.trace)
    again = simulate.episode(fleet(), "linucb", None)
    assert fields_equal(over.sim.world.results, again.sim.world.results)


def test_a_policy_that_learns_survives_a_server_that_stops() -> None:
    """What waits to be learned from has a list of its own: it may still stand in a queue that the
    failure empties."""
    over = simulate.episode(families.scenario("server_failure", 2_000_001), "linucb", None)
    assert over.sim.world.clock["ended"].sum() == len(over.trace)


def test_a_policy_nobody_knows_is_named() -> None:
    with pytest.raises(Exception, match="unknown policy 'nobody'"):
        find("nobody")
    assert IDEAL.rate_mbps is None


# -- what a rule reads ---------------------------------------------------------------------------


def rows_chosen(rule: PolicySpec, world: int) -> list[int]:
    """What it decides where servers' columns that are not filled are NaN."""
    scenario = families.scenario("combined", world).with_overrides(duration=2.0)
    sim = simulation(scenario, generate(scenario, None))
    sim.table.arrays.servers[:] = np.nan
    return play(sim, rule, 1).world.results["row"].tolist()


@pytest.mark.parametrize(
    "name", [name for name, rule in POLICIES.items() if not rule.reads_servers]
)
def test_a_rule_that_reads_no_column_of_servers_decides_alike_without_them(name: str) -> None:
    rule = POLICIES[name]
    full = msgspec.structs.replace(rule, reads_servers=True)
    assert rows_chosen(rule, 3) == rows_chosen(full, 3)


def test_one_that_reads_them_does_not() -> None:
    blind = msgspec.structs.replace(POLICIES["sed"], reads_servers=False)
    assert rows_chosen(blind, 3) != rows_chosen(POLICIES["sed"], 3)
