"""The upper bound: no policy gets more out of an episode, not even one that knows all of it.

Claim
-----
Give every resource (`relaxation`: each server's workers, each core for conversions, each link
between servers) a price p(t) ≥ 0 per unit of capacity, constant within a bin. Then for every
policy, the sum of the expected utilities that the engine pays in this episode is at most

    B(p)  =  Σ_resources ∫ p(t) · capacity(t) dt  +  Σ_requests max(0, max_plans v(plan; p))

where a *plan* to serve a request is a service, a payload form, a batch size and a start, and v is
its utility minus the cheapest price of the capacity it takes. `upper_bound` looks for prices that
make B small. The claim holds for any prices, so its truth does not depend on how well that works.

Proof
-----
Fix a policy, look at what the engine did, and call a request *paid* if its utility is above 0.
For each paid request look at the attempt that served it, by service k on server s with form f.

1. *Capacity taken.* It ran on one worker of s from its start x without interruption for a time T:
   there is no preemption and no migration (`sim.servers`). If it was converted, a worker (or the
   core) of its ingress was busy with that alone for T' seconds. If it was moved, the link carried
   its z bytes.
2. *Weak duality.* At no time are more workers of s busy than there are, conversions included, and
   none while s is down; a link never carries more than its capacity. So everything that was taken,
   weighted with p, is at most Σ ∫ p · capacity: the first term of B. Failed attempts, requests that
   came to nothing, and batch members that were not paid took capacity too and are given away.
   Hence: utility = Σ_paid (utility − price of its capacity) + price of all capacity taken
                  ≤ Σ_paid (utility − price of its capacity) + Σ ∫ p · capacity.
3. *Relaxation.* It remains to show that for a paid request the bracket is at most max v.
   `relaxation` and `plans` let a request choose any plan that respects the following. What the
   engine did is such a plan or is dominated by one; each step only adds plans or makes them
   cheaper:
   a. Photo and command arrive when they truly do. Uploads share no resource with anything that a
      policy decides, so those times are the same under every policy. Where the engine does not
      tell, the earliest conceivable time is taken.
   b. A transfer takes z bytes out of what the link can carry between its beginning and its end, at
      any rate up to the whole link's. Equal sharing and FIFO give it no more than that. The
      original cannot begin before the command, the model-ready form not before photo, command and
      a conversion. The cheapest z bytes in that span cost no more than those it really took.
   c. After the link, and not before the upload is finished, the input arrives with the link's true
      delay, jitter and stall (their noise depends on request, link and size alone), the least of
      them where the scenario changes the link.
   d. It starts at any x from then on: the order of the queue (EDF or FIFO), other requests waiting,
      queue limits, and the rule that no worker idles while work waits are all ignored.
   e. Alone it takes T = curve × its own noise × the slowness in force at x; within a bin in which
      the slowness changes, the least. In a batch of b it takes no less than T_b, where every other
      payload is taken for model-ready and the leader's noise for the least of all that it can meet,
      and is charged a b-th of the worker. Its batch mates are charged the rest, together never more
      than the worker's time, for p ≥ 0 and T_b ≤ T.
   f. The answer is with the client `return_delay` seconds later, the least delays ever in force.
      The score falls with latency, so an earlier end never pays less.
   g. Conversion and transfer are priced apart: the conversion takes the cheapest T' seconds that
      end in time for the transfer at the link's highest rate.
   h. The time by which a transfer or a conversion must end is rounded up to the end of its bin.
   i. If its ingress stops after it was sent, it begins in a bin in which that has not happened yet:
      the engine counts everything that is still open then as lost.
4. *The maximum is exact.* Given the bin in which x lies and the price of transfer and conversion
   (constant there by h), utility and price are piecewise linear in x between the knots that
   `plans.best_plan` visits: the bin's ends, x + T at an edge, the answer at the deadline (or 5e-8 s
   after it, which is the side on which step 5 is generous). Where the utility bends up, at the end
   of its grace, it is the larger of two such functions, so its maximum is at a knot too.
5. *Rounding.* `relaxation` subtracts 1e-7 s from every latency and 1e-3 bytes from every transfer,
   and adds 1e-9 to capacities; `Bound.utility` adds 1e-9 per request for the sums here.  ∎

How tight it is
---------------
By Lagrangian duality the best prices give the optimum of the relaxed problem with plans mixed at
will. So what separates the bound from the truth is b, d, g, h, the mixing and an imperfect descent.
Links weigh most: here they may wait and then carry one transfer at a time, the shortest first; in
the engine every transfer begins at once and they share equally, so that two together both take
twice as long. On two heavy worlds the bound was 0.060 above the plans found; 0.050 with FIFO links,
0.025 with links a thousand times as fast. Bins half as wide tighten it by less than 0.001.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from edgewise.bound.plans import evaluate
from edgewise.bound.relaxation import Relaxation
from edgewise.fleet.arrays import Array

STEPS = 300
"""Steps of descent. The bound is then within 0.0002 of that after 1,500 (heavy and overload
worlds)."""
RATE = 3.0
"""First step, in mean prices: some prices end at twenty times the mean."""
RATE_END = 0.003
"""Last step; it falls geometrically in between."""
BETA_1, BETA_2 = 0.8, 0.98
"""Decay rates of Adam (Kingma & Ba 2015). The memory is shorter than usual, because there are few
steps and no sampling noise."""


class Bound(Struct, frozen=True, kw_only=True):
    """An upper bound and the prices that prove it."""

    utility: float
    """Mean expected utility per request that no policy exceeds."""
    prices: Array
    """float64 (resources, bins), utility per worker or link second."""
    steps: int


def upper_bound(
    episode: Relaxation, steps: int = STEPS, progress: Callable[[int, float], None] | None = None
) -> Bound:
    """The least bound found in `steps` steps of descent; deterministic.

    `progress` is called after each step with the number of steps and the best bound so far.
    """
    count = len(episode.requests)
    if not count:
        return Bound(utility=0.0, prices=np.zeros_like(episode.capacity), steps=0)
    prices, value = _first_prices(episode)
    best, best_prices = value, prices
    scale = max(float(prices.mean()), 1e-6)
    slope = np.empty_like(prices)
    mean, square = np.zeros_like(prices), np.zeros_like(prices)
    prices = prices.copy()
    # A bin's capacity is the natural scale of its slope.
    unit = float(episode.capacity.mean()) or 1.0
    for step in range(1, steps + 1):
        value = evaluate(episode, prices, slope)
        if value < best:
            best, best_prices = value, prices.copy()
        if progress is not None:
            progress(step, _per_request(best, count))
        slope /= unit
        mean += (1.0 - BETA_1) * (slope - mean)
        square += (1.0 - BETA_2) * (slope * slope - square)
        rate = RATE * scale * (RATE_END / RATE) ** (step / steps)
        move = mean / (1.0 - BETA_1**step)
        move /= np.sqrt(square / (1.0 - BETA_2**step)) + 1e-9
        prices -= rate * move
        np.maximum(prices, 0.0, out=prices)
        prices[episode.free != 0] = 0.0
    return Bound(utility=_per_request(best, count), prices=best_prices, steps=steps)


def _per_request(value: float, count: int) -> float:
    return float(value) / count + 1e-9


def _first_prices(episode: Relaxation) -> tuple[Array, float]:
    """The best of a few prices that are the same everywhere, and its bound."""
    requests = episode.requests
    best_utilities = sum(
        float(episode.candidates["best_utility"][first])
        for first, end in zip(requests["first_candidate"], requests["end_candidate"], strict=True)
        if end > first
    )
    unit = best_utilities / max(float(episode.capacity.sum()), 1e-9)
    slope = np.empty_like(episode.capacity)
    best, best_value = np.zeros_like(slope), evaluate(episode, np.zeros_like(slope), slope)
    for factor in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0):
        prices = np.where(episode.free != 0, 0.0, factor * unit)
        value = evaluate(episode, prices, slope)
        if value < best_value or not best.any():
            best, best_value = prices, min(value, best_value)
    return best, best_value
