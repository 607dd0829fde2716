"""Service times measured by `edgewise profile`, and how they complete a scenario.

A scenario names the file as ``profile: FILE``. It is read once, together with the scenario; the
loaded scenario contains its values and no longer needs it. The ``scenario.yaml`` of a run therefore
tells what was used, even after the profile was measured again.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from edgewise.documents import read_document
from edgewise.scenario.ranges import Strict

_Seconds = Annotated[float, Meta(gt=0.0, le=600.0)]
_Sigma = Annotated[float, Meta(ge=0.0, le=5.0)]
_Many = Annotated[int, Meta(ge=1, le=1024)]

PAYS = 0.9
"""Batching pays if an item in a batch takes less than this share of the time alone. On CPU threads
it takes 0.96 to 0.98, so the live executors do not batch."""
FULL = 1.5
"""A slowdown from which on all cores of the machine are busy."""
FLOOR = 0.1
"""Least share of the latency that a model-ready payload still takes, as in `live.node.executor`."""


class MeasuredForm(Strict, frozen=True, kw_only=True):
    """Service times for one form of payload, one at a time; elapsed s, decoding included."""

    mean: _Seconds
    p50: _Seconds
    p95: _Seconds
    cpu: Annotated[float, Meta(ge=0.0)]
    """Mean CPU time, which a `speed` below 1 stretches."""
    sigma: _Sigma
    """Standard deviation of the logarithm."""


class ModelProfile(Strict, frozen=True, kw_only=True):
    """A model on the measured machine, one thread per prediction."""

    original: MeasuredForm
    model_ready: MeasuredForm
    decode: _Seconds
    """Median time from a payload's bytes to the model's input."""
    predict: _Seconds
    """Median time of one prediction."""
    slowdown: dict[_Many, Annotated[float, Meta(ge=1.0)]]
    """Mean service time with N at a time, relative to one alone, by N."""
    batch: dict[_Many, _Seconds]
    """Median time of a call with N inputs, decoding excluded, by N."""

    def latency(
        self, workers: int, speed: float = 1.0, form: MeasuredForm | None = None
    ) -> tuple[float, ...]:
        """Time for a batch of 1, 2, … on a server with `workers` and `speed`, decoding included.

        In s at speed 1. The list ends where batching stops to pay (`PAYS`); sizes between measured
        ones are interpolated. A server slower than the machine takes CPU time / speed
        (`live.node.executor.SlowerMachineExecutor`), and waits for a core during that time; so the
        longer of the two counts.
        """
        form = self.original if form is None else form
        known = sorted(self.slowdown)
        below = [n for n in known if n <= workers]
        slow = self.slowdown[below[-1]] if below else 1.0
        if below and workers > known[-1] > 1 and slow > FULL:
            slow *= workers / known[-1]  # each further worker shares cores that are taken
        one = form.mean * slow
        if speed < 1.0:
            one = max(one * speed, form.cpu, 1e-6)
        sizes = sorted(self.batch)
        if not sizes or sizes[0] != 1:
            return (one,)
        # From the smallest on: one lucky figure among others is noise.
        paying = list(
            itertools.takewhile(lambda n: self.batch[n] < PAYS * n * self.batch[1], sizes[1:])
        )
        curve = [one]
        for count in range(2, max(paying, default=1) + 1):
            right = next(n for n in sizes if n >= count)
            left = max(n for n in sizes if n <= count)
            part = (count - left) / (right - left) if right > left else 0.0
            seconds = self.batch[left] + part * (self.batch[right] - self.batch[left])
            more = seconds - self.batch[1] + (count - 1) * self.decode
            curve.append(one * (1.0 + more / form.mean))
        return tuple(curve)

    def ready_saving(self, workers: int, speed: float = 1.0) -> float:
        """s at speed 1 that a model-ready payload saves on a server with `workers` and `speed`."""
        original = self.latency(workers, speed)[0]
        ready = self.latency(workers, speed, self.model_ready)[0]
        return min((1.0 - FLOOR) * original, max(0.0, original - ready))


class Prepared(Strict, frozen=True, kw_only=True):
    """Conversion of one photo to the model-ready form."""

    seconds: _Seconds
    """Mean elapsed time."""
    cpu: _Seconds
    """Mean CPU time: the scenario's `prepare.seconds`."""
    sigma: _Sigma


class Profile(Strict, frozen=True, kw_only=True):
    """The content of a profile: models measured on one machine."""

    command: str = ""
    machine: str = ""
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    photos: int = 0
    """Number of different photos."""
    runs: int = 0
    """Photos per measured number."""
    prepare: Prepared
    models: dict[str, ModelProfile]

    @property
    def sigma(self) -> float:
        """Mean noise over the models: a scenario has one value for all services."""
        each = [model.original.sigma for model in self.models.values()]
        return math.fsum(each) / len(each) if each else 0.0


def fill_in(raw: dict[str, Any], file: Path) -> None:
    """Complete the undecoded scenario `raw` (short forms spelt out) from the profile in `file`.

    Services without a latency get the measured latency and saving for their server's workers and
    speed; ``service_noise.cv`` and ``prepare.seconds`` are set if absent. Raises ScenarioError.
    """
    known = read_document(file, Profile)
    servers = raw.get("servers")
    for server in servers.values() if isinstance(servers, dict) else ():
        services = server.get("services") if isinstance(server, dict) else None
        for service in services if isinstance(services, list) else ():
            if not isinstance(service, dict) or service.get("latency") is not None:
                continue
            model = known.models.get(str(service.get("model")))
            if model is None:
                continue
            workers = server.get("workers", 1)
            speed = server.get("speed", 1.0)
            if not isinstance(workers, int) or not isinstance(speed, int | float):
                continue  # the schema refuses it
            service["latency"] = list(model.latency(workers, speed))
            if service.get("ready_saving") is None:
                service["ready_saving"] = model.ready_saving(workers, speed)
    for part, key, value in (
        ("service_noise", "cv", math.sqrt(math.expm1(known.sigma**2))),
        ("prepare", "seconds", known.prepare.cpu),
    ):
        given = raw.setdefault(part, {})
        if isinstance(given, dict):
            given.setdefault(key, value)
