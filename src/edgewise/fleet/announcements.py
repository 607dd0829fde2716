"""How much load each client may announce: requests whose metadata came and whose photo did not yet.

Announced requests count as work in the belief before anything of them is there. Without a bound one
client could fill the belief, and honest requests would be refused on an idle fleet. So a client has
a *credit*: the number of its announced requests that count at a time. It grows with every photo
that begins, and shrinks with every one that does not. Requests beyond it count from the moment at
which their photo begins.
"""

from __future__ import annotations

from collections import OrderedDict

from msgspec import Struct

CREDIT_START = 16
"""Requests of a new client: a burst of a page's photos."""
CREDIT_MAX = 256
"""A client of 1,000 requests/s has about so many announced for a report period or two."""
CREDIT_LOST = 2
"""Credit lost by a photo that does not begin; one that begins brings 1. A client that loses less
than a third of its photos keeps its credit."""
CLIENTS_MAX = 4096
"""Clients remembered, some 400 kB; beyond, the one that has announced nothing for longest is
forgotten."""


class _Client(Struct, gc=False):
    open: int = 0
    credit: int = CREDIT_START


class Announcements:
    """The announced requests of every client.

    >>> announcements = Announcements()
    >>> announcements.announce("10.0.0.7")
    True
    >>> announcements.never_came("10.0.0.7")
    >>> announcements.credit("10.0.0.7")
    14
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[str, _Client] = OrderedDict()

    def announce(self, client: str) -> bool:
        """A client has announced a request. Returns whether it counts before its photo begins."""
        state = self._clients.setdefault(client, _Client())
        self._clients.move_to_end(client)
        if len(self._clients) > CLIENTS_MAX:
            self._clients.popitem(last=False)
        state.open += 1
        return state.open <= state.credit

    def came(self, client: str) -> None:
        """The photo of an announced request has begun."""
        self._end(client, 1)

    def never_came(self, client: str) -> None:
        """The photo of an announced request should have begun, and has not."""
        self._end(client, -CREDIT_LOST)

    def credit(self, client: str) -> int:
        """Announced requests of this client that count at a time."""
        return self._clients.get(client, _Client()).credit

    def _end(self, client: str, change: int) -> None:
        state = self._clients.get(client)
        if state is not None:
            state.open = max(0, state.open - 1)
            state.credit = min(CREDIT_MAX, max(1, state.credit + change))
