"""What a link's impairments add to a transfer: one compiled function, made of all of them.

Each impairment's own function (`network.impairments`) is called where its parameters switch it on.
Its random number is hashed from the request and the link, not drawn in order, so whatever was
decided before, the same transfer meets the same fate.
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
    """`before`, and then what one more impairment adds."""
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
"""``impaired(delay, parameters, seed, request, link, size, now)``: `delay` and what all impairments
add to it for a transfer of `size` bytes that left the link at `now`, s; inf: the connection breaks.
`parameters` are those of the link (`network.impairments.parameters_of`)."""

impaired_at_best = _chain(part for part in offsets() if not part[0].timed)
"""The same without impairments that depend on the time: what a transfer takes at least."""
