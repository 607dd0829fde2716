"""``edgewise balancer``: decides for each request which server and model answer it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from edgewise.cli import options, output
from edgewise.policy_names import absolute


def balancer(
    config: options.ConfigFile,
    policy: Annotated[
        str | None, typer.Option(help="Policy to use instead of the configuration's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for decisions, reports and experience.")
    ] = None,
    allow_code: options.AllowCode = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Log nodes that connect and disconnect.")
    ] = False,
) -> None:
    """Run a balancer until SIGTERM or Ctrl-C.

    Once it listens, it prints {"ready": {"balancer": SCENARIO, "url": URL}} on stdout. It logs to
    stderr.
    """
    from edgewise.live.balancer.balancer_process import run
    from edgewise.live.process_config import BalancerConfig, load_config

    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    read = load_config(config, BalancerConfig, allow_code=allow_code)
    if policy is not None:
        read = msgspec.structs.replace(read, policy=absolute(policy, Path.cwd()))
    if out is not None:
        read = msgspec.structs.replace(read, out=str(out))
    run(read, lambda where: output.say_line({"ready": where}), allow_code=allow_code)
