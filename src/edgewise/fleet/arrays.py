"""The arrays of a balancer's belief about servers, services and links.

One `Belief`, a tuple of structured arrays that are allocated once, holds everything that decisions
rest on. The simulator and the live balancer use the same arrays and the same compiled functions
(`belief`, `observe`), so training and live service cannot drift apart.

Times are absolute seconds on the balancer's clock, sizes bytes, rates bytes/s. NaN = never
measured. The time of each measurement is stored beside it.

Links are numbered: link s (0 ≤ s < S) is the access link of server s, which its clients share. The
links between servers follow: S uplinks (all transfers of a sender share one) or S×S pairs; `path`
gives the number for each pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewise.domain import PayloadForm, Service
from edgewise.fleet.estimates import ready_time

Array = NDArray[Any]
Record: TypeAlias = Any
"""An element of a structured array."""

QUEUE_MAX = 256
"""Believed jobs per server. Of a longer report, the work beyond this is added to the last job. This
keeps the backlog right and only blurs the order far from the head."""
FLIGHTS_MAX = 256
"""Dispatches per server that no report has acknowledged yet. At 500 decisions/s to one server and
a report every 0.1 s about 50 are open; beyond the limit the oldest is forgotten."""
_PADDING = 2
"""Unused records at the end of each row of these lists. Rows of exactly 8 KiB would start in the
same set of the processor's cache and evict each other."""

LOW_RATE_MEMORY = 30.0
"""s over which a low measured rate fades towards the prior. A link believed to be slow is avoided,
and so never measured again. Without fading, one sample that was too low (a stalled peer, a short
outage) would last for ever. On a link that really is slow, the fading costs one request tried in
vain about every 30 s: one in a thousand at 35 requests/s. A high measurement needs no fading: its
link is used and so measured again."""
RTT_PRIOR = 0.01
"""s. The round trip assumed of a link before the first measurement: a metro network."""

RIF_BUCKETS = 8
"""Buckets of requests in flight: 0, 1, 2–3, 4–7, …, ≥ 64. Response times grow about linearly with
them, so each bucket covers an equal step of the logarithm."""

SERVER_STATE = np.dtype(
    [
        # The fields that every observation reads come first, in two lines of the cache.
        ("workers", "f8"),
        ("speed", "f8"),  # relative to the machine of the latency profiles
        ("prepare_own", "f8"),  # 1: the converter has a core of its own
        ("silence", "f8"),  # s without a report after which it counts as down
        ("connected", "f8"),  # 1: its control connection is open
        ("outstanding", "f8"),  # our dispatches without an outcome
        ("failure", "f8"),  # EWMA share of failed answers, 0–1
        ("jobs", "i8"),  # used length of its row in `jobs`
        ("next_start", "f8"),  # earliest time at which one of these starts; inf: there is none
        # -- from its reports ------------------------------------------------------------------
        ("report_at", "f8"),  # NaN: no report yet
        ("queued", "f8"),  # waiting requests
        ("utilisation", "f8"),  # 0–1
        ("draining", "f8"),  # 1: takes nothing new
        ("prepare_backlog", "f8"),  # CPU s, as of prepare_at
        ("prepare_at", "f8"),
        # -- as ingress ------------------------------------------------------------------------
        ("prepare_seconds", "f8"),  # CPU s here to make one payload model-ready
        ("prepare_on", "f8"),  # 1: it can make payloads model-ready at all
        ("demand_1s", "f8"),  # requests/s arriving at it, EWMA over 1 s
        ("demand_growth", "f8"),  # growth (`fleet.decay`) when it was last updated
        # -- our decisions ----------------------------------------------------------------------
        ("offered_1s", "f8"),  # worker seconds dispatched per s and worker, EWMA over 1 s
        ("offered_5s", "f8"),  # the same over 5 s
        ("offered_growth", "f8"),  # growth when the two were last updated
        ("commands", "i8"),  # commands sent to it as ingress
        ("dispatches", "i8"),  # dispatches sent to it as destination
        ("flights", "i8"),  # used length of its row in `flights`
        ("sends", "i8"),  # used length of its row in `sends`
        # -- its answers to us, for policies that look at servers only ---------------------------
        ("response", "f8"),  # EWMA s from decision to answer; NaN: no answer yet
        ("peak", "f8"),  # peak EWMA of the response (Finagle)
        ("answers_1s", "f8"),  # answers/s, EWMA over 1 s
        ("errors_1s", "f8"),  # failed answers/s, EWMA over 1 s
        ("answers_growth", "f8"),  # growth when the last three were updated
        ("by_rif", "f8", (RIF_BUCKETS,)),  # EWMA response by requests in flight then; NaN: none
    ]
)

