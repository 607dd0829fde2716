"""``edgewise calibrate``: a recorded run as a scenario that reproduces it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli import options, output

if TYPE_CHECKING:
    from rich.table import Table

    from edgewise.fidelity.calibrate import Calibration


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
            metavar="RUN2", help="Another run of the same fleet: simulate what was found, compare."
        ),
    ] = None,
    seeds: options.Seeds = 8,
    policy: Annotated[
        str | None,
        typer.Option(metavar="P", help="For --against. Default: who decided in RUN2."),
    ] = None,
    json: options.Json = None,
) -> None:
    """Fit a scenario to a recorded run: what services, links, reports and clients really did.

    Takes the run's own scenario and replaces what its records tell: service
    times and noise, rates and delays of links, report period, arrivals. The
    result runs in the simulator, under the emulator and for real.

    [bold]Examples:[/bold]

      edgewise calibrate runs/monday --out fitted.yaml

      edgewise calibrate runs/monday --against runs/tuesday
    """
    from edgewise.cli.simulate import compile_engine
    from edgewise.fidelity import held, picture
    from edgewise.fidelity.calibrate import calibrate
    from edgewise.scenario import dump
    from edgewise.sim.simulate import rule_of

    console = output.console_beside(json)
    scenario, calibration = calibrate(run)
    console.print(table(calibration))
    if out is not None:
        output.write_file(out, dump(scenario).encode())
        output.note(console, f"scenario: {out}")
    comparison = None
    if against is not None:
        decides = held.policy_of(against) if policy is None else policy
        rule_of(decides)
        compile_engine([decides], console)
        with console.status(f"simulating {seeds} seeds"):
            comparison, _ = held.hold(scenario, calibration, against, decides, seeds)
        console.print(picture.tables(comparison))
    said = {"calibration": calibration, "against": comparison}
    output.write_json(output.pretty_json(said), json)


def table(calibration: Calibration) -> Table:
    """Every figure: what it was and what the run tells."""
    from rich import box
    from rich.table import Table

    shown = Table(
        title=f"{calibration.run}: {calibration.requests:,} requests",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("figure", "was", "found", "unit", "of", ""):
        shown.add_column(heading, justify="right" if heading in ("was", "found", "of") else "left")
    for each in calibration.fitted:
        shown.add_row(
            each.what,
            "-" if each.was is None else f"{each.was:.4g}",
            "-" if each.found is None else f"{each.found:.4g}",
            each.unit,
            f"{each.count:,}",
            each.note,
        )
    return shown
