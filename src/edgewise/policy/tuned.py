"""Parameters found by ``edgewise tune``, which writes this file; values by name."""

from __future__ import annotations

from edgewise.policy.tuning import Tuned

TUNED: dict[str, Tuned] = {}
