"""Who may call which path of which server: one table, and the middleware that keeps to it.

A path that stands in no table may be called by nobody. Where identities are off
(`security.identity` says where that is allowed) everybody may do everything, and only browsers are
kept out: a page from elsewhere must not be able to use a process on its visitor's own machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from edgewise.security.identity import Credentials, Identity, Role, identity_of

Table = Mapping[str, frozenset[Role]]
"""The roles that may call a path, by method and path as the application has it."""

ANYBODY = frozenset(Role)
SENDERS = frozenset({Role.CLIENT, Role.EVALUATOR})
READERS = frozenset({Role.OPERATOR, Role.MONITOR})

_MODEL = "/v2/models/{model}"
_VERSION = _MODEL + "/versions/{version}"
NODE: Table = {
    # A node sends transfers alone, a client all but transfers (`live.node.http_api`).
    f"POST {_MODEL}/infer": SENDERS | {Role.NODE},
    f"POST {_VERSION}/infer": SENDERS | {Role.NODE},
    **dict.fromkeys(
        (
            *(f"GET {path}{end}" for path in (_MODEL, _VERSION) for end in ("", "/ready")),
            *(f"GET /v2{end}" for end in ("", "/health/live", "/health/ready")),
        ),
        ANYBODY,
    ),
    "GET /v1/report": READERS | {Role.NODE, Role.BALANCER},
    "GET /metrics": READERS,
}
BALANCER: Table = {
    "POST /v1/requests": SENDERS,
    "POST /v1/outcomes": SENDERS,
    "GET /v1/decisions/{id}": SENDERS | READERS,
    "GET /v1/state": READERS,
    "GET /v1/control": frozenset({Role.NODE}),
    "GET /metrics": READERS,
    "GET /healthz": ANYBODY,
    "GET /readyz": ANYBODY,
}
RELAY: Table = {
    "GET /healthz": ANYBODY,
    "GET /links": READERS | {Role.BALANCER},
    "GET /links/{name}": READERS | {Role.BALANCER},
    "PATCH /links/{name}": frozenset({Role.OPERATOR}),
    "POST /links/{name}/outage": frozenset({Role.OPERATOR}),
    "POST /links/{name}/reset": frozenset({Role.OPERATOR}),
    "POST /start": frozenset({Role.OPERATOR}),
}

OF_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""Content types that a browser sends to another site without asking it first."""


def guard(table: Table, credentials: Credentials | None, *, on_loopback: bool) -> Middleware:
    """A middleware that refuses whom `table` does not name, and browsers from elsewhere.

    `on_loopback`: the server listens there alone, so it is called by an address or ``localhost``.
    """

    @web.middleware
    async def check(http: web.Request, handler: Handler) -> web.StreamResponse:
        _refuse_browsers(http, on_loopback=on_loopback)
        if credentials is not None and http.match_info.http_exception is None:
            _check_role(http, table)
        return await handler(http)

    return cast(Middleware, check)


def caller(http: web.Request) -> Identity | None:
    """Who sends a request; None where identities are off."""
    certificate = http.get_extra_info("peercert")
    return None if certificate is None else _identity(certificate.get("subjectAltName", ()))


@lru_cache(maxsize=1024)
def _identity(names: Any) -> Identity | None:
    return identity_of({"subjectAltName": names})


def _check_role(http: web.Request, table: Table) -> None:
    resource = http.match_info.route.resource
    method = "GET" if http.method == "HEAD" else http.method
    allowed = table.get(f"{method} {resource.canonical if resource else ''}", frozenset())
    who = caller(http)
    if who is None:
        raise web.HTTPForbidden(reason="the certificate has no identity, or several")
    if who.role not in allowed:
        roles = ", ".join(sorted(allowed)) or "nobody"
        raise web.HTTPForbidden(reason=f"{who} may not do this (allowed: {roles})")


def _refuse_browsers(http: web.Request, *, on_loopback: bool) -> None:
    headers = http.headers
    if on_loopback and not _is_own_name(headers.get("Host", "")):
        # Or a page whose name leads here (DNS rebinding) would be of the same origin.
        raise web.HTTPForbidden(reason="Host: expected an address or localhost")
    origin = headers.get("Origin")
    if origin is not None and origin != f"{http.scheme}://{headers.get('Host', '')}":
        raise web.HTTPForbidden(reason="Origin: pages from elsewhere may not call this")
    if headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise web.HTTPForbidden(reason="Sec-Fetch-Site: pages from elsewhere may not call this")
    if (
        http.method not in ("GET", "HEAD")
        and "Content-Type" in headers
        and http.content_type in OF_FORMS
    ):
        raise web.HTTPUnsupportedMediaType(
            reason=f"Content-Type: expected application/json or the payload's, got "
            f"{http.content_type}"
        )


@lru_cache(maxsize=256)
def _is_own_name(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.strip("[]")
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
