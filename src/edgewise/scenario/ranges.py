"""The ranges that a scenario's figures must be in, and what all its structs share."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from edgewise.domain import DEADLINE_MAX

# Upper bounds catch infinities and slips of the unit, such as milliseconds for seconds.
Time = Annotated[float, Meta(ge=0.0, le=1e6)]
Span = Annotated[float, Meta(gt=0.0, le=1e6)]
Rate = Annotated[float, Meta(gt=0.0, le=1e6)]
Weight = Annotated[float, Meta(ge=0.0, le=1e9)]
Mbps = Annotated[float, Meta(gt=0.0, le=1e6)]
Delay = Annotated[float, Meta(ge=0.0, le=60.0)]
Loss = Annotated[float, Meta(ge=0.0, lt=1.0)]
Factor = Annotated[float, Meta(gt=0.0, le=1000.0)]
Deadline = Annotated[float, Meta(gt=0.0, le=DEADLINE_MAX)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Latency = Annotated[float, Meta(gt=0.0, le=600.0)]


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A misspelt field is an error, never a default in silence."""
