"""The live code's side: client, nodes and balancer in one virtual-time loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from edgewise import policy as policies
from edgewise.domain import Decision, Observation, Outcome, Report, request_id
from edgewise.fleet.report_timing import GAP
from edgewise.fleet.table import C_NOW
from edgewise.live.balancer.api import application
from edgewise.live.balancer.balancer import Balancer
from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.client.client import Client, SentRequest
from edgewise.live.client.prepared_load import PreparedLoad
from edgewise.live.clock import Clock
from edgewise.live.node.node import Node
from edgewise.live.process_config import ClientConfig, NodeConfig
from edgewise.live.run.addresses import relay_links
from edgewise.live.wire.messages import ReportMessage, decode_from_node, encode
from edgewise.live.wire.open_inference import encode_request
from edgewise.policy import Policy
from edgewise.policy.base import PolicySpec
from edgewise.scenario import Scenario, SlowFailure, slowness
from edgewise.score import ScoreShape
from edgewise.sim.build import CONTROL_DELAY, simulation
from edgewise.testing import simulated
from edgewise.testing.memory_transport import Connection, Party, Switch, Ways, hung_up, url
from edgewise.testing.shared_link import SharedLink
from edgewise.testing.transcript import Chosen, Transcript, shifted
from edgewise.testing.virtual_loop import VirtualLoop, until
from edgewise.worlds.workload import Trace

BEGIN = 10.0
"""s of virtual time before the first of the trace: the processes are up before their client."""
CLIENT, BALANCER = "client", "balancer"


class Meddling(Struct, frozen=True, kw_only=True):
    """What is done to the live world that is not done to the simulated one: nothing. Each of these
    must make the two stories differ."""

    slower: dict[str, float] = {}
    """s of delay more, by full name of a link."""
    emulate: bool = True
    """False: no links between anybody, as with the emulator off."""
    report: Callable[[Report], Report | None] = lambda report: report
    """What of a report arrives; None: nothing."""


NOTHING = Meddling()


class _Load(PreparedLoad, frozen=True, kw_only=True):
    """Photos so long that their bodies weigh what the trace says, and the first byte more.

    A receiver times a body from its first bytes on, which came with the headers.
    """

    def payload(self, index: int) -> bytes:
        size = int(self.trace.payload_bytes[index]) + 1
        photo = size
        for _ in range(2):  # the number of digits of its length is in the envelope
            photo += size - len(encode_request(bytes(photo), self.ids[index])[1])
        return bytes(photo)


Figures = list[tuple[str, float, float, float]]
"""(name, rate bytes/s, round trip s, backlog bytes) of links."""


class _Told(Dispatcher):
    """A dispatcher that is told of the links with each report, as the simulated one is with
    ``network_state: emulator``. The real one asks the relay every 50 ms."""

    figures: dict[tuple[str, float], Figures]

    def on_report(self, report: Report, now: float, clock_ahead: float) -> None:
        super().on_report(report, now, clock_ahead)
        for name, rate, rtt, backlog in self.figures.pop((report.server, report.at), ()):
            self.tracker.on_link(name, rate, rtt, backlog, now, report.at - clock_ahead)


class _Noting(Policy):
    """A policy that keeps what it saw and did."""

    def __init__(self, name: str, rule: PolicySpec, seed: int) -> None:
        super().__init__(name, rule, seed)
        self.decided: list[tuple[Observation, Decision]] = []

    def decide(self, observation: Observation) -> Decision:
        decision = super().decide(observation)
        self.decided.append((observation, decision))
        return decision


def play(scenario: Scenario, trace: Trace, policy: str, meddling: Meddling = NOTHING) -> Transcript:
    """The trace under a policy, by the live code. Raises BadInput for an unknown policy, ValueError
    for what is not carried: jitter, loss, failures but *slow* ones, changes of links but of rates.

    After a change of delay the live least round trip is the old one for as long as that is
    remembered (10 s), where the simulated report has the new one at once.
    """
    if not all(isinstance(failure, SlowFailure) for failure in scenario.failures):
        raise ValueError("parity carries no failures but slow ones")
    scenario = msgspec.structs.replace(scenario, executor="replay", policy=policy)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(_play(scenario, trace, policy, meddling))


async def _play(scenario: Scenario, trace: Trace, policy: str, meddling: Meddling) -> Transcript:
    loop = asyncio.get_running_loop()
    clock = Clock(loop.time, epoch=loop.time())
    begun = simulation(scenario, trace)
    links = _links(scenario, meddling)
    figures: dict[tuple[str, float], Figures] = {}
    take = _taker(scenario, meddling, links, figures)
    ways = _ways(scenario, meddling, links)
    switch = Switch(ways, CONTROL_DELAY, take)
    noting = _Noting(policies.label(policy), policies.find(policy), scenario.seed)
    dispatcher = _Told(scenario, noting, clock.now())
    dispatcher.figures = figures
    balancer = Balancer(dispatcher, clock)
    app = application(balancer)
    app.freeze()
    switch.applications[BALANCER] = app
    switch.converse = balancer.converse
    ended: dict[str, Outcome] = {}

    def keep(sent: SentRequest, outcome: Outcome) -> None:
        ended[outcome.request] = shifted(outcome, BEGIN)

    names = scenario.server_names
    load = _Load(
        trace=trace,
        ids=tuple(request_id(r) for r in range(len(trace))),
        servers=names,
        payloads={},
        labels=(0,) * len(trace),
        names={},
    )
    config = ClientConfig(
        scenario="", balancer=url(BALANCER), ingress={name: url(name) for name in names}
    )
    shape = ScoreShape(grace=scenario.score.grace, accuracy_weight=scenario.score.accuracy_weight)
    client = Client(
        config,
        load,
        shape,
        keep,
        tell_label=True,
        clock=clock,
        session=lambda: switch.session(CLIENT),
    )
    # What its first answers would tell: there is none before the first requests.
    for name in names:
        client.round_trips[name].add(2.0 * ways(CLIENT, name, "").delay, clock.now())
    client.balancer_round_trip.add(2.0 * ways(CLIENT, BALANCER, "").delay, clock.now())
    async with AsyncExitStack() as stack:
        await balancer.start()
        stack.push_async_callback(hung_up, switch)
        stack.push_async_callback(balancer.stop)
        nodes = [_node(scenario, name, switch, clock) for name in names]
        first = simulated.first_reports(begun)
        for node in nodes:
            steps = slowness(scenario, node.config.server, float(begun.world.clock["horizon"][0]))
            for at, factor in steps:
                loop.call_at(BEGIN + at, node.slow_down, factor)
        async with asyncio.TaskGroup() as both:
            both.create_task(_up(nodes, first, scenario.report_period, stack))
            await until(BEGIN)
            await client.run()
    return Transcript(decisions=tuple(map(_chosen, noting.decided)), outcomes=ended)


def _node(
    scenario: Scenario,
    name: str,
    switch: Switch,
    clock: Clock,
) -> Node:
    return Node(
        NodeConfig(
            scenario="",
            server=name,
            balancer=url(BALANCER),
            peers={other: url(other) for other in scenario.server_names if other != name},
        ),
        scenario,
        clock,
        carrier=Party(switch, name),
    )


async def _up(
    nodes: Sequence[Node], first: Sequence[float], period: float, stack: AsyncExitStack
) -> None:
    """Start the nodes so that they report when the simulated ones do.

    A node reports when it starts, when nobody hears it yet, and as soon as the balancer has taken
    it, but not within `GAP` of a period of the one before.
    """
    for at, i in sorted((BEGIN + first[i] - GAP * period, i) for i in range(len(nodes))):
        await until(at)
        await stack.enter_async_context(nodes[i])


def _links(scenario: Scenario, meddling: Meddling) -> dict[str, SharedLink]:
    configs = relay_links(scenario)
    if unknown := meddling.slower.keys() - configs.keys():
        raise ValueError(f"no link is called {unknown.pop()!r}; there are: {', '.join(configs)}")
    links = {}
    loop = asyncio.get_running_loop()
    for name, config in configs.items():
        settings = config.settings(Path())
        settings = msgspec.structs.replace(
            settings, delay=settings.delay + meddling.slower.get(name, 0.0)
        )
        links[name] = SharedLink(settings, config.intervals(), BEGIN)
        for event in config.events:
            changes = event.set.changes(Path())
            if changes.keys() != {"capacity"}:
                raise ValueError(f"link {name}: parity carries changes of its rate alone")
            loop.call_at(BEGIN + event.at, links[name].change, changes["capacity"])
    return links


def _ways(scenario: Scenario, meddling: Meddling, links: dict[str, SharedLink]) -> Ways:
    near = Connection(None, 0.0, 0.0)
    # Metadata takes as long as the headers of the photo: in the simulator both come in together.
    metadata = max(spec.delay for _, spec in map(scenario.access_of, scenario.server_names))

    def way(source: str, target: str, path: str) -> Connection:
        if path == "/v1/outcomes":
            # The balancer hears from the ingress first, as it does when the client is farther away
            # than that: in the simulator nobody else tells.
            return Connection(None, metadata + 2.0 * CONTROL_DELAY, metadata)
        if not meddling.emulate or source == target:
            return near
        if target == BALANCER:
            return Connection(None, metadata, metadata)
        if source == CLIENT:
            link = links[scenario.access_of(target)[0]]
            return Connection(link, link.delay, link.delay)
        there = links[scenario.link_between(source, target)[0]]
        back = links[scenario.link_between(target, source)[0]]
        return Connection(there, there.delay, back.delay)

    return way


def _taker(
    scenario: Scenario,
    meddling: Meddling,
    links: dict[str, SharedLink],
    figures: dict[tuple[str, float], Figures],
) -> Callable[[str, bytes], bytes | None]:
    """What a control channel does with messages: meddling, and a look at the links."""
    given = scenario.network_state == "emulator"
    names = scenario.server_names

    def look(server: str) -> Figures:
        now = asyncio.get_running_loop().time()
        access = links[scenario.access_of(server)[0]]
        found = [(scenario.access_of(server)[0], access, 2.0 * access.delay)]
        for other in names:
            if other != server:
                there, back = (
                    scenario.link_between(server, other),
                    scenario.link_between(other, server),
                )
                rtt = links[there[0]].delay + links[back[0]].delay
                found.append((there[0], links[there[0]], rtt))
        if scenario.network.topology == "uplink":  # it is one link: the last peer's round trip
            found = [found[0], *found[-1:]] if len(found) > 1 else found
        return [(name, link.rate(now), rtt, link.backlog(now)) for name, link, rtt in found]

    def take(node: str, data: bytes) -> bytes | None:
        message = decode_from_node(data)
        if not isinstance(message, ReportMessage):
            return data
        report = meddling.report(message.report)
        if report is None:
            return None
        if given:
            figures[node, report.at] = look(node)
        return encode(ReportMessage(report=report))

    return take


def _chosen(pair: tuple[Observation, Decision]) -> Chosen:
    seen, decision = pair
    context = np.array(seen.context)
    context[C_NOW] -= BEGIN
    return Chosen(
        request=decision.request,
        at=seen.at - BEGIN,
        row=decision.rows[0],
        probability=decision.probability,
        mask=seen.mask,
        rows=seen.rows,
        servers=seen.servers,
        context=context,
    )
