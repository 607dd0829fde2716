"""``edgewise configs``: write the configuration files of a whole fleet."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import options
from edgewise.errors import BadInput


def configs(
    scenario: options.ScenarioName,
    folder: Annotated[
        Path, typer.Argument(help="Folder to write into; made if it does not exist.")
    ],
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The balancer's port; the others follow it.")
    ] = 8100,
    hosts: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Host names of the processes, for containers or several machines: {} stands for "
            "balancer, relay or a server's name. Default: everything is on this machine.",
        ),
    ] = None,
    emulate: options.Emulate = None,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Folder in which balancer and client record."),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Folder in which each process finds its identity, seen from its configuration: {} "
            "stands for ROLE-NAME. Default with --hosts: keys/{}; else there are no identities.",
        ),
    ] = None,
    issue: Annotated[
        bool,
        typer.Option(
            help="Issue the identities there, by an authority beside them that is made if need be "
            "(as `edgewise pki` does)."
        ),
    ] = True,
    trust_anyone_who_connects: Annotated[
        bool,
        typer.Option(
            "--trust-anyone-who-connects",
            help="Without identities, although others can connect: everybody may do everything.",
        ),
    ] = False,
) -> None:
    """Write the configuration file of each process of a fleet, and the scenario.

    Prints a line for each process, tab-separated: name, file, ports. Run again,
    it renews the identities; running processes take the new ones up.

    [bold]Examples:[/bold]

      edgewise configs three-sites here

      edgewise configs mine.yaml config --hosts "edgewise-{}" --no-emulate
    """
    from edgewise.live.run.addresses import assign_addresses
    from edgewise.live.run.fleet_configs import (
        file_name,
        fleet_configs,
        fleet_hosts,
        ports,
        write_configs,
    )
    from edgewise.scenario import check, dump, load
    from edgewise.security.authority import issue_all, open_authority
    from edgewise.tasks.services import services_of

    if identity is not None and trust_anyone_who_connects:
        raise BadInput("give --identity or --trust-anyone-who-connects, not both")
    if identity is not None and not identity.endswith("/{}"):
        raise BadInput(f"--identity: expected a pattern FOLDER/{{}}, got {identity!r}")
    if identity is None and hosts is not None and not trust_anyone_who_connects:
        identity = "keys/{}"
    if hosts is not None and "{}" not in hosts:
        raise BadInput(f"--hosts: expected a pattern with {{}} in it, got {hosts!r}")
    fleet = check(load(scenario, allow_code=True).with_overrides(emulate=emulate), scenario)
    services_of(fleet)  # an unknown model is named now
    addresses = assign_addresses(fleet, itertools.count(port).__next__)
    host_of = None if hosts is None else lambda process: hosts.replace("{}", process)
    configs = fleet_configs(
        fleet,
        addresses,
        file="scenario.yaml",
        out=out,
        hosts=host_of,
        identity=identity,
        trust_anyone=trust_anyone_who_connects,
    )
    write_configs(folder, configs)
    if identity is not None and issue:
        keys = folder / identity.removesuffix("/{}")
        issue_all(open_authority(keys), keys, fleet_hosts(fleet.server_names, host_of))
    file = folder / "scenario.yaml"
    file.write_text(dump(fleet), encoding="utf-8")
    os.chmod(file, 0o644)
    for process, listening in ports(addresses).items():
        typer.echo(f"{process}\t{file_name(process)}.yaml\t{','.join(map(str, listening))}")
