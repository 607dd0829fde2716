"""The balancer's HTTP interface.

====  ======================  ==================================================================
POST  /v1/requests            a client's metadata (`messages.Submission`): decides, sends the
                              ingress its command, answers with the decision: ``{"request",
                              "action", "server", "model", "form", "reason", "retry_after",
                              "probability", "policy"}``, where action is *run* at the ingress,
                              *transfer* or *shed*
POST  /v1/outcomes            one `domain.Outcome` or a list: ``{"joined", "duplicates",
                              "unknown"}``
GET   /v1/state               the belief about the fleet, with ages, and counters
GET   /v1/decisions/ID        a decision and the numbers it rested on
GET   /v1/control             a node's WebSocket (`live.wire.messages`)
GET   /metrics                for Prometheus
GET   /healthz, /readyz       200 while it runs; 200 once every server is connected, else 503
====  ======================  ==================================================================

`security.access.BALANCER` says which role may call which. With identities a client's request ids
are its own; an evaluator names another's as ``ROLE.NAME/ID``.

Errors are ``{"error": …}``, with ``"field"`` where one is wrong: 400 a message that does not parse,
403 a caller who may not,
404 an unknown ingress, request or path, 409 a request id used twice, 413 a body over the limit, 503
an ingress that is not connected or a balancer that has just stood still, 504 a deadline that has
passed (nothing is decided then: an ingress that gets the request asks for a command).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from edgewise.decoding import decode_json
from edgewise.domain import Outcome, own_id, owned_id
from edgewise.errors import WireError
from edgewise.live.balancer.balancer import Balancer
from edgewise.live.balancer.balancer_metrics import CONTENT_TYPE
from edgewise.live.balancer.node_connection import CLOSE_TIMEOUT
from edgewise.live.balancer.open_decisions import TrackedDecision
from edgewise.live.wire.messages import Submission
from edgewise.security import access
from edgewise.security.identity import Identity, Role

BODY_MAX = 8 * 2**20
"""bytes. Ten thousand outcomes in one list; metadata has under 1 kB."""
MESSAGE_MAX = 2**20
"""bytes of a control message; a report of 256 waiting requests has about 6 kB."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpError(Exception):
    """A call that is answered with an error: its status, the problem and the field, if any."""

    def __init__(self, status: int, problem: str, field: str = "") -> None:
        self.status, self.problem, self.field = status, problem, field
        super().__init__(problem)


