"""Build a simulation from a scenario and its requests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.domain import PayloadForm, Service
from edgewise.fleet import intake
from edgewise.fleet.arrays import QUEUE_MAX, Array, Belief, Record, records
from edgewise.fleet.report_timing import GAP
from edgewise.fleet.request_noise import noise_factors, noise_seed
from edgewise.fleet.retries import fill
from edgewise.fleet.table import new_table
from edgewise.fleet.timeouts import RETRY_MAX, first_sign, photo_patience
from edgewise.fleet.tracker import initial_belief as new_belief_of
from edgewise.network.impairments import may_break, parameters_of
from edgewise.network.settings import LinkSettings, Outage
from edgewise.network.trace import LinkTrace
from edgewise.scenario import (
    DownFailure,
    ErrorsFailure,
    MuteFailure,
    Scenario,
    link_events,
    misbehaviours,
    slowness,
)
from edgewise.score import ScoreShape
from edgewise.sim import layout
from edgewise.sim.events import new_events, new_near
from edgewise.sim.layout import Reports, Sim, World
from edgewise.sim.next_times import new_next_times
from edgewise.sim.reports import SILENCE_KNOWN
from edgewise.tasks.services import services_of
from edgewise.worlds.workload import Trace

Floats = NDArray[np.float64]

CONTROL_DELAY = 0.0005
"""s in each direction between balancer and node: a WebSocket within a town or a machine. The
scenario file does not describe the network of the control connections."""
SLOTS = 1 << 14
"""Requests open at a time: 16 s of requests at 1,000 requests/s."""
NEVER_FULL = 256
"""Waiting requests: the default limit of a queue. Among so many, at a few ms each, the oldest have
expired and are dropped, so a queue with this limit does not fill up."""


class SimOptions(Struct, frozen=True, kw_only=True):
    """Settings of the simulator that do not belong to a scenario."""

    batching: bool = True
    """Run batches on services whose latency curve is longer than 1."""
    fifo_links: bool = False
    """Let links send one transfer after the other instead of sharing equally."""
    control_delay: float = CONTROL_DELAY
    """s in each direction between balancer and node."""
    report_delay: float | None = None
    """s until a report reaches the balancer; None: the control delay."""
    noise: Floats | None = None
    """Equally likely noise factors of service times; their number is a power of two. None:
    lognormal with the scenario's cv."""
    slots: int = SLOTS
    """Requests that may be open at a time."""
    store: bool = True
    """Keep a result per request, not only sums."""
    keep_reports: bool = False
    """Keep every report (`sim.kept_reports`), some kB each."""


class _Numbers:
    """Collects the world's curves and lists in one array; `add` returns the offset of each."""

    def __init__(self) -> None:
        self._parts: list[Floats] = []
        self._size = 0

    def add(self, values: Sequence[float] | Floats) -> int:
        part = np.asarray(values, np.float64).ravel()
        at = self._size
        self._parts.append(part)
        self._size += part.size
        return at

    def array(self) -> Floats:
        return np.concatenate([*self._parts, np.zeros(1)])


