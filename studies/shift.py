"""Worlds outside the training distribution: larger fleets, other models, other links.

Training has 3 to 6 servers, two ladders of four models, and uplinks of 0.8 to 40 Mbit/s before they
drift. The heuristic is the shipped `priced_greedy`: the guard falls back to it, and the policy must
not fall behind it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edgewise.benchmark.statistics import interval
from edgewise.policies.base import PolicySpec
from edgewise.scenario import Scenario, ServerSpec
from edgewise.worlds.families import volatile
from edgewise.worlds.random_world import at_load, base
from studies.experiment import Arm, Experiment, Section, WorldCondition, held_out, percent, pm

OTHER = ((0.45, 0.003), (0.66, 0.02), (0.81, 0.055), (0.93, 0.17))
"""(accuracy, s at speed 1) of models that no training world has, below and above both ladders."""
ALLOWED = 0.005
"""Share of the heuristic's utility that may be lost."""


def other_models(world: Scenario) -> Scenario:
    """Every rung of the world's ladder replaced by the same rung of `OTHER`, at the same load."""
    rungs: dict[str, tuple[float, float]] = {}
    known = {
        service.model: service.accuracy or 0.0
        for server in world.servers.values()
        for service in server.services
    }
    for rung, model in enumerate(sorted(known, key=known.__getitem__)):
        rungs[model] = OTHER[rung]

    def with_others(server: ServerSpec) -> ServerSpec:
        services = tuple(
            msgspec.structs.replace(
                service, accuracy=rungs[service.model][0], latency=(rungs[service.model][1],)
            )
            for service in server.services
        )
        return msgspec.structs.replace(server, services=services)

    floors = sorted({demand.accuracy for demand in world.workload.demands})
    asked = [0.0, *(round(accuracy - 0.01, 3) for accuracy, _ in OTHER[1:])]
    moved = dict(zip(floors, asked, strict=True))
    demands = tuple(
        msgspec.structs.replace(demand, accuracy=moved[demand.accuracy])
        for demand in world.workload.demands
    )
    changed = msgspec.structs.replace(
        world,
        servers={name: with_others(server) for name, server in world.servers.items()},
        workload=msgspec.structs.replace(world.workload, demands=demands),
    )
    return at_load(changed, 0.8)


SHIFTS: dict[str, Callable[[int], Scenario]] = {
    "20 to 32 servers": lambda seed: base("shift", seed, servers=(20, 32)),
    "32 servers": lambda seed: base("shift", seed, servers=(32, 32)),
    "32 servers, load 1.3": lambda seed: base("shift", seed, servers=(32, 32), load=1.3),
    "2 servers": lambda seed: base("shift", seed, servers=(2, 2)),
    "other models": lambda seed: other_models(base("shift", seed)),
    "links of 40 to 400 Mbit/s": lambda seed: base("shift", seed, width=10.0),
    "links of 0.4 to 4 Mbit/s": lambda seed: base("shift", seed, width=0.1),
    "load 2.5": lambda seed: base("shift", seed, load=2.5),
    "a report every 4 s": lambda seed: base("shift", seed, report_period=4.0),
    "all at once": lambda seed: volatile(
        other_models(base("shift", seed, servers=(20, 32), width=0.1, report_period=0.5))
    ),
}


def study(experiment: Experiment, heuristic: PolicySpec, policy: PolicySpec) -> Section:
    """The paired difference in every shifted world."""
    conditions = [WorldCondition(name=name, world=world) for name, world in SHIFTS.items()]
    everyone = [Arm(name="priced_greedy", policy=heuristic), Arm(name="edgewise", policy=policy)]
    values, seeds = experiment.utilities("shift", conditions, everyone)
    lines = [
        f"Worlds outside the training distribution; {held_out(seeds)}.",
        "",
        "| worlds | priced_greedy | edgewise | difference | in % |",
        "|---|---|---|---|---|",
    ]
    figures: dict[str, object] = {"seeds": seeds}
    missed, same = [], []
    for c, condition in enumerate(conditions):
        plain, mine = values[c]
        gain = interval(mine - plain)
        lines.append(
            f"| {condition.name} | {plain.mean():.4f} | {mine.mean():.4f} | {pm(gain)} "
            f"| {percent(gain, float(plain.mean()))} |"
        )
        figures[condition.name] = gain
        if (mine == plain).all():
            same.append(condition.name)
        if gain.mean < -ALLOWED * plain.mean():
            missed.append(condition.name)
    lines += [
        "",
        f"More than {100 * ALLOWED:g} % below the heuristic in: {', '.join(missed) or 'none'}.",
    ]
    if same:
        lines[-1] += f" The guard left every decision to the heuristic in: {', '.join(same)}."
    return Section(lines=lines, figures={**figures, "missed": missed, "guarded": same})
