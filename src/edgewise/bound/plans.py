"""The inner half of the bound: what the best plan of a request is worth at given prices. Compiled.

A *plan* is a candidate (service, form, batch) with a moment to start and with moments by which
transfer and conversion are over. `dual` says why the best one bounds what the request can get.
"""

from __future__ import annotations

import math

import numpy as np

from edgewise.bound.known import SAME_TIME, Known
from edgewise.compile import inner, jit
from edgewise.fleet.arrays import Array
from edgewise.score import timeliness


@jit
def evaluate(episode: Known, prices: Array, slope: Array) -> float:
    """B(`prices`), and a subgradient of it into `slope` (of the shape of `prices`)."""
    total = 0.0
    bins = prices.shape[1]
    width = episode.score[1]
    paid = np.zeros((prices.shape[0], bins + 1))  # price of all before a bin's beginning
    for m in range(prices.shape[0]):
        for j in range(bins):
            paid[m, j + 1] = paid[m, j] + prices[m, j] * width
            slope[m, j] = 0.0
            if episode.free[m, j] == 0:
                slope[m, j] = episode.capacity[m, j]
                total += prices[m, j] * episode.capacity[m, j]
    scratch = _scratch(episode)
    for r in range(episode.requests.size):
        value, n, start, end, j_link, j_made = best_plan(episode, r, prices, paid, scratch, 0.0, -1)
        if n >= 0:
            total += value
            _take(episode, r, n, start, end, j_link, j_made, prices, paid, scratch, slope)
    return total


@jit
def row_values(episode: Known, prices: Array, rows: int) -> Array:
    """v of the best plan of each request by each row of its candidate table (R, `rows`); the last
    row, shed, is worth 0; −inf: cannot score."""
    bins = prices.shape[1]
    paid = np.zeros((prices.shape[0], bins + 1))
    for m in range(prices.shape[0]):
        for j in range(bins):
            paid[m, j + 1] = paid[m, j] + prices[m, j] * episode.score[1]
    scratch = _scratch(episode)
    out = np.full((episode.requests.size, rows), -math.inf)
    out[:, rows - 1] = 0.0
    for r in range(episode.requests.size):
        request = episode.requests[r]
        for n in range(request.first, request.end):
            row = episode.candidates[n].row
            value, _, _, _, _, _ = best_plan(episode, r, prices, paid, scratch, -math.inf, n)
            out[r, row] = max(out[r, row], value)
    return out


@jit
def _scratch(episode: Known) -> tuple[Array, Array, Array, Array]:
    """Room for the costs of a request's ways and of its conversion, by bin, and a filling."""
    most = 1
    for r in range(episode.requests.size):
        request = episode.requests[r]
        most = max(most, request.end_way - request.first_way)
    bins = episode.slow.shape[1]
    room = np.empty((most, bins + 1))  # the last column tells whether the row is filled
    return room, np.empty(bins), np.empty((2, bins + 1)), np.empty(bins + 1, np.int64)


@inner
def _until(paid: Array, prices: Array, width: float, m: int, t: float) -> float:
    """Price of one unit of resource `m` from 0 until `t`; beyond the last bin it is free."""
    j = int(t / width)
    if j >= prices.shape[1]:
        last: float = paid[m, prices.shape[1]]
        return last
    price: float = paid[m, j] + prices[m, j] * (t - j * width)
    return price


@inner
def best_plan(
    episode: Known, r: int, prices: Array, paid: Array,
    scratch: tuple[Array, Array, Array, Array], floor: float, only: int,
) -> tuple[float, int, float, float, int, int]:  # fmt: skip
    """The best plan of request `r` that is worth more than `floor`.

    Returns its value, its candidate (−1: none), when it starts and ends, and the bins by whose ends
    transfer and conversion are over. `only` looks at one candidate alone, −1 at all.
    """
    crossing, made, filling, filled = scratch
    request = episode.requests[r]
    grace = episode.score[0]
    width = episode.score[1]
    bins = prices.shape[1]
    best = floor
    best_n = -1
    best_start = 0.0
    best_end = 0.0
    best_link = -1
    best_made = -1
    for w in range(request.end_way - request.first_way):
        crossing[w, bins] = 0.0  # not computed yet
    is_made = False
    for n in range(request.first, request.end):
        if only >= 0 and n != only:
            continue
        plan = episode.candidates[n]
        if plan.top <= best:
            break  # so are all that follow
        s = plan.server
        way = plan.way
        w = way - request.first_way
        convert = False
        if way >= 0:
            convert = episode.ways[way].prepared != 0
            if crossing[w, bins] == 0.0:
                _cross(episode, way, request.last_bin, prices, filling, filled, crossing[w])
                crossing[w, bins] = 1.0
            if convert and not is_made:
                is_made = True
                _make(episode, r, prices, paid, made)
        due = request.time + request.deadline - plan.back
        j = int(plan.start / width)
        a: float = plan.start
        while j <= request.last_bin:
            b = (j + 1) * width
            most = plan.worth * timeliness(
                (a + plan.least + plan.back - request.time - SAME_TIME) / request.deadline, grace
            )
            if most <= best or most <= 0.0:
                break
            time = plan.work * episode.slow[s, j]
            fixed = 0.0
            j_link = -1
            j_made = -1
            if way >= 0:
                crossed = b - plan.lag
                j_link = min(max(math.ceil(crossed / width) - 1, 0), bins - 1)
                fixed = crossing[w, j_link]
                if convert:
                    j_made = math.ceil((crossed - episode.ways[way].least) / width) - 1
                    j_made = min(max(j_made, 0), bins - 1)
                    fixed += made[j_made]
            if most - fixed > best:
                for knot in range(4):
                    x = a
                    if knot == 1:
                        x = b
                    elif knot == 2:
                        x = math.floor((b + time) / width) * width - time
                    elif knot == 3:
                        x = due + 0.5 * SAME_TIME - time
                    if x < a or x > b:
                        continue
                    end = x + time
                    worth = plan.worth * timeliness(
                        (end + plan.back - request.time - SAME_TIME) / request.deadline, grace
                    )
                    price = _until(paid, prices, width, s, end) - _until(paid, prices, width, s, x)
                    value = worth - plan.share * price - fixed
                    if value > best:
                        best = value
                        best_n = n
                        best_start = x
                        best_end = end
                        best_link = j_link
                        best_made = j_made
            j += 1
            a = b
    return best, best_n, best_start, best_end, best_link, best_made


