"""``edgewise relay``: the emulated network as a process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def relay(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG", help="YAML: links, routes over them (or devices), control address."
        ),
    ],
) -> None:
    """Emulate a network: TCP relays that shape what passes through them.

    Prints one line of JSON when it listens, with the address of its control
    interface and of every route; then runs until SIGTERM or Ctrl-C. On the
    control address GET /links shows all links, and PATCH /links/NAME with
    {"rate_bps": 5e6} changes one while traffic flows.
    """
    import msgspec

    from edgewise.network.kernel.devices import load
    from edgewise.network.relay.config import RelayConfig

    def ready(ports: dict[str, Any]) -> None:
        control = ports["control"]
        greeting = {
            "relay": config.stem,
            "url": f"http://{control['host']}:{control['port']}",
            "routes": ports["routes"],
        }
        typer.echo(msgspec.json.encode({"ready": greeting}).decode())

    read = load(config)
    if isinstance(read, RelayConfig):
        from edgewise.network.relay.relay import run as run_relay

        run_relay(read, ready)
    else:  # needs an extra that the relay does not
        from edgewise.network.kernel.shaper import run as run_wires

        run_wires(read, ready)
