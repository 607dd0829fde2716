"""What may never happen in a drill, whatever the faults, and how it is noticed.

At every event
    - A request ends once: one outcome at the client, and one answer at each server that took it,
      at the latest when it can no longer score.
    - A request runs once at a server, and on two servers at once only if nobody waits for one of
      them any more.
    - No decision sends more than one request at a time, a probe, to a server or path that is
      ejected, and none while its time-out lasts, unless the request has no other way.
    - A handler never raises; a node or a balancer never dies by itself.

Four times a second
    - Queues, answers remembered, commands kept, decisions open and the like are within their
      limits, and a server runs no more jobs than it has workers.

At the end of each request
    - No answer (*lost*) is only for requests whose ingress, or the way to it, had a fault; a broken
      connection likewise; any other failure only while something was wrong somewhere.
    - An answer comes by its limit, unless its ingress or the way to it had a fault.

At the end of the run, after light traffic without faults
    - Requests were answered in time again.
    - Each request has its outcome, and the balancer has settled each decision once.
    - Nothing is left: no request, job, transfer or connection, and as many tasks as before.
    - The balancer believes what is so: every server connected, nothing queued or under way.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from typing import Any

from msgspec import Struct

from edgewise.domain import Command, Outcome, Request, Status
from edgewise.fleet.arrays import EJECTED
from edgewise.fleet.tracker import Tracker
from edgewise.live.balancer.open_decisions import OPEN_MAX, RECENT_MAX
from edgewise.live.client.client import FINAL_READ, LOST_AFTER, SentRequest
from edgewise.live.node.command_source import EARLY_MAX
from edgewise.live.node.node import Node
from edgewise.live.node.single_flight import REMEMBERED
from edgewise.live.node.worker_queue import TICKETS_PER_PLACE
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.score import worthless_after
from edgewise.testing.faults import BALANCER, CLIENT, NONE, RECOVERY, Fault
from edgewise.testing.faulty_network import FaultyNetwork, Observer
from edgewise.testing.processes import Process

ROUNDING = 1e-6
"""s. Clocks read about 1e6 s here, where a double has steps of 1e-10 s."""
ON_THE_WAY = 0.1
"""s that an answer takes to the client without faults, at most."""
AFTERMATH = 1.0
"""s after the end of a fault in which it still explains what happens to the requests under way: a
connection that was reset is noticed one way later, a held message is sent again."""
OUT_OF_TIME = ("no answer in time", "no time left", "too late to run")
"""Reasons of failures that overload alone explains."""
CALM_SHARE, CALM_MIN = 0.4, 20
"""Share of the requests after all faults that must be answered in time, if there are as many. Some
demands are too much for any fleet: without faults, two thirds and more are in time."""
VIOLATIONS_MAX = 20
"""Violations of a run that are kept."""


class Effect(Struct, kw_only=True):
    """A fault that has happened, and until when it explains something."""

    fault: Fault
    since: float
    until: float = float("inf")

    def overlaps(self, start: float, end: float) -> bool:
        return self.since <= end and start <= self.until + AFTERMATH


class Sent(Struct, kw_only=True):
    """A request that has ended, as the client saw it."""

    ingress: str
    at: float
    ended: float
    deadline: float
    outcome: Outcome


class Watch(Observer):
    """Looks on, and keeps a digest of everything that it sees."""

    def __init__(self, grace: float) -> None:
        self.network: FaultyNetwork
        self.violations: list[str] = []
        self.effects: list[Effect] = []
        self.ended: dict[str, Sent] = {}
        self.hits: Counter[str] = Counter()
        """Messages that met a fault, by kind."""
        self.counts: Counter[str] = Counter()
        """Second runs and the like."""
        self.states: dict[str, set[str]] = {}
        """By kind of fault: the states of the fleet that were reached while there was one."""
        self._grace = grace
        self._digest = hashlib.blake2b(digest_size=16)
        self._running: dict[str, dict[Process, int]] = {}
        self._has_run: Counter[tuple[Process, str]] = Counter()
        self._answered: set[tuple[Process, str]] = set()
        self._runs: Counter[str] = Counter()
        self._probes: dict[tuple[Process, int, int], Request] = {}
        self.second_runs: dict[str, float] = {}
        """When a request ran for the second time or later, s."""

    # -- what has happened -----------------------------------------------------------------------

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def note(self, *facts: object) -> None:
        """Add facts to the digest of the run."""
        self._digest.update(repr((self.now, *facts)).encode())

    def digest(self) -> str:
        """Stands for everything that has happened, to the bit."""
        return self._digest.hexdigest()

    def violated(self, problem: str) -> None:
        self.note("violation", problem)
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(f"{self.now:.3f} s: {problem}")

    def fault_began(self, fault: Fault) -> Effect:
        self.note("fault", fault)
        effect = Effect(fault=fault, since=self.now)
        self.effects.append(effect)
        return effect

    def fault_ended(self, effect: Effect) -> None:
        effect.until = self.now

    @property
    def calm_since(self) -> float:
        """When the fleet has to be as it was, s; inf: there is a fault."""
        return max((each.until for each in self.effects), default=0.0) + RECOVERY

    # -- the network -----------------------------------------------------------------------------

    def on_fault(self, fault: Fault) -> None:
        self.hits[fault.kind] += 1

    def on_raised(self, process: Process, path: str, error: Exception) -> None:
        self.violated(f"{process}: {path} raised {error!r}")

    # -- decisions -------------------------------------------------------------------------------

    def decided(
        self,
        process: Process,
        tracker: Tracker,
        targets: Any,
        request: Request,
        command: Command,
        now: float,
    ) -> None:
        """A balancer or a node has decided; `targets` as they were before, `now` on its clock."""
        self.note("decision", process, request.id, command.server, command.model)
        belief = tracker.belief
        if command.server is None or belief.ejection[0].all_barred:
            return
        ingress = tracker.servers.index(request.ingress)
        s = tracker.servers.index(command.server)
        for a in {len(tracker.servers), ingress}:
            target = targets[a, s]
            if target["state"] != EJECTED:
                continue
            self.counts["probes"] += 1
            if now < target["until"]:
                self.violated(f"{process} sends {request.id} to {command.server}, ejected")
            before = self._probes.get((process, a, s))
            if before is not None and not self._has_ended(before):
                self.violated(f"{process} probes {command.server} twice: {before.id}, {request.id}")
            self._probes[process, a, s] = request
        for other in command.alternatives:
            if any(
                targets[a, tracker.servers.index(other.server)]["state"] == EJECTED
                for a in (len(tracker.servers), ingress)
            ):
                self.violated(f"{process}: {request.id} may go on to {other.server}, ejected")

    def _has_ended(self, request: Request) -> bool:
        return request.id in self.ended or any(key[1] == request.id for key in self._answered)

    # -- nodes -----------------------------------------------------------------------------------

    def run_started(self, process: Process, request: str) -> None:
        """A server starts to run a request."""
        self.note("run", process, request)
        running = self._running.setdefault(request, {})
        for other in running:
            if other is process:
                self.violated(f"{request} runs twice at once on {process}")
            elif other.alive and all(
                self.network.is_asked(each, request) for each in (other, process)
            ):
                self.violated(f"{request} starts on {process}, and {other} still runs it")
        running[process] = running.get(process, 0) + 1
        self._runs[request] += 1
        if self._runs[request] > 1:
            self.counts["second runs"] += 1
            self.second_runs.setdefault(request, self.now)
        self._has_run[process, request] += 1
        if self._has_run[process, request] > 1:
            self.violated(f"{request} runs a second time on {process}")

    def run_ended(self, process: Process, request: str) -> None:
        """The run is over, or was cancelled."""
        self.note("ran", process, request)
        running = self._running[request]
        running[process] -= 1
        if not running[process]:
            del running[process]
        if not running:
            del self._running[request]

    def answered(self, process: Process, request: Request, answer: InferAnswer, now: float) -> None:
        """An ingress has an answer for a request; `now` on its clock."""
        self.note("answer", process, request.id, answer.code, answer.outcome.server)
        if (process, request.id) in self._answered:
            self.violated(f"{request.id} is answered a second time by {process}")
        self._answered.add((process, request.id))
        late = now - request.sent_at - worthless_after(request.deadline, self._grace)
        if late > ROUNDING and answer.code != 499 and not self._was_hit(process.name, self.now):
            self.violated(f"{request.id}: {process} answers {late:.3f} s after the limit")

    def _was_hit(self, party: str, start: float) -> bool:
        """Whether a process was stopped, or something happened to it, since `start`."""
        return any(
            each.fault.party == party
            and each.fault.kind in ("pause", "crash", "restart", "version")
            and each.overlaps(start, self.now)
            for each in self.effects
        )

    # -- the client ------------------------------------------------------------------------------

    def outcome(self, sent: SentRequest, outcome: Outcome) -> None:
        """A request has ended, as the client sees it."""
        request = sent.request
        self.note("outcome", request.id, outcome.status, outcome.server, outcome.model)
        if request.id in self.ended:
            self.violated(f"{request.id} has a second outcome, {outcome.status.value}")
            return
        start = self.now - (outcome.latency or 0.0)
        if outcome.latency is None:
            patience = worthless_after(request.deadline, self._grace) + LOST_AFTER + FINAL_READ
            start = self.now - patience
        self.ended[request.id] = Sent(
            ingress=request.ingress,
            at=start,
            ended=self.now,
            deadline=request.deadline,
            outcome=outcome,
        )
        self._check_outcome(request, outcome, start)

    def _check_outcome(self, request: Request, outcome: Outcome, start: float) -> None:
        on_path = self._disturbed(start, request.ingress)
        what = f"{request.id} at {request.ingress}: {outcome.status.value} ({outcome.reason})"
        if outcome.status is Status.LOST and not on_path:
            self.violated(f"{what}, though nothing was wrong there")
        elif outcome.status is Status.FAILED:
            if (outcome.reason or "").startswith("connection") and not on_path:
                self.violated(f"{what}, though nothing was wrong there")
            elif not self._any_fault(start) and not any(
                each in (outcome.reason or "") for each in OUT_OF_TIME
            ):
                self.violated(f"{what}, though nothing was wrong anywhere")
        limit = worthless_after(request.deadline, self._grace) + ON_THE_WAY
        if outcome.latency is not None and outcome.latency > limit and not on_path:
            self.violated(f"{what} after {outcome.latency:.3f} s, the limit is {limit:.3f} s")

    def _any_fault(self, start: float) -> bool:
        return any(each.overlaps(start, self.now) for each in self.effects)

    def _disturbed(self, start: float, ingress: str) -> bool:
        """Whether an ingress or the way from the client to it had a fault since `start`."""
        return any(
            each.overlaps(start, self.now)
            and (
                each.fault.party == ingress
                if each.fault.kind in ("crash", "restart", "version", "pause", "outage")
                else each.fault.kind in ("partition", "drop", "delay", "reorder", "duplicate")
                and (each.fault.concerns(CLIENT, ingress) or each.fault.concerns(ingress, CLIENT))
            )
            for each in self.effects
        )

    def reached(self, programs: dict[str, str]) -> None:
        """The fleet is in a state now: of the balancer, and of the nodes, whichever they are."""
        nodes = sorted(state for name, state in programs.items() if name != BALANCER)
        active = sorted({each.fault.kind for each in self.effects if each.until >= self.now})
        state = " ".join((programs[BALANCER], *nodes, *active))
        for kind in active or [NONE]:
            self.states.setdefault(kind, set()).add(state)

    # -- limits ----------------------------------------------------------------------------------

    def check_node(self, process: Process, node: Node) -> None:
        """What a node keeps is within its limits."""
        queue, requests, commands = node.queue, node.handler.requests, node.commands
        for what, value, limit in (
            ("tickets", queue.size, TICKETS_PER_PLACE * queue.limit),
            ("jobs that wait", queue._ordinary, queue.limit + queue.workers),
            ("jobs that run", queue.busy, queue.workers),
            ("answers remembered", len(requests._ended), REMEMBERED),
            ("commands kept", len(commands._early), EARLY_MAX),
            ("deciders", len(node.monitor._seen), len(node.scenario.servers) + 1),
        ):
            if value > limit:
                self.violated(f"{process}: {value} {what}, at most {limit} are allowed")
        if queue._ordinary and queue.idle and not process.stopped:
            self.violated(f"{process}: a worker is idle while {queue._ordinary} jobs wait")

    def check_balancer(self, process: Process, balancer: Any) -> None:
        """What a balancer keeps is within its limits."""
        decisions = balancer.dispatcher.decisions
        for what, value, limit in (
            ("open decisions", len(decisions), OPEN_MAX),
            ("settled decisions", len(decisions._recent), RECENT_MAX),
            ("deadlines", len(decisions._due), 2 * len(decisions) + 1001),
        ):
            if value > limit:
                self.violated(f"{process}: {value} {what}, at most {limit} are allowed")

    # -- the end ---------------------------------------------------------------------------------

    def check_node_at_end(self, process: Process, node: Node, tasks: int, before: int) -> None:
        """Nothing is left of the requests; `tasks` it has now, and `before` it had any."""
        queue = node.queue
        for what, value in (
            ("requests in flight", node.inflight),
            ("requests that wait", queue.size),
            ("jobs that run", queue.busy),
            ("jobs of the converter", len(node.converter._queue._heap)),
            ("waits for a command", len(node.commands._waiting)),
            ("tasks more than at the start", tasks - before),
        ):
            if value > 0:
                self.violated(f"{process}: {value} {what} are left at the end")
        for peer, link in node.monitor.links.items():
            report = link.report(peer, None, node.clock.now())
            if report.flows or report.backlog:
                self.violated(f"{process}: a transfer to {peer} is left at the end: {report}")

    def check_balancer_at_end(self, process: Process, balancer: Any, alive: list[str]) -> None:
        """The balancer believes what is so."""
        state = balancer.state()
        for name in alive:
            server = state["servers"][name]
            wrong = {
                key: server[key]
                for key, right in (
                    ("connected", True),
                    ("draining", False),
                    ("reported_queue", 0),
                    ("believed_queue", 0),
                    ("outstanding", 0),
                    ("unconfirmed", 0),
                )
                if server[key] != right
            }
            if server["backlog"] > ROUNDING:
                wrong["backlog"] = server["backlog"]
            if wrong:
                self.violated(f"{process} believes of {name}, which is idle: {wrong}")
        for name, link in state["links"].items():
            if link["backlog"] or link["flows"]:
                self.violated(f"{process} believes of the idle link {name}: {link}")
        if state["open"]:
            self.violated(f"{process}: {state['open']} dispatches have no end")

    def check_settled(self, process: Process, balancer: Any) -> None:
        """Called when a balancer has stopped: each decision is settled once."""
        counts = balancer.dispatcher.counts
        settled = sum(counts.settled.values())
        if settled != counts.requests:
            self.violated(f"{process}: {counts.requests} decisions, {settled} settled")

    def check_calm(self) -> None:
        """Long after the last fault, requests are answered in time again."""
        calm = [each for each in self.ended.values() if each.at > self.calm_since]
        good = sum(
            each.outcome.latency is not None
            and each.outcome.status is Status.SERVED
            and each.outcome.latency <= each.deadline
            for each in calm
        )
        if len(calm) >= CALM_MIN and good < CALM_SHARE * len(calm):
            self.violated(
                f"{good} of {len(calm)} requests in time, {RECOVERY:g} s after the last fault"
            )

    def check_requests(self, expected: int) -> None:
        """Every request that was sent has its outcome."""
        if len(self.ended) != expected:
            self.violated(f"{expected} requests, {len(self.ended)} outcomes")

    def check_runs(self) -> None:
        """No server runs anything."""
        left = [
            request
            for request, running in self._running.items()
            if any(process.alive for process in running)
        ]
        if left:
            self.violated(f"runs without an end: {', '.join(left[:5])}")
