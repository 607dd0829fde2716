"""The delay that a link's impairments add to a transfer, as one compiled function.

It chains the functions of all impairments (`network.impairments`) and calls each whose parameters
switch it on. Random numbers are hashed from the request and the link instead of drawn in sequence,
so the same transfer gets the same delay whatever was decided before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgewise.compile import jit_no_refcount
from edgewise.fleet.request_noise import hashed_uniform
from edgewise.network.impairment import Impairment
from edgewise.network.impairments import offsets


@jit_no_refcount(inline=True, internal=True)
def _nothing(
    delay: float, parameters: Any, seed: int, request: int, link: int, size: float, now: float
) -> float:
    return delay


def _then(before: Any, impairment: Impairment, begin: int, end: int) -> Any:
    """A function that calls `before` and adds the delay of one more impairment."""
    extra = jit_no_refcount(inline=True, internal=True)(impairment.extra)
    noise = impairment.noise

    @jit_no_refcount(inline=True, internal=True)
    def delayed(
        delay: float, parameters: Any, seed: int, request: int, link: int, size: float, now: float
    ) -> float:
        total: float = before(delay, parameters, seed, request, link, size, now)
        if parameters[begin] > 0.0:
            draw = hashed_uniform(seed, request, link, noise) if noise != 0 else 0.0
            total += extra(parameters[begin:end], size, draw, now)
        return total

    return delayed


def _chain(parts: Iterable[tuple[Impairment, int, int]]) -> Any:
    chain: Any = _nothing
    for impairment, begin, end in parts:
        chain = _then(chain, impairment, begin, end)
    return chain


impaired = _chain(offsets())
"""``impaired(delay, parameters, seed, request, link, size, now)`` returns `delay` plus the delays
of all impairments, s, for a transfer of `size` bytes that ended on the link at `now`; inf means
that the connection breaks. `parameters` are the link's (`network.impairments.parameters_of`)."""

impaired_at_best = _chain(part for part in offsets() if not part[0].timed)
"""The same without the impairments that depend on the time: the least delay of a transfer."""
