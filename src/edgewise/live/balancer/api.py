"""The balancer's HTTP interface.

====  ======================  ==================================================================
POST  /v1/requests            a client's metadata (`control.Submission`): decides, commands the
                              ingress, answers with an `DecisionReply`
POST  /v1/outcomes            one `domain.Outcome` or a list: ``{"joined", "duplicates",
                              "unknown"}``
GET   /v1/state               the fleet as it is believed to be, with ages, and counters
GET   /v1/decisions/ID        a decision, with the numbers it rested on
GET   /v1/control             the nodes' WebSocket (`live.wire.messages`)
GET   /metrics                for Prometheus
GET   /healthz, /readyz       200 while it runs; 200 once every server is connected, else 503
====  ======================  ==================================================================

Errors are ``{"error": …}``, of a field ``{"error", "field"}``: 400 a message that does not parse,
404 an unknown ingress, request or path, 409 a request id used twice, 413 a body over the limit, 503
an ingress that is not connected (nothing is decided then).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from msgspec import Struct

from edgewise.domain import Outcome, PayloadForm, ShedReason, decode_json
from edgewise.errors import WireError
from edgewise.live.balancer.dispatcher import action, explain
from edgewise.live.balancer.ledger import Entry
from edgewise.live.balancer.metrics import CONTENT_TYPE
from edgewise.live.wire.messages import Submission

if TYPE_CHECKING:
    from edgewise.live.balancer.balancer import Balancer

BODY_MAX = 8 * 2**20
"""bytes. Ten thousand outcomes in one list; metadata has under 1 kB."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class DecisionReply(Struct, frozen=True, kw_only=True):
    """What ``POST /v1/requests`` answers."""

    request: str
    action: str
    """``run`` at the ingress, ``transfer`` from it, or ``shed``."""
    server: str | None
    model: str | None
    form: PayloadForm | None
    reason: ShedReason | None
    probability: float
    policy: str


class HttpRefusal(Exception):
    """An HTTP request that gets an error: status and what is wrong."""

    def __init__(self, status: int, problem: str, field: str = "") -> None:
        self.status, self.problem, self.field = status, problem, field
        super().__init__(problem)


def answer(entry: Entry) -> DecisionReply:
    """What the client is told of a decision."""
    command = entry.command
    return DecisionReply(
        request=command.request,
        action=action(entry),
        server=command.server,
        model=command.model,
        form=None if command.server is None else command.form,
        reason=command.reason,
        probability=entry.decision.probability,
        policy=entry.decision.policy,
    )


def application(balancer: Balancer) -> web.Application:
    """The interface as an aiohttp application."""
    dispatcher, clock = balancer.dispatcher, balancer.clock

    async def requests(request: web.Request) -> web.Response:
        body = await request.read()
        now = clock.now()
        submission = decode_json(body, Submission)
        meant = submission.anchored(now)
        if not dispatcher.tracker.knows(meant.ingress):
            known = ", ".join(dispatcher.tracker.servers)
            raise HttpRefusal(
                404, f"no server is called {meant.ingress!r}; there are: {known}", "request.ingress"
            )
        known_entry = dispatcher.ledger.get(meant.id)
        if known_entry is not None and known_entry.request.ingress != meant.ingress:
            where = known_entry.request.ingress
            raise HttpRefusal(
                409, f"{meant.id!r} is a request that arrived at {where}", "request.id"
            )
        channel = balancer.channels.get(meant.ingress)
        if channel is None and known_entry is None:
            raise HttpRefusal(503, f"{meant.ingress} is not connected")
        entry = dispatcher.decide(meant, now, "metadata")
        if known_entry is None:
            balancer.metrics.decision_duration.observe(clock.now() - now)
            await balancer.command(entry, channel)
        return _json(answer(entry))

    async def outcomes(request: web.Request) -> web.Response:
        body = await request.read()
        many = decode_json(body, Outcome | list[Outcome])  # type: ignore[arg-type]
        now = clock.now()
        found = {"joined": 0, "duplicate": 0, "unknown": 0}
        problem: WireError | None = None
        for outcome in many if isinstance(many, list) else [many]:
            try:
                found[dispatcher.on_outcome(outcome, now)] += 1
            except WireError as error:  # the others of a list are not to suffer
                problem = problem or error
        if problem is not None:
            raise problem
        return _json(
            {
                "joined": found["joined"],
                "duplicates": found["duplicate"],
                "unknown": found["unknown"],
            }
        )

    async def state(_: web.Request) -> web.Response:
        return _json(balancer.state())

    async def decision(request: web.Request) -> web.Response:
        entry = dispatcher.ledger.get(request.match_info["id"])
        if entry is None:
            raise HttpRefusal(
                404, f"no decision of {request.match_info['id']!r} is known (any more)"
            )
        return _json(explain(entry))

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=balancer.metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def healthz(_: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def readyz(_: web.Request) -> web.Response:
        missing = balancer.missing()
        return _json({"ready": not missing, "missing": missing}, status=503 if missing else 200)

    @web.middleware
    async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except HttpRefusal as error:
            status, problem, field = error.status, error.problem, error.field
        except WireError as error:
            status, problem, field = 400, str(error), error.field
        except web.HTTPRequestEntityTooLarge:
            status, problem, field = 413, f"the body is over the limit of {BODY_MAX} bytes", ""
        except web.HTTPException as error:
            if error.status < 400:
                raise
            status, field = error.status, ""
            problem = f"{request.method} {request.path}: {error.reason}"
        balancer.metrics.errors[status] = balancer.metrics.errors.get(status, 0) + 1
        body = {"error": problem, "field": field} if field else {"error": problem}
        return _json(body, status=status)

    app = web.Application(middlewares=[errors], client_max_size=BODY_MAX)
    app.add_routes(
        [
            web.post("/v1/requests", requests),
            web.post("/v1/outcomes", outcomes),
            web.get("/v1/state", state),
            web.get("/v1/decisions/{id}", decision),
            web.get("/v1/control", balancer.open_channel),
            web.get("/metrics", metrics),
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
        ]
    )
    return app


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )
