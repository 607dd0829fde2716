"""A random number generator for compiled code. Its state is one number in an array.

The algorithm is SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
OOPSLA 2014). Copying the array copies the generator, which branching a simulation needs and NumPy's
generators do not allow inside compiled code.
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
    """The initial state of a generator, uint64 (1,)."""
    return np.array([seed % 2**64], np.uint64)


@jit_no_refcount(inline=True)
def mix64(z: np.uint64) -> np.uint64:
    """SplitMix64's finaliser: mix the bits of a 64-bit number."""
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@jit_no_refcount(inline=True)
def to_unit_interval(z: np.uint64) -> float:
    """Hash a 64-bit number to a float in [0, 1) with 53 random bits."""
    return float(mix64(z) >> _S11) * (1.0 / 9007199254740992.0)


@jit_no_refcount
def uniform(rng: Array) -> float:
    """The next draw from [0, 1), with 53 random bits."""
    rng[0] = rng[0] + GAMMA
    return to_unit_interval(rng[0])


@jit_no_refcount(inline=True)
def nth_uniform(stream: int, n: int) -> float:
    """The n-th draw from [0, 1) of a numbered stream. It has no state: equal arguments give equal
    draws."""
    return to_unit_interval((np.uint64(stream) << _S32) + np.uint64(n) * GAMMA)


@jit_no_refcount
def integer_below(rng: Array, n: int) -> int:
    """The next integer from 0 … n − 1, uniform."""
    return min(n - 1, int(uniform(rng) * n))
