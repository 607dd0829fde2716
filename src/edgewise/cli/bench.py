"""``edgewise bench``: compare policies in worlds held out from tuning and training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.table import Table

from edgewise.cli import options, output
from edgewise.errors import BadInput

if TYPE_CHECKING:
    from edgewise.benchmark.compare import SuiteComparison
    from edgewise.benchmark.suite import Result

WIDE = 110
"""Terminal columns that the full tables need."""
SEEDS = 30
"""Differences between good policies then have intervals of about ± 0.5 % of the utility."""


def bench(
    suite: Annotated[
        str, typer.Option(help="Families of worlds: standard, quick, or the name of one family.")
    ] = "standard",
    policy: options.AllPolicies = None,
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="Held-out worlds of each family.")
    ] = SEEDS,
    threads: options.Threads = 0,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="P", help="Compare with this policy instead of each family's best heuristic."
        ),
    ] = None,
    json: options.Json = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write bench.md, bench.html and bench.json.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with plots.")
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Rewrite the results in this Markdown file."),
    ] = None,
    read: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Show the JSON of an earlier run instead of running."
        ),
    ] = None,
) -> None:
    """Compare policies in worlds on which nothing was tuned or trained.

    Simulates every policy in the same worlds. Prints expected utility with 95 %
    confidence intervals over seeds, and paired differences to the best heuristic
    of each family.
    [bold]Examples:[/bold]

      edgewise bench --suite quick --seeds 8

      edgewise bench --policy sed,prequal,priced_greedy --html bench.html
    """
    from edgewise.benchmark import compare, document, page, report
    from edgewise.benchmark import suite as suites

    console = output.console_beside(json)
    output.check_writable(json, html, docs, *([out / "bench.md"] if out else []))
    if out is not None or html is not None:
        page.require_plotly()
    if read is not None:
        result = suites.Result.from_json(_bytes(read))
    else:
        result = _run(suite, policy, seeds, threads)
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


def _run(suite: str, policy: str | None, seeds: int, threads: int) -> Result:
    """Simulate the suite; the command that does so again stands in the result."""
    from edgewise import api

    with output.progress_bar(output.console(stderr=True), "starting") as bar:
        result = api.play_suite(
            options.policies(policy) or None, suite, seeds, threads=threads, progress=bar.show
        )
    command = f"edgewise bench --suite {suite} --seeds {seeds}"
    command += f" --policy {policy}" if policy else ""
    return msgspec.structs.replace(result, command=command)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None


def _overall(comparison: SuiteComparison, width: int) -> Table:
    from edgewise.benchmark.report import percent_of

    result = comparison.result
    rounds = f"{len(result.families)} families × {len(result.seeds)} held-out seeds"
    table = Table(
        title=f"{result.suite}: {rounds}",
        caption="utility: mean of accuracy × timeliness over all requests; ± 95 % over seeds. "
        "vs best: paired, against the best heuristic of each family. missed: not answered in time.",
    )
    table.add_column("policy", no_wrap=True)
    headings = ["utility", "vs best", "effective", "missed", "shed", "p95 ms", "p99 ms"]
    # A narrow terminal shows the main columns; the files have all.
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
