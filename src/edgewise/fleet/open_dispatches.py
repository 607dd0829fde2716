"""The dispatches of a tracker that have no outcome yet, and whether they count in the belief.

Theory of operation
-------------------
A dispatch counts from its decision on, for a short while (`timeouts.photo_patience`): by then the
photo should have begun to arrive at the ingress. After that it counts only while its ingress holds
the request, as the ingress's reports say (`domain.Report.held`). So metadata whose photo was lost,
requests that a restarted ingress has forgotten, and requests whose outcome was lost with a control
channel all stop counting, and a request whose photo comes late counts again.

Never: a dispatch counted twice; a failure charged to a server for a request that never came.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from msgspec import Struct

from edgewise.domain import HELD_MAX, Report
from edgewise.fleet import belief as core
from edgewise.fleet.admission import offer
from edgewise.fleet.announcements import Announcements
from edgewise.fleet.arrays import Belief
from edgewise.fleet.ejection import end_probe
from edgewise.fleet.intake import FORGET_AFTER, close_dispatch

UNHEARD_AFTER = 30.0
"""s after which a request is forgotten if its photo has never begun. A node keeps a command whose
photo has not begun for as long (`live.node.command_source`)."""


class OpenDispatch(Struct, gc=False, kw_only=True):
    """A dispatch without an outcome. Times are absolute."""

    request: str
    ingress: int
    command: int
    server: int
    dispatch: int
    decided_at: float
    worthless_at: float
    deadline: float
    work: float
    """s of a worker."""
    input_at: float
    """When its input should be at the server."""
    rif: int
    """Requests in flight at the server when it was decided."""
    announced_by: str | None
    """The client whose metadata was all there was of it; None: its photo has begun, or is overdue.
    """
    came: bool
    """The ingress has said that it holds the request."""
    counted: bool = True
    """It counts in the belief."""


class OpenDispatches:
    """All of them, by request id; changes `belief`.

    Parameters
    ----------
    patience:
        s after its decision for which a dispatch counts in any case.
    """

    def __init__(self, belief: Belief, patience: float) -> None:
        self._belief = belief
        self._patience = patience
        self._all: dict[str, OpenDispatch] = {}
        self._by_ingress: list[dict[str, OpenDispatch]] = [{} for _ in belief.servers]
        self._acknowledged = [(0, 0)] * len(belief.servers)
        self.announcements = Announcements()
        self.withdrawn = 0
        """Dispatches that stopped counting because nobody held their request."""

    def __len__(self) -> int:
        return len(self._all)

    def add(self, entry: OpenDispatch, now: float) -> None:
        """Add a dispatch that the belief counts already."""
        self._all[entry.request] = entry
        self._by_ingress[entry.ingress][entry.request] = entry
        if entry.announced_by is not None and not self.announcements.announce(entry.announced_by):
            self._withdraw(entry, now)

    def on_report(self, s: int, report: Report, at: float, now: float) -> None:
        """Compare what the report of server `s`, made `at`, says it holds with what counts."""
        self._acknowledged[s] = (report.arrivals_low, report.arrivals_bits)
        if report.held is None:
            return
        held = {report.commands_seen - back for back in report.held}
        listed_from = min(held) if len(held) >= HELD_MAX else 0
        for entry in self._by_ingress[s].values():
            if entry.command in held:
                self._on_held(entry, now)
            elif at >= entry.decided_at + self._patience and entry.command >= listed_from:
                self._on_not_held(entry, now)

    def on_asked(self, request: str, now: float) -> None:
        """The ingress asks for a command that was decided before: the photo has begun."""
        entry = self._all.get(request)
        if entry is not None:
            self._on_held(entry, now)

    def picked(self, request: str) -> int | None:
        """The server that a request was dispatched to; None if it is not open."""
        entry = self._all.get(request)
        return None if entry is None else entry.server

    def end(self, request: str, failed: bool, now: float) -> None:
        """End an open request by its outcome; `failed`: by its server's fault.

        A request that never came says nothing about its server.
        """
        entry = self._pop(request)
        entry.came = entry.came or not failed
        self._close(entry, failed, now)

    def forget(self, now: float) -> list[str]:
        """Close, as failed, dispatches whose client has given up, and drop those whose photo has
        never begun; returns their ids."""
        gone = [
            entry.request
            for entry in self._all.values()
            if entry.worthless_at + FORGET_AFTER < now
            or (not entry.came and entry.decided_at + UNHEARD_AFTER < now)
        ]
        for request in gone:
            entry = self._pop(request)
            if entry.counted:
                self._close(entry, True, now)
            else:
                self._resolve(entry, came=False)
        for entry in self._of_lost_ingresses(now):
            self._on_not_held(entry, now)
        return gone

    def drop_server(self, s: int) -> None:
        """Forget the dispatches to a server that starts anew; the belief has forgotten them."""
        for request in [entry.request for entry in self._all.values() if entry.server == s]:
            entry = self._pop(request)
            self._resolve(entry, came=entry.came)

    # -- the parts -------------------------------------------------------------------------------

    def _of_lost_ingresses(self, now: float) -> Iterator[OpenDispatch]:
        """Counted dispatches whose ingress is disconnected, or has been silent for too long."""
        for server, entries in zip(self._belief.servers, self._by_ingress, strict=True):
            if not server.connected or now - server.report_at > server.silence:
                for entry in entries.values():
                    if entry.counted and now >= entry.decided_at + self._patience:
                        yield entry

    def _on_held(self, entry: OpenDispatch, now: float) -> None:
        if not entry.counted:
            low, bits = self._acknowledged[entry.server]
            core.reinstate(
                self._belief,
                entry.server,
                entry.dispatch,
                entry.deadline,
                entry.work,
                entry.input_at,
                bool(core.acknowledged(entry.dispatch, low, bits)),
                entry.decided_at,
                now,
            )
            offer(self._belief, entry.work, now)
            if not entry.came:
                core.on_request(self._belief, entry.ingress, now)
            entry.counted = True
        self._resolve(entry, came=True)

    def _on_not_held(self, entry: OpenDispatch, now: float) -> None:
        self._resolve(entry, came=entry.came)
        if entry.counted:
            end_probe(self._belief, entry.ingress, entry.server, entry.decided_at)
            self.withdrawn += 1
            self._withdraw(entry, now)

    def _withdraw(self, entry: OpenDispatch, now: float) -> None:
        belief = self._belief
        core.withdraw(belief, entry.server, entry.dispatch, entry.work, entry.decided_at, now)
        offer(belief, -entry.work, now)
        if not entry.came:
            core.withdraw_request(belief, entry.ingress, entry.decided_at, now)
        entry.counted = False

    def _resolve(self, entry: OpenDispatch, came: bool) -> None:
        """The photo of an announced request has come, or is overdue."""
        entry.came = came
        if entry.announced_by is not None:
            client, entry.announced_by = entry.announced_by, None
            (self.announcements.came if came else self.announcements.never_came)(client)

    def _close(self, entry: OpenDispatch, failed: bool, now: float) -> None:
        never_came = not entry.came and not entry.counted
        self._resolve(entry, came=not never_came)
        if never_came:
            return
        if not entry.counted:
            self._on_held(entry, now)
        close_dispatch(
            self._belief,
            entry.server,
            entry.dispatch,
            entry.rif,
            entry.decided_at,
            entry.worthless_at,
            failed,
            now,
        )

    def _pop(self, request: str) -> OpenDispatch:
        entry = self._all.pop(request)
        del self._by_ingress[entry.ingress][request]
        return entry


def held_numbers(commands: Collection[int], seen: int) -> tuple[int, ...]:
    """Command numbers as a report has them (`domain.Report.held`): the newest, as distances from
    the highest number seen.

    >>> held_numbers({1_700_000_000_000, 1_700_000_000_007}, 1_700_000_000_009)
    (2, 9)
    """
    newest = np.sort(np.fromiter(commands, np.int64, len(commands)))[: -HELD_MAX - 1 : -1]
    return tuple((seen - newest).tolist())
