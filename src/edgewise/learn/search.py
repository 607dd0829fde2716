"""The loop that every search runs in: budget, validation, checkpoints and progress.

An `Algorithm` makes one step at a time: a generation of an evolution strategy, an iteration of PPO.
`search` repeats steps until the budget is used up. Every so many steps it has the parameters
validated, and it remembers the best ones.

After every step it writes a checkpoint, if it was given a folder. A search that was stopped or
killed resumes after its last finished step. With a budget in steps it then ends with the same
parameters as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from edgewise.benchmark.statistics import Interval, student_quantile
from edgewise.errors import BadInput
from edgewise.learn import checkpoint
from edgewise.learn.checkpoint import Checkpoint
from edgewise.learn.log import Log
from edgewise.sim.source import WorldSource

Floats = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
Validate = Callable[[Floats], Interval]
"""From parameters to their gain over a reference, on validation worlds."""


_TIME = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")


def seconds(text: str) -> float:
    """A time such as ``90``, ``90s``, ``2m`` or ``0.5h`` in s. Raises BadInput."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise BadInput(f"expected a time such as 90s, 2m or 0.5h, got {text!r}")
    return float(found[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}[found[2]]


class Budget(Struct, frozen=True, kw_only=True):
    """How long a search goes on: for some seconds or for some steps.

    Raises BadInput unless exactly one of the two is given, and is above 0.
    """

    seconds: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.seconds is None) == (self.steps is None):
            raise BadInput("expected either a budget in seconds or a number of generations")
        if self.seconds is not None and not self.seconds > 0.0:
            raise BadInput(f"expected a budget above 0 s, got {self.seconds:g} s")
        if self.steps is not None and self.steps < 1:
            raise BadInput(f"expected at least 1 generation, got {self.steps}")

    def used(self, steps: int, seconds: float) -> float:
        """The share that is used up, from 0 to 1."""
        if self.steps is not None:
            return min(1.0, steps / self.steps)
        assert self.seconds is not None
        return min(1.0, seconds / self.seconds)


class Step(Struct, frozen=True, kw_only=True):
    """The result of one step of an algorithm."""

    decisions: int = 0
    figures: dict[str, float] = {}
    """The algorithm's own measures of its progress, by name."""
    last: bool = False
    """Whether further steps would change nothing."""


class Algorithm(Protocol):
    """A search algorithm."""

    @property
    def fingerprint(self) -> str:
        """JSON of everything that decides what it finds, except the budget."""
        ...

    def step(self, used: float) -> Step:
        """Play and learn once; `used` is the share of the budget that is used up."""
        ...

    def params(self) -> Floats:
        """The parameters found so far."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything that a later process needs to go on."""
        ...

    def restore(self, steps: int, state: Arrays) -> None:
        """Take over what `state` returned after `steps` steps. Raises BadInput if it cannot."""
        ...


def fingerprint(algorithm: str, source: WorldSource, settings: Struct, start: Floats) -> str:
    """The fingerprint of an algorithm that begins from the parameters `start`."""
    digest = hashlib.sha256(start.tobytes()).hexdigest()
    return msgspec.json.encode((algorithm, source.fingerprint, settings, digest)).decode()


class Progress(Struct, frozen=True, kw_only=True):
    """How far a search is, after a step."""

    steps: int
    used: float
    """Share of the budget."""
    seconds: float
    """Spent so far, by earlier processes too."""
    remaining: float
    """[s] Estimated."""
    decisions: int
    """Training decisions so far."""
    per_second: float
    """Training decisions per second of this process: worlds made, played and learned from."""
    figures: dict[str, float]
    """The algorithm's own."""
    gain: Interval | None
    """On the validation worlds; None: not validated after this step."""


class SearchResult(Struct, frozen=True, kw_only=True):
    """The result of a search."""

    params: Floats
    """The best that were validated; the last ones, if none were."""
    steps: int
    decisions: int
    seconds: float
    gain: Interval | None
    """At the best validation. As the best of several, it is biased upwards a little."""


class SearchStopped(KeyboardInterrupt):
    """Ctrl-C during a search; the message says what is kept."""


