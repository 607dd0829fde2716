"""Evolution strategies: climb the mean utility of whole episodes without differentiating anything.

Theory of operation
-------------------
The objective is J(x), the expectation over worlds of an episode's mean expected utility, smoothed
by a Gaussian around x. Its gradient is E[J(x + σε) ε] / σ (Salimans et al., Evolution strategies as
a scalable alternative to reinforcement learning, 2017). The estimate here is

    g = 1/n Σ_i w(d_i) ε_i,    d_i = J_i(x + σ ε_i) − J_i(x − σ ε_i)

- *Antithetic pairs*: x ± σε, so that everything even in ε cancels.
- *Common random numbers*: both of a pair play the same world with the same noise, so d_i measures
  only what the two decide differently. Every generation has fresh worlds, so nothing is fitted to a
  few of them.
- *Whitened returns*: w divides by the median of the |d| of a generation and clips at ±3. An
  overloaded world moves by ten times as much as a quiet one and would drown it. (Measured: root
  mean square 0.022, median 0.007. With the same numbers drawn for both of a pair, steps of a tenth
  of σ give 0.005, so most of a difference comes from the step, not from the noise.)
- *Adam* on −g. The step is `rate` × σ per coordinate at first and falls to a tenth of that along a
  cosine. The result is the exponential mean of the last iterates: the iterates jump about an
  optimum, their mean does not.

An episode has no discount: the reward is the sum over the episode's 20 s, so a decision is credited
with its effect on everybody who comes after it. (In the trials, myopic learning collapsed.)

All randomness derives from the seed and the number of the generation. So a search that was
interrupted goes on as if it had not been, and the number of threads changes no result.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.benchmark.episodes import play_all
from edgewise.errors import BadInput
from edgewise.learn.search import Arrays, Step, fingerprint
from edgewise.learn.space import SearchSpace
from edgewise.policies import weight_files
from edgewise.policies.base import PolicySpec
from edgewise.sim.source import WorldSource
from edgewise.worlds import families

Floats = NDArray[np.float64]

BETA_1, BETA_2 = 0.9, 0.98
"""Adam's decay rates: a memory of about ten and fifty generations, where a run has hundreds."""
CLIP = 3.0
"""Largest whitened difference."""
MEAN_DECAY = 0.93
"""Decay rate of the mean of iterates: a memory of fifteen generations."""


class EsSettings(Struct, frozen=True, kw_only=True):
    """Settings of the search."""

    seed: int = 1
    groups: tuple[str, ...] = ("base", "heads")
    """The groups of parameters that are searched (`space.GROUPS`)."""
    worlds: int = 48
    """Training worlds per generation."""
    pairs: int = 2
    """Antithetic pairs per world. More pairs save making worlds but see fewer of them."""
    sigma: float = 1.0
    """Standard deviation of the perturbations, in the coordinates of `SearchSpace`, which are
    scaled so that 1 is right."""
    rate: float = 0.25
    """First step, in sigmas."""


class EsState(Struct, kw_only=True):
    """The state of a search."""

    x: Floats
    mean: Floats
    """Mean of the iterates: the result."""
    first: Floats
    """Adam's first moment."""
    second: Floats
    """Adam's second moment."""
    generation: int = 0


def initial_state(size: int) -> EsState:
    """The state of a search that begins at the origin."""
    x, mean, first, second = np.zeros((4, size))
    return EsState(x=x, mean=mean, first=first, second=second)


def perturbations(seed: int, generation: int, pairs: int, size: int) -> Floats:
    """ε of a generation's pairs: (pairs, size)."""
    return np.random.default_rng([seed, generation]).standard_normal((pairs, size))


def whiten(differences: Floats) -> Floats:
    """The function w above. Zeros if most differences are 0."""
    scale = float(np.median(np.abs(differences)))
    if scale == 0.0:
        return np.zeros_like(differences)
    clipped: Floats = np.clip(differences / scale, -CLIP, CLIP)
    return clipped


