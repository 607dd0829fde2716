"""A run's progress on the console: tables on a terminal, else a line now and then.

`ProgressView` gathers a `RunState`; `status_tables` and `status_line` only format one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgewise.live.run.deployment import Deployment

LINE_PERIOD = 5.0
"""s between lines where there is no terminal: a log that can still be read."""
BAR = 10
"""Characters of a bar."""


class RunState(Struct, frozen=True, kw_only=True):
    """A run at one moment."""

    title: str
    elapsed: float
    """s since the client began."""
    duration: float
    """s over which it sends."""
    progress: dict[str, Any]
    """`edgewise.live.client.client.Client.progress`."""
    state: dict[str, Any] | None
    """`GET /v1/state` of the balancer; None: it is silent."""
    links: dict[str, dict[str, Any]]
    """`GET /links` of the relay; empty without the emulator."""
    note: str = ""
    """What happened last."""


def status_line(seen: RunState) -> str:
    """One line for a log."""
    progress = seen.progress
    return (
        f"{seen.title}  {min(seen.elapsed, seen.duration):.0f}/{seen.duration:.0f} s  "
        f"sent {progress.get('sent', 0)}  {_outcomes(progress)}  {_score(progress)}"
    )


def status_tables(seen: RunState) -> RenderableType:
    """Head line, servers, links."""
    progress = seen.progress
    done = min(1.0, seen.elapsed / seen.duration)
    head = Text.assemble(
        (seen.title, "bold"),
        f"  {min(seen.elapsed, seen.duration):.0f}/{seen.duration:.0f} s ",
        (_bar(done, 20), "cyan"),
        f"  sent {progress.get('sent', 0)}/{progress.get('total', 0)}",
    )
    score = Text.assemble(
        _outcomes(progress), "  ", (_score(progress), "bold green"), no_wrap=True, overflow="crop"
    )
    parts: list[RenderableType] = [head, score, _servers(seen)]
    if seen.links:
        parts.append(_links(seen.links))
    if seen.note:
        parts.append(Text(seen.note, style="dim"))
    return Group(*parts)


def _servers(seen: RunState) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("server", no_wrap=True)
    table.add_column("busy", no_wrap=True)
    table.add_column("queue", justify="right")
    table.add_column("work ms", justify="right")
    table.add_column("served", justify="right")
    table.add_column("heard", justify="right")
    served = seen.progress.get("per_server", {})
    servers = {} if seen.state is None else seen.state.get("servers", {})
    for name in dict.fromkeys([*servers, *served]):
        row = servers.get(name)
        count = str(served.get(name, 0))
        if row is None:
            table.add_row(escape(name), "[dim]the balancer is silent", "", "", count, "")
            continue
        if not row.get("connected", True):
            table.add_row(escape(name), "[red]not connected", "", "", count, "")
            continue
        busy = row["utilisation"]
        age = row["report_age"]
        table.add_row(
            escape(name),
            f"[{_colour(busy)}]{_bar(busy)}[/] {100 * busy:3.0f} %",
            f"{row['believed_queue']}",
            f"{1e3 * max(0.0, row['backlog']):.0f}",
            count,
            "never" if age is None else f"{1e3 * age:.0f} ms ago",
        )
    return table


def _links(links: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("link", no_wrap=True)
    table.add_column("in use", no_wrap=True)
    table.add_column("rate Mbit/s", justify="right")
    table.add_column("now", justify="right")
    table.add_column("waiting kB", justify="right")
    table.add_column("flows", justify="right")
    for name, link in links.items():
        rate = link["rate_bps"]
        if name.startswith("return:"):
            continue  # a delay, with nothing to see
        used = link["utilisation"]
        table.add_row(
            escape(name),
            f"[{_colour(used)}]{_bar(used)}[/] {100 * used:3.0f} %",
            "unlimited" if rate is None else f"{rate / 1e6:.1f}",
            f"{link['throughput_bps'] / 1e6:.1f}",
            f"{link['backlog_bytes'] / 1e3:.0f}",
            "-" if link["flows"] is None else f"{link['flows']}",
        )
    return table


def _bar(share: float, width: int = BAR) -> str:
    full = round(max(0.0, min(1.0, share)) * width)
    return "█" * full + "░" * (width - full)


def _colour(share: float) -> str:
    return "red" if share > 0.9 else "yellow" if share > 0.7 else "green"


def _outcomes(progress: dict[str, Any]) -> str:
    counts = progress.get("outcomes", {})
    shown = [f"{n} {name}" for name, n in counts.items() if n or name == "served"]
    return ", ".join(shown) or "nothing sent yet"


def _score(progress: dict[str, Any]) -> str:
    expected, effective = progress.get("expected"), progress.get("effective")
    if expected is None or effective is None:
        return "no score yet"
    return f"utility {expected:.3f}, effective {100 * effective:.0f} %"


class ProgressView:
    """Shows a deployment; its `look` is for `Deployment.run`, its `say` for what happens."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live: Live | None = None
        self._begun = time.monotonic()
        self._shown = 0.0
        self._note = ""

    def __enter__(self) -> ProgressView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, sentence: str) -> None:
        """Something happened."""
        self._note = sentence
        if self._live is None:
            self._console.print(f"[dim]{escape(self._title)}: {escape(sentence)}", highlight=False)

    def watch(self, deployment: Deployment) -> Callable[[], Any]:
        """Time begins now; returns what to call every half second."""
        self._begun = time.monotonic()
        self._note = ""
        if self._console.is_terminal:
            # No thread of its own: it redraws when there is something new.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

        async def look() -> None:
            seen = await self._glance(deployment)
            if self._live is not None:
                self._live.update(status_tables(seen), refresh=True)
            elif seen.elapsed - self._shown >= LINE_PERIOD:
                self._shown = seen.elapsed
                self._console.print(escape(status_line(seen)), highlight=False)

        return look

    async def _glance(self, deployment: Deployment) -> RunState:
        return RunState(
            title=self._title,
            elapsed=time.monotonic() - self._begun,
            duration=deployment.scenario.workload.duration,
            progress=deployment.progress,
            state=await deployment.state(),
            links=await deployment.links(),
            note=self._note,
        )
