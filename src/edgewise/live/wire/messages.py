"""The control channel between a node and its balancer: its messages.

One WebSocket (``GET /v1/control``), opened by the node, so that it works from behind NAT; binary
frames of msgpack. A JSON decision over HTTP would cost twice the CPU of the whole decision, gRPC
twenty times (`docs/design.md`).

    node → balancer: Hello first; then Ask, Reported, Answered, Pong
    balancer → node: Welcome first; then Command, Ping, Fleet

Every message is applied whole and in order. Clocks: Ping and Pong tell the balancer how far a
node's clock is ahead (half the round trip, as NTP does); it converts, the node never does.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from edgewise.domain import Command, Name, Outcome, Report, Request, Stamp
from edgewise.errors import PeerError

PROTOCOL = 1


class Hello(Struct, frozen=True, kw_only=True, tag="hello"):
    """Who opens the channel."""

    server: Name
    models: tuple[Name, ...]
    protocol: int = PROTOCOL
    version: str = ""


class Welcome(Struct, frozen=True, kw_only=True, tag="welcome"):
    """The balancer takes the node."""

    policy: Name
    at: Stamp
    protocol: int = PROTOCOL


class Ask(Struct, frozen=True, kw_only=True, tag="ask"):
    """Headers of a request are in and no command has come yet. Idempotent by request id."""

    request: Request
    uploaded: Stamp | None = None
    """When its body was in; None while it is still coming."""


class ReportMessage(Struct, frozen=True, kw_only=True, tag="report"):
    report: Report


class OutcomeMessage(Struct, frozen=True, kw_only=True, tag="answered"):
    """The ingress answered a request. `latency` and `received` are the client's to add."""

    outcome: Outcome


class Ping(Struct, frozen=True, kw_only=True, tag="ping"):
    at: Stamp


class Pong(Struct, frozen=True, kw_only=True, tag="pong"):
    ping: Stamp
    at: Stamp


class FleetReports(Struct, frozen=True, kw_only=True, tag="fleet"):
    """The newest report of every other server, so that a node left alone can go on deciding.

    Stamps are on the balancer's clock.
    """

    reports: tuple[Report, ...]
    at: Annotated[float, Meta(ge=0)]


FromNode: TypeAlias = Hello | Ask | ReportMessage | OutcomeMessage | Pong
FromBalancer: TypeAlias = Welcome | Command | Ping | FleetReports

_encoder = msgspec.msgpack.Encoder()
_from_node = msgspec.msgpack.Decoder(FromNode)
_from_balancer = msgspec.msgpack.Decoder(FromBalancer)


def encode(message: FromNode | FromBalancer) -> bytes:
    return _encoder.encode(message)


def decode_from_node(data: bytes) -> FromNode:
    """Raises PeerError if it is none of the messages a node sends."""
    return _decode(_from_node, data)  # type: ignore[no-any-return]


def decode_from_balancer(data: bytes) -> FromBalancer:
    """Raises PeerError if it is none of the messages a balancer sends."""
    return _decode(_from_balancer, data)  # type: ignore[no-any-return]


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise PeerError(f"control channel: {error}") from None


class Submission(Struct, frozen=True, kw_only=True):
    """Body of ``POST /v1/requests``: a client's metadata.

    `budget` re-anchors the deadline to the balancer's clock, as with HTTP headers.
    """

    request: Request
    budget: float
    """s left until the deadline when this comes in, as far as its sender knows the way."""

    def anchored(self, now: float) -> Request:
        """The request on a clock that reads `now`."""
        budget = min(self.budget, self.request.deadline)
        sent_at = max(0.0, now - (self.request.deadline - budget))
        return msgspec.structs.replace(self.request, sent_at=sent_at)
