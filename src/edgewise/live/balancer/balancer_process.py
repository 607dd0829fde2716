"""The balancer as a process: HTTP server, signals, files and warm-up around a `Balancer`."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web

from edgewise.domain import Outcome, PeerReport, QueueItem, Report, Request, ServiceReport, Status
from edgewise.errors import BadInput
from edgewise.live.balancer.api import BalancerApi
from edgewise.live.balancer.balancer import Balancer
from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.balancer.node_connection import CLOSE_TIMEOUT
from edgewise.live.clock import Clock
from edgewise.live.process_config import BalancerConfig
from edgewise.live.recorder import Recorder
from edgewise.live.startup import freeze_startup_objects
from edgewise.live.wire.sockets import listen, url_of
from edgewise.policies import Policy
from edgewise.policies import make as make_policy
from edgewise.policy_names import labels
from edgewise.scenario import Scenario, load
from edgewise.security.identity import Role, credentials_for, is_loopback

OnReady = Callable[[dict[str, Any]], None]
"""Called with ``{"balancer": scenario, "url": URL}`` once the process listens."""


def make_dispatcher(
    config: BalancerConfig, clock: Clock, *, allow_code: bool = False
) -> Dispatcher:
    """Read the scenario, make the policies, and compile (or load) all that decides.

    Raises BadInput if the scenario, a policy or the output folder cannot be used.
    """
    scenario = load(config.scenario, allow_code=allow_code)
    if config.relays and scenario.network_state != "emulator":
        raise BadInput(
            f"relays: they are only read with `network_state: emulator`, and {scenario.name} has "
            f"`{scenario.network_state}`"
        )
    name, shadow_name = config.policy or scenario.policy, config.shadow or scenario.shadow
    label = labels([name, *([shadow_name] if shadow_name else [])])
    policy = make_policy(name, scenario.seed, label[name])
    shadow = None
    if shadow_name:
        shadow = make_policy(shadow_name, scenario.seed, label[shadow_name])
    for each in (name, shadow_name):
        if each:
            warm_up(scenario, make_policy(each, scenario.seed), clock.now())
    dispatcher = Dispatcher(scenario, policy, clock.now(), shadow)
    if config.out is not None:
        dispatcher.recorder = Recorder(Path(config.out), dispatcher.tables)
    return dispatcher


def warm_up(scenario: Scenario, policy: Policy, now: float) -> None:
    """Run everything compiled once, on a belief that is thrown away, so that the first request does
    not wait for the compiler."""
    scratch = Dispatcher(scenario, policy, now)
    names = scratch.tracker.servers
    for name in names:
        scratch.tracker.connect(name, now)
        spec = scenario.servers[name]
        report = Report(
            server=name,
            at=now,
            workers=spec.workers,
            running=(0.01,),
            queue=(QueueItem(now + 1.0, 0.01),),
            services={service.model: ServiceReport(0.01, 1.0, 1) for service in spec.services},
            peers={other: PeerReport(1e6, now, 0.001, 0, 0) for other in names},
        )
        scratch.on_report(report, now, 0.0)
    request = Request(id="warm-up", ingress=names[0], payload_bytes=1, sent_at=now, deadline=1.0)
    scratch.decide(request, now, "ask")
    service = scratch.tracker.services[0]
    served = Outcome(
        request=request.id, status=Status.SERVED, server=service.server, model=service.model
    )
    scratch.on_answered(served, now, 0.0)
    scratch.on_outcome(msgspec.structs.replace(served, latency=0.1, label=0, predicted=0), now)
    again = msgspec.structs.replace(request, id="warm-up-2")
    scratch.decide(again, now, "metadata", announced_by="warm-up")
    for name in names:  # forgets the request, and hears of it again
        forgotten = Report(server=name, at=now + 1.0, workers=1, held=())
        scratch.on_report(forgotten, now + 1.0, 0.0)
    scratch.decide(again, now + 1.0, "ask")
    refused = msgspec.structs.replace(request, id="warm-up-3", accuracy=1.0)
    scratch.decide(refused, now + 1.0, "ask")
    for link in scenario.link_names():
        scratch.tracker.on_link(link, 1e6, 0.0, 0.0, now)
    scratch.tracker.warm_up(now)
    scratch.tracker.state(now)
    scratch.tracker.forget(now + 1e6)
    scratch.finish()


async def serve(
    config: BalancerConfig,
    stop: asyncio.Event,
    on_ready: OnReady = lambda where: None,
    *,
    allow_code: bool = False,
) -> None:
    """Run a balancer until `stop` is set; then write everything.

    Raises BadInput as `make_dispatcher`, and if the port cannot be listened on.
    """
    credentials = credentials_for(
        config.identity,
        (Role.BALANCER,),
        hosts=(config.listen.host,),
        trust_anyone=config.trust_anyone_who_connects,
    )
    clock = Clock()
    dispatcher = make_dispatcher(config, clock, allow_code=allow_code)
    balancer = Balancer(dispatcher, clock, config.relays, credentials)
    app = BalancerApi(balancer, on_loopback=is_loopback(config.listen.host)).app()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_TIMEOUT)
    try:
        await runner.setup()
        sock = listen(config.listen.host, config.listen.port)
        context = None if credentials is None else credentials.server_context()
        await web.SockSite(runner, sock, ssl_context=context).start()
        await balancer.start()
        freeze_startup_objects()
        on_ready(
            {"balancer": dispatcher.scenario.name, "url": url_of(sock, secure=context is not None)}
        )
        await stop.wait()
    finally:
        await balancer.stop()
        await runner.cleanup()
        dispatcher.finish()
        await asyncio.to_thread(dispatcher.recorder.close)


def run(
    config: BalancerConfig, on_ready: OnReady = lambda where: None, *, allow_code: bool = False
) -> None:
    """Run a balancer as this process, on uvloop, until SIGTERM or SIGINT; then return.

    Raises BadInput as `serve`.
    """

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            # A second signal changes nothing: it must not interrupt the writing.
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(config, stop, on_ready, allow_code=allow_code)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signal())
