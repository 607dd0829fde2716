"""The services of a scenario, with what it leaves open taken from its task's models."""

from __future__ import annotations

from edgewise.domain import Service
from edgewise.errors import ModelError
from edgewise.scenario import Scenario
from edgewise.scenario.schema import ServiceSpec
from edgewise.tasks import task_of
from edgewise.tasks.task import Task


def services_of(scenario: Scenario) -> tuple[Service, ...]:
    """Every service of the fleet, in the order of its servers.

    Latencies are those of the server: the profile at speed 1 divided by its speed. Raises
    ModelError for a model that the scenario does not describe in full and the task does not know,
    BadInput for an unknown task.
    """
    task = task_of(scenario.task)
    return tuple(
        _service(task, name, spec, server.speed)
        for name, server in scenario.servers.items()
        for spec in server.services
    )


def _service(task: Task, server: str, spec: ServiceSpec, speed: float) -> Service:
    accuracy, latency, size, saving = (
        spec.accuracy,
        spec.latency,
        spec.input_size,
        spec.ready_saving,
    )
    known = spec.model in {card.name for card in task.models()}
    if known or accuracy is None or latency is None:
        card = task.model(spec.model)
        if card.measured is None:
            raise ModelError(f"{spec.model}: no latency was measured; give `latency`")
        accuracy = card.accuracy if accuracy is None else accuracy
        size = card.size if size is None else size
        saving = task.ready_saving(card) if saving is None else saving
        if latency is None:
            latency = (card.measured.predict_s + card.measured.decode_s,)
    size = 224 if size is None else size
    return Service(
        server=server,
        model=spec.model,
        accuracy=accuracy,
        latency=tuple(seconds / speed for seconds in latency),
        input_size=size,
        ready_bytes=task.ready_bytes(size),
        ready_saving=(saving or 0.0) / speed,
        task=task.name,
    )
