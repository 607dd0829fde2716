"""A run's progress on the console: tables on a terminal, else a line now and then.

`ProgressView` gathers a `RunState`; `status_tables` and `status_line` only format one.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgewise.live.run.deployment import Deployment

LINE_PERIOD = 5.0
"""s between lines without a terminal, so that a log stays readable."""
BAR = 10
"""Characters of a bar."""


class RunState(Struct, frozen=True, kw_only=True):
    """A run at one moment."""

    title: str
    elapsed: float
    """s since the client began."""
    duration: float
    """s during which it sends."""
    progress: dict[str, Any]
    """`edgewise.live.client.client.Client.progress`."""
    state: dict[str, Any] | None
    """The balancer's ``GET /v1/state``; None: it does not answer."""
    links: dict[str, dict[str, Any]]
    """The relay's ``GET /links``; empty without the emulator."""
    note: str = ""
    """The latest event."""


def status_line(run: RunState) -> str:
    """One line, for a log."""
    progress = run.progress
    return (
        f"{run.title}  {min(run.elapsed, run.duration):.0f}/{run.duration:.0f} s  "
        f"sent {progress.get('sent', 0)}  {_outcomes(progress)}  {_score(progress)}"
    )


def status_tables(run: RunState) -> RenderableType:
    """Head line, table of servers, table of links."""
    progress = run.progress
    head = Text.assemble(
        (run.title, "bold"),
        f"  {min(run.elapsed, run.duration):.0f}/{run.duration:.0f} s ",
        (_bar(run.elapsed / run.duration, 20), "cyan"),
        f"  sent {progress.get('sent', 0)}/{progress.get('total', 0)}",
    )
    score = Text.assemble(
        _outcomes(progress), "  ", (_score(progress), "bold green"), no_wrap=True, overflow="crop"
    )
    parts: list[RenderableType] = [head, score, _servers(run)]
    if run.links:
        parts.append(_links(run.links))
    if run.note:
        parts.append(Text(run.note, style="dim"))
    return Group(*parts)


def _servers(run: RunState) -> Table:
    table = _table(("server", "busy"), ("queue", "work ms", "served", "reported"))
    served = run.progress.get("per_server", {})
    servers = {} if run.state is None else run.state.get("servers", {})
    for name in dict.fromkeys([*servers, *served]):
        row = servers.get(name)
        count = str(served.get(name, 0))
        if row is None:
            table.add_row(escape(name), "[dim]the balancer is silent", "", "", count, "")
            continue
        if not row.get("connected", True):
            table.add_row(escape(name), "[red]not connected", "", "", count, "")
            continue
        age = row["report_age"]
        table.add_row(
            escape(name),
            _busy(row["utilisation"]),
            f"{row['believed_queue']}",
            f"{1e3 * max(0.0, row['backlog']):.0f}",
            count,
            "never" if age is None else f"{1e3 * age:.0f} ms ago",
        )
    return table


def _links(links: dict[str, dict[str, Any]]) -> Table:
    table = _table(("link", "in use"), ("rate Mbit/s", "now", "waiting kB", "flows"))
    for name, link in links.items():
        if name.startswith("return:"):
            continue  # only a delay
        rate = link["rate_bps"]
        table.add_row(
            escape(name),
            _busy(link["utilisation"]),
            "unlimited" if rate is None else f"{rate / 1e6:.1f}",
            f"{link['throughput_bps'] / 1e6:.1f}",
            f"{link['backlog_bytes'] / 1e3:.0f}",
            "-" if link["flows"] is None else f"{link['flows']}",
        )
    return table


def _table(texts: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in texts:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _busy(share: float) -> str:
    """A bar and a percentage, coloured by how close to 1 it is."""
    colour = "red" if share > 0.9 else "yellow" if share > 0.7 else "green"
    return f"[{colour}]{_bar(share)}[/] {100 * share:3.0f} %"


def _bar(share: float, width: int = BAR) -> str:
    full = round(max(0.0, min(1.0, share)) * width)
    return "█" * full + "░" * (width - full)


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
    """Shows one deployment while it runs. Use it as a context manager.

    Pass `say` to `Deployment`, and the result of `watch` to `Deployment.run`.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._live: Live | None = None
        self._began = time.monotonic()
        self._shown = 0.0
        self._note = ""

    def __enter__(self) -> ProgressView:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, sentence: str) -> None:
        """Show an event."""
        self._note = sentence
        if self._live is None:
            self._console.print(f"[dim]{escape(self._title)}: {escape(sentence)}", highlight=False)

    def watch(self, deployment: Deployment) -> Callable[[], Awaitable[None]]:
        """Start counting time; returns a function that shows the state, to be called often."""
        self._began = time.monotonic()
        self._note = ""
        if self._console.is_terminal:
            # Redrawn when there is something new, without a thread of its own.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

        async def show() -> None:
            run = await self._run_state(deployment)
            if self._live is not None:
                self._live.update(status_tables(run), refresh=True)
            elif run.elapsed - self._shown >= LINE_PERIOD:
                self._shown = run.elapsed
                self._console.print(escape(status_line(run)), highlight=False)

        return show

    async def _run_state(self, deployment: Deployment) -> RunState:
        return RunState(
            title=self._title,
            elapsed=time.monotonic() - self._began,
            duration=deployment.scenario.workload.duration,
            progress=deployment.progress,
            state=await deployment.state(),
            links=await deployment.links(),
            note=self._note,
        )
