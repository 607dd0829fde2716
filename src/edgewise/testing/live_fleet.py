"""The live system in one process on virtual time, and its transcript of a run.

What runs is what a deployment runs: `live.client.client.Client`, `live.balancer.balancer.Balancer`
with its dispatcher, and `live.node.node.Node` with queue, converter, monitor, reporter, control
channel and HTTP interface, executing by *replay*. Two things are replaced: the event loop
(`virtual_loop`), and the transport (`memory_transport`) over links that their flows share as in the
simulator (`shared_link`).

Links carry payloads only: each message's photo or model-ready payload is one fluid flow, headers
and envelopes weigh nothing. So a comparison with the simulator concerns the logic of both worlds,
to the rounding of floats. `docs/fidelity.md` has what 16 KiB chunks, framing and sockets add.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from edgewise.domain import Outcome, Report, Request, request_id
from edgewise.fleet.report_timing import GAP
from edgewise.fleet.table import CONTEXT_COLUMNS
from edgewise.live.balancer.api import BalancerApi
from edgewise.live.balancer.balancer import Balancer
from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.balancer.open_decisions import TrackedDecision
from edgewise.live.client.client import Client, SentRequest
from edgewise.live.client.prepared_load import PreparedLoad
from edgewise.live.clock import Clock
from edgewise.live.node.node import Node
from edgewise.live.process_config import ClientConfig, NodeConfig
from edgewise.live.run.addresses import relay_events, relay_links
from edgewise.live.wire.messages import ReportMessage, decode_from_node, encode
from edgewise.live.wire.open_inference import encode_request
from edgewise.live.wire.transport import Transport
from edgewise.network.settings import new_capacity
from edgewise.policies import Policy
from edgewise.policies import make as make_policy
from edgewise.policies.base import PolicySpec
from edgewise.scenario import (
    ErrorsFailure,
    Scenario,
    SlowFailure,
    WrongFailure,
    misbehaviours,
    slowness,
)
from edgewise.score import ScoreShape
from edgewise.sim.build import CONTROL_DELAY, simulation
from edgewise.sim.play import policy_seeds
from edgewise.testing.memory_transport import MemoryNetwork, MemoryRoute, MemoryTransport, url_of
from edgewise.testing.shared_link import SharedLink
from edgewise.testing.simulated import first_reports
from edgewise.testing.transcript import DecisionRecord, Transcript, from_start
from edgewise.testing.virtual_loop import run_virtual, sleep_until
from edgewise.worlds.workload import Trace

START = 10.0
"""s of virtual time before the trace begins: the processes are up before their client."""
CLIENT, BALANCER = "client", "balancer"

LinkFigures = list[tuple[str, float, float, float]]
"""(name, rate bytes/s, round trip s, backlog bytes) of each link."""
MakeNode = Callable[[NodeConfig, Scenario, Clock, Transport], Node]
"""(configuration, scenario, clock, transport) → the node of one server."""


class Disturbance(Struct, frozen=True, kw_only=True):
    """Changes of the live world that the simulated one does not share; by default there are none.

    Each of them must make the two transcripts differ.
    """

    extra_delay: dict[str, float] = {}
    """s added to a link's delay, by the link's full name."""
    emulate: bool = True
    """False: there are no links between anybody, as with the emulator off."""
    on_report: Callable[[Report], Report | None] = lambda report: report
    """Returns what arrives of a node's report; None: nothing does."""


UNDISTURBED = Disturbance()


def make_node(config: NodeConfig, scenario: Scenario, clock: Clock, transport: Transport) -> Node:
    """A node as a deployment has it."""
    return Node(config, scenario, clock, transport=transport)


def run_live(
    scenario: Scenario,
    trace: Trace,
    policy: str | PolicySpec,
    disturbance: Disturbance = UNDISTURBED,
    make_node: MakeNode = make_node,
) -> Transcript:
    """Play a trace through client, balancer and nodes on virtual time; arguments as `LiveFleet`.

    After a change of a link's delay, the live least round trip stays the old one for as long as
    that is remembered (10 s), where the simulated report has the new one at once.
    """

    async def run() -> Transcript:
        fleet = LiveFleet(scenario, trace, policy, disturbance, make_node)
        await fleet.run()
        return fleet.transcript()

    return run_virtual(run())


