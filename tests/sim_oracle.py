"""A plain, slow model of the simulated world, written apart from the engine: an oracle for it.

Nothing is clever: at every step all that could happen next is looked at, and what all transfers
have left is brought up to date. Decisions are given, without alternatives. No noise, loss, jitter
or dead servers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace


@dataclass
class Job:
    """A request."""

    number: int
    sent: float
    deadline: float
    demanded: float
    ingress: int
    payload: float
    server: int
    model: int  # of the server's
    ready_bytes: float
    ready: bool
    upload: float = math.inf
    command: float = math.inf
    crossed: float = math.inf
    transferred: float = math.inf
    started: float = math.inf
    patience: float = math.inf
    finished: float = math.inf
    status: str = ""
    work: float = 0.0  # that its server expects
    tries: int = 0

    @property
    def due(self) -> float:
        return self.sent + self.deadline


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
class Model:
    accuracy: float
    seconds: float
    saving: float
    mean: float = math.nan  # of what it took, lately

    def expected(self, ready: bool) -> float:
        seconds = self.seconds if math.isnan(self.mean) else self.mean
        return seconds - (self.saving if ready else 0.0)

    def ran(self, seconds: float, ready: bool) -> None:
        seconds += self.saving if ready else 0.0
        self.mean = seconds if math.isnan(self.mean) else 0.8 * self.mean + 0.2 * seconds


@dataclass
class Machine:
    workers: int
    prepare_seconds: float
    own: bool
    edf: bool
    slow: list[tuple[float, float, float]]
    models: list[Model]
    running: list = field(default_factory=list)  # (end, job, preparing, started, end expected)
    core: list = field(default_factory=list)
    queue: list = field(default_factory=list)
    conversions: list = field(default_factory=list)

    def factor(self, t: float) -> float:
        return math.prod(f for a, b, f in self.slow if a <= t < b)

    def wait(self, due: float, t: float) -> float:
        work = sum(job.work for job in self.queue if job.due <= due or not self.edf)
        work += sum(max(0.0, entry[4] - t) for entry in self.running)
        if not self.own:
            work += len(self.conversions) * self.prepare_seconds
        return work / self.workers

    def quickest(self, demanded: float) -> int | None:
        fit = [m for m, model in enumerate(self.models) if model.accuracy >= demanded]
        return min(fit, key=lambda m: self.models[m].expected(False), default=None)


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

    def remotely(job: Job, what: object) -> object:
        """`what`, unless the job has ended or another try has begun."""
        tries = job.tries

        def then() -> None:
            if not job.status and job.tries == tries:
                what()

        return then

    def send(job: Job, size: float) -> None:
        here = machines[job.ingress]
        quickest = here.quickest(job.demanded)
        reserve = 0.0
        if quickest is not None:
            work = here.models[quickest].expected(False)
            reserve = max(2.0 * work + 0.02, 0.25 * grace * job.deadline)
        until = min(job.due + grace * job.deadline - reserve, job.due + 0.5)
        job.patience = max(now, until)
        after(job.patience, remotely(job, lambda: give_up(job)))
        if now < until:
            between[job.ingress, job.server].flows.append([size, job, lambda: crossed(job)])

    def crossed(job: Job) -> None:
        job.crossed = now
        if job.upload <= now:
            delivered(job)

    def delivered(job: Job) -> None:
        delay = between[job.ingress, job.server].delay
        after(now + delay, remotely(job, lambda: arrive(job)))

    def forget(job: Job) -> None:
        """Nobody sends it or has it wait any more. What runs, runs."""
        for pipe in between.values():
            pipe.flows = [flow for flow in pipe.flows if flow[1] is not job]
        for machine in machines:
            machine.queue = [other for other in machine.queue if other is not job]
            machine.conversions = [other for other in machine.conversions if other is not job]

    def give_up(job: Job) -> None:
        there = machines[job.server]
        nobody = replace(job, status="given up")
        there.running = [
            (entry[0], nobody, *entry[2:]) if entry[1] is job else entry for entry in there.running
        ]
        job.transferred = job.started = math.inf
        forget(job)
        job.tries += 1
        here = machines[job.ingress]
        quickest = here.quickest(job.demanded)
        if quickest is not None:
            done = now + here.wait(job.due, now) + here.models[quickest].expected(False)
            idle = len(here.running) < here.workers
            if done <= job.due or done < job.due + (1.0 if idle else 0.5) * grace * job.deadline:
                job.server, job.model, job.ready = job.ingress, quickest, False
                if job.upload <= now:
                    arrive(job)
                return
        job.status = "expired" if now >= job.due else "failed"

    def expire(job: Job) -> None:
        if not job.status:
            job.status = "expired"
            if job.server != job.ingress:  # its ingress does not know how far its peer is
                job.transferred = job.started = math.inf
            forget(job)

    def uploaded(job: Job) -> None:
        job.upload = now
        if job.command < math.inf and not job.status:
            if job.server == job.ingress:
                arrive(job)
            elif job.ready:
                convert(job)
            elif job.crossed < math.inf:
                delivered(job)

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
        converted = job.ready and job.server != job.ingress
        job.work = machine.models[job.model].expected(converted)
        machine.queue.append(job)
        work(machine)

    def work(machine: Machine) -> None:
        factor = machine.factor(now)
        prepare = machine.prepare_seconds
        if machine.own and machine.conversions and not machine.core:
            job = machine.conversions.pop(0)
            machine.core.append((now + prepare * factor, job))
        while len(machine.running) < machine.workers:
            if machine.conversions and not machine.own:
                job = machine.conversions.pop(0)
                machine.running.append((now + prepare * factor, job, True, now, now + prepare))
            elif machine.queue:
                if machine.edf:
                    machine.queue.sort(key=lambda job: job.due)
                job = machine.queue.pop(0)
                job.started = now
                model = machine.models[job.model]
                converted = job.ready and job.server != job.ingress
                seconds = (model.seconds - (model.saving if converted else 0.0)) * factor
                machine.running.append((now + seconds, job, False, now, now + job.work))
            else:
                return

    for job in jobs:
        pipe = access[job.ingress]

        def begin(job: Job = job, pipe: Pipe = pipe) -> None:
            up = lambda: after(now + pipe.delay, lambda: uploaded(job))  # noqa: E731
            pipe.flows.append([job.payload, job, up])

        after(job.sent, begin)
        after(job.sent + pipe.delay + control, remotely(job, lambda job=job: command(job)))
        after(job.due + grace * job.deadline, lambda job=job: expire(job))

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
                if not entry[1].status:
                    send(entry[1], entry[1].ready_bytes)
            for entry in [entry for entry in machine.running if entry[0] <= now]:
                machine.running.remove(entry)
                _, job, preparing, started, _ = entry
                if not preparing:
                    converted = job.ready and job.server != job.ingress
                    machine.models[job.model].ran(now - started, converted)
                if job.status:
                    continue
                if preparing:
                    send(job, job.ready_bytes)
                elif (
                    job.server == job.ingress
                    or now + between[job.server, job.ingress].delay <= job.patience
                ):  # else its ingress has given up before the answer is in
                    job.finished = now
                    job.status = "served"
            work(machine)
        for timer in sorted(timer for timer in timers if timer[0] <= now):
            timers.remove(timer)
            timer[2]()
