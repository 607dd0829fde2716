"""Does a change leave every result of the simulator what it was, to the last bit?

    python benchmarks/same_bits.py FILE [--quick]

The first time, digests of some hundred episodes go into FILE; after that they are compared with it,
and the exit code is 1 if one differs. For work on speed: make FILE before, run again after.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from rich.progress import track
from simulator import fleet

from edgewise import scenario as sc
from edgewise.cli.failures import in_one_line
from edgewise.policies import POLICIES
from edgewise.sim.build import SimOptions, simulation
from edgewise.sim.play import play
from edgewise.worlds import families
from edgewise.worlds.workload import generate

PLAYED = ("earliest_completion", "priced_greedy", "edgewise", "random")
QUICK = ("medium", "combined", "server_failure", "balancer_failure", "two_balancers")


def digest(scenario: sc.Scenario, policy: str, options: SimOptions) -> str:
    """Of all results, and of what links carried and servers were busy with."""
    sim = play(simulation(scenario, generate(scenario, None), options), POLICIES[policy], 1)
    found = hashlib.blake2b(digest_size=8)
    world = sim.world
    for name in sorted(world.results.dtype.names or ()):
        found.update(np.ascontiguousarray(world.results[name], np.float64).tobytes())
    for array in (world.links["bytes"], world.servers["busy_area"], world.clock["utility"]):
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def cases(quick: bool) -> Iterator[tuple[str, sc.Scenario, SimOptions]]:
    """By name: the families, and one small fleet in every way that a scenario can be odd."""
    for name in QUICK if quick else families.STANDARD:
        for seed in (1,) if quick else (1, 5):
            yield (
                f"{name} {seed}",
                families.scenario(name, seed).with_overrides(duration=12.0),
                SimOptions(),
            )
    base = fleet(4, seconds=6.0)
    hot = replace(base, workload=replace(base.workload, arrivals=sc.PoissonArrivals(rate=420.0)))
    lossy = replace(base.network.link, jitter=0.004, loss=0.01)
    thin = replace(base.network.access, rate_mbps=8.0, loss=0.005, loss_mode="reset")
    curves = {
        name: replace(
            server,
            services=tuple(
                replace(each, latency=tuple(each.latency[0] * (1 + 0.3 * b) for b in range(6)))
                for each in server.services
            ),
        )
        for name, server in hot.servers.items()
    }
    short = {name: replace(server, queue_limit=2) for name, server in hot.servers.items()}
    down = (
        sc.DownFailure(server="s1", at=1.5, duration=2.0),
        sc.SlowFailure(server="s0", at=2.0, duration=2.0, factor=3.0),
    )
    mute = (sc.MuteFailure(at=2.0, duration=2.5),)

    def network(**changes: object) -> sc.Scenario:
        return replace(base, network=replace(base.network, **changes))

    odd = {
        "hot": hot,
        "first in first out": replace(hot, discipline="fifo"),
        "a core of its own": replace(base, prepare=replace(base.prepare, on="own")),
        "pairs": network(topology="pair"),
        "told by the emulator": replace(base, network_state="emulator"),
        "lossy": network(link=lossy),
        "reset": network(link=replace(lossy, loss_mode="reset")),
        "thin access": network(access=thin),
        "batches": replace(hot, servers=curves),
        "short queues": replace(hot, servers=short),
        "down": replace(base, failures=down),
        "two, down": replace(base, failures=down, balancers=2),
        "mute": replace(base, failures=mute),
        "mute, down": replace(base, failures=mute + down),
    }
    for name, scenario in odd.items():
        yield name, scenario, SimOptions()
    yield "links one by one", base, SimOptions(fifo_links=True)
    yield "late reports", base, SimOptions(report_delay=0.3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true")
    wishes = parser.parse_args()
    found = {
        f"{name}, {policy}": digest(scenario, policy, options)
        for name, scenario, options in track(list(cases(wishes.quick)), "playing")
        for policy in PLAYED
    }
    if not wishes.file.exists():
        wishes.file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{len(found)} digests in {wishes.file}")
        return 0
    known = json.loads(wishes.file.read_text(encoding="utf-8"))
    differ = [name for name in found if known.get(name) != found[name]]
    print(f"{len(found)} episodes, {len(differ)} differ", *differ, sep="\n  ")
    return 1 if differ else 0


if __name__ == "__main__":
    with in_one_line():
        sys.exit(main())
