"""Impairments: one function each, the same in the relay and in the simulator."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest

from edgewise import scenario as sc
from edgewise.compile import jit_no_refcount
from edgewise.errors import BadInput
from edgewise.fleet.request_noise import hashed_uniform
from edgewise.network.impairments import IMPAIRMENTS, PARAMETERS, active, may_break, parameters_of
from edgewise.network.link import Link
from edgewise.network.settings import CHANGEABLE, LinkChange, LinkSettings
from edgewise.sim.impairments import impaired, impaired_at_best
from sim_worlds import AT_ONCE, one_server, run_local, trace_of

SEED = np.uint64(7)
ALL = LinkSettings(jitter=0.01, loss=0.05, stall=0.3, spike=0.5, spike_every=2.0)


@jit_no_refcount
def simulated(parameters: Any, seed: int, request: int, size: float, now: float) -> float:
    return impaired(0.25, parameters, seed, request, 3, size, now)


@jit_no_refcount
def at_best(parameters: Any, seed: int, request: int, size: float) -> float:
    return impaired_at_best(0.25, parameters, seed, request, 3, size, 0.0)


def relayed(settings: LinkSettings, request: int, size: float, now: float) -> float:
    """What the relay adds to a chunk with the simulator's random numbers."""
    total = 0.25
    for each in active(settings):
        noise = IMPAIRMENTS[each.place].noise
        draw = hashed_uniform(SEED, request, 3, noise) if noise else 0.0
        total += each.extra(each.parameters, size, draw, now)
    return total


def test_relay_and_simulator_add_the_same() -> None:
    parameters = np.array(parameters_of(ALL))
    assert len(parameters) == PARAMETERS
    kinds = set()
    for request in range(400):
        size, now = 700.0 * request, 0.013 * request
        expected = relayed(ALL, request, size, now)
        assert simulated(parameters, SEED, request, size, now) == expected
        kinds.add(expected > 0.25 + 0.01)
    assert kinds == {True, False}


def test_the_best_case_leaves_out_what_depends_on_the_time() -> None:
    parameters = np.array(parameters_of(ALL))
    without = np.array(parameters_of(LinkSettings(jitter=0.01, loss=0.05, stall=0.3)))
    for request in range(50):
        best = at_best(parameters, SEED, request, 9000.0)
        assert best == simulated(without, SEED, request, 9000.0, 1.0)


def test_every_setting_of_an_impairment_is_one_of_a_link_and_can_be_changed() -> None:
    for impairment in IMPAIRMENTS:
        for field in impairment.fields:
            assert field in LinkSettings.__struct_fields__
            assert field in CHANGEABLE
            assert field in LinkChange.__struct_fields__
        assert getattr(LinkSettings(), impairment.fields[0]) == 0.0
    assert not active(LinkSettings())


def test_only_a_loss_with_resets_breaks_connections() -> None:
    assert not may_break(parameters_of(ALL))
    assert not may_break(parameters_of(LinkSettings(loss_mode="reset")))
    assert may_break(parameters_of(LinkSettings(loss=0.1, loss_mode="reset")))
    lost = LinkSettings(loss=0.9, loss_mode="reset")
    assert simulated(np.array(parameters_of(lost)), SEED, 1, 1e6, 0.0) == math.inf


def test_a_spike_comes_back_and_keeps_the_order() -> None:
    link = Link(LinkSettings(spike=0.5, spike_every=2.0, spike_length=0.1), origin=100.0)
    at = [100.0, 100.05, 100.15, 101.0, 102.05, 103.0]
    assert [link.depart(10, now).delivery - now for now in at] == pytest.approx(
        [0.5, 0.5, 0.4, 0.0, 0.5, 0.0]  # the third waits for the one before it
    )


def test_a_spike_in_the_simulator_and_by_an_event() -> None:
    access = sc.LinkSettings(spike=0.5, spike_every=2.0, spike_length=0.1)
    assert latencies(access, ()) == pytest.approx([0.5, 0.0, 0.5, 0.0], abs=0.01)
    ends = sc.LinkEvent(at=1.5, link="access:a", set=sc.LinkChange(spike=0.0))
    assert latencies(access, (ends,)) == pytest.approx([0.5, 0.0, 0.0, 0.0], abs=0.01)


def latencies(access: sc.LinkSettings, events: tuple[sc.LinkEvent, ...]) -> list[float]:
    """How long uploads take that begin at 0.02, 1.02, 2.02 and 3.02 s."""
    scenario = msgspec.structs.replace(
        one_server(1.0, 10.0, access=access),
        network=sc.NetworkSpec(access=access, events=events),
    )
    times = np.array([0.02, 1.02, 2.02, 3.02])
    sim = run_local(scenario, AT_ONCE, trace_of(times, [1000] * 4))
    return (sim.world.results["uploaded"] - times).tolist()


def test_a_strength_out_of_range_is_named() -> None:
    with pytest.raises(BadInput, match="spike: expected a number <= 60"):
        Link(LinkSettings(spike=61.0))
