"""The vocabulary of edgewise: requests, services, reports, decisions, commands and outcomes.

A client sends a `Request` to its *ingress*, the edge server nearest to it. The balancer knows the
`Service` objects of the fleet and the latest `Report` of every server. From these it makes an
`Observation` with one row per `Candidate`, a policy turns that into a `Decision`, and the ingress
gets a `Command`. The request ends in exactly one `Outcome`, which `edgewise.score` turns into a
`Score`.

Every type is a frozen ``msgspec.Struct`` and serves as wire message, log record and training datum
alike. Times are seconds and sizes bytes. A `Stamp` is a time on the clock of the machine that took
it, in seconds since the Unix epoch. Durations are never differences between two clocks, except for
the stages in `Stamps`.
"""

from __future__ import annotations

import enum
import re
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from edgewise.decoding import pattern

Name = Annotated[
    str,
    pattern(
        r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", "a name (letters, digits, . _ -; at most 64 of them)"
    ),
]
"""Name of a server, model, policy or task."""

PolicyName = Annotated[
    str,
    pattern(
        r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63}|.+\.safetensors|.+\.py:[A-Za-z_]\w*)(@.+\.json)?\Z",
        "the name of a policy, a file of weights (*.safetensors) or a policy in a Python file "
        "(FILE.py:NAME)",
    ),
]

RequestId = Annotated[
    str,
    pattern(
        r"^([a-z]+\.[A-Za-z0-9._-]{1,64}/)?[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z",
        "an id (letters, digits, . _ : -; at most 128 of them)",
    ),
]
"""A client's own id. Inside a fleet with identities its owner stands before it (`owned_id`)."""

SECONDS = Meta(extra={"unit": "s"})
BYTES = Meta(extra={"unit": "bytes"})
BYTES_PER_SECOND = Meta(extra={"unit": "bytes/s"})
"""Units of fields. They stand in the metadata of the tables that are made of the types below."""

Seconds = Annotated[float, Meta(ge=0.0, le=1e9), SECONDS]
"""A duration."""
Stamp = Annotated[float, Meta(ge=0.0, le=1e12), SECONDS]
"""A time: seconds since the Unix epoch, on the clock of the machine that took it."""
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Bytes = Annotated[int, Meta(ge=0, le=2**53), BYTES]

DEFAULT_TASK = "imagenet-1k"
"""Task of a request, service or scenario that names none (`edgewise.tasks`)."""

HELD_MAX = 256
"""Commands that a report lists as held; under 800 bytes."""

DEADLINE_MAX = 3600.0
"""s. An answer that may take an hour needs no load balancer: a longer deadline is a wrong unit."""


class PayloadForm(enum.IntEnum):
    """The form in which a payload travels between servers.

    >>> PayloadForm(1)
    <PayloadForm.MODEL_READY: 1>
    """

    ORIGINAL = 0
    """As the client sent it. The ingress forwards it while it is still arriving."""
    MODEL_READY = 1
    """Made smaller at the ingress for one model's input: a photo is cropped and resized."""


class Status(enum.StrEnum):
    """How a request ended. Every accepted request ends in exactly one of these ways.

    >>> [status.value for status in Status]
    ['served', 'shed', 'expired', 'failed', 'lost']
    """

    SERVED = "served"
    SHED = "shed"
    """Refused on purpose, for a `ShedReason`."""
    EXPIRED = "expired"
    """Too late to be worth running (`score.worthless_after`)."""
    FAILED = "failed"
    """Something broke and reported it."""
    LOST = "lost"
    """No answer came at all; only the client can tell."""


class Fault(enum.StrEnum):
    """Why a server did not answer a request that was sent to it, and whose failure that is.

    >>> Fault.UNREACHABLE.of_path, Fault.ERROR.of_server, Fault.REFUSED.of_server
    (True, True, False)
    """

    ERROR = "error"
    """The server's: it answered with an error of its own, or with nonsense."""
    UNANSWERED = "unanswered"
    """The server's: it had the payload and gave no answer while that could still score. A server
    with a long queue does so, too."""
    UNREACHABLE = "unreachable"
    """The path's: the connection was refused, or broke off."""
    UNDELIVERED = "undelivered"
    """The path's: the payload did not get there while an answer could still score. A slow link
    that carries much does so, too."""
    REFUSED = "refused"
    """Nobody's: the server has no room, or is about to stop."""
    BAD_REQUEST = "bad_request"
    """The client's: the payload cannot be used; two servers agree on it, or nobody else was asked.
    """

    @property
    def of_server(self) -> bool:
        """Whether the server has failed."""
        return self in (Fault.ERROR, Fault.UNANSWERED)

    @property
    def of_path(self) -> bool:
        """Whether the path from the ingress to the server has failed."""
        return self in (Fault.UNREACHABLE, Fault.UNDELIVERED)