def simulation(
    scenario: Scenario,
    trace: Trace,
    options: SimOptions | None = None,
    services: tuple[Service, ...] | None = None,
) -> Sim:
    """Build the simulation of `scenario` on the requests of `trace`, at time 0.

    `services` defaults to `tasks.services.services_of(scenario)`. Raises ModelError for a model
    that is neither described in full nor in the zoo, ScenarioError for a bad trace file, and
    ValueError if the number of noise factors is not a power of two.
    """
    options = options or SimOptions()
    services = services_of(scenario) if services is None else services
    belief = new_belief_of(scenario, services)
    numbers = _Numbers()
    horizon = _horizon(scenario, trace)
    servers, workers = _servers(scenario, belief.first, horizon, numbers)
    links, link_changes = _links(scenario, belief.path, numbers)
    breakable = any(map(may_break, [*links["impairments"], *link_changes["impairments"]]))
    settings = _settings_of(scenario, trace, options, horizon, breakable)
    reports = _reports(scenario, belief, settings[0])
    count, slots = len(servers), min(options.slots, max(1, len(trace)))
    noise = _noise(scenario, options)

    # The first reports are spread at random over a period, so that servers do not report together.
    first_reports = np.random.default_rng([scenario.seed, 2]).random(count)
    first_reports *= scenario.report_period
    planned = [(1.0, layout.E_SWEEP, 0)]
    clock = records(1, layout.CLOCK)
    clock["current"], clock["free"], clock["free_report"] = -1, 0, 0
    clock["mute_since"] = np.inf
    clock["events"] = clock["sequence"] = len(planned)
    # A slot has at most three events (metadata and upload, later one; and a timeout check), a
    # worker has one, and a server those of its stops and restarts.
    room = 8 * slots + len(workers) + 16 * count + len(reports.heads)
    near, near_codes = new_near()
    world = World(
        settings=settings,
        clock=clock,
        near=near,
        near_codes=near_codes,
        events=new_events(room, planned),
        next_times=new_next_times(len(links), first_reports),
        requests=_requests(trace),
        slots=_slots(slots),
        nodes=records(3 * slots, layout.NODE),
        servers=servers,
        services=_services(services, belief.services["server"], numbers),
        workers=workers,
        links=links,
        flows=_flows(slots),
        path=belief.path,
        numbers=numbers.array(),
        noise=noise,
        seen=records((settings["balancers"][0], count), intake.ACKNOWLEDGED),
        signs=_signs(count, first_reports - GAP * scenario.report_period),
        results=_results(len(trace) if options.store else 0),
    )
    balancers = int(settings["balancers"][0])
    beliefs = Belief(*(np.repeat(array[None], balancers, axis=0).copy() for array in belief))
    return Sim(
        world=world,
        script=_script(scenario, link_changes),
        reports=reports,
        beliefs=beliefs,
        belief=layout.belief_of(beliefs, 0),
        table=new_table(belief),
    )


def _settings_of(
    scenario: Scenario, trace: Trace, options: SimOptions, horizon: float, breakable: bool
) -> Array:
    """The constants of the simulation; `breakable`: a link can break transfers."""
    mute = any(isinstance(failure, MuteFailure) for failure in scenario.failures)
    shape = ScoreShape.of(scenario.score)
    delay = options.control_delay
    settings = records(1, layout.SETTINGS)
    out = settings[0]
    out.requests, out.servers = len(trace), len(scenario.servers)
    out.central = scenario.balancers
    # Where the balancers fall silent, nodes decide themselves.
    out.balancers = scenario.balancers + (len(scenario.servers) if mute else 0)
    out.horizon, out.seed = horizon, noise_seed(scenario.seed)
    out.period, out.control_delay = scenario.report_period, delay
    out.report_delay = delay if options.report_delay is None else options.report_delay
    out.grace, out.accuracy_weight = shape.grace, shape.accuracy_weight
    out.edf, out.fifo_links = scenario.discipline == "edf", options.fifo_links
    out.uplink = scenario.network.topology == "uplink"
    out.prepare_own, out.batching = scenario.prepare.on == "own", options.batching
    out.true_links = scenario.network_state == "emulator"
    out.can_fail = (
        breakable
        or any(isinstance(failure, DownFailure | ErrorsFailure) for failure in scenario.failures)
        or any(server.queue_limit < NEVER_FULL for server in scenario.servers.values())
    )
    out.noise_bits = (len(_noise(scenario, options)) - 1).bit_length()
    out.store, out.keep_reports = options.store, options.keep_reports
    out.loses_photos = trace.lost.any()
    out.photo_patience = photo_patience(scenario.report_period)
    return settings


def _noise(scenario: Scenario, options: SimOptions) -> Floats:
    """Equally likely noise factors of service times."""
    if options.noise is None:
        return noise_factors(scenario.service_noise.cv)
    if len(options.noise).bit_count() != 1:
        raise ValueError(f"noise needs a power of two of factors, got {len(options.noise)}")
    return options.noise


def _reports(scenario: Scenario, belief: Belief, settings: Record) -> Reports:
    """Allocate all reports that can be under way; all of the run's reports if they are kept."""
    servers, balancers = int(settings.servers), int(settings.balancers)
    kept_for = settings.horizon if settings.keep_reports else settings.report_delay
    # Two reports of a server are at least `GAP` of the period apart.
    room = servers * (2 + math.ceil(kept_for / (GAP * scenario.report_period)))
    heads = records(room, layout.REPORT)
    heads["next"] = [*range(1, room), -1]
    most_workers = max(spec.workers for spec in scenario.servers.values())
    most_services = int(np.diff(belief.first).max(initial=1))
    return Reports(
        heads=heads,
        jobs=np.zeros((2, room, QUEUE_MAX)),
        running=np.zeros((room, most_workers)),
        links=records((room, 2 if settings.uplink else 1 + servers), intake.REPORT_LINK),
        services=records((room, most_services), intake.REPORT_SERVICE),
        seen=records((room, balancers), intake.ACKNOWLEDGED),
        signs=np.zeros((room, servers), np.int64),
    )


