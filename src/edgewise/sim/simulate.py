"""Play policies on the seeds of a scenario and summarise them, for ``edgewise simulate``."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.cores import usable_cores
from edgewise.domain import Outcome, Report, Request, Service, run_name
from edgewise.errors import BadInput
from edgewise.fleet.table import CandidateTable
from edgewise.policies import find
from edgewise.policies.base import PolicySpec
from edgewise.policy_names import label as label_of
from edgewise.scenario import ImagesPayload, Scenario
from edgewise.score import ScoreShape
from edgewise.sim import kept_reports, results
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.layout import Sim
from edgewise.sim.play import Floats, TooManyOpenRequests, play, play_until
from edgewise.summary import PolicySummary, summarise
from edgewise.tasks import task_of
from edgewise.tasks.services import services_of
from edgewise.worlds.workload import Trace, generate

SLOTS_MAX = 1 << 20
"""Requests open at a time. A simulation that needs more is given up: its fleet or one of its links
carries a fraction of the load."""


class Photos(Struct, frozen=True):
    """Sizes and labels of the photos that a trace sends."""

    sizes: tuple[int, ...]
    labels: tuple[int, ...]

    @classmethod
    def of(cls, scenario: Scenario) -> Photos | None:
        """The scenario's photos; None if it draws payload sizes. Raises ImagesError."""
        if not isinstance(scenario.workload.payload, ImagesPayload):
            return None
        images = task_of(scenario.task).samples(scenario.workload.images)
        return cls(tuple(image.size() for image in images), tuple(image.label for image in images))


class Episode(Struct, frozen=True, kw_only=True):
    """A finished run of one policy on one seed."""

    policy: str
    scenario: Scenario
    trace: Trace
    services: tuple[Service, ...]
    sim: Sim
    labels: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """s from the start to the last answer, at least the workload's duration."""
        received = self.sim.world.results["received"]
        last = float(np.nanmax(received)) if np.isfinite(received).any() else 0.0
        return max(last, self.scenario.workload.duration)

    def requests(self) -> Iterator[Request]:
        return results.requests(self.scenario, self.trace, run_name(self.scenario.seed))

    def reports(self) -> Iterator[tuple[Report, float]]:
        """Each report with the time at which the balancer received it; needs
        `SimOptions.keep_reports`."""
        return kept_reports.reports(self.sim, self.scenario, self.services)

    def outcomes(self) -> Iterator[Outcome]:
        return results.outcomes(self.sim, self.services, self.labels, run_name(self.scenario.seed))


def episode(
    scenario: Scenario,
    policy: str,
    photos: Photos | None,
    options: SimOptions | None = None,
    spec: PolicySpec | None = None,
) -> Episode:
    """Play a policy on the scenario's own seed: `spec`, or else the policy named `policy`.

    The policy's random numbers depend only on the seed and its label. Raises TooManyOpenRequests
    if over `SLOTS_MAX` requests were open at a time.
    """
    options = options or SimOptions()
    services = services_of(scenario)
    trace = generate(scenario, photos.sizes if photos else None)
    if photos:
        labels = tuple(photos.labels[int(i)] for i in trace.image)
    else:
        drawn = np.random.default_rng([scenario.seed, 5]).integers(
            0, task_of(scenario.task).classes, len(trace)
        )
        labels = tuple(drawn.tolist())
    spec = spec or find(policy)
    while True:
        sim = simulation(scenario, trace, options, services)
        try:
            play(sim, spec, _policy_seed(scenario, policy))
        except TooManyOpenRequests:
            if options.slots >= min(SLOTS_MAX, len(trace)):
                raise
            options = msgspec.structs.replace(options, slots=options.slots * 8)
        else:
            return Episode(
                policy=policy,
                scenario=scenario,
                trace=trace,
                services=services,
                sim=sim,
                labels=labels,
            )


def _policy_seed(scenario: Scenario, policy: str) -> int:
    return scenario.seed * 2**32 + zlib.crc32(label_of(policy).encode())


class ObservedDecision(Struct, frozen=True, kw_only=True):
    """A decision of a simulated run, with the table that its policy saw."""

    table: CandidateTable
    memory: Floats
    """The policy's memory after the decision."""
    row: int
    """The chosen row."""
    services: tuple[Service, ...]


def decision_on(
    scenario: Scenario, policy: str, number: int, label: str = ""
) -> ObservedDecision | None:
    """Play an episode again up to the first decision on request `number` of its trace; None if it
    ended undecided. `label` is the policy's in that episode, if not its name.

    Raises BadInput if the trace has no such request or the policy learns, and what `episode`
    raises.
    """
    photos = Photos.of(scenario)
    services = services_of(scenario)
    trace = generate(scenario, photos.sizes if photos else None)
    if not 0 <= number < len(trace):
        raise BadInput(f"{scenario.name}: expected a request below {len(trace)}, got {number}")
    sim = simulation(scenario, trace, SimOptions(slots=SLOTS_MAX), services)
    spec = find(policy)
    if spec.features > 0:
        raise BadInput(f"{policy} learns as it goes, so its decisions cannot be played again")
    decided = play_until(sim, spec, _policy_seed(scenario, label or policy), number)
    if decided is None:
        return None
    memory, row = decided
    return ObservedDecision(table=sim.table, memory=memory, row=row, services=services)


def episodes(
    scenario: Scenario,
    policies: Mapping[str, PolicySpec],
    seeds: Sequence[int],
    done: Callable[[Episode], None] = lambda episode: None,
    threads: int | None = None,
    options: SimOptions | None = None,
) -> dict[str, list[Episode]]:
    """Play every policy on every seed; returns the episodes by policy label. The number of threads
    does not change the results.

    `done` is called with each episode as it ends, from any thread.
    """
    photos = Photos.of(scenario)
    tasks = [(policy, scenario.with_overrides(seed=seed)) for policy in policies for seed in seeds]

    def one(task: tuple[str, Scenario]) -> Episode:
        policy, world = task
        over = episode(world, policy, photos, options, policies[policy])
        done(over)
        return over

    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        ended = list(pool.map(one, tasks))
    return {policy: [each for each in ended if each.policy == policy] for policy in policies}


def summary_of(policy: str, ended: Sequence[Episode]) -> PolicySummary:
    """The summary of a policy's episodes, pooled."""
    scenario = ended[0].scenario
    seconds = sum(each.seconds for each in ended)
    busy: dict[str, float] = {}
    for each in ended:
        for name, share in results.utilisation(each.sim, scenario, each.seconds).items():
            busy[name] = busy.get(name, 0.0) + share * each.seconds / seconds
    return summarise(
        policy,
        [request for each in ended for request in each.requests()],
        [outcome for each in ended for outcome in each.outcomes()],
        ScoreShape.of(scenario.score),
        servers=scenario.server_names,
        utilisation=busy,
        seconds=seconds,
    )
