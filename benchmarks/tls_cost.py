"""The time that identities (mutual TLS) add to a request at a node.

    python benchmarks/tls_cost.py [--requests 1000] [--size 107000] [--json FILE] [--write]

Two nodes run in processes of their own, one with an identity. One client sends the same photo to
them in turn, one request at a time, so that other load on the machine affects both equally; then it
opens a new connection for each. The models take (almost) no time. `--write` puts the table into
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
from typing import Any

import aiohttp
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
) -> float:
    """The seconds that one request takes."""
    form, body = encode_request(bytes(size))
    request = Request(id=f"r{number}", ingress="a", payload_bytes=size, sent_at=0.0, deadline=1.0)
    headers = form | to_headers(request, 0.0)
    path = f"{url}/v2/models/imagenet-1k/infer"
    start = time.perf_counter()
    async with client.post(path, data=body, headers=headers, **tls) as response:
        await response.read()
    if response.status != 200:
        raise SystemExit(f"{url} answered {response.status}")
    return time.perf_counter() - start


async def measure(
    urls: dict[str, str], tls: dict[str, dict[str, Any]], count: int, size: int
) -> dict[str, dict[str, list[float]]]:
    """Seconds of each request, by kind of connection and by node."""
    found: dict[str, dict[str, list[float]]] = {}
    for kind, force_close in (("kept connections", False), ("a new one each", True)):
        times = found[kind] = {name: [] for name in urls}
        connector = aiohttp.TCPConnector(force_close=force_close)
        async with aiohttp.ClientSession(connector=connector) as client:
            for i in range(-50, count):  # the first requests fill caches
                for name in sorted(urls, reverse=i % 2 == 0):
                    number = 2 * i + 200 + (10**6 if force_close else 0)
                    taken = await send(client, urls[name], number, size, tls[name])
                    if i >= 0:
                        times[name].append(taken)
    return found


async def run(count: int, size: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    scenario = folder / "overhead.yaml"
    scenario.write_text(SCENARIO)
    authority = Authority.create()
    authority.issue(identity.node("a"), folder / "a")
    authority.issue(CLIENT, folder / "client")
    credentials = Credentials(folder / "client", (Role.CLIENT,))
    context = multiprocessing.get_context("spawn")
    urls = {}
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
            urls[name] = await asyncio.to_thread(mine.recv)
        tls = {"plain": {}, "identities": credentials.calls(identity.node("a"))}
        return await measure(urls, tls, count, size)


def figures(times: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """By kind of connection: medians in ms, and the ratio of the medians."""
    found = {}
    for kind, each in times.items():
        plain, secure = (1e3 * statistics.median(each[k]) for k in ("plain", "identities"))
        found[kind] = {"plain": plain, "identities": secure, "ratio": secure / plain}
    return found


def markdown(found: dict[str, dict[str, float]], count: int, size: int) -> str:
    lines = [
        f"{count} requests of {size:,} bytes to each, one by one; medians. {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.0f} meanwhile, so read the ratio.",
        "",
        "| | plain ms | with identities ms | ratio |",
        "|---|---|---|---|",
        *(
            f"| {kind} | {each['plain']:.2f} | {each['identities']:.2f} | {each['ratio']:.2f} |"
            for kind, each in found.items()
        ),
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
        times = uvloop.run(run(options.requests, options.size, Path(folder)))
    found = figures(times)
    table = Table(title=f"{options.requests} requests of {options.size:,} bytes each, one by one")
    for heading in ("connection", "plain ms", "identities ms", "ratio"):
        table.add_column(heading)
    for kind, each in found.items():
        table.add_row(kind, *(f"{each[k]:.2f}" for k in ("plain", "identities", "ratio")))
    Console(file=sys.stdout).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.write:
        rewrite(DOCUMENT, "tls", markdown(found, options.requests, options.size))


if __name__ == "__main__":
    with in_one_line():
        main()
