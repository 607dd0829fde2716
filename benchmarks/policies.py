"""What one call of each rule's kernel costs, and what compiling it does.

    python benchmarks/policies.py [--servers 8] [--services 4] [--calls 20000] [--json FILE]

A table of so many servers with so many services each, all rows admissible; the clock advances a
millisecond a call, so that timers and reports take their part. `compile` is the first call: from
the cache where there is one (set NUMBA_CACHE_DIR to an empty folder to see it without).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from edgewise.cli.failures import in_one_line
from edgewise.compile import jit
from edgewise.fleet import table as t
from edgewise.fleet.arrays import Array
from edgewise.fleet.rng import new_rng
from edgewise.policies import POLICIES


def filled(servers: int, services: int) -> t.CandidateTable:
    """A plausible table: unequal servers, a ladder of services, both forms."""
    table = t.blank_table(servers, servers * services)
    luck = np.random.default_rng(0)
    table.mask[:] = 1
    rows = table.rows
    for s in range(servers):
        known = table.servers[s]
        known.up = 1.0
        known.workers = 1 + s % 2
        known.speed = luck.uniform(0.5, 2.0)
        known.backlog = luck.exponential(0.1)
        known.utilisation = luck.uniform(0.2, 0.9)
        known.report_age = luck.uniform(0.0, 0.5)
        for column in ("rif", "outstanding", "queued"):
            known[column] = luck.integers(0, 6)
        for column in ("response", "peak", "rif_response"):
            known[column] = luck.uniform(0.05, 0.5)
        known.answers_1s = luck.uniform(1.0, 50.0)
        known.offered_5s = luck.uniform(0.2, 0.9)
        for k in range(services):
            for form in range(2):
                r = 2 * (s * services + k) + form
                rows.server[r], rows.service[r], rows.form[r] = s, s * services + k, form
                rows.local[r] = s == 0
                rows.accuracy[r] = 0.55 + 0.3 * (k + 1) / services
                rows.until_input[r] = luck.uniform(0.01, 0.1)
                rows.wait[r] = known.backlog
                rows.service_time[r] = 0.01 * 2.0**k / known.speed
                rows.return_time[r] = 0.01
                rows.latency[r] = 0.01 + rows.until_input[r] + rows.wait[r]
                rows.latency[r] += rows.service_time[r] + rows.return_time[r]
                rows.transfer[r] = 0.02
    context = table.context
    context.elapsed, context.deadline = 0.01, 0.25
    context.grace, context.accuracy_weight = 1.0, 1.0
    context.now = 1000.0
    return table


@jit
def run(kernel, table, params, state, draws, calls):  # type: ignore[no-untyped-def]
    """Call the kernel as the simulator does."""
    total = 0.0
    for _ in range(calls):
        table.context.now += 0.001
        total += kernel(table, params, state, draws)
    return total


def measure(name: str, table: t.CandidateTable, calls: int) -> tuple[float, float]:
    """(s of the first call, ns of a call: the best of five runs)."""
    spec = POLICIES[name]
    params = spec.new_params()
    state: Array = spec.new_memory(table.servers.shape[0])
    draws = new_rng(1)
    start = time.perf_counter()
    spec.kernel(table, params, state, draws)
    first = time.perf_counter() - start
    run(spec.kernel, table, params, state, draws, 10)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        run(spec.kernel, table, params, state, draws, calls)
        best = min(best, time.perf_counter() - start)
    return first, best / calls * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, default=8)
    parser.add_argument("--services", type=int, default=4)
    parser.add_argument("--calls", type=int, default=20000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"{arguments.servers} servers x {arguments.services} services x 2 forms")
    print(f"{'rule':<28}{'ns/call':>10}{'compile s':>12}")
    found = []
    for name in POLICIES:
        table = filled(arguments.servers, arguments.services)
        first, nanoseconds = measure(name, table, arguments.calls)
        print(f"{name:<28}{nanoseconds:>10.0f}{first:>12.2f}", flush=True)
        found.append({"rule": name, "ns_per_call": nanoseconds, "compile_s": first})
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    with in_one_line():
        main()