SERVICE_STATE = np.dtype(
    [
        ("server", "i8"),
        ("model", "i8"),
        ("accuracy", "f8"),
        ("ready_accuracy", "f8"),  # accuracy when fed the model-ready form
        ("ready_bytes", "f8"),
        ("ready_saving", "f8"),  # s on this server that a model-ready payload saves
        ("latency", "f8"),  # s on this server at batch 1, from the profile
        ("service_time", "f8"),  # s on this server as measured; before, the profile's
        ("batch", "f8"),  # reported mean batch size
    ]
)

LINK_STATE = np.dtype(
    [
        ("rate", "f8"),  # bytes/s of a transfer that is alone on it; NaN: never measured
        ("rate_at", "f8"),
        ("rtt", "f8"),  # s; NaN: never measured
        ("backlog", "f8"),  # bytes still to be carried, as of backlog_at
        ("flows", "f8"),  # transfers sharing it, as of backlog_at
        ("backlog_at", "f8"),
    ]
)

JOB = np.dtype(
    [
        ("deadline", "f8"),
        ("work", "f8"),  # s of a worker
        ("input_at", "f8"),  # time at which its input is at the server
        ("dispatch", "i8"),  # number of our dispatch, not acknowledged yet; 0: from the report
    ]
)
"""A request believed to wait on a server."""

FLIGHT = np.dtype([("dispatch", "i8"), ("deadline", "f8"), ("work", "f8"), ("input_at", "f8")])
"""A dispatch of ours that the destination's reports have not acknowledged."""

SEND = np.dtype([("command", "i8"), ("link", "i8"), ("bytes", "f8"), ("prepare", "f8")])
"""A command of ours that the ingress's reports have not acknowledged; it causes a transfer."""


WELL, EJECTED, RETURNING = range(3)
"""States of a target of ejection. RETURNING: it gets a growing share of the requests."""

TARGET = np.dtype(
    [
        # What can be ejected: a server, or the path from an ingress to a server.
        ("good_at", "f8"),  # last good answer; −inf: none
        ("watched", "i8"),  # 0: it is well, and no failure of it is remembered
        ("state", "i8"),  # one of the above
        ("since", "f8"),  # when the state began
        ("until", "f8"),  # EJECTED: end of its time-out; RETURNING: end of the slow start
        ("probe_at", "f8"),  # when the last probe was decided
        ("probing_until", "f8"),  # that probe is under way, at most until then
        ("failures", "i8"),  # in a row
        ("failing", "f8"),  # share of failures, 0–1, exponentially weighted
        ("good", "i8"),  # good probes in a row; for a path, signs of life that were given
        ("unanswered", "i8"),  # signs of life in a row that were not given
        ("times", "i8"),  # ejections that lengthen the next time-out
        ("count", "i8"),  # ejections so far
        ("reason", "i8"),  # of the last ejection (`fleet.ejection.REASONS`)
        ("credit", "f8"),  # RETURNING: requests that it may have now
        ("barred", "i8"),  # of a server, for the request at hand (`fleet.ejection`)
        ("signs", "i8"),  # as last reported: given in a row, or −1 × not given in a row
        ("served", "i8"),  # of a server: requests that it has served, by its last report
        ("served_at", "f8"),  # … and the time of the first report of that number
    ]
)
"""Record of a server, or of the path from an ingress to a server, that may be ejected."""

EJECTION = np.dtype(
    [
        ("active", "i8"),  # targets that are not WELL
        ("all_barred", "i8"),  # 1: for the request last observed, all candidates were ejected
        ("all_barred_count", "i8"),  # requests for which that was so
        ("servers", "i8"),  # servers that are ejected
        ("changes", "i8"),  # ejections, and ends of ejections
        # -- settings (`scenario.schema.EjectionSpec`) --------------------------------------------
        ("servers_max", "i8"),  # servers that may be ejected at a time
        ("failures", "i8"),  # in a row that eject
        ("failing", "f8"),  # share of failures that ejects, 0–1
        ("unanswered", "i8"),  # missing signs of life in a row that eject a path
        ("timeout", "f8"),  # s: the first one
        ("timeout_max", "f8"),  # s: the longest one
        ("probes", "i8"),  # good ones in a row that end an ejection
        ("slow_start", "f8"),  # s that it lasts
    ]
)
"""The settings and counters of ejection."""