def update(state: EsState, gradient: Floats, step: float, used: float) -> None:
    """Take one step of Adam along `gradient`.

    `step` is the first step's length per coordinate, `used` the share of the budget used up.
    """
    state.generation += 1
    t = state.generation
    state.first = BETA_1 * state.first + (1.0 - BETA_1) * gradient
    state.second = BETA_2 * state.second + (1.0 - BETA_2) * gradient**2
    # The second moment is pooled over coordinates. ε is isotropic, so its noise is the same in all,
    # and dividing each by its own would blow up those that do not matter.
    scale = math.sqrt(float(state.second.mean()) / (1.0 - BETA_2**t)) + 1e-12
    rate = step * (0.1 + 0.45 * (1.0 + math.cos(math.pi * used)))
    state.x = state.x + rate * (state.first / (1.0 - BETA_1**t)) / scale
    decay = min(MEAN_DECAY, t / (t + 10.0))
    state.mean = decay * state.mean + (1.0 - decay) * state.x


class EvolutionStrategies:
    """The search, as a `search.Algorithm`.

    Parameters
    ----------
    source:
        The worlds to train in.
    start:
        Parameters of the learned policy to begin from.
    threads:
        Worlds played at a time; the result does not depend on it.
    """

    def __init__(
        self, source: WorldSource, start: Floats, settings: EsSettings, threads: int = 2
    ) -> None:
        self._source, self._settings, self._threads = source, settings, threads
        self._space = SearchSpace(start, settings.groups)
        self._policy = weight_files.learned_spec(self._space.origin, "being trained")
        self._state = initial_state(self._space.size)
        self.fingerprint = fingerprint("es", source, settings, start)

    def step(self, used: float) -> Step:
        """Play one generation and take a step along its gradient."""
        settings, state, space = self._settings, self._state, self._space
        pairs = settings.worlds * settings.pairs
        epsilon = perturbations(settings.seed, state.generation, pairs, space.size)

        def candidate(world: int, n: int) -> tuple[PolicySpec, Floats]:
            sign = 1.0 - 2.0 * (n % 2)
            offset = sign * settings.sigma * epsilon[world * settings.pairs + n // 2]
            return self._policy, space.params(state.x + offset)

        seeds = families.training_seeds(
            settings.seed, state.generation * settings.worlds, settings.worlds
        )
        utilities, decisions = play_all(
            self._source, seeds, candidate, 2 * settings.pairs, self._threads
        )
        differences = (utilities[0::2] - utilities[1::2]).T.ravel()  # by world, then by pair
        weights = whiten(differences)
        gradient = weights @ epsilon / pairs
        noise = float(np.mean(weights**2)) * space.size / pairs
        update(state, gradient, settings.rate * settings.sigma, used)
        return Step(
            decisions=decisions,
            figures={
                # Root mean square of the pairs' differences in utility.
                "spread": float(np.sqrt(np.mean(differences**2))),
                # Squared length of the gradient over that of pure noise; 1 = no signal is left.
                "signal": float(gradient @ gradient) / max(noise, 1e-12),
            },
        )

    def params(self) -> Floats:
        """The policy's parameters at the mean of the iterates; without limits yet."""
        return self._space.params(self._state.mean)

    def state(self) -> dict[str, NDArray[Any]]:
        """The iterate, the mean and Adam's moments."""
        state = self._state
        return {"x": state.x, "mean": state.mean, "first": state.first, "second": state.second}

    def restore(self, steps: int, state: Arrays) -> None:
        """Go on from a checkpoint. Raises BadInput if arrays are missing."""
        try:
            arrays = {name: state[name] for name in ("x", "mean", "first", "second")}
        except KeyError as error:
            raise BadInput(f"not a checkpoint of this search: no {error}") from None
        self._state = EsState(**arrays, generation=steps)
