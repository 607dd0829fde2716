"""``edgewise tune``: find a rule's parameters on training worlds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgewise.cli import options
from edgewise.errors import BadInput

if TYPE_CHECKING:
    from edgewise.bench.tune import Generation, SearchResult
    from edgewise.policy import PolicySpec


def tune(
    policy: Annotated[
        str, typer.Argument(metavar="POLICY[,...]", help="Which; `all`: all with parameters.")
    ],
    suite: Annotated[str, typer.Option(help="Whose families' training worlds to use.")] = "train",
    budget: options.Budget = "",
    generations: options.Generations = None,
    worlds: Annotated[int, typer.Option(metavar="N", help="Played in each generation.")] = 24,
    seed: Annotated[int, typer.Option(help="Of the search and of which worlds it sees.")] = 1,
    threads: options.Threads = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Module to write. Default: the one the rules read."),
    ] = None,
    dry: Annotated[bool, typer.Option("--dry", help="Print what is found, write nothing.")] = False,
) -> None:
    """Find a rule's parameters by CMA-ES on training worlds.

    Keeps what is found if it beats the values in use on worlds of neither
    training nor the benchmark. The command recorded beside them gives the same
    values again.

    [bold]Examples:[/bold]

      edgewise tune priced_greedy --budget 10m

      edgewise tune all --budget 1m
    """
    from edgewise.bench import tune as tuning
    from edgewise.cores import usable_cores
    from edgewise.policy.tuned import TUNED

    span = tuning.seconds(budget or "2m") if generations is None else None
    if budget and generations is not None:
        raise BadInput("give --budget or --generations, not both")
    console = Console()
    path = tuning.default_file() if out is None else out
    kept = dict(TUNED)
    for name, rule in _rules(policy).items():
        console.print(f"[bold]{name}[/]: {len(rule.parameters)} parameters", highlight=False)
        found = tuning.search(
            name,
            rule,
            suite=suite,
            seed=seed,
            budget=span,
            generations=generations,
            worlds=worlds,
            threads=threads or usable_cores(),
            progress=lambda step: _show(console, step),
        )
        console.print(_table(rule, found))
        if dry:
            continue
        if not found.better:
            console.print("not better than the values in use: those stay", highlight=False)
            continue
        kept[name] = found.tuned()
        tuning.write(path, kept)
        console.print(f"written to {path}", highlight=False, soft_wrap=True)


def _rules(names: str) -> dict[str, PolicySpec]:
    from edgewise.cli.bench import chosen
    from edgewise.policy import POLICIES

    if names == "all":
        return {name: rule for name, rule in POLICIES.items() if rule.parameters}
    return chosen(names)


def _show(console: Console, step: Generation) -> None:
    console.print(
        f"  {step.number + 1:4d}  utility {step.utility:.4f}  best {step.best:.4f}  "
        f"spread {step.spread:.3f}  {step.seconds:.0f} s",
        highlight=False,
    )


def _table(rule: PolicySpec, found: SearchResult) -> Table:
    over = f"{found.over_defaults.mean:+.4f} ± {found.over_defaults.half:.4f}"
    before = f"{found.over_standing.mean:+.4f} ± {found.over_standing.half:.4f}"
    table = Table(
        title=f"{found.policy}: utility {found.utility:.4f} on validation worlds",
        caption=f"over the defaults {over}, over the values in use {before}\n{found.command}",
    )
    for heading in ("parameter", "default", "in use", "found", "unit", "range"):
        table.add_column(heading)
    for parameter, used in zip(rule.parameters, rule.params, strict=True):
        table.add_row(
            parameter.name,
            f"{parameter.default:g}",
            f"{used:g}",
            f"[bold]{found.params[parameter.name]:g}[/]",
            parameter.unit,
            f"{parameter.low:g} … {parameter.high:g}{' log' if parameter.log else ''}",
        )
    return table
