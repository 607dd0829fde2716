"""The random part of service times and answers, hashed from seed and request. Partly compiled.

Each number is a hash of the seed, the request and a purpose, not a draw from a sequence. So the
noise of request i on service k does not depend on other decisions, and two policies or two branches
of a simulation meet the same world (common random numbers). The same holds for the simulator and a
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
"""Binary logarithm of the number of noise factors. The standard deviation of 4,096 equally likely
factors is within 0.3 % of the lognormal's, and they fit into a first-level cache."""

_S11 = np.uint64(11)


@jit_no_refcount(inline=True)
def hashed(seed: int, a: int, b: int, purpose: int) -> np.uint64:
    """Hash four numbers to 64 bits, with SplitMix64's finaliser after each."""
    z = np.uint64(seed)
    for number in (np.uint64(a), np.uint64(b), np.uint64(purpose)):
        z = mix64((z ^ number) + GAMMA)
    return z


@jit_no_refcount
def hashed_uniform(seed: int, a: int, b: int, purpose: int) -> float:
    """Hash four numbers to a float in (0, 1)."""
    return (float(hashed(seed, a, b, purpose) >> _S11) + 0.5) * (1.0 / 9007199254740992.0)


@jit_no_refcount(inline=True)
def factor_index(seed: int, r: int, k: int, bits: int) -> int:
    """The index of the noise factor of request r on service k, among 2^bits (`noise_factors`)."""
    return int(hashed(seed, r, k, FOR_SERVICE_TIME) >> np.uint64(64 - bits))


def replay_label(request: str, classes: int) -> int:
    """The true label of a request without a real payload, below `classes` (`Task.classes`).

    It is hashed from the id of the request, so that client and node agree on it.
    """
    digest = hashlib.blake2b(request.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % classes


def replayed_class(label: int, is_correct: bool, classes: int) -> int:
    """The class that a replayed model predicts: `label` if it is correct, else the next class."""
    return label if is_correct else (label + 1) % classes


class RequestNoise:
    """The noise of each request of a world, by its id: service time and correctness.

    Parameters
    ----------
    seed:
        Seed of the scenario.
    cv:
        Coefficient of variation of service times.
    """

    def __init__(self, seed: int, cv: float) -> None:
        # Unsigned, as in the simulator: compiled code would take a plain int for a signed one.
        self._seed: Any = np.uint64(noise_seed(seed))
        self._factors = noise_factors(cv)
        self._bits = self._factors.size.bit_length() - 1
        self.service_factor("0", 0)
        self.is_correct("0", 0.5)  # these calls compile both, or load them from the cache

    def service_factor(self, request: str, k: int) -> float:
        """The factor on service `k`'s time for a request; mean 1."""
        if self._bits == 0:
            return 1.0
        return float(self._factors[factor_index(self._seed, _number(request), k, self._bits)])

    def is_correct(self, request: str, accuracy: float) -> bool:
        """Whether a service of that accuracy answers the request correctly. All services share one
        draw, so where a less accurate model is right, a more accurate one is too."""
        return bool(hashed_uniform(self._seed, _number(request), 0, FOR_CORRECTNESS) < accuracy)


def _number(request: str) -> int:
    number = request_number(request)
    if number is None or number >= 2**63:
        digest = hashlib.blake2b(request.encode(), digest_size=7).digest()
        number = int.from_bytes(digest, "big")
    return number


def noise_seed(seed: int) -> int:
    """The seed of a world's request noise, derived from the scenario's seed."""
    return int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0])


@lru_cache(maxsize=16)
def noise_factors(cv: float) -> NDArray[np.float64]:
    """Equally likely lognormal factors of mean 1 and coefficient of variation `cv`.

    Each factor is the mean over its share of the distribution. So the overall mean is exact, and
    only the far tail is shortened. All calls with one `cv` return the same array, so that many
    worlds share it in the processor's cache; do not write to it.
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
