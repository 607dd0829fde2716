"""Throughput computed from a byte counter: the kernel's, or a packet queue's."""

from __future__ import annotations

import math
from typing import Any

WINDOW_S = 1.0
"""s between two readings that are compared; the relay's own figure has the same window."""


class ThroughputMeter:
    """Bits per second between readings that are at least a window apart; 0 before the second."""

    def __init__(self) -> None:
        self._at = -math.inf
        self._count = 0
        self._bps = 0.0

    def read(self, count: int, now: float) -> float:
        """The throughput, bits/s, given the bytes counted until ``now``."""
        if now - self._at >= WINDOW_S:
            if math.isfinite(self._at):
                self._bps = 8.0 * (count - self._count) / (now - self._at)
            self._at, self._count = now, count
        return self._bps

    def state(self, count: int, now: float, rate_bps: float | None) -> dict[str, Any]:
        """``throughput_bps``, ``utilisation`` (its share of the rate) and ``flows``, which is None:
        a queue of packets does not know its flows."""
        bps = self.read(count, now)
        share = min(bps / rate_bps, 1.0) if rate_bps else 0.0
        return {"utilisation": share, "throughput_bps": bps, "flows": None}