@inner
def _cross(
    episode: Known, way: int, last: int, prices: Array, filling: Array, filled: Array, out: Array
) -> int:
    """Into `out`, by bin: the least price of a transfer that is over by the end of it.

    What `filling` and `filled` then hold is the cheapest filling by the end of bin `last` + 1:
    prices, link seconds, and the bins they are in. Returns how many entries it has.
    """
    entry = episode.ways[way]
    m = entry.resource
    left = entry.size
    cost = 0.0
    n = 0
    bins = prices.shape[1]
    out[: min(entry.first_bin, bins)] = math.inf
    for j in range(entry.first_bin, min(last + 2, bins)):
        price = prices[m, j]
        room = entry.first_capacity if j == entry.first_bin else episode.capacity[m, j]
        if episode.free[m, j] != 0:
            room = entry.size
        if room > 0.0 and (left > 0.0 or price < filling[0, n - 1]):
            at = n
            while at > 0 and filling[0, at - 1] > price:
                filling[0, at] = filling[0, at - 1]
                filling[1, at] = filling[1, at - 1]
                filled[at] = filled[at - 1]
                at -= 1
            room = min(room, entry.size)
            filling[0, at] = price
            filling[1, at] = room
            filled[at] = j
            n += 1
            cost += price * room
            left -= room
            while left < 0.0:  # too much: give the dearest back
                spare = min(-left, filling[1, n - 1])
                cost -= filling[0, n - 1] * spare
                left += spare
                filling[1, n - 1] -= spare
                if filling[1, n - 1] > 0.0:
                    break
                n -= 1
        out[j] = max(0.0, cost) if j >= entry.crossed_bin else math.inf
    return n


@inner
def _make(episode: Known, r: int, prices: Array, paid: Array, out: Array) -> None:
    """Into `out`, by bin: the least price of a conversion that is over by the end of it."""
    request = episode.requests[r]
    s = request.ingress
    m = episode.prepare_on[s]
    width = episode.score[1]
    out[:] = math.inf
    last = request.last_bin
    a = request.ready
    for j in range(int(a / width), last + 1):
        b = (j + 1) * width
        time = episode.prepare[s] * episode.slow[s, j]
        edge = math.ceil((a + time) / width) * width
        for knot in range(3):
            x = a
            if knot == 1:
                x = b
            elif knot == 2:
                x = edge - time
            if x < a or x > b:
                continue
            end = x + time
            # The first of two bins at whose common edge it ends. Rounding down is optimism.
            k = max(0, math.ceil(end / width - 1e-9) - 1)
            if k < out.size:
                price = _until(paid, prices, width, m, end) - _until(paid, prices, width, m, x)
                out[k] = min(out[k], price)
        a = b
    for j in range(1, out.size):
        out[j] = min(out[j], out[j - 1])


@inner
def _take(
    episode: Known, r: int, n: int, start: float, end: float, j_link: int, j_made: int,
    prices: Array, paid: Array, scratch: tuple[Array, Array, Array, Array], slope: Array,
) -> None:  # fmt: skip
    """Subtract from `slope` what a plan of request `r` takes."""
    plan = episode.candidates[n]
    width = episode.score[1]
    _busy(slope, plan.server, start, end, width, plan.share)
    if plan.way < 0:
        return
    crossing, _, filling, filled = scratch
    m = episode.ways[plan.way].resource
    w = plan.way - episode.requests[r].first_way
    entries = _cross(episode, plan.way, j_link - 1, prices, filling, filled, crossing[w])
    for e in range(entries):
        slope[m, filled[e]] -= filling[1, e]
    if j_made < 0:
        return
    # The conversion that `_make` found cheapest, found again.
    s = episode.requests[r].ingress
    m = episode.prepare_on[s]
    best = math.inf
    begin = 0.0
    a = episode.requests[r].ready
    for j in range(int(a / width), j_made + 1):
        b = (j + 1) * width
        time = episode.prepare[s] * episode.slow[s, j]
        edge = math.ceil((a + time) / width) * width
        for knot in range(3):
            x = a
            if knot == 1:
                x = b
            elif knot == 2:
                x = edge - time
            if x < a or x > b or max(0, math.ceil((x + time) / width - 1e-9) - 1) > j_made:
                continue
            price = _until(paid, prices, width, m, x + time) - _until(paid, prices, width, m, x)
            if price < best:
                best = price
                begin = x
                end = x + time
        a = b
    if best < math.inf:
        _busy(slope, m, begin, end, width, 1.0)


@inner
def _busy(slope: Array, m: int, begin: float, end: float, width: float, share: float) -> None:
    """Subtract `share` of one unit of resource `m` from `begin` to `end`."""
    for j in range(int(begin / width), min(int(end / width) + 1, slope.shape[1])):
        overlap = min(end, (j + 1) * width) - max(begin, j * width)
        if overlap > 0.0:
            slope[m, j] -= share * overlap
