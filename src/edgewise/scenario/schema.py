"""The types of a scenario file.

The docstring of a field is its documentation: first its ``[unit]``, if any, then its meaning, and
after ``Default:`` the reason for the default. ``scripts/scenario_reference.py`` turns them into the
tables of ``docs/scenario.md``.

Links are named ``uplink:plaza`` (topology *uplink*), ``plaza>depot`` (topology *pair*) and
``access:plaza`` (from the clients to a server).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

from edgewise.domain import DEFAULT_TASK, Name, PolicyName, Share
from edgewise.network.settings import LinkSettings
from edgewise.policy_names import is_code
from edgewise.scenario.network_schema import NetworkSpec
from edgewise.scenario.ranges import Factor, Latency, Seed, Span, Strict, Time
from edgewise.scenario.workload_schema import WorkloadSpec, with_mean_rate


class ServiceSpec(Strict, frozen=True, kw_only=True):
    """A model that a server runs. A bare name is short for ``{model: name}``."""

    model: Name
    """Name of a model that the task knows, or a new name if accuracy and latency are given."""
    accuracy: Share | None = None
    """Share of answers that are right. Default: as measured (`edgewise models`)."""
    latency: Annotated[tuple[Latency, ...], Meta(min_length=1, max_length=1024)] | None = None
    """[s] Time for a batch of 1, 2, … at speed 1, decoding included; a single number is a list of
    one. Default: as measured (`edgewise models`)."""
    input_size: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """[pixels] Side of the square input. Default: that of the model."""
    ready_saving: Annotated[float, Meta(ge=0.0, le=600.0)] | None = None
    """[s] Part of `latency` that a model-ready payload saves, at speed 1. Default: three quarters
    of the measured decoding time; 0 for a new model."""


class ServerSpec(Strict, frozen=True, kw_only=True):
    """An edge server."""

    services: tuple[ServiceSpec, ...]
    """Models that it runs. An empty list makes an ingress that only forwards."""
    workers: Annotated[int, Meta(ge=1, le=4096)] = 1
    """Requests that run at the same time, one thread each. Default: a fleet of a few servers then
    fits on a small machine."""
    speed: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0
    """[times this machine] Values below 1 slow real models down; values above 1 need the simulator
    or the replay executor. Default: this machine as it is."""
    queue_limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    """[requests] Longest queue; further requests are refused. Default: seconds of work, far beyond
    any deadline, so the limit bounds memory and never decides which request is served."""


class Prepare(Strict, frozen=True, kw_only=True):
    """The converter, which makes payloads model-ready before a transfer."""

    enabled: bool = True
    """Whether payloads may be made model-ready. Default: it saves four fifths of the bytes for some
    CPU time, so the policy should have the choice."""
    on: Literal["workers", "own"] = "workers"
    """*workers*: conversions take workers away from the models; *own*: they have a core of their
    own. Default: edge machines are small and have no core to spare."""
    seconds: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.003
    """[s] CPU time to convert one payload at speed 1. Default: as measured for photos."""


class Spell(Strict, frozen=True, kw_only=True):
    """Slow spells: periods in which everything takes longer on a server."""

    rate: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    """[1/s] Rate at which spells begin on each server. Default: no spells."""
    duration: Span = 2.0
    """[s] Mean length, exponential. Default: a background job, or a throttled processor."""
    factor: tuple[Factor, Factor] = (1.3, 2.0)
    """[times] Lowest and highest slowdown, uniform. Default: another job on the same core."""


class ServiceNoise(Strict, frozen=True, kw_only=True):
    """Variation of service times. Real models bring their own noise, so only slow spells apply to
    them."""

    cv: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.15
    """[ratio] Standard deviation over mean of a service time. Default: typical of one thread on a
    busy machine."""
    spell: Spell = Spell()
    """Slow spells. Default: none."""


# -- failures ------------------------------------------------------------------------------------


class DownFailure(Strict, frozen=True, kw_only=True, tag_field="kind", tag="down"):
    """A server crashes and restarts. The launcher kills its process and starts another."""

    at: Time
    """[s] Time from the start of the run."""
    server: Name
    """The server."""
    duration: Span
    """[s] Time until it is back, with an empty queue."""


class SlowFailure(Strict, frozen=True, kw_only=True, tag_field="kind", tag="slow"):
    """A server slows down."""

    at: Time
    """[s] Time from the start of the run."""
    server: Name
    """The server."""
    duration: Span
    """[s] Time until it is as fast as before."""
    factor: Annotated[float, Meta(gt=1.0, le=1000.0)] = 2.0
    """[times] How much longer everything takes. Default: another job shares the core."""


class ErrorsFailure(Strict, frozen=True, kw_only=True, tag_field="kind", tag="errors"):
    """A server's models fail: it answers every request with an error, at once. Its reports show
    nothing of it."""

    at: Time
    """[s] Time from the start of the run."""
    server: Name
    """The server."""
    duration: Span
    """[s] Time until its models work again."""


class WrongFailure(Strict, frozen=True, kw_only=True, tag_field="kind", tag="wrong"):
    """A server's answers are wrong, and worth nothing. Only an evaluator can tell."""

    at: Time
    """[s] Time from the start of the run."""
    server: Name
    """The server."""
    duration: Span
    """[s] Time until its answers are as right as before."""


