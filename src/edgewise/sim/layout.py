"""The arrays of a simulation: what the world is and where it stands. Units: s, bytes, bytes/s.

A simulation is one `Sim`: a tuple of arrays that are allocated once. Nothing else holds state, so
copying the arrays copies the simulation, its future included (`engine.branch`).

A request takes a *slot* while it is open. Slots are recycled, so what an event touches stays in
the processor's cache however long the trace is; what is to be kept goes to `results`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgewise.domain import PayloadForm
from edgewise.fleet import intake
from edgewise.fleet.arrays import Array, Belief
from edgewise.fleet.table import CandidateTable
from edgewise.network.impairments import PARAMETERS

# -- how a request ends: RESULT.status ----------------------------------------------------------
PENDING, SERVED, SHED, EXPIRED, FAILED, LOST = range(6)
STATUSES = ("pending", "served", "shed", "expired", "failed", "lost")
# Why: RESULT.reason.
(
    REASON_NONE,
    REASON_NO_SERVICE,
    REASON_NONE_UP,
    REASON_PRICE,
    REASON_QUEUE_FULL,
    REASON_SERVER_DOWN,
    REASON_INGRESS_DOWN,
    REASON_RESET,
    REASON_HORIZON,
    REASON_NO_TIME,
) = range(10)
REASONS = (
    None,
    "no_service",
    "none_up",
    "price",
    "queue_full",
    "server_down",
    "ingress_down",
    "connection_reset",
    "no_answer",
    "no_answer_in_time",
)

# -- kinds of events ----------------------------------------------------------------------------
(
    E_METADATA,  # slot: the balancer has the metadata and decides
    E_COMMAND,  # slot: the ingress has the command
    E_UPLOADED,  # slot: the body is in at the ingress
    E_DELIVERED,  # slot: the body is in at the serving server
    E_OUTCOME,  # slot: the balancer learns how it ended
    E_FAILED,  # slot: the ingress learns that the dispatch failed
    E_FINISH,  # worker: it is done
    E_REPORTED,  # report: it reaches the balancers
    E_LEFT,  # server: the balancers learn that it is gone
    E_JOINED,  # server: … that it is back
    E_SWEEP,  # once a second: dispatches whose client has given up are written off
    E_TIMEOUT,  # slot: its ingress gives up on a peer, or on it
) = range(12)

# -- kinds of script entries --------------------------------------------------------------------
S_LINK_CHANGE, S_SERVER_DOWN, S_SERVER_UP, S_MUTE, S_UNMUTE = range(5)

# -- link modes ---------------------------------------------------------------------------------
CONSTANT, UNLIMITED, CURVE = range(3)

# -- slot stages --------------------------------------------------------------------------------
FREE, OPEN, DONE = range(3)

READY = int(PayloadForm.MODEL_READY)

ALTERNATIVES = 3
"""Fallbacks kept with a request where servers can fail or fill up, each on a server of its own.
Each failed attempt costs a round trip, so a fourth would come after any usual deadline."""

CLOCK = np.dtype(
    [
        # where it stands
        ("now", "f8"),
        ("next", "i8"),  # request that arrives next
        ("line", "i8"),  # script entry that comes next
        ("open", "i8"),  # requests that have not ended
        ("current", "i8"),  # slot that waits for a decision; −1 none
        ("free", "i8"),  # first free slot; −1 none
        ("used", "i8"),  # slots that were ever in use
        ("near", "i8"),  # events in order …
        ("events", "i8"),  # … and in the heap
        ("sequence", "i8"),  # events ever made: breaks ties in order of making
        ("free_report", "i8"),
        ("overflow", "i8"),  # 1: more requests were open than there are slots
        # sums over ended requests
        ("ended", "i8", (6,)),  # by status
        ("learning", "i8"),  # 1: ended requests are kept for the policy to learn from …
        ("feedback_count", "i8"),  # … in the order in which their scores become known: so many now
        ("decisions", "i8"),
        ("utility", "f8"),
        ("processed", "i8"),  # events
        ("mute_since", "f8"),  # the central balancers are silent since then; inf: they are not
    ]
)
"""Where a simulation stands."""

SETTINGS = np.dtype(
    [
        ("requests", "i8"),
        ("servers", "i8"),
        ("balancers", "i8"),  # nodes that may have to decide themselves included, after …
        ("central", "i8"),  # … those that are balancers by trade
        ("horizon", "f8"),  # what is open then is lost
        ("seed", "u8"),  # of the luck of this world
        ("period", "f8"),  # between reports
        ("report_delay", "f8"),
        ("control_delay", "f8"),
        ("grace", "f8"),
        ("accuracy_weight", "f8"),
        ("edf", "i8"),
        ("fifo_links", "i8"),
        ("uplink", "i8"),  # 1: a sender's transfers share one link
        ("prepare_own", "i8"),
        ("batching", "i8"),
        ("true_links", "i8"),  # 1: the balancer is told the links' true state
        ("can_fail", "i8"),  # 1: alternatives are kept
        ("noise_bits", "i8"),  # logarithm of the count of noise factors
        ("store", "i8"),  # 1: results are kept
        ("keep_reports", "i8"),  # 1: reports are kept
    ]
)
"""What does not change while it runs."""

REQUEST = np.dtype(
    [
        ("time", "f8"),
        ("deadline", "f8"),  # s from time
        ("accuracy", "f8"),
        ("payload", "f8"),
        ("ingress", "i8"),
    ]
)

SLOT = np.dtype(
    [
        ("request", "i8"),
        ("stage", "i4"),
        ("references", "i4"),  # events, transfers and queues that refer to it
        ("ingress", "i4"),
        ("balancer", "i4"),
        ("service", "i4"),  # that is to run it now; −1 none
        ("server", "i4"),  # of that service
        ("form", "i4"),
        ("at", "i4"),  # server in whose queue or worker it is; −1 nowhere
        ("awaits_conversion", "i4"),  # 1: it waits to be made model-ready
        ("refused", "i4"),  # 1: its ingress had no room for it
        ("row", "i4"),  # decided
        ("picked", "i4"),  # server decided; −1 shed
        ("life", "i4"),  # of the picked server as the balancer knew it
        ("link", "i4"),  # that its transfer is on; −1 none
        ("destination_life", "i4"),  # of the server that a transfer goes to
        ("attempt", "i4"),
        ("rif", "i4"),
        ("reason", "i4"),
        ("next", "i4"),  # in a batch, a prepare queue, or the free slots
        # In slot n: the n-th slot whose score is known and that has not been learned from.
        ("feedback_slot", "i4"),
        ("before", "i4"),  # in the server's queue, in order of arrival …
        ("after", "i4"),
        ("alternatives", "i4", (ALTERNATIVES,)),  # rows
        ("dispatch", "i8"),
        ("command", "i8"),
        ("deadline", "f8"),  # absolute
        ("expiry", "f8"),  # absolute: from then on it cannot score
        ("give_up", "f8"),  # absolute: how long a peer is waited for; inf: none is
        # of the timeout check under way, at the earlier of these two; inf: none. Outlives the slot.
        ("timeout_at", "f8"),
        ("result_at", "f8"),  # of the delivery or failure that counts; inf none
        ("demanded", "f8"),
        ("payload", "f8"),
        ("bytes", "f8"),  # of the transfer under way
        ("work", "f8"),  # s its server expects it to take
        ("probability", "f8"),
        ("predicted", "f8"),  # latency of the row decided
        ("utility", "f8"),
        # when things happened; inf = not yet
        ("sent", "f8"),
        ("uploaded", "f8"),
        ("decided", "f8"),  # at the balancer
        ("commanded", "f8"),
        ("crossed", "f8"),  # the link is through with the transfer
        ("transferred", "f8"),
        ("started", "f8"),
        ("finished", "f8"),
    ]
)

SERVER = np.dtype(
    [
        ("workers", "i8"),
        ("first_worker", "i8"),  # in `workers`
        ("first_service", "i8"),
        ("end_service", "i8"),
        ("queue_limit", "i8"),
        ("prepare_seconds", "f8"),
        ("slow_at", "i8"),  # offset of (time, factor) pairs in `numbers` …
        ("slow_count", "i8"),
        # state
        ("slow", "i8"),  # … and the pair in force
        ("idle", "i8"),  # first idle worker; −1 none
        ("busy", "i8"),
        ("waiting", "i8"),  # in the queue …
        ("work", "f8"),  # … and the s that they are expected to take
        ("head", "i8"),  # of the queue in order of arrival
        ("tail", "i8"),
        ("prepare_head", "i8"),
        ("prepare_tail", "i8"),
        ("prepare_waiting", "f8"),  # s of CPU
        ("up", "i8"),
        ("life", "i8"),  # counts restarts …
        ("known_life", "i8"),  # … that the balancers have heard of
        ("latest", "f8"),  # the latest moment at which a worker or its stage was ever to be done
        ("busy_area", "f8"),  # worker seconds
        ("busy_at", "f8"),
        ("reported_at", "f8"),
        ("reported", "f8"),  # backlog, s
        ("utilisation", "f8"),
    ]
)

SERVICE = np.dtype(
    [
        ("server", "i8"),
        ("accuracy", "f8"),
        ("ready_accuracy", "f8"),
        ("ready_bytes", "f8"),
        ("ready_saving", "f8"),
        ("curve_at", "i8"),  # offset of the latency curve in `numbers`
        ("curve_count", "i8"),
        # state
        ("queue", "i8"),  # root of the heap of those waiting; −1 none
        ("service_time", "f8"),
        ("batch", "f8"),
        ("served", "i8"),
    ]
)

WORKER = np.dtype(
    [
        ("server", "i8"),
        ("slot", "i8"),  # first of the batch; −1 idle
        ("preparing", "i8"),
        ("batch", "i8"),
        ("started", "f8"),
        ("expected", "f8"),  # when its server expects it to be done
        ("finish", "f8"),  # when it will
        ("next", "i8"),  # idle one
    ]
)
"""Each server's workers, then a pre-processing core for each."""

