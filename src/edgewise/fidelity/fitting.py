"""Fit the values of a scenario to recorded times. Arrays in, values out; no files.

Where possible, fits use medians or absolute errors: at some moments of a real fleet's record,
something else was going on.
"""

from __future__ import annotations

import heapq
import math
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float64]

QUARTILES = 1.349
"""Interquartile range of a normal distribution over its standard deviation."""
CONSTANT_CV = 0.1
"""If the gaps between arrivals vary less, these are evenly spaced and were only sent late."""
BIN_REQUESTS = 3.0
"""Expected arrivals per bin of the burst fit. With fewer, a bin says nothing about the state."""
BIN_LEAST = 0.1
"""s. Shorter bursts are not distinguished."""
ROUNDS = 200
"""Most rounds of expectation maximisation; it has converged long before."""


def fit_lognormal(seconds: Floats) -> tuple[float, float]:
    """Mean of a lognormal distribution and σ of its logarithm, from its quartiles."""
    logs = np.log(seconds)
    low, middle, high = np.percentile(logs, (25, 50, 75))
    sigma = float(high - low) / QUARTILES
    return math.exp(float(middle) + 0.5 * sigma**2), sigma


def pooled_sigma(groups: list[Floats]) -> float:
    """Pooled σ of the logarithm within groups, whose medians may differ."""
    logs = np.concatenate([np.log(each) - np.median(np.log(each)) for each in groups])
    low, high = np.percentile(logs, (25, 75))
    return float(high - low) / QUARTILES


# -- links ---------------------------------------------------------------------------------------


class LinkFit(Struct, frozen=True, kw_only=True):
    """A link of constant rate that its transfers share equally."""

    rate: float
    """bytes/s"""
    delay: float
    """s"""
    error: float
    """Median absolute error of a transfer's end, s."""
    count: int
    """Transfers."""


def shared_link_ends(starts: Floats, sizes: Floats, rate: float) -> Floats:
    """When each transfer has left a link of `rate` bytes/s that all of them share equally, s.

    Computed by virtual time, as in `sim.links` (Parekh and Gallager 1993).
    """
    ends = np.empty(len(starts))
    flows: list[tuple[float, int]] = []
    now, virtual = 0.0, 0.0

    def until(time: float) -> None:
        nonlocal now, virtual
        while flows:
            tag, which = flows[0]
            across = now + (tag - virtual) * len(flows) / rate
            if across > time:
                virtual += (time - now) * rate / len(flows)
                break
            heapq.heappop(flows)
            ends[which], now, virtual = across, across, tag
        now = time

    for which in np.argsort(starts, kind="stable").tolist():
        until(float(starts[which]))
        heapq.heappush(flows, (virtual + float(sizes[which]), which))
    until(math.inf)
    return ends


class Transfers(NamedTuple):
    """The transfers over one link, each array with one element for each."""

    starts: Floats
    """s, when the first byte was sent."""
    sizes: Floats
    """Bytes."""
    ends: Floats
    """s, when the last byte had arrived."""
    source_ends: Floats | None = None
    """s, when the last byte reached the sender, which forwards what it receives. It arrives no
    earlier than a delay after."""
    fitted: NDArray[np.bool_] | None = None
    """Which transfers are fitted; the others only share the link. None: all."""

    def where(self, mask: NDArray[np.bool_]) -> Transfers:
        """Those of a mask."""
        arrays: Any = [None if each is None else each[mask] for each in self]
        return Transfers(*arrays)


def fit_link(transfers: Transfers) -> LinkFit:
    """The rate and delay that best explain when transfers arrived.

    Minimises the sum of absolute errors on a grid over four decades of rates, then by golden
    section. Raises ValueError for no transfers.
    """
    starts, sizes, ends, source_ends, fitted = transfers
    if not len(starts):
        raise ValueError("expected at least one transfer")
    before = np.full(len(starts), -np.inf) if source_ends is None else source_ends
    counts = np.ones(len(starts), bool) if fitted is None else fitted

    def errors(log_rate: float) -> tuple[float, float, float]:
        across = np.maximum(shared_link_ends(starts, sizes, math.exp(log_rate)), before)
        residual = (ends - across)[counts]
        delay = max(0.0, float(np.median(residual)))
        off = np.abs(residual - delay)
        return float(off.mean()), delay, float(np.median(off))

    alone = float(np.median((sizes / np.maximum(ends - starts, 1e-6))[counts]))
    grid = np.linspace(math.log(alone / 30.0), math.log(alone * 300.0), 49)
    best = int(np.argmin([errors(float(each))[0] for each in grid]))
    low, high = float(grid[max(0, best - 1)]), float(grid[min(len(grid) - 1, best + 1)])
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(28):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if errors(left)[0] < errors(right)[0]:
            high = right
        else:
            low = left
    middle = 0.5 * (low + high)
    _, delay, error = errors(middle)
    return LinkFit(rate=math.exp(middle), delay=delay, error=error, count=int(counts.sum()))


