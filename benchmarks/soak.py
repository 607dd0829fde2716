"""Ten minutes of load that this machine can carry: nothing is lost, and no process grows.

    python benchmarks/soak.py
    python benchmarks/soak.py --duration 60 --rate 10 --json soak.json

Runs a scenario through the launcher's own processes, samples the memory of each every few seconds,
and prints requests, outcomes and a table of resident memory. Exits with 1 if a request was lost or
failed, if outcomes and requests differ in number, or if a process grew.

Growth is the memory in the last quarter against the second quarter (medians), by more than
5 % or 5 MB, whichever is larger. Caches and pools fill in the first quarter, so it is left out.
Ten minutes do not find a leak of less than a kilobyte a request.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from edgewise.cli.failures import in_one_line
from edgewise.scenario import Scenario, check, load
from edgewise.summary import PolicySummary, Summary
from edgewise.summary_tables import comparison_tables
from edgewise.tasks.services import services_of

with in_one_line():
    import psutil

    from edgewise.live.run.deployment import Deployment
    from edgewise.live.run.evaluation import evaluate
    from edgewise.live.run.launcher import prepare_models

RATE = 15.0
"""requests/s. Two shared cores carry three-sites at its 35/s while nothing else runs; this rate is
for ten minutes beside other work."""
PERIOD = 2.0
"""s between samples of memory."""
GROWTH_SHARE, GROWTH_BYTES = 0.05, 5e6


class Memory:
    """Resident memory of a deployment's processes over time."""

    def __init__(self, deployment: Deployment, duration: float) -> None:
        self._deployment = deployment
        self._duration = duration
        self._began = time.monotonic()
        self._next = 0.0
        self.samples: dict[str, list[tuple[float, int]]] = {}

    async def sample(self) -> None:
        """Note the memory of each process, if it is time and the client still sends."""
        at = time.monotonic() - self._began
        if not self._next <= at <= self._duration:
            return
        self._next = at + PERIOD
        for process in self._deployment.processes:
            try:
                resident = psutil.Process(process.pid).memory_info().rss
            except psutil.Error:
                continue
            self.samples.setdefault(process.name, []).append((at, resident))

    def growth(self) -> dict[str, dict[str, Any]]:
        """By process: bytes in each quarter (medians), and whether it grew."""
        rows = {}
        for name, samples in self.samples.items():
            quarters = []
            for quarter in range(4):
                low, high = (self._duration * q / 4 for q in (quarter, quarter + 1))
                inside = [resident for at, resident in samples if low <= at < high]
                quarters.append(statistics.median(inside) if inside else None)
            second, last = quarters[1], quarters[3]
            grown = None
            if second is not None and last is not None:
                grown = last - second > max(GROWTH_SHARE * second, GROWTH_BYTES)
            rows[name] = {"quarters": quarters, "grew": grown}
        return rows


async def soak(scenario: Scenario, folder: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Run the scenario; returns the growth of memory by process."""
    async with Deployment(
        scenario, folder, lambda line: console.print(line, markup=False, style="dim")
    ) as deployment:
        memory = Memory(deployment, scenario.workload.duration)
        await deployment.run(memory.sample, period=1.0)
        return memory.growth()


def report(summary: Summary, memory: dict[str, dict[str, Any]], console: Console) -> list[str]:
    """Print the summary and the memory; returns what is wrong."""
    policy = summary.policies[0]
    console.print(comparison_tables(summary))
    table = Table(title="Resident memory, MB, medians by quarter of the run")
    table.add_column("process")
    for heading in ("1st", "2nd", "3rd", "4th", "4th - 2nd"):
        table.add_column(heading, justify="right")
    for name, row in memory.items():
        quarters = row["quarters"]
        cells = ["-" if each is None else f"{each / 1e6:.1f}" for each in quarters]
        both = quarters[1] is not None and quarters[3] is not None
        cells.append(f"{(quarters[3] - quarters[1]) / 1e6:+.1f}" if both else "-")
        table.add_row(name, *cells, style="red" if row["grew"] else "")
    console.print(table)
    return problems(policy, memory)


def problems(policy: PolicySummary, memory: dict[str, dict[str, Any]]) -> list[str]:
    """What a soak must not show."""
    found = []
    if sum(policy.outcomes.values()) != policy.requests:
        found.append(f"{sum(policy.outcomes.values())} outcomes of {policy.requests} requests")
    found += [
        f"{policy.outcomes[status]} requests {status}: {policy.reasons}"
        for status in ("lost", "failed")
        if policy.outcomes[status]
    ]
    found += [f"{name} grew" for name, row in memory.items() if row["grew"]]
    found += [f"{name} was seen too rarely" for name, row in memory.items() if row["grew"] is None]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", default="three-sites", help="preset or file")
    parser.add_argument("--duration", type=float, default=600.0, help="s")
    parser.add_argument("--rate", type=float, default=RATE, help="requests/s")
    parser.add_argument("--policy", default=None)
    parser.add_argument("--json", type=Path, default=None, help="also write it here")
    arguments = parser.parse_args()
    console = Console()
    scenario = check(
        load(arguments.scenario).with_overrides(
            duration=arguments.duration, rate=arguments.rate, policy=arguments.policy
        )
    )
    if scenario.executor == "onnx":
        prepare_models(sorted({service.model for service in services_of(scenario)}), console)
    with tempfile.TemporaryDirectory(prefix="edgewise-soak-") as folder:
        memory = asyncio.run(soak(scenario, Path(folder), console))
        summary = evaluate(Path(folder))
    wrong = report(summary, memory, console)
    if arguments.json is not None:
        result = {
            "duration": arguments.duration,
            "rate": arguments.rate,
            "summary": msgspec.to_builtins(summary),
            "memory_bytes": memory,
            "problems": wrong,
        }
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    for each in wrong:
        console.print(f"[red]{each}[/]")
    if wrong:
        sys.exit(1)
    console.print("nothing was lost, nothing grew", style="green")


if __name__ == "__main__":
    with in_one_line():
        main()
