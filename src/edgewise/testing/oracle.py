"""A slow simulator in plain Python, written independently of the engine, to check it against.

Theory of operation
-------------------
Nothing is clever. Each step looks at everything that could happen next (timers, transfers,
workers), moves time to the earliest of them, brings every transfer up to date by subtraction, and
handles whatever is due. Decisions are given from outside, one candidate each without alternatives,
so the oracle needs no belief and no policy: it answers *when* things happen, not *what* is decided.

A request's way: its upload crosses the access link; its command arrives; it runs at its ingress, or
its payload crosses the link to another server, converted before if the model-ready form was chosen.
A peer that takes too long is given up, and the request runs at its ingress if that is worth it.

There is no noise, loss, jitter or dead server. Cost grows with (requests × flows): a few hundred
requests take a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec
from msgspec import UNSET, Struct

from edgewise.domain import Service
from edgewise.network.impairments import active
from edgewise.scenario import LinkSettings, Scenario, SlowFailure, link_events
from edgewise.score import ScoreShape, worthless_after
from edgewise.sim.build import SimOptions
from edgewise.tasks.services import services_of
from edgewise.worlds.workload import Trace

ROUNDING_BYTES = 1e-6
"""A flow with less than this left is done."""

Action = Callable[[], None]


class OracleRequest(Struct, kw_only=True, eq=False):
    """A request, its decision, and its stamps (s; inf: it never happened)."""

    number: int
    sent: float
    deadline: float
    """s from `sent`."""
    accuracy: float
    """The least accuracy it demands."""
    ingress: int
    payload_bytes: float
    server: int
    """Chosen at first; the ingress after the chosen peer was given up."""
    model: int
    """Position among its server's services."""
    ready_bytes: float
    """Size of the model-ready payload."""
    model_ready: bool
    uploaded: float = math.inf
    decided: float = math.inf
    """When its command was at the ingress."""
    crossed: float = math.inf
    """When the last byte had left for the chosen server."""
    transferred: float = math.inf
    started: float = math.inf
    finished: float = math.inf
    give_up_at: float = math.inf
    """When its ingress stops waiting for the chosen server."""
    status: str = ""
    """``served``, ``expired`` or ``failed``; empty while it is open."""
    expected_work: float = 0.0
    """s that its server expects it to take."""
    attempts: int = 0
    """Peers that were given up."""

    @property
    def due(self) -> float:
        return self.sent + self.deadline

    @property
    def converted(self) -> bool:
        """Whether its payload is made ready for the model before it runs."""
        return self.model_ready and self.server != self.ingress


class _Flow(Struct, eq=False):
    """A payload on a link."""

    left: float
    request: OracleRequest
    then: Action


class _Link(Struct, eq=False):
    """A link: its rate as steps, its outages as spans."""

    delay: float
    steps: list[tuple[float, float]]
    """(from s, bytes/s), in order."""
    outages: list[tuple[float, float]]
    """(start, end)"""
    fifo: bool
    """Whether one flow goes after the other; else they share equally."""
    flows: list[_Flow] = []

    def rate(self, now: float) -> float:
        if any(start <= now < end for start, end in self.outages):
            return 0.0
        return next(rate for at, rate in reversed(self.steps) if at <= now)

    def next_change(self, now: float) -> float:
        times = [at for at, _ in self.steps] + [at for span in self.outages for at in span]
        return min((at for at in times if at > now), default=math.inf)

    def shares(self, now: float) -> list[float]:
        """bytes/s of each flow."""
        rate, count = self.rate(now), len(self.flows)
        if self.fifo:
            return [rate if i == 0 else 0.0 for i in range(count)]
        return [rate / max(1, count)] * count


class _Model(Struct, eq=False):
    """A service, and the mean of what it took lately."""

    accuracy: float
    seconds: float
    saving: float
    """s less for a model-ready payload."""
    mean: float = math.nan

    def expected(self, converted: bool) -> float:
        seconds = self.seconds if math.isnan(self.mean) else self.mean
        return seconds - (self.saving if converted else 0.0)

    def note(self, seconds: float, converted: bool) -> None:
        seconds += self.saving if converted else 0.0
        self.mean = seconds if math.isnan(self.mean) else 0.8 * self.mean + 0.2 * seconds


class _Job(Struct, eq=False):
    """What a worker does until `end`."""

    end: float
    request: OracleRequest
    converting: bool
    started: float
    expected_end: float


