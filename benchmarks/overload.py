"""More load than a fleet can answer, on real processes: how much of its capacity is used in time.

    python benchmarks/overload.py [--levels 2,5,10] [--seconds 120] [--docs docs/reliability.md]

Three servers replay models of 200 and 400 ms: their workers, not this machine's cores, are the
capacity. Each run offers half of the capacity, then so many times the capacity, then half
again, once by task (any model) and once naming the slower model. Every request has a photo of some
10 kB and goes out on its schedule, however the earlier ones fare.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from edgewise.benchmark.document import rewrite
from edgewise.benchmark.report import table
from edgewise.cli.failures import in_one_line
from edgewise.domain import Outcome, Status
from edgewise.scenario import Scenario, loads
from edgewise.score import ScoreShape

with in_one_line():
    from edgewise.live.client.client import Client, SentRequest
    from edgewise.live.client.prepared_load import PreparedLoad, read_load
    from edgewise.live.process_config import ClientConfig
    from edgewise.live.run.deployment import Deployment

SCENARIO = """
name: overload
executor: replay
report_period: 0.1
servers:
  a: {workers: 1, services: [&exact {model: exact, accuracy: 0.8, latency: [0.4]}, &quick {model: quick, accuracy: 0.6, latency: [0.2]}]}
  b: {workers: 2, services: [*exact, *quick]}
  c: {workers: 1, services: [*exact, *quick]}
network: {emulate: false}
workload:
  duration: 1
  arrivals: {kind: poisson, rate: 1}
  ingress: {a: 1, b: 1, c: 1}
  demands: [{deadline: [1.6, 3.2]}]
  payload: {kind: lognormal, median_bytes: 10000, sigma: 0.3}
"""  # noqa: E501
WORKERS, NAMED = 4, "exact"
CAPACITY = {None: WORKERS / 0.2, NAMED: WORKERS / 0.4}
"""requests/s that the fleet can answer, by the model that they name."""
LEAD, REST, CALM = 5.0, 15.0, 0.5
"""s before and after the overload, and the load then, in capacities."""


class Measured(Struct, frozen=True):
    """One run."""

    level: float
    named: str | None
    sent: int
    in_time: int
    goodput: float
    """Share of the workers' time during the overload that went into answers in time."""
    late: int
    lost: int
    refused: list[float]
    """s of each refusal."""
    recovery: float
    """s from the end of the overload until the last request was sent that was not in time."""


def overload(scenario: Scenario, level: float, seconds: float, named: str | None) -> PreparedLoad:
    """The requests of a run."""

    def phase(rate: float, duration: float) -> Scenario:
        workload = scenario.workload
        arrivals = replace(workload.arrivals, rate=rate)
        return replace(scenario, workload=replace(workload, arrivals=arrivals, duration=duration))

    rate = CAPACITY[named] * max(level, 1.0)
    longest = read_load(phase(rate, LEAD + seconds + REST), "overload")
    times = longest.trace.time
    keep, rng = np.zeros(len(times), bool), np.random.default_rng(scenario.seed)
    inside = (times >= LEAD) & (times < LEAD + seconds)
    keep[inside] = True
    keep[~inside] = rng.random((~inside).sum()) < CALM / max(level, 1.0)
    trace = replace(
        longest.trace,
        **{name: getattr(longest.trace, name)[keep] for name in longest.trace.__struct_fields__},
    )
    chosen = np.flatnonzero(keep)
    return replace(
        longest,
        trace=trace,
        ids=tuple(longest.ids[i] for i in chosen),
        labels=tuple(longest.labels[i] for i in chosen),
        named_model=named,
    )


class Ended(Struct, frozen=True):
    """How a request ended."""

    sent: float
    """s from the beginning of the run."""
    outcome: Outcome
    in_time: bool


