"""``edgewise client``: send a scenario's requests to a running fleet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgewise.cli import options, output


def client(
    config: options.ConfigFile,
    hold: Annotated[
        bool, typer.Option("--hold", help="When ready, wait for a line on stdin before sending.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Beginning of the requests' ids. Default: random.")
    ] = None,
) -> None:
    """Send the requests of a scenario and score the answers.

    It prints lines of JSON: ready, progress twice a second, and done with the
    counts of all outcomes. With `out` in its configuration it writes
    requests.parquet and outcomes.parquet, which `edgewise evaluate` reads.

    `ingress` in the configuration has the addresses of all servers. A request
    whose server cannot be reached, breaks off before its answer or is about to
    stop goes to the next one, with the same id (`failover: false` switches this
    off). The last line counts such tries (failed_over), and those that may have
    run a request twice (second_runs). If no server answers any request, the
    exit code is 2, and the error says why.
    """
    from edgewise.live.client.client_process import run
    from edgewise.live.process_config import ClientConfig, load_config

    def say(key: str, value: Any) -> None:
        output.say_line({key: value})

    say("done", run(load_config(config, ClientConfig), hold=hold, name=name, say=say))
