"""Random numbers by name: hashed from the seed, the request and their purpose. Partly compiled.

The noise of request i on service k is the same whatever was decided before and for others, so two
policies, or two branches, meet the same world (common random numbers); so do the simulator and a
live fleet that replays recorded latencies.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.compile import jit_no_refcount
from edgewise.domain import request_number
from edgewise.fleet.rng import GAMMA, mix64

FOR_SERVICE_TIME = 103
FOR_CORRECTNESS = 104
NOISE_BITS = 12
"""4,096 equally likely noise factors: their spread is within 0.3 % of the lognormal's, and they fit
into a first-level cache."""

_S11 = np.uint64(11)


@jit_no_refcount(inline=True)
def hashed(seed: int, a: int, b: int, purpose: int) -> np.uint64:
    """64 bits: SplitMix64's finaliser over the words, one after the other."""
    z = np.uint64(seed)
    for word in (np.uint64(a), np.uint64(b), np.uint64(purpose)):
        z = mix64((z ^ word) + GAMMA)
    return z


@jit_no_refcount
def hashed_uniform(seed: int, a: int, b: int, purpose: int) -> float:
    """A number from (0, 1), the same for the same arguments."""
    return (float(hashed(seed, a, b, purpose) >> _S11) + 0.5) * (1.0 / 9007199254740992.0)


@jit_no_refcount(inline=True)
def factor_index(seed: int, r: int, k: int, bits: int) -> int:
    """Which of 2^bits equally likely factors (`noise_factors`) request r meets on service k."""
    return int(hashed(seed, r, k, FOR_SERVICE_TIME) >> np.uint64(64 - bits))


def replay_label(request: str, classes: int) -> int:
    """The right answer of a request without a real payload: client and node agree on it.

    One of `classes` labels (`Task.classes`), hashed from the id of the request.
    """
    digest = hashlib.blake2b(request.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % classes


def replayed_class(label: int, is_correct: bool, classes: int) -> int:
    """The class that a replayed model names: the right one, or the one after it."""
    return label if is_correct else (label + 1) % classes


class RequestNoise:
    """Service time and correctness of each request of a world, drawn by its id.

    Parameters
    ----------
    seed:
        The scenario's.
    cv:
        Coefficient of variation of service times.
    """

    def __init__(self, seed: int, cv: float) -> None:
        # Of the type that the simulator has: a plain int would be taken for a signed one.
        self._seed: Any = np.uint64(noise_seed(seed))
        self._factors = noise_factors(cv)
        self._bits = self._factors.size.bit_length() - 1
        self.service_factor("0", 0)
        self.is_correct("0", 0.5)  # both are compiled now, or loaded

    def service_factor(self, request: str, k: int) -> float:
        """The factor on service `k`'s time for a request; mean 1."""
        if self._bits == 0:
            return 1.0
        return float(self._factors[factor_index(self._seed, _number(request), k, self._bits)])

    def is_correct(self, request: str, accuracy: float) -> bool:
        """Whether a service of that accuracy answers it correctly. One draw serves all services, so
        where a less accurate model is right, a more accurate one is too."""
        return bool(hashed_uniform(self._seed, _number(request), 0, FOR_CORRECTNESS) < accuracy)


def _number(request: str) -> int:
    number = request_number(request)
    if number is None or number >= 2**63:
        digest = hashlib.blake2b(request.encode(), digest_size=7).digest()
        number = int.from_bytes(digest, "big")
    return number


def noise_seed(seed: int) -> int:
    """The seed of all request noise in a world, from the scenario's seed."""
    return int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0])


@lru_cache(maxsize=16)
def noise_factors(cv: float) -> NDArray[np.float64]:
    """Equally likely lognormal factors of mean 1 and coefficient of variation `cv`. One array for
    all who ask, not to be written to: the worlds of many environments share a processor's cache.

    Each is the mean of its share of the distribution, so the mean is right and only the far tail is
    folded in.
    """
    if cv <= 0.0:
        return np.ones(1)
    sigma = math.sqrt(math.log1p(cv * cv))
    n = 1 << NOISE_BITS
    # E[X; X ≤ x_p] of a lognormal of mean 1 is Φ(Φ⁻¹(p) − σ).
    normal = NormalDist()
    inverse = [normal.inv_cdf(p / n) for p in range(1, n)]
    below = np.array([0.5 * math.erfc(-(z - sigma) / math.sqrt(2.0)) for z in inverse])
    factors: NDArray[np.float64] = np.diff(np.concatenate([[0.0], below, [1.0]])) * n
    return factors
