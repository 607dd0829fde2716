"""The vocabulary: what the parts of edgewise say to each other.

Every type is a frozen ``msgspec.Struct`` and is at once wire message, log record and training
datum. Times are seconds, sizes are bytes. A stamp is seconds since the Unix epoch on the clock of
the machine that made it; a duration never mixes two clocks, with one exception that says so
(`Stamps`).

Nothing of ours is imported here but the exceptions.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from edgewise.decoding import convert, decode_json, pattern
from edgewise.errors import WireError

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
        r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z",
        "an id (letters, digits, . _ : -; at most 128 of them)",
    ),
]

Seconds = Annotated[float, Meta(ge=0.0, le=1e9)]
Stamp = Annotated[float, Meta(ge=0.0, le=1e12)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Count = Annotated[int, Meta(ge=0, le=2**53)]

DEFAULT_TASK = "imagenet-1k"
"""Task of a request, service or scenario that names none (`edgewise.tasks`)."""

DEADLINE_MAX = 3600.0
"""s. A photo that may take over an hour needs no load balancer; a larger value is a unit error."""


class PayloadForm(enum.IntEnum):
    """What a transfer carries."""

    ORIGINAL = 0
    """The photo as the client sent it, streamed on while it still arrives."""
    MODEL_READY = 1
    """Cropped and resized at the ingress for the destination's model; JPEG q92 4:4:4."""


class Status(enum.StrEnum):
    """How a request ended. Closed: every accepted request ends in exactly one of these."""

    SERVED = "served"
    SHED = "shed"
    """Refused on purpose, with a reason."""
    EXPIRED = "expired"
    """Its deadline (and the score's grace) passed before it ran."""
    FAILED = "failed"
    """Something broke and said so."""
    LOST = "lost"
    """No answer came at all; only the client can say this."""


class ShedReason(enum.StrEnum):
    """Why a request was refused."""

    NO_SERVICE = "no_service"
    """No service of the fleet meets the accuracy demanded."""
    NONE_UP = "none_up"
    """Services meet it, none of their servers is up."""
    PRICE = "price"
    """The policy expects more from the capacity elsewhere."""
    QUEUE_FULL = "queue_full"
    DRAINING = "draining"


