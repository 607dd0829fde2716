"""The types of a scenario file.

A field's docstring is its reference: ``[unit]`` first where it has one, then what it means, then
after ``Default:`` why the default is what it is. ``scripts/scenario_reference.py`` makes the table
of ``docs/scenario.md`` of them, so say it here and nowhere else.

A link is called ``uplink:plaza`` (topology *uplink*), ``plaza>depot`` (topology *pair*) or
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
    """A model that a server runs. A bare string is short for ``{model: string}``."""

    model: Name
    """Its name; a rung of the zoo, or a new name if accuracy and latency are given."""
    accuracy: Share | None = None
    """Share of answers that are right. Default: what was measured of that rung of the zoo."""
    latency: Annotated[tuple[Latency, ...], Meta(min_length=1, max_length=1024)] | None = None
    """[s] To run a batch of 1, 2, … at speed 1, decoding included. Default: measured, zoo."""
    input_size: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """[pixels] Side of the square input. Default: the zoo's."""
    ready_saving: Annotated[float, Meta(ge=0.0, le=600.0)] | None = None
    """[s] Of `latency`, that a model-ready payload saves at speed 1. Default: three quarters of
    the decoding time measured of that rung; 0 for a model that is not in the zoo."""


class ServerSpec(Strict, frozen=True, kw_only=True):
    """An edge server."""

    services: tuple[ServiceSpec, ...]
    """What it runs; may be empty: an ingress that only forwards."""
    workers: Annotated[int, Meta(ge=1, le=4096)] = 1
    """Requests it runs at the same time. Default: one model thread, so that a fleet of a few
    servers fits on a small machine."""
    speed: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0
    """[times this machine] Below 1 the executor is slowed down; above 1 only the simulator and
    replay can. Default: this machine as it is."""
    queue_limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 256
    """[requests] Waiting; more are refused. Default: seconds of work for any photo model here,
    far beyond any deadline, so it bounds memory and never decides who is served."""


class Prepare(Strict, frozen=True, kw_only=True):
    """The stage that makes payloads model-ready before a transfer."""

    enabled: bool = True
    """Whether transfers may be model-ready at all. Default: it is a priced choice, a fifth of the
    bytes, so the policy should have it."""
    on: Literal["workers", "own"] = "workers"
    """*workers*: competes with the models for the workers; *own*: has a core to itself.
    Default: edge machines are small and have no core to spare."""
    seconds: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.003
    """[s] CPU to crop, resize and re-encode one photo at speed 1. Default: as measured."""


class Spell(Strict, frozen=True, kw_only=True):
    """Slow spells: for a while a server takes longer for everything."""

    rate: Annotated[float, Meta(ge=0.0, le=1000.0)] = 0.0
    """[1/s] At which spells begin on each server. Default: none unless asked for."""
    duration: Span = 2.0
    """[s] Mean length, exponential. Default: a background job or a thermal throttle."""
    factor: tuple[Factor, Factor] = (1.3, 2.0)
    """[times] Low and high of the slow-down, uniform. Default: a neighbour on the same core."""


class ServiceNoise(Strict, frozen=True, kw_only=True):
    """How service times vary. Real models bring their own noise; slow spells are played with them
    too."""

    cv: Annotated[float, Meta(ge=0.0, le=10.0)] = 0.15
    """[ratio] Standard deviation over mean of a service time. Default: about what one thread on
    a busy machine shows."""
    spell: Spell = Spell()
    """Slow spells. Default: none."""


# -- the rest ------------------------------------------------------------------------------------


class DownFailure(Strict, frozen=True, kw_only=True, tag_field="kind", tag="down"):
    """A server stops: the simulator halts it, the launcher kills and restarts it."""

    at: Time
    """[s] From the start of the run."""
    server: Name
    """Which."""
    duration: Span
    """[s] Until it is back, empty."""


class SlowFailure(Strict, frozen=True, kw_only=True, tag_field="kind", tag="slow"):
    """A server slows down."""

    at: Time
    """[s] From the start of the run."""
    server: Name
    """Which."""
    duration: Span
    """[s] Until it is as before."""
    factor: Annotated[float, Meta(gt=1.0, le=1000.0)] = 2.0
    """[times] Longer everything takes. Default: one neighbour shares the core."""


class MuteFailure(Strict, frozen=True, kw_only=True, tag_field="kind", tag="mute"):
    """The balancers fall silent, all of them, and go on later: the launcher halts their processes.
    Connections stay, so nodes notice by waiting; what they must decide meanwhile they decide
    themselves."""

    at: Time
    """[s] From the start of the run."""
    duration: Span
    """[s] Until they go on."""


Failure: TypeAlias = DownFailure | SlowFailure | MuteFailure


