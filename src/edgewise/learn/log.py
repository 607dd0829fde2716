"""Progress as TensorBoard event files.

They are written by `tensorboardX`, which needs NumPy and protobuf alone: torch's writer would bring
torch, and the package `tensorboard` has a server, gRPC and no public writer of its own. Without
`tensorboardX` no files are written, and training goes on.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from edgewise.benchmark.statistics import Interval
from edgewise.errors import BadInput


class Log:
    """Writes event files to `folder`/tensorboard, or none without a folder.

    Raises BadInput if the folder cannot be written to.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = None
        if folder is None:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                from tensorboardX import SummaryWriter
        except ImportError:
            return
        try:
            self._writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=10)
        except OSError as error:
            raise BadInput(f"{folder}: cannot be written to: {error.strerror}") from None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, figures: dict[str, float], gain: Interval | None) -> None:
        """Write the figures of a step, and its gain on the validation worlds if there is one."""
        if self._writer is None:
            return
        for name, value in figures.items():
            self._writer.add_scalar(f"training/{name}", value, step)
        if gain is not None:
            self._writer.add_scalar("validation/gain", gain.mean, step)
            if math.isfinite(gain.half):
                self._writer.add_scalar("validation/half_interval", gain.half, step)
