"""The time that identities (mutual TLS) add to a request at a node.

    python benchmarks/tls_cost.py [--requests 1000] [--size 107000] [--json FILE] [--write]

Two nodes run in processes of their own, one with an identity. One client sends the same photo to
them in turn, one request at a time, so that other load on the machine affects both equally; then it
opens a new connection for each. The models take (almost) no time. The CPU time of client and node
together is measured too: other load hardly changes it. `--write` puts the table into
docs/security.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psutil
import uvloop
from node_overhead import SCENARIO
from rich.console import Console
from rich.table import Table

from edgewise.benchmark.document import rewrite
from edgewise.cli.failures import in_one_line
from edgewise.domain import Request
from edgewise.live.node.node import Node
from edgewise.live.process_config import NodeConfig
from edgewise.live.wire.open_inference import encode_request
from edgewise.live.wire.request_metadata import to_headers
from edgewise.security import identity
from edgewise.security.authority import Authority
from edgewise.security.identity import Credentials, Identity, Role

DOCUMENT = Path(__file__).parents[1] / "docs" / "security.md"
CLIENT = Identity(Role.CLIENT, "client")


def node_process(pipe: Connection, scenario: str, keys: str | None) -> None:
    async def serve() -> None:
        async with Node(NodeConfig(scenario=scenario, server="a", identity=keys)) as running:
            pipe.send(running.url)
            await asyncio.Event().wait()

    uvloop.run(serve())


async def send(
    client: aiohttp.ClientSession, url: str, number: int, size: int, tls: dict[str, Any]
) -> tuple[float, float]:
    """The seconds that one request takes, and those of this process's CPU."""
    form, body = encode_request(bytes(size))
    request = Request(id=f"r{number}", ingress="a", payload_bytes=size, sent_at=0.0, deadline=1.0)
    headers = form | to_headers(request, 0.0)
    path = f"{url}/v2/models/imagenet-1k/infer"
    start, cpu = time.perf_counter(), time.process_time()
    async with client.post(path, data=body, headers=headers, **tls) as response:
        await response.read()
    if response.status != 200:
        raise SystemExit(f"{url} answered {response.status}")
    return time.perf_counter() - start, time.process_time() - cpu


class Target(NamedTuple):
    """A node to send to."""

    url: str
    process: psutil.Process
    tls: dict[str, Any]

    def cpu(self) -> float:
        """CPU seconds of its process so far."""
        times = self.process.cpu_times()
        return times.user + times.system


Figures = dict[str, dict[str, float]]
"""By node: the median time and the CPU time of a request, s."""


async def measure(targets: dict[str, Target], count: int, size: int, force_close: bool) -> Figures:
    times: dict[str, list[float]] = {name: [] for name in targets}
    cpu = dict.fromkeys(targets, 0.0)
    connector = aiohttp.TCPConnector(force_close=force_close)
    async with aiohttp.ClientSession(connector=connector) as client:
        for i in range(-50, count):  # the first requests fill caches
            if i == 0:
                cpu = {name: -target.cpu() for name, target in targets.items()}
            for name in sorted(targets, reverse=i % 2 == 0):
                target = targets[name]
                number = i + 100 + (10**6 if force_close else 0)
                taken, own_cpu = await send(client, target.url, number, size, target.tls)
                if i >= 0:
                    times[name].append(taken)
                    cpu[name] += own_cpu
    return {
        name: {
            "time": statistics.median(times[name]),
            "cpu": (cpu[name] + target.cpu()) / count,
        }
        for name, target in targets.items()
    }


async def run(count: int, size: int, folder: Path) -> dict[str, Figures]:
    """The figures by kind of connection."""
    scenario = folder / "overhead.yaml"
    scenario.write_text(SCENARIO)
    authority = Authority.create()
    authority.issue(identity.node("a"), folder / "a")
    authority.issue(CLIENT, folder / "client")
    credentials = Credentials(folder / "client", (Role.CLIENT,))
    context = multiprocessing.get_context("spawn")
    targets = {}
    with contextlib.ExitStack() as stack:
        for name, keys in (("plain", None), ("identities", str(folder / "a"))):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=node_process, args=(theirs, str(scenario), keys), daemon=True
            )
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            theirs.close()
            url = await asyncio.to_thread(mine.recv)
            tls = {} if keys is None else credentials.calls(identity.node("a"))
            targets[name] = Target(url, psutil.Process(process.pid), tls)
        return {
            "kept connections": await measure(targets, count, size, False),
            "a new one each": await measure(targets, count, size, True),
        }


def rows(found: dict[str, Figures]) -> list[list[str]]:
    """The cells of the table: times in ms and ratios."""
    made = []
    for kind, figures in found.items():
        cells = [kind]
        for what in ("time", "cpu"):
            plain, secure = (figures[name][what] for name in ("plain", "identities"))
            cells += [f"{1e3 * plain:.2f}", f"{1e3 * secure:.2f}", f"{secure / plain:.2f}"]
        made.append(cells)
    return made


HEADINGS = ("connection", "plain ms", "with ms", "ratio", "CPU plain ms", "CPU with ms", "ratio")


def markdown(found: dict[str, Figures], count: int, size: int) -> str:
    load = os.getloadavg()[0]
    lines = [
        f"{count} requests of {size:,} bytes to each, one by one: median time, and CPU time of "
        f"client and node together. {os.cpu_count()} cores, load {load:.0f} meanwhile.",
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---" * len(HEADINGS) + "|",
        *(f"| {' | '.join(cells)} |" for cells in rows(found)),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000, help="to each, of each kind")
    parser.add_argument("--size", type=int, default=107_000, help="bytes of the photo")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="put the table into the document")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(run(options.requests, options.size, Path(folder)))
    table = Table(title=f"{options.requests} requests of {options.size:,} bytes each, one by one")
    for heading in HEADINGS:
        table.add_column(heading)
    for cells in rows(found):
        table.add_row(*cells)
    Console(file=sys.stdout).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.write:
        rewrite(DOCUMENT, "tls", markdown(found, options.requests, options.size))


if __name__ == "__main__":
    with in_one_line():
        main()
