"""The arrays that hold a simulation: its settings and its state. Units: s, bytes, bytes/s.

A simulation is one `Sim`, a tuple of arrays that are allocated once. They hold its entire state, so
copying the arrays copies the simulation and determines its future (`engine.branch`).

An open request occupies a *slot*. Slots are reused, so the data of open requests stays in the
processor's cache however long the trace is. The results of ended requests go to `results`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgewise.domain import PayloadForm
from edgewise.fleet import intake
from edgewise.fleet.arrays import Array, Belief
from edgewise.fleet.estimates import SERVICE_TIME
from edgewise.fleet.retries import ALTERNATIVES, BUDGET
from edgewise.fleet.table import CandidateTable
from edgewise.network.impairments import PARAMETERS

# -- status of a request: RESULT.status ---------------------------------------------------------
PENDING, SERVED, SHED, EXPIRED, FAILED, LOST = range(6)
STATUSES = ("pending", "served", "shed", "expired", "failed", "lost")
# Reason of the status: RESULT.reason.
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
    REASON_SERVER_ERROR,
    REASON_NO_PHOTO,
) = range(12)
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
    "server_error",
    "no_photo",
)

# -- kinds of events ----------------------------------------------------------------------------
(
    # The comments give the array that the event's index refers to.
    E_METADATA,  # slot: the metadata reaches the balancer, which decides
    E_COMMAND,  # slot: the command reaches the ingress
    E_UPLOADED,  # slot: the upload is complete at the ingress
    E_DELIVERED,  # slot: the transfer is complete at the serving server
    E_OUTCOME,  # slot: the outcome reaches the balancer
    E_FAILED,  # slot: the failure of a dispatch is known at the ingress
    E_FINISH,  # worker: it finishes a batch or a conversion
    E_REPORTED,  # report: it reaches the balancers
    E_LEFT,  # server: its stop is known at the balancers
    E_JOINED,  # server: its restart is known at the balancers
    E_SWEEP,  # none; once a second: dispatches whose client has given up are closed
    E_TIMEOUT,  # slot: timeout check; its ingress may give up a peer, or the request
) = range(12)

# -- kinds of script entries --------------------------------------------------------------------
S_LINK_CHANGE, S_SERVER_DOWN, S_SERVER_UP, S_MUTE, S_UNMUTE, S_MISBEHAVE = range(6)

# -- link modes ---------------------------------------------------------------------------------
CONSTANT, UNLIMITED, CURVE = range(3)

# -- slot stages --------------------------------------------------------------------------------
FREE, OPEN, DONE = range(3)

READY = int(PayloadForm.MODEL_READY)

FAULTS = 8
"""More than there are faults."""
FAILURES_MAX = ALTERNATIVES + 2
"""Attempts at most: the first, the alternatives, and the ingress itself."""

CLOCK = np.dtype(
    [
        ("now", "f8"),
        ("next", "i8"),  # request that arrives next
        ("line", "i8"),  # line of the script that comes next
        ("open", "i8"),  # requests that have not ended
        ("current", "i8"),  # slot that waits for a decision; −1 none
        ("free", "i8"),  # first free slot; −1 none
        ("used", "i8"),  # slots that were ever in use
        ("near", "i8"),  # events in the sorted list (`sim.events`)
        ("events", "i8"),  # events in the heap
        ("sequence", "i8"),  # number of events made so far: orders events at equal times
        ("free_report", "i8"),  # first free report; −1 none
        ("overflow", "i8"),  # 1: more requests were open than there are slots
        ("ended", "i8", (6,)),  # number of ended requests by status
        ("learning", "i8"),  # 1: slots are kept until the policy has learned from them
        ("feedback_count", "i8"),  # number of slots from which it can learn now
        ("decisions", "i8"),  # number of decisions
        ("utility", "f8"),  # sum over ended requests
        ("processed", "i8"),  # number of events
        ("mute_since", "f8"),  # time since which the balancers are silent; inf: they are not
    ]
)
"""The counters and sums of a simulation."""

SETTINGS = np.dtype(
    [
        ("requests", "i8"),
        ("servers", "i8"),
        ("balancers", "i8"),  # deciders: the balancers, then nodes that may have to decide
        ("central", "i8"),  # number of balancers proper
        ("horizon", "f8"),  # requests still open at this time are lost
        ("seed", "u8"),  # of the request noise
        ("period", "f8"),  # s between reports
        ("report_delay", "f8"),
        ("control_delay", "f8"),
        ("grace", "f8"),
        ("accuracy_weight", "f8"),
        ("edf", "i8"),
        ("fifo_links", "i8"),
        ("uplink", "i8"),  # 1: a sender's transfers share one link
        ("prepare_own", "i8"),
        ("batching", "i8"),
        ("true_links", "i8"),  # 1: reports hold the links' true state, from the emulator
        ("can_fail", "i8"),  # 1: alternatives are kept
        ("noise_bits", "i8"),  # logarithm of the count of noise factors
        ("store", "i8"),  # 1: results are kept
        ("keep_reports", "i8"),  # 1: reports are kept
        ("loses_photos", "i8"),  # 1: the photos of some requests never come
        ("photo_patience", "f8"),  # s after its decision by which a photo should have begun
    ]
)
"""The constants of a simulation."""

REQUEST = np.dtype(
    [
        ("time", "f8"),
        ("deadline", "f8"),  # s from time
        ("accuracy", "f8"),
        ("payload", "f8"),
        ("ingress", "i8"),
        ("lost", "i8"),  # 1: its photo never comes
    ]
)

SLOT = np.dtype(
    [
        ("request", "i8"),
        ("stage", "i4"),
        ("references", "i4"),  # events, transfers and queues that refer to it
        ("ingress", "i4"),
        ("balancer", "i4"),
        ("service", "i4"),  # service of the present attempt; −1 none
        ("server", "i4"),  # server of that service
        ("form", "i4"),
        ("at", "i4"),  # server where it is queued or runs; −1 none
        ("awaits_conversion", "i4"),  # 1: it waits to be made model-ready
        ("refused", "i4"),  # 1: its ingress had no room for it, or failed to run it
        ("wrong", "i4"),  # 1: its answer is wrong
        ("status", "i4"),  # how it ended, once it has
        ("row", "i4"),  # row decided; −1 none yet
        ("picked", "i4"),  # server decided; −1 shed
        ("life", "i4"),  # `known_life` of the picked server at the decision; −1: dispatch closed
        ("link", "i4"),  # link that carries its transfer; −1 none
        ("destination_life", "i4"),  # `life` of the destination when its transfer started
        ("attempt", "i4"),  # number of earlier attempts
        ("rif", "i4"),  # requests in flight at the picked server at the decision
        ("reason", "i4"),
        ("next", "i4"),  # next slot of a batch, of a converter's queue, or of the free slots
        # In slot n: the n-th slot whose score is known and that has not been learned from.
        ("feedback_slot", "i4"),
        ("before", "i4"),  # neighbours in the server's queue, in order of arrival; −1 none
        ("after", "i4"),
        ("alternatives", "i4", (ALTERNATIVES,)),  # rows; −1 none
        ("failures", "i4"),  # attempts that have failed
        ("failed", "i4", (FAILURES_MAX,)),  # of each, FAULTS × server + fault (`fleet.ejection`)
        ("dispatch", "i8"),
        ("command", "i8"),
        ("deadline", "f8"),  # absolute
        ("expiry", "f8"),  # absolute: from then on it cannot score
        ("give_up", "f8"),  # absolute: when its ingress stops waiting for a peer; inf: no peer
        # of the timeout check under way, at the earlier of these two; inf: none. Outlives the slot.
        ("timeout_at", "f8"),
        ("result_at", "f8"),  # time of the delivery or failure that counts; inf: none
        ("demanded", "f8"),  # accuracy
        ("payload", "f8"),
        ("bytes", "f8"),  # size of the transfer under way
        ("work", "f8"),  # s that its server expects it to take
        ("probability", "f8"),
        ("predicted", "f8"),  # latency of the row decided
        ("latency", "f8"),  # s from sending to the answer at the client; NaN unless served
        ("utility", "f8"),
        # stamps, absolute; inf = not yet
        ("sent", "f8"),
        ("uploaded", "f8"),
        ("decided", "f8"),  # at the balancer
        ("commanded", "f8"),  # the command reaches the ingress
        ("crossed", "f8"),  # the link has sent the transfer
        ("transferred", "f8"),
        ("started", "f8"),
        ("finished", "f8"),
    ]
)

SERVER = np.dtype(
    [
        ("workers", "i8"),
        ("first_worker", "i8"),  # offset in `workers`
        ("first_service", "i8"),
        ("end_service", "i8"),
        ("queue_limit", "i8"),
        ("prepare_seconds", "f8"),
        ("slow_at", "i8"),  # offset of (time, slowdown) pairs in `numbers`
        ("slow_count", "i8"),
        # state
        ("slow", "i8"),  # number of the pair in force
        ("idle", "i8"),  # first idle worker; −1 none
        ("busy", "i8"),  # number of busy workers
        ("waiting", "i8"),  # number of requests in the queue
        ("work", "f8"),  # s that these are expected to take
        ("head", "i8"),  # slots at both ends of the queue, in order of arrival; −1 none
        ("tail", "i8"),
        ("prepare_head", "i8"),  # the same of the converter's queue
        ("prepare_tail", "i8"),
        ("prepare_waiting", "f8"),  # s of CPU time that these take
        ("up", "i8"),  # 1: it runs
        ("misbehaves", "i8"),  # how (`scenario.Misbehaviour`)
        ("life", "i8"),  # number of stops so far
        ("known_life", "i8"),  # `life` at the last restart known at the balancers
        ("latest", "f8"),  # latest expected end of any work so far, here or in the converter
        ("busy_area", "f8"),  # worker seconds used so far, as of `busy_at`
        ("busy_at", "f8"),
        ("reported_at", "f8"),  # time of the last report
        ("reported", "f8"),  # backlog at the last report, s
        ("utilisation", "f8"),
        *BUDGET,  # of second tries of requests that arrive here
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
        ("queue", "i8"),  # root of the heap of waiting requests; −1 none
        *SERVICE_TIME,
        ("batch", "f8"),
        ("served", "i8"),
    ]
)

WORKER = np.dtype(
    [
        ("server", "i8"),
        ("slot", "i8"),  # first of the batch; −1 idle
        ("preparing", "i8"),  # 1: it makes a payload model-ready
        ("batch", "i8"),
        ("started", "f8"),
        ("expected", "f8"),  # end of its work as its server expects it
        ("finish", "f8"),  # true end of its work
        ("next", "i8"),  # next idle worker
    ]
)
"""A worker. The array holds each server's workers, then one converter core per server."""

