"""What a decision of the learned policy costs among 32 candidates, features included.

    python benchmarks/learned_cost.py

In the simulator: the kernel called by compiled code, in a loop, on tables that have been filled.
Live: `Policy.decide`, from the observation to the decision. Medians of batches, so that what
else runs on the machine does not count much.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np

from edgewise import scenario
from edgewise.cli.failures import in_one_line
from edgewise.compile import by_reference, jit_no_refcount
from edgewise.domain import Observation, PeerReport, QueueItem, Report, Request
from edgewise.fleet.rng import new_rng
from edgewise.fleet.table import table_of_observation
from edgewise.fleet.tracker import Tracker
from edgewise.policies import POLICIES, Policy, PolicySpec, learned, weight_files
from edgewise.sim import engine

SERVERS, EACH = 6, 3
"""The ingress offers three services in one form, the others theirs in two: 33 candidates."""
BATCHES, SIMULATED, LIVE = 31, 2000, 200


def observation() -> Observation:
    """A fleet under way, and a request that 32 candidates could answer."""
    models = (("small", 0.6, 0.006), ("middle", 0.75, 0.02), ("large", 0.85, 0.06))
    services = ", ".join(f"{{model: {m}, accuracy: {a}, latency: [{t}]}}" for m, a, t in models)
    fleet = "\n".join(f"  s{i}: {{workers: 2, services: [{services}]}}" for i in range(SERVERS))
    made = scenario.loads(
        f"name: cost\nreport_period: 0.1\nservers:\n{fleet}\nworkload:\n  duration: 1\n"
        "  arrivals: {kind: poisson, rate: 10}\n  ingress: {s0: 1}\n"
        "  demands: [{share: 1, deadline: [1, 1], accuracy: 0}]\n"
    )
    tracker = Tracker(made)
    now = 1e6
    for i, name in enumerate(tracker.servers):
        tracker.connect(name, now)
        tracker.on_report(
            Report(
                server=name,
                at=now,
                workers=2,
                running=(0.01,),
                queue=tuple(QueueItem(now + 0.1 * j, 0.02) for j in range(i)),
                peers={
                    other: PeerReport(1e6 + 1e5 * i, now, 0.01, 0, 0) for other in tracker.servers
                },
            ),
            now,
        )
    request = Request(id="r", ingress="s0", payload_bytes=107_000, sent_at=now, deadline=1.0)
    return tracker.observe(request, now + 0.01, now)


def simulated(spec: PolicySpec, seen: Observation) -> float:
    """µs a call."""
    table = table_of_observation(seen)
    kernel = engine.compiled(spec.kernel)
    numbers, state = spec.new_params(), spec.new_memory(len(seen.servers))
    draws = new_rng(1)

    @jit_no_refcount
    def loop(kernel, table, numbers, state, draws, n):  # type: ignore[no-untyped-def]
        total = 0.0
        for _ in range(n):
            total += kernel(by_reference(table), numbers, state, draws)
        return total

    loop(kernel, table, numbers, state, draws, 1)
    times = []
    for _ in range(BATCHES):
        began = time.process_time()
        loop(kernel, table, numbers, state, draws, SIMULATED)
        times.append((time.process_time() - began) / SIMULATED)
    return 1e6 * median(times)


def live(spec: PolicySpec, seen: Observation) -> float:
    """µs a decision."""
    policy = Policy("p", spec)
    policy.decide(seen)
    times = []
    for _ in range(BATCHES):
        began = time.process_time()
        for _ in range(LIVE):
            policy.decide(seen)
        times.append((time.process_time() - began) / LIVE)
    return 1e6 * median(times)


def main() -> None:
    """Print the table."""
    seen = observation()
    # Without limits the guard checks as it always does, and never lets the heuristic decide.
    shipped = np.array(POLICIES["edgewise"].params)
    shipped[learned.LAYOUT["low"]], shipped[learned.LAYOUT["high"]] = -np.inf, np.inf
    with_network = shipped.copy()
    learned.named(with_network).options.network = 1.0
    specs = {
        "earliest_completion": POLICIES["earliest_completion"],
        "priced_greedy": POLICIES["priced_greedy"],
        "edgewise": weight_files.learned_spec(shipped, "without limits"),
        "edgewise, with network": weight_files.learned_spec(
            with_network, "with its network evaluated"
        ),
    }
    print(f"{int(seen.mask[:-1].sum())} candidates; median CPU time of {BATCHES} batches")
    print(f"{'policy':24} {'simulator':>12} {'live':>10}")
    for name, spec in specs.items():
        print(f"{name:24} {simulated(spec, seen):9.2f} µs {live(spec, seen):7.1f} µs")


if __name__ == "__main__":
    with in_one_line():
        main()
