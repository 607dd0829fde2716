"""The inner half of the bound: the value of a request's best plan at given prices. Compiled.

A *plan* is a candidate (service, form, batch) with a start, and with bins by whose ends transfer
and conversion are finished. `dual` explains why the best plan bounds what the request can get.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from edgewise.bound.relaxation import TIME_SLACK, Relaxation
from edgewise.compile import jit, jit_no_refcount
from edgewise.fleet.arrays import Array
from edgewise.score import timeliness


class Prices(NamedTuple):
    """Prices of M resources in N bins, with their integral over time."""

    price: Array  # float64 (M, N)
    before: Array  # float64 (M, N + 1): price of one unit from 0 to each bin's beginning


class Scratch(NamedTuple):
    """Work space for the costs of one request's transfers and conversion."""

    crossing: Array  # (transfers of a request, N + 1) by bin; the last column: 1 = is filled
    converting: Array  # (N,) by bin
    filling: Array  # (2, N + 1): prices, and link seconds, of a transfer's cheapest bins
    filled: Array  # int64 (N + 1,): those bins


class Plan(NamedTuple):
    """A plan and its value."""

    value: float
    candidate: int  # −1: none
    start: float
    end: float
    link_bin: int  # by whose end the transfer is finished; −1: there is none
    conversion_bin: int  # by whose end the conversion is finished; −1: there is none


@jit
def evaluate(episode: Relaxation, price: Array, slope: Array) -> float:
    """The bound B at `price` (resources, bins); writes a subgradient of it to `slope`."""
    total = 0.0
    prices = _with_integral(episode, price)
    for m in range(price.shape[0]):
        for j in range(price.shape[1]):
            slope[m, j] = 0.0
            if episode.free[m, j] == 0:
                slope[m, j] = episode.capacity[m, j]
                total += price[m, j] * episode.capacity[m, j]
    scratch = _scratch(episode)
    for r in range(episode.requests.size):
        plan = best_plan(episode, r, prices, scratch, 0.0, -1)
        if plan.candidate >= 0:
            total += plan.value
            _subtract(episode, r, plan, prices, scratch, slope)
    return total


@jit
def row_values(episode: Relaxation, price: Array, rows: int) -> Array:
    """The value of each request's best plan by row of its candidate table: (R, `rows`).

    The last row, shed, has the value 0; −inf: the row cannot score.
    """
    prices = _with_integral(episode, price)
    scratch = _scratch(episode)
    out = np.full((episode.requests.size, rows), -math.inf)
    out[:, rows - 1] = 0.0
    for r in range(episode.requests.size):
        request = episode.requests[r]
        for n in range(request.first_candidate, request.end_candidate):
            row = episode.candidates[n].row
            plan = best_plan(episode, r, prices, scratch, -math.inf, n)
            out[r, row] = max(out[r, row], plan.value)
    return out


@jit
def _with_integral(episode: Relaxation, price: Array) -> Prices:
    before = np.zeros((price.shape[0], price.shape[1] + 1))
    for m in range(price.shape[0]):
        for j in range(price.shape[1]):
            before[m, j + 1] = before[m, j] + price[m, j] * episode.score[1]
    return Prices(price, before)


@jit
def _scratch(episode: Relaxation) -> Scratch:
    most = 1
    for r in range(episode.requests.size):
        request = episode.requests[r]
        most = max(most, request.end_transfer - request.first_transfer)
    bins = episode.slow.shape[1]
    return Scratch(
        np.empty((most, bins + 1)),
        np.empty(bins),
        np.empty((2, bins + 1)),
        np.empty(bins + 1, np.int64),
    )


@jit_no_refcount(internal=True)
def _price_until(prices: Prices, width: float, m: int, t: float) -> float:
    """Price of one unit of resource `m` from 0 until `t`; after the last bin it is free."""
    j = int(t / width)
    bins = prices.price.shape[1]
    if j >= bins:
        last: float = prices.before[m, bins]
        return last
    price: float = prices.before[m, j] + prices.price[m, j] * (t - j * width)
    return price


