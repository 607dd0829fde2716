"""``edgewise bound``: how far policies are from what was possible with full foresight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgewise.cli import options, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgewise.bound.gap import Effort, Gap
    from edgewise.policies.base import PolicySpec
    from edgewise.scenario import Scenario
    from edgewise.sim.source import WorldSource

FAMILY = "family:"
SHIPPED = "edgewise"
"""The learned policy that comes with the package."""


def bound(
    scenario: Annotated[
        str, typer.Argument(help="A preset, a file, or family:NAME (a family of `edgewise bench`).")
    ] = "three-sites",
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="P[,P...]",
            help="Policies to compare, separated by commas. Default: all but random.",
        ),
    ] = None,
    seeds: options.Seeds = 3,
    seed: options.Seed = None,
    duration: options.Duration = None,
    rate: options.Rate = None,
    trials: Annotated[
        int | None,
        typer.Option(min=0, help="Trials of the clairvoyant search. Default: 25 per request."),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="S",
            help="Time limit of a search; its result then depends on the machine.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the descent to the bound. Default: 300.")
    ] = None,
    threads: options.Threads = 0,
    json: options.Json = None,
) -> None:
    """Show how far policies are from what was possible with full foresight.

    For each world: the expected utility of each policy; of a clairvoyant plan,
    found by local search in the simulator with the whole episode known; and an
    upper bound that no policy exceeds, by Lagrangian duality.

    [bold]Examples:[/bold]

      edgewise bound three-sites --seeds 5

      edgewise bound family:heavy --duration 3 --policy priced_greedy,edgewise

      edgewise bound volatile --seeds 10 --seconds 20 --json bound.json
    """
    from edgewise.api import specs_of
    from edgewise.bound import dual
    from edgewise.bound.gap import Effort, mean_gap
    from edgewise.cli.simulate import compile_engine
    from edgewise.policies import POLICIES
    from edgewise.policy_names import WEIGHTS, labels

    console = output.console_beside(json)
    output.check_writable(json)
    names = options.policies(policy) or [*POLICIES]
    if policy is None:
        names.remove("random")
    label = labels(names)
    policies = specs_of(names)
    learned = {label[name] for name in names if name == SHIPPED or WEIGHTS in name}
    source = _source(scenario, duration, rate)
    first = source.first_seed if seed is None else seed
    world = source.scenario(first)
    compile_engine(policies, console)
    effort = Effort(
        steps=dual.STEPS if steps is None else steps,
        trials=trials,
        seconds=math.inf if seconds is None else seconds,
    )
    gaps = _measure(source, range(first, first + seeds), policies, effort, threads, console)
    mean = mean_gap(gaps)
    console.print(_table(world, gaps, mean, learned))
    data = {
        "scenario": world.name,
        "duration": world.workload.duration,
        "worlds": gaps,
        "mean": mean,
    }
    output.write_json(output.pretty_json(data), json)


def _source(name: str, duration: float | None, rate: float | None) -> WorldSource:
    from edgewise.bound.gap import DURATION
    from edgewise.scenario import check
    from edgewise.sim.source import WorldSource

    def change(world: Scenario) -> Scenario:
        short = min(world.workload.duration, DURATION) if duration is None else duration
        return check(world.with_overrides(duration=short, rate=rate), name)

    if name.startswith(FAMILY):
        return WorldSource(family=name.removeprefix(FAMILY), change=change)
    return WorldSource(scenario=name, change=change)


def _measure(
    source: WorldSource,
    seeds: Sequence[int],
    policies: dict[str, PolicySpec],
    effort: Effort,
    threads: int,
    console: Console,
) -> list[Gap]:
    from concurrent.futures import ThreadPoolExecutor

    from edgewise.bound.gap import measure_gap
    from edgewise.cores import usable_cores

    with output.progress_bar(console, "loading") as bar:
        shares = [0.0] * len(seeds)

        def measure(n: int) -> Gap:
            def progress(share: float, what: str) -> None:
                shares[n] = share
                bar.show(sum(shares), len(seeds), what)

            world = source.scenario(seeds[n])
            trace = source.trace(world)
            return measure_gap(world, policies, trace=trace, effort=effort, progress=progress)

        with ThreadPoolExecutor(threads or usable_cores()) as pool:
            return list(pool.map(measure, range(len(seeds))))


def _table(world: Scenario, gaps: Sequence[Gap], mean: Gap, learned: set[str]) -> Table:
    from edgewise.bound.gap import closed_share

    heuristics = {name: u for name, u in mean.policies.items() if name not in learned}
    best = max((heuristics or mean.policies).values())
    table = Table(
        title=f"{world.name}: {len(gaps)} worlds of {world.workload.duration:g} s, "
        f"{mean.requests} requests, seeds from {mean.seed}",
        caption="Means over worlds. The clairvoyant plan can be attained, by luck; nothing "
        "exceeds the bound. closed: share of the gap from the best heuristic to the clairvoyant",
    )
    table.add_column("")
    for column in ("utility", "of the bound", "short of clairvoyant", "closed"):
        table.add_column(column, justify="right")

    def row(name: str, utility: float, style: str = "") -> None:
        share = closed_share(utility, best, mean.clairvoyant)
        short = mean.clairvoyant - utility
        table.add_row(
            name,
            f"{utility:.4f}",
            f"{utility / mean.bound:.1%}" if mean.bound > 0.0 else "",
            f"{short:.4f}" if short > 0.0 else "",
            f"{share:.0%}" if share >= 0.0 else "",
            style=style,
        )

    for name, utility in sorted(mean.policies.items(), key=lambda item: item[1]):
        row(name, utility, "bold" if utility == best else "")
    table.add_section()
    row("clairvoyant", mean.clairvoyant)
    row("upper bound", mean.bound)
    return table
