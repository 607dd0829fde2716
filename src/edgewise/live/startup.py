"""The end of a process's start-up: preparations against pauses while it answers."""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL = 5e-4
"""s after which a thread must hand over the interpreter when the event loop wants it. Python's own
5 ms would be a decision's whole budget."""


def freeze_startup_objects() -> None:
    """Take what start-up made out of the garbage collector's sight.

    Call it when everything is loaded, before the first request. A full collection would visit
    numba's and ONNX Runtime's hundreds of thousands of objects, which takes 0.1 s and frees
    nothing. Requests make mostly objects of the vocabulary, which cannot form cycles and are not
    tracked.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL)
