"""``edgewise compare-worlds``: the simulator and the real processes on the same requests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgewise.cli.up import write_summary


def compare_worlds(
    scenario: Annotated[
        str, typer.Argument(help="A preset (`edgewise scenarios` lists them) or a file.")
    ] = "three-sites",
    policy: Annotated[
        str | None,
        typer.Option(metavar="P[,P...]", help="Who decides. Default: the scenario's."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="How many: the scenario's seed and those after it.")
    ] = 1,
    duration: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds over which requests are sent.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="R", help="Mean requests per second.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The first one.")] = None,
    real: Annotated[
        bool,
        typer.Option(
            "--real", help="Real models instead of recorded latencies; profile them first."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Files of all runs, page.html and stages.svg; goes on where it stopped. "
            "Default: the files are thrown away.",
        ),
    ] = None,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="The comparison as JSON; - for stdout.")
    ] = None,
) -> None:
    """Run a scenario in the simulator and on real processes; compare them stage by stage.

    The processes are those of `edgewise up`, with relays as their network and
    recorded latencies in place of models (or, with --real, the models). Both
    worlds get the same requests. Takes the scenario's duration per policy and
    seed, and a few seconds for each start.

    [bold]Examples:[/bold]

      edgewise compare-worlds three-sites --policy earliest_completion,local --out worlds

      edgewise compare-worlds smoke --seeds 3 --json -
    """
    import msgspec

    from edgewise.cli.simulate import compile_engine
    from edgewise.errors import BadInput
    from edgewise.fidelity import compare, picture, worlds
    from edgewise.policy import label
    from edgewise.scenario import check, load
    from edgewise.sim.simulate import rule_of

    console = Console(stderr=json == "-")
    world = check(load(scenario).with_overrides(duration=duration, rate=rate, seed=seed), scenario)
    policies = [name.strip() for name in policy.split(",")] if policy else [world.policy]
    for name in policies:
        rule_of(name)
    if len(set(policies)) != len(policies):
        raise BadInput(f"--policy: a policy stands twice in {policy}")
    compile_engine(policies, console)

    def say(line: str) -> None:
        console.print(line, style="dim", markup=False, highlight=False)

    with tempfile.TemporaryDirectory(prefix="edgewise-worlds-") as scratch:
        folder = Path(scratch) / "worlds" if out is None else out
        found = worlds.compare_worlds(world, policies, seeds, folder, console, real=real, say=say)
        runs = {
            name: tuple(
                compare.read_run([folder / where / label(name) / f"seed-{n}" for n in found.seeds])
                for where in (worlds.SIMULATED, worlds.EMULATED)
            )
            for name in policies
        }
        drawn = picture.svg(runs, found.worlds)  # type: ignore[arg-type]
    console.print(picture.tables(found))
    if out is not None:
        command = f"edgewise compare-worlds {scenario} --policy {','.join(policies)}"
        command += f" --seeds {seeds}" + (" --real" if real else "")
        (out / "stages.svg").write_text(drawn, encoding="utf-8")
        (out / "page.html").write_text(picture.page(found, drawn, command), encoding="utf-8")
        say(f"page: {out / 'page.html'}")
    data = msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"
    write_summary(data, json)