def _requests(trace: Trace) -> Array:
    requests = records(len(trace), layout.REQUEST)
    requests["time"], requests["deadline"] = trace.time, trace.deadline
    requests["accuracy"], requests["payload"] = trace.accuracy, trace.payload_bytes
    requests["ingress"] = trace.ingress
    requests["lost"] = trace.lost
    return requests


def _slots(count: int) -> Array:
    slots = records(count, layout.SLOT)
    slots["next"] = [*range(1, count), -1]
    slots["timeout_at"] = np.inf
    return slots


def _flows(slots: int) -> Array:
    flows = records(2 * slots, layout.FLOW)
    flows["link"] = -1
    return flows


def _signs(servers: int, started: Floats) -> Array:
    """The signs of life to be asked for; `started`: when each server started, s."""
    signs = records((servers, servers), layout.SIGN)
    signs["known_at"], signs["given"] = np.inf, -1
    for s in range(servers):
        for d in range(servers):
            if s != d:
                signs["known_at"][s, d] = started[s] + first_sign(s, d, servers)
    return signs


def _results(count: int) -> Array:
    results = records(count, layout.RESULT)
    results["row"] = results["server"] = results["service"] = results["form"] = -1
    for name in layout.RESULT.names or ():
        if layout.RESULT[name] == np.float64 and name not in ("probability", "utility"):
            results[name] = np.nan
    return results


def _horizon(scenario: Scenario, trace: Trace) -> float:
    """The time at which the run ends at the latest, and requests still open are lost: three times
    the longest deadline after the last arrival, and 10 s for requests delayed by an outage."""
    last = float(trace.time[-1]) if len(trace) else 0.0
    return last + 3.0 * float(trace.deadline.max(initial=0.0)) + 10.0