class MuteFailure(Strict, frozen=True, kw_only=True, tag_field="kind", tag="mute"):
    """All balancers fall silent and resume later; the launcher stops their processes meanwhile.
    Their connections stay open, so nodes notice only by waiting, and then decide by themselves."""

    at: Time
    """[s] Time from the start of the run."""
    duration: Span
    """[s] Time until they resume."""


Failure: TypeAlias = DownFailure | SlowFailure | ErrorsFailure | WrongFailure | MuteFailure


class EjectionSpec(Strict, frozen=True, kw_only=True):
    """When a failing server, or a failing path from an ingress to a server, gets no requests for a
    while (`edgewise.fleet.ejection`). Envoy's defaults are given for comparison."""

    enabled: bool = True
    """Whether anything is ejected. Default: a policy learns of a failure only slowly."""
    failures: Annotated[int, Meta(ge=1, le=1000)] = 3
    """[requests] Failures in a row that eject. Default: an edge path sees a few requests per
    second, a false ejection lasts 2 s, and a failed request is tried elsewhere (Envoy: 5)."""
    failing: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.5
    """Share of failures among about the last ten requests that ejects. Default: half of the
    requests run twice (Envoy: 0.85 of at least 50 in 30 s)."""
    unanswered: Annotated[int, Meta(ge=1, le=1000)] = 3
    """[signs of life] Signs of life, asked of each other by the servers about once a second, that
    are missing in a row and eject a path. Default: as Kubernetes' probes."""
    timeout: Annotated[float, Meta(gt=0.0, le=1e6)] = 20.0
    """[report periods] First time without requests; it doubles with each further ejection and
    varies by a quarter. Default: 2 s with the usual reports, as a failure is mostly short
    (linkerd: 1 s, Envoy: 30 s)."""
    timeout_max: Annotated[float, Meta(gt=0.0, le=1e6)] = 600.0
    """[report periods] Longest such time. Default: a minute (linkerd: 1 min, Envoy: 5 min)."""
    probes: Annotated[int, Meta(ge=1, le=1000)] = 3
    """[requests] Good probes in a row, sent one at a time, that end it; for a path, as many signs
    of life suffice. Default: one may be luck."""
    slow_start: Annotated[float, Meta(ge=0.0, le=1e6)] = 50.0
    """[report periods] Time in which the share of requests that may go there grows from a tenth to
    all. Default: 5 s, within which caches fill and the measurements are new."""
    share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.5
    """Largest share of the servers that may be ejected at a time; one always may. Default: the
    other half would carry twice its load (Envoy: 0.1, and panics at half)."""


class ScoreSpec(Strict, frozen=True, kw_only=True):
    """How much an answer is worth (`edgewise.score`)."""

    lateness: Literal["soft", "hard"] = "soft"
    """*soft*: the value falls linearly from full at the deadline to 0 at twice the deadline;
    *hard*: it is 0 after the deadline. Default: a late answer is of some use, and a policy learns
    more from it."""
    accuracy_weight: Annotated[float, Meta(ge=0.0, le=100.0)] = 1.0
    """Exponent of the accuracy; with 0 only timeliness counts. Default: the value is the expected
    share of right answers."""