class ScoreSpec(Strict, frozen=True, kw_only=True):
    """What an answer is worth (`edgewise.score`)."""

    lateness: Literal["soft", "hard"] = "soft"
    """*soft*: worth falls from all at the deadline to nothing at twice it; *hard*: nothing
    beyond the deadline. Default: a late answer is of some use, and it teaches a policy more."""
    accuracy_weight: Annotated[float, Meta(ge=0.0, le=100.0)] = 1.0
    """Exponent of the accuracy; 0 counts timeliness alone. Default: the expected share of right
    answers."""


class Scenario(Strict, frozen=True, kw_only=True):
    """A whole scenario file."""

    name: Name
    """Of runs and results."""
    about: str = ""
    """One sentence. Default: optional."""
    task: Name = DEFAULT_TASK
    """What requests ask for; a folder of ``edgewise/tasks``. Default: the only one so far."""
    seed: Seed = 1
    """Of everything random but generated link traces. Default: any."""
    report_period: Annotated[float, Meta(gt=0.0, le=60.0)] = 0.1
    """[s] Between a server's periodic reports. Default: below a usual deadline; between reports
    the balancer reckons on."""
    policy: PolicyName = "edgewise"
    """Who decides: a policy's name, or a file of learned weights (``*.safetensors``). Default: the
    learned policy that is shipped; outside its training range it is the best tuned rule."""
    shadow: PolicyName | None = None
    """Another policy, that decides every request too, for the record only. Default: none."""
    network_state: Literal["measured", "emulator"] = "measured"
    """Where the balancer has its bandwidths from: real transfers, or the relays' own figures
    (needs `network.emulate`). Default: what a real fleet could know."""
    discipline: Literal["edf", "fifo"] = "edf"
    """Order of a server's queue: earliest deadline first, or first come first served. Default:
    worth more in trials than any larger network."""
    prepare: Prepare = Prepare()
    """Model-ready payloads. Default: on."""
    servers: Annotated[dict[Name, ServerSpec], Meta(min_length=1)]
    """The fleet, by name; its order is the order of indices everywhere."""
    service_noise: ServiceNoise = ServiceNoise()
    """Variation of service times. Default: moderate."""
    executor: Literal["onnx", "replay"] = "onnx"
    """Real models, or recorded latencies. Default: the real thing."""
    network: NetworkSpec = NetworkSpec()
    """Links. Default: 20 Mbit/s uplinks."""
    workload: WorkloadSpec
    """Requests."""
    failures: tuple[Failure, ...] = ()
    """Servers that go *down* or *slow*, balancers that fall *mute*. Default: none."""
    balancers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Balancer processes; each decides for a part of the requests. Default: one knows most."""
    profile: str | None = None
    """File of `edgewise profile`, relative to this one: fills in what is not given of
    ``servers.….services[].latency`` and ``ready_saving``, ``service_noise.cv`` and
    ``prepare.seconds``. Read with the scenario, in which it is null from then on.
    Default: what was measured of the zoo on the authors' machine."""
    score: ScoreSpec = ScoreSpec()
    """What an answer is worth. Default: soft deadline, accuracy as it is."""

    @property
    def server_names(self) -> tuple[str, ...]:
        return tuple(self.servers)

    def link_between(self, a: str, b: str) -> tuple[str, LinkSettings]:
        """Name and figures of the link that carries a transfer from `a` to `b`."""
        self._known(a, b)
        if a == b:
            raise ValueError(f"no link leads from {a} to itself")
        if self.network.topology == "uplink":
            return f"uplink:{a}", self.network.links.get(a, self.network.link)
        return f"{a}>{b}", self.network.links.get(f"{a}>{b}", self.network.link)

    def access_of(self, server: str) -> tuple[str, LinkSettings]:
        """Name and figures of the link from the clients to `server`."""
        self._known(server)
        return f"access:{server}", self.network.access_links.get(server, self.network.access)

    def all_links(self) -> dict[str, LinkSettings]:
        """Every link by name: between servers first, then the clients' to each server."""
        names = self.server_names
        pairs = [self.link_between(a, b) for a in names for b in names if a != b]
        return dict([*pairs, *(self.access_of(name) for name in names)])

    def link_names(self) -> tuple[str, ...]:
        """The names of `all_links`, in its order."""
        return tuple(self.all_links())

    def resolve_link(self, name: str) -> str | None:
        """The full name of the link that an event calls `name`; None if there is none."""
        known = self.all_links()
        return next((full for full in (name, f"uplink:{name}") if full in known), None)

    def ingress_shares(self) -> tuple[float, ...]:
        """Of each server in the order of `server_names`; they sum to 1."""
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
        """A copy with some of it replaced. Validate a user's values with `checks.check` after.

        `duration` is in s; `rate` in requests/s sets the mean of any arrival process and keeps
        its shape; `images` is relative to the working directory.
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