def run_name(seed: int) -> str:
    """The name of a run of a scenario's own trace, with which its request ids begin: ``s1``."""
    return f"s{seed}"


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
    """The metadata of one request: all that is known before the photo is in.

    `sent_at` is on the clock of whoever holds the object. On the wire the *remaining budget*
    travels beside it, and the receiver re-anchors `sent_at` to its own clock: the deadline then
    holds on machines whose clocks differ, at the price of the header's own propagation delay.
    """

    id: RequestId
    ingress: Name
    payload_bytes: Count
    sent_at: Stamp
    deadline: Annotated[float, Meta(gt=0.0, le=DEADLINE_MAX)]
    """s from `sent_at`."""
    accuracy: Share = 0.0
    """The least accuracy an answer must come with."""
    task: Name = DEFAULT_TASK

    @property
    def due(self) -> float:
        """When the deadline passes, on the clock of `sent_at`."""
        return self.sent_at + self.deadline

    def slack(self, now: float) -> float:
        """Seconds left until the deadline; negative once it has passed."""
        return self.due - now

    def expired(self, now: float) -> bool:
        """Whether the deadline has passed."""
        return now >= self.due

    def admits(self, service: Service) -> bool:
        """Whether an answer of `service` can count: same task, accuracy ≥ demanded."""
        return service.task == self.task and service.accuracy >= self.accuracy

    # -- wire forms ----------------------------------------------------------------------------

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes | str) -> Request:
        """Raises WireError naming the field."""
        return decode_json(data, cls)

    def to_headers(self, now: float) -> dict[str, str]:
        """HTTP headers; `now`, when they will be in, makes the remaining budget."""
        fields = {
            "id": self.id,
            "ingress": self.ingress,
            "payload-bytes": str(self.payload_bytes),
            "sent-at": repr(self.sent_at),
            "deadline": repr(self.deadline),
            "accuracy": repr(self.accuracy),
            "task": self.task,
            "budget": repr(self.slack(now)),
        }
        return {HEADER + key: value for key, value in fields.items()}

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], now: float | None = None) -> Request:
        """Read what `to_headers` wrote; names are matched without regard to case.

        With `now` the remaining budget, if there, re-anchors `sent_at`. Raises WireError.
        """
        low = {key.lower(): value for key, value in headers.items()}
        return cls._from_fields(
            {key: low.get(HEADER + key.replace("_", "-")) for key in _FIELDS}, HEADER, now
        )

    def to_parameters(self, now: float) -> dict[str, str | int | float]:
        """Open Inference Protocol ``parameters``.

        ``timeout`` is Triton's: the remaining budget in µs. The rest is namespaced, for no
        standard key exists.
        """
        return {
            "timeout": max(0, round(self.slack(now) * 1e6)),
            "edgewise.id": self.id,
            "edgewise.ingress": self.ingress,
            "edgewise.payload_bytes": self.payload_bytes,
            "edgewise.sent_at": self.sent_at,
            "edgewise.deadline": self.deadline,
            "edgewise.accuracy": self.accuracy,
            "edgewise.task": self.task,
            "edgewise.budget": self.slack(now),
        }

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any], now: float | None = None) -> Request:
        """Read what `to_parameters` wrote. ``timeout`` alone stands for deadline and budget."""
        fields = {key: parameters.get("edgewise." + key) for key in _FIELDS}
        timeout = parameters.get("timeout")
        if timeout is not None and fields["deadline"] is None and now is not None:
            fields["deadline"] = _number("timeout", timeout) / 1e6
            if fields["sent_at"] is None:
                fields["sent_at"] = now
        return cls._from_fields(fields, "edgewise.", now)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any], prefix: str, now: float | None) -> Request:
        given = {key: value for key, value in fields.items() if value is not None}
        budget = given.pop("budget", None)
        for key in ("sent_at", "deadline", "accuracy"):
            if key in given:
                given[key] = _number(prefix + key, given[key])
        if "payload_bytes" in given:
            given["payload_bytes"] = _whole(prefix + "payload_bytes", given["payload_bytes"])
        request = convert(given, cls, prefix)
        if budget is None or now is None:
            return request
        left = min(_number(prefix + "budget", budget), request.deadline)
        return msgspec.structs.replace(request, sent_at=max(0.0, now - (request.deadline - left)))


HEADER = "edgewise-"
_FIELDS = (
    "id",
    "ingress",
    "payload_bytes",
    "sent_at",
    "deadline",
    "accuracy",
    "task",
    "budget",
)


class Service(Struct, frozen=True, kw_only=True):
    """One model on one server. The same model on two servers is two services."""

    server: Name
    model: Name
    accuracy: Share
    latency: Annotated[tuple[Annotated[float, Meta(gt=0.0)], ...], Meta(min_length=1)]
    """s on this server to run a batch of 1, 2, …, decoding included: the latency curve."""
    input_size: Annotated[int, Meta(ge=1, le=4096)] = 224
    """Side of the model's square input in pixels; what *model-ready* is made for."""
    ready_bytes: Count = 24_000
    """Expected size of the model-ready form."""
    ready_saving: Seconds = 0.0
    """s on this server that a model-ready payload saves of `latency` (decode and resize)."""
    ready_accuracy: Share | None = None
    """Accuracy when fed the model-ready form; None: the same."""
    task: Name = DEFAULT_TASK

    def accuracy_of(self, form: PayloadForm | None) -> float:
        """Accuracy when fed a payload of this form."""
        if form is PayloadForm.MODEL_READY and self.ready_accuracy is not None:
            return self.ready_accuracy
        return self.accuracy


class QueueItem(Struct, frozen=True, array_like=True, gc=False):
    """A request waiting on a server."""

    deadline: Stamp
    """Absolute, reporter's clock."""
    work: Seconds
    """Service seconds it will take of a worker."""


