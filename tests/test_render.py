"""What the environments show: the simulation's state, as text and as a picture."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edgewise import scenario as sc
from edgewise.errors import MissingExtra
from edgewise.sim import engine
from edgewise.sim.build import simulation
from edgewise.sim.env.render import ansi, frame_of, rgb_array
from edgewise.sim.layout import Sim
from tests.sim_worlds import AT_ONCE, trace_of

TIMES = 0.0, 0.05, 0.3, 0.35
ROWS = 0, 0, 2  # two on the ingress, one sent on to the other server
BLUE, ORANGE, RED = (0, 114, 178), (230, 159, 0), (213, 94, 0)


def pair(failures: tuple[sc.DownFailure, ...] = ()) -> sc.Scenario:
    """Two servers and links of 100 kB/s: 10 kB cross a link in 0.1 s, and run in 0.5 s."""
    link = sc.LinkSettings(rate_mbps=0.8, delay=0.0)
    service = sc.ServiceSpec(model="m", accuracy=0.8, latency=(0.5,))
    return sc.Scenario(
        name="pair",
        seed=7,
        servers={name: sc.ServerSpec(services=(service,)) for name in ("near", "far")},
        service_noise=sc.ServiceNoise(cv=0.0),
        network=sc.NetworkSpec(access=link, link=link),
        workload=sc.WorkloadSpec(
            duration=1.0,
            arrivals=sc.PoissonArrivals(rate=1.0),
            ingress={"near": 1.0},
            demands=(sc.Demand(deadline=2.0),),
            payload=sc.LognormalPayload(median_bytes=1.0, sigma=0.0),
        ),
        failures=failures,
    )


def at_decision(number: int, scenario: sc.Scenario) -> Sim:
    """The simulation at this decision, from 0, after those of `ROWS`."""
    sim = simulation(scenario, trace_of(TIMES, [10_000] * 4, deadline=2.0), AT_ONCE)
    for row in ROWS[:number]:
        assert engine.advance(sim) >= 0
        engine.act(sim, row, 1.0)
    assert engine.advance(sim) == number
    return sim


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(-1).sum())


def test_uploads_share_the_access_link() -> None:
    """After 0.05 s half of the first photo is in, when the second begins."""
    scenario = pair()
    near, far = frame_of(at_decision(1, scenario), scenario).servers
    assert (near.upload.transfers, far.upload.transfers) == (2, 0)
    assert near.upload.bytes_left == pytest.approx(15_000)
    assert "> near    0/1       0  0.000 s  2 (15 kB)" in ansi(at_decision(1, scenario), scenario)


def test_workers_queue_and_a_transfer_under_way() -> None:
    scenario = pair()
    frame = frame_of(at_decision(3, scenario), scenario)
    near, far = frame.servers
    assert (near.busy, near.workers, near.queued) == (1, 1, 1)
    assert near.queued_seconds == pytest.approx(0.5)
    assert (far.busy, far.queued, far.links) == (0, 0, ())
    (link,) = near.links
    assert (link.source, link.transfers) == ("near", 1)
    assert link.bytes_left == pytest.approx(5_000)
    text = ansi(at_decision(3, scenario), scenario)
    assert "pair, seed 7: 0.350 s, decision 3\n" in text
    assert "request at near: 10 kB, 2000 of 2000 ms left, accuracy at least 0\n" in text
    assert f"{link.label}: 1 (5 kB)\n" in text
    assert "0.800  far/m\n" in text


def test_looking_changes_nothing() -> None:
    scenario = pair()
    sim = at_decision(2, scenario)
    before = [array.tobytes() for array in sim.world]
    ansi(sim, scenario)
    rgb_array(sim, scenario)
    assert [array.tobytes() for array in sim.world] == before


def test_the_picture_shows_the_queue_the_deadline_and_the_candidates() -> None:
    pytest.importorskip("PIL")
    scenario = pair()
    idle = rgb_array(at_decision(0, scenario), scenario)
    busy = rgb_array(at_decision(3, scenario), scenario)
    assert idle.dtype == np.uint8
    assert idle.shape == busy.shape
    assert idle.shape[2] == 3
    assert count(idle, ORANGE) == 0
    assert count(busy, ORANGE) == 4 * 10  # one waits
    assert count(busy, RED) > 100  # the deadline
    assert count(busy, BLUE) > 10 * 12  # the busy worker, and bars of candidates
    busy[:] = 0  # the caller may draw on it


def test_a_server_that_is_down() -> None:
    scenario = pair((sc.DownFailure(server="far", at=0.01, duration=0.2),))
    sim = at_decision(1, scenario)
    assert "  far     down " in ansi(sim, scenario)
    plain = rgb_array(at_decision(1, pair()), pair())
    assert count(rgb_array(sim, scenario), RED) > count(plain, RED)


def test_nothing_waits_at_the_end() -> None:
    scenario = pair()
    sim = at_decision(3, scenario)
    engine.act(sim, sim.table.mask.size - 1, 1.0)
    assert engine.advance(sim) == -1
    assert "no request waits: the episode is over\n" in ansi(sim, scenario)
    assert count(rgb_array(sim, scenario), RED) < 60  # the legend's mark alone


def test_no_candidate() -> None:
    scenario = pair()
    sim = at_decision(0, scenario)
    sim.table.mask[:-1] = 0
    assert ansi(sim, scenario).endswith("no candidate: the request can only be shed\n")


def test_a_picture_needs_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    scenario = pair()
    sim = at_decision(0, scenario)
    assert ansi(sim, scenario)
    with pytest.raises(MissingExtra, match=r"live"):
        rgb_array(sim, scenario)