class Scenario(Strict, frozen=True, kw_only=True):
    """A whole scenario file.

    >>> import edgewise as ew
    >>> ew.load("smoke").with_overrides(seed=7).seed
    7
    """

    name: Name
    """Name of the scenario in results."""
    about: str = ""
    """A sentence that describes it. Default: optional."""
    task: Name = DEFAULT_TASK
    """What requests ask for (a folder in ``edgewise/tasks``). Default: the only one so far."""
    seed: Seed = 1
    """Seed of everything random but generated link traces. Default: arbitrary."""
    report_period: Annotated[float, Meta(gt=0.0, le=60.0)] = 0.1
    """[s] Interval of a server's periodic reports. Default: shorter than usual deadlines; between
    reports the balancer extrapolates."""
    policy: PolicyName = "edgewise"
    """The policy that decides: a name or a file (docs/policies.md). Default: the learned policy;
    outside its training range it falls back to the best tuned heuristic."""
    shadow: PolicyName | None = None
    """A policy that decides every request as well, for the record only. Default: none."""
    network_state: Literal["measured", "emulator"] = "measured"
    """Source of the bandwidths that the balancer assumes: real transfers, or the settings of the
    relays (needs `network.emulate`). Default: what a real fleet can know."""
    discipline: Literal["edf", "fifo"] = "edf"
    """Order of a server's queue: earliest deadline first, or first come first served. Default:
    in trials it gained more than any larger neural network."""
    prepare: Prepare = Prepare()
    """The converter of payloads. Default: on."""
    servers: Annotated[dict[Name, ServerSpec], Meta(min_length=1)]
    """The fleet, by name. Tables and indices keep this order."""
    service_noise: ServiceNoise = ServiceNoise()
    """Variation of service times. Default: moderate noise."""
    executor: Literal["onnx", "replay"] = "onnx"
    """*onnx*: real models; *replay*: recorded latencies. Default: the real thing."""
    network: NetworkSpec = NetworkSpec()
    """The links. Default: uplinks of 20 Mbit/s."""
    workload: WorkloadSpec
    """The requests."""
    failures: tuple[Failure, ...] = ()
    """Failures: a server is *down* or *slow*, answers *errors* or is *wrong*, or all balancers are
    *mute*. Default: none."""
    ejection: EjectionSpec = EjectionSpec()
    """Servers and paths that fail get no requests for a while. Default: on."""
    balancers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Number of balancers; each decides a part of the requests. Default: one sees everything."""
    profile: str | None = None
    """A file written by `edgewise profile`, relative to this one. It supplies
    ``servers.….services[].latency`` and ``ready_saving``, ``service_noise.cv`` and
    ``prepare.seconds`` where they are not given. It is read once: the loaded scenario has the
    values and no profile. Default: values measured on the authors' machine."""
    score: ScoreSpec = ScoreSpec()
    """How much an answer is worth. Default: soft deadline, accuracy as it is."""

    @property
    def server_names(self) -> tuple[str, ...]:
        return tuple(self.servers)

    def link_between(self, a: str, b: str) -> tuple[str, LinkSettings]:
        """Name and settings of the link that carries transfers from `a` to `b`."""
        self._known(a, b)
        if a == b:
            raise ValueError(f"no link leads from {a} to itself")
        if self.network.topology == "uplink":
            return self._link(f"uplink:{a}", self.network.links.get(a, self.network.link))
        return self._link(f"{a}>{b}", self.network.links.get(f"{a}>{b}", self.network.link))

    def access_of(self, server: str) -> tuple[str, LinkSettings]:
        """Name and settings of the link from the clients to `server`."""
        self._known(server)
        link = self.network.access_links.get(server, self.network.access)
        return self._link(f"access:{server}", link)

    def _link(self, name: str, link: LinkSettings) -> tuple[str, LinkSettings]:
        """The link with its trace's offset in seconds."""
        if link.trace is None or link.trace.offset != "seed":
            return name, link
        trace = link.trace.drawn(self.seed, name)
        return name, msgspec.structs.replace(link, trace=trace)

    def all_links(self) -> dict[str, LinkSettings]:
        """Every link by name: those between servers, then those from clients to servers."""
        names = self.server_names
        pairs = [self.link_between(a, b) for a in names for b in names if a != b]
        return dict([*pairs, *(self.access_of(name) for name in names)])

    def link_names(self) -> tuple[str, ...]:
        """The names of `all_links`, in its order."""
        return tuple(self.all_links())

    def resolve_link(self, name: str) -> str | None:
        """The full name of the link that an event calls `name`; None if there is no such link."""
        known = self.all_links()
        return next((full for full in (name, f"uplink:{name}") if full in known), None)

    def ingress_shares(self) -> tuple[float, ...]:
        """Share of the requests that arrive at each server, in order; they sum to 1."""
        weights = [self.workload.ingress.get(name, 0.0) for name in self.servers]
        total = math.fsum(weights)
        return tuple(weight / total for weight in weights)

    def _known(self, *names: str) -> None:
        for name in names:
            if name not in self.servers:
                raise KeyError(name)

    @property
    def runs_code(self) -> bool:
        """Whether its policy or shadow is Python code."""
        return any(is_code(name) for name in (self.policy, self.shadow) if name is not None)

    def with_overrides(
        self,
        *,
        duration: float | None = None,
        rate: float | None = None,
        policy: str | None = None,
        emulate: bool | None = None,
        images: str | None = None,
        seed: int | None = None,
        backend: Literal["relay", "tc", "tun", "auto"] | None = None,
    ) -> Scenario:
        """A copy with some fields replaced; `checks.check` validates the result.

        `duration` is in s. `rate` in requests/s becomes the mean rate of whatever arrival process
        there is. `images` is relative to the working directory.
        """
        replace = msgspec.structs.replace
        workload, network = self.workload, self.network
        if duration is not None:
            workload = replace(workload, duration=float(duration))
        if rate is not None:
            workload = replace(workload, arrivals=with_mean_rate(workload.arrivals, rate))
        if images is not None:
            workload = replace(workload, images=images)
        if emulate is not None:
            network = replace(network, emulate=emulate)
        if backend is not None:
            network = replace(network, backend=backend)
        return replace(
            self,
            workload=workload,
            network=network,
            policy=self.policy if policy is None else policy,
            seed=self.seed if seed is None else seed,
        )
