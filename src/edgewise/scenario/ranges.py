"""Ranges of the numbers in a scenario, and the base of all its types."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from edgewise.domain import DEADLINE_MAX

# Upper bounds catch infinities and wrong units, such as milliseconds for seconds.
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
    """Base of the types: a misspelt field is an error, not silently a default."""
