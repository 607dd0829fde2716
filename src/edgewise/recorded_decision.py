"""A decision of a run, read back from its files or reached again by simulating, and explained.

A run of ``edgewise up`` has the candidate table of every decision in ``experience.parquet``. A run
of ``edgewise simulate --out`` has only the decisions, so its episode is simulated again up to the
one in question, which gives the same table.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from msgspec import Struct

from edgewise.domain import Candidate
from edgewise.errors import BadInput
from edgewise.fleet.table import CandidateTable, table_of
from edgewise.live.balancer.experience import NAME, Experience, load_experience
from edgewise.live.recorder import read
from edgewise.live.records import RUN_SCENARIO
from edgewise.policies import find, label_of
from edgewise.policies.explain import Explained, Floats, params_of
from edgewise.policies.explain import explain as explain_tables
from edgewise.policy_names import is_code
from edgewise.scenario import Scenario, load
from edgewise.sim import simulate
from edgewise.sim.results import candidates


class RecordedDecision(Struct, frozen=True, kw_only=True):
    """A decision of a run, with what it rested on."""

    request: str
    policy: str
    """Its name as on a command line: a file's with its path."""
    tables: list[CandidateTable]
    """Those of the earlier decisions that the policy remembers, and last the decision's own."""
    memory: Floats | None
    """What the policy remembers of decisions that are not in `tables`."""
    row: int
    """The row chosen; the last one sheds."""
    ingress: str
    deadline: float
    """s"""
    accuracy: float
    """Demanded."""
    candidates: tuple[Candidate | None, ...]
    """By row; None sheds."""

    def was_overruled(self, explained: Explained) -> bool:
        """Whether the scores would have shed the request, and it was let in (`fleet.admission`)."""
        shed = len(self.candidates) - 1
        return self.row != shed and all(explained.shed > why.score for why in explained.rows)

    def explain(self, policy: str = "") -> Explained:
        """Each candidate's score, part by part, by the policy that decided or by `policy`.

        Raises BadInput for an unknown policy, and for one without prices.
        """
        policy = policy or self.policy
        params = None if policy == self.policy and is_code(policy) else params_of(find(policy))
        if params is None:
            raise BadInput(
                f"{policy}: only edgewise, its weights files and priced_greedy can be explained; "
                "try --policy priced_greedy"
            )
        decider = None if is_code(self.policy) else params_of(find(self.policy))
        return explain_tables(self.tables, params, None if decider is None else self.memory)


def read_decision(run: Path, request: str) -> RecordedDecision:
    """The decision on a request, from the folder of a policy's run.

    Raises BadInput if the folder is no such run or has no decision on the request.
    """
    if (run / f"{NAME}.parquet").exists() or (run / f"{NAME}.parts").exists():
        return _from_experience(run, request)
    if not (run / "decisions.parquet").exists():
        raise BadInput(
            f"{run}: expected the folder of a policy's run, with {NAME}.parquet (edgewise up) or "
            "decisions.parquet (edgewise simulate --out)"
        )
    return _by_simulating(run, request)


def _from_experience(run: Path, request: str) -> RecordedDecision:
    experience = load_experience(run)
    at = _position(run, experience.table["request"].to_pylist(), request)
    columns = experience.columns
    context = dict(zip(columns.context, experience.context[at].tolist(), strict=True))
    return RecordedDecision(
        request=request,
        policy=_policy_of(run, experience.table["policy"][at].as_py()),
        tables=_tables_until(experience, at),
        memory=None,
        row=int(experience.action[at]),
        ingress=columns.servers[int(context["ingress"])],
        deadline=context["deadline"],
        accuracy=context["accuracy"],
        candidates=columns.candidates,
    )


def _by_simulating(run: Path, request: str) -> RecordedDecision:
    decisions = read(run, "decisions")
    at = _position(run, decisions["request"].to_pylist(), request)
    label = decisions["policy"][at].as_py()
    policy = _policy_of(run, label)
    world, number = _world_of(run, request)
    decided = simulate.decision_on(world, policy, number, label)
    if decided is None:
        raise BadInput(f"{run}: no balancer decided about {request!r}: its node did, by itself")
    if [decided.row] != decisions["rows"][at].as_py()[:1]:
        raise BadInput(
            f"{run}: simulated again, {request!r} is decided otherwise; another version of "
            "edgewise or of the weights made this run"
        )
    table, state = decided.table, decided.memory
    return RecordedDecision(
        request=request,
        policy=policy,
        tables=[table],
        memory=state,
        row=decided.row,
        ingress=world.server_names[int(table.context.ingress)],
        deadline=float(table.context.deadline),
        accuracy=float(table.context.accuracy),
        candidates=tuple(candidates(decided.services)),
    )


def _world_of(run: Path, request: str) -> tuple[Scenario, int]:
    """The scenario with the seed that a simulated request's id names, and the request's number."""
    seed_and_number = re.fullmatch(r"s(\d+)-r(\d+)", request)
    if seed_and_number is None:
        raise BadInput(f"{run}: no {NAME}.parquet, and not a run of edgewise simulate --out")
    seed, number = map(int, seed_and_number.groups())
    return load(run / RUN_SCENARIO, allow_code=True).with_overrides(seed=seed), number


def _policy_of(run: Path, label: str) -> str:
    """The name of the policy that decisions call `label`, with the path that the scenario has."""
    file = run / RUN_SCENARIO
    own = load(file, allow_code=True).policy if file.exists() else label
    is_path = own != label_of(own)
    return own if is_path and label_of(own) in label else label


def _position(run: Path, ids: list[str], request: str) -> int:
    if request not in ids:
        first = ids[0] if ids else "-"
        raise BadInput(f"{run}: no decision on {request!r}; its first is {first!r}")
    return ids.index(request)


def _tables_until(experience: Experience, at: int) -> list[CandidateTable]:
    """The tables of all decisions up to this one, in order of time."""
    times = experience.table["at"].to_numpy()
    order = [i for i in np.argsort(times, kind="stable").tolist() if times[i] < times[at]]
    columns = (experience.rows, experience.mask, experience.servers, experience.context)
    return [table_of(*(column[i] for column in columns)) for i in [*order, at]]