LINK_SETTINGS: list[Any] = [
    ("mode", "i8"),
    ("rate", "f8"),  # of mode CONSTANT
    ("curve_at", "i8"),  # of mode CURVE: offset of times, then cumulative bytes, in `numbers`
    ("curve_count", "i8"),
    ("curve_period", "f8"),
    ("delay", "f8"),
    ("impairments", "f8", (PARAMETERS,)),  # `network.impairments.parameters_of`
]
"""What an event may change."""

LINK = np.dtype(
    [
        ("source", "i8"),  # server whose transfers it carries; the ingress of an access link
        *LINK_SETTINGS,
        ("outage_at", "i8"),  # offset of (from, to) pairs in `numbers`
        ("outage_count", "i8"),
        # state
        ("root", "i8"),  # of the heap of finish tags; −1 nothing under way
        ("flows", "i8"),
        ("served", "f8"),  # virtual time: bytes that a flow present throughout has sent
        ("last_tag", "f8"),  # of the last to join
        ("tags", "f8"),  # sum of those under way
        ("at", "f8"),  # when `served` and `area` were brought up to date
        ("area", "f8"),  # ∫ flows dt
        ("bytes", "f8"),  # carried
        # what its node knows (`sim.transfers`)
        ("measured", "f8"),  # bytes/s by its own transfers; NaN never
        ("measured_at", "f8"),
        ("ledger_count", "i8"),  # transfers under way …
        ("ledger_first", "i8"),  # … the latest of them, in `flows`; −1 none
        ("ledger_sent", "f8"),  # bytes that one present throughout is believed to have sent
        ("ledger_area", "f8"),  # ∫ ledger dt
        ("ledger_at", "f8"),  # when these two were brought up to date
        ("next_ack", "f8"),  # when the next word comes that one is in, or before; inf none
    ]
)