class BalancerApi:
    """The interface of one balancer; `on_loopback`: it listens there alone."""

    def __init__(self, balancer: Balancer, *, on_loopback: bool = True) -> None:
        self._balancer = balancer
        self._guard = access.guard(access.BALANCER, balancer.credentials, on_loopback=on_loopback)
        self._dispatcher = balancer.dispatcher

    def app(self) -> web.Application:
        """The interface as an aiohttp application."""
        app = web.Application(
            middlewares=[self._answer_errors, self._guard],  # type: ignore[list-item]
            client_max_size=BODY_MAX,
        )
        app.add_routes(
            [
                web.post("/v1/requests", self._post_request),
                web.post("/v1/outcomes", self._post_outcomes),
                web.get("/v1/state", self._get_state),
                web.get("/v1/decisions/{id:.+}", self._get_decision),
                web.get("/v1/control", self._open_channel),
                web.get("/metrics", self._get_metrics),
                web.get("/healthz", self._get_health),
                web.get("/readyz", self._get_readiness),
            ]
        )
        return app

    async def _post_request(self, http: web.Request) -> web.Response:
        body = await http.read()
        balancer, dispatcher = self._balancer, self._dispatcher
        now = balancer.clock.now()
        who = access.caller(http)
        request = decode_json(body, Submission).anchored(now)
        request = msgspec.structs.replace(request, id=_owned(who, request.id, "request.id"))
        if not dispatcher.tracker.has_server(request.ingress):
            servers = ", ".join(dispatcher.tracker.servers)
            problem = f"no server is called {request.ingress!r}; there are: {servers}"
            raise HttpError(404, problem, "request.ingress")
        known = dispatcher.decisions.get(request.id)
        connection = balancer.connections.get(request.ingress)
        if known is None:
            if connection is None:
                raise HttpError(503, f"{request.ingress} is not connected")
            if balancer.stood_still(now):
                raise HttpError(503, "the balancer stood still: the ingress will ask for a command")
            if request.expired(now):
                raise HttpError(504, f"the deadline of {request.deadline:g} s has passed")
        try:
            client = who.owner if who is not None else http.remote or "unknown"
            entry = dispatcher.decide(request, now, "metadata", announced_by=client)
        except WireError as error:
            raise HttpError(409, error.problem, f"request.{error.field}") from None
        if known is None:
            balancer.metrics.decision_duration.observe(balancer.clock.now() - now)
            await balancer.send_command(entry, connection)
        return _json(_reply(entry))

    async def _post_outcomes(self, http: web.Request) -> web.Response:
        body = await http.read()
        outcomes = decode_json(body, Outcome | list[Outcome])  # type: ignore[arg-type]
        who = access.caller(http)
        is_evaluator = who is None or who.role is Role.EVALUATOR
        now = self._balancer.clock.now()
        counts = {"joined": 0, "duplicate": 0, "unknown": 0}
        first_error: WireError | None = None
        for outcome in outcomes if isinstance(outcomes, list) else [outcomes]:
            try:
                owned = _owned(who, outcome.request, "request")
                outcome = msgspec.structs.replace(outcome, request=owned)
                joined = self._dispatcher.on_outcome(outcome, now, is_evaluator=is_evaluator)
                counts[joined] += 1
            except WireError as error:  # the rest of the list is still joined
                first_error = first_error or error
        if first_error is not None:
            raise first_error
        return _json(
            {
                "joined": counts["joined"],
                "duplicates": counts["duplicate"],
                "unknown": counts["unknown"],
            }
        )

    async def _get_state(self, _: web.Request) -> web.Response:
        return _json(self._balancer.state())

    async def _get_decision(self, http: web.Request) -> web.Response:
        who, name = access.caller(http), http.match_info["id"]
        if who is not None and who.role in access.SENDERS:
            name = _owned(who, name, "id")
        entry = self._dispatcher.decisions.get(name)
        if entry is None:
            raise HttpError(404, f"no decision on {http.match_info['id']!r} is known, or no longer")
        return _json(entry.details())

    async def _open_channel(self, http: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            compress=False, max_msg_size=MESSAGE_MAX, timeout=CLOSE_TIMEOUT
        )
        await socket.prepare(http)

        def abort() -> None:
            if http.transport is not None:
                http.transport.abort()

        await self._balancer.serve_channel(socket, http.remote or "", abort, access.caller(http))
        return socket

    async def _get_metrics(self, _: web.Request) -> web.Response:
        text = self._balancer.metrics.render()
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE})

    async def _get_health(self, _: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _get_readiness(self, _: web.Request) -> web.Response:
        missing = self._balancer.missing()
        return _json({"ready": not missing, "missing": missing}, status=503 if missing else 200)

    @web.middleware
    async def _answer_errors(self, http: web.Request, handler: Handler) -> web.StreamResponse:
        field = ""
        try:
            return await handler(http)
        except HttpError as error:
            status, problem, field = error.status, error.problem, error.field
        except WireError as error:
            status, problem, field = 400, str(error), error.field
        except web.HTTPRequestEntityTooLarge:
            status, problem = 413, f"the body is over the limit of {BODY_MAX} bytes"
        except web.HTTPException as error:
            if error.status < 400:
                raise
            status, problem = error.status, f"{http.method} {http.path}: {error.reason}"
        errors = self._balancer.metrics.errors
        errors[status] = errors.get(status, 0) + 1
        body = {"error": problem, "field": field} if field else {"error": problem}
        return _json(body, status=status)


def _owned(who: Identity | None, request: str, field: str) -> str:
    """The id by which the fleet knows the request that `who` names. Raises HttpError."""
    if "/" not in request:
        return owned_id("" if who is None else who.owner, request)
    if who is None or who.role is not Role.EVALUATOR:
        raise HttpError(403, "the request is somebody else's", field)
    return request


def _reply(entry: TrackedDecision) -> dict[str, Any]:
    command = entry.command
    return {
        "request": own_id(command.request),
        "action": entry.action,
        "server": command.server,
        "model": command.model,
        "form": None if command.server is None else command.form,
        "reason": command.reason,
        "retry_after": command.retry_after,
        "probability": entry.decision.probability,
        "policy": entry.decision.policy,
    }


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )
