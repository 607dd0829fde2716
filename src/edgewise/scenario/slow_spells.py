"""When each server of a scenario misbehaves: slow spells; *slow*, *errors* and *wrong* failures.

The simulator and the launcher of real processes use the same times and factors.
"""

from __future__ import annotations

import enum
import math

import numpy as np

from edgewise.scenario.schema import (
    ErrorsFailure,
    Scenario,
    ServiceNoise,
    SlowFailure,
    WrongFailure,
)

Spans = list[tuple[float, float, float]]
"""(from, to, factor), s from the start of the run."""


class Misbehaviour(enum.IntFlag):
    """What is wrong with a server that runs, at its usual speed."""

    ERRORS = 1
    """Its models fail: it answers with errors, at once."""
    WRONG = 2
    """Its answers are wrong."""


def misbehaviours(scenario: Scenario, server: str) -> list[tuple[float, Misbehaviour]]:
    """What is wrong with `server` from each of these times on, s from the start; none at first."""
    kinds = {ErrorsFailure: Misbehaviour.ERRORS, WrongFailure: Misbehaviour.WRONG}
    spans = [
        (f.at, f.at + f.duration, kinds[type(f)])
        for f in scenario.failures
        if isinstance(f, ErrorsFailure | WrongFailure) and f.server == server
    ]
    times = sorted({t for begin, end, _ in spans for t in (begin, end)})
    return [
        (t, Misbehaviour(sum({kind for begin, end, kind in spans if begin <= t < end})))
        for t in times
    ]


def slowness(scenario: Scenario, server: str, horizon: float) -> list[tuple[float, float]]:
    """The slowdown of `server` as steps (time, factor), from time 0.

    Work that starts at or after a step takes `factor` times as long. The factor is that of the
    slowest spell, among those that begin before `horizon` (s), times those of the failures in
    force. The list is empty if the server never slows down.
    """
    stream = np.random.default_rng([scenario.seed, 3, scenario.server_names.index(server)])
    spans = _spells(scenario.service_noise, stream, horizon)
    failures = [
        (f.at, f.at + f.duration, f.factor)
        for f in scenario.failures
        if isinstance(f, SlowFailure) and f.server == server
    ]
    if not spans and not failures:
        return []
    times = sorted({0.0, *(t for a, b, _ in [*spans, *failures] for t in (a, b))})

    def factor(t: float) -> float:
        spell = max([f for a, b, f in spans if a <= t < b], default=1.0)
        return spell * math.prod(f for a, b, f in failures if a <= t < b)

    return [(t, factor(t)) for t in times]


def _spells(noise: ServiceNoise, rng: np.random.Generator, horizon: float) -> Spans:
    spell, t = noise.spell, 0.0
    spans: Spans = []
    if spell.rate <= 0.0:
        return []
    while True:
        t += rng.exponential(1.0 / spell.rate)
        length, factor = rng.exponential(spell.duration), rng.uniform(*spell.factor)
        if t >= horizon:
            return spans
        spans.append((t, t + length, factor))
