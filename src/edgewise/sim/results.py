"""Read the results of a finished simulation: requests, outcomes and utilisation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edgewise.domain import (
    Candidate,
    Outcome,
    PayloadForm,
    Request,
    Service,
    Stamps,
    Status,
    request_id,
)
from edgewise.fleet.request_noise import FOR_CORRECTNESS, hashed_uniform, replayed_class
from edgewise.scenario import Scenario
from edgewise.sim.layout import REASONS, SERVED, STATUSES, Sim
from edgewise.tasks import task_of
from edgewise.worlds.workload import Trace

STAMPS = ("uploaded", "decided", "transferred", "started", "finished", "answered", "received")


def requests(scenario: Scenario, trace: Trace, run: str = "") -> Iterator[Request]:
    """The trace's requests; time 0 is the start of the run."""
    names = scenario.server_names
    for i in range(len(trace)):
        yield Request(
            id=request_id(i, run),
            ingress=names[int(trace.ingress[i])],
            payload_bytes=int(trace.payload_bytes[i]),
            sent_at=float(trace.time[i]),
            deadline=float(trace.deadline[i]),
            accuracy=float(trace.accuracy[i]),
            task=scenario.task,
        )


def outcomes(
    sim: Sim, services: Sequence[Service], labels: Sequence[int], run: str = ""
) -> Iterator[Outcome]:
    """The outcome of every request, in order. Raises ValueError if one has not ended.

    There are no photos, so whether an answer is correct is drawn with the accuracy of the service
    that gave it. All services share one draw per request: where a less accurate model is correct, a
    more accurate one is too. `labels` are the true classes, one per request.
    """
    seed = sim.world.settings["seed"][0]
    for i, result in enumerate(sim.world.results):
        status = STATUSES[result["status"]]
        if status == "pending":
            raise ValueError(f"request {i} has not ended")
        stamps = Stamps(
            sent=float(sim.world.requests["time"][i]),
            **{name: _or_none(result[name]) for name in STAMPS},
        )
        served = result["status"] == SERVED
        service = services[result["service"]] if served else None
        accuracy = predicted = None
        if service is not None:
            accuracy = service.accuracy_of(PayloadForm(int(result["form"])))
            is_correct = hashed_uniform(seed, i, 0, FOR_CORRECTNESS) < accuracy
            predicted = replayed_class(labels[i], is_correct, task_of(service.task).classes)
        yield Outcome(
            request=request_id(i, run),
            status=Status(status),
            latency=float(result["latency"]) if served else None,
            server=service.server if service else None,
            model=service.model if service else None,
            form=PayloadForm(int(result["form"])) if service else None,
            predicted=predicted,
            label=labels[i],
            accuracy=accuracy,
            reason=REASONS[result["reason"]],
            stamps=stamps,
        )


def candidates(services: Sequence[Service]) -> tuple[Candidate | None, ...]:
    """The candidate of each row of the candidate table; None = shed."""
    rows: list[Candidate | None] = [
        Candidate(service.server, service.model, form)
        for service in services
        for form in (PayloadForm.ORIGINAL, PayloadForm.MODEL_READY)
    ]
    return (*rows, None)


def utilisation(sim: Sim, scenario: Scenario, seconds: float) -> dict[str, float]:
    """Mean share of each server's workers that was busy over `seconds` s."""
    servers = sim.world.servers
    busy: NDArray[np.float64] = servers["busy_area"] / (servers["workers"] * max(seconds, 1e-9))
    return {
        name: float(min(1.0, share))
        for name, share in zip(scenario.server_names, busy, strict=True)
    }


def _or_none(stamp: float) -> float | None:
    return None if math.isnan(stamp) or math.isinf(stamp) else float(stamp)
