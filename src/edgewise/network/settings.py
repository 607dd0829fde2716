"""A link's settings: the one type for scenarios, the relay's configuration and the simulator.

`LinkSettings` has the fields of `LinkBase` and those of every impairment. `LinkChange` has the same
fields, all optional: what an event or a live change sets. `LinkEvent` is a planned change.

Units: seconds and bytes; Mbit/s where the name says ``_mbps``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from edgewise.decoding import explain
from edgewise.errors import BadInput
from edgewise.network.capacity import Capacity, constant
from edgewise.network.impairments import IMPAIRMENTS
from edgewise.network.trace import LinkTrace

# The upper bounds catch infinities and slips of the unit, such as milliseconds for seconds.
Time = Annotated[float, Meta(ge=0.0, le=1e6)]
Span = Annotated[float, Meta(gt=0.0, le=1e6)]
Delay = Annotated[float, Meta(ge=0.0, le=60.0)]
Rate = Annotated[float, Meta(ge=0.0, le=1e6)]
QueueBytes = Annotated[int, Meta(ge=1, le=2**40)]

T = TypeVar("T")


class Outage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A time in which a link carries nothing; what is under way waits."""

    at: Time
    """[s] From the start of the run."""
    duration: Span
    """[s] How long."""


class LinkBase(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A link. Give `rate_mbps` or `trace`, or neither: it is then unlimited. `jitter` and what
    follows it are impairments."""

    rate_mbps: Rate | None = None
    """[Mbit/s] Constant rate; null = unlimited, 0 = stopped until it is changed. Default: a link is
    ideal unless the file says otherwise."""
    trace: LinkTrace | None = None
    """Bandwidth over time instead of `rate_mbps`. Default: constant."""
    delay: Delay = 0.0
    """[s] One-way propagation. Default: ideal."""
    queue_bytes: QueueBytes | None = None
    """[bytes] Buffered before the sender is held back (live only); null = unlimited. Nothing is
    dropped, and each flow may always have one chunk waiting, or it would starve. Default: sharing
    among flows is then exact, as in the simulator."""
    outages: tuple[Outage, ...] = ()
    """Planned outages. Default: none."""

    def capacity(self, folder: Path = Path()) -> Capacity:
        """Its bandwidth over time; relative trace files start at `folder`.

        Raises BadInput if both a rate and a trace are given, ScenarioError for a bad trace file.
        """
        if self.trace is None:
            return constant(None if self.rate_mbps is None else self.rate_mbps * 1e6)
        if self.rate_mbps is not None:
            raise BadInput("rate_mbps: expected rate_mbps or trace, got both")
        return self.trace.load(folder)

    def intervals(self) -> list[tuple[float, float]]:
        """The planned outages as (start, end), s from the start of the run."""
        return [(outage.at, outage.at + outage.duration) for outage in self.outages]

    def changed(self, change: LinkChange) -> LinkSettings:
        """These settings after `change`. A new rate ends a trace, and the reverse."""
        values = {
            name: value for name in CHANGEABLE if (value := getattr(change, name)) is not UNSET
        }
        if "trace" in values and "rate_mbps" not in values:
            values["rate_mbps"] = None
        if "rate_mbps" in values and "trace" not in values:
            values["trace"] = None
        return cast(LinkSettings, msgspec.structs.replace(self, **values))


_IMPAIRMENT_FIELDS: list[msgspec.structs.FieldInfo] = [
    field for each in IMPAIRMENTS for field in msgspec.structs.fields(each.settings)
]
CHANGEABLE = (
    *(name for name in LinkBase.__struct_fields__ if name != "outages"),
    *(field.name for field in _IMPAIRMENT_FIELDS),
)
"""The settings that can change while a link carries traffic."""

if TYPE_CHECKING:

    class LinkSettings(LinkBase, frozen=True):
        """All settings of a link: those of `LinkBase`, and those of every impairment."""

        def __init__(self, **fields: Any) -> None: ...
        def __getattr__(self, impairment_field: str) -> Any: ...

    class LinkChange(Struct, frozen=True):
        """Settings to change; a field that is left out (UNSET) stays as it is."""

        def __init__(self, **fields: Any) -> None: ...
        def __getattr__(self, field: str) -> Any: ...

else:
    LinkSettings = msgspec.defstruct(
        "LinkSettings",
        [(field.name, field.type, field.default) for field in _IMPAIRMENT_FIELDS],
        bases=(LinkBase,),
        module=__name__,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )
    LinkChange = msgspec.defstruct(
        "LinkChange",
        [
            (field.name, field.type | UnsetType, UNSET)
            for field in msgspec.structs.fields(LinkSettings)
            if field.name in CHANGEABLE
        ],
        module=__name__,
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
    )


class LinkEvent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of a link while the run goes on."""

    at: Time
    """[s] From the start of the run."""
    link: str
    """A server (its uplink), ``a>b`` (topology pair), or a full name such as ``access:a``."""
    set: LinkChange
    """The settings that change: any of a link's but its outages. What is left out stays; a new
    `rate_mbps` ends a trace, and the reverse."""


def checked(settings: T) -> T:
    """`settings` (or a change) if every value is in its range, for those that were made in Python.

    Raises BadInput naming the field.
    """
    raw = msgspec.to_builtins(settings)
    try:
        msgspec.convert(raw, type(settings))
    except msgspec.ValidationError as error:
        raise bad_field(error, raw, type(settings)) from None
    if getattr(settings, "rate_mbps", None) not in (None, UNSET) and (
        getattr(settings, "trace", None) not in (None, UNSET)
    ):
        raise BadInput("rate_mbps: expected rate_mbps or trace, got both")
    return settings


def new_capacity(change: LinkChange, folder: Path) -> Capacity | None:
    """The bandwidth that a change brings; None if it leaves it as it is.

    Reads the trace's file, if there is one, so that applying the change later costs nothing.
    Raises BadInput for a value out of range, ScenarioError for a bad trace file.
    """
    checked(change)
    if change.rate_mbps is UNSET and change.trace is UNSET:
        return None
    return LinkSettings().changed(change).capacity(folder)


def bad_field(error: msgspec.ValidationError, raw: Any, cls: type[Any]) -> BadInput:
    """The BadInput ``FIELD: expected X, got Y`` for an error from converting `raw` to `cls`."""
    where, problem = explain(error, raw, cls)
    return BadInput(f"{where}: {problem}" if where else problem)
