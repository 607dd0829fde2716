"""Delay spikes at regular intervals, as where satellites or cells are handed over on schedule."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from edgewise.network.impairment import Impairment


class Spike(Struct, frozen=True):
    spike: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.0
    """[s] Additional delay during a spike. Default: none."""
    spike_every: Annotated[float, Meta(gt=0.0, le=1e6)] = 15.0
    """[s] From the beginning of one spike to that of the next, the first at time 0. Default:
    how often Starlink assigns satellites anew."""
    spike_length: Annotated[float, Meta(gt=0.0, le=1e6)] = 0.2
    """[s] How long a spike lasts. Default: some round trips."""


def extra(parameters: Any, size: float, draw: float, now: float) -> float:
    delay: float = parameters[0] if now % parameters[1] < parameters[2] else 0.0
    return delay


IMPAIRMENT = Impairment(settings=Spike, extra=extra, timed=True)