class ServiceReport(Struct, frozen=True, array_like=True, gc=False):
    """How a service has been doing."""

    service_time: Seconds
    """EWMA of recent per-request service time, s."""
    batch: Annotated[float, Meta(ge=0.0)]
    """Mean batch size."""
    served: Count
    """Requests since start."""


class PeerReport(Struct, frozen=True, array_like=True, gc=False):
    """What a server knows of the way to one peer. None = never measured."""

    throughput: Annotated[float, Meta(gt=0.0)] | None
    """bytes/s the path would give one transfer alone; measured at the receiver."""
    measured_at: Stamp | None
    rtt: Seconds | None
    """Least recent round-trip time, s."""
    backlog: Annotated[float, Meta(ge=0.0)]
    """Bytes accepted for this peer that have not arrived there yet, as far as the server knows:
    what it has word of is in, and the rest shares the rate that it has measured."""
    flows: Count
    """Transfers under way to it."""


class Report(Struct, frozen=True, kw_only=True, gc=False):
    """What a server says of itself. All times on its own clock, like `at`."""

    server: Name
    at: Stamp
    workers: Annotated[int, Meta(ge=1, le=4096)]
    running: tuple[Seconds, ...] = ()
    """What is left of each running piece of work, s; at most `workers`."""
    queue: tuple[QueueItem, ...] = ()
    prepare_backlog: Seconds = 0.0
    """s of CPU waiting in the pre-processing stage."""
    services: dict[Name, ServiceReport] = {}
    """By model."""
    peers: dict[Name, PeerReport] = {}
    """By server; the way *from* clients stands under this server's own name."""
    utilisation: Share = 0.0
    """Busy worker share over about a second."""
    draining: bool = False
    commands_seen: Count = 0
    """Sequence number of the last command received: later ones are not in this report."""
    arrivals_low: Count = 0
    """Every dispatch to this server up to this number has arrived …"""
    arrivals_bits: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """… and of the next 63 those whose bit is set (bit 0 = `arrivals_low` + 1). The idea is TCP's
    selective acknowledgement (RFC 2018): it tells dispatches that are in `queue` from those still
    on the way, exactly, though transfers overtake each other."""

    def figures(self) -> dict[str, float | int | bool]:
        """The fields that are single numbers, by name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: each for name, each in values.items() if isinstance(each, int | float)}


class Candidate(Struct, frozen=True, array_like=True, gc=False):
    """A (server, service, form) that could answer a request."""

    server: Name
    model: Name
    form: PayloadForm


class Observation(Struct, frozen=True, kw_only=True, eq=False, gc=False):
    """One request and what is believed of every way to answer it, at `at`.

    The columns of the three float64 tables are named and documented in `edgewise.fleet.table`.
    Ages of what they rest on are columns of their own.
    """

    request: Request
    at: Stamp
    rows: NDArray[np.float64]
    """(R, len(ROW)): a row per (service, form), and the shed row last."""
    mask: NDArray[np.uint8]
    """(R,): 1 where the row may be chosen. Shed may always be."""
    servers: NDArray[np.float64]
    """(S, len(SERVER)): what rows of one server share."""
    context: NDArray[np.float64]
    """(len(CONTEXT),): what all rows share."""
    candidates: tuple[Candidate | None, ...]
    """(R,): who stands behind each row; None = shed."""

    def to_json(self) -> bytes:
        return msgspec.json.encode(self, enc_hook=_encode_array)

    @classmethod
    def from_json(cls, data: bytes | str) -> Observation:
        """Raises WireError naming the field."""
        return decode_json(data, cls, _decode_array)


class Decision(Struct, frozen=True, kw_only=True, gc=False):
    """What a policy decided, with what is needed to learn from it."""

    request: RequestId
    ranked: tuple[Candidate, ...]
    """Best first; empty = shed."""
    rows: tuple[int, ...]
    """The row of the candidate table behind each of `ranked`; (the shed row,) if shed."""
    probability: Annotated[float, Meta(gt=0.0, le=1.0)]
    """With which the first was drawn: the propensity."""
    policy: Name
    version: str = "1"
    at: Stamp
    reason: ShedReason | None = None
    """Set exactly if shed."""


class Command(Struct, frozen=True, kw_only=True, tag="command", gc=False):
    """Balancer to ingress: what to do with a request.

    `server` None = shed. `alternatives` are tried in order when `server` cannot be reached.
    """

    request: RequestId
    sequence: Count
    """Counts the commands to this ingress."""
    dispatch: Count = 0
    """Counts the dispatches to `server`; travels with the transfer."""
    server: Name | None = None
    model: Name | None = None
    form: PayloadForm = PayloadForm.ORIGINAL
    reason: ShedReason | None = None
    alternatives: tuple[Candidate, ...] = ()


class Stamps(Struct, frozen=True, kw_only=True, gc=False):
    """When each stage ended. None = never got there.

    `sent` and `received` are the client's clock, `accepted` … `decided` and `answered` the
    ingress's, the others the serving server's. Between machines the stage durations are as good
    as their clock synchronisation; latency and deadline never rest on them.
    """

    sent: Stamp | None = None
    accepted: Stamp | None = None
    """Headers were in at the ingress."""
    uploaded: Stamp | None = None
    """The body was in at the ingress."""
    decided: Stamp | None = None
    """The ingress had the command."""
    transferred: Stamp | None = None
    """The body was in at the serving server, in the form it runs."""
    started: Stamp | None = None
    """A worker took it."""
    finished: Stamp | None = None
    answered: Stamp | None = None
    """The ingress began to answer."""
    received: Stamp | None = None
    """The client had the last byte."""

    def stages(self) -> dict[str, float | None]:
        """Seconds in each stage; None where an end is missing. They add up to the latency.

        Upload and decision overlap: each runs from where the request stood before, so a stage
        that was hidden behind another counts 0.
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
    """How a request ended, joined to its decision by `request`."""

    request: RequestId
    status: Status
    latency: Seconds | None = None
    """s at the client from sent to the last byte; None unless an answer came."""
    server: Name | None = None
    """The server that *really* served it, which need not be the one picked."""
    model: Name | None = None
    form: PayloadForm | None = None
    predicted: Annotated[int, Meta(ge=0, le=10**6)] | None = None
    label: Annotated[int, Meta(ge=0, le=10**6)] | None = None
    """The right class; only the evaluator knows it."""
    accuracy: Share | None = None
    """Of the service that served it."""
    reason: str | None = None
    stamps: Stamps = Stamps()


