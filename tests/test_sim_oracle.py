"""The engine against `edgewise.testing.run_oracle`: the same stamps, event for event."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgewise import scenario as sc
from edgewise.domain import Service
from edgewise.sim import engine, layout
from edgewise.sim.build import SimOptions, simulation
from edgewise.tasks.services import services_of
from edgewise.testing import run_oracle
from edgewise.worlds.workload import Trace, generate

pytestmark = pytest.mark.study

RATES = {"a": 8.0, "b": 12.0, "c": 6.0}


def fleet(topology: str, discipline: str, own: bool) -> sc.Scenario:
    links = {name: sc.LinkSettings(rate_mbps=rate, delay=0.008) for name, rate in RATES.items()}
    links["c"] = sc.LinkSettings(
        rate_mbps=6.0, delay=0.01, outages=(sc.Outage(at=2.0, duration=0.4),)
    )
    event = sc.LinkEvent(at=4.0, link="a", set=sc.LinkChange(rate_mbps=3.0))
    if topology == "pair":
        links = {f"{a}>{b}": link for a, link in links.items() for b in links if a != b}
        event = msgspec.structs.replace(event, link="a>b")
    service = {
        name: sc.ServiceSpec(model=name, accuracy=accuracy, latency=(seconds,), input_size=224)
        for name, accuracy, seconds in (("small", 0.6, 0.02), ("large", 0.8, 0.05))
    }
    both = tuple(service.values())
    return sc.Scenario(
        name="oracle",
        servers={
            "a": sc.ServerSpec(services=both, speed=0.7),
            "b": sc.ServerSpec(services=both, speed=1.3, workers=2),
            "c": sc.ServerSpec(services=both[:1]),
        },
        discipline=discipline,
        prepare=sc.Prepare(seconds=0.004, on="own" if own else "workers"),
        service_noise=sc.ServiceNoise(cv=0.0),
        failures=(sc.SlowFailure(at=3.0, server="b", duration=1.0, factor=2.5),),
        network=sc.NetworkSpec(
            topology=topology,
            access=sc.LinkSettings(rate_mbps=30.0, delay=0.004),
            links=links,
            events=(event,),
        ),
        workload=sc.WorkloadSpec(
            duration=6.0,
            arrivals=sc.MmppArrivals(rates=(20.0, 90.0), sojourns=(1.0, 1.0)),
            ingress={"a": 3.0, "b": 1.0, "c": 1.0},
            demands=(sc.Demand(deadline=(0.06, 0.5)),),
            payload=sc.LognormalPayload(median_bytes=50_000),
        ),
    )


def offered(scenario: sc.Scenario) -> tuple[Service, ...]:
    """Its services, with model-ready payloads that save something."""
    return tuple(
        msgspec.structs.replace(service, ready_saving=0.2 * service.latency[0])
        for service in services_of(scenario)
    )


def chosen(sim: layout.Sim, number: int) -> int:
    """Any admissible row, the same every time."""
    rows = np.flatnonzero(sim.table.mask[:-1])
    return int(rows[(number * 7 + number // 3) % len(rows)])


def play_engine(scenario: sc.Scenario, trace: Trace, options: SimOptions) -> layout.Sim:
    sim = simulation(scenario, trace, options, offered(scenario))
    while (number := engine.advance(sim)) >= 0:
        engine.act(sim, chosen(sim, number), 1.0)
    return sim


@pytest.mark.parametrize(
    ("topology", "discipline", "own", "fifo_links"),
    [
        ("uplink", "edf", False, False),
        ("uplink", "fifo", True, False),
        ("pair", "edf", True, True),
        ("pair", "fifo", False, False),
    ],
)
def test_every_request_has_the_oracles_stamps(
    topology: str, discipline: str, own: bool, fifo_links: bool
) -> None:
    scenario = fleet(topology, discipline, own)
    options = SimOptions(fifo_links=fifo_links, control_delay=0.0013)
    trace = generate(scenario, None)
    sim = play_engine(scenario, trace, options)
    results = sim.world.results
    requests = run_oracle(
        scenario, trace, results["row"].tolist(), services=offered(scenario), options=options
    )
    assert len(requests) > 200
    for name in ("uploaded", "decided", "transferred", "started", "finished"):
        stamps = np.array([getattr(request, name) for request in requests])
        stamps = np.where(np.isfinite(stamps), stamps, np.nan)
        np.testing.assert_allclose(results[name], stamps, atol=1e-9, err_msg=name)
    status = [layout.STATUSES[s] for s in results["status"]]
    assert status == [request.status for request in requests]
    dropped = results["status"] == layout.EXPIRED
    # The case covers both forms, queues and drops.
    assert {0, 1} == set(results["row"] % 2)
    assert 5 < dropped.sum() < 0.5 * len(requests)
    assert (results["started"] > results["transferred"] + 1e-3).mean() > 0.2
    again = results["attempts"] > 0
    assert again.sum() > 5  # given up by the peer, run at the ingress
    np.testing.assert_array_equal(
        again, [each.attempts > 0 and each.server == each.ingress for each in requests]
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"service_noise": sc.ServiceNoise(cv=0.2)}, "noise"),
        ({"failures": (sc.DownFailure(at=1.0, server="a", duration=1.0),)}, "slow ones only"),
        ({"network": sc.NetworkSpec(link=sc.LinkSettings(rate_mbps=None))}, "limited rates only"),
    ],
)
def test_the_oracle_refuses_what_it_does_not_know(change: dict[str, object], problem: str) -> None:
    scenario = fleet("uplink", "edf", False)
    trace = generate(scenario, None)
    with pytest.raises(ValueError, match=problem):
        run_oracle(msgspec.structs.replace(scenario, **change), trace, [0] * len(trace))
