"""``edgewise relay``: the emulated network as a process."""

from __future__ import annotations

from typing import Any

from edgewise.cli import options, output


def relay(
    config: options.ConfigFile,
) -> None:
    """Emulate a network: TCP relays that shape what passes through them.

    Prints one line of JSON when it listens, with the address of its control
    interface and of every route; then runs until SIGTERM or Ctrl-C. On the
    control address GET /links shows all links, and PATCH /links/NAME with
    {"rate_mbps": 5} changes one while traffic flows.
    """
    from edgewise.network.backends import make_network
    from edgewise.network.emulated_network import run
    from edgewise.network.kernel.devices import load

    network = make_network(load(config))
    scheme = "http" if network.credentials is None else "https"

    def ready(ports: dict[str, Any]) -> None:
        control = ports["control"]
        greeting = {
            "relay": config.stem,
            "url": f"{scheme}://{control['host']}:{control['port']}",
            "routes": ports["routes"],
        }
        output.say_line({"ready": greeting})

    run(network, ready)
