"""The relay's control API over HTTP, and a client for it.

=======  ==========================  ============================================================
GET      /healthz                    ``{"status": "ok", ...}``
GET      /links, /links/NAME         settings and state of a link
PATCH    /links/NAME                 change it: any fields of `LinkChange`
POST     /links/NAME/outage          ``{"duration": s}``: nothing is sent for so long, from now on
POST     /links/NAME/reset           back to the configured settings; ends live outages
POST     /start                      time 0 is now: traces, outages and events begin
=======  ==========================  ============================================================

Answers are JSON. Errors are ``{"error": "FIELD: expected X, got Y"}`` with 400, 403 or 404. Trace
files are read below one folder only, which the configuration names (``traces``).
`security.access.RELAY` says which role may call which path; without identities anybody may, so the
API stays on the loopback then.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec
from aiohttp import web

from edgewise.errors import BadInput, PeerError
from edgewise.network.link_controller import LinkController
from edgewise.network.settings import LinkChange, Span, bad_field
from edgewise.security import access
from edgewise.security.identity import RELAY, Credentials, calls

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _OutageRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    duration: Span


def control_app(
    network: LinkController, credentials: Credentials | None = None, *, on_loopback: bool = True
) -> web.Application:
    """The API as an aiohttp application; `on_loopback`: it listens there alone."""

    def name_of(request: web.Request) -> str:
        name = request.match_info["name"]
        if name not in network.backends:
            known = ", ".join(sorted(network.backends)) or "none"
            raise _Unknown(f"name: no link is called {name!r}; there are: {known}")
        return name

    def state_of(name: str) -> web.Response:
        return _json(network.backends[name].state(time.monotonic()))

    async def body(request: web.Request, kind: type[T]) -> T:
        try:
            raw = msgspec.json.decode(await request.read())
        except (msgspec.DecodeError, RecursionError) as e:
            raise BadInput(f"body: expected JSON: {e}") from e
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as e:
            raise bad_field(e, raw, kind) from None

    async def healthz(_: web.Request) -> web.Response:
        return _json({"status": "ok", **network.health()})

    async def list_links(_: web.Request) -> web.Response:
        now = time.monotonic()
        return _json({name: link.state(now) for name, link in network.backends.items()})

    async def show(request: web.Request) -> web.Response:
        return state_of(name_of(request))

    async def patch(request: web.Request) -> web.Response:
        name = name_of(request)
        await network.patch(name, await body(request, LinkChange))
        return state_of(name)

    async def outage(request: web.Request) -> web.Response:
        name = name_of(request)
        network.outage(name, (await body(request, _OutageRequest)).duration)
        return state_of(name)

    async def reset(request: web.Request) -> web.Response:
        name = name_of(request)
        network.restore(name)
        return state_of(name)

    async def start(_: web.Request) -> web.Response:
        network.start()
        return _json({"status": "started"})

    guard = access.guard(access.RELAY, credentials, on_loopback=on_loopback)
    app = web.Application(middlewares=[_errors, guard])
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/links", list_links),
            web.get("/links/{name}", show),
            web.patch("/links/{name}", patch),
            web.post("/links/{name}/outage", outage),
            web.post("/links/{name}/reset", reset),
            web.post("/start", start),
        ]
    )
    return app


class _Unknown(BadInput):
    """No such link: 404."""


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except _Unknown as e:
        return _json({"error": str(e)}, status=404)
    except BadInput as e:
        return _json({"error": str(e)}, status=400)
    except web.HTTPException as e:
        if e.status < 400:
            raise
        # A 405 keeps its `Allow`; aiohttp sets the type and length anew.
        headers = {k: v for k, v in e.headers.items() if k == "Allow"}
        problem = f"{request.method} {request.path}: {e.reason}"
        return _json({"error": problem}, status=e.status, headers=headers)


def _json(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value),
        status=status,
        headers=headers,
        content_type="application/json",
    )


class RelayControl:
    """The control API as methods. Use it as ``async with RelayControl(url) as control``.

    Args:
        url: ``http://host:port`` of the relay's control address.
        timeout: s for one call. A busy relay needs milliseconds.
        credentials: of this process; None: neither side proves who it is.

    Raises:
        BadInput: from every method, when the relay says that the call is wrong.
        PeerError: from every method, when the relay does not answer, or not with JSON.
    """

    def __init__(
        self, url: str, *, timeout: float = 10.0, credentials: Credentials | None = None
    ) -> None:
        self.url = url.rstrip("/")
        self._credentials = credentials
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> RelayControl:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def health(self) -> dict[str, Any]:
        """``{"status": "ok", "connections", "refused", "realtime"}``."""
        return await self._call("GET", "/healthz")

    async def links(self) -> dict[str, dict[str, Any]]:
        """The state of every link, by name; see ``GET /links`` above."""
        return await self._call("GET", "/links")

    async def link(self, name: str) -> dict[str, Any]:
        """The state of one link."""
        return await self._call("GET", _path(name))

    async def set(self, name: str, **changes: object) -> dict[str, Any]:
        """Change a link now: any fields of `settings.LinkChange`."""
        return await self._call("PATCH", _path(name), changes)

    async def outage(self, name: str, duration: float) -> dict[str, Any]:
        """Send nothing over a link for ``duration`` seconds from now."""
        return await self._call("POST", _path(name) + "/outage", {"duration": duration})

    async def reset(self, name: str) -> dict[str, Any]:
        """Give a link its configured settings again and end live outages."""
        return await self._call("POST", _path(name) + "/reset")

    async def start(self) -> None:
        """Make now the time 0 of traces, outages and events."""
        await self._call("POST", "/start")

    async def _call(self, method: str, path: str, value: object = None) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout)
        data = None if value is None else msgspec.json.encode(value)
        try:
            async with self._session.request(
                method,
                self.url + path,
                data=data,
                headers=None if data is None else {"Content-Type": "application/json"},
                **calls(self._credentials, RELAY),
            ) as response:
                answer = msgspec.json.decode(await response.read(), type=dict[str, Any])
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as e:
            raise PeerError(f"relay at {self.url}: {method} {path}: {e!r}") from e
        if response.status >= 400:
            raise BadInput(str(answer.get("error", f"{method} {path}: {response.status}")))
        return answer


def _path(name: str) -> str:
    return "/links/" + quote(name, safe="")
