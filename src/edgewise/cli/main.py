"""The command ``edgewise``: its help, its subcommands, and what a user sees of an error.

Commands import what they need when they run, not here: ``edgewise --help`` answers in a quarter of
a second, where numba, ONNX Runtime and aiohttp together take two.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from edgewise import __version__
from edgewise.cli import (
    balancer,
    bench,
    bound,
    calibrate,
    client,
    compare_worlds,
    configs,
    doctor,
    evaluate,
    explain,
    models,
    node,
    profile,
    relay,
    scenarios,
    simulate,
    traces,
    train,
    tune,
    up,
)
from edgewise.errors import EdgewiseError, MissingExtra

MAIN = "The main job"
LOOK = "What there is"
STUDY = "Studies in the simulator"
FIDELITY = "How true the simulator is"
HAND = "One process each (docs/by-hand.md)"

app = typer.Typer(
    name="edgewise",
    no_args_is_help=True,
    rich_markup_mode="rich",
    # A traceback is for bugs only, and then whole: rich's would hide half of it.
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgewise {__version__}")
        raise typer.Exit


@app.callback()
def edgewise(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Say which and leave."),
    ] = False,
) -> None:
    """A network-aware load balancer for inference at the edge.

    Photos arrive at edge servers, each with a deadline and an accuracy it
    needs. A balancer decides which model on which server answers, over a
    network whose bandwidth is scarce and changes; an evaluator scores the
    answers by accuracy and time.

    [bold]Begin here:[/bold]

      edgewise up                     three sites, real models, real photos

      edgewise up --policy earliest_completion,round_robin,local

      edgewise scenarios              other fleets, networks and workloads

      edgewise scenario show three-sites > mine.yaml    to make your own

      edgewise up mine.yaml --duration 60 --json summary.json
    """


app.command(rich_help_panel=MAIN)(up.up)
app.command(rich_help_panel=MAIN)(evaluate.evaluate)
app.command(rich_help_panel=LOOK)(scenarios.scenarios)
app.add_typer(scenarios.scenario, name="scenario", rich_help_panel=LOOK)
app.add_typer(models.app, name="models", rich_help_panel=LOOK)
app.add_typer(traces.app, name="traces", rich_help_panel=LOOK)
app.command(rich_help_panel=LOOK)(doctor.doctor)
app.command(rich_help_panel=STUDY)(simulate.simulate)
app.command(rich_help_panel=STUDY)(bench.bench)
app.command(rich_help_panel=STUDY)(tune.tune)
app.command(rich_help_panel=STUDY)(bound.bound)
app.command(rich_help_panel=STUDY)(train.train)
app.command(rich_help_panel=MAIN)(explain.explain)
app.command(rich_help_panel=FIDELITY)(compare_worlds.compare_worlds)
app.command(rich_help_panel=FIDELITY)(profile.profile)
app.command(rich_help_panel=FIDELITY)(calibrate.calibrate)
app.command(rich_help_panel=HAND)(balancer.balancer)
app.command(rich_help_panel=HAND)(node.node)
app.command(rich_help_panel=HAND)(relay.relay)
app.command(rich_help_panel=HAND)(client.client)
app.command(rich_help_panel=HAND)(configs.configs)


def missing_extra(error: ModuleNotFoundError) -> MissingExtra | None:
    """What to install, if the module that is missing comes with an extra; None: it is a bug."""
    module = (error.name or "").partition(".")[0]
    for requirement in metadata.requires("edgewise") or ():
        if "extra == 'dev'" in requirement.replace('"', "'"):
            continue  # it has all the others
        found = re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", requirement)
        if found and found[1].lower().replace("-", "_") == module.lower():
            return MissingExtra(found[2], module)
    return None


def _run() -> None:
    """The command; a missing library becomes the error that says which extra brings it."""
    try:
        app()
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        raise missing from None


def main() -> None:
    """Run the command line. Exit codes: 0; 2 for a mistake of the user or a peer that failed; 130
    for Ctrl-C. Only bugs show a traceback."""
    try:
        _run()
    except EdgewiseError as error:
        first, *rest = str(error).splitlines() or [type(error).__name__]
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(Text.assemble(("error: ", "bold red"), (first, "red")))
        for each in rest:  # the end of a log
            console.print(Text(each, style="dim"))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
