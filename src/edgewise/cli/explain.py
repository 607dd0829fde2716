"""``edgewise explain``: why a request of a run was decided as it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from edgewise.cli import output

WIDE = 110
"""Terminal columns that all figures in one table need."""

if TYPE_CHECKING:
    from edgewise.domain import Candidate
    from edgewise.policies.explain import Explained, Why
    from edgewise.recorded_decision import RecordedDecision


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a policy's run.")],
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="Id of a request.")],
    policy: Annotated[
        str,
        typer.Option(
            metavar="P",
            help="Explain what this policy would have done; by default the one that decided.",
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show each candidate's predicted latency, utility, price and learned correction.

    A run of `edgewise up` is read from what its balancer recorded
    (experience.parquet in RUN); one of `edgewise simulate --out` is simulated
    again. Works for policies with prices: edgewise, files of its weights, and
    priced_greedy.

    [bold]Examples:[/bold]

      edgewise simulate three-sites --policy edgewise --out sim

      edgewise explain sim s1-r0000042
    """
    from edgewise.recorded_decision import read_decision

    decision = read_decision(run, request)
    explained = decision.explain(policy)
    if as_json:
        output.say_line(explained)
        return
    console = output.console()
    for table in _tables(decision, explained, policy or decision.policy, console.width):
        console.print(table)
    if explained.guard:
        console.print(f"the guard left it to the heuristic: {explained.guard}", highlight=False)
    if decision.was_overruled(explained) and policy in ("", decision.policy):
        console.print("it would have been shed, but the fleet was idle: it was let in")
    if policy and policy != decision.policy:
        by = f"{decision.policy} decided; these are the scores of {policy}"
        console.print(by, highlight=False)


def _tables(
    decision: RecordedDecision, explained: Explained, policy: str, width: int
) -> list[Table]:
    """One table of all figures, or two for a terminal of fewer than `WIDE` columns."""
    shed = ("shed", len(decision.candidates) - 1, explained.shed, _figures_of_shed(explained))
    lines = [shed]
    for why in explained.rows:
        name = _name(decision.candidates[why.row])
        lines.append((name, why.row, why.score, _figures(why)))
    lines.sort(key=lambda line: -line[2])
    first = ["latency", "with margin", "utility"]
    prices = ["server price", "link price", "prepare price"]
    last = ["score", "correction"]
    parts = [first + prices + last] if width >= WIDE else [[*first, "all prices", *last], prices]
    tables = []
    for headings in parts:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("")
        table.add_column("candidate", overflow="fold")
        for heading in headings:
            longest = max(len(word) for word in heading.split())
            table.add_column(heading, justify="right", min_width=longest)
        for name, row, _, figures in lines:
            chosen = ">" if row == decision.row else ""
            table.add_row(chosen, name, *(figures.get(heading, "") for heading in headings))
        tables.append(table)
    tables[0].title_justify = tables[-1].caption_justify = "left"
    tables[0].title = (
        f"{decision.request} at {decision.ingress}, deadline {1e3 * decision.deadline:.0f} ms, "
        f"accuracy >= {decision.accuracy:g}: {policy}"
    )
    tables[-1].caption = (
        "latencies in ms from sent_at, the rest in units of utility; correction: the score less "
        "the calibrated heuristic's; > was chosen"
    )
    return tables


def _figures(why: Why) -> dict[str, str]:
    return {
        "latency": f"{1e3 * why.latency:.0f}",
        "with margin": f"{1e3 * why.margined:.0f}",
        "utility": f"{why.utility:.3f}",
        "server price": f"{why.server_price:.3f}",
        "link price": f"{why.link_price:.3f}",
        "prepare price": f"{why.prepare_price:.3f}",
        "all prices": f"{why.price:.3f}",
        "score": f"{why.score:+.3f}",
        "correction": f"{why.correction:+.3f}",
    }


def _figures_of_shed(explained: Explained) -> dict[str, str]:
    correction = explained.shed - explained.shed_heuristic
    return {"score": f"{explained.shed:+.3f}", "correction": f"{correction:+.3f}"}


def _name(candidate: Candidate | None) -> str:
    assert candidate is not None
    form = "" if candidate.form == 0 else ", model-ready"
    return f"{candidate.server}/{candidate.model}{form}"
