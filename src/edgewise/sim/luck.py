"""Luck by name: uniform numbers hashed from what they are for. Compiled.

The noise of request i on service k is the same whatever was decided before and for others, so two
policies, or two branches, meet the same world (common random numbers).
"""

from __future__ import annotations

import numpy as np

from edgewise.compiled import lean

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_ONE = np.uint64(1)


@lean
def hashed(seed: int, a: int, b: int, purpose: int) -> np.uint64:
    """64 bits: SplitMix64's finaliser over the words, one after the other."""
    z = np.uint64(seed)
    for word in (np.uint64(a), np.uint64(b), np.uint64(purpose)):
        z = (z ^ word) + _GAMMA
        z = (z ^ (z >> _S30)) * _MIX_1
        z = (z ^ (z >> _S27)) * _MIX_2
        z = z ^ (z >> _S31)
    return z


@lean
def luck(seed: int, a: int, b: int, purpose: int) -> float:
    """A number from (0, 1), the same for the same arguments."""
    return (float(hashed(seed, a, b, purpose) >> _S11) + 0.5) * (1.0 / 9007199254740992.0)
