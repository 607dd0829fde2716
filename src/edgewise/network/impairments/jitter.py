"""Jitter: a random delay of each chunk, uniform between 0 and a maximum."""

from __future__ import annotations

import math
from typing import Annotated, Any

from msgspec import Meta, Struct

from edgewise.network.impairment import Impairment
from edgewise.network.units import CHUNK_BYTES


class Jitter(Struct, frozen=True):
    jitter: Annotated[float, Meta(ge=0.0, le=60.0)] = 0.0
    """[s] Each chunk of 16 KiB is delayed by up to this much, uniformly; order is kept, so within
    a dense stream the delay tends to `delay` + `jitter`. Default: none."""


def extra(parameters: Any, size: float, draw: float, now: float) -> float:
    """The largest delay of n chunks: the maximum of n uniform numbers has the distribution u^n."""
    chunks = math.ceil(max(1.0, size / CHUNK_BYTES))
    delay: float = parameters[0] * draw ** (1.0 / chunks)
    return delay


IMPAIRMENT = Impairment(settings=Jitter, extra=extra, noise=101)
