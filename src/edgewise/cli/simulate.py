"""``edgewise simulate``: policies in a scenario, in virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgewise.cli import options, output

if TYPE_CHECKING:
    from rich.table import Table

    from edgewise.policies.base import PolicySpec
    from edgewise.scenario import Scenario
    from edgewise.sim.simulate import Episode


def simulate(
    scenario: options.ScenarioName = "three-sites",
    policy: options.Policies = None,
    seeds: options.Seeds = 1,
    duration: options.Duration = None,
    rate: options.Rate = None,
    seed: options.Seed = None,
    threads: options.Threads = 0,
    allow_code: options.AllowCode = False,
    json: options.Json = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="New folder for the files that `up` writes."),
    ] = None,
) -> None:
    """Simulate a scenario and compare policies.

    All policies get the same arrivals, links and random service times. An
    answer is right with the probability that is its model's accuracy.

    [bold]Examples:[/bold]

      edgewise simulate three-sites --policy earliest_completion,local --seeds 20

      edgewise simulate mine.yaml --duration 600 --json -

      edgewise simulate three-sites --policy my_rules.py:careful,sed
    """
    from edgewise import api
    from edgewise.files import new_folder
    from edgewise.policy_names import labels
    from edgewise.scenario import check, load
    from edgewise.sim.build import SimOptions
    from edgewise.summary_tables import show
    from edgewise.worlds.doubts import doubts_of_files

    console = output.console_beside(json)
    read = load(scenario, allow_code=allow_code)
    world = check(read.with_overrides(duration=duration, rate=rate, seed=seed), scenario)
    policies = options.policies(policy) or [world.policy]
    specs = api.specs_of(policies)
    output.check_writable(json)
    if out is not None:
        require_records()
        new_folder(out)
    for doubt in doubts_of_files(world):
        output.warn(output.console(stderr=True), doubt)
    compile_engine(specs, console)
    with output.progress_bar(console, "simulating", len(specs) * seeds) as bar:
        results = api.simulate(
            world,
            specs,
            seeds=seeds,
            threads=threads,
            options=SimOptions(keep_reports=out is not None),
            progress=lambda _: bar.advance(),
        )
    summary = results.summary()
    show(summary, console)
    if out is not None:
        names = {label: name for name, label in labels(policies).items()}
        _write(out, world, names, results.episodes, summary.to_json())
        output.note(console, f"results: {out}")
    output.write_json(summary.to_json(), json)
    if seeds > 1:  # last: without its extra the results above are kept
        output.note(console, f"{seeds} seeds from {world.seed}, pooled")
        console.print(over_seeds(results.episodes))


def require_records() -> None:
    """Import the packages that files of results need, so that a missing one shows at once."""
    import pyarrow  # noqa: F401

    import edgewise.fidelity.recording  # noqa: F401


def compile_engine(specs: dict[str, PolicySpec], console: Console) -> None:
    """Simulate a tiny scenario, so that what must be compiled is compiled, and say so."""
    from edgewise import api
    from edgewise import scenario as sc

    server = sc.ServerSpec(services=(sc.ServiceSpec(model="m", accuracy=0.5, latency=(0.01,)),))
    small = sc.Scenario(
        name="compile",
        servers={"a": server, "b": server},
        workload=sc.WorkloadSpec(
            duration=0.1,
            arrivals=sc.ConstantArrivals(rate=50.0),
            ingress={"a": 1.0},
            demands=(sc.Demand(deadline=1.0),),
            payload=sc.LognormalPayload(median_bytes=1000.0),
        ),
    )
    with console.status("loading the engine; the first time it is compiled, up to a minute"):
        api.simulate(small, specs, threads=1)


def over_seeds(ended: dict[str, list[Episode]]) -> Table:
    """A table of means over seeds with 95 % confidence intervals.

    Differences to the best other policy are paired by seed, since both met the same world. A seed
    counts as one sample, because the requests of an episode share queues and bursts.
    """
    import numpy as np
    from rich import box
    from rich.table import Table

    from edgewise.benchmark.statistics import Interval, interval
    from edgewise.sim.layout import SERVED

    def shown(found: Interval, sign: str = "") -> str:
        return f"{found.mean:{sign}.3f} ± {found.half:.3f}"

    utility, in_time = {}, {}
    for name, episodes in ended.items():
        worth, met = [], []
        for each in episodes:
            results = each.sim.world.results
            worth.append(float(results["utility"].mean()) if results.size else np.nan)
            good = (results["status"] == SERVED) & (results["latency"] <= each.trace.deadline)
            met.append(float(good.mean()) if results.size else np.nan)
        utility[name], in_time[name] = np.array(worth), np.array(met)
    ranked = sorted(ended, key=lambda name: -float(np.nanmean(utility[name])))
    table = Table(
        title="mean over seeds ± 95 % confidence interval",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("policy", no_wrap=True)
    several = len(ranked) > 1
    for heading in ("utility", *(["vs best other"] if several else []), "in time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for place, name in enumerate(ranked):
        cells = [shown(interval(utility[name]))]
        if several:
            rival = ranked[1] if place == 0 else ranked[0]
            cells.append(shown(interval(utility[name] - utility[rival]), "+"))
        table.add_row(name, *cells, shown(interval(in_time[name])))
    return table


def _write(
    out: Path,
    world: Scenario,
    names: dict[str, str],
    ended: dict[str, list[Episode]],
    summary: bytes,
) -> None:
    """Write the files that `up` writes; a folder for each policy and seed if there are several.

    The scenario in the folder of a policy names it as `names` does, by its label.
    """
    from edgewise.fidelity.recording import record_episode
    from edgewise.live.records import RUN_SCENARIO
    from edgewise.live.run.evaluation import SEED_FOLDER
    from edgewise.scenario import dump

    output.write_file(out / RUN_SCENARIO, dump(world).encode())
    output.write_file(out / "summary.json", summary)
    for label, each in ended.items():
        for episode in each:
            where = out
            if len(ended) > 1:
                where = where / label
            if len(each) > 1:
                where = where / f"{SEED_FOLDER}{episode.scenario.seed}"
            played = episode.scenario.with_overrides(policy=names[label])
            output.write_file(where / RUN_SCENARIO, dump(played).encode())
            record_episode(where, episode)
