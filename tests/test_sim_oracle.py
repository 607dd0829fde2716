"""The engine against `sim_oracle`: the same finish times, event for event."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgewise import scenario as sc
from edgewise.domain import Service
from edgewise.sim import engine, layout
from edgewise.sim.build import SimOptions, simulation
from edgewise.tasks.services import services_of
from edgewise.worlds.workload import Trace, generate
from sim_oracle import Job, Machine, Model, Pipe, play

pytestmark = pytest.mark.study

RATES = {"a": 8.0, "b": 12.0, "c": 6.0}


def fleet(topology: str, discipline: str, own: bool) -> sc.Scenario:
    links = {name: sc.LinkSpec(rate_mbps=rate, delay=0.008) for name, rate in RATES.items()}
    links["c"] = sc.LinkSpec(rate_mbps=6.0, delay=0.01, outages=(sc.Outage(at=2.0, duration=0.4),))
    event = sc.LinkEvent(at=4.0, link="a", set=sc.LinkSet(rate_mbps=3.0))
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
            access=sc.LinkSpec(rate_mbps=30.0, delay=0.004),
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


def play_oracle(
    scenario: sc.Scenario, trace: Trace, sim: layout.Sim, options: SimOptions
) -> list[Job]:
    services = offered(scenario)
    names = scenario.server_names
    jobs = []
    for i in range(len(trace)):
        row = int(sim.world.results["row"][i])
        service = services[row // 2]
        jobs.append(
            Job(
                number=i,
                sent=float(trace.time[i]),
                deadline=float(trace.deadline[i]),
                ingress=int(trace.ingress[i]),
                demanded=float(trace.accuracy[i]),
                payload=float(trace.payload_bytes[i]),
                server=names.index(service.server),
                model=[s.model for s in services if s.server == service.server].index(
                    service.model
                ),
                ready_bytes=float(service.ready_bytes),
                ready=row % 2 == 1,
            )
        )
    uplink = scenario.network.topology == "uplink"

    def pipe(name: str, spec: sc.LinkSpec) -> Pipe:
        steps = [(0.0, spec.rate_mbps / 8e-6)]
        steps += [
            (event.at, event.set.rate_mbps / 8e-6)
            for full, event in sc.link_events(scenario)
            if full == name
        ]
        spans = [(outage.at, outage.at + outage.duration) for outage in spec.outages]
        return Pipe(spec.delay, steps, spans, options.fifo_links)

    made: dict[str, Pipe] = {}
    between = {}
    for x, a in enumerate(names):
        for y, b in enumerate(names):
            if a != b:
                name, spec = scenario.link_between(a, b)
                between[x, y] = made.setdefault(name, pipe(name, spec))
    assert len(made) == (3 if uplink else 6)
    machines = [
        Machine(
            workers=server.workers,
            prepare_seconds=scenario.prepare.seconds / server.speed,
            own=scenario.prepare.on == "own",
            edf=scenario.discipline == "edf",
            slow=[
                (f.at, f.at + f.duration, f.factor) for f in scenario.failures if f.server == name
            ],
            models=[
                Model(s.accuracy, s.latency[0], s.ready_saving)
                for s in services
                if s.server == name
            ],
        )
        for name, server in scenario.servers.items()
    ]
    access = [pipe(*scenario.access_of(name)) for name in names]
    play(jobs, access, between, machines, options.control_delay, scenario.score.grace)
    return jobs


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
    jobs = play_oracle(scenario, trace, sim, options)

    def column(name: str) -> np.ndarray:
        values = np.array([getattr(job, name) for job in jobs])
        return np.where(np.isfinite(values), values, np.nan)

    assert len(jobs) > 200
    for mine, theirs in (
        ("uploaded", "upload"),
        ("decided", "command"),
        ("transferred", "transferred"),
        ("started", "started"),
        ("finished", "finished"),
    ):
        np.testing.assert_allclose(results[mine], column(theirs), atol=1e-9, err_msg=mine)
    status = [layout.STATUSES[s] for s in results["status"]]
    assert status == [job.status for job in jobs]
    dropped = results["status"] == layout.EXPIRED
    # The case is worth something: all forms, queues, drops.
    assert {0, 1} == set(results["row"] % 2)
    assert 5 < dropped.sum() < 0.5 * len(jobs)
    assert (results["started"] > results["transferred"] + 1e-3).mean() > 0.2
    again = results["attempts"] > 0
    assert again.sum() > 5  # given up by the peer, run at the ingress
    np.testing.assert_array_equal(
        again, [job.tries > 0 and job.server == job.ingress for job in jobs]
    )
