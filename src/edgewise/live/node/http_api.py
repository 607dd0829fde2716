"""The node's HTTP interface: the Open Inference Protocol's REST paths over `edge.RequestHandler`.

A body is read by a task of its own while the request is decided on. A client that goes away
cancels its handler, and with it everything that is under way for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from edgewise import __version__
from edgewise.domain import DEFAULT_TASK, HEADER, Report, Request
from edgewise.errors import BadInput, WireError
from edgewise.live.clock import Clock
from edgewise.live.node.monitor import Monitor
from edgewise.live.node.node_metrics import CONTENT_TYPE, NodeMetrics
from edgewise.live.node.received_request import ReceivedRequest, RequestRefused, TransferOrigin
from edgewise.live.node.request_handler import RequestHandler
from edgewise.live.wire import open_inference
from edgewise.live.wire.open_inference import InferAnswer
from edgewise.live.wire.upload import TooLarge, Upload

DEADLINE_DEFAULT = 1.0
"""s for a client that names none: the longest that leaves a person's flow of thought unbroken
(Nielsen, Usability Engineering, 1993, §5.5)."""
VERSIONS = ("1",)
METADATA = frozenset(
    HEADER + field.encode_name.replace("_", "-") for field in msgspec.structs.fields(Request)
) | {HEADER + "budget"}
"""Headers that are a request's metadata."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class NodeApi:
    """The HTTP side of one node."""

    def __init__(
        self,
        edge: RequestHandler,
        clock: Clock,
        monitor: Monitor,
        metrics: NodeMetrics,
        body_limit: int,
        refresh: Callable[[], None],
        fleet: tuple[str, ...],
    ) -> None:
        self._edge, self._clock, self._monitor = edge, clock, monitor
        self._metrics = metrics
        self._limit = body_limit
        self._refresh = refresh
        self._fleet = frozenset(fleet)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[_errors], client_max_size=self._limit)
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
        length = http.content_length
        try:
            body = Upload(length, self._limit)
            if "edgewise-dispatch" in http.headers:
                return await self._transferred(http, model, body, accepted)
            return await self._from_client(http, model, body, accepted)
        except TooLarge as error:
            raise RequestRefused(413, str(error)) from None

    async def _from_client(
        self, http: web.Request, model: str, body: Upload, accepted: float
    ) -> web.StreamResponse:
        pump = asyncio.create_task(self._pump(http, body, from_client=True))
        try:
            arrival = ReceivedRequest(
                request=await self._metadata(http, body, accepted),
                body=body,
                format=_format(http),
                accepted=accepted,
                model=None if model == DEFAULT_TASK else model,
                label=_number(http.headers, "edgewise-label", None),
            )
            answer = await self._edge.serve(arrival)
            response = await self._answer(answer, arrival)
            try:  # whoever asked has the answer before it is counted, or has gone
                with contextlib.suppress(ConnectionError):
                    await response.prepare(http)
                    await response.write_eof()
            finally:
                self._count(arrival, answer)
            return response
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _transferred(
        self, http: web.Request, model: str, body: Upload, accepted: float
    ) -> web.StreamResponse:
        headers = http.headers
        via = headers.get("edgewise-via", "")
        if via not in self._fleet:
            raise WireError("edgewise-via", f"expected a server of this fleet, got {via!r:.60}")
        if model == DEFAULT_TASK:
            raise WireError("model", "expected a concrete model in a transfer")
        decider = headers.get("edgewise-decider", "")
        transfer = TransferOrigin(
            via=via,
            attempt=_number(headers, "edgewise-attempt", 0) or 0,
            dispatch=_number(headers, "edgewise-dispatch", 0) or 0,
            decider=decider if decider in self._fleet else "",
        )
        arrival = ReceivedRequest(
            request=Request.from_headers(headers, accepted),
            body=body,
            format=_format(http),
            accepted=accepted,
            model=model,
            ready_size=_number(headers, "edgewise-ready-size", None),
            label=_number(headers, "edgewise-label", None),
        )
        response = web.StreamResponse(status=202, headers={"Content-Type": "application/json"})
        said = False

        async def arrived() -> None:
            nonlocal said
            said = True
            await response.prepare(http)

        pump = asyncio.create_task(self._pump(http, body, from_client=False))
        try:
            answer = await self._edge.accept(arrival, transfer, arrived)
        except ConnectionError:  # whoever transferred it has given up: nobody waits for an answer
            return response
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
        self._metrics.transfers.labels(str(answer.code)).inc()
        _, encoded = open_inference.encode_answer(answer, "", frozenset())
        if not said:
            return web.Response(status=answer.code, body=encoded, content_type="application/json")
        with contextlib.suppress(ConnectionError):  # as above, while it ran
            await response.write(b'{"code":%d,' % answer.code + encoded[1:])
            await response.write_eof()
        return response

    async def _pump(self, http: web.Request, body: Upload, from_client: bool) -> None:
        """Read the body as it comes."""
        link = self._monitor.access
        size = body.expected or 0
        if not from_client:
            await self._read(http, body)
            return
        with link.flow(self._monitor.server, size, self._clock.now) as flow:
            await self._read(http, body)
            if body.first_at is not None and body.last_at is not None:
                # What came with the first chunk took no time that could be seen here.
                link.received(
                    flow, body.size - body.first_size, body.last_at - body.first_at, body.last_at
                )

    async def _read(self, http: web.Request, body: Upload) -> None:
        try:
            async for chunk in http.content.iter_any():
                body.feed(chunk, self._clock.now())
            body.finish(self._clock.now())
        except TooLarge:
            pass  # the readers have it
        except Exception as error:
            body.fail(WireError("", f"the body broke off: {error or type(error).__name__}"))

    async def _metadata(self, http: web.Request, body: Upload, accepted: float) -> Request:
        """From the headers; without them from the body, when that is in; the rest is our own."""
        server = self._monitor.server
        own = {
            "id": uuid.uuid4().hex,
            "ingress": server,
            "payload-bytes": str(http.content_length or 0),
            "sent-at": repr(accepted),
            "deadline": repr(DEADLINE_DEFAULT),
        }
        headers = {HEADER + key: value for key, value in own.items()}
        given = {k.lower(): v for k, v in http.headers.items() if k.lower() in METADATA}
        if given:
            request = Request.from_headers({**headers, **given}, accepted)
        else:
            parameters = await self._parameters(http, body)
            values: dict[str, Any] = {
                "edgewise." + key.replace("-", "_"): value for key, value in own.items()
            }
            if "timeout" in parameters:
                if parameters["timeout"] == 0:  # Triton's way of saying none
                    parameters = {k: v for k, v in parameters.items() if k != "timeout"}
                else:
                    del values["edgewise.deadline"]
            request = Request.from_parameters({**values, **parameters}, accepted)
        if request.ingress != server:
            raise WireError(HEADER + "ingress", f"expected {server!r}, got {request.ingress!r}")
        return request

    async def _parameters(self, http: web.Request, body: Upload) -> Mapping[str, Any]:
        whole = await body.whole()
        return open_inference.decode_request(
            whole, http.headers.get(open_inference.HEADER_LENGTH)
        ).parameters

    async def _answer(self, answer: InferAnswer, arrival: ReceivedRequest) -> web.Response:
        echo, binary = "", frozenset[str]()
        if answer.served:
            await arrival.photo()  # not read yet if it was transferred as it came, or is a retry
            assert arrival.parsed is not None
            echo, binary = arrival.parsed.id, arrival.parsed.binary
        headers, body = open_inference.encode_answer(answer, echo, binary)
        if answer.code in (429, 503):
            headers["Retry-After"] = "1"
        return web.Response(status=answer.code, headers=headers, body=body)

    def _count(self, arrival: ReceivedRequest, answer: InferAnswer) -> None:
        outcome = answer.outcome
        now = self._clock.now()
        self._metrics.count(outcome.status.value, outcome.model, answer.code)
        self._metrics.duration.observe(now - arrival.accepted)
        if arrival.decided is not None:
            self._metrics.decision.observe(max(0.0, arrival.decided - arrival.accepted))
        if answer.served and arrival.request.slack(now) < 0.0:
            self._metrics.late.inc()

    # -- the rest --------------------------------------------------------------------------------

    def _known_model(self, http: web.Request) -> str:
        model = http.match_info["model"]
        known = (DEFAULT_TASK, *self._edge.services)
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
        ready = not self._edge.draining
        return _json({"ready": ready}, 200 if ready else 503)

    async def _model_ready(self, http: web.Request) -> web.Response:
        model = self._known_model(http)
        ready = not self._edge.draining
        return _json({"name": model, "ready": ready}, 200 if ready else 503)

    async def _model(self, http: web.Request) -> web.Response:
        model = self._known_model(http)
        return _json(
            {
                "name": model,
                "versions": list(VERSIONS),
                "platform": "edgewise",
                "inputs": [{"name": open_inference.INPUT, "datatype": "BYTES", "shape": [1]}],
                "outputs": [
                    {"name": "class", "datatype": "INT64", "shape": [1]},
                    {"name": "score", "datatype": "FP32", "shape": [1]},
                ],
            }
        )

    async def _report(self, http: web.Request) -> web.Response:
        decider = http.query.get("for", "")
        report: Report = self._monitor.report(self._clock.now(), decider)
        return _json(report)

    async def _show_metrics(self, _: web.Request) -> web.Response:
        self._refresh()
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _format(http: web.Request) -> dict[str, str]:
    names = (open_inference.HEADER_LENGTH, "Content-Type")
    return {name: http.headers[name] for name in names if name in http.headers}


def _number(headers: Mapping[str, str], name: str, default: int | None) -> int | None:
    text = headers.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise WireError(name, f"expected a whole number, got {text!r:.40}")
    return int(text)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json"
    )


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
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
