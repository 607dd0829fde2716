"""``edgewise up``: the main job, on this machine.

The heavy half (models, sockets, compiled belief) is imported when the command runs, not when its
help is shown: ``edgewise --help`` would otherwise take seconds.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


class Network(StrEnum):
    """As the scenario's ``network.backend``."""

    relay = "relay"
    tc = "tc"
    tun = "tun"
    auto = "auto"


def up(
    scenario: Annotated[
        str, typer.Argument(help="A preset (`edgewise scenarios` lists them) or a file.")
    ] = "three-sites",
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="P[,P...]",
            help="Who decides; several run one after another on the same trace. "
            "Default: the scenario's, edgewise if it names none.",
        ),
    ] = None,
    emulate: Annotated[
        bool | None,
        typer.Option(
            "--emulate/--no-emulate",
            help="Whether relays play the scenario's network. Default: as the scenario says.",
            show_default=False,
        ),
    ] = None,
    network: Annotated[
        Network | None,
        typer.Option(
            help="What plays the network: relays in user space, the kernel's tc, packets over tun "
            "devices (`edgewise doctor` says what this machine can do). Default: as the scenario "
            "says.",
            show_default=False,
        ),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds over which requests are sent.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(metavar="R", help="Mean requests per second.")
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Labelled photos: a folder, or 'builtin'."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    containers: Annotated[
        bool,
        typer.Option(
            "--containers",
            help="Each server, the balancer and the emulator in a container of its own, by docker "
            "or podman (docs/deploy.md).",
        ),
    ] = False,
    image: Annotated[
        str | None,
        typer.Option(help="For --containers. Default: localhost/edgewise, by deploy/image.sh."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Results. Default: runs/DATE-TIME-SCENARIO.")
    ] = None,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="The summary as JSON; - for stdout.")
    ] = None,
) -> None:
    """Send real photos through a real fleet on this machine; compare policies.

    Starts balancer, a node per server, the network emulator and the client,
    each a process of its own; shows them at work, stops them, and prints what
    each policy achieved. Ctrl-C stops everything.

    [bold]Examples:[/bold]

      edgewise up

      edgewise up volatile --policy earliest_completion,round_robin,local

      edgewise up three-sites --no-emulate --duration 10 --json -

      sudo edgewise up three-sites --network tun
    """
    from edgewise.errors import BadInput
    from edgewise.live.run.containers import IMAGE
    from edgewise.live.run.up import RunOptions, show, up

    if image is not None and not containers:
        raise BadInput("--image: only with --containers")

    # With the JSON on stdout, all else goes to stderr.
    console = Console(stderr=json == "-")
    wishes = RunOptions(
        scenario=scenario,
        policies=tuple(name.strip() for name in policy.split(",")) if policy else (),
        emulate=emulate,
        network=None if network is None else network.value,
        duration=duration,
        rate=rate,
        images=images,
        seed=seed,
        out=out,
        image=(image or IMAGE) if containers else None,
    )
    summary, folder = up(wishes, console)
    show(summary, console)
    console.print(f"results: {folder}", style="dim", markup=False, highlight=False)
    write_summary(summary.to_json(), json)


def write_summary(data: bytes, json: str | None) -> None:
    """Write a summary where ``--json`` says. Raises BadInput for a file that cannot be written."""
    from edgewise.errors import BadInput

    if json == "-":
        typer.echo(data.decode(), nl=False)
    elif json is not None:
        try:
            Path(json).write_bytes(data)
        except OSError as error:
            raise BadInput(f"{json}: cannot be written: {error.strerror}") from None
