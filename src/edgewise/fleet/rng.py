"""Random rng for compiled code: a generator that is one number in an array.

SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
NumPy's generators cannot be copied inside compiled code; here copying the array copies the
generator, which branching a simulation needs, and the stream does not depend on threads.
"""

from __future__ import annotations

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import Array

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_S32 = np.uint64(32)


def new_rng(seed: int) -> Array:
    """A generator's state, uint64 (1,)."""
    return np.array([seed % 2**64], np.uint64)


@jit_no_refcount(inline=True)
def mix64(z: np.uint64) -> np.uint64:
    """SplitMix64's finaliser: 64 random bits of a word."""
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@jit_no_refcount(inline=True)
def to_unit_interval(z: np.uint64) -> float:
    """The number from [0, 1), of 53 random bits, that SplitMix64 makes of a word."""
    return float(mix64(z) >> _S11) * (1.0 / 9007199254740992.0)


@jit_no_refcount
def uniform(rng: Array) -> float:
    """The next draw from [0, 1), with 53 random bits."""
    rng[0] = rng[0] + GAMMA
    return to_unit_interval(rng[0])


@jit_no_refcount(inline=True)
def nth_uniform(stream: int, n: int) -> float:
    """The n-th draw from [0, 1) of a stream, without a state: the same whenever it is asked for."""
    return to_unit_interval((np.uint64(stream) << _S32) + np.uint64(n) * GAMMA)


@jit_no_refcount
def integer_below(rng: Array, n: int) -> int:
    """The next integer from 0 … n − 1, uniform."""
    return min(n - 1, int(uniform(rng) * n))
