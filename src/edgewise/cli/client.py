"""``edgewise client``: send a scenario's requests to a fleet that runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgewise.cli import options, output


def client(
    config: options.ConfigFile,
    hold: Annotated[
        bool, typer.Option("--hold", help="When ready, wait for a line on stdin to begin.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Begins the ids of the requests. Default: random.")
    ] = None,
) -> None:
    """Send the requests of a scenario and score the answers.

    Prints lines of JSON: ready, progress twice a second, and at the end done
    with what became of the requests. With `out` in its configuration it
    writes requests.parquet and outcomes.parquet for `edgewise evaluate`.
    """
    from edgewise.live.client.client_process import run
    from edgewise.live.process_config import ClientConfig, load_config

    def say(key: str, value: Any) -> None:
        output.say_line({key: value})

    say("done", run(load_config(config, ClientConfig), hold=hold, name=name, say=say))
