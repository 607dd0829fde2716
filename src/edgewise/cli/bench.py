"""``edgewise bench``: policies held against each other on held-out worlds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from edgewise.cli import options, output
from edgewise.errors import BadInput

if TYPE_CHECKING:  # what compiles is imported when the command runs, not for its help
    from edgewise.bench.compare import SuiteComparison
    from edgewise.policy import PolicySpec

WIDE = 110
"""Columns of a terminal that the full tables fit into."""
SEEDS = 30
"""Enough for intervals of about ± 0.5 % of the utility on differences between good policies."""


def bench(
    suite: Annotated[
        str, typer.Option(help="Families of worlds: standard, quick, or one family's name.")
    ] = "standard",
    policy: options.AllPolicies = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", help="Held-out worlds of each family.")
    ] = SEEDS,
    threads: options.Threads = 0,
    reference: Annotated[
        str | None,
        typer.Option(metavar="P", help="Compare with this policy, not each family's best."),
    ] = None,
    json: options.Json = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write bench.md, bench.html and bench.json.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one page with plots.")
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rewrite the section of this Markdown file in place."),
    ] = None,
    read: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Show an earlier run's JSON; runs nothing."),
    ] = None,
) -> None:
    """Compare policies on worlds that nothing was tuned or trained on.

    Plays every policy in the same simulated worlds, and prints expected utility
    with 95 % confidence intervals over seeds, and paired differences to the best
    heuristic of each family.

    [bold]Examples:[/bold]

      edgewise bench --suite quick --seeds 8

      edgewise bench --policy sed,prequal,priced_greedy --html bench.html
    """
    from edgewise.bench import compare, document, page, report
    from edgewise.bench import suite as suites
    from edgewise.cores import usable_cores
    from edgewise.worlds import families

    console = output.console_beside(json)
    if read is not None:
        result = suites.Result.from_json(_bytes(read))
    else:
        names = suites.SUITES.get(suite) or ((suite,) if suite in families.FAMILIES else ())
        if not names:
            known = ", ".join([*suites.SUITES, *families.FAMILIES])
            raise BadInput(f"unknown suite {suite!r}; known: {known}")
        with _Bar() as bar:
            result = suites.run(
                names,
                chosen(policy),
                families.evaluation_seeds(seeds),
                suite=suite,
                threads=threads or usable_cores(),
                progress=bar.show,
            )
        command = f"edgewise bench --suite {suite} --seeds {seeds}"
        command += f" --policy {policy}" if policy else ""
        result = msgspec.structs.replace(result, command=command)
    compared = compare.compare(result, reference)
    text = report.markdown(compared)
    output.write_json(result.to_json(), json)
    if out is not None:
        output.write_file(out / "bench.json", result.to_json())
        output.write_file(out / "bench.md", text.encode())
        output.write_file(out / "bench.html", page.page(compared).encode())
    if html is not None:
        output.write_file(html, page.page(compared).encode())
    if docs is not None:
        document.rewrite(docs, "edgewise bench", text)
    console.print(_overall(compared, console.width))
    console.print(_by_family(compared, console.width))
    output.note(console, f"{result.seconds:.0f} s")


def chosen(names: str | None) -> dict[str, PolicySpec]:
    """The rules named, comma-separated; all if None. Raises BadInput for an unknown one."""
    from edgewise.policy import POLICIES, find
    from edgewise.policy_names import labels

    if names is None:
        return dict(POLICIES)
    wanted = options.policies(names)
    label = labels(wanted)
    return {label[name]: find(name) for name in wanted}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


def _overall(comparison: SuiteComparison, width: int) -> Table:
    from edgewise.bench.report import percent_of

    result = comparison.result
    rounds = f"{len(result.families)} families × {len(result.seeds)} held-out seeds"
    table = Table(
        title=f"{result.suite}: {rounds}",
        caption="utility: mean of accuracy × timeliness over all requests; ± 95 % over seeds. "
        "vs best: paired, against the best heuristic of each family. missed: not answered in time.",
    )
    table.add_column("policy", no_wrap=True)
    headings = ["utility", "vs best", "effective", "missed", "shed", "p95 ms", "p99 ms"]
    # What a narrow terminal has no room for stands in the files.
    shown = range(len(headings)) if width >= WIDE else (0, 1, 3)
    for column in shown:
        table.add_column(headings[column], justify="right", no_wrap=True)
    base = comparison.mean_reference
    for line in comparison.overall:
        cells = [
            f"{line.utility:.3f}",
            percent_of(line.difference, base),
            f"{line.effective.mean:.3f}",
            f"{100 * line.missed.mean:.1f} %",
            f"{100 * line.shed.mean:.1f} %",
            f"{1e3 * line.p95.mean:.0f}",
            f"{1e3 * line.p99.mean:.0f}",
        ]
        table.add_row(line.policy, *(cells[column] for column in shown))
    return table


def _by_family(comparison: SuiteComparison, width: int) -> Table:
    shown = [line.policy for line in comparison.overall[: 6 if width >= WIDE else 3]]
    table = Table(caption="expected utility by family, the best policies")
    table.add_column("family", no_wrap=True)
    for name in shown:
        table.add_column(name, justify="right", overflow="fold")
    for family, lines in zip(comparison.result.families, comparison.families, strict=True):
        found = {line.policy: line.utility.mean for line in lines}
        best = max(found[name] for name in shown)
        cells = [
            f"[bold]{found[name]:.3f}[/]" if found[name] == best else f"{found[name]:.3f}"
            for name in shown
        ]
        table.add_row(family, *cells)
    return table


class _Bar:
    """A progress bar with the time left, on stderr; nothing where that is no terminal."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("episodes"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: int, total: int, what: str) -> None:
        self._progress.update(self._task, completed=done, total=total, description=what)
