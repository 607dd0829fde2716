"""``edgewise configs``: write the configuration files of a whole fleet."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import options
from edgewise.errors import BadInput, MissingExtra


def configs(
    scenario: options.ScenarioName,
    folder: Annotated[Path, typer.Argument(help="Where to write; made if it is not there.")],
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The balancer's; the others follow.")
    ] = 8100,
    hosts: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="What a process is called in its network, {} standing for balancer, relay or a "
            "server's name; for containers. Default: all is on this machine.",
        ),
    ] = None,
    emulate: options.Emulate = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder of balancer and client for what they record."),
    ] = None,
) -> None:
    """Write what each process of a fleet is started with: one file each, and the scenario.

    Prints a line for each process, tab-separated: its name, its file, the ports it listens on.

    [bold]Examples:[/bold]

      edgewise configs three-sites here

      edgewise configs mine.yaml config --hosts "edgewise-{}" --no-emulate
    """
    try:
        from edgewise.live.run.addresses import assign_addresses
        from edgewise.live.run.fleet_configs import fleet_configs as made_of
        from edgewise.live.run.fleet_configs import ports, write_configs
        from edgewise.scenario import check, dump, load
        from edgewise.tasks.services import services_of
    except ModuleNotFoundError as error:
        raise MissingExtra("live", error.name or "?") from None
    if hosts is not None and "{}" not in hosts:
        raise BadInput(f"--hosts: expected a pattern with {{}} in it, got {hosts!r}")
    fleet = check(load(scenario, allow_code=True).with_overrides(emulate=emulate), scenario)
    services_of(fleet)  # says now which model is unknown
    where = assign_addresses(fleet, itertools.count(port).__next__)
    named = None if hosts is None else lambda process: hosts.replace("{}", process)
    write_configs(folder, made_of(fleet, where, file="scenario.yaml", out=out, hosts=named))
    file = folder / "scenario.yaml"
    file.write_text(dump(fleet), encoding="utf-8")
    os.chmod(file, 0o644)
    for process, taken in ports(where).items():
        config = process if process in ("balancer", "relay") else f"node-{process}"
        typer.echo(f"{process}\t{config}.yaml\t{','.join(map(str, taken))}")
