"""``edgewise traces``: generate bandwidth traces, and show what is in a trace file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import output
from edgewise.decoding import convert
from edgewise.network.trace import FileTrace, Kind, synthetic
from edgewise.network.trace_files import FileFormat, trace_text
from edgewise.network.trace_reader import MBPS, PER_SECOND, TraceUnits, doubt

app = typer.Typer(
    help="Generate and inspect bandwidth traces (docs/network.md).",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


SECONDS_SHOWN = 10_000
"""Quantiles of a longer trace are those of so many seconds, evenly spaced."""


@app.command()
def generate(
    kind: Annotated[Kind, typer.Argument(help="Kind of network.")],
    seconds: Annotated[float, typer.Option(metavar="S", help="Period of the trace.")] = 300.0,
    mean: Annotated[float, typer.Option(metavar="MBIT", help="Mean rate, Mbit/s.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same trace.")] = 1,
    format: Annotated[
        FileFormat, typer.Option(help="seconds<TAB>Mbit/s, or Mahimahi's milliseconds.")
    ] = "rates",
    out: Annotated[str, typer.Option(metavar="FILE", help="File to write; - for stdout.")] = "-",
) -> None:
    """Generate a synthetic trace.

    The rate is log-normal with exponential memory; fades and outages come as
    a Poisson process and last exponentially long. docs/network.md has the
    parameters of each kind and their sources.

    [bold]Examples:[/bold]

      edgewise traces generate cellular --seconds 120 --seed 7 --out phone.tsv

      edgewise traces generate wifi --mean 40 --format mahimahi --out wifi.up
    """
    capacity = synthetic(kind, seed, 1e6 * mean, seconds)
    comment = f"edgewise traces generate {kind} --seconds {seconds:g} --mean {mean:g}"
    text = trace_text(capacity, format, f"{comment} --seed {seed}")
    if out == "-":
        typer.echo(text, nl=False)
        return
    output.write_file(Path(out), text.encode())


@app.command()
def show(
    file: Annotated[
        Path, typer.Argument(help="Mahimahi's format, seconds<TAB>Mbit/s, or a CSV file.")
    ],
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the rates in a CSV file.")
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the times. Default: the first.")
    ] = None,
    time_unit: Annotated[
        str | None, typer.Option(metavar="|".join(PER_SECOND), help="Unit of the times.")
    ] = None,
    rate_unit: Annotated[
        str | None, typer.Option(metavar="|".join(MBPS), help="Unit of the rates.")
    ] = None,
) -> None:
    """Show what is in a trace file: period, mean, and quantiles of the rate over seconds.

    The options are the fields of a scenario's trace (docs/scenario.md).

    [bold]Examples:[/bold]

      edgewise traces show phone.tsv

      edgewise traces show 5g.csv --column DL_bitrate --rate-unit kbit/s
    """
    import numpy as np

    from edgewise.network.transmission import bytes_between

    units = convert({"time": time_unit, "rate": rate_unit}, TraceUnits, "--units.")
    trace = FileTrace(path=str(file), column=column, time_column=time_column, units=units)
    capacity = trace.load(Path())
    no_outages = np.empty((0, 2))
    seconds = max(int(capacity.period), 1)
    shown = range(0, seconds, 1 + seconds // SECONDS_SHOWN)
    rates = [8e-6 * bytes_between(*capacity, no_outages, float(t), t + 1.0) for t in shown]
    quantiles = np.percentile(rates, [0, 5, 50, 95, 100])
    typer.echo(f"period\t{capacity.period:g} s\nmean\t{1e-6 * capacity.mean_bps:.4g} Mbit/s")
    for name, value in zip(("least", "5 %", "median", "95 %", "most"), quantiles, strict=True):
        typer.echo(f"{name}\t{value:.4g} Mbit/s over a second")
    if why := doubt(capacity):
        output.warn(output.console(stderr=True), f"{file}: {why}")
