"""``edgewise up``: run a scenario with real processes on this machine.

What is heavy (models, sockets, compiled code) is imported when the command runs, or
``edgewise --help`` would take seconds.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli import options, output


class Network(StrEnum):
    """The scenario's ``network.backend``."""

    relay = "relay"
    tc = "tc"
    tun = "tun"
    auto = "auto"


def up(
    scenario: options.ScenarioName = "three-sites",
    policy: options.Policies = None,
    allow_code: options.AllowCode = False,
    emulate: options.Emulate = None,
    network: Annotated[
        Network | None,
        typer.Option(
            help="How the network is emulated: relays in user space, the kernel's tc, or packets "
            "over tun devices (`edgewise doctor` says which work here). Default: the scenario's.",
            show_default=False,
        ),
    ] = None,
    duration: options.Duration = None,
    rate: options.Rate = None,
    images: options.Images = None,
    seed: options.Seed = None,
    containers: Annotated[
        bool,
        typer.Option(
            "--containers",
            help="Run each server, the balancer and the emulator in a container of its own, by "
            "docker or podman (docs/deploy.md).",
        ),
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(help="Image for --containers. Default: localhost/edgewise (deploy/image.sh)."),
    ] = None,
    identities: Annotated[
        bool,
        typer.Option(
            "--identities",
            help="Mutual TLS between all processes (docs/security.md). Default: only where they "
            "listen beyond the loopback, as with --containers.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run. Default: runs/DATE-TIME-SCENARIO."),
    ] = None,
    json: options.Json = None,
) -> None:
    """Send real photos through a real fleet on this machine, and compare policies.

    Starts a balancer, a node per server, the network emulator and a client, each
    a process of its own; shows their progress, stops them, and prints a summary
    of each policy. Ctrl-C stops everything.

    [bold]Examples:[/bold]

      edgewise up

      edgewise up volatile --policy earliest_completion,round_robin,local

      edgewise up three-sites --no-emulate --duration 10 --json -

      sudo edgewise up three-sites --network tun
    """
    from edgewise.errors import BadInput
    from edgewise.live.run.containers import DEFAULT_IMAGE
    from edgewise.live.run.launcher import RunOptions, launch
    from edgewise.summary_tables import show

    if image is not None and not containers:
        raise BadInput("--image: only with --containers")

    # With the JSON on stdout, all else goes to stderr.
    console = output.console_beside(json)
    output.check_writable(json)
    run_options = RunOptions(
        scenario=scenario,
        policies=tuple(options.policies(policy)),
        allow_code=allow_code,
        emulate=emulate,
        network=None if network is None else network.value,
        duration=duration,
        rate=rate,
        images=images,
        seed=seed,
        out=out,
        image=(image or DEFAULT_IMAGE) if containers else None,
        identities=identities,
    )
    summary, folder = launch(run_options, console)
    show(summary, console)
    output.note(console, f"results: {folder}")
    output.write_json(summary.to_json(), json)
