"""``edgewise explain``: why a request of a run was decided as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgewise.errors import BadInput

if TYPE_CHECKING:
    from edgewise.fleet.table import Table as Candidates
    from edgewise.live.experience import Experience
    from edgewise.policy.explain import Explained


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run of `edgewise up`.")],
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="Its id.")],
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

    From the balancer's experience (experience.parquet in RUN). Works for the
    policies with prices: edgewise, files of its weights, and priced_greedy.

    [bold]Example:[/bold]

      edgewise explain runs/three-sites/edgewise r0000042
    """
    import msgspec

    from edgewise.live.experience import load_experience
    from edgewise.policy import find
    from edgewise.policy.explain import explain as why
    from edgewise.policy.explain import params_of

    experience = load_experience(run)
    ids = experience.table["request"].to_pylist()
    if request not in ids:
        raise BadInput(
            f"{run}: no decision on {request!r}; its first is {ids[0] if ids else '-'!r}"
        )
    at = ids.index(request)
    decided = experience.table["policy"][at].as_py()
    params = params_of(find(policy or decided))
    if params is None:
        raise BadInput(f"{policy or decided} has no prices to explain; try --policy priced_greedy")
    found = why(_before(experience, at), params)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        return
    console = Console()
    console.print(_table(experience, at, found, policy or decided))
    if found.guard:
        console.print(f"the guard left it to the heuristic: {found.guard}", highlight=False)
    if policy and policy != decided:
        console.print(f"{decided} decided; this is what {policy} makes of it", highlight=False)


def _before(experience: Experience, at: int) -> list[Candidates]:
    """The tables of all decisions up to this one, in order of time."""
    import numpy as np

    from edgewise.fleet.table import Table as Candidates

    times = experience.table["at"].to_numpy()
    order = [i for i in np.argsort(times, kind="stable").tolist() if times[i] < times[at]]
    return [
        Candidates(
            np.ascontiguousarray(experience.rows[i]),
            np.ascontiguousarray(experience.mask[i]),
            np.ascontiguousarray(experience.servers[i]),
            np.ascontiguousarray(experience.context[i]),
            np.zeros(experience.mask.shape[1]),
            np.ones(1, np.uint8),
        )
        for i in [*order, at]
    ]


def _table(experience: Experience, at: int, found: Explained, policy: str) -> Table:
    chosen = int(experience.action[at])
    context = dict(zip(experience.columns.context, experience.context[at].tolist(), strict=True))
    ingress = experience.columns.servers[int(context["ingress"])]
    table = Table(
        title=f"{experience.table['request'][at].as_py()} at {ingress}, deadline "
        f"{1e3 * context['deadline']:.0f} ms, accuracy >= {context['accuracy']:g}: {policy}",
        caption="ms from sent_at; the rest in units of utility; correction = score less the "
        "calibrated heuristic's; > was chosen",
    )
    table.add_column("")
    table.add_column("candidate", no_wrap=True)
    for heading in (
        "latency", "margined", "utility", "server", "link", "prepare", "score", "correction",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    lines = [
        (
            why.score,
            (
                ">" if why.row == chosen else "",
                _name(experience, why.row),
                f"{1e3 * why.latency:.0f}",
                f"{1e3 * why.margined:.0f}",
                *(
                    f"{value:.3f}"
                    for value in (why.utility, why.server_price, why.link_price, why.prepare_price)
                ),
                f"{why.score:+.3f}",
                f"{why.correction:+.3f}",
            ),
        )
        for why in found.rows
    ]
    shed = experience.mask.shape[1] - 1
    moved = found.shed - found.shed_heuristic
    row = (">" if chosen == shed else "", "shed", *[""] * 6, f"{found.shed:+.3f}", f"{moved:+.3f}")
    lines.append((found.shed, row))
    for _, cells in sorted(lines, key=lambda line: -line[0]):
        table.add_row(*cells)
    return table


def _name(experience: Experience, row: int) -> str:
    candidate = experience.columns.candidates[row]
    assert candidate is not None
    form = "" if candidate.form == 0 else ", model-ready"
    return f"{candidate.server}/{candidate.model}{form}"