class Attempt(Struct, frozen=True, array_like=True, gc=False):
    """One try of an ingress at answering a request. A request that fails over has several.

    >>> Attempt("depot", Fault.ERROR).fault.of_server
    True
    """

    server: Name
    """The server that was to run it; the ingress itself may be one."""
    fault: Fault | None = None
    """None: it answered."""


class ShedReason(enum.StrEnum):
    """Why a request was refused.

    >>> ShedReason("price")
    <ShedReason.PRICE: 'price'>
    """

    NO_SERVICE = "no_service"
    """No service in the fleet meets the demanded accuracy."""
    NONE_UP = "none_up"
    """Some services meet it, but none of their servers is up."""
    PRICE = "price"
    """The policy expects more utility from using the capacity for other requests."""
    QUEUE_FULL = "queue_full"
    DRAINING = "draining"


def run_name(seed: int) -> str:
    """The name of a run of a scenario's own trace, with which its request ids begin: ``s1``."""
    return f"s{seed}"


def owned_id(owner: str, request: str) -> str:
    """The id by which a fleet knows a client's request, so that no other client's can be the same.

    `owner` is the client's role and name; "": identities are off.

    >>> owned_id("client.kiosk-7", "r1"), own_id("client.kiosk-7/r1")
    ('client.kiosk-7/r1', 'r1')
    """
    return f"{owner}/{request}" if owner else request


def own_id(request: str) -> str:
    """A request's id as its client gave it."""
    return request.rpartition("/")[2]


def request_id(number: int, run: str = "") -> str:
    """The id of request `number` of a run's trace: ``s1-r0000042``, or ``r0000042`` without a run.

    The simulator and the live client use the same ids, so their tables can be joined.
    """
    return f"{run}-r{number:07d}" if run else f"r{number:07d}"


def request_number(request: str) -> int | None:
    """The position in its trace of the request with this id; None if the id ends in no number."""
    match = re.search(r"\d+$", request)
    return int(match[0]) if match else None


