"""Time a decision, node → balancer → node, against an empty round trip on the same channel.

    python benchmarks/decision_round_trip.py [--seconds 10] [--rate 500] [--servers 3] [--json FILE]

The balancer is a process of its own. This process stands for its nodes: each keeps a control
channel open, reports ten times a second, sends Asks, and reports every outcome.

1. In turns: a WebSocket ping (answered by the library: two messages over the same socket, only
   parsed), then an Ask with its Command. The ratio of the medians is the cost of deciding.
2. Open loop: Asks at a constant rate over all channels, however many are under way. An Ask's time
   counts from when it was due, so a stall is not hidden by asking later (coordinated omission).

Both processes share the machine; the lateness of the asking process shows how much of the tail is
due to the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgewise.cli.failures import in_one_line
from edgewise.domain import Command, Outcome, Report, Request, Stamps, Status

with in_one_line():
    import aiohttp
    import uvloop

    from edgewise.live.clock import Clock
    from edgewise.live.wire import messages

SCENARIO = """
name: bench
servers:
{servers}
workload:
  duration: 1
  arrivals: {{kind: constant, rate: 1}}
  ingress: {{s0: 1}}
  demands: [{{share: 1, deadline: [1, 1], accuracy: 0}}]
"""
SERVER = (
    "  s{i}: {{workers: 4, services: ["
    "{{model: small, accuracy: 0.7, latency: [0.001]}}, "
    "{{model: middle, accuracy: 0.8, latency: [0.002]}}, "
    "{{model: large, accuracy: 0.9, latency: [0.004]}}]}}"
)
MODELS = ("small", "middle", "large")
REPORT_PERIOD = 0.1


class Node:
    """One control channel."""

    def __init__(self, name: str, socket: aiohttp.ClientWebSocketResponse, clock: Clock) -> None:
        self.name, self.socket, self.clock = name, socket, clock
        self.waiting: dict[str, asyncio.Future[float]] = {}
        self.pong: asyncio.Future[float] | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.seen = 0
        self.started = asyncio.Event()

    async def read(self) -> None:
        async for frame in self.socket:
            if frame.type is aiohttp.WSMsgType.PONG:
                if self.pong is not None and not self.pong.done():
                    self.pong.set_result(time.perf_counter())
                continue
            message = messages.decode_from_balancer(frame.data)
            if isinstance(message, Command):
                self.seen = message.sequence
                self.waiting.pop(message.request).set_result(time.perf_counter())
                await self.say(messages.OutcomeMessage(outcome=self._served(message)))
            elif isinstance(message, messages.Ping):
                await self.say(messages.Pong(ping=message.at, at=self.clock.now()))
                self.started.set()

    def _served(self, command: Command) -> Outcome:
        return Outcome(
            request=command.request,
            status=Status.SERVED,
            server=command.server,
            model=command.model,
            form=command.form,
            accuracy=0.9,
            stamps=Stamps(answered=self.clock.now()),
        )

    async def say(self, message: Any) -> None:
        await self.socket.send_bytes(messages.encode(message))

    async def report(self) -> None:
        while True:
            report = Report(
                server=self.name, at=self.clock.now(), workers=4, commands_seen=self.seen
            )
            await self.say(messages.ReportMessage(report=report))
            await asyncio.sleep(REPORT_PERIOD)

    async def empty(self) -> float:
        """s of a WebSocket ping."""
        self.pong = asyncio.get_running_loop().create_future()
        begin = time.perf_counter()
        await self.socket.ping()
        return await self.pong - begin

    async def ask(self, name: str, due: float | None = None) -> float:
        """s of an Ask, from `due` if that is given."""
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.waiting[name] = answer
        now = self.clock.now()
        request = Request(
            id=name, ingress=self.name, payload_bytes=100_000, sent_at=now, deadline=1.0
        )
        begin = time.perf_counter() if due is None else due
        await self.say(messages.Ask(request=request))
        return await answer - begin


@contextlib.contextmanager
def balancer(servers: int, record: bool) -> Any:
    """A balancer's process; yields (its address, its process id)."""
    with tempfile.TemporaryDirectory() as folder:
        lines = "\n".join(SERVER.format(i=i) for i in range(servers))
        Path(folder, "bench.yaml").write_text(SCENARIO.format(servers=lines))
        config = Path(folder, "balancer.yaml")
        out = f"\nout: {folder}/out" if record else ""
        config.write_text(f"scenario: bench.yaml{out}\n")
        code = "import sys, typer\nfrom edgewise.cli.balancer import balancer\n"
        process = subprocess.Popen(
            [sys.executable, "-c", code + "typer.run(balancer)", str(config)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["ready"]["url"], process.pid
        finally:
            process.terminate()
            process.wait()
            process.stdout.close()


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50, p99 and greatest in ms."""
    ordered = sorted(seconds)
    return {
        "p50_ms": 1e3 * ordered[len(ordered) // 2],
        "p99_ms": 1e3 * ordered[int(0.99 * len(ordered))],
        "max_ms": 1e3 * ordered[-1],
    }


def cpu_of(pid: int) -> float:
    """CPU s that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


def rss_of(pid: int) -> int:
    """bytes of a process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def measure(url: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    clock = Clock()
    nodes: list[Node] = []
    async with aiohttp.ClientSession(url) as session:
        for i in range(options.servers):
            socket = await session.ws_connect("/v1/control", autoping=False)
            node = Node(f"s{i}", socket, clock)
            await node.say(messages.Hello(server=node.name, models=MODELS))
            node.tasks.append(asyncio.create_task(node.read()))
            await node.started.wait()
            node.tasks.append(asyncio.create_task(node.report()))
            nodes.append(node)
        gc.collect()
        gc.freeze()

        empty, asked = [], []
        for i in range(options.turns):
            empty.append(await nodes[0].empty())
            asked.append(await nodes[0].ask(f"turn{i}"))
        begin, busy, before = time.perf_counter(), cpu_of(pid), rss_of(pid)
        tasks, late = [], []
        for i in range(int(options.rate * options.seconds)):
            due = begin + i / options.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            late.append(max(0.0, time.perf_counter() - due))
            tasks.append(asyncio.create_task(nodes[i % len(nodes)].ask(f"load{i}", due)))
        loaded = await asyncio.gather(*tasks)
        took = time.perf_counter() - begin
        busy = cpu_of(pid) - busy
        after = rss_of(pid)
        for node in nodes:
            for task in node.tasks:
                task.cancel()
            await asyncio.gather(*node.tasks, return_exceptions=True)
            await node.socket.close()
    one, other = quantiles(asked), quantiles(empty)
    return {
        "servers": options.servers,
        "empty": other,
        "decision": one,
        "ratio_p50": one["p50_ms"] / other["p50_ms"],
        "ratio_p99": one["p99_ms"] / other["p99_ms"],
        "sustained": {
            "asked_per_s": options.rate,
            "decided_per_s": len(loaded) / took,
            **quantiles(list(loaded)),
            "asker_late_p99_ms": quantiles(late)["p99_ms"],
            "balancer_cpu_us_per_decision": 1e6 * busy / len(loaded),
            "balancer_rss_growth_mb": (after - before) / 1e6,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=500.0, help="asks/s in the second part")
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2000, help="pairs in the first part")
    parser.add_argument("--no-record", action="store_true", help="the balancer keeps no files")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with (
        balancer(options.servers, not options.no_record) as (url, pid),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        result = runner.run(measure(url, pid, options))
    for name in ("empty", "decision"):
        row = result[name]
        print(f"{name:10} p50 {row['p50_ms']:.3f} ms   p99 {row['p99_ms']:.3f} ms")
    print(f"ratio      p50 {result['ratio_p50']:.2f}      p99 {result['ratio_p99']:.2f}")
    load = result["sustained"]
    print(
        f"{load['asked_per_s']:g}/s for {options.seconds:g} s: {load['decided_per_s']:.0f}/s done, "
        f"p50 {load['p50_ms']:.2f} ms, p99 {load['p99_ms']:.2f} ms, max {load['max_ms']:.1f} ms "
        f"(the asking process was late by {load['asker_late_p99_ms']:.2f} ms at p99), "
        f"balancer {load['balancer_cpu_us_per_decision']:.0f} µs CPU each, "
        f"memory {load['balancer_rss_growth_mb']:+.1f} MB"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    with in_one_line():
        main()
