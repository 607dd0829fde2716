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

from edgewise.compiled import inner, jit
from edgewise.domain import Form
from edgewise.fleet.layout import Array
from edgewise.score import expected_utility
from edgewise.sim import engine, layout
from edgewise.sim.layout import CONSTANT, CURVE, UNLIMITED, Sim, World
from edgewise.sim.links import across, capacity, lag
from edgewise.sim.play import Crowded
from edgewise.sim.servers import LEAST_SHARE, noise

READY = int(Form.MODEL_READY)

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


class _Links(NamedTuple):
    """Each link's successive states: a change by the scenario begins a new one."""

    states: Array  # sim.layout.LINK
    since: Array  # float64
    first: Array  # int64 (L + 1,)


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
    expiry = world.requests["time"] + world.requests["deadline"] * (1.0 + clock["grace"])
    bins = max(1, math.ceil(float(expiry.max(initial=0.0)) / width) + 1)
    edges = width * np.arange(bins + 1)

    links = _link_states(world, sim.script)
    reference = np.ones(len(world.links))
    amounts = np.zeros((servers + len(world.links), bins))
    free = np.zeros_like(amounts, np.uint8)
    up = _up(world, sim.script, edges)
    amounts[:servers] = up * world.servers["workers"][:, None]
    if clock["prepare_own"]:
        amounts[servers : 2 * servers] = up
    for link in range(servers, len(world.links)):
        across_bins = _carried_by_bin(links, world.numbers, link, edges)
        bounded = np.isfinite(across_bins)
        free[servers + link] = ~bounded
        if across_bins[bounded].sum() > 0.0:
            reference[link] = across_bins[bounded].mean() / width
        amounts[servers + link] = np.where(bounded, across_bins, 0.0) / reference[link]
    amounts *= 1.0 + SAME_SHARE

    slow = _least_slowness(world, edges)
    ready, commanded, there = _inputs(sim, links)
    batches = (
        world.services["curve_count"] if clock["batching"] else np.ones(len(world.services), int)
    )
    converts = sim.beliefs.servers["prepare_on"][0].copy()
    floors = _noise_floors(world, batches, expiry)
    peaks = np.array([_peak(world, links, link) for link in range(len(world.links))])
    requests = np.zeros(len(world.requests), REQUEST)
    ways = np.zeros(len(requests) * (servers + len(world.services)), WAY)
    candidates = np.zeros(len(requests) * 2 * int(batches.sum()), CANDIDATE)
    way_count, count = _fill(
        world, links, reference, peaks, slow, ready, commanded, there, converts,
        batches.astype(np.int64), floors, width, requests, ways, candidates,
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


# -- the true world, over time -------------------------------------------------------------------


def _link_states(world: World, script: Array) -> _Links:
    states: list[list[tuple[float, np.void]]] = [[(-np.inf, link.copy())] for link in world.links]
    for line in script:
        if line["kind"] != layout.S_LINK_CHANGE:
            continue
        now = states[int(line["index"])][-1][1].copy()
        if line["rated"]:
            now["mode"], now["rate"] = line["mode"], line["rate"]
        for key in ("delay", "jitter", "loss"):
            if not np.isnan(line[key]):
                now[key] = line[key]
        states[int(line["index"])].append((float(line["time"]), now))
    flat = [entry for one in states for entry in one]
    return _Links(
        states=np.array([state for _, state in flat], layout.LINK),
        since=np.array([since for since, _ in flat]),
        first=np.cumsum([0, *(len(one) for one in states)]).astype(np.int64),
    )


def _up(world: World, script: Array, edges: Array) -> Array:
    """Seconds of each bin in which each server is up (S, N)."""
    up = np.repeat(np.diff(edges)[None], len(world.servers), axis=0)
    for s in range(len(world.servers)):
        down = math.inf
        lines = [
            line for line in script if line["index"] == s and line["kind"] != layout.S_LINK_CHANGE
        ]
        for line in lines:
            if line["kind"] == layout.S_SERVER_DOWN:
                down = min(down, float(line["time"]))
            else:
                up[s] -= np.diff(np.clip(edges, down, max(down, float(line["time"]))))
                down = math.inf
        if down < math.inf:
            up[s] -= np.diff(np.clip(edges, down, math.inf))
    np.maximum(up, 0.0, out=up)
    return up


def _least_slowness(world: World, edges: Array) -> Array:
    """The least factor in force anywhere in each (closed) bin (S, N)."""
    out = np.ones((len(world.servers), len(edges) - 1))
    for s, server in enumerate(world.servers):
        count, at = int(server["slow_count"]), int(server["slow_at"])
        if not count:
            continue
        steps = world.numbers[at : at + 2 * count].reshape(-1, 2)
        # The engine starts with the first step whatever its time.
        first = np.maximum(np.searchsorted(steps[:, 0], edges[:-1], side="left") - 1, 0)
        last = np.maximum(np.searchsorted(steps[:, 0], edges[1:], side="right") - 1, 0)
        for j in range(out.shape[1]):
            out[s, j] = steps[first[j] : last[j] + 1, 1].min()
    return out


@jit
def _carried_by_bin(links: _Links, numbers: Array, link: int, edges: Array) -> Array:
    out = np.empty(edges.size - 1)
    for j in range(out.size):
        out[j] = _carried(links, numbers, link, edges[j], edges[j + 1])
    return out


@inner
def _carried(links: _Links, numbers: Array, link: int, since: float, until: float) -> float:
    """Bytes that link `link` can carry between two moments; inf where it is ever unlimited."""
    total = 0.0
    for n in range(links.first[link], links.first[link + 1]):
        begin = max(since, links.since[n])
        end = until
        if n + 1 < links.first[link + 1]:
            end = min(end, links.since[n + 1])
        if end > begin:
            state = links.states[n]
            if state.mode == UNLIMITED:
                return math.inf
            total += capacity(state, numbers, begin, end)
    return total


@inner
def _across(links: _Links, numbers: Array, link: int, now: float, size: float) -> float:
    """When `size` bytes that have link `link` to themselves from `now` on are across; inf = never."""
    time = now
    for n in range(links.first[link], links.first[link + 1]):
        end = math.inf
        if n + 1 < links.first[link + 1]:
            end = links.since[n + 1]
        if end <= time:
            continue
        state = links.states[n]
        done = across(state, numbers, time, size)
        if done <= end:
            return done
        if state.mode != UNLIMITED:
            size = max(0.0, size - capacity(state, numbers, time, end))
        time = end
    return math.inf


@inner
def _least_lag(links: _Links, seed: int, r: int, link: int, size: float) -> float:
    best = math.inf
    for n in range(links.first[link], links.first[link + 1]):
        best = min(best, lag(links.states[n], seed, r, link, size))
    return best


@inner
def _least_delay(links: _Links, link: int) -> float:
    best = math.inf
    for n in range(links.first[link], links.first[link + 1]):
        best = min(best, links.states[n].delay)
    return best


def _peak(world: World, links: _Links, link: int) -> float:
    """The highest rate that link `link` ever has, bytes/s."""
    peak = 0.0
    for state in links.states[links.first[link] : links.first[link + 1]]:
        if state["mode"] == CONSTANT:
            peak = max(peak, float(state["rate"]))
        elif state["mode"] == CURVE:
            at, n = int(state["curve_at"]), int(state["curve_count"])
            lengths = np.diff(world.numbers[at : at + n])
            rises = np.diff(world.numbers[at + n : at + 2 * n])
            steep = np.where(lengths > 0.0, rises / np.maximum(lengths, 1e-300), np.inf)
            peak = max(peak, float(steep.max(initial=0.0)))
        else:
            return math.inf
    return peak


# -- what no decision changes --------------------------------------------------------------------


@jit
def _all_there(sim: Sim) -> None:
    """Let every request wait for its photo: the uploads are then seen to the end."""
    while True:
        r = engine.advance(sim)
        if r < 0:
            return
        ingress = sim.world.requests[r].ingress
        server = sim.world.servers[ingress]
        k = server.first_service if server.end_service > server.first_service else 0
        engine.act(sim, 2 * k, 1.0)


def _inputs(sim: Sim, links: _Links) -> tuple[Array, Array, Array]:
    """When each photo is in and when each command is there, and whether the request counts at all.

    Uploads share nothing with transfers and go on whatever is decided, so a play of the engine
    tells when they end. Where it does not (the ingress failed, say) the least time is taken.
    """
    play = engine.branch(sim)
    _all_there(play)
    if play.world.clock["overflow"][0]:
        raise Crowded("more requests are open at a time than the simulation has slots for")
    out = play.world.results
    there = out["reason"] != layout.REASON_INGRESS_DOWN
    there |= out["row"] >= 0  # its ingress died later: until then it may be served
    uploaded, commanded = out["uploaded"].copy(), out["decided"].copy()
    _at_least(sim.world, links, uploaded, commanded)
    return uploaded, commanded, there


@jit
def _at_least(world: World, links: _Links, uploaded: Array, commanded: Array) -> None:
    for r in range(world.requests.size):
        request = world.requests[r]
        link = request.ingress
        if uploaded[r] != uploaded[r]:
            done = _across(links, world.numbers, link, request.time, request.payload - SAME_BYTES)
            uploaded[r] = done + _least_delay(links, link)
        if commanded[r] != commanded[r]:
            commanded[r] = request.time + _least_delay(links, link) + world.clock[0].control_delay


@jit
def _noise_floors(world: World, batches: Array, expiry: Array) -> Array:
    """Of each request and service, the least luck of any request that may lead its batch."""
    floors = np.ones((world.requests.size, world.services.size))
    for k in range(world.services.size):
        if batches[k] < 2:
            continue
        for r in range(world.requests.size):
            least = noise(world, r, k)
            for q in range(world.requests.size):
                if world.requests[q].time < expiry[r] and world.requests[r].time < expiry[q]:
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
    time: float = max(LEAST_SHARE * curve, curve - service.ready_saving * others)
    return time


@inner
def _way(
    world: World, links: _Links, reference: Array, peaks: Array, width: float, link: int,
    size: float, start: float, prepared: int, way: Any,
) -> float:  # fmt: skip
    """Fill `way`; returns when the transfer is across if it has the link to itself."""
    size = max(0.0, size - SAME_BYTES)
    crossed = _across(links, world.numbers, link, start, size)
    j = int(start / width)
    way.resource = world.servers.size + link
    way.size = size / reference[link]
    way.first_bin = j
    left = _carried(links, world.numbers, link, start, (j + 1) * width)
    way.first_capacity = left / reference[link] * (1.0 + SAME_SHARE)
    way.crossed_bin = int(crossed / width) if crossed < 1e12 else 1 << 40
    way.least = size / peaks[link] if peaks[link] > 0.0 else 0.0
    way.prepared = prepared
    return crossed


@jit
def _fill(
    world: World, links: _Links, reference: Array, peaks: Array, slow: Array, uploaded: Array,
    commanded: Array, there: Array, converts: Array, batches: Array, floors: Array, width: float,
    requests: Array, ways: Array, candidates: Array,
) -> tuple[int, int]:  # fmt: skip
    """Fill requests, ways and candidates; returns how many ways and candidates there are."""
    clock = world.clock[0]
    servers = world.servers.size
    bins = slow.shape[1]
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
        expiry = given.time + given.deadline * (1.0 + clock.grace)
        out.last_bin = min(bins - 1, int(expiry / width))
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
                back = _least_delay(links, a)
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
                    behind = _least_lag(links, clock.seed, r, link, size)
                    start = max(crossed[which], uploaded[r]) + behind
                    back += _least_delay(links, world.path[s, a])
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