class LiveFleet:
    """A client, a balancer and a node per server. Make it inside a `VirtualLoop`, then `run` it.

    Parameters
    ----------
    scenario:
        Its executor is taken to be *replay*. Jitter, loss, failures other than *slow*,
        *errors* and *wrong* ones, and
        changes of links other than of their rates are not supported: raises ValueError.
    trace:
        What the client sends.
    policy:
        A policy's name, as on the command line, or its description. Raises BadInput for an unknown
        name.
    disturbance:
        What is different from the scenario.
    make_node:
        Makes each node, for a node or an executor of one's own.
    """

    def __init__(
        self,
        scenario: Scenario,
        trace: Trace,
        policy: str | PolicySpec,
        disturbance: Disturbance = UNDISTURBED,
        make_node: MakeNode = make_node,
    ) -> None:
        supported = SlowFailure | ErrorsFailure | WrongFailure
        if not all(isinstance(failure, supported) for failure in scenario.failures):
            raise ValueError("failures: expected slow, errors and wrong ones only")
        self.scenario = msgspec.structs.replace(scenario, executor="replay")
        self.links = shared_links(scenario, disturbance)
        loop = asyncio.get_running_loop()
        self.clock = Clock(loop.time, epoch=loop.time())
        routes = Routes(self.scenario, disturbance.emulate, self.links)
        self.network = MemoryNetwork(routes, CONTROL_DELAY, self._intercept)
        self._disturbance = disturbance
        self._begun = simulation(self.scenario, trace)
        decider = _policy(policy, policy_seeds(scenario.seed, 1)[0])
        self.dispatcher = _RecordingDispatcher(self.scenario, decider, self.clock.now())
        self.balancer = Balancer(self.dispatcher, self.clock)
        app = BalancerApi(self.balancer).app()
        app.freeze()
        self.network.applications[BALANCER] = app
        self.network.serve_channel = self.balancer.serve_channel
        self._outcomes: dict[str, Outcome] = {}
        self.client = self._client(trace, routes)
        self.nodes = {name: self._node(name, make_node) for name in scenario.server_names}

    async def run(self) -> None:
        """Start everything, let the client send the trace, and wait for every outcome."""
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            await self.balancer.start()
            stack.push_async_callback(self.network.close)
            stack.push_async_callback(self.balancer.stop)
            horizon = float(self._begun.world.settings["horizon"][0])
            for name, node in self.nodes.items():
                for at, factor in slowness(self.scenario, name, horizon):
                    loop.call_at(START + at, node.slow_down, factor)
                for at, how in misbehaviours(self.scenario, name):
                    loop.call_at(START + at, node.misbehave, how)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._start_nodes(stack))
                await sleep_until(START)
                await self.client.run()

    def transcript(self) -> Transcript:
        """The decisions and outcomes so far."""
        return Transcript(
            decisions=tuple(map(_decision_record, self.dispatcher.entries)),
            outcomes=dict(self._outcomes),
        )

    def _client(self, trace: Trace, routes: Routes) -> Client:
        scenario, names = self.scenario, self.scenario.server_names
        client = Client(
            ClientConfig(
                scenario="",
                balancer=url_of(BALANCER),
                ingress={name: url_of(name) for name in names},
                failover=False,  # as in the simulator
            ),
            ExactLoad(
                trace=trace,
                ids=tuple(request_id(number) for number in range(len(trace))),
                servers=names,
                payloads={},
                labels=(0,) * len(trace),
                names={},
            ),
            ScoreShape.of(scenario.score),
            self._on_outcome,
            send_labels=True,
            clock=self.clock,
            session=lambda: self.network.session(CLIENT),
        )
        # The simulated client knows its round trips from the start.
        for name in names:
            client.round_trips[name].add(2.0 * routes(CLIENT, name, "").delay, self.clock.now())
        client.balancer.round_trip.add(2.0 * routes(CLIENT, BALANCER, "").delay, self.clock.now())
        return client

    def _node(self, name: str, make_node: MakeNode) -> Node:
        config = NodeConfig(
            scenario="",
            server=name,
            balancer=url_of(BALANCER),
            peers={peer: url_of(peer) for peer in self.scenario.server_names if peer != name},
        )
        return make_node(config, self.scenario, self.clock, MemoryTransport(self.network, name))

    async def _start_nodes(self, stack: AsyncExitStack) -> None:
        """Start the nodes so that they report when the simulated ones do.

        A node sends a report when it starts, before it is connected, and another as soon as the
        balancer has accepted it, but not within `GAP` of a period of the one before.
        """
        gap = GAP * self.scenario.report_period
        times = zip(first_reports(self._begun), self.nodes.values(), strict=True)
        for first, node in sorted(times, key=lambda each: each[0]):
            await sleep_until(START + first - gap)
            await stack.enter_async_context(node)

    def _on_outcome(self, sent: SentRequest, outcome: Outcome) -> None:
        self._outcomes[outcome.request] = from_start(outcome, START)

    def _intercept(self, node: str, data: bytes) -> bytes | None:
        """What arrives of a node's message. Each report also takes the links' figures along."""
        message = decode_from_node(data)
        if not isinstance(message, ReportMessage):
            return data
        report = self._disturbance.on_report(message.report)
        if report is None:
            return None
        if self.scenario.network_state == "emulator":
            self.dispatcher.link_figures[node, report.at] = self._figures(node)
        return encode(ReportMessage(report=report))

    def _figures(self, server: str) -> LinkFigures:
        """The links that start at a server, as the simulator reads them."""
        scenario, links = self.scenario, self.links
        now = asyncio.get_running_loop().time()
        access = scenario.access_of(server)[0]
        round_trips = {access: 2.0 * links[access].delay}
        for other in scenario.server_names:
            if other != server:
                there = scenario.link_between(server, other)[0]
                back = scenario.link_between(other, server)[0]
                # With one uplink for all peers, the last peer's round trip stays.
                round_trips[there] = links[there].delay + links[back].delay
        return [
            (name, links[name].rate(now), round_trip, links[name].backlog(now))
            for name, round_trip in round_trips.items()
        ]


