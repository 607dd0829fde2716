"""From a scenario and its requests to a simulation that is about to begin."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.domain import PayloadForm, Service
from edgewise.fleet import intake
from edgewise.fleet.arrays import QUEUE_MAX, Belief, records
from edgewise.fleet.report_timing import GAP
from edgewise.fleet.request_noise import luck_seed, noise_factors
from edgewise.fleet.table import new_table
from edgewise.fleet.timeouts import RETRY_MAX
from edgewise.fleet.tracker import belief_of as new_belief_of
from edgewise.network.impairments import may_break, parameters_of
from edgewise.network.settings import LinkSettings, Outage
from edgewise.network.trace import LinkTrace
from edgewise.scenario import DownFailure, MuteFailure, Scenario, link_events, slowness
from edgewise.score import ScoreShape
from edgewise.sim import layout
from edgewise.sim.events import new_events, new_soon
from edgewise.sim.layout import Reports, Sim, World
from edgewise.sim.next_times import new_next_times
from edgewise.sim.reports import MUTE_KNOWN
from edgewise.tasks.services import services_of
from edgewise.worlds.workload import Trace

Floats = NDArray[np.float64]

CONTROL_DELAY = 0.0005
"""s from balancer to node and back each: a WebSocket within a town or a machine; the scenario file
does not describe the control plane's network."""
SLOTS = 1 << 14
"""Requests open at a time. At 1,000 requests/s this is 16 s of them."""
NEVER_FULL = 256
"""Waiting requests, the default limit of a queue. So many at a few ms each have passed their
deadlines and are dropped, so a queue that takes them does not fill up."""


class SimOptions(Struct, frozen=True, kw_only=True):
    """What a scenario file does not say."""

    batching: bool = True
    """Services with a latency curve longer than 1 run batches."""
    fifo_links: bool = False
    """Transfers one after the other in place of equal sharing."""
    control_delay: float = CONTROL_DELAY
    report_delay: float | None = None
    """s until a report is there; None: the control delay."""
    noise: Floats | None = None
    """Equally likely factors of service times, as many as a power of two; None: lognormal with the
    scenario's cv."""
    slots: int = SLOTS
    store: bool = True
    """Keep a result per request, not just sums."""
    keep_reports: bool = False
    """Keep every report (`sim.kept_reports`): some kB each."""


