"""The time that a node adds to a request, compared with a bare aiohttp handler in the same run.

    python benchmarks/node_overhead.py [--requests 2000] [--size 107000] [--json FILE]

Each server runs in a process of its own, on uvloop. One client sends the same photo to them in
turn, one request at a time, so that other load on the machine affects them equally. The node
replays a model that takes (almost) no time, so the difference is its own work: V2, metadata, queue,
a decision by its own policy (`alone`) or by a balancer (`asked`: one in the client's process that
answers at once), monitor and metrics. Target: under 3 ms at the median.
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

from rich.console import Console
from rich.table import Table

from edgewise.cli.failures import in_one_line
from edgewise.domain import Command, Request

with in_one_line():
    import aiohttp
    import uvloop
    from aiohttp import web

    from edgewise.live.node.node import Node
    from edgewise.live.process_config import Listen, NodeConfig
    from edgewise.live.wire import messages
    from edgewise.live.wire.open_inference import encode_request
    from edgewise.live.wire.request_metadata import to_headers

SCENARIO = """
name: overhead
executor: replay
service_noise: {cv: 0}
servers:
  a: {services: [{model: m, accuracy: 0.9, latency: [0.000001]}]}
workload:
  duration: 1
  arrivals: {kind: poisson, rate: 1}
  ingress: {a: 1}
  demands: [{deadline: 1.0}]
  payload: {kind: lognormal, median_bytes: 1000}
"""


async def bare(pipe: Connection) -> None:
    """Serve a handler that reads the body and answers a small JSON."""

    async def infer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"class": 1})

    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v2/models/{model}/infer", infer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    pipe.send(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await asyncio.Event().wait()


async def node(pipe: Connection, scenario: str, balancer: str | None) -> None:
    config = NodeConfig(scenario=scenario, server="a", balancer=balancer, listen=Listen())
    async with Node(config) as running:
        pipe.send(running.url)
        await asyncio.Event().wait()


def bare_process(pipe: Connection) -> None:
    uvloop.run(bare(pipe))


def node_process(pipe: Connection, scenario: str, balancer: str | None) -> None:
    uvloop.run(node(pipe, scenario, balancer))


async def empty_balancer() -> tuple[web.AppRunner, str]:
    """Start a balancer that commands every request to run where it is, at once."""

    async def channel(http: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(http)
        sequence = 0
        async for message in socket:
            read = messages.decode_from_node(message.data)
            if isinstance(read, messages.Hello):
                await socket.send_bytes(messages.encode(messages.Welcome(policy="empty", at=0.0)))
            elif isinstance(read, messages.Ask):
                sequence += 1
                command = Command(
                    request=read.request.id,
                    sequence=sequence,
                    dispatch=sequence,
                    server="a",
                    model="m",
                )
                await socket.send_bytes(messages.encode(command))
        return socket

    app = web.Application()
    app.router.add_get("/v1/control", channel)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def measure(urls: dict[str, str], count: int, size: int) -> dict[str, list[float]]:
    form, body = encode_request(os.urandom(size))
    times: dict[str, list[float]] = {name: [] for name in urls}
    async with aiohttp.ClientSession() as client:
        for i in range(-50, count):  # the first requests fill caches
            order = [*urls]
            for name in order[i % 3 :] + order[: i % 3]:  # each goes first equally often
                url = urls[name]
                start = time.perf_counter()
                request = Request(
                    id=f"{name}-{i}", ingress="a", payload_bytes=size, sent_at=0.0, deadline=1.0
                )
                headers = form | to_headers(request, 0.0)
                path = url + "/v2/models/imagenet-1k/infer"
                async with client.post(path, data=body, headers=headers) as response:
                    await response.read()
                if response.status != 200:
                    raise SystemExit(f"{name} answered {response.status}")
                if i >= 0:
                    times[name].append(time.perf_counter() - start)
    return times


async def run(count: int, size: int, scenario: str) -> dict[str, dict[str, float]]:
    runner, balancer = await empty_balancer()
    context = multiprocessing.get_context("spawn")
    urls = {}
    with contextlib.ExitStack() as stack:
        for name, target, arguments in (
            ("bare", bare_process, ()),
            ("alone", node_process, (scenario, None)),
            ("asked", node_process, (scenario, balancer)),
        ):
            mine, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            theirs.close()
            urls[name] = await asyncio.to_thread(mine.recv)
        times = await measure(urls, count, size)
    await runner.cleanup()
    return {
        name: {"p50": statistics.median(taken), "p99": statistics.quantiles(taken, n=100)[98]}
        for name, taken in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000, help="to each")
    parser.add_argument("--size", type=int, default=107_000, help="bytes of the photo")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder) / "overhead.yaml"
        scenario.write_text(SCENARIO)
        results = uvloop.run(run(options.requests, options.size, str(scenario)))
    table = Table(title=f"{options.requests} requests of {options.size:,} bytes each, one by one")
    table.add_column("server")
    for heading in ("p50 ms", "p99 ms", "added p50", "added p99", "times bare (p50)"):
        table.add_column(heading, justify="right")
    base = results["bare"]
    for name, result in results.items():
        table.add_row(
            name,
            *(f"{1e3 * result[q]:.2f}" for q in ("p50", "p99")),
            *(f"{1e3 * (result[q] - base[q]):.2f}" for q in ("p50", "p99")),
            f"{result['p50'] / base['p50']:.1f}",
        )
    Console(file=sys.stdout).print(table)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    with in_one_line():
        main()
