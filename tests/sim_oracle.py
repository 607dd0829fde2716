"""A plain, slow model of the simulated world, written apart from the engine: an oracle for it.

Nothing is clever: at every step all that could happen next is looked at, and what all transfers
have left is brought up to date. Decisions are given. No noise, loss, jitter or dead servers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Job:
    """A request."""

    number: int
    sent: float
    deadline: float
    ingress: int
    payload: float
    server: int
    seconds: float
    ready_seconds: float
    ready_bytes: float
    ready: bool
    upload: float = math.inf
    command: float = math.inf
    crossed: float = math.inf
    transferred: float = math.inf
    started: float = math.inf
    finished: float = math.inf
    dropped: bool = False


@dataclass
class Pipe:
    """A link: bytes/s as steps, outages as spans."""

    delay: float
    steps: list[tuple[float, float]]
    outages: list[tuple[float, float]] = field(default_factory=list)
    fifo: bool = False
    flows: list[list] = field(default_factory=list)  # [bytes left, job, what to do]

    def rate(self, t: float) -> float:
        if any(a <= t < b for a, b in self.outages):
            return 0.0
        return [rate for at, rate in self.steps if at <= t][-1]

    def changes_after(self, t: float) -> float:
        times = [at for at, _ in self.steps] + [x for span in self.outages for x in span]
        return min((x for x in times if x > t), default=math.inf)

    def shares(self, t: float) -> list[float]:
        rate, n = self.rate(t), len(self.flows)
        if self.fifo:
            return [rate if i == 0 else 0.0 for i in range(n)]
        return [rate / max(1, n)] * n


@dataclass
class Machine:
    workers: int
    prepare_seconds: float
    own: bool
    edf: bool
    slow: list[tuple[float, float, float]]
    running: list = field(default_factory=list)  # (end, job, preparing)
    core: list = field(default_factory=list)
    queue: list = field(default_factory=list)
    conversions: list = field(default_factory=list)

    def factor(self, t: float) -> float:
        return math.prod(f for a, b, f in self.slow if a <= t < b)


def play(
    jobs: list[Job],
    access: list[Pipe],
    between: dict[tuple[int, int], Pipe],
    machines: list[Machine],
    control: float,
    grace: float,
) -> None:
    """Play to the end; every job's stamps are then filled in."""
    timers: list[tuple[float, int, object]] = []
    count = 0
    now = 0.0

    def after(t: float, what: object) -> None:
        nonlocal count
        timers.append((t, count, what))
        count += 1

    def send(job: Job, size: float) -> None:
        between[job.ingress, job.server].flows.append([size, job, lambda: crossed(job)])

    def crossed(job: Job) -> None:
        job.crossed = now
        if job.upload <= now:
            after(now + between[job.ingress, job.server].delay, lambda: arrive(job))

    def uploaded(job: Job) -> None:
        job.upload = now
        if job.command < math.inf:
            if job.server == job.ingress:
                arrive(job)
            elif job.ready:
                convert(job)
            elif job.crossed < math.inf:
                after(now + between[job.ingress, job.server].delay, lambda: arrive(job))

    def command(job: Job) -> None:
        job.command = now
        if job.server == job.ingress:
            if job.upload < math.inf:
                arrive(job)
        elif not job.ready:
            send(job, job.payload)
        elif job.upload < math.inf:
            convert(job)

    def convert(job: Job) -> None:
        machines[job.ingress].conversions.append(job)
        work(machines[job.ingress])

    def arrive(job: Job) -> None:
        job.transferred = now
        machine = machines[job.server]
        machine.queue.append(job)
        work(machine)

    def work(machine: Machine) -> None:
        factor = machine.factor(now)
        if machine.own and machine.conversions and not machine.core:
            job = machine.conversions.pop(0)
            machine.core.append((now + machine.prepare_seconds * factor, job))
        while len(machine.running) < machine.workers:
            if machine.conversions and not machine.own:
                job = machine.conversions.pop(0)
                machine.running.append((now + machine.prepare_seconds * factor, job, True))
            elif machine.queue:
                if machine.edf:
                    machine.queue.sort(key=lambda job: job.sent + job.deadline)
                job = machine.queue.pop(0)
                if now >= job.sent + job.deadline * (1.0 + grace):
                    job.dropped = True
                    continue
                job.started = now
                converted = job.ready and job.server != job.ingress
                seconds = job.ready_seconds if converted else job.seconds
                machine.running.append((now + seconds * factor, job, False))
            else:
                return

    for job in jobs:
        pipe = access[job.ingress]

        def begin(job: Job = job, pipe: Pipe = pipe) -> None:
            up = lambda: after(now + pipe.delay, lambda: uploaded(job))  # noqa: E731
            pipe.flows.append([job.payload, job, up])

        after(job.sent, begin)
        after(job.sent + pipe.delay + control, lambda job=job: command(job))

    pipes = [*access, *{id(p): p for p in between.values()}.values()]
    while True:
        # What comes next?
        upcoming = [t for t, _, _ in timers]
        for pipe in pipes:
            if pipe.flows:
                upcoming.append(pipe.changes_after(now))
                for (left, _, _), rate in zip(pipe.flows, pipe.shares(now), strict=True):
                    if rate > 0.0:
                        upcoming.append(now + left / rate)
        for machine in machines:
            upcoming += [end for end, *_ in [*machine.running, *machine.core]]
        if not upcoming or min(upcoming) == math.inf:
            return
        then = min(upcoming)
        for pipe in pipes:
            for flow, rate in zip(pipe.flows, pipe.shares(now), strict=True):
                flow[0] -= rate * (then - now)
        now = then
        # What has happened?
        for pipe in pipes:
            for flow in [flow for flow in pipe.flows if flow[0] <= 1e-6]:
                pipe.flows.remove(flow)
                flow[2]()
        for machine in machines:
            for entry in [entry for entry in machine.core if entry[0] <= now]:
                machine.core.remove(entry)
                send(entry[1], entry[1].ready_bytes)
            for entry in [entry for entry in machine.running if entry[0] <= now]:
                machine.running.remove(entry)
                if entry[2]:
                    send(entry[1], entry[1].ready_bytes)
                else:
                    entry[1].finished = now
            work(machine)
        for timer in sorted(timer for timer in timers if timer[0] <= now):
            timers.remove(timer)
            timer[2]()