class _Numbers:
    """The world's figures in one array; whoever adds some learns where they are."""

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
    """A simulation of `scenario` on the requests of `trace`, at time 0.

    `services` in place of `roster.services_of(scenario)`. Raises ModelError for a model that is
    neither described in full nor in the zoo, and ScenarioError for a trace file.
    """
    given = options or SimOptions()
    services = services_of(scenario) if services is None else services
    names = scenario.server_names
    count, number = len(names), _Numbers()
    horizon = _horizon(scenario, trace)

    belief = new_belief_of(scenario, services)
    mute = any(isinstance(failure, MuteFailure) for failure in scenario.failures)
    deciders = scenario.balancers + (count if mute else 0)  # nodes too, when they are left alone
    beliefs = Belief(*(np.repeat(array[None], deciders, axis=0).copy() for array in belief))
    seed = luck_seed(scenario.seed)
    noise = noise_factors(scenario.service_noise.cv) if given.noise is None else given.noise

    servers, workers = _servers(scenario, belief.first, horizon, number)
    links, link_changes = _links(scenario, belief.path, number)
    report_delay = given.control_delay if given.report_delay is None else given.report_delay
    under_way = count * (2 + math.ceil(report_delay / (GAP * scenario.report_period)))
    if given.keep_reports:  # nobody reports oftener than a gap allows
        under_way = count * (2 + math.ceil(horizon / (GAP * scenario.report_period)))
    most = int(np.diff(belief.first).max(initial=1))
    uplink = scenario.network.topology == "uplink"
    slots = min(given.slots, max(1, len(trace)))

    clock = records(1, layout.CLOCK)
    clock["current"], clock["free"], clock["free_report"] = -1, 0, 0
    clock["servers"], clock["balancers"] = count, deciders
    clock["central"], clock["mute_since"] = scenario.balancers, np.inf
    clock["requests"], clock["horizon"], clock["seed"] = len(trace), horizon, seed
    clock["period"], clock["report_delay"] = scenario.report_period, report_delay
    clock["control_delay"] = given.control_delay
    shape = ScoreShape.of(scenario.score)
    clock["grace"], clock["accuracy_weight"] = shape.grace, shape.accuracy_weight
    clock["edf"], clock["fifo_links"] = scenario.discipline == "edf", given.fifo_links
    clock["uplink"], clock["prepare_own"] = uplink, scenario.prepare.on == "own"
    clock["batching"] = given.batching
    clock["links_given"] = scenario.network_state == "emulator"
    clock["can_fail"] = (
        any(isinstance(f, DownFailure) for f in scenario.failures)
        or any(map(may_break, [*links["impairments"], *link_changes["impairments"]]))
        or any(server.queue_limit < NEVER_FULL for server in scenario.servers.values())
    )
    clock["noise_bits"] = (len(noise) - 1).bit_length()
    clock["store"], clock["keep_reports"] = given.store, given.keep_reports
    if len(noise) != 1 << int(clock["noise_bits"][0]):
        raise ValueError(f"noise needs a power of two of factors, got {len(noise)}")

    requests = records(len(trace), layout.REQUEST)
    requests["time"], requests["deadline"] = trace.time, trace.deadline
    requests["accuracy"], requests["payload"] = trace.accuracy, trace.payload_bytes
    requests["ingress"] = trace.ingress

    state = records(slots, layout.SLOT)
    state["next"] = [*range(1, slots), -1]
    state["wake"] = np.inf
    reports = records(under_way, layout.REPORT)
    reports["next"] = [*range(1, under_way), -1]
    flows = records(2 * slots, layout.FLOW)
    flows["link"] = -1
    results = records(len(trace) if given.store else 0, layout.RESULT)
    results["row"] = results["server"] = results["service"] = results["form"] = -1
    for name in layout.RESULT.names or ():
        if layout.RESULT[name] == np.float64 and name not in ("probability", "utility"):
            results[name] = np.nan

    # Out of step: each server's first report comes at a moment of its own.
    first_reports = np.random.default_rng([scenario.seed, 2]).random(count)
    first_reports *= scenario.report_period
    planned = [(1.0, layout.E_SWEEP, 0)]
    clock["events"] = clock["sequence"] = len(planned)
    soon, soon_codes = new_soon()
    world = World(
        clock=clock,
        # A slot has three events at most (metadata and upload, then one; and one that looks after
        # it); a worker has one, a server those of its going and coming back.
        soon=soon,
        soon_codes=soon_codes,
        events=new_events(8 * slots + len(workers) + 16 * count + under_way, planned),
        moments=new_next_times(len(links), first_reports),
        requests=requests,
        slots=state,
        nodes=records(3 * slots, layout.NODE),
        servers=servers,
        services=_services(services, belief.services["server"], number),
        workers=workers,
        links=links,
        flows=flows,
        path=belief.path,
        numbers=number.array(),
        noise=noise,
        seen=records((deciders, count), intake.ACKNOWLEDGED),
        results=results,
    )
    widest = max(spec.workers for spec in scenario.servers.values())
    under_way_reports = Reports(
        heads=reports,
        jobs=np.zeros((2, under_way, QUEUE_MAX)),
        running=np.zeros((under_way, widest)),
        links=records((under_way, 2 if uplink else 1 + count), intake.REPORT_LINK),
        services=records((under_way, most), intake.REPORT_SERVICE),
        seen=records((under_way, deciders), intake.ACKNOWLEDGED),
    )
    return Sim(
        world=world,
        script=_script(scenario, link_changes),
        reports=under_way_reports,
        beliefs=beliefs,
        belief=layout.belief_of(beliefs, 0),
        table=new_table(belief),
    )


def _horizon(scenario: Scenario, trace: Trace) -> float:
    """When whoever still waits has given up: the client's patience is the longest deadline, thrice,
    and a while for what is stuck behind an outage."""
    last = float(trace.time[-1]) if len(trace) else 0.0
    return last + 3.0 * float(trace.deadline.max(initial=0.0)) + 10.0