class Request(Struct, frozen=True, kw_only=True, gc=False):
    """The metadata of a request: all that is known before its payload has arrived.

    `sent_at` is on the clock of whoever holds the object; `live.wire.request_metadata` moves it to
    the receiver's clock on the way.

    >>> request = Request(
    ...     id="r1", ingress="plaza", payload_bytes=90_000, sent_at=100.0, deadline=0.25
    ... )
    >>> request.slack(100.125)
    0.125
    """

    id: RequestId
    ingress: Name
    payload_bytes: Bytes
    sent_at: Stamp
    deadline: Annotated[float, Meta(gt=0.0, le=DEADLINE_MAX), SECONDS]
    """s after `sent_at`."""
    accuracy: Share = 0.0
    """The least accuracy that the service must have."""
    task: Name = DEFAULT_TASK
    named_model: Name | None = None
    """The only model that may answer; None: any model of the task."""

    @property
    def due(self) -> float:
        """The time of the deadline, on the clock of `sent_at`."""
        return self.sent_at + self.deadline

    def slack(self, now: float) -> float:
        """Seconds left until the deadline; negative after it."""
        return self.due - now

    def expired(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return now >= self.due

    def admits(self, service: Service) -> bool:
        """Whether `service` may answer: the same task, at least the demanded accuracy, and the
        named model."""
        named = self.named_model in (None, service.model)
        return named and service.task == self.task and service.accuracy >= self.accuracy


class Service(Struct, frozen=True, kw_only=True):
    """A model on a server. The same model on two servers makes two services.

    >>> service = Service(server="depot", model="lite0-160", accuracy=0.8, latency=(0.009,))
    >>> service.accuracy_of(PayloadForm.MODEL_READY)
    0.8
    """

    server: Name
    model: Name
    accuracy: Share
    latency: Annotated[tuple[Annotated[float, Meta(gt=0.0), SECONDS], ...], Meta(min_length=1)]
    """s that a batch of 1, 2, … takes on this server, decoding included."""
    input_size: Annotated[int, Meta(ge=1, le=4096)] = 224
    """Side of the model's square input, pixels; model-ready payloads are made for it."""
    ready_bytes: Bytes = 24_000
    """Expected bytes of a model-ready payload."""
    ready_saving: Seconds = 0.0
    """s of `latency` that a model-ready payload saves on this server (decoding, resizing)."""
    ready_accuracy: Share | None = None
    """Accuracy on model-ready payloads; None: the same."""
    task: Name = DEFAULT_TASK

    def accuracy_of(self, form: PayloadForm | None) -> float:
        """Accuracy on payloads of `form`."""
        if form is PayloadForm.MODEL_READY and self.ready_accuracy is not None:
            return self.ready_accuracy
        return self.accuracy


class QueueItem(Struct, frozen=True, array_like=True, gc=False):
    """A request in a server's queue."""

    deadline: Stamp
    """When it is due, on the clock of the server."""
    work: Seconds
    """How long it will occupy a worker."""


class ServiceReport(Struct, frozen=True, array_like=True, gc=False):
    """Recent performance of a service."""

    service_time: Seconds
    """Exponentially weighted mean of the service time per request."""
    batch: Annotated[float, Meta(ge=0.0)]
    """Mean batch size."""
    served: Count
    """Requests since the server started."""


class PeerReport(Struct, frozen=True, array_like=True, gc=False):
    """What a server knows of the network path to a peer. None: never measured."""

    throughput: Annotated[float, Meta(gt=0.0), BYTES_PER_SECOND] | None
    """bytes/s that a transfer alone on the path would get, as measured at the receiver."""
    measured_at: Stamp | None
    rtt: Seconds | None
    """The shortest of the recent round-trip times."""
    backlog: Annotated[float, Meta(ge=0.0), BYTES]
    """Estimated bytes on their way to the peer: transfers that it has confirmed have arrived, and
    the others share the measured rate."""
    flows: Count
    """Transfers to the peer in progress."""
    unanswered: Count = 0
    """Signs of life asked of the peer in a row, about one a second, that it did not give."""
    answered: Count = 0
    """Those in a row that it did give."""


class Report(Struct, frozen=True, kw_only=True, gc=False):
    """The state of a server, by the server itself; all times are on its own clock.

    >>> report = Report(server="depot", at=100.0, workers=2, running=(0.004,), utilisation=0.5)
    >>> report.figures()["workers"]
    2
    """

    server: Name
    at: Stamp
    workers: Annotated[int, Meta(ge=1, le=4096)]
    running: tuple[Seconds, ...] = ()
    """Remaining time of each running job; at most `workers` of them."""
    queue: tuple[QueueItem, ...] = ()
    prepare_backlog: Seconds = 0.0
    """s of CPU time waiting in the converter, which makes payloads model-ready."""
    services: dict[Name, ServiceReport] = {}
    """By model."""
    peers: dict[Name, PeerReport] = {}
    """By server. The entry under this server's own name is the path *from* its clients."""
    utilisation: Share = 0.0
    """Share of the workers that were busy during the last second or so."""
    draining: bool = False
    commands_seen: Count = 0
    """Sequence number of the last command received: this report reflects no later one."""
    arrivals_low: Count = 0
    """All dispatches to this server up to this number have arrived …"""
    arrivals_bits: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """… and so have those of the next 63 whose bit is set (bit 0 stands for `arrivals_low` + 1).

    As with TCP's selective acknowledgement (RFC 2018), the balancer knows exactly which dispatches
    are in `queue` and which are still on their way, although transfers overtake each other."""

    held: tuple[Count, ...] | None = None
    """The commands received whose requests are under way here, as distances below `commands_seen`:
    the newest `HELD_MAX` of them, newest first. None: the server does not say.

    Nothing else tells the balancer that a photo was lost, or that an outcome was."""

    def figures(self) -> dict[str, float | int | bool]:
        """The fields that are single numbers, by name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: each for name, each in values.items() if isinstance(each, int | float)}


class Candidate(Struct, frozen=True, array_like=True, gc=False):
    """A way to answer a request: a service, and the form in which the payload gets there.

    >>> Candidate("depot", "lite0-160", PayloadForm.ORIGINAL).server
    'depot'
    """

    server: Name
    model: Name
    form: PayloadForm


class Observation(Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """The candidate table of a request: what the balancer believes, at `at`, of every candidate.

    `edgewise.fleet.table` names and documents the columns. How old the underlying reports and
    measurements are, stands in columns of its own.

    >>> import edgewise as ew
    >>> from edgewise.fleet.tracker import Tracker
    >>> request = Request(id="r1", ingress="left", payload_bytes=9, sent_at=0.0, deadline=1.0)
    >>> seen = Tracker(ew.load("smoke")).observe(request, now=0.0)
    >>> len(seen.candidates) == seen.rows.shape[0] == seen.mask.size
    True
    """

    request: Request
    at: Stamp
    rows: NDArray[np.float64]
    """(R, len(ROW)): one row per candidate, and last the row that sheds."""
    mask: NDArray[np.uint8]
    """(R,): 1 where a row may be chosen. Shedding is always allowed."""
    servers: NDArray[np.float64]
    """(S, len(SERVER)): columns that all rows of a server share."""
    context: NDArray[np.float64]
    """(len(CONTEXT),): columns that all rows share."""
    candidates: tuple[Candidate | None, ...]
    """(R,): the candidate of each row; None: shed."""


class Decision(Struct, frozen=True, kw_only=True, gc=False):
    """The choice of a policy, with all that is needed to learn from it.

    >>> first = Candidate("depot", "lite0-160", PayloadForm.ORIGINAL)
    >>> Decision(
    ...     request="r1", ranked=(first,), rows=(4,), probability=1.0, policy="sed", at=100.0
    ... ).ranked[0].server
    'depot'
    """

    request: RequestId
    ranked: tuple[Candidate, ...]
    """Candidates, the best first; empty: shed."""
    rows: tuple[int, ...]
    """The rows of `ranked` in the candidate table; the row that sheds, if it was shed."""
    probability: Annotated[float, Meta(gt=0.0, le=1.0)]
    """Probability with which the first candidate was drawn (its propensity)."""
    policy: Name
    version: str = "1"
    at: Stamp
    reason: ShedReason | None = None
    """Given exactly if the request is shed."""
    overruled: bool = False
    """The policy would have shed the request; an idle fleet can answer it (`fleet.admission`)."""


class Command(Struct, frozen=True, kw_only=True, tag="command", gc=False):
    """The balancer tells the ingress what to do with a request.

    The ingress sheds it if `server` is None, and tries the `alternatives` in order if `server`
    cannot be reached.

    >>> Command(request="r1", sequence=7, reason=ShedReason.PRICE).server is None
    True
    """

    request: RequestId
    sequence: Count
    """Number of this command among those to the ingress."""
    dispatch: Count = 0
    """Number of this dispatch among those to `server`; it travels with the transfer."""
    server: Name | None = None
    model: Name | None = None
    form: PayloadForm = PayloadForm.ORIGINAL
    reason: ShedReason | None = None
    alternatives: tuple[Candidate, ...] = ()
    retry_after: Seconds | None = None
    """Of a request that is shed: s until the work is done that now waits where it could run."""


class Stamps(Struct, frozen=True, kw_only=True, gc=False):
    """When a request passed each point on its way. None: it never got there.

    `sent` and `received` are on the client's clock, `accepted` to `decided` and `answered` on the
    ingress's, the others on the serving server's. A stage between two machines is therefore only as
    accurate as their clocks agree; latencies and deadlines never depend on it.
    """

    sent: Stamp | None = None
    accepted: Stamp | None = None
    """The ingress had the headers."""
    uploaded: Stamp | None = None
    """The ingress had the whole payload."""
    decided: Stamp | None = None
    """The ingress had the command."""
    transferred: Stamp | None = None
    """The serving server had the payload, in the form that it runs."""
    started: Stamp | None = None
    """A worker began to run it."""
    finished: Stamp | None = None
    answered: Stamp | None = None
    """The ingress began to answer."""
    received: Stamp | None = None
    """The client had the last byte."""

    def stages(self) -> dict[str, float | None]:
        """Seconds in each stage; they add up to the latency. None where a stamp is missing.

        Upload and decision overlap. A stage counts from the end of the one before, so a stage
        that ended earlier than that counts 0.
        """
        marks = (
            ("upload", self.uploaded),
            ("decision", self.decided),
            ("transfer", self.transferred),
            ("queue", self.started),
            ("execute", self.finished),
            ("return", self.received),
        )
        out: dict[str, float | None] = {}
        before = self.sent
        for name, mark in marks:
            if mark is None or before is None:
                out[name] = None
            else:
                out[name] = max(0.0, mark - before)
                before = max(before, mark)
        return out


class Outcome(Struct, frozen=True, kw_only=True, gc=False):
    """How a request ended; its id joins it to the decision.

    >>> Outcome(request="r1", status=Status.SHED, reason="price").latency is None
    True
    """

    request: RequestId
    status: Status
    latency: Seconds | None = None
    """At the client, from sending to the last byte; None unless an answer came."""
    server: Name | None = None
    """The server that served it, which need not be the one that was picked."""
    model: Name | None = None
    form: PayloadForm | None = None
    predicted: Annotated[int, Meta(ge=0, le=10**6)] | None = None
    label: Annotated[int, Meta(ge=0, le=10**6)] | None = None
    """The right answer; only the evaluator knows it."""
    accuracy: Share | None = None
    """Accuracy of the service that served it."""
    reason: str | None = None
    stamps: Stamps = Stamps()


class Score(Struct, frozen=True, kw_only=True, gc=False):
    """The value of an outcome and its parts; `edgewise.score` defines them.

    >>> from edgewise.score import ScoreShape, score
    >>> request = Request(id="r1", ingress="a", payload_bytes=9, sent_at=0.0, deadline=0.25)
    >>> served = Outcome(request="r1", status=Status.SERVED, latency=0.375, accuracy=0.8)
    >>> score(request, served, ScoreShape()).expected
    0.4
    """

    expected: float
    realised: float
    effective: bool
    """Right, in time, and from a service that meets the demand."""
    timeliness: Share
    meets_demand: bool
