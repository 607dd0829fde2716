"""``edgewise profile``: services measured on this machine, for scenarios that run on it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import options, output


def profile(
    models: Annotated[
        str | None,
        typer.Option(metavar="M[,M...]", help="Models to measure. Default: all prepared ones."),
    ] = None,
    images: options.Images = None,
    runs: Annotated[int, typer.Option(min=2, max=100_000, help="Photos per figure.")] = 60,
    concurrency: Annotated[
        str, typer.Option(metavar="N[,N...]", help="How many run at a time.")
    ] = "1,2",
    batch: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Inputs in one call of the model.")
    ] = "1,2,4,8",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The profile, as YAML.")] = Path(
        "profile.yaml"
    ),
    json: options.Json = None,
) -> None:
    """Measure what services take on this machine: latency, noise, concurrency, batches.

    The file is for scenarios: with `profile: profile.yaml` in one, its services
    take what was measured here, in the simulator and for the balancer. Leave
    the machine alone meanwhile: what else runs is measured too.

    [bold]Example:[/bold] edgewise profile --models lite0-128,lite1 --out mine-profile.yaml
    """
    from rich.table import Table

    from edgewise.errors import ModelError
    from edgewise.fidelity import profile as measuring
    from edgewise.tasks import task_of

    console = output.console_beside(json)
    names = options.split(models)
    task = task_of()
    names = [task.model(name).name for name in dict.fromkeys(names)]
    names = names or [
        card.name for card in task.models() if task.prepared_file(card.name) is not None
    ]
    if not names:
        raise ModelError("no model is prepared; do so with: edgewise models prepare")
    at_a_time = numbers("--concurrency", concurrency)
    batches = numbers("--batch", batch)
    photos = task.samples(images or "builtin")
    total = measuring.steps(names, at_a_time, batches)
    with output.progress_bar(console, "measuring", total) as advance:
        found = measuring.profile(
            task,
            names,
            photos,
            runs=runs,
            concurrency=at_a_time,
            batches=batches,
            step=lambda what: advance(what[:40]),
            command=f"edgewise profile --models {','.join(names)} --runs {runs} "
            f"--concurrency {concurrency} --batch {batch}",
        )
    measuring.write(found, out)
    table = Table(title=f"ms on this machine, {runs} photos a figure", title_justify="left")
    table.add_column("model")
    headings = ["mean", "p95", "CPU", "ready", "decode", "predict", "sigma"]
    headings += [f"x{n}" for n in at_a_time]
    headings += [f"b{n}" for n in batches]
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, each in found.models.items():
        first = each.original
        figures = (first.mean, first.p95, first.cpu, each.model_ready.mean)
        table.add_row(
            name,
            *(f"{1e3 * seconds:.1f}" for seconds in (*figures, each.decode, each.predict)),
            f"{each.original.sigma:.2f}",
            *(f"{each.slowdown.get(n, 1.0):.2f}" for n in at_a_time),
            *(f"{1e3 * each.batch[n] / n:.1f}" for n in batches),
        )
    console.print(table)
    made = found.prepare
    console.print(
        "sigma: of the logarithm; xN: times as long with N at a time; bN: predicting one of a "
        "batch of N",
        style="dim",
        highlight=False,
    )
    console.print(
        f"making a photo model-ready: {1e3 * made.seconds:.1f} ms, CPU {1e3 * made.cpu:.1f} ms, "
        f"sigma {made.sigma:.2f}; written: {out}",
        markup=False,
        highlight=False,
    )
    output.write_json(output.pretty_json(found), json)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Ascending numbers of 1 to 64 from ``1,2,4``. Raises BadInput naming the option."""
    from edgewise.errors import BadInput

    try:
        found = tuple(sorted({int(each) for each in text.split(",")}))
    except ValueError:
        found = ()
    if not found or found[0] < 1 or found[-1] > 64:
        raise BadInput(f"{option}: expected numbers of 1 to 64 such as 1,2,4, got {text!r}")
    return found