class ExactLoad(PreparedLoad, frozen=True, kw_only=True):
    """Photos of such a length that their bodies weigh what the trace says, and one byte more.

    A receiver times a body from its first bytes on, which come with the headers.
    """

    def payload(self, index: int) -> bytes:
        size = int(self.trace.payload_bytes[index]) + 1
        photo = size
        for _ in range(2):  # the envelope names the photo's length, so it has its digits
            photo += size - len(encode_request(bytes(photo), self.ids[index])[1])
        return bytes(photo)


class _RecordingDispatcher(Dispatcher):
    """A dispatcher that keeps its decisions, and reads the links' figures with each report.

    The simulated balancer does so with ``network_state: emulator``, the real one asks the relay
    every 50 ms.
    """

    def __init__(self, scenario: Scenario, policy: Policy, now: float) -> None:
        super().__init__(scenario, policy, now)
        self.entries: list[TrackedDecision] = []
        self.link_figures: dict[tuple[str, float], LinkFigures] = {}

    def decide(
        self,
        request: Request,
        now: float,
        trigger: str,
        uploaded: float | None = None,
        announced_by: str | None = None,
    ) -> TrackedDecision:
        again = self.counts.again
        entry = super().decide(request, now, trigger, uploaded, announced_by)
        if self.counts.again == again:
            self.entries.append(entry)
        return entry

    def on_report(self, report: Report, now: float, clock_ahead: float) -> None:
        super().on_report(report, now, clock_ahead)
        for name, rate, rtt, backlog in self.link_figures.pop((report.server, report.at), ()):
            self.tracker.on_link(name, rate, rtt, backlog, now, report.at - clock_ahead)


class Routes:
    """The route of each message in a scenario's network (`memory_transport.RouteFinder`)."""

    def __init__(self, scenario: Scenario, emulate: bool, links: dict[str, SharedLink]) -> None:
        self._scenario, self._emulate, self._links = scenario, emulate, links
        # Metadata takes as long as the photo's headers: in the simulator both arrive together.
        access = map(scenario.access_of, scenario.server_names)
        self._metadata_delay = max(spec.delay for _, spec in access)

    def __call__(self, source: str, target: str, path: str) -> MemoryRoute:
        scenario, links, metadata = self._scenario, self._links, self._metadata_delay
        if path == "/v1/outcomes":
            # The ingress tells the balancer first, as it does when the client is farther away than
            # that: in the simulator nobody else tells it.
            return MemoryRoute(None, metadata + 2.0 * CONTROL_DELAY, metadata)
        if not self._emulate or source == target:
            return MemoryRoute(None, 0.0, 0.0)
        if target == BALANCER:
            return MemoryRoute(None, metadata, metadata)
        if source == CLIENT:
            link = links[scenario.access_of(target)[0]]
            return MemoryRoute(link, link.delay, link.delay)
        there = links[scenario.link_between(source, target)[0]]
        back = links[scenario.link_between(target, source)[0]]
        return MemoryRoute(there, there.delay, back.delay)


def _policy(policy: str | PolicySpec, seed: int) -> Policy:
    if isinstance(policy, str):
        return make_policy(policy, seed)
    return Policy("policy", policy, seed)


def shared_links(
    scenario: Scenario, disturbance: Disturbance = UNDISTURBED, start: float = START
) -> dict[str, SharedLink]:
    """The links of a scenario by name, with the changes that it plans; their time begins at
    `start` on the loop's."""
    configs = relay_links(scenario)
    if unknown := disturbance.extra_delay.keys() - configs.keys():
        raise ValueError(f"no link is called {unknown.pop()!r}; there are: {', '.join(configs)}")
    links = {}
    loop = asyncio.get_running_loop()
    for name, settings in configs.items():
        delay = settings.delay + disturbance.extra_delay.get(name, 0.0)
        links[name] = SharedLink(msgspec.structs.replace(settings, delay=delay), start)
    for event in relay_events(scenario):
        if msgspec.to_builtins(event.set).keys() - {"rate_mbps", "trace"}:
            raise ValueError(f"link {event.link}: expected changes of its rate alone")
        capacity = new_capacity(event.set, Path())
        assert capacity is not None
        loop.call_at(start + event.at, links[event.link].change, capacity)
    return links


def _decision_record(entry: TrackedDecision) -> DecisionRecord:
    seen, decision = entry.observation, entry.decision
    context = np.array(seen.context)
    context.view(CONTEXT_COLUMNS)["now"] -= START
    return DecisionRecord(
        request=decision.request,
        at=seen.at - START,
        row=decision.rows[0],
        probability=decision.probability,
        mask=seen.mask,
        rows=seen.rows,
        servers=seen.servers,
        context=context,
    )
