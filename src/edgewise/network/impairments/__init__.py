"""All impairments of a link: every module of this folder, in alphabetical order.

To add one, put a module here that defines ``IMPAIRMENT`` (`edgewise.network.impairment`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NamedTuple

from edgewise.network.impairment import Impairment, Parameters


def _all() -> Iterator[Impairment]:
    noises: set[int] = {0}
    for name in sorted(module.name for module in iter_modules(__path__)):
        impairment: Impairment = import_module(f"{__name__}.{name}").IMPAIRMENT
        if impairment.noise and impairment.noise in noises:
            raise ValueError(f"{name}: another impairment has the same noise {impairment.noise}")
        noises.add(impairment.noise)
        yield impairment


IMPAIRMENTS: tuple[Impairment, ...] = tuple(_all())
PARAMETERS = sum(len(impairment.fields) for impairment in IMPAIRMENTS)
"""Length of `parameters_of`."""


def offsets() -> Iterator[tuple[Impairment, int, int]]:
    """Each impairment, and where its parameters begin and end among those of a link."""
    begin = 0
    for impairment in IMPAIRMENTS:
        end = begin + len(impairment.fields)
        yield impairment, begin, end
        begin = end


def parameters_of(link: Any) -> tuple[float, ...]:
    """The parameters of all impairments in a link's settings, one after the other."""
    return tuple(value for each in IMPAIRMENTS for value in each.parameters(link))


class Active(NamedTuple):
    """An impairment that a link's settings switch on."""

    place: int
    """Among `IMPAIRMENTS`."""
    extra: Callable[[Any, float, float, float], float]
    parameters: Parameters
    draws: bool
    in_order: bool


def active(link: Any) -> tuple[Active, ...]:
    """The impairments that a link's settings switch on."""
    switched_on = []
    for place, each in enumerate(IMPAIRMENTS):
        parameters = each.parameters(link)
        if parameters[0] > 0.0:
            draws = each.noise != 0
            switched_on.append(Active(place, each.extra, parameters, draws, each.in_order))
    return tuple(switched_on)


def may_break(parameters: Parameters) -> bool:
    """Whether an impairment of a link with these parameters can break connections."""
    return any(each.may_break(parameters[begin:end]) for each, begin, end in offsets())