class _Server(Struct, eq=False):
    workers: int
    convert_seconds: float
    own_core: bool
    """Whether conversions have a core of their own; else workers do them."""
    edf: bool
    slow: list[tuple[float, float, float]]
    """(start, end, factor)"""
    models: list[_Model]
    running: list[_Job] = []
    converting: list[_Job] = []
    """On its own core."""
    queue: list[OracleRequest] = []
    conversions: list[OracleRequest] = []
    """Waiting to be converted."""

    def slowdown(self, now: float) -> float:
        return math.prod(factor for start, end, factor in self.slow if start <= now < end)

    def wait(self, due: float, now: float) -> float:
        """s until a request due at `due` would start."""
        work = sum(each.expected_work for each in self.queue if each.due <= due or not self.edf)
        work += sum(max(0.0, job.expected_end - now) for job in self.running)
        if not self.own_core:
            work += len(self.conversions) * self.convert_seconds
        return work / self.workers

    def quickest(self, accuracy: float) -> int | None:
        """The model that runs an original fastest, of those accurate enough."""
        fit = [m for m, model in enumerate(self.models) if model.accuracy >= accuracy]
        return min(fit, key=lambda m: self.models[m].expected(False), default=None)


class _Oracle:
    """The world, and what happens in it."""

    def __init__(
        self,
        access: list[_Link],
        between: dict[tuple[int, int], _Link],
        servers: list[_Server],
        control_delay: float,
        grace: float,
    ) -> None:
        self._access, self._between, self._servers = access, between, servers
        self._control_delay, self._grace = control_delay, grace
        self._links = [*access, *{id(link): link for link in between.values()}.values()]
        self._timers: list[tuple[float, int, Action]] = []
        self._timers_set = 0
        self._now = 0.0

    def run(self, requests: Sequence[OracleRequest]) -> None:
        """Play to the end."""
        for request in requests:
            self._announce(request)
        while (then := self._next_time()) < math.inf:
            for link in self._links:
                for flow, rate in zip(link.flows, link.shares(self._now), strict=True):
                    flow.left -= rate * (then - self._now)
            self._now = then
            for link in self._links:
                for flow in [flow for flow in link.flows if flow.left <= ROUNDING_BYTES]:
                    link.flows.remove(flow)
                    flow.then()
            for server in self._servers:
                self._end_jobs(server)
            for timer in sorted(timer for timer in self._timers if timer[0] <= self._now):
                self._timers.remove(timer)
                timer[2]()

    def _next_time(self) -> float:
        times = [at for at, _, _ in self._timers]
        for link in self._links:
            if link.flows:
                times.append(link.next_change(self._now))
                for flow, rate in zip(link.flows, link.shares(self._now), strict=True):
                    if rate > 0.0:
                        times.append(self._now + flow.left / rate)
        for server in self._servers:
            times += [job.end for job in (*server.running, *server.converting)]
        return min(times, default=math.inf)

    def _at(self, time: float, action: Action) -> None:
        self._timers.append((time, self._timers_set, action))
        self._timers_set += 1

    def _at_unless_over(self, time: float, request: OracleRequest, action: Action) -> None:
        """Do it unless the request has ended by then or its peer was given up."""
        attempts = request.attempts

        def unless_over() -> None:
            if not request.status and request.attempts == attempts:
                action()

        self._at(time, unless_over)

    # -- arriving --------------------------------------------------------------------------------

    def _announce(self, request: OracleRequest) -> None:
        link = self._access[request.ingress]

        def arrive() -> None:
            self._at(self._now + link.delay, lambda: self._on_upload(request))

        flow = _Flow(request.payload_bytes, request, arrive)
        self._at(request.sent, lambda: link.flows.append(flow))
        decided = request.sent + link.delay + self._control_delay
        self._at_unless_over(decided, request, lambda: self._on_command(request))
        worthless = request.due + self._late(request)
        self._at(worthless, lambda: self._expire(request))

    def _on_upload(self, request: OracleRequest) -> None:
        request.uploaded = self._now
        if request.decided < math.inf and not request.status:
            if request.server == request.ingress:
                self._enqueue(request)
            elif request.model_ready:
                self._convert(request)
            elif request.crossed < math.inf:
                self._deliver(request)

    def _on_command(self, request: OracleRequest) -> None:
        request.decided = self._now
        if request.server == request.ingress:
            if request.uploaded < math.inf:
                self._enqueue(request)
        elif not request.model_ready:
            self._transfer(request, request.payload_bytes)
        elif request.uploaded < math.inf:
            self._convert(request)

    def _late(self, request: OracleRequest) -> float:
        """s past the deadline during which an answer is still worth something."""
        return worthless_after(request.deadline, self._grace) - request.deadline

    # -- on its way to another server ------------------------------------------------------------

    def _convert(self, request: OracleRequest) -> None:
        self._servers[request.ingress].conversions.append(request)
        self._start_jobs(self._servers[request.ingress])

    def _transfer(self, request: OracleRequest, size: float) -> None:
        ingress = self._servers[request.ingress]
        quickest = ingress.quickest(request.accuracy)
        late = self._late(request)
        reserve = 0.0
        if quickest is not None:
            work = ingress.models[quickest].expected(False)
            reserve = max(2.0 * work + 0.02, 0.25 * late)
        worthless = request.due + late
        until = min(worthless - reserve, request.due + 0.5)
        request.give_up_at = max(self._now, until)
        self._at_unless_over(request.give_up_at, request, lambda: self._give_up(request))
        if self._now < until:
            flows = self._between[request.ingress, request.server].flows
            flows.append(_Flow(size, request, lambda: self._on_crossed(request)))

    def _on_crossed(self, request: OracleRequest) -> None:
        request.crossed = self._now
        if request.uploaded <= self._now:
            self._deliver(request)

    def _deliver(self, request: OracleRequest) -> None:
        delay = self._between[request.ingress, request.server].delay
        self._at_unless_over(self._now + delay, request, lambda: self._enqueue(request))

    # -- running ---------------------------------------------------------------------------------

    def _enqueue(self, request: OracleRequest) -> None:
        request.transferred = self._now
        server = self._servers[request.server]
        request.expected_work = server.models[request.model].expected(request.converted)
        server.queue.append(request)
        self._start_jobs(server)

    def _start_jobs(self, server: _Server) -> None:
        now, factor, convert = self._now, server.slowdown(self._now), server.convert_seconds
        if server.own_core and server.conversions and not server.converting:
            request = server.conversions.pop(0)
            server.converting.append(_Job(now + convert * factor, request, True, now, now))
        while len(server.running) < server.workers:
            if server.conversions and not server.own_core:
                request = server.conversions.pop(0)
                job = _Job(now + convert * factor, request, True, now, now + convert)
            elif server.queue:
                if server.edf:
                    server.queue.sort(key=lambda request: request.due)
                request = server.queue.pop(0)
                request.started = now
                model = server.models[request.model]
                seconds = model.seconds - (model.saving if request.converted else 0.0)
                end, expected = now + seconds * factor, now + request.expected_work
                job = _Job(end, request, False, now, expected)
            else:
                return
            server.running.append(job)

    def _end_jobs(self, server: _Server) -> None:
        for jobs in (server.converting, server.running):
            for job in [job for job in jobs if job.end <= self._now]:
                jobs.remove(job)
                request = job.request
                if not job.converting:
                    model = server.models[request.model]
                    model.note(self._now - job.started, request.converted)
                if request.status:
                    continue
                if job.converting:
                    self._transfer(request, request.ready_bytes)
                elif self._answer_in_time(request):
                    request.finished = self._now
                    request.status = "served"
        self._start_jobs(server)

    def _answer_in_time(self, request: OracleRequest) -> bool:
        """Whether its ingress still waits for an answer that leaves now."""
        if request.server == request.ingress:
            return True
        back = self._between[request.server, request.ingress].delay
        return self._now + back <= request.give_up_at

    # -- ending otherwise ------------------------------------------------------------------------

    def _give_up(self, request: OracleRequest) -> None:
        """Stop waiting for the peer; run the request at its ingress if that is worth it."""
        peer = self._servers[request.server]
        abandoned = msgspec.structs.replace(request, status="given up")
        for job in peer.running:
            if job.request is request:
                job.request = abandoned
        request.transferred = request.started = math.inf
        self._withdraw(request)
        request.attempts += 1
        ingress = self._servers[request.ingress]
        quickest = ingress.quickest(request.accuracy)
        if quickest is not None:
            done = self._now + ingress.wait(request.due, self._now)
            done += ingress.models[quickest].expected(False)
            share = 1.0 if len(ingress.running) < ingress.workers else 0.5
            if done <= request.due or done < request.due + share * self._late(request):
                request.server, request.model = request.ingress, quickest
                request.model_ready = False
                if request.uploaded <= self._now:
                    self._enqueue(request)
                return
        request.status = "expired" if self._now >= request.due else "failed"

    def _expire(self, request: OracleRequest) -> None:
        if not request.status:
            request.status = "expired"
            if request.server != request.ingress:  # its ingress does not know how far its peer is
                request.transferred = request.started = math.inf
            self._withdraw(request)

    def _withdraw(self, request: OracleRequest) -> None:
        """Take it off every link between servers and out of every queue; what runs goes on."""
        for link in self._between.values():
            link.flows = [flow for flow in link.flows if flow.request is not request]
        for server in self._servers:
            server.queue = [each for each in server.queue if each is not request]
            server.conversions = [each for each in server.conversions if each is not request]


