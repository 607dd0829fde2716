"""Arguments and options that several commands share: one name, one meaning, one help text each.

A command writes ``duration: options.Duration = None``. Its own docstring says what the default is
where that is not obvious.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.errors import BadInput
from edgewise.policy_names import absolute

if TYPE_CHECKING:
    from edgewise.learn.search import Budget as SearchBudget

ScenarioName = Annotated[
    str, typer.Argument(help="A preset (`edgewise scenarios` lists them) or a scenario file.")
]
ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="Configuration of this process, a YAML file.")
]

Policies = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="P[,P...]",
        help="Policies to run, separated by commas. Default: the scenario's.",
    ),
]

AllPolicies = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="P[,P...]", help="Policies, separated by commas. Default: all."
    ),
]

AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code", help="Run a policy that is Python code though only a file names it."
    ),
]

# -- what happens in a run -----------------------------------------------------------------------

Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of everything random. Default: the scenario's."),
]
Seeds = Annotated[
    int,
    typer.Option(min=1, max=100_000, help="How many runs of each policy, on consecutive seeds."),
]
Duration = Annotated[
    float | None,
    typer.Option(metavar="S", help="Seconds during which requests are sent."),
]
Rate = Annotated[float | None, typer.Option(metavar="R", help="Mean requests per second.")]
Images = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Labelled photos: a folder, a label file, or 'builtin'."),
]
Emulate = Annotated[
    bool | None,
    typer.Option(
        "--emulate/--no-emulate",
        help="Whether relays emulate the scenario's network. Default: as the scenario says.",
        show_default=False,
    ),
]

# -- how much work, and on how many cores --------------------------------------------------------

Threads = Annotated[
    int,
    typer.Option(
        metavar="N", min=0, help="Simulations at a time; no result depends on it. 0: all cores."
    ),
]
Budget = Annotated[
    str, typer.Option(metavar="TIME", help="How long to search: 90s, 30m, 2h, 0.5h.")
]
Generations = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=0,
        help="How long to search, in generations: unlike a budget, this gives the same result on "
        "every machine.",
    ),
]

# -- where results go ----------------------------------------------------------------------------

Json = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Also write the result as JSON; - for standard output."),
]


def split(names: str | None) -> list[str]:
    """The names in a comma-separated option; none if it was not given."""
    return [name for each in (names or "").split(",") if (name := each.strip())]


def policies(names: str | None) -> list[str]:
    """The policies in a comma-separated option, their paths made absolute from here.

    Raises BadInput if one stands twice.
    """
    found = [absolute(name, Path.cwd()) for name in split(names)]
    if len(set(found)) != len(found):
        raise BadInput(f"--policy: a policy stands twice in {names}")
    return found


def search_budget(budget: str, generations: int | None, default: str) -> SearchBudget | None:
    """The budget that ``--budget`` or ``--generations`` gives; None for no generations.

    Raises BadInput if both are given, or for a budget that is no time above 0.
    """
    from edgewise.learn.search import Budget as SearchBudget
    from edgewise.learn.search import seconds

    if budget and generations is not None:
        raise BadInput("give --budget or --generations, not both")
    if generations == 0:
        return None
    if generations is not None:
        return SearchBudget(steps=generations)
    return SearchBudget(seconds=seconds(budget or default))
