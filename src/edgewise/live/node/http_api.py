"""The node's HTTP interface: the Open Inference Protocol's REST paths over `RequestHandler`.

A body is read by a task of its own while the request is decided on. A client that goes away cancels
its handler, and with it everything that is under way for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from edgewise import __version__
from edgewise.errors import BadInput, WireError
from edgewise.live.clock import Clock
from edgewise.live.node.client_request import new_upload, read_body, read_metadata
from edgewise.live.node.monitor import Monitor
from edgewise.live.node.node_metrics import CONTENT_TYPE, NodeMetrics
from edgewise.live.node.received_request import ReceivedRequest, RequestRefused
from edgewise.live.node.request_handler import RequestHandler
from edgewise.live.wire import open_inference
from edgewise.live.wire.http_server import USAGE, Usage
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.live.wire.request_metadata import from_headers
from edgewise.live.wire.transfers import (
    LABEL_HEADER,
    VIA_HEADER,
    TransferHeaders,
    is_transfer,
    whole_number,
    with_code,
)
from edgewise.live.wire.upload import BodyRefused, TooLarge, Upload
from edgewise.security import access
from edgewise.security.identity import node

VERSIONS = ("1",)

log = logging.getLogger("edgewise.node")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class NodeApi:
    """The HTTP side of one node.

    Parameters
    ----------
    usage:
        What clients take, and the limits on what clients may take.
    fleet:
        The names of all servers.
    task:
        The task of the fleet. As the name of a model it stands for any model of the task.
    models:
        The names of all models of the fleet.
    """

    def __init__(
        self,
        handler: RequestHandler,
        clock: Clock,
        monitor: Monitor,
        metrics: NodeMetrics,
        usage: Usage,
        fleet: tuple[str, ...],
        task: str,
        models: Collection[str],
    ) -> None:
        self._handler, self._clock, self._monitor = handler, clock, monitor
        self._metrics = metrics
        self._usage = usage
        self._fleet = frozenset(fleet)
        self._task = task
        self._models = sorted(models)

    def app(self, guard: Middleware) -> web.Application:
        """The interface as an aiohttp application, with whom `guard` admits."""
        app = web.Application(
            middlewares=[self._errors, guard], client_max_size=self._usage.body_bytes
        )
        app[USAGE] = self._usage
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            app.router.add_post(path + "/infer", self._infer, expect_handler=self._expected)
            app.router.add_get(path, self._model)
            app.router.add_get(path + "/ready", self._model_ready)
        app.router.add_get("/v2", self._server)
        app.router.add_get("/v2/health/live", self._live)
        app.router.add_get("/v2/health/ready", self._ready)
        app.router.add_get("/v1/report", self._report)
        app.router.add_get("/metrics", self._show_metrics)
        return app

    @web.middleware
    async def _errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error is JSON, as the protocol asks, and counted."""
        try:
            if request.version >= (1, 1) and hdrs.HOST not in request.headers:
                raise RequestRefused(400, "expected a Host header")
            return await handler(request)
        except RequestRefused as error:
            code, problem = error.code, str(error)
        except BadInput as error:
            code, problem = 400, str(error)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            code, problem = error.status, f"{request.method} {request.path:.200}: {error.reason}"
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s: an error of this program", request.method)
            code, problem = 500, "an error of the server"
        self._metrics.refused(code)
        headers = {"Retry-After": "1"} if code == 503 else None
        return _json({"error": problem}, code, headers)

    async def _expected(self, http: web.Request) -> web.StreamResponse | None:
        """Answer ``Expect: 100-continue``: go on only with a body that will be read."""
        if http.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
            raise web.HTTPExpectationFailed
        try:
            new_upload(http, self._usage.body_bytes)
        except TooLarge as error:
            problem, code = str(error), error.code
        except RequestRefused as error:
            problem, code = str(error), error.code
        else:
            assert http.transport is not None
            http.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return None
        self._metrics.refused(code)
        answer = _json({"error": problem}, code)
        answer.force_close()
        return answer

    # -- inference -------------------------------------------------------------------------------

    async def _infer(self, http: web.Request) -> web.StreamResponse:
        accepted = self._clock.now()
        model = self._known_model(http)
        try:
            body = new_upload(http, self._usage.body_bytes)
            if is_transfer(http.headers):
                return await self._from_peer(http, model, body, accepted)
            return await self._from_client(http, model, body, accepted)
        except BodyRefused as error:
            raise RequestRefused(error.code, str(error)) from None

    async def _from_client(
        self, http: web.Request, model: str, body: Upload, accepted: float
    ) -> web.StreamResponse:
        who = access.caller(http)
        if who is not None and who.role not in access.SENDERS:
            raise RequestRefused(403, f"{who} may send transfers only")
        async with _in_background(self._read_measured(http, body)):
            received = ReceivedRequest(
                request=await read_metadata(
                    http, model, body, accepted, self._monitor.server, self._task
                ),
                body=body,
                body_headers=_body_headers(http),
                accepted=accepted,
                label=whole_number(http.headers, LABEL_HEADER),
                stated=http.headers,
            )
            answer = await self._handler.serve(received)
            response = await self._response(answer, received)
            try:  # count the request when the client has the answer, or has gone
                with contextlib.suppress(ConnectionError):
                    await response.prepare(http)
                    await response.write_eof()
            finally:
                self._metrics.answered(received, answer, self._clock.now())
            return response

    async def _from_peer(
        self, http: web.Request, model: str, body: Upload, accepted: float
    ) -> web.StreamResponse:
        origin = TransferHeaders.decode(http.headers)
        if origin.via not in self._fleet:
            raise WireError(VIA_HEADER, f"expected a server of this fleet, got {origin.via!r:.60}")
        who = access.caller(http)
        if who is not None and who != node(origin.via):
            raise RequestRefused(403, f"{who} may not transfer for {origin.via}")
        if model == self._task:
            raise WireError("model", "expected a concrete model in a transfer")
        if model not in self._handler.runner.services:
            raise RequestRefused(404, f"{self._monitor.server} has no model {model}")
        if origin.decider not in self._fleet:
            origin = msgspec.structs.replace(origin, decider="")
        received = ReceivedRequest(
            request=from_headers(http.headers, accepted),
            body=body,
            body_headers=_body_headers(http),
            accepted=accepted,
            model=model,
            ready_size=origin.ready_size,
            label=origin.label,
        )
        response = web.StreamResponse(status=202, headers={"Content-Type": "application/json"})
        begun = False

        async def arrived() -> None:
            nonlocal begun
            begun = True
            await response.prepare(http)

        try:
            async with _in_background(self._read(http, body)):
                answer = await self._handler.accept(received, origin, arrived)
        except ConnectionError:  # the sender has given up: nobody waits for an answer
            return response
        self._metrics.transfer_answered(answer.code)
        _, encoded = open_inference.encode_answer(answer, "", frozenset())
        if not begun:
            return web.Response(status=answer.code, body=encoded, content_type="application/json")
        with contextlib.suppress(ConnectionError):  # as above, while it ran
            await response.write(with_code(answer.code, encoded))
            await response.write_eof()
        return response

    async def _read_measured(self, http: web.Request, body: Upload) -> None:
        """Read a client's body, and measure the access link by it."""
        link = self._monitor.access
        with link.flow(self._monitor.server, body.expected or 0, self._clock.now) as flow:
            await self._read(http, body)
            if body.first_at is not None and body.last_at is not None:
                # The first chunk came with the headers: its time cannot be measured here.
                link.received(
                    flow, body.size - body.first_size, body.last_at - body.first_at, body.last_at
                )

    async def _read(self, http: web.Request, body: Upload) -> None:
        await read_body(http, body, self._usage, self._clock)

    async def _response(self, answer: InferAnswer, received: ReceivedRequest) -> web.Response:
        if answer.served:
            await received.photo()  # not parsed yet if it was transferred as it came, or is a retry
            assert received.parsed is not None
            asked = received.parsed
            headers, body = open_inference.encode_answer(
                answer, asked.id, asked.binary, asked.outputs
            )
        else:
            headers, body = open_inference.encode_answer(answer, "", frozenset())
        if answer.code in (429, 503):  # whole seconds: the header knows no parts
            headers["Retry-After"] = str(max(1, math.ceil(answer.retry_after or 0.0)))
        return web.Response(status=answer.code, headers=headers, body=body)

    # -- the other paths -------------------------------------------------------------------------

    def _known_model(self, http: web.Request) -> str:
        model = http.match_info["model"]
        known = (self._task, *self._models)
        if model not in known:
            raise RequestRefused(404, f"unknown model {model[:64]!r}; known: {', '.join(known)}")
        version = http.match_info.get("version", VERSIONS[0])
        if version not in VERSIONS:
            raise RequestRefused(
                404, f"unknown version {version[:64]!r}; known: {', '.join(VERSIONS)}"
            )
        return model

    async def _server(self, _: web.Request) -> web.Response:
        return _json(
            {
                "name": self._monitor.server,
                "version": __version__,
                "extensions": ["binary_tensor_data"],
            }
        )

    async def _live(self, _: web.Request) -> web.Response:
        return _json({"live": True})

    async def _ready(self, _: web.Request) -> web.Response:
        return self._readiness({})

    async def _model_ready(self, http: web.Request) -> web.Response:
        return self._readiness({"name": self._known_model(http)})

    def _readiness(self, about: dict[str, Any]) -> web.Response:
        ready = self._handler.runner.readiness.ready and not self._monitor.draining
        return _json({**about, "ready": ready}, 200 if ready else 503)

    async def _model(self, http: web.Request) -> web.Response:
        return _json(open_inference.model_metadata(self._known_model(http), VERSIONS))

    async def _report(self, http: web.Request) -> web.Response:
        return _json(self._monitor.report(self._clock.now(), http.query.get("for", "")))

    async def _show_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})


@contextlib.asynccontextmanager
async def _in_background(work: Awaitable[None]) -> AsyncIterator[None]:
    """Do `work` in a task of its own until the block is left."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _body_headers(http: web.Request) -> dict[str, str]:
    names = (open_inference.HEADER_LENGTH, "Content-Type")
    return {name: http.headers[name] for name in names if name in http.headers}


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