LINK_SETTINGS: list[Any] = [
    ("mode", "i8"),
    ("rate", "f8"),  # for mode CONSTANT: bytes/s
    ("curve_at", "i8"),  # for mode CURVE: offset of times, then cumulative bytes, in `numbers`
    ("curve_count", "i8"),
    ("curve_period", "f8"),
    ("delay", "f8"),
    ("impairments", "f8", (PARAMETERS,)),  # `network.impairments.parameters_of`
]
"""The fields of a link that the script can change."""

LINK = np.dtype(
    [
        ("source", "i8"),  # server whose transfers it carries; of an access link, its ingress
        *LINK_SETTINGS,
        ("outage_at", "i8"),  # offset of (from, to) pairs in `numbers`
        ("outage_count", "i8"),
        # state
        ("root", "i8"),  # root of the heap of the flows' tags; −1 no flow
        ("flows", "i8"),  # number of flows
        ("served", "f8"),  # virtual time: bytes that a flow present throughout would have sent
        ("last_tag", "f8"),  # tag of the last flow to join
        ("tags", "f8"),  # sum of the flows' tags
        ("at", "f8"),  # time to which `served` and `area` are up to date
        ("area", "f8"),  # ∫ flows dt
        ("bytes", "f8"),  # bytes carried so far
        # the ledger of its node (`sim.transfers`)
        ("measured", "f8"),  # bytes/s measured by its own transfers; NaN: never
        ("measured_at", "f8"),
        ("ledger_count", "i8"),  # number of transfers in the ledger
        ("ledger_first", "i8"),  # the last to start, an index of `flows`; −1 none
        ("ledger_sent", "f8"),  # virtual time: bytes that a transfer would have sent
        ("ledger_area", "f8"),  # ∫ ledger_count dt
        ("ledger_at", "f8"),  # time to which these two are up to date
        ("next_ack", "f8"),  # lower bound of the time of the next acknowledgement; inf none
    ]
)

