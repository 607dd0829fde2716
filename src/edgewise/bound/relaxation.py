"""The relaxed episode: how every request could be served with full knowledge of the episode.

From a simulation at its beginning this module makes arrays of the ways in which each request could
be served: the earliest times at which its parts can happen, the work they take with their true
noise, and the true capacities of workers and links. Where a value is not exact it is rounded in
favour of the request: earlier, less work, more capacity (`dual` explains why a bound needs that).

Time is divided into *bins* of equal width. The *resources* of a fleet of S servers are numbered: s
for the workers of server s, S + s for its core for conversions (if it has one of its own), S + l
for link l between servers. Capacity is counted in worker seconds and in *link seconds*, which are
bytes over the link's own mean rate, so that prices of both have the same magnitude.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from edgewise.bound.plan_replay import blind_copy, replay
from edgewise.bound.timeline import (
    LinkStates,
    carried,
    carried_by_bin,
    crossing_time,
    ingress_stops,
    least_delay,
    least_lag,
    least_slowness,
    link_states,
    peak_rate,
    up_seconds,
)
from edgewise.compile import jit, jit_no_refcount
from edgewise.domain import PayloadForm
from edgewise.fleet.arrays import Array, records
from edgewise.fleet.estimates import ready_time
from edgewise.score import expected_utility
from edgewise.sim import layout
from edgewise.sim.layout import Sim, World
from edgewise.sim.play import TooManyOpenRequests
from edgewise.sim.servers import noise

READY = int(PayloadForm.MODEL_READY)

BIN = 0.02
"""[s] Width of a bin, about a service time: prices that change faster than jobs pass gain
little."""
TIME_SLACK = 1e-7
"""[s] Error of sums of floating-point times; subtracted from every latency."""
BYTES_SLACK = 1e-3
"""[bytes] Subtracted from every transfer: the engine lets one go with 1e-6 bytes left."""
CAPACITY_SLACK = 1e-9
"""Relative error of sums of capacities; added to every capacity."""

REQUEST = np.dtype(
    [
        ("time", "f8"),
        ("deadline", "f8"),  # s from time
        ("ready", "f8"),  # photo and command have arrived at the ingress
        ("ingress", "i8"),
        ("first_candidate", "i8"),
        ("end_candidate", "i8"),
        ("first_transfer", "i8"),
        ("end_transfer", "i8"),
        ("last_bin", "i8"),  # after it nothing scores
    ]
)

TRANSFER = np.dtype(
    [
        ("resource", "i8"),  # link
        ("amount", "f8"),  # link seconds
        ("first_bin", "i8"),  # in which the transfer can begin …
        ("first_capacity", "f8"),  # … and the link seconds from then to the bin's end
        ("arrival_bin", "i8"),  # in which it can arrive, with the link to itself
        ("least_seconds", "f8"),  # that it takes at the link's highest rate
        ("converted", "i8"),  # 1: the ingress makes it model-ready first
    ]
)
"""A transfer of a payload. Candidates that send the same bytes over the same link share one."""

CANDIDATE = np.dtype(
    [
        ("row", "i8"),  # of the candidate table
        ("server", "i8"),
        ("transfer", "i8"),  # −1: runs at its ingress
        ("utility", "f8"),  # of an answer in time
        ("work", "f8"),  # worker s, before its server's slowness
        ("least_work", "f8"),  # the same at the server's least slowness
        ("share", "f8"),  # of the worker, where it runs in a batch
        ("lag", "f8"),  # s from the end of the transfer on the link until the input is there
        ("return_delay", "f8"),  # s from the end of the work until the client has the answer
        ("start", "f8"),  # earliest
        ("best_utility", "f8"),  # if nobody else were there
    ]
)


class Relaxation(NamedTuple):
    """A relaxed episode of R requests, S servers, L links and N bins."""

    requests: Array  # REQUEST (R,)
    transfers: Array  # TRANSFER
    candidates: Array  # CANDIDATE, those of a request by falling best_utility
    capacity: Array  # float64 (S + L, N): worker or link seconds
    free: Array  # uint8 (S + L, N): 1 where capacity is unlimited, and the price 0
    slow: Array  # float64 (S, N): least slowness in a bin
    conversion: Array  # float64 (S,): s of a conversion, before slowness
    conversion_on: Array  # int64 (S,): the resource that converts
    score: Array  # float64 (2,): grace, width of a bin


class Inputs(NamedTuple):
    """Facts that no decision changes. K services; the other sizes as in `Relaxation`."""

    world: World
    links: LinkStates
    reference: Array  # float64 (L,): mean rates, bytes/s, that link seconds are counted by
    peaks: Array  # float64 (L,): highest rates, bytes/s
    slow: Array  # float64 (S, N)
    least_slow: Array  # float64 (S,)
    uploaded: Array  # float64 (R,): when the photo is at the ingress; NaN: not seen
    commanded: Array  # float64 (R,): when the command is there; NaN: not seen
    counts: Array  # bool (R,): whether the request may be served at all
    stops: Array  # float64 (R,): when the ingress stops; inf = never
    converts: Array  # float64 (S,): above 0 for servers that convert
    batches: Array  # int64 (K,): largest batch
    width: float  # s, of a bin


class Tables(NamedTuple):
    """The tables while they are being filled."""

    requests: Array
    transfers: Array
    arrivals: Array  # float64: when each transfer arrives if it has the link to itself
    candidates: Array
    used: Array  # int64 (2,): candidates and transfers so far


def relax(sim: Sim, width: float = BIN) -> Relaxation:
    """The relaxed episode of `sim`, which must be at its beginning and is not changed.

    `width` is that of the bins in s. Raises ValueError for a simulation that has begun or does not
    store results, and TooManyOpenRequests.
    """
    world = sim.world
    clock = world.clock[0]
    settings = world.settings[0]
    if clock["processed"] or clock["decisions"] or clock["next"]:
        raise ValueError("expected a simulation at its beginning")
    if not settings["store"]:
        raise ValueError("expected a simulation that stores its results")
    servers, services = len(world.servers), len(world.services)
    expiry = world.requests["time"] + world.requests["deadline"] * (1.0 + settings["grace"])
    bins = max(1, math.ceil(float(expiry.max(initial=0.0)) / width) + 1)
    edges = width * np.arange(bins + 1)
    links = link_states(world, sim.script)
    capacity, free, reference = _capacities(sim, links, edges)

    slow = least_slowness(world, edges)
    uploaded, commanded, counts = _arrivals(sim)
    batches = world.services["curve_count"] if settings["batching"] else np.ones(services, int)
    inputs = Inputs(
        world=world,
        links=links,
        reference=reference,
        peaks=np.array([peak_rate(world, links, link) for link in range(len(world.links))]),
        slow=slow,
        least_slow=slow.min(axis=1),
        uploaded=uploaded,
        commanded=commanded,
        counts=counts,
        stops=ingress_stops(world, sim.script),
        converts=sim.beliefs.servers["prepare_on"][0].copy(),
        batches=batches.astype(np.int64),
        width=width,
    )
    requests = len(world.requests)
    transfers = requests * (servers + services)
    tables = Tables(
        requests=records(requests, REQUEST),
        transfers=records(transfers, TRANSFER),
        arrivals=np.zeros(transfers),
        candidates=records(requests * 2 * int(batches.sum()), CANDIDATE),
        used=np.zeros(2, np.int64),
    )
    _fill(inputs, tables)
    candidate_count, transfer_count = tables.used.tolist()
    own = servers if settings["prepare_own"] else 0
    return Relaxation(
        requests=tables.requests,
        transfers=tables.transfers[:transfer_count].copy(),
        candidates=tables.candidates[:candidate_count].copy(),
        capacity=capacity,
        free=free,
        slow=slow,
        conversion=world.servers["prepare_seconds"].copy(),
        conversion_on=np.arange(servers) + own,
        score=np.array([settings["grace"], width]),
    )


# -- facts that no decision changes --------------------------------------------------------------


def _capacities(sim: Sim, links: LinkStates, edges: Array) -> tuple[Array, Array, Array]:
    """(capacity, free, the mean rates that link seconds are counted by)."""
    world, settings = sim.world, sim.world.settings[0]
    servers, bins, width = len(world.servers), len(edges) - 1, edges[1]
    reference = np.ones(len(world.links))
    amounts = np.zeros((servers + len(world.links), bins))
    free = np.zeros_like(amounts, np.uint8)
    up = up_seconds(world, sim.script, edges)
    amounts[:servers] = up * world.servers["workers"][:, None]
    if settings["prepare_own"]:
        amounts[servers : 2 * servers] = up
    for link in range(servers, len(world.links)):
        by_bin = carried_by_bin(links, world.numbers, link, edges)
        bounded = np.isfinite(by_bin)
        free[servers + link] = ~bounded
        if by_bin[bounded].sum() > 0.0:
            reference[link] = by_bin[bounded].mean() / width
        amounts[servers + link] = np.where(bounded, by_bin, 0.0) / reference[link]
    return amounts * (1.0 + CAPACITY_SLACK), free, reference


def _arrivals(sim: Sim) -> tuple[Array, Array, Array]:
    """When each photo and each command arrive at the ingress, NaN where that cannot be seen; and
    whether the request counts at all.

    Uploads share nothing with transfers and do not depend on decisions. So a play of the engine in
    which every request waits for its photo tells when they end.
    """
    servers = sim.world.servers
    first = np.where(servers["end_service"] > servers["first_service"], servers["first_service"], 0)
    rows = 2 * first[sim.world.requests["ingress"]]
    copy = blind_copy(sim, results=True)
    replay(copy, rows, -1, np.empty_like(rows))
    if copy.world.clock["overflow"][0]:
        raise TooManyOpenRequests(
            "more requests are open at a time than the simulation has slots for"
        )
    results = copy.world.results
    counts = results["reason"] != layout.REASON_INGRESS_DOWN
    counts |= results["row"] >= 0  # its ingress stopped later: until then it may be served
    return results["uploaded"].copy(), results["decided"].copy(), counts


@jit_no_refcount(internal=True)
def _assume_earliest(inputs: Inputs) -> None:
    """Where an upload or a command was not seen, take the earliest conceivable time."""
    world, links, uploaded, commanded = (
        inputs.world, inputs.links, inputs.uploaded, inputs.commanded,
    )  # fmt: skip
    for r in range(world.requests.size):
        request = world.requests[r]
        link = request.ingress
        if uploaded[r] != uploaded[r]:
            done = crossing_time(
                links, world.numbers, link, request.time, request.payload - BYTES_SLACK
            )
            uploaded[r] = done + least_delay(links, link)
        if commanded[r] != commanded[r]:
            commanded[r] = request.time + least_delay(links, link) + world.settings[0].control_delay


@jit
def _noise_floors(world: World, batches: Array) -> Array:
    """The least noise factor of any request that may lead a batch with request r: (R, K)."""
    grace = world.settings[0].grace
    floors = np.ones((world.requests.size, world.services.size))
    for k in range(world.services.size):
        if batches[k] < 2:
            continue
        for r in range(world.requests.size):
            mine = world.requests[r]
            least = noise(world, r, k)
            for q in range(world.requests.size):
                other = world.requests[q]
                if other.time < mine.time + mine.deadline * (1.0 + grace) and (
                    mine.time < other.time + other.deadline * (1.0 + grace)
                ):
                    least = min(least, noise(world, q, k))
            floors[r, k] = least
    return floors


# -- candidates ----------------------------------------------------------------------------------


@jit
def _fill(inputs: Inputs, tables: Tables) -> None:
    """Fill requests, transfers and candidates."""
    world, used = inputs.world, tables.used
    grace = world.settings[0].grace
    bins = inputs.slow.shape[1]
    _assume_earliest(inputs)
    floors = _noise_floors(world, inputs.batches)
    for r in range(world.requests.size):
        request = world.requests[r]
        out = tables.requests[r]
        out.time = request.time
        out.deadline = request.deadline
        out.ready = max(inputs.uploaded[r], inputs.commanded[r])
        out.ingress = request.ingress
        out.first_candidate = used[0]
        out.first_transfer = used[1]
        expiry = request.time + request.deadline * (1.0 + grace)
        out.last_bin = min(bins - 1, int(min(expiry, inputs.stops[r]) / inputs.width))
        if inputs.counts[r] and out.ready < expiry:
            for k in range(world.services.size):
                for form in range(2):
                    _add_candidates(inputs, tables, floors, r, k, form)
        out.end_candidate = used[0]
        out.end_transfer = used[1]
        mine = tables.candidates[out.first_candidate : used[0]].copy()
        falling = np.empty(mine.size)
        for n in range(mine.size):
            falling[n] = -mine[n].best_utility
        order = np.argsort(falling, kind="mergesort")
        for n in range(mine.size):
            tables.candidates[out.first_candidate + n] = mine[order[n]]


@jit_no_refcount(internal=True)
def _add_candidates(
    inputs: Inputs, tables: Tables, floors: Array, r: int, k: int, form: int
) -> None:
    """Add the candidates of request `r` with service `k` and `form`, one for each batch size."""
    world, settings = inputs.world, inputs.world.settings[0]
    request, service = world.requests[r], world.services[k]
    a, s = request.ingress, service.server
    if form == READY and (s == a or inputs.converts[a] <= 0.0):
        return
    accuracy = service.ready_accuracy if form == READY else service.accuracy
    start = tables.requests[r].ready
    lag = 0.0
    return_delay = least_delay(inputs.links, a)
    transfer = -1
    if s != a:
        size = service.ready_bytes if form == READY else request.payload
        link = world.path[a, s]
        transfer = _transfer(inputs, tables, r, link, size, form)
        lag = least_lag(inputs.links, settings.seed, r, link, size)
        start = max(tables.arrivals[transfer], inputs.uploaded[r]) + lag
        return_delay += least_delay(inputs.links, world.path[s, a])
    if not start <= inputs.stops[r]:
        return
    for b in range(1, inputs.batches[k] + 1):
        work = _batch_time(world, k, form, b)
        work *= noise(world, r, k) if b == 1 else floors[r, k]
        least_work = work * inputs.least_slow[s]
        latency = start + least_work + return_delay - request.time - TIME_SLACK
        best_utility = expected_utility(
            accuracy, request.accuracy, latency, request.deadline, settings.grace,
            settings.accuracy_weight,
        )  # fmt: skip
        if not best_utility > 0.0:
            continue
        entry = tables.candidates[tables.used[0]]
        tables.used[0] += 1
        entry.row = 2 * k + form
        entry.server = s
        entry.transfer = transfer
        entry.utility = expected_utility(
            accuracy,
            request.accuracy,
            0.0,
            request.deadline,
            settings.grace,
            settings.accuracy_weight,
        )
        entry.work = work
        entry.least_work = least_work
        entry.share = 1.0 / b
        entry.lag = lag
        entry.return_delay = return_delay
        entry.start = start
        entry.best_utility = best_utility


@jit_no_refcount(internal=True)
def _transfer(inputs: Inputs, tables: Tables, r: int, link: int, size: float, form: int) -> int:
    """The number of request `r`'s transfer of `size` bytes over `link`, added if there is none."""
    links, world, width = inputs.links, inputs.world, inputs.width
    reference, peak = inputs.reference[link], inputs.peaks[link]
    resource = world.servers.size + link
    size = max(0.0, size - BYTES_SLACK)
    same = -1
    for t in range(tables.requests[r].first_transfer, tables.used[1]):
        entry = tables.transfers[t]
        matches = entry.resource == resource and entry.converted == form
        if matches and (form != READY or entry.amount == size / reference):
            same = t
    if same >= 0:
        return same
    t = int(tables.used[1])
    tables.used[1] += 1
    start = inputs.commanded[r]
    if form == READY:
        a = world.requests[r].ingress
        start = tables.requests[r].ready + world.servers[a].prepare_seconds * inputs.least_slow[a]
    arrival = crossing_time(links, world.numbers, link, start, size)
    j = int(start / width)
    left = carried(links, world.numbers, link, start, (j + 1) * width)
    out = tables.transfers[t]
    out.resource = resource
    out.amount = size / reference
    out.first_bin = j
    out.first_capacity = left / reference * (1.0 + CAPACITY_SLACK)
    out.arrival_bin = int(arrival / width) if arrival < 1e12 else 1 << 40
    out.least_seconds = size / peak if peak > 0.0 else 0.0
    out.converted = form
    tables.arrivals[t] = arrival
    return t


@jit_no_refcount(internal=True)
def _batch_time(world: World, k: int, form: int, count: int) -> float:
    """Least s of a batch of `count` with a request of `form` in it, before noise."""
    service = world.services[k]
    curve = world.numbers[service.curve_at + count - 1]
    others = (count - 1.0) / count if form != READY else 1.0
    if count == 1 and form != READY:
        others = 0.0
    time: float = ready_time(curve, service.ready_saving * others)
    return time