@jit_no_refcount(internal=True)
def best_plan(
    episode: Relaxation, r: int, prices: Prices, scratch: Scratch, floor: float, only: int
) -> Plan:
    """The best plan of request `r` with a value above `floor`; of candidate `only`, or −1: of all.

    Without one, the value is `floor` and the candidate −1.
    """
    request = episode.requests[r]
    width = episode.score[1]
    bins = episode.slow.shape[1]
    best = Plan(floor, -1, 0.0, 0.0, -1, -1)
    for w in range(request.end_transfer - request.first_transfer):
        scratch.crossing[w, bins] = 0.0  # not filled yet
    is_converting_filled = False
    for n in range(request.first_candidate, request.end_candidate):
        if only >= 0 and n != only:
            continue
        candidate = episode.candidates[n]
        if candidate.best_utility <= best.value:
            break  # so are those of all that follow
        w = candidate.transfer - request.first_transfer
        convert = False
        if candidate.transfer >= 0:
            convert = episode.transfers[candidate.transfer].converted != 0
            if scratch.crossing[w, bins] == 0.0:
                _fill_crossing(episode, candidate.transfer, request.last_bin, prices, scratch, w)
                scratch.crossing[w, bins] = 1.0
            if convert and not is_converting_filled:
                is_converting_filled = True
                _fill_converting(episode, r, prices, scratch.converting)
        j = int(candidate.start / width)
        a: float = candidate.start
        while j <= request.last_bin:
            latency = a + candidate.least_work + candidate.return_delay - request.time - TIME_SLACK
            most = candidate.utility * timeliness(latency / request.deadline, episode.score[0])
            if most <= best.value or most <= 0.0:
                break
            fixed = 0.0
            link_bin = -1
            conversion_bin = -1
            if candidate.transfer >= 0:
                crossed = (j + 1) * width - candidate.lag
                link_bin = min(max(math.ceil(crossed / width) - 1, 0), bins - 1)
                fixed = scratch.crossing[w, link_bin]
                if convert:
                    least = episode.transfers[candidate.transfer].least_seconds
                    conversion_bin = math.ceil((crossed - least) / width) - 1
                    conversion_bin = min(max(conversion_bin, 0), bins - 1)
                    fixed += scratch.converting[conversion_bin]
            if most - fixed > best.value:
                value, start, end = _best_start(episode, r, n, j, a, prices, fixed, best.value)
                if value > best.value:
                    best = Plan(value, n, start, end, link_bin, conversion_bin)
            j += 1
            a = j * width
    return best


@jit_no_refcount(inline=True, internal=True)
def _best_start(
    episode: Relaxation,
    r: int,
    n: int,
    j: int,
    a: float,
    prices: Prices,
    fixed: float,
    floor: float,
) -> tuple[float, float, float]:
    """The best start of candidate `n` within bin `j`, no earlier than `a`: (value, start, end).

    `fixed` is the price of transfer and conversion. Without a value above `floor`, that is the
    value. Utility and price are piecewise linear, so only their knots are tried.
    """
    candidate, request = episode.candidates[n], episode.requests[r]
    grace, width = episode.score[0], episode.score[1]
    s = candidate.server
    b = (j + 1) * width
    time = candidate.work * episode.slow[s, j]
    due = request.time + request.deadline - candidate.return_delay
    best = floor
    best_start = 0.0
    best_end = 0.0
    for knot in range(4):
        start = a
        if knot == 1:
            start = b
        elif knot == 2:
            start = math.floor((b + time) / width) * width - time
        elif knot == 3:
            start = due + 0.5 * TIME_SLACK - time
        if start < a or start > b:
            continue
        end = start + time
        latency = end + candidate.return_delay - request.time - TIME_SLACK
        utility = candidate.utility * timeliness(latency / request.deadline, grace)
        price = _price_until(prices, width, s, end) - _price_until(prices, width, s, start)
        value = utility - candidate.share * price - fixed
        if value > best:
            best = value
            best_start = start
            best_end = end
    return best, best_start, best_end


@jit_no_refcount(internal=True)
def _fill_crossing(
    episode: Relaxation, transfer: int, last: int, prices: Prices, scratch: Scratch, w: int
) -> int:
    """Fill row `w` of `crossing` by bin: the least price of a transfer finished by its end.

    Afterwards `filling` and `filled` hold the cheapest bins for a transfer that is finished by the
    end of bin `last` + 1. Returns how many they are.
    """
    entry = episode.transfers[transfer]
    filling, filled, out = scratch.filling, scratch.filled, scratch.crossing[w]
    m = entry.resource
    left = entry.amount
    cost = 0.0
    n = 0
    bins = prices.price.shape[1]
    out[: min(entry.first_bin, bins)] = math.inf
    for j in range(entry.first_bin, min(last + 2, bins)):
        price = prices.price[m, j]
        room = entry.first_capacity if j == entry.first_bin else episode.capacity[m, j]
        if episode.free[m, j] != 0:
            room = entry.amount
        if room > 0.0 and (left > 0.0 or price < filling[0, n - 1]):
            at = n
            while at > 0 and filling[0, at - 1] > price:
                filling[0, at] = filling[0, at - 1]
                filling[1, at] = filling[1, at - 1]
                filled[at] = filled[at - 1]
                at -= 1
            room = min(room, entry.amount)
            filling[0, at] = price
            filling[1, at] = room
            filled[at] = j
            n += 1
            cost += price * room
            left -= room
            while left < 0.0:  # more than needed: give the most expensive back
                spare = min(-left, filling[1, n - 1])
                cost -= filling[0, n - 1] * spare
                left += spare
                filling[1, n - 1] -= spare
                if filling[1, n - 1] > 0.0:
                    break
                n -= 1
        out[j] = max(0.0, cost) if j >= entry.arrival_bin else math.inf
    return n


