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

from edgewise.compile import jit
from edgewise.fleet import table as t
from edgewise.fleet.arrays import Array
from edgewise.fleet.rng import new_rng
from edgewise.policy import POLICIES


def filled(servers: int, services: int) -> t.CandidateTable:
    """A plausible table: unequal servers, a ladder of services, both forms."""
    table = t.blank_table(servers, servers * services)
    luck = np.random.default_rng(0)
    table.mask[:] = 1
    for s in range(servers):
        known = table.servers[s]
        known[t.S_UP] = 1.0
        known[t.S_WORKERS] = 1 + s % 2
        known[t.S_SPEED] = luck.uniform(0.5, 2.0)
        known[t.S_BACKLOG] = luck.exponential(0.1)
        known[t.S_UTILISATION] = luck.uniform(0.2, 0.9)
        known[t.S_REPORT_AGE] = luck.uniform(0.0, 0.5)
        for column in (t.S_RIF, t.S_OUTSTANDING, t.S_QUEUED):
            known[column] = luck.integers(0, 6)
        for column in (t.S_RESPONSE, t.S_PEAK, t.S_RIF_RESPONSE):
            known[column] = luck.uniform(0.05, 0.5)
        known[t.S_ANSWERS_1S] = luck.uniform(1.0, 50.0)
        known[t.S_OFFERED_5S] = luck.uniform(0.2, 0.9)
        for k in range(services):
            for form in range(2):
                r = 2 * (s * services + k) + form
                row = table.rows[r]
                row[t.R_SERVER], row[t.R_SERVICE], row[t.R_FORM] = s, s * services + k, form
                row[t.R_LOCAL] = s == 0
                row[t.R_ACCURACY] = 0.55 + 0.3 * (k + 1) / services
                row[t.R_READY] = luck.uniform(0.01, 0.1)
                row[t.R_WAIT] = known[t.S_BACKLOG]
                row[t.R_SERVICE_TIME] = 0.01 * 2.0**k / known[t.S_SPEED]
                row[t.R_RETURN] = 0.01
                row[t.R_LATENCY] = 0.01 + row[t.R_READY : t.R_RETURN + 1].sum()
                row[t.R_TRANSFER] = 0.02
    context = table.context
    context[t.C_ELAPSED], context[t.C_DEADLINE] = 0.01, 0.25
    context[t.C_GRACE], context[t.C_ACCURACY_WEIGHT] = 1.0, 1.0
    context[t.C_NOW] = 1000.0
    return table


@jit
def run(kernel, table, params, state, draws, calls):  # type: ignore[no-untyped-def]
    """Call the kernel as the simulator does."""
    total = 0.0
    for _ in range(calls):
        table.context[t.C_NOW] += 0.001
        total += kernel(table, params, state, draws)
    return total


def measure(name: str, table: t.CandidateTable, calls: int) -> tuple[float, float]:
    """(s of the first call, ns of a call: the best of five runs)."""
    rule = POLICIES[name]
    params = np.array(rule.params, np.float64)
    state: Array = rule.new_memory(table.servers.shape[0])
    draws = new_rng(1)
    start = time.perf_counter()
    rule.kernel(table, params, state, draws)
    first = time.perf_counter() - start
    run(rule.kernel, table, params, state, draws, 10)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        run(rule.kernel, table, params, state, draws, calls)
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
    main()
