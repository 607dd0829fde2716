"""Files of arrival times that families replay where a formula would not do.

A scenario names its trace by path, so the files are kept in the user's cache. A missing file is
made again from its seed, the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewise.cache import cache_folder
from edgewise.files import write_atomically

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, float, float], Floats]
"""Draws the times of arrivals at a rate over a duration."""

VERSION = 1
"""Part of the file names. Raise it when the times change."""

SOURCES = 8
"""On-off sources in a record, few enough for their heavy tails to show in the sum."""
TAIL = 1.5
"""Pareto index of on and off times; between 1 and 2 the sum is self-similar, H = (3 − 1.5) / 2 =
0.75 (Willinger, Taqqu, Sherman, Wilson, IEEE/ACM Trans. Networking 5(1), 1997)."""
MEAN_STAY = 1.0
"""[s] Mean of on and off times."""

CROWD = 3.0
"""Rate of a flash crowd over the rate before it."""
CROWD_LASTS = 4.0
"""[s] At the full rate."""
CROWD_LEAVES = 1.0
"""[s] Time constant of its decay; it arrives within half a second."""


def cache() -> Path:
    """The folder of recorded arrivals."""
    return cache_folder("arrivals")


def _self_similar(rng: np.random.Generator, rate: float, duration: float) -> Floats:
    """Sources that are on half of the time, with Poisson arrivals at twice their share of the
    rate."""
    least = MEAN_STAY * (TAIL - 1.0) / TAIL
    found: list[Floats] = []
    for _ in range(SOURCES):
        time = -float(rng.uniform(0.0, 4.0 * MEAN_STAY))  # out of step with the others
        on = bool(rng.random() < 0.5)
        while time < duration:
            # A longer stay than the record would make no difference.
            stay = min(least * float(rng.random()) ** (-1.0 / TAIL), 2.0 * duration)
            if on:
                count = int(rng.poisson(2.0 * rate / SOURCES * stay))
                found.append(time + stay * rng.random(count))
            time, on = time + stay, not on
    times = np.concatenate(found)
    return np.sort(times[(times >= 0.0) & (times < duration)])


def _crowd(rng: np.random.Generator, rate: float, duration: float) -> Floats:
    begins = float(rng.uniform(0.2, 0.4)) * duration
    # Thinning (Lewis & Shedler 1979) of a Poisson process at the highest rate.
    count = int(rng.poisson(CROWD * rate * duration))
    times = np.sort(rng.random(count)) * duration
    rise = np.clip((times - begins) / 0.5, 0.0, 1.0)
    fall = np.exp(-np.maximum(0.0, times - begins - CROWD_LASTS) / CROWD_LEAVES)
    height = 1.0 + (CROWD - 1.0) * rise * fall
    kept: Floats = times[rng.random(count) * CROWD < height]
    return kept


def _recorder(kind: str, draw: Draw) -> Callable[[int, float, float], Path]:
    def record(seed: int, rate: float, duration: float) -> Path:
        path = cache() / f"{kind}-v{VERSION}-{seed}-{rate:.6g}-{duration:g}.txt"
        if not path.exists():
            rng = np.random.default_rng([seed, *kind.encode()])
            times = draw(rng, rate, duration)
            write_atomically(path, "".join(f"{time:.6f}\n" for time in times.tolist()).encode())
        return path

    return record


recorded_arrivals = _recorder("record", _self_similar)
"""A file of self-similar arrivals: from a seed, about so many requests/s, over so many s."""
flash_crowd = _recorder("crowd", _crowd)
"""The same of Poisson arrivals, for a while at `CROWD` times the rate."""
