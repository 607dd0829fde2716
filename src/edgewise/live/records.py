"""The tables of a run: requests, outcomes, decisions and reports, one Parquet file each.

Their columns are the fields of the vocabulary's structs (`edgewise.domain`), with the units and
meanings that stand there: a field that is added to a struct is recorded without a change here. A
field that holds structs, alone or by name, becomes a list of them. The metadata of a column has its
unit, if it has one (key ``unit``), and that of a table the versions that wrote it (``versions``,
JSON).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct, inspect
from msgspec.structs import astuple

from edgewise.domain import (
    SECONDS,
    Command,
    Decision,
    Outcome,
    Report,
    Request,
    Score,
    Stamps,
    own_id,
)
from edgewise.live.recorder import RecordTable

RUN_SCENARIO = "scenario.yaml"
"""A run's scenario, beside its tables."""
CLIENT_NOTES = "client.json"
"""The client's figures that no table has: how late it sent, what the balancer did not take."""

_KEYS = {"services": "model", "peers": "server"}
"""The column of the name, for fields that hold structs by name."""


_PLAIN: dict[type, pa.DataType] = {
    inspect.FloatType: pa.float64(),
    inspect.IntType: pa.int64(),
    inspect.BoolType: pa.bool_(),
    inspect.StrType: pa.string(),
}


class _Columns:
    """The fields of a struct as columns.

    Parameters
    ----------
    without:
        Fields that are left out.
    names:
        Names of columns that are not their field's.
    prefix:
        Beginning of every column's name.
    """

    def __init__(
        self,
        kind: type[Struct],
        without: Collection[str] = (),
        names: Mapping[str, str] | None = None,
        prefix: str = "",
    ) -> None:
        names = names or {}
        fields = [field for field in _fields(kind) if field.name not in without]
        columns = [_column(field.type, field.name) for field in fields]
        self.schema = [
            pa.field(
                prefix + names.get(field.name, field.name), arrow_type, metadata=_unit(field.type)
            )
            for field, (arrow_type, _) in zip(fields, columns, strict=True)
        ]
        self._get = attrgetter(*(field.name for field in fields))
        self._convert = [(i, convert) for i, (_, convert) in enumerate(columns) if convert]

    def cells(self, value: Struct) -> list[Any]:
        """The value of each column."""
        cells = [*self._get(value)]
        for i, convert in self._convert:
            cells[i] = convert(cells[i])
        return cells


def _fields(kind: type[Struct]) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return info.fields


def seconds(name: str) -> pa.Field:
    """A column of seconds."""
    return pa.field(name, pa.float64(), metadata=SECONDS.extra)


def _unit(kind: inspect.Type) -> dict[str, str] | None:
    """The metadata of a column: the unit of its field, if that has one."""
    match kind:
        case inspect.Metadata():
            return kind.extra
        case inspect.UnionType():
            return next((unit for each in kind.types if (unit := _unit(each))), None)
        case inspect.VarTupleType():
            return _unit(kind.item_type)
    return None


def _column(kind: inspect.Type, name: str) -> tuple[pa.DataType, Callable[[Any], Any] | None]:
    """The Arrow type of a field, and what makes its values fit; None: they do."""
    if type(kind) in _PLAIN:
        return _PLAIN[type(kind)], None
    match kind:
        case inspect.Metadata():
            return _column(kind.type, name)
        case inspect.EnumType():
            return pa.string() if issubclass(kind.cls, str) else pa.int8(), None
        case inspect.UnionType():  # of a plain type and None
            (one,) = (each for each in kind.types if not isinstance(each, inspect.NoneType))
            return _column(one, name)[0], None
        case inspect.StructType():  # of plain fields
            fields = [
                pa.field(each.name, _column(each.type, each.name)[0], metadata=_unit(each.type))
                for each in kind.fields
            ]
            return pa.struct(fields), astuple
        case inspect.VarTupleType():
            arrow_type, convert = _column(kind.item_type, name)
            if convert is None:
                return pa.list_(arrow_type), None
            return pa.list_(arrow_type), lambda values: [convert(each) for each in values]
        case inspect.DictType():  # of structs by name
            key = pa.field(_KEYS.get(name, "name"), pa.string())
            arrow_type, _ = _column(kind.value_type, name)
            return (
                pa.list_(pa.struct([key, *arrow_type])),
                lambda values: [(name, *astuple(each)) for name, each in values.items()],
            )
    raise TypeError(f"{name}: no column for {kind}")


_request = _Columns(Request, names={"id": "request"})
_outcome = _Columns(Outcome, without={"stamps"})
_stamps = _Columns(Stamps, prefix="stamp_")
_score = _Columns(Score)
_decision = _Columns(Decision, without={"request", "overruled"})
_command = _Columns(Command, without={"request", "form", "reason", "alternatives"})
_report = _Columns(Report)


def request_row(
    request: Request, image: str | None = None, label: int | None = None
) -> tuple[Any, ...]:
    """A row of `REQUESTS`."""
    return (*_request.cells(request), image, label)


def outcome_row(outcome: Outcome, score: Score) -> tuple[Any, ...]:
    """A row of `OUTCOMES`."""
    return (
        *_outcome.cells(outcome),
        *_stamps.cells(outcome.stamps),
        *outcome.stamps.stages().values(),
        *_score.cells(score),
    )


def decision_row(
    request: Request,
    decision: Decision,
    command: Command,
    trigger: str,
    predicted_latency: float | None,
) -> tuple[Any, ...]:
    """A row of `DECISIONS`."""
    return (
        *_request.cells(msgspec.structs.replace(request, id=own_id(request.id))),
        *_decision.cells(decision),
        *_command.cells(command),
        command.form if command.server is not None else None,
        trigger,
        predicted_latency,
    )


def report_row(report: Report, received: float, clock_ahead: float) -> tuple[Any, ...]:
    """A row of `REPORTS`."""
    return (*_report.cells(report), received, clock_ahead)


REQUESTS = RecordTable(
    "requests",
    request_row,
    pa.schema(
        [
            *_request.schema,
            ("image", pa.string()),  # file name; null: a generated payload
            ("label", pa.int64()),
        ]
    ),
)
"""The requests that the client sent; times are the client's."""

OUTCOMES = RecordTable(
    "outcomes",
    outcome_row,
    pa.schema(
        [
            *_outcome.schema,
            *_stamps.schema,
            *(seconds(f"stage_{name}") for name in Stamps().stages()),
            *_score.schema,
        ]
    ),
)
"""How the requests ended, with the score: one row per request."""

DECISIONS = RecordTable(
    "decisions",
    decision_row,
    pa.schema(
        [
            *_request.schema,
            *_decision.schema,
            *_command.schema,  # server: null = shed
            ("form", pa.int8()),
            ("trigger", pa.string()),  # which came first: the client's "metadata" or an "ask"
            seconds("predicted_latency"),
        ]
    ),
)
"""The balancer's decisions; times are the balancer's."""

REPORTS = RecordTable(
    "reports",
    report_row,
    pa.schema(
        [
            *_report.schema,
            seconds("received"),  # balancer's clock
            seconds("clock_ahead"),  # of the reporter's clock against the balancer's
        ]
    ),
)
"""The nodes' reports on themselves; times are the reporter's."""
