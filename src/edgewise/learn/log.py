"""Progress as TensorBoard event files.

Through `tensorboardX`, which needs NumPy and protobuf alone: torch's writer would bring torch, and
the package `tensorboard` has a server, gRPC and no public writer of its own. Without the package
nothing is written, and training goes on.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise.bench.statistics import Interval
    from edgewise.learn import ppo, trainer


class Log:
    """Event files in `folder`/tensorboard."""

    def __init__(self, folder: Path) -> None:
        self._writer: Any = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from tensorboardX import SummaryWriter
        except ImportError:
            return
        self._writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, progress: trainer.EsProgress) -> None:
        """One generation of evolution strategies."""
        names = ("decisions", "per_second", "spread", "signal")
        self._scalars(names, progress, progress.generation, progress.gain)

    def write_ppo(self, progress: ppo.PpoProgress) -> None:
        """One iteration of PPO."""
        names = ("decisions", "per_second", "playing", "utility", "kl", "explained")
        self._scalars(names, progress, progress.iteration, progress.gain)

    def _scalars(
        self, names: tuple[str, ...], progress: Any, at: int, gain: Interval | None
    ) -> None:
        if self._writer is None:
            return
        for name in names:
            self._writer.add_scalar(f"training/{name}", getattr(progress, name), at)
        if gain is not None:
            self._writer.add_scalar("validation/gain", gain.mean, at)
        if gain is not None and math.isfinite(gain.half):
            self._writer.add_scalar("validation/half_interval", gain.half, at)