FLOW = np.dtype(
    [
        ("link", "i4"),  # link whose ledger it is in; −1 none
        ("before", "i4"),  # neighbours in the ledger; −1 none
        ("after", "i4"),
        ("began", "f8"),
        ("area", "f8"),  # `ledger_area` when it began
        ("tag", "f8"),  # it is believed to be sent when `ledger_sent` reaches this
        ("acked_at", "f8"),  # when the acknowledgement reaches its sender; inf: not known yet
    ]
)
"""A transfer in a node's ledger. Slot i has two: i for its upload, M + i for its transfer."""

NODE = np.dtype([("key", "f8"), ("order", "i8"), ("child", "i4"), ("sibling", "i4")])
"""A node of a pairing heap. Slot i has three: i on its access link, M + i on a link between
servers, 2M + i in a queue."""

SIGN = np.dtype(
    [
        ("known_at", "f8"),  # when its ingress knows whether the sign now asked for is given
        ("given", "i8"),  # 1: it is; −1: nothing was asked yet, and is to be at `known_at`
        ("count", "i8"),  # of those known: given in a row, or −1 × missing in a row
    ]
)
"""The signs of life that one server asks of another (`sim.signs`)."""

EVENT = np.dtype([("time", "f8"), ("code", "i8")])
"""An event. `code` holds its sequence number, kind and index, so equal times sort by sequence."""