class Score(Struct, frozen=True, kw_only=True, gc=False):
    """What an outcome is worth, and of what parts (see `edgewise.score`)."""

    expected: float
    realised: float
    effective: bool
    """Answered right, in time, by a service that meets the demand."""
    timeliness: Share
    meets_demand: bool


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {"shape": value.shape, "dtype": value.dtype.str, "data": value.tobytes()}
    raise NotImplementedError(type(value))


class _Array(Struct, forbid_unknown_fields=True):
    shape: tuple[Count, ...]
    dtype: str
    data: bytes


def _decode_array(kind: Any, value: Any) -> Any:
    try:
        wire = msgspec.convert(value, _Array, builtin_types=())
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None  # as such it would lose the field's name outside
    if wire.dtype not in ("<f8", "|u1"):
        raise ValueError(f"Expected an array of <f8 or |u1, got {wire.dtype!r:.20}")
    dtype = np.dtype(wire.dtype)
    if math.prod(wire.shape) * dtype.itemsize != len(wire.data):
        raise ValueError(f"Expected {wire.shape} × {dtype.itemsize} bytes, got {len(wire.data)}")
    return np.frombuffer(wire.data, dtype).reshape(wire.shape)


# -- reading -------------------------------------------------------------------------------------


def _number(field: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise WireError(field, f"Expected a number, got {value!r:.60}") from None
    if not math.isfinite(number):
        raise WireError(field, f"Expected a finite number, got {value!r:.60}")
    return number


def _whole(field: str, value: Any) -> int:
    number = _number(field, value)
    if number != int(number):
        raise WireError(field, f"Expected a whole number, got {value!r:.60}")
    return int(number)
