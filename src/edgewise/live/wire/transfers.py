"""Requests that one server transfers to another: what goes beside the V2 infer request.

A transfer is a V2 infer request for a concrete model, with these headers more:

    edgewise-*                  the request's metadata, with the remaining budget
    edgewise-via                the server that sends it
    edgewise-attempt            counts the sender's attempts at one request
    edgewise-dispatch           the decider's number for it; 0: an attempt that nobody counts
    edgewise-decider            the server that decided; absent: the balancer
    edgewise-ready-size         input size that the photo was made ready for; absent: original
    edgewise-label              the right class, for the replay executor

The receiver answers as soon as the last byte is in, with *202 Accepted*. The body of that answer
follows when the request has ended, with the HTTP status inside as ``code``. So the sender knows
when its link is free again without comparing clocks, and can tell a stuck link from a long queue. A
receiver that refuses a transfer before the body is in does so as to any client.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from edgewise.errors import PeerError, WireError
from edgewise.live.wire.request_metadata import HEADER

LABEL_HEADER = HEADER + "label"
VIA_HEADER = HEADER + "via"
DISPATCH_HEADER = HEADER + "dispatch"


class TransferHeaders(Struct, frozen=True, kw_only=True):
    """The headers of a transfer beside the request's metadata."""

    via: str
    """The server that sends it."""
    attempt: int = 0
    """Counts the sender's attempts at the request."""
    dispatch: int = 0
    """The decider's number for it; 0: none."""
    decider: str = ""
    """The server that decided for itself; "": the balancer."""
    ready_size: int | None = None
    """Input size that the payload was made ready for; None: the original photo."""
    label: int | None = None
    """The right class, for the replay executor."""

    def encode(self) -> dict[str, str]:
        """As HTTP headers."""
        return {
            _header(name): str(value)
            for name in self.__struct_fields__
            if (value := getattr(self, name)) not in (None, "")
        }

    @classmethod
    def decode(cls, headers: Mapping[str, str]) -> TransferHeaders:
        """Read HTTP headers. Raises WireError naming the header."""
        return cls(
            via=headers.get(VIA_HEADER, ""),
            attempt=whole_number(headers, _header("attempt")) or 0,
            dispatch=whole_number(headers, DISPATCH_HEADER) or 0,
            decider=headers.get(_header("decider"), ""),
            ready_size=whole_number(headers, _header("ready_size")),
            label=whole_number(headers, LABEL_HEADER),
        )


def _header(field: str) -> str:
    return HEADER + field.replace("_", "-")


def is_transfer(headers: Mapping[str, str]) -> bool:
    """Whether a peer, and not a client, sends a request with these headers."""
    return DISPATCH_HEADER in headers


def whole_number(headers: Mapping[str, str], name: str) -> int | None:
    """The number in a header; None if it is absent. Raises WireError."""
    text = headers.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise WireError(name, f"expected a whole number, got {text!r:.40}")
    return int(text)


def with_code(code: int, answer: bytes) -> bytes:
    """The body of a 202: a V2 answer (a JSON object) with its HTTP status inside."""
    return b'{"code":%d,' % code + answer[1:]


def code_in(body: bytes) -> int:
    """The HTTP status inside the body of a 202. Raises PeerError."""
    try:
        return msgspec.json.decode(body, type=_Code).code
    except msgspec.DecodeError as error:
        raise PeerError(f"a transfer's answer without a code: {error}") from None


class _Code(Struct):
    code: int
