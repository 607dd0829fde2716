"""``edgewise calibrate``: turn a recorded run into a scenario that reproduces it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli import options, output

if TYPE_CHECKING:
    from rich.table import Table

    from edgewise.fidelity.calibration import Calibration


def calibrate(
    run: Annotated[
        Path, typer.Argument(help="Folder of one policy's run (`edgewise up`, `simulate --out`).")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The calibrated scenario.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN2",
            help="Another run of the same fleet: compare the calibrated scenario with it.",
        ),
    ] = None,
    seeds: options.Seeds = 8,
    policy: Annotated[
        str | None,
        typer.Option(metavar="P", help="Policy for --against. Default: that of RUN2."),
    ] = None,
    json: options.Json = None,
) -> None:
    """Fit a scenario to a recorded run, by what services, links and clients really did.

    The result is the run's own scenario with values measured from its records:
    service times and noise, rates and delays of links, report period, arrivals.
    It runs in the simulator, under the emulator and for real.

    [bold]Examples:[/bold]

      edgewise calibrate runs/monday --out fitted.yaml

      edgewise calibrate runs/monday --against runs/tuesday
    """
    from edgewise.api import specs_of
    from edgewise.cli.simulate import compile_engine
    from edgewise.fidelity import comparison_report, validation
    from edgewise.fidelity.calibration import calibrate
    from edgewise.scenario import dump

    console = output.console_beside(json)
    output.check_writable(json, out)
    scenario, calibration = calibrate(run)
    console.print(table(calibration))
    if out is not None:
        output.write_file(out, dump(scenario).encode())
        output.note(console, f"scenario: {out}")
    comparison = None
    if against is not None:
        name = validation.policy_of(against) if policy is None else policy
        compile_engine(specs_of(name), console)
        with console.status(f"simulating {seeds} seeds"):
            comparison = validation.validate(scenario, calibration, against, name, seeds)
        console.print(comparison_report.tables(comparison))
    result = {"calibration": calibration, "against": comparison}
    output.write_json(output.pretty_json(result), json)


def table(calibration: Calibration) -> Table:
    """Every fitted value: what it was in the scenario and what it is in the run."""
    from rich import box
    from rich.table import Table

    shown = Table(
        title=f"{calibration.run}: {calibration.requests:,} requests",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("value", "was", "found", "unit", "of", ""):
        shown.add_column(heading, justify="right" if heading in ("was", "found", "of") else "left")
    for each in calibration.fitted:
        shown.add_row(
            each.field,
            "-" if each.was is None else f"{each.was:.4g}",
            "-" if each.found is None else f"{each.found:.4g}",
            each.unit,
            f"{each.count:,}",
            each.note,
        )
    return shown
