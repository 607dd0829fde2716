"""Who serves what: the services of a scenario, with what it leaves open taken from the zoo."""

from __future__ import annotations

from edgewise.domain import Service
from edgewise.errors import ModelError
from edgewise.scenario import Scenario
from edgewise.scenario.schema import ServiceSpec
from edgewise.tasks.imagenet import zoo

READY_SAVING_SHARE = 0.75
"""Of the decoding time, that a model-ready payload saves: the destination still decodes a small
JPEG (`benchmarks/payload_forms.py`: 0.4–0.9 ms instead of about 3)."""


def ready_bytes(input_size: int) -> int:
    """Expected bytes of a photo cropped and resized to `input_size`, JPEG q92 4:4:4.

    A line through the medians of `benchmarks/payload_forms.py`: 9 kB at 128, 24 at 224, 30 at 260.
    """
    return round(0.44 * input_size**2 + 1800)


def services_of(scenario: Scenario) -> tuple[Service, ...]:
    """Every service of the fleet, in the order of its servers.

    Latencies are those of the server: the profile at speed 1 divided by its speed. Raises
    ModelError for a model that is neither described in full nor in the zoo.
    """
    return tuple(
        _service(name, spec, server.speed)
        for name, server in scenario.servers.items()
        for spec in server.services
    )


def _service(server: str, spec: ServiceSpec, speed: float) -> Service:
    accuracy, latency, size = spec.accuracy, spec.latency, spec.input_size
    saving = 0.0 if spec.ready_saving is None else spec.ready_saving
    if accuracy is None or latency is None or spec.model in {r.name for r in zoo.rungs()}:
        rung = zoo.rung(spec.model)
        measured = rung.measured
        accuracy = rung.accuracy if accuracy is None else accuracy
        size = rung.size if size is None else size
        if measured is None:
            raise ModelError(f"{spec.model}: no latency was measured; give `latency`")
        if spec.ready_saving is None:
            saving = READY_SAVING_SHARE * measured.decode_s
        latency = (measured.predict_s + measured.decode_s,) if latency is None else latency
    size = 224 if size is None else size
    return Service(
        server=server,
        model=spec.model,
        accuracy=accuracy,
        latency=tuple(seconds / speed for seconds in latency),
        input_size=size,
        ready_bytes=ready_bytes(size),
        ready_saving=saving / speed,
    )