def _servers(
    scenario: Scenario, first: NDArray[np.int64], horizon: float, number: _Numbers
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
        out["slow_at"], out["slow_count"] = number.add(np.array(steps)), len(steps)
        out["idle"], out["up"] = at, 1
        for key in ("head", "tail", "prepare_head", "prepare_tail"):
            out[key] = -1
        span = slice(at, at + spec.workers)
        workers["server"][span] = s
        workers["next"][span] = [*range(at + 1, at + spec.workers), -1]
        workers["server"][total + s] = s
        at += spec.workers
    return servers, workers


def _services(
    services: tuple[Service, ...], of: NDArray[np.int64], number: _Numbers
) -> NDArray[np.void]:
    out = records(len(services), layout.SERVICE)
    for k, service in enumerate(services):
        ready = service.accuracy_of(PayloadForm.MODEL_READY)
        row = out[k]
        row["server"], row["accuracy"], row["ready_accuracy"] = of[k], service.accuracy, ready
        row["ready_bytes"], row["ready_saving"] = service.ready_bytes, service.ready_saving
        row["curve_at"], row["curve_count"] = number.add(service.latency), len(service.latency)
        row["queue"], row["service_time"], row["batch"] = -1, service.latency[0], 1.0
    return out


def _links(
    scenario: Scenario, path: NDArray[np.int64], number: _Numbers
) -> tuple[NDArray[np.void], NDArray[np.void]]:
    """The links, numbered as in the belief (each server's clients, then the links between servers),
    and the script's lines that change them."""
    names = scenario.server_names
    settings: dict[str, LinkSettings] = {}
    places: dict[str, tuple[int, int]] = {}  # number of the link, and of the server that sends
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
    links["ledger_first"], links["ledger_word"] = -1, np.inf
    links["mode"] = layout.UNLIMITED
    curves: dict[LinkTrace, tuple[int, int, float]] = {}
    for full, (e, source) in places.items():
        out = links[e]
        out["source"] = source
        _settings(out, settings[full], number, curves)
        spans = _merged(settings[full].outages)
        out["outage_at"], out["outage_count"] = number.add(np.array(spans)), len(spans)
    events = link_events(scenario)
    script = records(len(events), layout.SCRIPT)
    for line, (full, event) in zip(script, events, strict=True):
        settings[full] = settings[full].changed(event.set)
        line["time"], line["kind"], line["index"] = event.at, layout.S_LINK_CHANGE, places[full][0]
        _settings(line, settings[full], number, curves)
    return links, script


def _settings(
    out: np.void,
    settings: LinkSettings,
    number: _Numbers,
    curves: dict[LinkTrace, tuple[int, int, float]],
) -> None:
    """Fill in `layout.LINK_SETTINGS`; `curves` are the traces that `number` has already."""
    out["delay"], out["impairments"] = settings.delay, parameters_of(settings)
    if settings.trace is None:
        capacity = settings.capacity()
        out["mode"] = layout.UNLIMITED if capacity.unlimited else layout.CONSTANT
        out["rate"] = 0.0 if capacity.unlimited else capacity.cumulative[1]
        return
    if settings.trace not in curves:
        capacity = settings.capacity()
        at = number.add(capacity.times)
        number.add(capacity.cumulative)
        curves[settings.trace] = at, len(capacity.times), capacity.period
    out["mode"] = layout.CURVE
    out["curve_at"], out["curve_count"], out["curve_period"] = curves[settings.trace]


def _merged(outages: Sequence[Outage]) -> list[list[float]]:
    """Sorted, disjoint (from, to)."""
    spans: list[list[float]] = []
    for outage in sorted(outages, key=lambda each: each.at):
        if spans and outage.at <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], outage.at + outage.duration)
        else:
            spans.append([outage.at, outage.at + outage.duration])
    return spans


def _script(scenario: Scenario, link_changes: NDArray[np.void]) -> NDArray[np.void]:
    """Failures and changes of links, in order of time."""
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
            if failure.duration > MUTE_KNOWN:  # a new connection first
                until += RETRY_MAX
            lines.append((failure.at, layout.S_MUTE, 0))
            lines.append((until, layout.S_HEARD, 0))
    failures = records(len(lines), layout.SCRIPT)
    for out, line in zip(failures, lines, strict=True):
        out["time"], out["kind"], out["index"] = line
    script = records(len(failures) + len(link_changes), layout.SCRIPT)
    script[:] = np.concatenate([failures, link_changes])
    script[:] = script[np.argsort(script["time"], kind="stable")]
    return script
