"""Likely mistakes in a scenario that show only in the files it names and in its load.

`scenario.warnings_of` looks at the scenario alone. Here the traces and arrivals are read, and what
is asked is compared with what the services can do. Nothing here makes a scenario unusable: a unit
that was taken for another gives a run, but not the one that was meant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from msgspec import UNSET

from edgewise.domain import Service
from edgewise.network.trace import FileTrace
from edgewise.network.trace_reader import doubt
from edgewise.scenario import Scenario, TraceArrivals
from edgewise.worlds.arrivals import read_arrivals
from edgewise.worlds.workload import mean_rate

LONG_DEADLINE = 10.0
"""s, and times the slowest service: a deadline beyond both is most likely in ms."""
LONG_AGAINST_SERVICES = 100.0


def doubts_of_files(scenario: Scenario) -> Iterator[str]:
    """A sentence for each file that probably says something else than it is read as.

    Raises ScenarioError for a file that cannot be used.
    """
    links = scenario.all_links().items()
    traces = {link.trace: name for name, link in links if isinstance(link.trace, FileTrace)}
    for event in scenario.network.events:
        if event.set.trace is not UNSET and isinstance(event.set.trace, FileTrace):
            traces.setdefault(event.set.trace, event.link)
    recordings = {(t.path, t.format, t.column, t.time_column, t.units): t for t in traces}
    for trace in recordings.values():
        if why := doubt(trace.recorded()):
            yield f"{trace.path} (trace of {traces[trace]}): {why}"
    arrivals = scenario.workload.arrivals
    if isinstance(arrivals, TraceArrivals) and (why := read_arrivals(arrivals).backwards):
        yield f"{arrivals.file}: {why}"


def doubts_of_load(scenario: Scenario, services: Sequence[Service]) -> Iterator[str]:
    """A sentence for each demand or load that is out of all proportion to the services."""
    workload = scenario.workload
    total = math.fsum(demand.share for demand in workload.demands)
    seconds = 0.0
    for index, demand in enumerate(workload.demands):
        fit = [each.latency[0] for each in services if each.accuracy >= demand.accuracy]
        if not fit or demand.share == 0.0:
            continue
        seconds += demand.share / total * min(fit)
        low, high = demand.deadline_range
        if high < min(fit):
            yield (
                f"demands[{index}] has a deadline of {high:g} s, the fastest service that meets it "
                f"takes {min(fit):.3g} s"
            )
        if low > max(LONG_DEADLINE, LONG_AGAINST_SERVICES * max(fit)):
            yield (
                f"demands[{index}] has a deadline of {low:g} s, the slowest service takes "
                f"{max(fit):.3g} s: deadlines are in seconds"
            )
    workers = sum(server.workers for server in scenario.servers.values() if server.services)
    load = mean_rate(workload.arrivals) * seconds / workers
    if load > 1.0:
        yield (
            f"the requests need at least {100.0 * load:,.0f} % of all workers, each on the fastest "
            "service that meets its demand: check the rate (requests/s) and the latencies (s)"
        )
