"""Measured services (`edgewise profile`), and how they fill what a scenario leaves open.

A scenario names the file as ``profile: FILE``. It is read once, with the scenario: what it fills in
is spelt out then, and the scenario that results no longer needs the file. A run's own
``scenario.yaml`` so says what was used, also when the profile is measured again.
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
"""Time per item of a batch over that of one alone, below which batching pays. On CPU threads it is
0.96 to 0.98, and the live executors run one by one."""
FULL = 1.5
"""Times as long, from which on the cores of the machine are all taken."""
FLOOR = 0.1
"""Of the latency, that a model-ready payload still takes (`live.node.executor` has the same
floor)."""


class MeasuredForm(Strict, frozen=True, kw_only=True):
    """A service fed one form of payload, one at a time; s of elapsed time, decoding included."""

    mean: _Seconds
    p50: _Seconds
    p95: _Seconds
    cpu: Annotated[float, Meta(ge=0.0)]
    """Mean CPU s: what `speed` < 1 stretches."""
    sigma: _Sigma
    """Standard deviation of the logarithm."""


class ModelProfile(Strict, frozen=True, kw_only=True):
    """One model on this machine, one thread a prediction."""

    original: MeasuredForm
    model_ready: MeasuredForm
    decode: _Seconds
    """Median s from a photo's bytes to the model's input."""
    predict: _Seconds
    """Median s of one prediction."""
    slowdown: dict[_Many, Annotated[float, Meta(ge=1.0)]]
    """By how many run at a time: mean service time over that of one alone."""
    batch: dict[_Many, _Seconds]
    """By how many inputs one call has: median s, decoding left out."""

    def latency(
        self, workers: int, speed: float = 1.0, form: MeasuredForm | None = None
    ) -> tuple[float, ...]:
        """s at speed 1 for a batch of 1, 2, … on a server like that, decoding included.

        Only as long as batching pays (`PAYS`); sizes between those measured are interpolated.
        A server slower than this machine is held up by CPU time / speed
        (`live.node.executor.Slowed`),
        in which it hides what it waits for a core: so it takes the longer of the two.
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
        """s at speed 1 that a model-ready payload saves on a server like that."""
        original = self.latency(workers, speed)[0]
        ready = self.latency(workers, speed, self.model_ready)[0]
        return min((1.0 - FLOOR) * original, max(0.0, original - ready))


class Prepared(Strict, frozen=True, kw_only=True):
    """Making one photo model-ready."""

    seconds: _Seconds
    """Mean, elapsed."""
    cpu: _Seconds
    """Mean CPU s: what `prepare.seconds` is."""
    sigma: _Sigma


class Profile(Strict, frozen=True, kw_only=True):
    """The file: services measured on one machine."""

    command: str = ""
    machine: str = ""
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    photos: int = 0
    """How many different ones were measured with."""
    runs: int = 0
    """Photos per figure."""
    prepare: Prepared
    models: dict[str, ModelProfile]

    @property
    def sigma(self) -> float:
        """Noise of all services: a scenario has one figure for all, so the mean over models."""
        each = [model.original.sigma for model in self.models.values()]
        return math.fsum(each) / len(each) if each else 0.0


def fill_in(raw: dict[str, Any], file: Path) -> None:
    """Give the scenario `raw`, its services spelt out, what it leaves open and the profile knows.

    Latencies (at the server's number of workers and its speed) and what model-ready saves, of
    services without a latency of their own; `service_noise.cv`; `prepare.seconds`. Raises
    ScenarioError.
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
                continue  # the schema will say it
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
