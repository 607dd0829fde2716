"""``edgewise explain``: why a request of a run was decided as it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgewise.cli import output

if TYPE_CHECKING:
    from edgewise.domain import Candidate
    from edgewise.policies.explain import Explained
    from edgewise.recorded_decision import RecordedDecision


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a policy's run.")],
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="Id of a request.")],
    policy: Annotated[
        str,
        typer.Option(
            metavar="P",
            help="Explain what this policy would have done; needed if a file of weights decided.",
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
    console = Console()
    console.print(_table(decision, explained, policy or decision.policy))
    if explained.guard:
        console.print(f"the guard left it to the heuristic: {explained.guard}", highlight=False)
    if policy and policy != decision.policy:
        by = f"{decision.policy} decided; these are the scores of {policy}"
        console.print(by, highlight=False)


def _table(decision: RecordedDecision, explained: Explained, policy: str) -> Table:
    table = Table(
        title=f"{decision.request} at {decision.ingress}, deadline "
        f"{1e3 * decision.deadline:.0f} ms, accuracy >= {decision.accuracy:g}: {policy}",
        caption="ms from sent_at; the rest in units of utility; correction = score less the "
        "calibrated heuristic's; > was chosen",
    )
    table.add_column("")
    table.add_column("candidate", no_wrap=True)
    for heading in (
        "latency", "margined", "utility", "server", "link", "prepare", "score", "correction",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    shed = len(decision.candidates) - 1
    correction = f"{explained.shed - explained.shed_heuristic:+.3f}"
    lines = [(explained.shed, shed, ("shed", *[""] * 6, f"{explained.shed:+.3f}", correction))]
    for why in explained.rows:
        parts = (why.utility, why.server_price, why.link_price, why.prepare_price)
        cells = (
            _name(decision.candidates[why.row]),
            f"{1e3 * why.latency:.0f}",
            f"{1e3 * why.margined:.0f}",
            *(f"{value:.3f}" for value in parts),
            f"{why.score:+.3f}",
            f"{why.correction:+.3f}",
        )
        lines.append((why.score, why.row, cells))
    for _, row, cells in sorted(lines, key=lambda line: -line[0]):
        table.add_row(">" if row == decision.row else "", *cells)
    return table


def _name(candidate: Candidate | None) -> str:
    assert candidate is not None
    form = "" if candidate.form == 0 else ", model-ready"
    return f"{candidate.server}/{candidate.model}{form}"
