"""``edgewise explain``: why a request of a run was decided as it was."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from edgewise.errors import BadInput

if TYPE_CHECKING:
    from edgewise.domain import Candidate
    from edgewise.fleet.table import CandidateTable as Candidates
    from edgewise.live.balancer.experience import Experience
    from edgewise.policy.explain import Explained, Floats


def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a policy's run.")],
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

    Of a run of `edgewise up` from what its balancer recorded
    (experience.parquet in RUN), of one of `edgewise simulate --out` by playing
    it again. Works for the policies with prices: edgewise, files of its
    weights, and priced_greedy.

    [bold]Examples:[/bold]

      edgewise explain runs/three-sites s1-r0000042

      edgewise simulate three-sites --out sim

      edgewise explain sim s1-r0000042
    """
    import msgspec

    from edgewise.policy import find
    from edgewise.policy.explain import explain as why
    from edgewise.policy.explain import params_of

    seen = _live(run, request) if _is_live(run) else _simulated(run, request)
    params = params_of(find(policy or seen.policy))
    if params is None:
        raise BadInput(
            f"{policy or seen.policy} has no prices to explain; try --policy priced_greedy"
        )
    found = why(seen.tables, params, seen.memory)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        return
    console = Console()
    console.print(_table(seen, found, policy or seen.policy))
    if found.guard:
        console.print(f"the guard left it to the heuristic: {found.guard}", highlight=False)
    if policy and policy != seen.policy:
        console.print(f"{seen.policy} decided; this is what {policy} makes of it", highlight=False)


class _Seen(Struct, frozen=True, kw_only=True):
    """A decision of a run."""

    request: str
    policy: str
    tables: list[Candidates]
    """Of the decisions that the policy remembers and, at the end, of this one."""
    memory: Floats | None
    """What it remembers of those that are not in `tables`."""
    chosen: int
    ingress: str
    deadline: float
    accuracy: float
    candidates: tuple[Candidate | None, ...]
    """By row."""


def _is_live(run: Path) -> bool:
    from edgewise.live.balancer.experience import NAME

    return (run / f"{NAME}.parquet").exists() or (run / f"{NAME}.parts").exists()


def _live(run: Path, request: str) -> _Seen:
    """From what the balancer recorded."""
    from edgewise.live.balancer.experience import load_experience

    experience = load_experience(run)
    at = _place(run, experience.table["request"].to_pylist(), request)
    context = dict(zip(experience.columns.context, experience.context[at].tolist(), strict=True))
    return _Seen(
        request=request,
        policy=experience.table["policy"][at].as_py(),
        tables=_before(experience, at),
        memory=None,
        chosen=int(experience.action[at]),
        ingress=experience.columns.servers[int(context["ingress"])],
        deadline=context["deadline"],
        accuracy=context["accuracy"],
        candidates=experience.columns.candidates,
    )


def _simulated(run: Path, request: str) -> _Seen:
    """By playing the episode again up to there."""
    import re

    from edgewise.live.recorder import read
    from edgewise.policy import learned
    from edgewise.scenario import load
    from edgewise.sim.results import candidates
    from edgewise.sim.simulate import seen as played_until

    if not (run / "decisions.parquet").exists():
        raise BadInput(
            f"{run}: expected the folder of a policy's run, with experience.parquet (edgewise up) "
            "or decisions.parquet (edgewise simulate --out)"
        )
    decisions = read(run, "decisions")
    at = _place(run, decisions["request"].to_pylist(), request)
    policy = decisions["policy"][at].as_py()
    named = re.fullmatch(r"s(\d+)-r(\d+)", request)
    file = next(
        (f for f in (folder / "scenario.yaml" for folder in (run, *run.absolute().parents[:2]))
         if f.exists()),
        None,
    )  # fmt: skip
    if named is None or file is None:
        raise BadInput(f"{run}: no experience.parquet, and not a run of edgewise simulate --out")
    world = load(str(file)).with_overrides(seed=int(named[1]))
    found = played_until(world, policy, int(named[2]))
    if found is None:
        raise BadInput(f"{run}: no balancer decided about {request!r}: its node did, by itself")
    if [found.row] != decisions["rows"][at].as_py()[:1]:
        raise BadInput(
            f"{run}: playing it again decides {request!r} otherwise; another version of edgewise "
            "or of the weights made it"
        )
    return _Seen(
        request=request,
        policy=policy,
        tables=[found.table],
        # Only the learned policy's state is one that explanations know.
        memory=found.state[learned.MEMORY :] if len(found.state) > learned.MEMORY else None,
        chosen=found.row,
        ingress=world.server_names[int(found.table.context.ingress)],
        deadline=float(found.table.context.deadline),
        accuracy=float(found.table.context.accuracy),
        candidates=tuple(candidates(found.services)),
    )


def _place(run: Path, ids: list[str], request: str) -> int:
    if request not in ids:
        raise BadInput(
            f"{run}: no decision on {request!r}; its first is {ids[0] if ids else '-'!r}"
        )
    return ids.index(request)


def _before(experience: Experience, at: int) -> list[Candidates]:
    """The tables of all decisions up to this one, in order of time."""
    import numpy as np

    from edgewise.fleet.table import table_of

    times = experience.table["at"].to_numpy()
    order = [i for i in np.argsort(times, kind="stable").tolist() if times[i] < times[at]]
    return [
        table_of(
            experience.rows[i], experience.mask[i], experience.servers[i], experience.context[i]
        )
        for i in [*order, at]
    ]


def _table(seen: _Seen, found: Explained, policy: str) -> Table:
    table = Table(
        title=f"{seen.request} at {seen.ingress}, deadline "
        f"{1e3 * seen.deadline:.0f} ms, accuracy >= {seen.accuracy:g}: {policy}",
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
                ">" if why.row == seen.chosen else "",
                _name(seen.candidates[why.row]),
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
    shed = len(seen.candidates) - 1
    moved = found.shed - found.shed_heuristic
    row = (
        ">" if seen.chosen == shed else "",
        "shed",
        *[""] * 6,
        f"{found.shed:+.3f}",
        f"{moved:+.3f}",
    )
    lines.append((found.shed, row))
    for _, cells in sorted(lines, key=lambda line: -line[0]):
        table.add_row(*cells)
    return table


def _name(candidate: Candidate | None) -> str:
    assert candidate is not None
    form = "" if candidate.form == 0 else ", model-ready"
    return f"{candidate.server}/{candidate.model}{form}"
