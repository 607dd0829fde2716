"""The summary of a run, made from its files: what ``edgewise evaluate RUN`` prints.

The launcher ends with the same function, so a summary can always be made again from the Parquet
files, and no number in it comes from anywhere else.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from edgewise.domain import Outcome, PayloadForm, Request, Stamps, Status
from edgewise.errors import BadInput
from edgewise.live import records
from edgewise.live.recorder import RecordTable, read
from edgewise.scenario import Scenario, load
from edgewise.score import ScoreShape
from edgewise.summary import LatencyMs, PolicySummary, Summary, summarise

SEED_FOLDER = "seed-"
"""Beginning of the name of a seed's folder, in that of its policy."""


def evaluate(run: Path) -> Summary:
    """The summary of a run's folder, or of a folder with one per policy.

    The seeds of a policy (``seed-1``, ``seed-2``, … in its folder) are pooled. Raises BadInput
    naming the file that is missing or does not fit.
    """
    if not run.is_dir():
        raise BadInput(f"{run}: expected the folder of a run, found nothing there")
    by_policy = _folders(run)
    if not by_policy:
        raise BadInput(f"{run}: expected requests.parquet in it or in folders below, found none")
    ordered = sorted(by_policy.items(), key=lambda item: _began(item[1][0]))
    found = [summary_of(folders) for _, folders in ordered]
    if len({summary.policy for summary in found}) < len(found):
        # Two files of weights may have one name; the folders of a run never do.
        found = [
            msgspec.structs.replace(summary, policy=folder.name)
            for summary, (folder, _) in zip(found, ordered, strict=True)
        ]
    scenario = _scenario(ordered[0][1][0])
    return Summary(scenario=scenario.name, seed=scenario.seed, policies=tuple(found))


def _folders(run: Path) -> dict[Path, list[Path]]:
    """By the folder of a policy: the folders of its seeds in order, or itself."""
    if _is_run(run):
        return {run: [run]}
    found: dict[Path, list[Path]] = {}
    for folder in [*run.glob("*"), *run.glob(f"*/{SEED_FOLDER}*")]:
        if _is_run(folder):
            policy = folder.parent if folder.name.startswith(SEED_FOLDER) else folder
            found.setdefault(policy, []).append(folder)
    for folders in found.values():
        folders.sort(key=lambda folder: (len(folder.name), folder.name))  # seed-10 after seed-9
    return found


def summary_of(folders: Sequence[Path]) -> PolicySummary:
    """The summary of one policy's runs, pooled. Raises BadInput."""
    scenario = _scenario(folders[0])
    requests, outcomes = [], []
    busy: dict[str, float] = collections.defaultdict(float)
    seconds = 0.0
    for folder in folders:
        sent, ended = read_requests(folder), read_outcomes(folder)
        first = min((request.sent_at for request in sent), default=0.0)
        last = max([first, *(outcome.stamps.received or 0.0 for outcome in ended)])
        for server, share in _utilisation(folder, first, last).items():
            busy[server] += share * (last - first)
        seconds += last - first
        requests += sent
        outcomes += ended
    try:
        return summarise(
            _policy(folders[0], scenario),
            requests,
            outcomes,
            ScoreShape.of(scenario.score),
            servers=scenario.server_names,
            utilisation={server: area / seconds for server, area in busy.items()},
            late_send=_late_send(folders[0]) if len(folders) == 1 else None,
            seconds=seconds,
        )
    except ValueError as error:
        raise BadInput(f"{folders[0]}: requests and outcomes do not fit: {error}") from None


def _scenario(folder: Path) -> Scenario:
    # Read for its score and its names; nobody runs its policy.
    return load(folder / records.RUN_SCENARIO, allow_code=True)


def read_requests(folder: Path) -> list[Request]:
    """A run's requests in the order they were sent; the file has them as they ended.

    Raises BadInput.
    """
    table = read(folder, records.REQUESTS.name).sort_by("sent_at")
    names = [name for name in Request.__struct_fields__ if name in table.column_names]
    rows = table.to_pylist()
    return [Request(id=row["request"], **{name: row[name] for name in names}) for row in rows]


def read_outcomes(folder: Path) -> list[Outcome]:
    """A run's outcomes, in the order of the file. Raises BadInput."""
    return [_outcome(row) for row in read(folder, records.OUTCOMES.name).to_pylist()]


def _outcome(row: dict[str, Any]) -> Outcome:
    return Outcome(
        request=row["request"],
        status=Status(row["status"]),
        form=None if row["form"] is None else PayloadForm(row["form"]),
        stamps=Stamps(**{name: row[f"stamp_{name}"] for name in Stamps.__struct_fields__}),
        **{
            name: row[name]
            for name in ("latency", "server", "model", "predicted", "label", "accuracy", "reason")
        },
    )


def _is_run(path: Path) -> bool:
    return (path / "requests.parquet").is_file() or (path / "requests.parts").is_dir()


def _began(folder: Path) -> float:
    first = pc.min(read(folder, records.REQUESTS.name).column("sent_at")).as_py()
    return math.inf if first is None else float(first)


def _policy(folder: Path, scenario: Scenario) -> str:
    """The policy that made most decisions; the scenario's if none was kept."""
    table = _read_if_there(folder, records.DECISIONS)
    if table is None or not table.num_rows:
        return scenario.policy
    names = collections.Counter(table.column("policy").to_pylist())
    return str(names.most_common(1)[0][0])


def _utilisation(folder: Path, began: float, ended: float) -> dict[str, float]:
    """Mean utilisation that each server reported while requests were under way, over time.

    A report stands until the next one: some are sent early because something jumped, and a plain
    mean would count those moments twice.
    """
    table = _read_if_there(folder, records.REPORTS)
    if table is None:
        return {}
    by_server: dict[str, list[tuple[float, float]]] = {}
    columns = (table.column(name).to_pylist() for name in ("server", "received", "utilisation"))
    for server, at, busy in zip(*columns, strict=True):
        if began <= at <= ended:
            by_server.setdefault(server, []).append((at, busy))
    means = {}
    for server, rows in by_server.items():
        rows.sort()
        ends = [at for at, _ in rows[1:]] + [ended]
        spans = [end - at for (at, _), end in zip(rows, ends, strict=True)]
        total = math.fsum(spans)
        if total > 0.0:
            weighted = (span * busy for span, (_, busy) in zip(spans, rows, strict=True))
            means[server] = math.fsum(weighted) / total
    return means


def _late_send(folder: Path) -> LatencyMs | None:
    try:
        notes = msgspec.json.decode((folder / records.CLIENT_NOTES).read_bytes())
        return msgspec.convert(notes["late_send_ms"], LatencyMs)
    except (OSError, KeyError, msgspec.DecodeError):
        return None


def _read_if_there(folder: Path, table: RecordTable) -> pa.Table | None:
    try:
        return read(folder, table.name)
    except BadInput:
        return None
