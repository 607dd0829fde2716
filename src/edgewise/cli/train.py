"""``edgewise train``: train the learned policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgewise.cli import options, output
from edgewise.errors import BadInput

if TYPE_CHECKING:
    from edgewise.learn.search import Progress
    from edgewise.learn.train import TrainResult
    from edgewise.learn.validation import Judgement

DEFAULT_BUDGET = "30m"


Families = Annotated[
    str, typer.Option(metavar="F,...", help="Families of random worlds to train in.")
]
TrainingScenario = Annotated[
    str, typer.Option(metavar="FILE", help="Train in one scenario instead of families.")
]
Init = Annotated[
    str,
    typer.Option(metavar="POLICY", help="Start from priced_greedy, edgewise or a weights file."),
]
Seed = Annotated[int, typer.Option(min=0, max=18, help="Seed of the search.")]
Free = Annotated[
    str,
    typer.Option(
        metavar="GROUP,...",
        help="Groups of parameters to search: base (the heuristic's own), heads (or some of "
        "price, link, margins, rows, shed, memory), wide, network. `base` alone re-tunes the "
        "heuristic by the same search, as a control.",
    ),
]
Algorithm = Annotated[
    str,
    typer.Option(
        metavar="es|ppo",
        help="Evolution strategies over whole episodes, or proximal policy optimisation "
        "(needs torch; learns heads, and network on request).",
    ),
]
Worlds = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Worlds per generation. Default: es 48, ppo 16."),
]
Pairs = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="es: antithetic pairs per world; ppo: plays. Default: 2, 4."
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(min=0.0001, help="Step size; es: in sigmas. Default: es 0.25, ppo 0.02."),
]


def train(
    families: Families = "train,any_scale",
    scenario: TrainingScenario = "",
    init: Init = "priced_greedy",
    budget: options.Budget = "",
    generations: options.Generations = None,
    seed: Seed = 1,
    free: Free = "base,heads",
    algorithm: Algorithm = "es",
    worlds: Worlds = None,
    pairs: Pairs = None,
    rate: Rate = None,
    threads: options.Threads = 0,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder of checkpoints, TensorBoard files and weights."),
    ] = Path("training"),
) -> None:
    """Train the learned policy, `edgewise`, in simulated worlds.

    Run the same command again to resume after Ctrl-C. The result,
    DIR/edgewise.safetensors and its card, is a policy like any other. It is
    compared with the heuristic that ships, on worlds that training never saw.

    [bold]Examples:[/bold]

      edgewise train --budget 30m --out training

      edgewise train --scenario my.yaml --init edgewise --budget 5m --out mine

      edgewise simulate my.yaml --policy mine/edgewise.safetensors,edgewise

      edgewise train --free base --budget 30m --out control

      edgewise train --algorithm ppo --free heads --budget 30m --out ppo
    """
    from edgewise.learn.train import TrainOptions
    from edgewise.learn.train import train as run
    from edgewise.policy_names import label
    from edgewise.sim.source import WorldSource

    if algorithm not in ("es", "ppo"):
        raise BadInput(f"--algorithm: expected es or ppo, got {algorithm!r}")
    source = (
        WorldSource(scenario=scenario) if scenario else WorldSource(family=options.split(families))
    )
    console = output.console()
    console.print(
        f"[bold]edgewise[/] from {label(init)} on {source.name}; {algorithm}, groups {free}, "
        f"seed {seed}",
        highlight=False,
    )
    settings = TrainOptions(
        source=source,
        budget=options.search_budget(budget, generations, DEFAULT_BUDGET),
        folder=out,
        init=init,
        algorithm="ppo" if algorithm == "ppo" else "es",
        groups=tuple(options.split(free)),
        seed=seed,
        worlds=worlds,
        pairs=pairs,
        rate=rate,
        threads=threads,
    )
    with output.stoppable(console):
        result = run(settings, progress=lambda step: _show(console, step))
    console.print(_table(result.judgement))
    if result.over_init is not None:
        console.print(f"over {label(init)}: {result.over_init:+.4f}", highlight=False)
    console.print(
        f"{_verdict(result, label(init))}; written to {result.path}",
        highlight=False,
        soft_wrap=True,
    )


def _verdict(result: TrainResult, init: str) -> str:
    if result.kept_init:
        return f"not better: the weights of {init} are kept"
    if not result.card.accepted:
        return "[bold red]not accepted[/]: worse in a family"
    if result.search is None:
        return "nothing was searched"
    if not result.improved:
        return "[bold]nothing found[/]: no better on worlds that training never saw"
    return "accepted"


def _show(console: Console, step: Progress) -> None:
    figures = "  ".join(
        f"{name} {step.figures[name]:6.4f}" for name in ("signal", "kl") if name in step.figures
    )
    gain = "" if step.gain is None else f"  [bold]over the heuristic {step.gain:+.4f}[/]"
    console.print(
        f"  {step.steps:5d}  {100 * step.used:3.0f} %  {step.decisions / 1e6:7.1f} M decisions"
        f"  {step.per_second / 1e3:5.0f} k/s  {figures}  {step.remaining / 60:5.1f} min left{gain}",
        highlight=False,
    )


def _table(judgement: Judgement) -> Table:
    table = Table(
        title=f"over the heuristic on validation worlds: {judgement.mean:+.4f}",
        caption="mean expected utility, paired, 95 % confidence by seed",
    )
    table.add_column("family")
    table.add_column("difference", justify="right")
    for name, gain in judgement.families.items():
        style = {1: "green", -1: "red", 0: ""}[gain.sign]
        table.add_row(name, Text(f"{gain:+.4f}", style=style))
    return table