FLOW = np.dtype(
    [
        ("link", "i4"),  # whose ledger it is in; −1 none
        ("before", "i4"),  # in the ledger
        ("after", "i4"),
        ("began", "f8"),
        ("area", "f8"),  # the ledger's, then
        ("tag", "f8"),  # it is believed to be across when the ledger has sent so much
        ("acked_at", "f8"),  # when its sender hears that it is in; inf not known
    ]
)
"""A transfer as its node knows it. Slot i has two: i of its upload, M + i of its transfer."""

NODE = np.dtype([("key", "f8"), ("order", "i8"), ("child", "i4"), ("sibling", "i4")])
"""Of a pairing heap. Slot i has three: i on its access link, M + i on a link between servers,
2M + i in a queue."""

EVENT = np.dtype([("time", "f8"), ("code", "i8")])
"""`code` is sequence, kind and index: ties go in order of making."""

SCRIPT = np.dtype(
    [
        ("time", "f8"),
        ("kind", "i8"),
        ("index", "i8"),  # link or server
        *LINK_SETTINGS,  # of S_LINK_CHANGE: the link's from then on
    ]
)

REPORT = np.dtype(
    [
        *((name, intake.REPORT[name]) for name in intake.REPORT.names or ()),
        ("life", "i8"),
        ("next", "i8"),  # free one
        ("running", "i8"),
        ("queued", "i8"),
    ]
)
"""A report under way: what `fleet.intake` takes, and lengths of its lists."""

