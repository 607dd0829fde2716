"""The control channel between a node and its balancer: its messages.

The channel is one WebSocket (``GET /v1/control``) with binary frames of msgpack. The node opens it,
so it works from behind NAT. A JSON decision over HTTP would cost twice the CPU of the whole
decision, gRPC twenty times (`docs/design.md`).

    node → balancer: Hello first; then Ask, ReportMessage, OutcomeMessage, Pong
    balancer → node: Welcome first; then Command, Ping, FleetReports

Hello, Welcome and reports carry the version of this protocol. A process understands its own version
and the one before, so a fleet is upgraded process by process, the balancer first.

Every message is applied whole and in order. Ping and Pong tell the balancer how far a node's clock
is ahead, by half the round trip as in NTP. The balancer converts times, the node never does.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from edgewise.decoding import wire_error
from edgewise.domain import Attempt, Command, Count, Name, Outcome, Report, Request, Stamp
from edgewise.errors import PeerError

PROTOCOL = 2
"""1 had reports without a version, and no attempts in outcomes."""
UNDERSTOOD = (PROTOCOL, PROTOCOL - 1)


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """A node opens the channel."""

    server: Name
    models: tuple[Name, ...]
    protocol: int = PROTOCOL
    version: str = ""
    instance: Count = 0
    """Another number after each start of the node: what was measured of it before no longer holds.
    The same after it has only connected again."""


class Welcome(Struct, frozen=True, kw_only=True, tag="welcome"):
    """The balancer accepts the node."""

    policy: Name
    at: Stamp
    protocol: int = PROTOCOL


def check_protocol(version: int, whose: str) -> None:
    """Raise PeerError, naming both versions, unless `version` is understood."""
    if version not in UNDERSTOOD:
        ours = " and ".join(map(str, UNDERSTOOD))
        raise PeerError(f"{whose} speaks protocol {version}, understood are {ours}")


class Ask(Struct, frozen=True, kw_only=True, tag="ask"):
    """The ingress has the headers of a request, but no command. Idempotent by request id."""

    request: Request
    uploaded: Stamp | None = None
    """When the body was in; None while it is still coming."""


class ReportMessage(Struct, frozen=True, kw_only=True, tag="report"):
    """A node's report on itself."""

    report: Report
    protocol: int = 1


class OutcomeMessage(Struct, frozen=True, kw_only=True, tag="answered"):
    """The ingress has answered a request. The client adds `latency` and `received`."""

    outcome: Outcome
    attempts: tuple[Attempt, ...] = ()
    """The servers that it tried, in order. Empty: the request was refused before, or its client
    went away."""


class Ping(Struct, frozen=True, kw_only=True, tag="ping"):
    """The balancer's clock, sent to be returned."""

    at: Stamp


class Pong(Struct, frozen=True, kw_only=True, tag="pong"):
    """The answer to a ping: its `at` as `ping`, and the node's clock."""

    ping: Stamp
    at: Stamp


class FleetReports(Struct, frozen=True, kw_only=True, tag="fleet"):
    """The newest report of every other server, for a node that has to decide for itself.

    Stamps are on the balancer's clock.
    """

    reports: tuple[Report, ...]
    at: Stamp


FromNode: TypeAlias = Hello | Ask | ReportMessage | OutcomeMessage | Pong
FromBalancer: TypeAlias = Welcome | Command | Ping | FleetReports

_encoder = msgspec.msgpack.Encoder()
_from_node = msgspec.msgpack.Decoder(FromNode)
_from_balancer = msgspec.msgpack.Decoder(FromBalancer)


def encode(message: FromNode | FromBalancer) -> bytes:
    return _encoder.encode(message)


def decode_from_node(data: bytes) -> FromNode:
    """Raises PeerError if it is none of the messages that a node sends."""
    return _decode(_from_node, data)  # type: ignore[no-any-return]


def decode_from_balancer(data: bytes) -> FromBalancer:
    """Raises PeerError if it is none of the messages that a balancer sends."""
    return _decode(_from_balancer, data)  # type: ignore[no-any-return]


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise PeerError(f"control channel: {wire_error(error)}") from None
    except msgspec.DecodeError as error:
        raise PeerError(f"control channel: {error}") from None


class Submission(Struct, frozen=True, kw_only=True):
    """Body of ``POST /v1/requests``: a client's metadata.

    `budget` re-anchors the deadline to the balancer's clock, as with HTTP headers.
    """

    request: Request
    budget: float
    """s that will be left until the deadline when this is in, as far as the sender can tell."""

    def anchored(self, now: float) -> Request:
        """The request on a clock that reads `now`."""
        budget = min(self.budget, self.request.deadline)
        sent_at = max(0.0, now - (self.request.deadline - budget))
        return msgspec.structs.replace(self.request, sent_at=sent_at)
