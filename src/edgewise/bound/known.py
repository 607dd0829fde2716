"""What is known of an episode by someone who knows everything in advance.

From a simulation that stands at its beginning, arrays of which request could be served how: the
earliest moments at which its parts can happen, the work they take with their true noise, and the
true capacities of workers and links. Whatever is not exact is rounded towards optimism: earlier,
less, more capacity (`dual` says why that is what a bound needs).

Time is cut into *bins* of equal width. The *resources* of a fleet of S servers are numbered: s the
workers of server s, S + s its pre-processing core (if it has one of its own), S + l link l between
servers. Capacity is counted in worker seconds and in *link seconds*: bytes over the link's own mean
rate, so that prices of both are of one size.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from edgewise.bound.forced import blind, follow
from edgewise.bound.truth import (
    Links,
    alone_across,
    carried,
    carried_by_bin,
    gone,
    least_delay,
    least_lag,
    least_slowness,
    link_states,
    peak,
    up_seconds,
)
from edgewise.compile import inner, jit
from edgewise.domain import PayloadForm
from edgewise.fleet.arrays import Array, records
from edgewise.fleet.estimates import ready_time
from edgewise.score import expected_utility, worthless_after
from edgewise.sim import layout
from edgewise.sim.layout import Sim, World
from edgewise.sim.play import TooManyOpenRequests
from edgewise.sim.servers import noise

READY = int(PayloadForm.MODEL_READY)

BIN = 0.02
"""s. About a service time: prices that change faster than jobs pass gain little."""
SAME_TIME = 1e-7
"""s. What sums of floating-point times may be off by; taken off every latency."""
SAME_BYTES = 1e-3
"""bytes, taken off every transfer: the engine lets one go that has 1e-6 bytes left."""
SAME_SHARE = 1e-9
"""What sums of capacities may be off by, relative; added to every capacity."""

REQUEST = np.dtype(
    [
        ("time", "f8"),
        ("deadline", "f8"),  # s from time
        ("ready", "f8"),  # the photo is in and the command there
        ("ingress", "i8"),
        ("first", "i8"),  # of its candidates …
        ("end", "i8"),
        ("first_way", "i8"),  # … and ways
        ("end_way", "i8"),
        ("last_bin", "i8"),  # beyond it nothing scores
    ]
)

WAY = np.dtype(
    [
        ("resource", "i8"),  # link
        ("size", "f8"),  # link seconds
        ("first_bin", "i8"),  # in which the transfer can begin …
        ("first_capacity", "f8"),  # … and the link seconds from then to the bin's end
        ("crossed_bin", "i8"),  # in which it can be across if it has the link to itself
        ("least", "f8"),  # s that crossing takes at the link's highest rate
        ("prepared", "i8"),  # 1: the ingress makes it model-ready first
    ]
)
"""How a payload can travel: candidates that send the same bytes over the same link share one."""

CANDIDATE = np.dtype(
    [
        ("row", "i8"),  # of the candidate table
        ("server", "i8"),
        ("way", "i8"),  # −1: runs at its ingress
        ("worth", "f8"),  # utility of an answer in time
        ("work", "f8"),  # s of a worker, but for its server's slowness
        ("least", "f8"),  # the same when it is least slow
        ("share", "f8"),  # of the worker, where it runs in a batch
        ("lag", "f8"),  # s from the link being through until the input is there
        ("back", "f8"),  # s from the end of the work until the client has the answer
        ("start", "f8"),  # earliest
        ("top", "f8"),  # utility if nobody else were there
    ]
)


class Known(NamedTuple):
    """An episode as the bound sees it. R requests, S servers, L links, N bins."""

    requests: Array  # REQUEST (R,)
    ways: Array  # WAY
    candidates: Array  # CANDIDATE, those of a request by falling top
    capacity: Array  # float64 (S + L, N): worker or link seconds
    free: Array  # uint8 (S + L, N): 1 unlimited, its price is 0
    slow: Array  # float64 (S, N): least slowness in a bin
    prepare: Array  # float64 (S,): s of a conversion, but for slowness
    prepare_on: Array  # int64 (S,): the resource that converts
    score: Array  # float64 (2,): grace, width of a bin


def known(sim: Sim, width: float = BIN) -> Known:
    """All that the bound needs of `sim`, which must stand at its beginning and is left as it is.

    `width` of the bins in s. Raises ValueError for a simulation that has begun or keeps no
    results, and Crowded.
    """
    world = sim.world
    clock = world.clock[0]
    if clock["processed"] or clock["decisions"] or clock["next"]:
        raise ValueError("expected a simulation at its beginning")
    if not clock["store"]:
        raise ValueError("expected a simulation that keeps its results")
    servers = len(world.servers)
    spans = [worthless_after(s, clock["grace"]) for s in world.requests["deadline"].tolist()]
    expiry = world.requests["time"] + np.array(spans)
    bins = max(1, math.ceil(float(expiry.max(initial=0.0)) / width) + 1)
    edges = width * np.arange(bins + 1)

    links = link_states(world, sim.script)
    reference = np.ones(len(world.links))
    amounts = np.zeros((servers + len(world.links), bins))
    free = np.zeros_like(amounts, np.uint8)
    up = up_seconds(world, sim.script, edges)
    amounts[:servers] = up * world.servers["workers"][:, None]
    if clock["prepare_own"]:
        amounts[servers : 2 * servers] = up
    for link in range(servers, len(world.links)):
        across_bins = carried_by_bin(links, world.numbers, link, edges)
        bounded = np.isfinite(across_bins)
        free[servers + link] = ~bounded
        if across_bins[bounded].sum() > 0.0:
            reference[link] = across_bins[bounded].mean() / width
        amounts[servers + link] = np.where(bounded, across_bins, 0.0) / reference[link]
    amounts *= 1.0 + SAME_SHARE

    slow = least_slowness(world, edges)
    uploaded, commanded, there = _inputs(sim)
    batches = (
        world.services["curve_count"] if clock["batching"] else np.ones(len(world.services), int)
    )
    converts = sim.beliefs.servers["prepare_on"][0].copy()
    peaks = np.array([peak(world, links, link) for link in range(len(world.links))])
    requests = records(len(world.requests), REQUEST)
    ways = np.zeros(len(requests) * (servers + len(world.services)), WAY)
    candidates = records(len(requests) * 2 * int(batches.sum()), CANDIDATE)
    way_count, count = _fill(
        world, links, reference, peaks, slow, uploaded, commanded, there, converts,
        gone(world, sim.script), batches.astype(np.int64), width,
        requests, ways, candidates,
    )  # fmt: skip
    own = servers if clock["prepare_own"] else 0
    return Known(
        requests=requests,
        ways=ways[:way_count].copy(),
        candidates=candidates[:count].copy(),
        capacity=amounts,
        free=free,
        slow=slow,
        prepare=world.servers["prepare_seconds"].copy(),
        prepare_on=np.arange(servers) + own,
        score=np.array([clock["grace"], width]),
    )


# -- what no decision changes --------------------------------------------------------------------


def _inputs(sim: Sim) -> tuple[Array, Array, Array]:
    """When each photo is in and when each command is there, NaN where that cannot be seen; and
    whether the request counts at all.

    Uploads share nothing with transfers and go on whatever is decided, so a play of the engine in
    which every request waits for its photo tells when they end.
    """
    servers = sim.world.servers
    first = np.where(servers["end_service"] > servers["first_service"], servers["first_service"], 0)
    rows = 2 * first[sim.world.requests["ingress"]]
    play = blind(sim, results=True)
    follow(play, rows, -1, np.empty_like(rows))
    if play.world.clock["overflow"][0]:
        raise TooManyOpenRequests(
            "more requests are open at a time than the simulation has slots for"
        )
    out = play.world.results
    there = out["reason"] != layout.REASON_INGRESS_DOWN
    there |= out["row"] >= 0  # its ingress died later: until then it may be served
    return out["uploaded"].copy(), out["decided"].copy(), there


@inner
def _at_least(world: World, links: Links, uploaded: Array, commanded: Array) -> None:
    """Where an upload or a command was not seen, take the least conceivable time."""
    for r in range(world.requests.size):
        request = world.requests[r]
        link = request.ingress
        if uploaded[r] != uploaded[r]:
            done = alone_across(
                links, world.numbers, link, request.time, request.payload - SAME_BYTES
            )
            uploaded[r] = done + least_delay(links, link)
        if commanded[r] != commanded[r]:
            commanded[r] = request.time + least_delay(links, link) + world.clock[0].control_delay


@jit
def _noise_floors(world: World, batches: Array, grace: float) -> Array:
    """Of each request and service, the least luck of any request that may lead its batch."""
    floors = np.ones((world.requests.size, world.services.size))
    for k in range(world.services.size):
        if batches[k] < 2:
            continue
        for r in range(world.requests.size):
            mine = world.requests[r]
            least = noise(world, r, k)
            for q in range(world.requests.size):
                other = world.requests[q]
                if other.time < mine.time + worthless_after(mine.deadline, grace) and (
                    mine.time < other.time + worthless_after(other.deadline, grace)
                ):
                    least = min(least, noise(world, q, k))
            floors[r, k] = least
    return floors


# -- candidates ----------------------------------------------------------------------------------


@inner
def _batch_time(world: World, k: int, form: int, count: int) -> float:
    """s that a batch of `count` takes at least, with a request of `form` in it and no noise."""
    service = world.services[k]
    curve = world.numbers[service.curve_at + count - 1]
    others = (count - 1.0) / count if form != READY else 1.0
    if count == 1 and form != READY:
        others = 0.0
    time: float = ready_time(curve, service.ready_saving * others)
    return time


@inner
def _way(
    world: World, links: Links, reference: Array, peaks: Array, width: float, link: int,
    size: float, start: float, prepared: int, way: Any,
) -> float:  # fmt: skip
    """Fill `way`; returns when the transfer is across if it has the link to itself."""
    size = max(0.0, size - SAME_BYTES)
    crossed = alone_across(links, world.numbers, link, start, size)
    j = int(start / width)
    way.resource = world.servers.size + link
    way.size = size / reference[link]
    way.first_bin = j
    left = carried(links, world.numbers, link, start, (j + 1) * width)
    way.first_capacity = left / reference[link] * (1.0 + SAME_SHARE)
    way.crossed_bin = int(crossed / width) if crossed < 1e12 else 1 << 40
    way.least = size / peaks[link] if peaks[link] > 0.0 else 0.0
    way.prepared = prepared
    return crossed


@jit
def _fill(
    world: World, links: Links, reference: Array, peaks: Array, slow: Array, uploaded: Array,
    commanded: Array, there: Array, converts: Array, gone: Array, batches: Array,
    width: float, requests: Array, ways: Array, candidates: Array,
) -> tuple[int, int]:  # fmt: skip
    """Fill requests, ways and candidates; returns how many ways and candidates there are."""
    clock = world.clock[0]
    servers = world.servers.size
    bins = slow.shape[1]
    _at_least(world, links, uploaded, commanded)
    floors = _noise_floors(world, batches, clock.grace)
    least_slow = np.ones(servers)
    for s in range(servers):
        least_slow[s] = slow[s].min()
    crossed = np.zeros(ways.size)
    way_count = 0
    count = 0
    for r in range(world.requests.size):
        given = world.requests[r]
        out = requests[r]
        a = given.ingress
        out.time = given.time
        out.deadline = given.deadline
        out.ready = max(uploaded[r], commanded[r])
        out.ingress = a
        out.first = count
        out.end = count
        out.first_way = way_count
        out.end_way = way_count
        expiry = given.time + worthless_after(given.deadline, clock.grace)
        out.last_bin = min(bins - 1, int(min(expiry, gone[r]) / width))
        if not there[r] or not out.ready < expiry:
            continue
        made = out.ready + world.servers[a].prepare_seconds * least_slow[a]
        for k in range(world.services.size):
            service = world.services[k]
            s = service.server
            remote = s != a
            for form in range(2):
                if form == READY and (not remote or converts[a] <= 0.0):
                    continue
                accuracy = service.ready_accuracy if form == READY else service.accuracy
                start = out.ready
                behind = 0.0
                back = least_delay(links, a)
                which = -1
                if remote:
                    link = world.path[a, s]
                    size = service.ready_bytes if form == READY else given.payload
                    for w in range(out.first_way, way_count):
                        same = ways[w].resource == servers + link and ways[w].prepared == form
                        scaled = max(0.0, size - SAME_BYTES) / reference[link]
                        if same and (form != READY or ways[w].size == scaled):
                            which = w
                    if which < 0:
                        which = way_count
                        begin = made if form == READY else commanded[r]
                        crossed[which] = _way(
                            world,
                            links,
                            reference,
                            peaks,
                            width,
                            link,
                            size,
                            begin,
                            form,
                            ways[which],
                        )
                        way_count += 1
                    behind = least_lag(links, clock.seed, r, link, size)
                    start = max(crossed[which], uploaded[r]) + behind
                    back += least_delay(links, world.path[s, a])
                if not start <= gone[r]:
                    continue
                for b in range(1, batches[k] + 1):
                    work = _batch_time(world, k, form, b)
                    work *= noise(world, r, k) if b == 1 else floors[r, k]
                    fastest = work * least_slow[s]
                    latency = start + fastest + back - given.time - SAME_TIME
                    top = expected_utility(
                        accuracy, given.accuracy, latency, given.deadline, clock.grace,
                        clock.accuracy_weight,
                    )  # fmt: skip
                    if not top > 0.0:
                        continue
                    entry = candidates[count]
                    entry.row = 2 * k + form
                    entry.server = s
                    entry.way = which
                    entry.worth = expected_utility(
                        accuracy, given.accuracy, 0.0, given.deadline, clock.grace,
                        clock.accuracy_weight,
                    )  # fmt: skip
                    entry.work = work
                    entry.least = fastest
                    entry.share = 1.0 / b
                    entry.lag = behind
                    entry.back = back
                    entry.start = start
                    entry.top = top
                    count += 1
        out.end = count
        out.end_way = way_count
        mine = candidates[out.first : count].copy()
        tops = np.empty(mine.size)
        for n in range(mine.size):
            tops[n] = -mine[n].top
        order = np.argsort(tops, kind="mergesort")
        for n in range(mine.size):
            candidates[out.first + n] = mine[order[n]]
    return way_count, count
