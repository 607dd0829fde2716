"""Evolution strategies: climb the mean utility of whole episodes, without a gradient of anything.

Theory of operation
-------------------
What is climbed is J(x) = E over worlds of the mean expected utility of an episode, smoothed by a
Gaussian around x. Its gradient is E[J(x + σε) ε] / σ (Salimans et al., Evolution strategies as a
scalable alternative to reinforcement learning, 2017), whose estimate here is

    g = 1/n Σ_i w(d_i) ε_i,    d_i = J_i(x + σ ε_i) − J_i(x − σ ε_i)

- *Antithetic pairs*: x ± σε, so that whatever is even in ε cancels.
- *Common random numbers*: both of a pair play the same world with the same luck, so d_i is what the
  two decide differently. Every generation has fresh worlds, so nothing is fitted to a few.
- *Whitened returns*: w divides by the median of the |d| of a generation and cuts at ±3: an
  overloaded world moves by ten times as much as a quiet one and would drown it. (Measured: root
  mean square 0.022, median 0.007; with the same numbers drawn for both of a pair, steps of a tenth
  of σ give 0.005, so most of a difference is the step's and not the luck's.)
- *Adam* on −g; the step is `rate` × σ per coordinate at first and falls to a tenth of that along a
  cosine. What comes out is the exponential mean of the last iterates: the iterates jump about an
  optimum, their mean does not.

An episode has no discount: the reward is the sum over the episode's 20 s, so a decision is credited
with what it does to all who come after it. (Myopic learning collapses, see the trials.)

Everything random derives from (seed, generation), so a search goes on after it was interrupted as
if it had not been, and threads change nothing.
"""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BETA_1, BETA_2 = 0.9, 0.98
"""Adam's: some ten and fifty generations of memory, where a run has some hundreds."""
CUT = 3.0
MEMORY = 0.93
"""Of the mean of iterates: fifteen generations."""


class EsSettings(Struct, frozen=True, kw_only=True):
    """Of a search."""

    seed: int
    pairs: int = 64
    """Per generation."""
    sigma: float = 1.0
    """In the coordinates of `space.Space`, which are made so that 1 is right."""
    rate: float = 0.25
    """First step, in sigmas."""


class State(Struct, kw_only=True):
    """Where a search is. All that must be kept to go on."""

    x: Floats
    mean: Floats
    """Of the iterates: the result."""
    first: Floats
    second: Floats
    """Adam's moments."""
    generation: int = 0


def begin(size: int) -> State:
    """At the origin."""
    return State(x=np.zeros(size), mean=np.zeros(size), first=np.zeros(size), second=np.zeros(size))


def directions(settings: EsSettings, generation: int, size: int) -> Floats:
    """ε of a generation's pairs: (pairs, size)."""
    rng = np.random.default_rng([settings.seed, generation])
    return rng.standard_normal((settings.pairs, size))


def whiten(differences: Floats) -> Floats:
    """`w` above. Zeros if most differences are 0."""
    size = float(np.median(np.abs(differences)))
    if size == 0.0:
        return np.zeros_like(differences)
    cut: Floats = np.clip(differences / size, -CUT, CUT)
    return cut


def step(
    settings: EsSettings, state: State, epsilon: Floats, differences: Floats, progress: float
) -> None:
    """Take in a generation: `differences` (pairs,) of the utilities at x + σε and x − σε.

    `progress` from 0 to 1 is how much of the budget is used.
    """
    gradient = whiten(differences) @ epsilon / len(differences)
    state.generation += 1
    t = state.generation
    state.first = BETA_1 * state.first + (1.0 - BETA_1) * gradient
    state.second = BETA_2 * state.second + (1.0 - BETA_2) * gradient**2
    # The second moment is pooled over coordinates: ε is isotropic, so its noise is the same in all,
    # and dividing each by its own would blow up those that do not matter.
    size = math.sqrt(float(state.second.mean()) / (1.0 - BETA_2**t)) + 1e-12
    rate = settings.rate * settings.sigma * (0.1 + 0.45 * (1.0 + math.cos(math.pi * progress)))
    state.x = state.x + rate * (state.first / (1.0 - BETA_1**t)) / size
    memory = min(MEMORY, t / (t + 10.0))
    state.mean = memory * state.mean + (1.0 - memory) * state.x