def run_oracle(
    scenario: Scenario,
    trace: Trace,
    rows: Sequence[int],
    *,
    services: Sequence[Service] | None = None,
    options: SimOptions | None = None,
) -> list[OracleRequest]:
    """Play a trace whose decisions are given, and return its requests with all their stamps.

    Parameters
    ----------
    scenario:
        Without noise, loss, jitter, and failures other than *slow* ones.
    trace:
        The requests.
    rows:
        The row of the candidate table decided for each; twice the service, plus 1 for model-ready.
    services:
        Default: the scenario's.
    options:
        Only `control_delay` and `fifo_links` are used.

    Raises ValueError for what the oracle does not know.
    """
    _check(scenario)
    options = SimOptions() if options is None else options
    services = services_of(scenario) if services is None else services
    names = scenario.server_names
    by_server = [[s for s in services if s.server == name] for name in names]
    requests = []
    for number, row in enumerate(rows):
        service = services[row // 2]
        server = names.index(service.server)
        requests.append(
            OracleRequest(
                number=number,
                sent=float(trace.time[number]),
                deadline=float(trace.deadline[number]),
                accuracy=float(trace.accuracy[number]),
                ingress=int(trace.ingress[number]),
                payload_bytes=float(trace.payload_bytes[number]),
                server=server,
                model=by_server[server].index(service),
                ready_bytes=float(service.ready_bytes),
                model_ready=row % 2 == 1,
            )
        )
    links: dict[str, _Link] = {}

    def link(name: str, spec: LinkSettings) -> _Link:
        if name not in links:
            links[name] = _link(scenario, name, spec, options.fifo_links)
        return links[name]

    between = {
        (i, j): link(*scenario.link_between(a, b))
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i != j
    }
    access = [link(*scenario.access_of(name)) for name in names]
    servers = [_server(scenario, name, own) for name, own in zip(names, by_server, strict=True)]
    oracle = _Oracle(
        access, between, servers, options.control_delay, ScoreShape.of(scenario.score).grace
    )
    oracle.run(requests)
    return requests


def _check(scenario: Scenario) -> None:
    links = scenario.all_links()
    if scenario.service_noise.cv > 0.0 or any(map(active, links.values())):
        raise ValueError("the oracle has no noise and no impairments")
    if not all(isinstance(failure, SlowFailure) for failure in scenario.failures):
        raise ValueError("failures: the oracle knows slow ones only")


def _link(scenario: Scenario, name: str, spec: LinkSettings, fifo: bool) -> _Link:
    rates = {0.0: spec.rate_mbps}
    for full_name, event in link_events(scenario):
        if full_name == name:
            rates[event.at] = None if event.set.rate_mbps is UNSET else event.set.rate_mbps
    steps = sorted((at, mbps / 8e-6) for at, mbps in rates.items() if mbps is not None)
    if spec.trace is not None or len(steps) != len(rates):
        raise ValueError(f"link {name}: the oracle knows limited rates only, and changes of these")
    outages = [(outage.at, outage.at + outage.duration) for outage in spec.outages]
    return _Link(spec.delay, steps, outages, fifo)


def _server(scenario: Scenario, name: str, services: Sequence[Service]) -> _Server:
    spec = scenario.servers[name]
    return _Server(
        workers=spec.workers,
        convert_seconds=scenario.prepare.seconds / spec.speed,
        own_core=scenario.prepare.on == "own",
        edf=scenario.discipline == "edf",
        slow=[
            (failure.at, failure.at + failure.duration, failure.factor)
            for failure in scenario.failures
            if isinstance(failure, SlowFailure) and failure.server == name
        ],
        models=[_Model(s.accuracy, s.latency[0], s.ready_saving) for s in services],
    )
