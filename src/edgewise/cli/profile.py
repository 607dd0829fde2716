"""``edgewise profile``: measure services on this machine, for scenarios that run on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli import options, output

if TYPE_CHECKING:
    from rich.table import Table

    from edgewise.scenario.measured_profile import Profile


def profile(
    models: Annotated[
        str | None,
        typer.Option(metavar="M[,M...]", help="Models to measure. Default: all prepared ones."),
    ] = None,
    images: options.Images = None,
    runs: Annotated[int, typer.Option(min=2, max=100_000, help="Photos per figure.")] = 60,
    concurrency: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Numbers of requests that run at a time.")
    ] = "1,2",
    batch: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Batch sizes: inputs in one call of the model.")
    ] = "1,2,4,8",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The profile, as YAML.")] = Path(
        "profile.yaml"
    ),
    json: options.Json = None,
) -> None:
    """Measure how long services take on this machine: latency, noise, concurrency, batches.

    A scenario with `profile: profile.yaml` has the measured service times, in
    the simulator and for the balancer. Run nothing else on the machine
    meanwhile, or it is measured too.

    [bold]Example:[/bold] edgewise profile --models lite0-128,lite1 --out mine-profile.yaml
    """
    from edgewise.errors import ModelError
    from edgewise.fidelity.profiling import measure_profile, step_count, write_profile
    from edgewise.tasks import task_of

    console = output.console_beside(json)
    output.check_writable(json, out)
    task = task_of()
    names = [task.model(name).name for name in dict.fromkeys(options.split(models))]
    names = names or [
        card.name for card in task.models() if task.prepared_file(card.name) is not None
    ]
    if not names:
        raise ModelError("no model is prepared; do so with: edgewise models prepare")
    at_a_time = numbers("--concurrency", concurrency)
    batches = numbers("--batch", batch)
    photos = task.samples(images or "builtin")
    total = step_count(names, at_a_time, batches)
    with output.progress_bar(console, "measuring", total) as bar:
        measured = measure_profile(
            task,
            names,
            photos,
            runs=runs,
            concurrency=at_a_time,
            batches=batches,
            step=lambda what: bar.advance(what[:40]),
            command=f"edgewise profile --models {','.join(names)} --runs {runs} "
            f"--concurrency {concurrency} --batch {batch}",
        )
    write_profile(measured, out)
    console.print(table(measured, at_a_time, batches))
    prepare = measured.prepare
    output.note(
        console,
        "sigma: of the logarithm; xN: times as long with N at a time; bN: predicting one of a "
        "batch of N",
    )
    console.print(
        f"making a photo model-ready: {1e3 * prepare.seconds:.1f} ms, "
        f"CPU {1e3 * prepare.cpu:.1f} ms, sigma {prepare.sigma:.2f}; written: {out}",
        markup=False,
        highlight=False,
    )
    output.write_json(output.pretty_json(measured), json)


def table(profile: Profile, concurrency: Sequence[int], batches: Sequence[int]) -> Table:
    """One line per model, times in ms."""
    from rich.table import Table

    shown = Table(title=f"ms on this machine, {profile.runs} photos a figure", title_justify="left")
    shown.add_column("model")
    headings = ["mean", "p95", "CPU", "ready", "decode", "predict", "sigma"]
    headings += [*(f"x{n}" for n in concurrency), *(f"b{n}" for n in batches)]
    for heading in headings:
        shown.add_column(heading, justify="right")
    for name, model in profile.models.items():
        first = model.original
        times = (first.mean, first.p95, first.cpu, model.model_ready.mean)
        shown.add_row(
            name,
            *(f"{1e3 * seconds:.1f}" for seconds in (*times, model.decode, model.predict)),
            f"{first.sigma:.2f}",
            *(f"{model.slowdown.get(n, 1.0):.2f}" for n in concurrency),
            *(f"{1e3 * model.batch[n] / n:.1f}" for n in batches),
        )
    return shown


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Ascending numbers of 1 to 64 from ``1,2,4``. Raises BadInput naming the option."""
    from edgewise.errors import BadInput

    try:
        values = tuple(sorted({int(each) for each in text.split(",")}))
    except ValueError:
        values = ()
    if not values or values[0] < 1 or values[-1] > 64:
        raise BadInput(f"{option}: expected numbers of 1 to 64 such as 1,2,4, got {text!r}")
    return values
