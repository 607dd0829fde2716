"""``edgewise train``: find the learned policy's weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from edgewise.cli import options
from edgewise.errors import BadInput

if TYPE_CHECKING:
    from edgewise.bench.statistics import Interval
    from edgewise.learn.release import Judgement
    from edgewise.learn.trainer import EsProgress, Floats
    from edgewise.learn.worlds import Worlds
    from edgewise.policy import PolicySpec

DEFAULT_BUDGET = "30m"
DEFAULTS = {"es": (48, 2, 0.25), "ppo": (16, 4, 0.02)}
"""By algorithm: worlds per generation, pairs or plays of each, rate; reasons stand in
`learn.trainer.Recipe` and `learn.ppo.PpoSettings`."""


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
    budget: options.Budget = "",
    generations: options.Generations = None,
    seed: Annotated[int, typer.Option(min=0, max=18, help="Of search and training worlds.")] = 1,
    free: Annotated[
        str,
        typer.Option(
            metavar="GROUP,...",
            help="What is searched: base (the heuristic's own parameters), heads (or some of "
            "price, link, margins, rows, shed, memory), wide, network. "
            "`base` alone is the control: the heuristic, re-tuned by the same search.",
        ),
    ] = "base,heads",
    algorithm: Annotated[
        str,
        typer.Option(
            metavar="es|ppo",
            help="Evolution strategies over whole episodes, or proximal policy optimisation "
            "(needs torch; of the groups it learns heads, and network if asked to).",
        ),
    ] = "es",
    worlds: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Per generation. Default: es 48, ppo 16."),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="es: antithetic pairs per world; ppo: plays. Default: 2, 4."
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.0001, help="es: first step, in sigmas; ppo: Adam's. Default: .25, .02."),
    ] = None,
    threads: options.Threads = 0,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Checkpoints, TensorBoard files, weights.")
    ] = Path("training"),
) -> None:
    """Train the policy `edgewise` by deep reinforcement learning in simulated worlds.

    Run it again with the same options to go on after it was stopped. The result,
    DIR/edgewise.safetensors with its card, is a policy like any other, and is
    compared with the heuristic that ships on worlds that training never saw.

    [bold]Examples:[/bold]

      edgewise train --budget 30m --out training

      edgewise train --scenario my.yaml --init edgewise --budget 5m --out mine

      edgewise simulate my.yaml --policy mine/edgewise.safetensors,edgewise

      edgewise train --free base --budget 30m --out control

      edgewise train --algorithm ppo --free heads --budget 30m --out ppo
    """
    import msgspec
    import numpy as np

    from edgewise.bench.tune import seconds
    from edgewise.cores import usable_cores
    from edgewise.learn import release
    from edgewise.learn.checkpoint import write_atomically
    from edgewise.learn.worlds import Worlds
    from edgewise.policy import find, label, weight_files
    from edgewise.policy import learned as policy
    from edgewise.policy.weight_files import WeightsCard
    from edgewise.scenario import load
    from edgewise.sim.simulate import Photos
    from edgewise.worlds.families import FAMILIES

    if algorithm not in DEFAULTS:
        raise BadInput(f"--algorithm: expected {' or '.join(DEFAULTS)}, got {algorithm!r}")
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
    console.print(
        f"[bold]edgewise[/] from {label(init)} on {place.about}; {algorithm}, groups {free}, "
        f"seed {seed}",
        highlight=False,
    )
    used = threads or usable_cores()
    wishes = _Wishes(
        algorithm=algorithm,
        groups=tuple(group.strip() for group in free.split(",")),
        seed=seed,
        worlds=worlds or DEFAULTS[algorithm][0],
        pairs=pairs or DEFAULTS[algorithm][1],
        rate=rate or DEFAULTS[algorithm][2],
        generations=generations,
        budget=seconds(budget or DEFAULT_BUDGET) if generations is None else None,
        threads=used,
    )
    search = _by_ppo if algorithm == "ppo" else _by_es
    trained = (
        _Trained(params=start, generations=0, decisions=0)
        if generations == 0
        else search(wishes, place, start, heuristic, out, console)
    )
    command = (
        f"edgewise train --{'scenario ' + scenario if scenario else 'families ' + families} "
        f"--init {init} --algorithm {algorithm} --generations {trained.generations} --seed {seed} "
        f"--free {free} --worlds {wishes.worlds} --pairs {wishes.pairs} --rate {wishes.rate:g}"
    )
    path = out / "edgewise.safetensors"
    console.print("features and acceptance …", style="dim", highlight=False)
    card, judgement = release.release(
        trained.params,
        heuristic,
        place,
        path,
        WeightsCard(
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
            weight_files.load(path)[0], before, place, threads=used, skip=release.SKIP + 500
        )
        console.print(f"over {label(init)}: {_pm(rival.mean)}", highlight=False)
        if rival.mean.mean < 0.0:
            # A specialist must not be below what it began as.
            kept = msgspec.structs.replace(card, command=before.tuned, results={})
            weight_files.save(path, np.array(before.params), kept, write_atomically)
            console.print(f"not better: the weights of {label(init)} are kept", highlight=False)
    verdict = "accepted" if card.accepted else "[bold red]not accepted[/]: worse in a family"
    console.print(f"{verdict}; written to {path}", highlight=False, soft_wrap=True)


class _Wishes(Struct, frozen=True, kw_only=True):
    """Of a search, whatever the algorithm."""

    algorithm: str
    groups: tuple[str, ...]
    seed: int
    worlds: int
    pairs: int
    rate: float
    generations: int | None
    budget: float | None
    threads: int


class _Trained(Struct, frozen=True, kw_only=True):
    params: Floats
    generations: int
    decisions: int


def _by_es(
    wishes: _Wishes,
    place: Worlds,
    start: Floats,
    heuristic: PolicySpec,
    out: Path,
    console: Console,
) -> _Trained:
    from edgewise.learn import trainer

    found = trainer.train(
        trainer.Recipe(
            worlds=place,
            groups=wishes.groups,
            seed=wishes.seed,
            count=wishes.worlds,
            pairs_each=wishes.pairs,
            rate=wishes.rate,
            generations=wishes.generations,
        ),
        start,
        heuristic,
        out,
        budget=wishes.budget,
        threads=wishes.threads,
        progress=lambda step: _show(console, step),
    )
    return _Trained(params=found.params, generations=found.generations, decisions=found.decisions)


def _by_ppo(
    wishes: _Wishes,
    place: Worlds,
    start: Floats,
    heuristic: PolicySpec,
    out: Path,
    console: Console,
) -> _Trained:
    from edgewise.learn import ppo
    from edgewise.learn.actor_critic import PpoSettings
    from edgewise.learn.log import Log
    from edgewise.learn.trainer import Recipe, looks

    # The heuristic's own parameters are no differentiable part of a score: they stand.
    if not {"heads"} <= set(wishes.groups) <= {"base", "heads", "network"}:
        raise BadInput("--algorithm ppo: expected --free heads, or heads,network")
    with Log(out) as log:

        def show(step: ppo.PpoProgress) -> None:
            log.write_ppo(step)
            gain = "" if step.gain is None else f"  [bold]over the heuristic {_pm(step.gain)}[/]"
            console.print(
                f"  {step.iteration:5d}  {100 * step.done:3.0f} %  {step.decisions / 1e6:7.1f} M "
                f"decisions  {step.per_second / 1e3:5.0f} k/s  kl {step.kl:6.4f}"
                f"  {step.left / 60:5.1f} min left{gain}",
                highlight=False,
            )

        found = ppo.train(
            place,
            start,
            PpoSettings(
                seed=wishes.seed,
                worlds=wishes.worlds,
                plays=wishes.pairs,
                rate=wishes.rate,
                network="network" in wishes.groups,
            ),
            iterations=wishes.generations,
            budget=wishes.budget,
            threads=wishes.threads,
            out=out,
            look=looks(place, heuristic, Recipe().validation, wishes.threads),
            progress=show,
        )
    return _Trained(params=found.params, generations=found.iterations, decisions=found.decisions)


def beginning(init: str) -> tuple[Floats, PolicySpec]:
    """(params to begin from, the heuristic to beat: a rule) of ``--init``.

    The heuristic is the one that ships, and what the guard falls back to, however old the weights:
    rules are tuned anew, and no policy is to fall back to less than the best that is known.
    """
    import numpy as np

    from edgewise.policy import POLICIES, find, learned

    priced = POLICIES["priced_greedy"]
    if init == "priced_greedy":
        return learned.untrained(priced.params), priced
    rule = find(init)
    params = np.array(rule.params)
    if rule.kernel is not learned.edgewise:
        raise BadInput(f"--init: expected priced_greedy, edgewise or a weights file, got {init}")
    params[learned.O_GUARDED] = 0.0  # while it learns, it goes where it has not been
    params[learned.LAYOUT["calibrated"]] = priced.params
    return params, priced


def _show(console: Console, step: EsProgress) -> None:
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
