"""What is ejected, by name: for logs, metrics and ``/v1/state``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from msgspec import Struct

from edgewise.fleet.arrays import EJECTED, RETURNING, WELL, Belief, Record
from edgewise.fleet.ejection import REASONS

_STATES = {EJECTED: "ejected", RETURNING: "slow_start"}


class EjectionChange(Struct, frozen=True):
    """A server or path was ejected, or may get requests again.

    >>> str(EjectionChange("depot", None, 2.25, "failures in a row"))
    'server depot is ejected for 2.2 s: failures in a row'
    >>> str(EjectionChange("depot", "plaza", None, "no sign of life"))
    'path plaza>depot gets requests again, by a slow start; it was ejected for: no sign of life'
    """

    server: str
    ingress: str | None
    """The ingress whose path to `server` it is; None: the server itself."""
    seconds: float | None
    """Time until the next probe; None: the ejection has ended."""
    reason: str

    @property
    def what(self) -> str:
        """``server`` or ``path``."""
        return "server" if self.ingress is None else "path"

    def __str__(self) -> str:
        name = self.server if self.ingress is None else f"{self.ingress}>{self.server}"
        if self.seconds is not None:
            return f"{self.what} {name} is ejected for {self.seconds:.1f} s: {self.reason}"
        return (
            f"{self.what} {name} gets requests again, by a slow start; "
            f"it was ejected for: {self.reason}"
        )


class EjectionView:
    """Reads the ejections of a belief about `servers`."""

    def __init__(self, belief: Belief, servers: tuple[str, ...]) -> None:
        self._belief, self._servers = belief, servers
        self._changes = 0
        self._states = belief.targets["state"].copy()
        self._counts = belief.targets["count"].copy()
        self.totals: Counter[tuple[str, str]] = Counter()
        """Ejections so far that `changes` has told of, by ``server`` or ``path`` and reason. Failed
        probes are among them."""

    @property
    def all_ejected(self) -> int:
        """Requests for which all candidates were ejected, and so were all admissible."""
        return int(self._belief.ejection[0].all_barred_count)

    def changes(self, now: float) -> list[EjectionChange]:
        """What has changed since the last call. Costs a comparison if nothing has."""
        belief = self._belief
        if belief.ejection[0].changes == self._changes:
            return []
        self._changes = int(belief.ejection[0].changes)
        states, counts = belief.targets["state"].copy(), belief.targets["count"].copy()
        began = counts != self._counts
        ended = (self._states == EJECTED) & (states != EJECTED)
        self._states, self._counts = states, counts
        found = []
        for a, s in np.argwhere(began | ended).tolist():
            target = belief.targets[a, s]
            change = EjectionChange(
                self._servers[s],
                self._servers[a] if a < len(self._servers) else None,
                float(target.until - now) if target.state == EJECTED else None,
                REASONS[target.reason],
            )
            self.totals[change.what, change.reason] += change.seconds is not None
            found.append(change)
        return found

    def server(self, s: int, now: float) -> dict[str, Any] | None:
        """The state of server `s`, for JSON; None: it is not ejected."""
        return _state(self._belief.targets[len(self._servers), s], now)

    def paths(self, now: float) -> dict[str, dict[str, Any]]:
        """The paths that are ejected, or back by a slow start, by name (``plaza>depot``)."""
        paths = self._belief.targets[:-1]
        found = {}
        for a, s in np.argwhere(paths["state"] != WELL).tolist():
            state = _state(paths[a, s], now)
            if state is not None:
                found[f"{self._servers[a]}>{self._servers[s]}"] = state
        return found


def _state(target: Record, now: float) -> dict[str, Any] | None:
    if target.state == WELL or (target.state == RETURNING and now >= target.until):
        return None
    return {
        "state": _STATES[int(target.state)],
        "reason": REASONS[target.reason],
        "since": float(now - target.since),
        "left": max(0.0, float(target.until - now)),
        "good_probes": int(target.good),
        "ejections": int(target.count),
    }