def conversion_ends(
    asked: Floats, seconds: float, workers: int, started: Floats, finished: Floats
) -> Floats:
    """When each conversion to the model-ready form ended, s.

    Conversions are served in order, before all requests.

    Parameters
    ----------
    asked:
        When both the whole photo and the command were there, s, in order.
    seconds:
        Duration of one conversion.
    workers:
        Number of workers of the server; each runs a conversion or a request.
    started, finished:
        Times of the requests that the server ran, s; a conversion does not interrupt them.
    """
    done = np.empty(len(asked))
    for n, time in enumerate(asked.tolist()):
        if n:
            # In order: none begins before its predecessor.
            time = max(time, float(done[n - 1]) - seconds)
        while True:
            running = finished[(started <= time) & (time < finished)]
            others = done[max(0, n - workers) : n]
            running = np.concatenate([running, others[others > time]])
            if len(running) < workers:
                break
            time = float(running.min())
        done[n] = time + seconds
    return done


# -- arrivals ------------------------------------------------------------------------------------


class Bursts(Struct, frozen=True, kw_only=True):
    """A Poisson process whose rate jumps between two states, the slow one first."""

    rates: tuple[float, float]
    """requests/s"""
    sojourns: tuple[float, float]
    """s, mean."""


def fit_arrivals(times: Floats, duration: float) -> float | Bursts | None:
    """The arrival process: the rate of a Poisson process (requests/s), or `Bursts`.

    None: the requests are evenly spaced, at count / `duration`. Bursts are chosen if they explain
    the times better by the Bayesian information criterion over bins.
    """
    gaps = np.diff(times)
    rate = len(times) / duration
    if len(gaps) > 2 and float(np.std(gaps)) < CONSTANT_CV * float(gaps.mean()):
        return None
    width = max(BIN_LEAST, BIN_REQUESTS / rate) if rate > 0.0 else duration
    bins = int(duration / width)
    if bins < 20:
        return rate
    counts = np.histogram(times, bins, (0.0, bins * width))[0].astype(np.float64)
    bursts, gained = _bursts(counts, width)
    # Three more parameters; each must gain half the logarithm of the number of bins.
    return bursts if gained > 1.5 * math.log(bins) else rate


def _bursts(counts: Floats, width: float) -> tuple[Bursts, float]:
    """A hidden Markov model of two Poisson states (Baum, Petrie, Soules, Weiss 1970).

    Returns it with how much its log-likelihood exceeds that of one state.
    """
    mean = max(float(counts.mean()), 1e-9)
    level = np.array([0.6 * mean, 1.8 * mean])
    jump = np.array([[0.95, 0.05], [0.1, 0.9]])
    first = np.array([0.6, 0.4])
    last = -math.inf
    for _ in range(ROUNDS):
        # log(count!) is the same for both models, so it is left out.
        density = np.exp(counts[:, None] * np.log(level / mean) - (level - mean))
        forward, scale = np.empty((len(counts), 2)), np.empty(len(counts))
        ahead = first
        for n, each in enumerate(density):
            here = ahead * each
            scale[n] = here.sum()
            forward[n] = here / scale[n]
            ahead = forward[n] @ jump
        backward = np.ones((len(counts), 2))
        for n in range(len(counts) - 2, -1, -1):
            backward[n] = jump @ (density[n + 1] * backward[n + 1]) / scale[n + 1]
        weight = forward * backward
        pairs = (
            forward[:-1, :, None]
            * jump[None]
            * (density[1:] * backward[1:] / scale[1:, None])[:, None, :]
        ).sum(axis=0)
        jump = pairs / pairs.sum(axis=1, keepdims=True)
        level = np.maximum((weight * counts[:, None]).sum(0) / weight.sum(0), 1e-9)
        first = weight[0] / weight[0].sum()
        gained = float(np.log(scale).sum())
        if gained - last < 1e-6:
            break
        last = gained
    order = np.argsort(level)
    stay = np.clip(np.diag(jump)[order], 1e-6, 1.0 - 1e-6)
    rates, sojourns = level[order] / width, -width / np.log(stay)
    return (
        Bursts(
            rates=(float(rates[0]), float(rates[1])),
            sojourns=(float(sojourns[0]), float(sojourns[1])),
        ),
        gained,
    )


# -- reports -------------------------------------------------------------------------------------


def fit_report_period(sent: Floats) -> float | None:
    """s between the periodic reports of one server; None for fewer than three.

    It is the mode of the gaps, to 2 %: some reports come early because a value jumped, and the
    period then starts again.
    """
    gaps = np.diff(np.sort(sent))
    gaps = gaps[gaps > 0.0]
    if len(gaps) < 2:
        return None
    logs = np.log(gaps)
    near = (np.abs(logs[:, None] - logs[None]) < 0.02).sum(axis=1)
    return float(np.median(gaps[np.abs(logs - logs[int(np.argmax(near))]) < 0.02]))
