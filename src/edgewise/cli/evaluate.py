"""``edgewise evaluate``: the summary of a run, from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import options, output


def evaluate(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run, or of runs under several policies.")
    ],
    json: options.Json = None,
) -> None:
    """Score a run from its Parquet files and print a summary of each policy.

    [bold]Example:[/bold] edgewise evaluate runs/20260101-120000-three-sites
    """
    from edgewise.live.run.evaluation import evaluate
    from edgewise.summary_tables import show

    summary = evaluate(run)
    show(summary, output.console_beside(json))
    output.write_json(summary.to_json(), json)
