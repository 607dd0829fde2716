"""A request's metadata as HTTP headers or Open Inference Protocol parameters.

Beside `sent_at` travels the *remaining budget*: the time left until the deadline when the message
arrives. The receiver moves `sent_at` to its own clock with it. Deadlines then hold on machines
whose clocks differ, at the price of the time that the message itself took.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from edgewise.decoding import convert
from edgewise.domain import Request
from edgewise.errors import WireError

HEADER = "edgewise-"
"""All header names begin with this."""
PARAMETER = "edgewise."
"""All names of parameters begin with this, but for the standard ``timeout``."""
FIELDS = (*Request.__struct_fields__, "budget")
_HEADERS = frozenset(HEADER + name.replace("_", "-") for name in FIELDS)


def to_headers(request: Request, arrival: float) -> dict[str, str]:
    """HTTP headers of `request`; `arrival`, when they will be in, gives the remaining budget."""
    fields = msgspec.structs.asdict(request) | {"budget": request.slack(arrival)}
    return {
        HEADER + name.replace("_", "-"): value if isinstance(value, str) else repr(value)
        for name, value in fields.items()
        if value is not None
    }


def from_headers(
    headers: Mapping[str, str],
    now: float | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Request:
    """Read `to_headers`; names are matched without regard to case.

    With `now`, the remaining budget (if given) moves `sent_at` to the receiver's clock. `defaults`
    are for fields that have no header. Raises WireError naming the header.
    """
    return _request(_in_headers(headers), HEADER, now, defaults)


def to_parameters(request: Request, arrival: float) -> dict[str, str | int | float]:
    """``parameters`` of an Open Inference Protocol request.

    ``timeout`` is Triton's: the remaining budget in µs. The others have no standard name.
    """
    budget = request.slack(arrival)
    fields = msgspec.structs.asdict(request) | {"budget": budget}
    return {
        "timeout": max(0, round(budget * 1e6)),
        **{PARAMETER + name: value for name, value in fields.items() if value is not None},
    }


def has_headers(headers: Mapping[str, str]) -> bool:
    """Whether any of the headers belongs to a request's metadata."""
    return any(name.lower() in _HEADERS for name in headers)


def from_parameters(
    parameters: Mapping[str, Any],
    now: float | None = None,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Request:
    """Read `to_parameters`; ``timeout`` alone stands for both deadline and budget, 0 for none.

    `defaults` are for fields that have no parameter. Raises WireError naming the parameter.
    """
    return _request(_in_parameters(parameters, now), PARAMETER, now, defaults)


def from_both(
    headers: Mapping[str, str],
    parameters: Mapping[str, Any],
    now: float,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Request:
    """Read metadata that is partly in headers and partly in parameters.

    Raises WireError naming a field on which they disagree.
    """
    check_agreement(headers, parameters)
    given = {name: each for name, each in _in_headers(headers).items() if each is not None}
    if "deadline" in given:
        parameters = {name: each for name, each in parameters.items() if name != "timeout"}
    prefix = HEADER if given else PARAMETER
    return _request(_in_parameters(parameters, now) | given, prefix, now, defaults)


def is_complete(headers: Mapping[str, str]) -> bool:
    """Whether headers say all that a decision needs, so that nothing in the body can add to it."""
    given = _in_headers(headers)
    return all(given[name] is not None for name in ("id", "deadline", "accuracy"))


def check_agreement(headers: Mapping[str, str], parameters: Mapping[str, Any]) -> None:
    """Raise WireError if a header and a parameter give one field two values.

    The times of sending may differ: both are right, one a little later.
    """
    for name, header in _in_headers(headers).items():
        parameter = parameters.get(PARAMETER + name)
        if header is None or parameter is None or name in ("sent_at", "budget"):
            continue
        if header != str(parameter) and not _same_number(header, parameter):
            raise WireError(
                HEADER + name.replace("_", "-"),
                f"the header says {header!r:.60}, the parameter {PARAMETER}{name} "
                f"{parameter!r:.60}",
            )


def _same_number(one: str, other: Any) -> bool:
    try:
        return float(one) == float(other)
    except (TypeError, ValueError, OverflowError):
        return False


def _in_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    lower = {name.lower(): value for name, value in headers.items()}
    return {name: lower.get(HEADER + name.replace("_", "-")) for name in FIELDS}


def _in_parameters(parameters: Mapping[str, Any], now: float | None) -> dict[str, Any]:
    fields = {name: parameters.get(PARAMETER + name) for name in FIELDS}
    timeout = parameters.get("timeout")
    if timeout not in (None, 0) and fields["deadline"] is None and now is not None:
        fields["deadline"] = _number("timeout", timeout) / 1e6
        if fields["sent_at"] is None:
            fields["sent_at"] = now
    return fields


def _request(
    fields: Mapping[str, Any], prefix: str, now: float | None, defaults: Mapping[str, Any]
) -> Request:
    given = {**defaults, **{name: value for name, value in fields.items() if value is not None}}
    budget = given.pop("budget", None)
    for name in ("sent_at", "deadline", "accuracy", "payload_bytes"):
        if name in given:
            given[name] = _number(prefix + name, given[name])
    size = given.get("payload_bytes", 0.0)
    if size != int(size):
        raise WireError(prefix + "payload_bytes", f"expected a whole number, got {size!r}")
    if "payload_bytes" in given:
        given["payload_bytes"] = int(size)
    request = convert(given, Request, prefix)
    if budget is None or now is None:
        return request
    left = min(_number(prefix + "budget", budget), request.deadline)
    return msgspec.structs.replace(request, sent_at=max(0.0, now - (request.deadline - left)))


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise WireError(name, f"expected a number, got {value!r:.60}") from None
    if not math.isfinite(number):
        raise WireError(name, f"expected a finite number, got {value!r:.60}")
    return number