def _servers(
    scenario: Scenario, first: NDArray[np.int64], horizon: float, numbers: _Numbers
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    specs = list(scenario.servers.values())
    servers = records(len(specs), layout.SERVER)
    total = sum(spec.workers for spec in specs)
    workers = records(total + len(specs), layout.WORKER)
    workers["slot"] = -1
    at = 0
    for s, (name, spec) in enumerate(scenario.servers.items()):
        out = servers[s]
        out["workers"], out["first_worker"] = spec.workers, at
        out["first_service"], out["end_service"] = first[s], first[s + 1]
        out["queue_limit"] = spec.queue_limit
        out["prepare_seconds"] = scenario.prepare.seconds / spec.speed
        steps = slowness(scenario, name, horizon)
        out["slow_at"], out["slow_count"] = numbers.add(np.array(steps)), len(steps)
        out["idle"], out["up"] = at, 1
        fill(out, 0.0)
        for key in ("head", "tail", "prepare_head", "prepare_tail"):
            out[key] = -1
        span = slice(at, at + spec.workers)
        workers["server"][span] = s
        workers["next"][span] = [*range(at + 1, at + spec.workers), -1]
        workers["server"][total + s] = s
        at += spec.workers
    return servers, workers


def _services(
    services: tuple[Service, ...], of: NDArray[np.int64], numbers: _Numbers
) -> NDArray[np.void]:
    out = records(len(services), layout.SERVICE)
    for k, service in enumerate(services):
        ready = service.accuracy_of(PayloadForm.MODEL_READY)
        row = out[k]
        row["server"], row["accuracy"], row["ready_accuracy"] = of[k], service.accuracy, ready
        row["ready_bytes"], row["ready_saving"] = service.ready_bytes, service.ready_saving
        row["curve_at"], row["curve_count"] = numbers.add(service.latency), len(service.latency)
        row["queue"], row["service_time"], row["batch"] = -1, service.latency[0], 1.0
    return out


def _links(
    scenario: Scenario, path: NDArray[np.int64], numbers: _Numbers
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """The links, numbered as in the belief (access links, then links between servers), and the
    lines of the script that change them."""
    names = scenario.server_names
    settings: dict[str, LinkSettings] = {}
    places: dict[str, tuple[int, int]] = {}  # numbers of the link and of the server that sends
    for s, name in enumerate(names):
        full, settings[full] = scenario.access_of(name)
        places[full] = s, s
    for a, one in enumerate(names):
        for b, other in enumerate(names):
            if a != b:
                full, settings[full] = scenario.link_between(one, other)
                places[full] = int(path[a, b]), a
    links = records(int(path.max(initial=len(names) - 1)) + 1, layout.LINK)
    links["root"] = -1
    links["measured"] = links["measured_at"] = np.nan
    links["ledger_first"], links["next_ack"] = -1, np.inf
    links["mode"] = layout.UNLIMITED
    curves: dict[LinkTrace, tuple[int, int, float]] = {}
    for full, (e, source) in places.items():
        out = links[e]
        out["source"] = source
        _settings(out, settings[full], numbers, curves)
        spans = _merged(settings[full].outages)
        out["outage_at"], out["outage_count"] = numbers.add(np.array(spans)), len(spans)
    events = link_events(scenario)
    script = records(len(events), layout.SCRIPT)
    for line, (full, event) in zip(script, events, strict=True):
        settings[full] = settings[full].changed(event.set)
        line["time"], line["kind"], line["index"] = event.at, layout.S_LINK_CHANGE, places[full][0]
        _settings(line, settings[full], numbers, curves)
    return links, script


def _settings(
    out: np.void,
    settings: LinkSettings,
    numbers: _Numbers,
    curves: dict[LinkTrace, tuple[int, int, float]],
) -> None:
    """Fill in `layout.LINK_SETTINGS`; `curves` maps the traces already added to `numbers` to their
    offset, length and period."""
    out["delay"], out["impairments"] = settings.delay, parameters_of(settings)
    if settings.trace is None:
        capacity = settings.capacity()
        out["mode"] = layout.UNLIMITED if capacity.unlimited else layout.CONSTANT
        out["rate"] = 0.0 if capacity.unlimited else capacity.cumulative[1]
        return
    if settings.trace not in curves:
        capacity = settings.capacity()
        at = numbers.add(capacity.times)
        numbers.add(capacity.cumulative)
        curves[settings.trace] = at, len(capacity.times), capacity.period
    out["mode"] = layout.CURVE
    out["curve_at"], out["curve_count"], out["curve_period"] = curves[settings.trace]


def _merged(outages: Sequence[Outage]) -> list[list[float]]:
    """The outages as sorted, disjoint (from, to) pairs."""
    spans: list[list[float]] = []
    for outage in sorted(outages, key=lambda each: each.at):
        if spans and outage.at <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], outage.at + outage.duration)
        else:
            spans.append([outage.at, outage.at + outage.duration])
    return spans


def _script(scenario: Scenario, link_changes: NDArray[np.void]) -> NDArray[np.void]:
    """The script of failures and link changes, in order of time."""
    names = scenario.server_names
    lines: list[tuple[float, int, int]] = []
    for failure in scenario.failures:
        if isinstance(failure, DownFailure):
            s = names.index(failure.server)
            until = failure.at + failure.duration
            lines.append((failure.at, layout.S_SERVER_DOWN, s))
            lines.append((until, layout.S_SERVER_UP, s))
        if isinstance(failure, MuteFailure):
            until = failure.at + failure.duration
            if failure.duration > SILENCE_KNOWN:  # the nodes have to reconnect first
                until += RETRY_MAX
            lines.append((failure.at, layout.S_MUTE, 0))
            lines.append((until, layout.S_UNMUTE, 0))
    steps = [
        (at, s, what) for s, name in enumerate(names) for at, what in misbehaviours(scenario, name)
    ]
    failures = records(len(lines) + len(steps), layout.SCRIPT)
    for out, line in zip(failures, lines, strict=False):
        out["time"], out["kind"], out["index"] = line
    for out, (at, s, what) in zip(failures[len(lines) :], steps, strict=True):
        out["time"], out["kind"], out["index"] = at, layout.S_MISBEHAVE, s
        out["misbehaves"] = int(what)
    script = records(len(failures) + len(link_changes), layout.SCRIPT)
    script[:] = np.concatenate([failures, link_changes])
    script[:] = script[np.argsort(script["time"], kind="stable")]
    return script
