"""``edgewise compare-live``: compare the simulator with real processes on the same requests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import options, output


def compare_live(
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
            help="Folder for the files of all runs, page.html and stages.svg. Running the same "
            "command again resumes. Default: no files are kept.",
        ),
    ] = None,
    allow_code: options.AllowCode = False,
    json: options.Json = None,
) -> None:
    """Run a scenario in the simulator and on real processes; compare them stage by stage.

    The processes are those of `edgewise up`, with relays as their network and
    recorded latencies in place of models (with --real, the models themselves).
    Simulator and processes get the same requests. Takes the scenario's duration
    per policy and seed, and a few seconds for each start.

    [bold]Examples:[/bold]

      edgewise compare-live three-sites --policy earliest_completion,local --out runs

      edgewise compare-live smoke --seeds 3 --json -
    """
    from edgewise.api import specs_of
    from edgewise.cli.simulate import compile_engine
    from edgewise.fidelity import comparison_report, live_comparison
    from edgewise.scenario import check, load

    console = output.console_beside(json)
    output.check_writable(json)
    read = load(scenario, allow_code=allow_code)
    shortened = check(read.with_overrides(duration=duration, rate=rate, seed=seed), scenario)
    policies = options.policies(policy) or [shortened.policy]
    compile_engine(specs_of(policies), console)

    def say(line: str) -> None:
        output.note(console, line)

    with tempfile.TemporaryDirectory(prefix="edgewise-compare-") as scratch:
        folder = Path(scratch) / "runs" if out is None else out
        comparison, runs = live_comparison.compare_live(
            shortened, policies, seeds, folder, console, real=real, say=say
        )
    console.print(comparison_report.tables(comparison))
    if out is not None:
        command = f"edgewise compare-live {scenario} --policy {','.join(policies)}"
        command += f" --seeds {seeds}" + (" --real" if real else "")
        comparison_report.write_page(out, comparison, runs, command)
        say(f"page: {out / 'page.html'}")
    output.write_json(output.pretty_json(comparison), json)
