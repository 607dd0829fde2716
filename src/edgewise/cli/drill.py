"""``edgewise drill``: faults, and what becomes of the requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli import options, output
from edgewise.errors import BadInput

if TYPE_CHECKING:
    from rich.table import Table

    from edgewise.testing.drill import DrillTotals

SEEDS = 20
"""Runs by default: half a minute."""
VIOLATIONS_SHOWN = 5
HEADINGS = ("met", "sent", "served", "late", "shed", "failed", "broken", "again", "states")
"""Of the table: the fields of `testing.drill.KindCounts`."""


def drill(
    virtual: Annotated[
        bool,
        typer.Option("--virtual", help="In one process, on virtual time."),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The run to play, or the first one with --seeds.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=10_000_000, help=f"How many runs. Default: 1 or {SEEDS}."),
    ] = None,
    requests: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Requests of a run before calm, about.")
    ] = 500,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the faults of one seed as JSON; run nothing.")
    ] = False,
    json: options.Json = None,
) -> None:
    """Let everything go wrong, and check that no request is lost.

    Plays the live code (client, balancer, nodes) in one process on virtual
    time. Each seed has a fleet of its own, a load between 0.3 and 2, and
    faults: processes are killed, stopped and restarted, messages are lost,
    late, doubled or held back, links break down, servers are slow, hang,
    fail or lie, clocks jump, the disk is full. A run stops being faulty
    before its end, and the fleet has to be as it was.

    What must hold is checked all the time: each request ends once, in time
    or where its ingress failed; none runs twice at once; queues and memory
    are bounded; the balancer's belief is true again in the end.

    A seed that fails is repeated, to the bit, by the command printed with
    it. Exit code 1 if any has failed.

    [bold]Examples:[/bold]

      edgewise drill --virtual

      edgewise drill --virtual --seed 17 --plan

      edgewise drill --virtual --seed 1000 --seeds 500 --json drill.json
    """
    if not virtual:
        raise BadInput("give --virtual: drills run on virtual time only")
    from edgewise.testing.drill import new_totals, run_drill
    from edgewise.testing.faults import draw_plan

    if plan:
        facts = draw_plan(seed or 0, requests).facts()
        typer.echo(output.pretty_json(facts).decode(), nl=False)
        return
    count = seeds or (SEEDS if seed is None else 1)
    console = output.console_beside(json)
    totals = new_totals(seed or 0, requests)
    stopped = False
    try:
        with output.progress_bar(console, "drilling", count) as bar:
            for number in range(seed or 0, (seed or 0) + count):
                result = run_drill(number, requests)
                totals.add(result)
                bar.advance(f"seed {number}, {len(totals.failed)} failed")
    except KeyboardInterrupt:
        stopped = True
    console.print(table(totals))
    show_failures(totals)
    if count == 1 and totals.seeds:
        output.note(console, f"digest of the run: {result.digest}")
    output.write_json(output.pretty_json(totals.facts()), json)
    if stopped:
        output.note(console, f"stopped after {totals.seeds} of {count} runs")
        raise typer.Exit(130)
    if totals.failed:
        raise typer.Exit(1)


def table(totals: DrillTotals) -> Table:
    """The requests by the kinds of faults that they met."""
    from rich import box
    from rich.table import Table

    shown = Table(
        title=f"{totals.seeds} runs, {totals.sent} requests, {len(totals.failed)} runs failed",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    shown.add_column("fault", no_wrap=True)
    for heading in HEADINGS:
        shown.add_column(heading, justify="right", no_wrap=True)
    for kind, counts in totals.kinds.items():
        cells = counts.figures().values()
        if counts.requests or counts.injected:
            shown.add_row(kind, *(f"{each}" for each in cells))
    return shown


def show_failures(totals: DrillTotals) -> None:
    """Each failed seed: what was violated, and the command that repeats it."""
    for result in totals.failed:
        typer.echo(f"seed {result.seed} failed; to repeat it: {result.command}")
        for problem in result.violations[:VIOLATIONS_SHOWN]:
            typer.echo(f"  {problem}")
        if len(result.violations) > VIOLATIONS_SHOWN:
            typer.echo(f"  and {len(result.violations) - VIOLATIONS_SHOWN} more")
