"""Means that decay, by growth, against what each exponential gives by itself."""

import math

import numpy as np
import pytest

from edgewise.fleet import belief as core
from edgewise.fleet.decay import LANDMARK_LIFE, TIME_CONSTANT, advance_decay, decay_now, decayed
from test_belief import T, fleet


def test_what_is_left_is_what_the_exponentials_say_however_long_it_runs() -> None:
    b = fleet()
    rng = np.random.default_rng(5)
    now, updated, landmarks = T, [T, T], set()
    for s in (0, 1):
        core.on_request(b, s, now)
    for _ in range(3000):
        now += float(rng.exponential(2.0 if rng.random() < 0.9 else 30.0))
        advance_decay(b, now)
        landmarks.add(float(b.decay[0]))
        for s in (0, 1):
            ago = now - updated[s]
            one, five, ten = decayed(b, float(b.servers["demand_growth"][s]))
            assert ten == pytest.approx(math.exp(-ago / TIME_CONSTANT), rel=1e-12, abs=1e-300)
            assert five == pytest.approx(math.exp(-ago / 5.0), rel=1e-12, abs=1e-300)
            assert one == pytest.approx(math.exp(-ago), rel=1e-11, abs=1e-300)
        s = int(rng.random() < 0.3)
        core.on_request(b, s, now)
        updated[s] = now
    assert len(landmarks) > 5  # it did move
    assert decay_now(b) < math.exp(LANDMARK_LIFE)


def test_a_moment_before_the_last_keeps_all() -> None:
    b = fleet()
    core.on_request(b, 0, T)
    advance_decay(b, T - 0.5)  # an answer stamped before the request that was looked at
    assert decayed(b, float(b.servers["demand_growth"][0])) == (1.0, 1.0, 1.0)


def test_nothing_is_left_of_what_never_was() -> None:
    b = fleet()
    advance_decay(b, T)
    assert decayed(b, float(b.servers["answers_growth"][0])) == (0.0, 0.0, 0.0)