def records(shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A structured array of zeros whose elements have their fields as attributes.

    To compiled code it is an ordinary structured array. ``array[i].field`` works there and in plain
    Python alike. No field may have the name of an attribute of NumPy scalars (``size``, ``max``).
    """
    return np.zeros(shape, dtype).view(np.recarray)


class Belief(NamedTuple):
    """A balancer's belief about the fleet. S servers, K services, L links, W workers of the
    largest server. Copying the arrays copies the belief."""

    servers: Array  # SERVER_STATE (S,)
    services: Array  # SERVICE_STATE (K,), sorted by server
    times: Array  # float64 (2K,): at 2k + f the service time of service k fed form f, s
    first: Array  # int64 (S + 1,): services of server s are first[s] … first[s + 1] − 1
    links: Array  # LINK_STATE (L,)
    path: Array  # int64 (S, S): link from a to b; diagonal −1
    free: Array  # float64 (S, W): when each worker is free, ascending; unused ones +inf
    jobs: Array  # JOB (S, QUEUE_MAX + padding)
    flights: Array  # FLIGHT (S, FLIGHTS_MAX + padding)
    sends: Array  # SEND (S, FLIGHTS_MAX + padding)
    edf: Array  # float64 (1,): 1 earliest deadline first, 0 first in first out
    lately: Array  # float64 (2,): worker s in the bucket of `fleet.admission`, and as of when
    decay: Array  # float64 (4,): landmark, time, growth at that time, 1 / growth (`fleet.decay`)
    targets: Array  # TARGET (S + 1, S): path from a to b at [a, b]; server s at [S, s]
    ejection: Array  # EJECTION (1,)


def new_belief(
    server_names: Sequence[str],
    services: Sequence[Service],
    *,
    workers: Sequence[int],
    speed: Sequence[float],
    prepare_seconds: Sequence[float],
    prepare_own: bool,
    prepare_enabled: bool,
    shared_uplink: bool,
    edf: bool,
    silence: float,
) -> Belief:
    """Allocate the belief of a balancer that has had no report yet.

    `services` must be sorted by the position of their server in `server_names`. Raises ValueError
    if they are not, or if a length does not match.
    """
    count = len(server_names)
    if not (len(workers) == len(speed) == len(prepare_seconds) == count):
        raise ValueError("workers, speed and prepare_seconds need one entry per server")
    index = {name: i for i, name in enumerate(server_names)}
    of = [index[service.server] for service in services]
    if of != sorted(of):
        raise ValueError("services must be sorted by server")

    state = records(count, SERVER_STATE)
    state["workers"], state["speed"] = workers, speed
    state["prepare_seconds"], state["prepare_own"] = prepare_seconds, prepare_own
    state["prepare_on"], state["silence"] = prepare_enabled, silence
    state["report_at"] = state["response"] = state["by_rif"] = np.nan
    state["connected"] = 1.0
    state["next_start"] = np.inf

    table = records(len(services), SERVICE_STATE)
    models = sorted({service.model for service in services})
    for k, service in enumerate(services):
        accuracy = service.accuracy_of(PayloadForm.MODEL_READY)
        table[k] = (
            of[k],
            models.index(service.model),
            service.accuracy,
            accuracy,
            service.ready_bytes,
            service.ready_saving,
            service.latency[0],
            service.latency[0],
            1.0,
        )

    pairs = np.arange(count * count).reshape(count, count)
    path = np.repeat(np.arange(count)[:, None], count, axis=1) if shared_uplink else pairs
    path = path + count
    np.fill_diagonal(path, -1)
    links = records(int(path.max(initial=count - 1)) + 1, LINK_STATE)
    links["rate"] = links["rate_at"] = links["rtt"] = np.nan

    free = np.full((count, max(workers, default=1)), np.inf)
    for s, c in enumerate(workers):
        free[s, :c] = 0.0
    latency = [service.latency[0] for service in services]
    ready = [
        ready_time(time, row["ready_saving"]) for time, row in zip(latency, table, strict=True)
    ]
    return Belief(
        servers=state,
        services=table,
        times=np.ravel([latency, ready], order="F").astype(np.float64),
        first=np.searchsorted(np.asarray(of), np.arange(count + 1)).astype(np.int64),
        links=links,
        path=path.astype(np.int64),
        free=free,
        jobs=records((count, QUEUE_MAX + _PADDING), JOB),
        flights=records((count, FLIGHTS_MAX + _PADDING), FLIGHT),
        sends=records((count, FLIGHTS_MAX + _PADDING), SEND),
        edf=np.array([1.0 if edf else 0.0]),
        lately=np.zeros(2),
        decay=np.full(4, np.nan),
        targets=_targets(count),
        ejection=_no_ejection(),
    )


def _targets(servers: int) -> Array:
    targets = records((servers + 1, servers), TARGET)
    for name in ("good_at", "since", "probe_at", "probing_until"):
        targets[name] = -np.inf
    targets["served_at"] = np.nan
    return targets


def _no_ejection() -> Array:
    """Settings with which nothing is ever ejected."""
    ejection = records(1, EJECTION)
    for name in ("failures", "unanswered", "probes"):
        ejection[name] = np.iinfo(np.int64).max
    ejection["failing"] = np.inf
    return ejection


def copy(belief: Belief) -> Belief:
    """A copy of a belief that shares no arrays with it."""
    return Belief(*(array.copy() for array in belief))