def search(
    algorithm: Algorithm,
    budget: Budget,
    *,
    validate: Validate | None = None,
    every: int = 20,
    folder: Path | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> SearchResult:
    """Run `algorithm` until the budget is used up, at least one step.

    `validate` is asked after `every` steps and after the last. Checkpoints and TensorBoard files go
    to `folder`, and a search resumes from a checkpoint there. Raises BadInput if that checkpoint is
    another search's, and SearchStopped for Ctrl-C.
    """
    if validate is not None:
        student_quantile()  # a missing package should show before the search, not after it
    run = _Run(algorithm, budget, every, folder)
    try:
        with Log(folder) as log:
            while run.used < 1.0 or run.steps == 0:
                report = run.advance(validate)
                figures = {"decisions": report.decisions, "per_second": report.per_second}
                log.write(report.steps, figures | report.figures, report.gain)
                progress(report)
                if run.last:
                    break
    except KeyboardInterrupt:
        raise SearchStopped(run.interrupted()) from None
    return SearchResult(
        params=algorithm.params() if run.best is None else run.best[0],
        steps=run.steps,
        decisions=run.decisions,
        seconds=run.seconds,
        gain=None if run.best is None else run.best[1],
    )


class _Run:
    """The state of one search, as far as it is not the algorithm's."""

    def __init__(
        self, algorithm: Algorithm, budget: Budget, every: int, folder: Path | None
    ) -> None:
        self.algorithm, self.budget, self.every, self.folder = algorithm, budget, every, folder
        self.fingerprint = msgspec.json.encode((algorithm.fingerprint, budget, every)).decode()
        self.steps = self.decisions = self.saved = 0
        self.best: tuple[Floats, Interval] | None = None
        self.last = False
        self._decisions_before, self._seconds_before = 0, 0.0
        stored = None if folder is None else checkpoint.load(folder, self.fingerprint)
        if stored is not None:
            arrays, figures = stored
            algorithm.restore(figures.steps, arrays)
            self.steps = self.saved = figures.steps
            self.decisions = self._decisions_before = figures.decisions
            self._seconds_before = figures.seconds
            if "best" in arrays:
                self.best = arrays["best"], Interval(*arrays["gain"].tolist())
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    @property
    def used(self) -> float:
        return self.budget.used(self.steps, self.seconds)

    def advance(self, validate: Validate | None) -> Progress:
        """Make one step, validate if it is due, and save."""
        step = self.algorithm.step(self.used)
        self.steps += 1
        self.decisions += step.decisions
        self.last = step.last or self.used >= 1.0
        gain = None
        if validate is not None and (self.last or self.steps % self.every == 0):
            params = self.algorithm.params()
            gain = validate(params)
            if self.best is None or gain.mean > self.best[1].mean:
                self.best = params, gain
        self._save()
        seconds, used = self.seconds, self.used
        here = seconds - self._seconds_before
        return Progress(
            steps=self.steps,
            used=used,
            seconds=seconds,
            remaining=(1.0 - used) / max(used, 1e-9) * seconds,
            decisions=self.decisions,
            per_second=(self.decisions - self._decisions_before) / max(here, 1e-9),
            figures=step.figures,
            gain=gain,
        )

    def _save(self) -> None:
        if self.folder is None:
            return
        arrays = self.algorithm.state()
        if self.best is not None:
            arrays |= {"best": self.best[0], "gain": np.array(self.best[1])}
        figures = Checkpoint(
            fingerprint=self.fingerprint,
            steps=self.steps,
            decisions=self.decisions,
            seconds=self.seconds,
        )
        checkpoint.save(self.folder, arrays, figures)
        self.saved = self.steps

    def interrupted(self) -> str:
        """The message for the user after Ctrl-C."""
        if self.folder is None:
            return f"stopped after {self.steps} generations; nothing is kept"
        if not self.saved:
            return "stopped in the first generation; nothing is kept yet"
        return (
            f"stopped after {self.saved} generations; run the same command again to resume from "
            f"{self.folder / checkpoint.FILE}"
        )
