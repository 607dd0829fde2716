"""``edgewise node``: run one edge server."""

from __future__ import annotations

from edgewise.cli import options
from edgewise.live.process_config import NodeConfig, load_config


def node(
    config: options.ConfigFile,
    allow_code: options.AllowCode = False,
) -> None:
    """Run an edge server until SIGTERM or Ctrl-C; then it finishes its requests and stops.

    It prints one line of JSON with its address when it is ready. The log goes to standard error.

    [bold]Example:[/bold] edgewise node plaza.yaml
    """
    from edgewise.live.node.node_process import run

    run(load_config(config, NodeConfig), allow_code=allow_code)
