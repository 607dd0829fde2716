"""``edgewise train``: find the learned policy's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgewise.errors import BadInput

if TYPE_CHECKING:
    from edgewise.bench.statistics import Interval
    from edgewise.learn.release import Judgement
    from edgewise.learn.trainer import Floats, Progress
    from edgewise.policy import Rule

DEFAULT_BUDGET = "30m"


def train(
    families: Annotated[
        str, typer.Option(metavar="F,...", help="Families of worlds to train on.")
    ] = "train",
    scenario: Annotated[
        str, typer.Option(metavar="FILE", help="Train on one scenario in place of families.")
    ] = "",
    init: Annotated[
        str,
        typer.Option(
            metavar="POLICY", help="Begin from priced_greedy, edgewise or a weights file."
        ),
    ] = "priced_greedy",
    budget: Annotated[
        str, typer.Option(metavar="TIME", help=f"90s, 30m, 2h. Default: {DEFAULT_BUDGET}.")
    ] = "",
    generations: Annotated[
        int | None, typer.Option(metavar="N", help="Instead of a budget; gives the same weights.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=18, help="Of search and training worlds.")] = 1,
    free: Annotated[
        str,
        typer.Option(
            metavar="GROUP,...",
            help="What is searched: base (the heuristic's own parameters), heads (or some of "
            "price, link, margins, rows, shed, memory), network. "
            "`base` alone is the control: the heuristic, re-tuned by the same search.",
        ),
    ] = "base,heads",
    worlds: Annotated[int, typer.Option(min=1, metavar="N", help="Per generation.")] = 48,
    pairs: Annotated[int, typer.Option(min=1, metavar="N", help="Antithetic pairs per world.")] = 2,
    rate: Annotated[float, typer.Option(min=0.001, help="First step, in sigmas.")] = 0.25,
    threads: Annotated[
        int, typer.Option(metavar="N", help="At the same time; changes no number. 0: all cores.")
    ] = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Checkpoints, TensorBoard files, weights.")
    ] = Path("training"),
) -> None:
    """Train the policy `edgewise` by evolution strategies in simulated worlds.

    Run it again with the same options to go on after it was stopped. The result,
    DIR/edgewise.safetensors with its card, is a policy like any other, and is
    compared with the heuristic it began from on worlds that training never saw.

    [bold]Examples:[/bold]

      edgewise train --budget 30m --out training

      edgewise train --scenario my.yaml --init edgewise --budget 5m --out mine

      edgewise simulate my.yaml --policy mine/edgewise.safetensors,edgewise

      edgewise train --free base --budget 30m --out control
    """
    import msgspec
    import numpy as np

    from edgewise.bench.tune import seconds
    from edgewise.commands.bench import cores
    from edgewise.learn import release, trainer
    from edgewise.learn.checkpoint import write_atomically
    from edgewise.learn.worlds import Worlds
    from edgewise.policy import find, label, weights
    from edgewise.policy import learned as policy
    from edgewise.policy.weights import Card
    from edgewise.scenario import load
    from edgewise.sim.families import FAMILIES
    from edgewise.sim.simulate import Photos

    if budget and generations is not None:
        raise BadInput("give --budget or --generations, not both")
    names = tuple(name.strip() for name in families.split(","))
    for name in names:
        if name not in FAMILIES:
            raise BadInput(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    place = Worlds(names=names)
    if scenario:
        world = load(scenario)
        photos = Photos.of(world)
        place = Worlds(scenario=world, sizes=photos.sizes if photos else ())
    start, heuristic = beginning(init)
    console = Console()
    recipe = trainer.Recipe(
        worlds=place,
        groups=tuple(group.strip() for group in free.split(",")),
        seed=seed,
        count=worlds,
        pairs_each=pairs,
        rate=rate,
        generations=generations,
    )
    console.print(
        f"[bold]edgewise[/] from {label(init)} on {place.about}; groups {free}, seed {seed}",
        highlight=False,
    )
    used = threads or cores()
    trained = trainer.train(
        recipe,
        start,
        heuristic,
        out,
        budget=seconds(budget or DEFAULT_BUDGET) if generations is None else None,
        threads=used,
        progress=lambda step: _show(console, step),
    )
    command = (
        f"edgewise train --{'scenario ' + scenario if scenario else 'families ' + families} "
        f"--init {init} --generations {trained.generations} --seed {seed} --free {free} "
        f"--worlds {worlds} --pairs {pairs} --rate {rate:g}"
    )
    path = out / "edgewise.safetensors"
    console.print("features and acceptance …", style="dim", highlight=False)
    card, judgement = release.release(
        trained.params,
        heuristic,
        place,
        path,
        Card(
            name="edgewise",
            command=command,
            seeds=(seed,),
            families=(place.about,) if scenario else names,
            commit=release.commit(),
            decisions=trained.decisions,
            heuristic={
                p.name: float(value)
                for p, value in zip(
                    find("priced_greedy").parameters,
                    trained.params[policy.LAYOUT["calibrated"]],
                    strict=True,
                )
            },
        ),
        seed=seed,
        threads=used,
    )
    console.print(_table(judgement))
    if init != "priced_greedy":
        before = find(init)
        rival = release.judge(
            weights.load(path)[0], before, place, threads=used, skip=release.SKIP + 500
        )
        console.print(f"over {label(init)}: {_pm(rival.mean)}", highlight=False)
        if rival.mean.mean < 0.0:
            # A specialist must not be below what it began as.
            kept = msgspec.structs.replace(card, command=before.tuned, results={})
            weights.save(path, np.array(before.params), kept, write_atomically)
            console.print(f"not better: the weights of {label(init)} are kept", highlight=False)
    verdict = "accepted" if card.accepted else "[bold red]not accepted[/]: worse in a family"
    console.print(f"{verdict}; written to {path}", highlight=False, soft_wrap=True)


def beginning(init: str) -> tuple[Floats, Rule]:
    """(params to begin from, the heuristic to beat: a rule) of ``--init``."""
    import msgspec
    import numpy as np

    from edgewise.policy import RULES, find, learned

    priced = RULES["priced_greedy"]
    if init == "priced_greedy":
        return learned.untrained(priced.params), priced
    rule = find(init)
    params = np.array(rule.params)
    if rule.kernel is not learned.edgewise:
        raise BadInput(f"--init: expected priced_greedy, edgewise or a weights file, got {init}")
    params[learned.O_GUARDED] = 0.0  # while it learns, it goes where it has not been
    calibrated = tuple(params[learned.LAYOUT["calibrated"]].tolist())
    return params, msgspec.structs.replace(priced, params=calibrated)


def _show(console: Console, step: Progress) -> None:
    gain = "" if step.gain is None else f"  [bold]over the heuristic {_pm(step.gain)}[/]"
    console.print(
        f"  {step.generation:5d}  {100 * step.done:3.0f} %  {step.decisions / 1e6:7.1f} M decisions"
        f"  {step.per_second / 1e3:5.0f} k/s  signal {step.signal:4.2f}"
        f"  {step.left / 60:5.1f} min left{gain}",
        highlight=False,
    )


def _table(judgement: Judgement) -> Table:
    table = Table(
        title=f"over the heuristic on validation worlds: {_pm(judgement.mean)}",
        caption="mean expected utility, paired, 95 % confidence by seed",
    )
    table.add_column("family")
    table.add_column("difference", justify="right")
    for name, found in judgement.families.items():
        colour = {1: "green", -1: "red", 0: ""}[found.sign]
        table.add_row(name, f"[{colour}]{_pm(found)}[/]" if colour else _pm(found))
    return table


def _pm(found: Interval) -> str:
    return f"{found.mean:+.4f} ± {found.half:.4f}"
