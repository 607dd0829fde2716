"""``edgewise evaluate``: the summary of a run, made again from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgewise.cli.up import write_summary


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder, or one with a folder per policy.")],
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="The summary as JSON; - for stdout.")
    ] = None,
) -> None:
    """Score a run from its Parquet files and print what each policy achieved.

    [bold]Example:[/bold] edgewise evaluate runs/20260101-120000-three-sites
    """
    from edgewise.live.run.evaluate import evaluate
    from edgewise.live.run.up import show

    summary = evaluate(run)
    show(summary, Console(stderr=json == "-"))
    write_summary(summary.to_json(), json)
