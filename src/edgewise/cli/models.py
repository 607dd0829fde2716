"""``edgewise models``: list the models, convert them, measure them."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from edgewise.cli import output
from edgewise.errors import ModelError
from edgewise.tasks import task_of
from edgewise.tasks.measure import measure_accuracy, measure_latency
from edgewise.tasks.task import MeasuredModel, Measurements, Task

app = typer.Typer(
    help=(
        "The models that services can run: ImageNet classifiers, each a trade of accuracy for "
        "time.\n\n"
        "Without a command, list them: published accuracy, accuracy measured and on how many "
        "photos, input size, and latency on this machine.\n\n"
        "[bold]First time:[/bold] install the extras live and models, then "
        "edgewise models prepare, then edgewise models measure builtin."
    ),
    rich_markup_mode="rich",
)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _latency(task: Task, name: str) -> str:
    try:
        if task.prepared_file(name) is None:
            return "not prepared"
    except ModelError:
        return "corrupt: prepare again"
    return f"{1000 * measure_latency(task, task.load(name)):.1f} ms"


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    latency: Annotated[
        bool, typer.Option(help="Run each prepared model a few times to time it here.")
    ] = True,
) -> None:
    """List the models unless a command follows."""
    if context.invoked_subcommand is not None:
        return
    task = task_of()
    table = Table(
        title="Models",
        caption=(
            "published: by its authors, 50,000 validation images. measured: "
            f"`edgewise models measure` on {task.reference().data}; it orders the models and is no "
            "validation accuracy. latency: one prediction here, one thread."
        ),
    )
    table.add_column("model")
    for heading in ("input", "published top-1", "measured top-1", "N", "latency here"):
        table.add_column(heading, justify="right")
    for card in task.models():
        measured = card.measured
        table.add_row(
            card.name,
            f"{card.size}",
            _percent(card.published_accuracy),
            _percent(measured.accuracy if measured else None),
            f"{measured.images:,}" if measured else "-",
            _latency(task, card.name) if latency else "-",
        )
    output.console().print(table)


@app.command()
def prepare(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Models to prepare, e.g. lite0-128 lite2; all when none is named."),
    ] = None,
) -> None:
    """Convert weights to ONNX, once; files already in the cache are only checked.

    The weights come from installed packages (extra [bold]models[/bold]): nothing is downloaded,
    none of their code runs, and every file of weights must have its known sha256. The cache is
    $XDG_CACHE_HOME/edgewise/models. Prints each model and its ONNX file, tab-separated.

    [bold]Example:[/bold] edgewise models prepare lite0-128 lite2
    """
    console = output.console(stderr=True)
    left_out: list[str] = []
    with output.progress_bar(console, "models") as bar:

        def progress(name: str, what: str, done: float) -> None:
            if what.startswith("left out") or "corrupt" in what:
                left_out.append(f"{name}: {what}")
            bar.show(done, 1.0, f"{name}: {what}")

        ready = task_of().prepare(names or None, progress)
    for line in left_out:
        console.print(line, style="yellow", markup=False, highlight=False)
    for name, path in ready.items():
        typer.echo(f"{name}\t{path}")


@app.command()
def measure(
    images: Annotated[
        str,
        typer.Argument(
            metavar="DIR",
            help="Labelled photos: a folder (synset in names or sub-folders, or the ImageNet "
            "validation set in any of its layouts), a label file, or 'builtin'.",
        ),
    ],
    names: Annotated[
        list[str] | None, typer.Option("--model", help="Only this model; may be repeated.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Only this many photos, evenly spaced.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write the measurement here, as JSON.")
    ] = None,
) -> None:
    """Measure top-1 accuracy and latency of prepared models on your own photos.

    [bold]Example:[/bold] edgewise models measure ~/imagenet/val --sample 1000 --model lite0-128
    """
    task = task_of()
    photos = task.samples(images)
    typer.echo(photos.describe(), err=True)
    if sample is not None and sample < len(photos):
        photos = photos[:: len(photos) // sample][:sample]
    cards = [task.model(name) for name in names] if names else list(task.models())
    loaded = [task.load(card.name) for card in cards]  # an absent one is reported before the wait
    results: dict[str, MeasuredModel] = {}
    console = output.console(stderr=True)
    with output.progress_bar(console, "models", len(loaded) * len(photos)) as bar:
        for model in loaded:
            name = model.card.name
            results[name] = measure_accuracy(
                task, model, photos, functools.partial(_advance, bar, name)
            )
    output.console().print(_measured(results, len(photos)))
    if json is not None:
        measurements = Measurements(
            command="edgewise models measure DIR --json FILE",
            data=photos.describe().partition(" (")[0],
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "onnxruntime", "pillow")},
            },
            models=results,
        )
        output.write_file(json, output.pretty_json(measurements))


def _advance(bar: output.Bar, name: str, done: int) -> None:
    bar.advance(name)


def _measured(results: dict[str, MeasuredModel], photos: int) -> Table:
    table = Table(title=f"Measured on {photos:,} photos, one thread")
    table.add_column("model")
    for heading in ("top-1", "± 95 %", "decode", "predict"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        half = 1.96 * (result.accuracy * (1 - result.accuracy) / result.images) ** 0.5
        table.add_row(
            name,
            _percent(result.accuracy),
            f"{100 * half:.1f}",
            f"{1000 * result.decode_s:.1f} ms",
            f"{1000 * result.predict_s:.1f} ms",
        )
    return table