async def play(scenario: Scenario, load: PreparedLoad, folder: Path) -> list[Ended]:
    """Send a load to a fleet of processes."""
    ended: list[Ended] = []

    def on_outcome(entry: SentRequest, outcome: Outcome) -> None:
        served = outcome.status is Status.SERVED and outcome.latency is not None
        in_time = served and (outcome.latency or 0.0) <= entry.request.deadline
        ended.append(Ended(entry.request.sent_at, outcome, in_time))

    async with Deployment(scenario, folder, with_client=False) as fleet:
        config = ClientConfig(
            scenario="",
            balancer=fleet.addresses.balancer_url(),
            ingress=dict(fleet.addresses.ingress),
        )
        shape = ScoreShape.of(scenario.score)
        client = Client(config, load, shape, on_outcome, send_labels=True)
        await client.run()
    start = min(each.sent for each in ended) - float(load.trace.time[0])
    return [replace(each, sent=each.sent - start) for each in ended]


def measure(level: float, seconds: float, named: str | None, policy: str) -> Measured:
    """Run one level on a fleet of its own."""
    scenario = replace(loads(SCENARIO), policy=policy)
    load = overload(scenario, level, seconds, named)
    with tempfile.TemporaryDirectory() as folder:
        ended = asyncio.run(play(scenario, load, Path(folder) / "run"))
    end = LEAD + seconds
    during = [each for each in ended if LEAD <= each.sent < end]
    good = [each.outcome.stamps for each in during if each.in_time]
    busy = sum((stamps.finished or 0.0) - (stamps.started or 0.0) for stamps in good)
    bad_after = [each.sent for each in ended if each.sent >= end and not each.in_time]
    statuses = [each.outcome.status for each in during]
    refused = [each.outcome for each in during if each.outcome.status is Status.SHED]
    return Measured(
        level=level,
        named=named,
        sent=len(during),
        in_time=len(good),
        goodput=busy / (WORKERS * seconds),
        late=statuses.count(Status.SERVED) - len(good) + statuses.count(Status.EXPIRED),
        lost=statuses.count(Status.LOST) + statuses.count(Status.FAILED),
        refused=[outcome.latency or 0.0 for outcome in refused],
        recovery=max(bad_after, default=end) - end,
    )


def markdown(runs: list[Measured], command: str) -> str:
    """The section of docs/reliability.md."""
    rows = []
    for run in runs:
        p50, p99 = (
            (f"{1e3 * np.percentile(run.refused, q):.1f} ms" for q in (50, 99))
            if run.refused
            else ("", "")
        )
        rows.append(
            (
                f"{run.level:g}×",
                f"model `{run.named}`" if run.named else "task",
                f"{run.sent}",
                f"{run.in_time}",
                f"{run.goodput:.1%}",
                f"{run.late}",
                f"{run.lost}",
                f"{len(run.refused)}",
                p50,
                p99,
                f"{run.recovery:.1f} s",
            )
        )
    head = (
        *("offered", "named", "sent", "in time", "of capacity", "late", "failed", "refused"),
        *("p50 of refusals", "p99", "recovery"),
    )
    return (
        f"`{command}` measured this on real processes: three servers with {WORKERS} workers in "
        "all, which replay models of 200 and 400 ms; photos of some 10 kB, deadlines of 1.6 to "
        "3.2 s; once the capacity is what the workers can answer with the quicker model, or "
        "with the one that is named. *Of capacity* is "
        "the share of the workers' time that went into answers in time; *recovery* the time after "
        "the overload until the last request was sent that was not answered in time.\n\n"
        + table(head, rows)
    )


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--levels", default="2,5,10", help="times the capacity")
    parser.add_argument("--seconds", type=float, default=120.0, help="of overload")
    parser.add_argument("--policy", default="edgewise")
    parser.add_argument("--docs", type=Path, help="Markdown file to rewrite")
    options = parser.parse_args()
    runs = []
    for level in map(float, options.levels.split(",")):
        for named in (None, NAMED):
            began = time.monotonic()
            runs.append(measure(level, options.seconds, named, options.policy))
            run = runs[-1]
            p99 = np.percentile(run.refused, 99) if run.refused else 0.0
            print(
                f"{level:g}x {named or 'task'}: {run.goodput:.1%} of capacity, {run.late} late, "
                f"{run.lost} failed, p99 of refusals {1e3 * p99:.1f} ms, "
                f"recovery {run.recovery:.1f} s ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
    command = (
        f"python benchmarks/overload.py --levels {options.levels} --seconds {options.seconds:g}"
    )
    text = markdown(runs, command)
    if options.docs is None:
        print(text)
    else:
        rewrite(options.docs, "overload", text)


if __name__ == "__main__":
    main()
