"""``edgewise tune``: search the parameters of hand-written rules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgewise.cli import options, output
from edgewise.errors import BadInput

if TYPE_CHECKING:
    from edgewise.benchmark.tune import TuneResult
    from edgewise.learn.search import Progress
    from edgewise.policies import PolicySpec


def tune(
    policy: Annotated[
        str, typer.Argument(metavar="POLICY[,...]", help="Policies to tune; `all`: every rule.")
    ],
    suite: Annotated[
        str, typer.Option(help="Suite of families whose training worlds are used.")
    ] = "wide",
    budget: options.Budget = "",
    generations: options.Generations = None,
    worlds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Worlds simulated per generation.")
    ] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the search and its worlds.")] = 1,
    threads: options.Threads = 0,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="File of tuned values to write; those of other policies stay in it.",
        ),
    ] = Path("tuned.json"),
    dry: Annotated[bool, typer.Option("--dry", help="Write nothing; print the result.")] = False,
) -> None:
    """Tune the parameters of rules by CMA-ES in training worlds.

    Writes the values to a file if they beat those in use, in worlds that neither
    training nor the benchmark uses. The command that is recorded with them finds
    them again. To use them, name the file after the policy:
    `--policy priced_greedy@tuned.json`.

    [bold]Examples:[/bold]

      edgewise tune priced_greedy --budget 10m

      edgewise tune all --budget 1m
    """
    from edgewise.benchmark import tune as tuning
    from edgewise.cores import usable_cores
    from edgewise.policies.tuning import read_tuned, write_tuned

    span = options.search_budget(budget, generations, "2m")
    if span is None:
        raise BadInput("--generations: expected at least 1")
    settings = tuning.TuneSettings(
        suite=suite, seed=seed, worlds=worlds, threads=threads or usable_cores()
    )
    console = output.console()
    output.check_writable(None if dry else out)
    kept = read_tuned(out) if out.exists() else {}
    for name, spec in _rules(policy).items():
        console.print(f"[bold]{name}[/]: {len(spec.parameters)} parameters", highlight=False)
        with output.stoppable(console):
            found = tuning.tune(
                name, spec, span, settings, progress=lambda step: _show(console, step)
            )
        console.print(_table(spec, found))
        if dry:
            continue
        if not found.better:
            console.print("not better than the values in use, which stay", highlight=False)
            continue
        kept[spec.name] = found.tuned()
        write_tuned(out, kept)
        console.print(
            f"written to {out}; `--policy {name}@{out}` uses it", highlight=False, soft_wrap=True
        )


def _rules(names: str) -> dict[str, PolicySpec]:
    from edgewise import api
    from edgewise.policies import POLICIES

    if names == "all":
        return {name: spec for name, spec in POLICIES.items() if spec.parameters}
    return api.specs_of(options.policies(names))


def _show(console: Console, step: Progress) -> None:
    console.print(
        f"  {step.steps:4d}  utility {step.figures['utility']:.4f}  "
        f"best {step.figures['best']:.4f}  spread {step.figures['spread']:.3f}  "
        f"{step.seconds:.0f} s",
        highlight=False,
    )


def _table(spec: PolicySpec, found: TuneResult) -> Table:
    table = Table(
        title=f"{found.policy}: utility {found.utility:.4f} on validation worlds",
        caption=f"over the defaults {found.over_defaults:+.4f}, over the values in use "
        f"{found.over_current:+.4f}\n{found.command}",
    )
    for heading in ("parameter", "default", "in use", "found", "unit", "range"):
        table.add_column(heading)
    for parameter, used in zip(spec.parameters, spec.params, strict=True):
        table.add_row(
            parameter.name,
            f"{parameter.default:g}",
            f"{used:g}",
            f"[bold]{found.params[parameter.name]:g}[/]",
            parameter.unit,
            f"{parameter.low:g} … {parameter.high:g}{' log' if parameter.log else ''}",
        )
    return table