RESULT = np.dtype(
    [
        ("status", "i4"),
        ("reason", "i4"),
        ("balancer", "i4"),
        ("row", "i4"),  # decided; −1 never decided
        ("server", "i4"),  # that served; −1 none
        ("service", "i4"),
        ("form", "i4"),
        ("attempts", "i4"),
        ("probability", "f8"),
        ("command", "i8"),
        ("dispatch", "i8"),
        ("predicted", "f8"),  # latency of the row decided, NaN if it sheds
        ("latency", "f8"),  # NaN unless served
        ("utility", "f8"),
        # stamps, absolute; NaN = never got there
        ("decided_at", "f8"),  # at the balancer
        ("uploaded", "f8"),
        ("decided", "f8"),  # the ingress has the command
        ("transferred", "f8"),
        ("started", "f8"),
        ("finished", "f8"),
        ("answered", "f8"),
        ("received", "f8"),
    ]
)


class World(NamedTuple):
    """The state of the world, without reports and beliefs. S servers, K services, L links,
    B balancers, M slots.

    Apart from the rest, for every array of a tuple costs compile time in every function that the
    tuple is passed to.
    """

    settings: Array  # SETTINGS (1,)
    clock: Array  # CLOCK (1,)
    near: Array  # float64 (1 + NEAR,): +inf, then the times of the next events, falling …
    near_codes: Array  # … int64 (1 + NEAR,): and their codes
    events: Array  # EVENT (H,), a binary heap of the rest
    next_times: Array  # float64 (2P,), P ≥ 8, L + S: `sim.next_times`
    requests: Array  # REQUEST (N,)
    slots: Array  # SLOT (M,)
    nodes: Array  # NODE (3M,)
    servers: Array  # SERVER (S,)
    services: Array  # SERVICE (K,)
    workers: Array  # WORKER (all workers + S,)
    links: Array  # LINK (L,), numbered as in the belief
    flows: Array  # FLOW (2M,)
    path: Array  # int64 (S, S)
    numbers: Array  # float64: latency curves, capacities, outages, slow-downs
    noise: Array  # float64 (2^noise_bits,): factors of service times; one array for many worlds
    seen: Array  # `intake.ACKNOWLEDGED` (B, S)
    results: Array  # RESULT (N,), or (0,)


class Reports(NamedTuple):
    """Reports under way; P of them, W workers of the largest server."""

    heads: Array  # REPORT (P,)
    jobs: Array  # float64 (2, P, QUEUE_MAX): deadlines, works
    running: Array  # float64 (P, W)
    links: Array  # `intake.REPORT_LINK` (P, 2 or 1 + S): the access link, then what it sends on
    services: Array  # `intake.REPORT_SERVICE` (P, most services of a server)
    seen: Array  # `intake.ACKNOWLEDGED` (P, B)


class Sim(NamedTuple):
    """A simulation."""

    world: World
    script: Array  # SCRIPT, by time
    reports: Reports
    beliefs: Belief  # each array with a leading axis of B
    belief: Belief  # the first balancer's, out of these: mostly there is no other
    table: CandidateTable


CONSTANTS = frozenset({"requests", "path", "numbers", "noise", "first", "edf"})
"""Arrays that are never written to: branches share them."""


def belief_of(beliefs: Belief, balancer: int) -> Belief:
    """A view of what one balancer believes."""
    return Belief(*(array[balancer] for array in beliefs))
