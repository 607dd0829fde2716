"""The node's HTTP interface: the Open Inference Protocol's REST paths over `RequestHandler`.

A body is read by a task of its own while the request is decided on. A client that goes away cancels
its handler, and with it everything that is under way for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from edgewise import __version__
from edgewise.domain import Request, owned_id
from edgewise.errors import BadInput, WireError
from edgewise.live.clock import Clock
from edgewise.live.node.monitor import Monitor
from edgewise.live.node.node_metrics import CONTENT_TYPE, NodeMetrics
from edgewise.live.node.received_request import ReceivedRequest, RequestRefused
from edgewise.live.node.request_handler import RequestHandler
from edgewise.live.wire import open_inference
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.live.wire.request_metadata import HEADER, from_headers, from_parameters, has_headers
from edgewise.live.wire.transfers import (
    LABEL_HEADER,
    VIA_HEADER,
    TransferHeaders,
    is_transfer,
    whole_number,
    with_code,
)
from edgewise.live.wire.upload import TooLarge, Upload
from edgewise.security import access
from edgewise.security.identity import node

DEADLINE_DEFAULT = 1.0
"""s for a client that names none: the longest that leaves a person's flow of thought unbroken
(Nielsen, Usability Engineering, 1993, §5.5)."""
VERSIONS = ("1",)

log = logging.getLogger("edgewise.node")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class NodeApi:
    """The HTTP side of one node.

    Parameters
    ----------
    body_limit:
        Bytes of a request's body at most.
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
        body_limit: int,
        fleet: tuple[str, ...],
        task: str,
        models: Collection[str],
    ) -> None:
        self._handler, self._clock, self._monitor = handler, clock, monitor
        self._metrics = metrics
        self._body_limit = body_limit
        self._fleet = frozenset(fleet)
        self._task = task
        self._models = sorted(models)

    def app(self, guard: Middleware) -> web.Application:
        """The interface as an aiohttp application, with whom `guard` admits."""
        app = web.Application(
            middlewares=[_errors_as_json, guard], client_max_size=self._body_limit
        )
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            app.router.add_post(path + "/infer", self._infer)
            app.router.add_get(path, self._model)
            app.router.add_get(path + "/ready", self._model_ready)
        app.router.add_get("/v2", self._server)
        app.router.add_get("/v2/health/live", self._live)
        app.router.add_get("/v2/health/ready", self._ready)
        app.router.add_get("/v1/report", self._report)
        app.router.add_get("/metrics", self._show_metrics)
        return app

    # -- inference -------------------------------------------------------------------------------

    async def _infer(self, http: web.Request) -> web.StreamResponse:
        accepted = self._clock.now()
        model = self._known_model(http)
        try:
            body = Upload(http.content_length, self._body_limit)
            if is_transfer(http.headers):
                return await self._from_peer(http, model, body, accepted)
            return await self._from_client(http, model, body, accepted)
        except TooLarge as error:
            raise RequestRefused(413, str(error)) from None

    async def _from_client(
        self, http: web.Request, model: str, body: Upload, accepted: float
    ) -> web.StreamResponse:
        who = access.caller(http)
        if who is not None and who.role not in access.SENDERS:
            raise RequestRefused(403, f"{who} may send transfers only")
        async with _in_background(self._read_measured(http, body)):
            received = ReceivedRequest(
                request=await self._metadata(http, model, body, accepted),
                body=body,
                body_headers=_body_headers(http),
                accepted=accepted,
                label=whole_number(http.headers, LABEL_HEADER),
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
        try:
            async for chunk in http.content.iter_any():
                body.feed(chunk, self._clock.now())
            body.finish(self._clock.now())
        except TooLarge:
            pass  # the readers of the body raise it
        except Exception as error:
            body.fail(WireError("", f"the body broke off: {error or type(error).__name__}"))

    async def _metadata(
        self, http: web.Request, model: str, body: Upload, accepted: float
    ) -> Request:
        """From the headers, or, if they have none, from the body. The path names the model; the
        node fills in the rest."""
        server = self._monitor.server
        defaults = {
            "id": uuid.uuid4().hex,
            "ingress": server,
            "payload_bytes": http.content_length or 0,
            "sent_at": accepted,
            "deadline": DEADLINE_DEFAULT,
            "task": self._task,
        }
        if has_headers(http.headers):
            request = from_headers(http.headers, accepted, defaults)
        else:
            content = open_inference.decode_request(
                await body.whole(), http.headers.get(open_inference.HEADER_LENGTH)
            )
            request = from_parameters(content.parameters, accepted, defaults)
        if "/" in request.id:
            raise WireError(HEADER + "id", f"expected an id without /, got {request.id!r:.60}")
        who = access.caller(http)
        if who is not None:
            request = msgspec.structs.replace(request, id=owned_id(who.owner, request.id))
        if request.ingress != server:
            raise WireError(HEADER + "ingress", f"expected {server!r}, got {request.ingress!r}")
        if model == self._task:
            return request
        if request.named_model not in (None, model):
            raise WireError(
                HEADER + "named-model",
                f"expected the model of the path, {model!r}, got {request.named_model!r}",
            )
        return msgspec.structs.replace(request, named_model=model)

    async def _response(self, answer: InferAnswer, received: ReceivedRequest) -> web.Response:
        echo, binary = "", frozenset[str]()
        if answer.served:
            await received.photo()  # not parsed yet if it was transferred as it came, or is a retry
            assert received.parsed is not None
            echo, binary = received.parsed.id, received.parsed.binary
        headers, body = open_inference.encode_answer(answer, echo, binary)
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


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json"
    )


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is JSON, as the protocol asks."""
    try:
        return await handler(request)
    except RequestRefused as error:
        return _json({"error": str(error)}, error.code)
    except BadInput as error:
        return _json({"error": str(error)}, 400)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _json({"error": f"{request.method} {request.path}: {error.reason}"}, error.status)
    except ConnectionError:
        raise
    except Exception:
        log.exception("%s %s: an error of this program", request.method, request.path)
        return _json({"error": "an error of the server"}, 500)
