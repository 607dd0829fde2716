"""``edgewise compare-worlds``: the simulator and the real processes on the same requests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import options, output


def compare_worlds(
    scenario: options.ScenarioName = "three-sites",
    policy: options.Policies = None,
    seeds: options.Seeds = 1,
    duration: options.Duration = None,
    rate: options.Rate = None,
    seed: options.Seed = None,
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
    allow_code: options.AllowCode = False,
    json: options.Json = None,
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
    from edgewise.cli.simulate import compile_engine
    from edgewise.fidelity import compare, picture, worlds
    from edgewise.policy_names import labels
    from edgewise.scenario import check, load
    from edgewise.sim.simulate import rule_of

    console = output.console_beside(json)
    read = load(scenario, allow_code=allow_code)
    world = check(read.with_overrides(duration=duration, rate=rate, seed=seed), scenario)
    policies = options.policies(policy) or [world.policy]
    for name in policies:
        rule_of(name)
    compile_engine(policies, console)
    label = labels(policies)

    def say(line: str) -> None:
        output.note(console, line)

    with tempfile.TemporaryDirectory(prefix="edgewise-worlds-") as scratch:
        folder = Path(scratch) / "worlds" if out is None else out
        found = worlds.compare_worlds(world, policies, seeds, folder, console, real=real, say=say)
        runs = {
            name: tuple(
                compare.read_run([folder / where / label[name] / f"seed-{n}" for n in found.seeds])
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
    output.write_json(output.pretty_json(found), json)
