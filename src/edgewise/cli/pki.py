"""``edgewise pki``: an authority of one's own, and the identities that it issues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import options
from edgewise.errors import BadInput

app = typer.Typer(
    help="Make identities: certificates for nodes, balancers, clients (docs/security.md).",
    no_args_is_help=True,
)

Folder = Annotated[
    Path,
    typer.Argument(help="The authority's folder, with a folder for each identity that it issues."),
]
Days = Annotated[float, typer.Option(min=0.01, max=3650, help="Days until a certificate expires.")]


@app.command()
def issue(
    folder: Folder,
    identities: Annotated[
        list[str],
        typer.Argument(
            metavar="ROLE/NAME...",
            help="Roles: node, balancer, relay, client, evaluator, operator, monitor. A balancer's "
            "name is balancer, a relay's relay, a node's that of its server.",
        ),
    ],
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Host name or IP address by which other tools call it; may be repeated.",
        ),
    ] = None,
    days: Days = 90.0,
) -> None:
    """Issue identities, each into FOLDER/ROLE-NAME.

    The authority is made if the folder has none. Run again, it renews them:
    give the new files to the processes, which take them up while they run.

    [bold]Examples:[/bold]

      edgewise pki issue keys node/plaza --host plaza.example.org

      edgewise pki issue keys client/kiosk-7 monitor/prometheus --days 30
    """
    from edgewise.security.authority import issue_all, open_authority
    from edgewise.security.identity import Identity

    wanted = [Identity.parse(each) for each in identities]
    if host and len(wanted) > 1:
        raise BadInput("--host: expected one identity, which has these names")
    issue_all(open_authority(folder), folder, dict.fromkeys(wanted, host or ()), days)
    for each in wanted:
        typer.echo(f"{each}\t{folder / each.folder}")


@app.command()
def fleet(
    folder: Folder,
    scenario: options.ScenarioName,
    hosts: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Host names of the processes for other tools: {} stands for balancer, relay or a "
            "server's name.",
        ),
    ] = None,
    days: Days = 90.0,
) -> None:
    """Issue the identities of all processes of a scenario.

    Beside its nodes, balancer and relay there are a client, an evaluator (which
    `edgewise client` is), an operator and a monitor.
    """
    from edgewise.live.run.fleet_configs import fleet_hosts
    from edgewise.scenario import load
    from edgewise.security.authority import issue_all, open_authority

    if hosts is not None and "{}" not in hosts:
        raise BadInput(f"--hosts: expected a pattern with {{}} in it, got {hosts!r}")
    names = load(scenario, allow_code=True).server_names
    host_of = None if hosts is None else lambda process: hosts.replace("{}", process)
    wanted = fleet_hosts(names, host_of)
    issue_all(open_authority(folder), folder, wanted, days)
    for each in wanted:
        typer.echo(f"{each}\t{folder / each.folder}")


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="An identity's folder.")],
) -> None:
    """Check an identity's folder, and say whose it is and how long it is valid."""
    from edgewise.security.identity import TO_THE_MINUTE, Role, check_folder

    identity, expires = check_folder(folder, tuple(Role))
    typer.echo(f"{identity}\tvalid until {expires:{TO_THE_MINUTE}} UTC\t{identity.dns}")