SCRIPT = np.dtype(
    [
        ("time", "f8"),
        ("kind", "i8"),
        ("index", "i8"),  # link or server
        ("misbehaves", "i8"),  # for S_MISBEHAVE: `SERVER.misbehaves` from now on
        *LINK_SETTINGS,  # for S_LINK_CHANGE: the link's new settings
    ]
)

REPORT = np.dtype(
    [
        *((name, intake.REPORT[name]) for name in intake.REPORT.names or ()),
        ("life", "i8"),
        ("next", "i8"),  # next free report
        ("running", "i8"),  # number of running jobs
        ("queued", "i8"),  # number of waiting jobs
    ]
)
"""A report under way: the fields of `fleet.intake.REPORT`, and the lengths of its lists."""

RESULT = np.dtype(
    [
        ("status", "i4"),
        ("reason", "i4"),
        ("balancer", "i4"),
        ("row", "i4"),  # row decided; −1 none
        ("server", "i4"),  # server that answered; −1 none
        ("service", "i4"),
        ("form", "i4"),
        ("attempts", "i4"),
        ("probability", "f8"),
        ("command", "i8"),
        ("dispatch", "i8"),
        ("predicted", "f8"),  # latency of the row decided, NaN if it sheds
        ("latency", "f8"),  # NaN unless served
        ("utility", "f8"),
        # stamps, absolute; NaN = never reached
        ("decided_at", "f8"),  # at the balancer
        ("uploaded", "f8"),
        ("decided", "f8"),  # the command reaches the ingress
        ("transferred", "f8"),
        ("started", "f8"),
        ("finished", "f8"),
        ("answered", "f8"),
        ("received", "f8"),
    ]
)


class World(NamedTuple):
    """The state of the world without reports and beliefs.

    S servers, K services, L links, B deciders (`settings.balancers`), M slots, N requests. It is
    separate from `Sim` because each array of a tuple costs compile time in every function that
    takes the tuple.
    """

    settings: Array  # SETTINGS (1,)
    clock: Array  # CLOCK (1,)
    near: Array  # float64 (1 + NEAR,): +inf, then the times of the near events, falling
    near_codes: Array  # int64 (1 + NEAR,): the codes of the near events
    events: Array  # EVENT (H,), a binary heap of the other events
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
    numbers: Array  # float64: latency curves, capacities, outages, slowdowns
    noise: Array  # float64 (2^noise_bits,): noise factors of service times, shared by worlds
    seen: Array  # `intake.ACKNOWLEDGED` (B, S)
    signs: Array  # SIGN (S, S)
    results: Array  # RESULT (N,), or (0,)


class Reports(NamedTuple):
    """Reports under way: P of them, W workers of the largest server."""

    heads: Array  # REPORT (P,)
    jobs: Array  # float64 (2, P, QUEUE_MAX): deadlines, works
    running: Array  # float64 (P, W)
    links: Array  # `intake.REPORT_LINK` (P, 2 or 1 + S): the access link, then those it sends on
    services: Array  # `intake.REPORT_SERVICE` (P, most services of a server)
    seen: Array  # `intake.ACKNOWLEDGED` (P, B)
    signs: Array  # int64 (P, S): of each peer, `fleet.ejection.on_signs`


class Sim(NamedTuple):
    """A simulation: the world, its script, reports, beliefs and candidate table."""

    world: World
    script: Array  # SCRIPT, by time
    reports: Reports
    beliefs: Belief  # each array with a leading axis of B
    belief: Belief  # views of the first balancer's, which is mostly the only one
    table: CandidateTable


CONSTANTS = frozenset({"requests", "path", "numbers", "noise", "first", "edf"})
"""Names of arrays that are never written to; branches share them."""


def belief_of(beliefs: Belief, balancer: int) -> Belief:
    """The belief of one balancer, as views."""
    return Belief(*(array[balancer] for array in beliefs))
