"""``edgewise traces``: synthetic networks as files, and what a trace file holds."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import output

app = typer.Typer(
    help="Bandwidth over time: make synthetic traces, look at any (docs/network.md).",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


class Kind(StrEnum):
    """What `network.trace.synthetic` makes."""

    cellular = "cellular"
    wifi = "wifi"
    backhaul = "backhaul"


class Format(StrEnum):
    """What `network.trace_files` writes."""

    rates = "rates"
    mahimahi = "mahimahi"


@app.command()
def generate(
    kind: Annotated[Kind, typer.Argument(help="Of network.")],
    seconds: Annotated[float, typer.Option(metavar="S", help="Period.")] = 300.0,
    mean: Annotated[float, typer.Option(metavar="MBIT", help="Mean Mbit/s, met exactly.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same trace.")] = 1,
    format: Annotated[
        Format, typer.Option(help="seconds<TAB>Mbit/s, or Mahimahi's milliseconds.")
    ] = Format.rates,
    out: Annotated[str, typer.Option(metavar="FILE", help="- for stdout.")] = "-",
) -> None:
    """Make a synthetic trace.

    The rate is log-normal with exponential memory; fades and outages come as
    a Poisson process and last exponentially long. docs/network.md has the
    figures of each kind and where they come from.

    [bold]Examples:[/bold]

      edgewise traces generate cellular --seconds 120 --seed 7 --out phone.tsv

      edgewise traces generate wifi --mean 40 --format mahimahi --out wifi.up
    """
    from edgewise.network.trace import synthetic
    from edgewise.network.trace_files import trace_text

    capacity = synthetic(kind.value, seed, 1e6 * mean, seconds)
    comment = f"edgewise traces generate {kind.value} --seconds {seconds:g} --mean {mean:g}"
    text = trace_text(capacity, format.value, f"{comment} --seed {seed}")
    if out == "-":
        typer.echo(text, nl=False)
        return
    output.write_file(Path(out), text.encode())


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="Mahimahi's format or seconds<TAB>Mbit/s.")],
) -> None:
    """Say what a trace file holds: period, mean, and quantiles of the rate over seconds."""
    import numpy as np

    from edgewise.network.trace import read_trace
    from edgewise.network.transmission import bytes_between

    capacity = read_trace(file)
    no_outages = np.empty((0, 2))
    whole = max(int(capacity.period), 1)
    rates = [8e-6 * bytes_between(*capacity, no_outages, float(t), t + 1.0) for t in range(whole)]
    quantiles = np.percentile(rates, [0, 5, 50, 95, 100])
    typer.echo(f"period\t{capacity.period:g} s\nmean\t{1e-6 * capacity.mean_bps:.4g} Mbit/s")
    for name, value in zip(("least", "5 %", "median", "95 %", "most"), quantiles, strict=True):
        typer.echo(f"{name}\t{value:.4g} Mbit/s over a second")
