"""The command ``edgewise``: its subcommands, its help, and how errors are shown.

A command imports what it needs when it runs: ``edgewise --help`` answers in a quarter of a second,
while numba, ONNX Runtime and aiohttp together take two to import.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from edgewise import __version__
from edgewise.cli import (
    balancer,
    bench,
    bound,
    calibrate,
    client,
    compare_live,
    configs,
    doctor,
    drill,
    evaluate,
    explain,
    models,
    node,
    pki,
    profile,
    relay,
    scenarios,
    simulate,
    traces,
    train,
    tune,
    up,
)
from edgewise.cli.failures import in_one_line

MAIN = "Run a fleet"
LOOK = "Look around"
STUDY = "Simulate, tune and train"
FIDELITY = "Check the simulator against reality"
HAND = "Start single processes (docs/by-hand.md)"

app = typer.Typer(
    name="edgewise",
    no_args_is_help=True,
    rich_markup_mode="rich",
    # A traceback is for bugs only, and then whole: rich's would hide half of it.
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"edgewise {__version__}")
        raise typer.Exit


@app.callback()
def edgewise(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
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
app.command(rich_help_panel=FIDELITY)(drill.drill)
app.command(rich_help_panel=FIDELITY)(compare_live.compare_live)
app.command(rich_help_panel=FIDELITY)(profile.profile)
app.command(rich_help_panel=FIDELITY)(calibrate.calibrate)
app.command(rich_help_panel=HAND)(balancer.balancer)
app.command(rich_help_panel=HAND)(node.node)
app.command(rich_help_panel=HAND)(relay.relay)
app.command(rich_help_panel=HAND)(client.client)
app.command(rich_help_panel=HAND)(configs.configs)
app.add_typer(pki.app, name="pki", rich_help_panel=HAND)


def main() -> None:
    """Run the command line. Exit codes: 0, and those of `failures.in_one_line`."""
    with in_one_line():
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a full disk is still an error of the command


if __name__ == "__main__":
    main()
