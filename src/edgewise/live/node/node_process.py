"""The process of one edge server: ``edgewise node``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
import uvloop
from msgspec import Meta, Struct

from edgewise.live.node.node import DRAIN_LIMIT, Node, log_failure
from edgewise.live.process_config import NodeConfig
from edgewise.live.startup import freeze_startup_objects
from edgewise.scenario import Misbehaviour, Scenario, load

log = logging.getLogger("edgewise.node")


class LauncherMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line on a node's standard input, from its launcher: ``{"slow": 1.8}``."""

    slow: Annotated[float, Meta(ge=1.0)]
    """The factor by which everything that starts from now on takes longer: a slow spell."""
    misbehave: Annotated[int, Meta(ge=0, le=3)] = 0
    """What is wrong with its models from now on (`scenario.Misbehaviour`)."""


def run(config: NodeConfig, *, allow_code: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then drain.

    One line of JSON on standard output says that the node is ready, and where. The log goes to
    standard error. Raises BadInput.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format=f"%(asctime)s {config.server} %(levelname)s %(message)s",
    )
    uvloop.run(_serve(config, load(config.scenario, allow_code=allow_code)))


async def _serve(config: NodeConfig, scenario: Scenario) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    node = Node(config, scenario)
    async with node, _obeying_launcher(node):
        freeze_startup_objects()
        ready = {"ready": {"node": config.server, "url": node.url}}
        print(msgspec.json.encode(ready).decode(), flush=True)
        await stop.wait()
        log.info("draining: %d requests in flight", node.inflight)
        if not await node.drain():
            log.warning("gave up on %d requests after %g s", node.inflight, DRAIN_LIMIT)


@contextlib.asynccontextmanager
async def _obeying_launcher(node: Node) -> AsyncIterator[None]:
    """Follow the launcher's messages on standard input.

    A node that no launcher has started has no pipe there, and gets no messages.
    """
    mode = 0 if sys.stdin is None else os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        yield
        return
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )

    async def obey() -> None:
        async for line in lines:
            try:
                message = msgspec.json.decode(line, type=LauncherMessage)
            except msgspec.DecodeError as error:
                log.warning("standard input: %s", error)
                continue
            node.slow_down(message.slow)
            node.misbehave(Misbehaviour(message.misbehave))

    task = asyncio.create_task(obey())
    task.add_done_callback(log_failure)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        transport.close()
