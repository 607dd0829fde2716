"""Which servers an ingress tries after a failure, and how often it may. Compiled; simulator and
nodes share this.

A request goes to each server at most once, and to at most `ALTERNATIVES` after the first. Every
second try at another server is paid from the ingress's *retry budget*, so that a fleet where much
fails is not burdened with several times its load. The ingress's own run after all others have
failed costs no network and is not paid; `fleet.timeouts.worth_running` bounds it.

The budget is a bucket of tokens, one for each try. Tokens come in at `RETRY_SHARE` of the rate of
requests, but at least at `RETRY_RATE`, and fade with a time constant of `RETRY_MEMORY`. So ten
seconds of them are there when something fails, whatever the rate.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgewise.compile import jit_no_refcount
from edgewise.fleet.arrays import records

ALTERNATIVES = 3
"""Servers that are tried after the first. Each failed attempt costs a round trip, so a fourth would
come after any usual deadline."""
RETRY_SHARE = 0.2
"""Second tries per request. A fifth more load is what a fleet that runs well can bear; Envoy and
linkerd have the same default."""
RETRY_RATE = 3.0
"""Second tries/s that an ingress with few requests has all the same."""
RETRY_MEMORY = 10.0
"""s. Long enough for the requests that are under way when a server dies, short enough that a quiet
hour does not pay for a storm."""

BUDGET: list[Any] = [
    ("retry_tokens", "f8"),  # as of `retry_at`
    ("retry_at", "f8"),
    ("first_tries", "f8"),  # requests since then
]
"""The fields of a retry budget, in a record of their own or of a server."""


@jit_no_refcount(inline=True)
def refilled(tokens: float, seconds: float, requests: float) -> float:
    """The tokens of a budget after `seconds` in which there were `requests`.

    >>> refilled(30.0, 5.0, 10)  # few requests: it stays full
    30.0
    >>> round(refilled(30.0, 100.0, 100_000))  # 200 tokens/s for ten seconds
    2000
    """
    if seconds <= 0.0:
        return tokens + RETRY_SHARE * requests
    fading = math.exp(-seconds / RETRY_MEMORY)
    rate = max(RETRY_RATE, RETRY_SHARE * requests / seconds)
    return tokens * fading + rate * RETRY_MEMORY * (1.0 - fading)


def fill(budget: Any, now: float) -> None:
    """Begin a budget, with the tokens of an ingress that has been idle."""
    budget.retry_tokens = RETRY_RATE * RETRY_MEMORY
    budget.retry_at = now
    budget.first_tries = 0.0


@jit_no_refcount
def take_retry(budget: Any, now: float) -> bool:
    """Pay for a second try at `now`. Returns False, and takes nothing, if the budget is spent."""
    tokens = refilled(budget.retry_tokens, now - budget.retry_at, budget.first_tries)
    budget.retry_at = now
    budget.first_tries = 0.0
    granted = tokens >= 1.0
    budget.retry_tokens = tokens - 1.0 if granted else tokens
    return granted


class RetryBudget:
    """The retry budget of one ingress.

    >>> budget = RetryBudget(now=0.0)
    >>> sum(budget.take(now=0.0) for _ in range(100))
    30
    """

    def __init__(self, now: float) -> None:
        self._record = records(1, np.dtype(BUDGET))[0]
        fill(self._record, now)
        self.granted = 0
        """Second tries paid for."""
        self.denied = 0
        """Second tries that were not made because the budget was spent."""

    def first_try(self) -> None:
        """A request has been given to its first server."""
        self._record.first_tries += 1.0

    def take(self, now: float) -> bool:
        """Whether a second try may be made at `now`; if so, it is paid for."""
        granted = bool(take_retry(self._record, now))
        self.granted += granted
        self.denied += not granted
        return granted