@jit_no_refcount(internal=True)
def _conversion_span(episode: Relaxation, r: int, j: int, knot: int) -> tuple[float, float, int]:
    """A conversion for request `r` that starts within bin `j`, at one of three knots.

    Returns start, end, and the bin by whose end it is finished; −1: not within the bin.
    """
    request = episode.requests[r]
    s = request.ingress
    width = episode.score[1]
    a = request.ready if j == int(request.ready / width) else j * width
    b = (j + 1) * width
    time = episode.conversion[s] * episode.slow[s, j]
    start = a
    if knot == 1:
        start = b
    elif knot == 2:
        start = math.ceil((a + time) / width) * width - time
    if start < a or start > b:
        return 0.0, 0.0, -1
    end = start + time
    # The first of two bins at whose common edge it ends. Rounding down favours the request.
    return start, end, max(0, math.ceil(end / width - 1e-9) - 1)


@jit_no_refcount(internal=True)
def _fill_converting(episode: Relaxation, r: int, prices: Prices, out: Array) -> None:
    """Fill `out` by bin: the least price of a conversion finished by its end."""
    request = episode.requests[r]
    m = episode.conversion_on[request.ingress]
    width = episode.score[1]
    out[:] = math.inf
    for j in range(int(request.ready / width), request.last_bin + 1):
        for knot in range(3):
            start, end, k = _conversion_span(episode, r, j, knot)
            if 0 <= k < out.size:
                price = _price_until(prices, width, m, end) - _price_until(prices, width, m, start)
                out[k] = min(out[k], price)
    for j in range(1, out.size):
        out[j] = min(out[j], out[j - 1])


@jit_no_refcount(internal=True)
def _subtract(
    episode: Relaxation, r: int, plan: Plan, prices: Prices, scratch: Scratch, slope: Array
) -> None:
    """Subtract from `slope` the capacity that a plan of request `r` takes."""
    request, candidate = episode.requests[r], episode.candidates[plan.candidate]
    width = episode.score[1]
    _subtract_span(slope, candidate.server, plan.start, plan.end, width, candidate.share)
    if candidate.transfer < 0:
        return
    m = episode.transfers[candidate.transfer].resource
    w = candidate.transfer - request.first_transfer
    entries = _fill_crossing(episode, candidate.transfer, plan.link_bin - 1, prices, scratch, w)
    for e in range(entries):
        slope[m, scratch.filled[e]] -= scratch.filling[1, e]
    if plan.conversion_bin < 0:
        return
    # Find the conversion again whose price `_fill_converting` found to be the least.
    m = episode.conversion_on[request.ingress]
    best = math.inf
    begin = 0.0
    finish = 0.0
    for j in range(int(request.ready / width), plan.conversion_bin + 1):
        for knot in range(3):
            start, end, k = _conversion_span(episode, r, j, knot)
            if k < 0 or k > plan.conversion_bin:
                continue
            price = _price_until(prices, width, m, end) - _price_until(prices, width, m, start)
            if price < best:
                best = price
                begin = start
                finish = end
    if best < math.inf:
        _subtract_span(slope, m, begin, finish, width, 1.0)


@jit_no_refcount(internal=True)
def _subtract_span(
    slope: Array, m: int, begin: float, end: float, width: float, share: float
) -> None:
    """Subtract `share` of one unit of resource `m` from `begin` to `end`."""
    for j in range(int(begin / width), min(int(end / width) + 1, slope.shape[1])):
        overlap = min(end, (j + 1) * width) - max(begin, j * width)
        if overlap > 0.0:
            slope[m, j] -= share * overlap
