"""Output that commands share: consoles, files, JSON and progress bars."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from edgewise.errors import BadInput

PIPED = 120
"""Columns of output that no terminal shows: rich's 80 would cut figures of wide tables."""
NARROWEST = 80
"""Columns that all tables need. A narrower terminal breaks their lines, for rich would cut the
figures."""
BAR_AFTER = 2.0
"""s. Shorter jobs show no progress bar."""


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr, wide enough for every table (`NARROWEST`)."""
    found = Console(stderr=stderr)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found.width = PIPED
    found.width = max(found.width, NARROWEST)
    return found


def console_beside(json: str | None) -> Console:
    """A console on stdout, or on stderr if ``--json -`` takes stdout."""
    return console(stderr=json == "-")


def note(console: Console, text: str) -> None:
    """Print a dim line as it stands: no markup, no highlighting, no wrapping."""
    console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def warn(console: Console, text: str) -> None:
    """Print a warning as it stands, without markup or highlighting."""
    console.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)


def pretty_json(value: Any) -> bytes:
    """`value` as indented JSON with a newline at the end."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def say_line(value: Any) -> None:
    """Print a line of JSON on stdout at once; processes announce themselves so."""
    typer.echo(msgspec.json.encode(value).decode())


def check_writable(*paths: Path | str | None) -> None:
    """Check that results can be written there, before the work that makes them.

    None and "-" (standard output) are passed over. Raises BadInput naming the path.
    """
    for path in paths:
        if path is None or path == "-":
            continue
        wanted = Path(path).absolute()
        there = next(each for each in (wanted, *wanted.parents) if each.exists())
        usable = there.is_file() if there == wanted else there.is_dir()
        if not usable or not os.access(there, os.W_OK):
            raise BadInput(f"{path}: cannot be written")


def write_file(path: Path, data: bytes) -> None:
    """Write `path`, making its folder if need be. Raises BadInput if that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None


def write_json(data: bytes, json: str | None) -> None:
    """Write `data` where ``--json`` says: nowhere (None), stdout ("-") or a file."""
    if json == "-":
        typer.echo(data.decode(), nl=False)
    elif json is not None:
        write_file(Path(json), data)


class Bar:
    """A progress bar at work (`progress_bar`)."""

    def __init__(self, progress: Progress, description: str, total: float | None) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, visible=False)
        self._began = time.monotonic()

    def advance(self, description: str | None = None) -> None:
        """One step is done."""
        self._progress.update(
            self._task, advance=1, description=description, visible=self._is_visible()
        )

    def show(self, done: float, total: float, description: str) -> None:
        """`done` of `total` steps are done."""
        self._progress.update(
            self._task,
            completed=done,
            total=total,
            description=description[:40],
            visible=self._is_visible(),
        )

    def _is_visible(self) -> bool:
        return time.monotonic() - self._began > BAR_AFTER


@contextmanager
def progress_bar(console: Console, description: str, total: float | None = None) -> Iterator[Bar]:
    """A bar with the time left, which appears after `BAR_AFTER` and vanishes at the end."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        yield Bar(progress, description, total)


@contextmanager
def stoppable(console: Console) -> Iterator[None]:
    """Around a search: after Ctrl-C, say what is kept, and leave with exit code 130."""
    from edgewise.learn.search import SearchStopped

    try:
        yield
    except SearchStopped as stopped:
        console.print(str(stopped), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
