"""What a process does once it is up, so that it does not pause while it answers."""

from __future__ import annotations

import gc
import sys

SWITCH_INTERVAL = 5e-4
"""s after which a thread must hand over the interpreter when the event loop wants it; Python's own
5 ms would be the whole of a decision's budget."""


def freeze_startup_objects() -> None:
    """Call when everything is loaded, before the first request.

    A full collection visits all that start-up made (numba's and ONNX Runtime's hundreds of
    thousands of objects), which takes 0.1 s and frees nothing: they are taken out of its sight.
    What requests make is mostly vocabulary, which cannot form cycles and is not tracked.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL)
