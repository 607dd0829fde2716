"""Describe an impairment: its settings, and the delay that it adds to a transfer.

Each impairment is one module of `edgewise.network.impairments` that defines ``IMPAIRMENT``. Nothing
else has to know it: the settings become fields of every link (`network.settings`), in scenarios, in
the relay's configuration and in its control API; the relay applies the function to each chunk, the
simulator to each transfer. It is the same function, run as plain Python by the relay and compiled
into the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import msgspec
from msgspec import Struct

Parameters = Sequence[float]
"""The settings of one impairment as numbers, in the order of its fields."""


def never(parameters: Parameters) -> bool:
    """For impairments that break no connection."""
    return False


class Impairment(NamedTuple):
    """One impairment.

    Attributes:
        settings: a struct with its fields and their defaults, which mean "not impaired". The first
            field is the strength; 0 switches the impairment off. A literal counts as its place
            among the alternatives.
        extra: ``extra(parameters, size, draw, now)``, plain Python of numbers that numba compiles
            too: seconds that `size` bytes take longer which left the link at `now` (s of the link's
            time). `draw` is uniform in (0, 1), and the same for the same transfer whatever the
            settings. inf: the connection breaks. For a transfer of several chunks, each of which
            would draw, it is the largest of their delays. Called only while the strength is above
            0.
        noise: what sets its random numbers apart from others in a simulation: any number that no
            other impairment has, nor `fleet.request_noise`. 0: it draws none.
        in_order: whether whatever follows on the link waits, too. Otherwise only this stream does.
        timed: whether the result depends on `now`.
        may_break: whether `extra` can be inf for these parameters.
    """

    settings: type[Struct]
    extra: Callable[[Any, float, float, float], float]
    noise: int = 0
    in_order: bool = True
    timed: bool = False
    may_break: Callable[[Parameters], bool] = never

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of its settings; the first one is its strength."""
        return self.settings.__struct_fields__

    def parameters(self, link: Any) -> tuple[float, ...]:
        """Its part of a link's settings, as `extra` takes it."""
        values = []
        for field in msgspec.structs.fields(self.settings):
            value = getattr(link, field.name)
            if isinstance(value, str):
                value = get_args(field.type).index(value)
            values.append(float(value))
        return tuple(values)
