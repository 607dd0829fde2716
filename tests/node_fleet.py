"""Nodes in this process on real loopback sockets, and a balancer that a test controls."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from aiohttp.test_utils import TestServer

from edgewise.domain import Candidate, Command, PayloadForm, Request, ShedReason
from edgewise.errors import ImagesError
from edgewise.live.node.executor import BatchItem, Executor, Prediction, Result
from edgewise.live.node.node import Node
from edgewise.live.process_config import NodeConfig
from edgewise.live.wire import messages
from edgewise.live.wire.open_inference import encode_request
from edgewise.live.wire.request_metadata import to_headers
from edgewise.scenario import Scenario, loads

PATIENCE = 20.0
"""s. A test that waits longer has failed."""

SCENARIO = """
name: test
executor: replay
report_period: 0.05
service_noise: {cv: 0}
servers:
  a: {services: [{model: quick, accuracy: 0.6, latency: [0.002], input_size: 96}]}
  b:
    services:
      - {model: quick, accuracy: 0.6, latency: [0.002], input_size: 96}
      - {model: exact, accuracy: 0.9, latency: [0.004], input_size: 224}
workload:
  duration: 1
  arrivals: {kind: poisson, rate: 1}
  ingress: {a: 1}
  demands: [{deadline: 1.0}]
  payload: {kind: lognormal, median_bytes: 1000}
"""


def scenario(**changes: Any) -> Scenario:
    return msgspec.structs.replace(loads(SCENARIO), **changes)


async def until(condition: Callable[[], bool]) -> None:
    """Run other tasks until the condition holds, for states that no event announces."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def predictions(batch: Sequence[BatchItem]) -> list[Result]:
    """The same class for every photo but one."""
    return [
        ImagesError("the image cannot be decoded: expected JPEG")
        if item.payload == b"no image"
        else Prediction(predicted=7, score=0.5, cpu=0.001)
        for item in batch
    ]


class ControlledExecutor:
    """An executor that records its items, and holds them while `go` is clear."""

    def __init__(self) -> None:
        self.items: list[BatchItem] = []
        self.go = asyncio.Event()
        self.go.set()
        self.running = asyncio.Event()

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        self.items += batch
        self.running.set()
        await self.go.wait()
        return predictions(batch)


class Balancer:
    """Answers each ask with the command that `decide` returns; None: not at all."""

    def __init__(self) -> None:
        self.decide: Callable[[Request], Command | None] = lambda request: None
        self.messages: list[messages.FromNode] = []
        self.sockets: dict[str, web.WebSocketResponse] = {}
        self._changed = asyncio.Condition()
        app = web.Application()
        app.router.add_get("/v1/control", self._control)
        self.server = TestServer(app)
        self._sequence = 0

    async def _control(self, http: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(http)
        name = ""
        async for message in socket:
            read = messages.decode_from_node(message.data)
            if isinstance(read, messages.Hello):
                name = read.server
                await socket.send_bytes(messages.encode(messages.Welcome(policy="test", at=1.0)))
                self.sockets[name] = socket
            elif isinstance(read, messages.Ask):
                command = self.decide(read.request)
                if command is not None:
                    await socket.send_bytes(messages.encode(command))
            async with self._changed:
                self.messages.append(read)
                self._changed.notify_all()
        self.sockets.pop(name, None)
        return socket

    async def send(self, server: str, message: messages.FromBalancer) -> None:
        await self.sockets[server].send_bytes(messages.encode(message))

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Wait until the messages received fulfil a condition."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(wanted)

    def all(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.messages if isinstance(message, kind)]

    def command(
        self,
        request: Request,
        server: str | None = None,
        model: str | None = None,
        form: PayloadForm = PayloadForm.ORIGINAL,
        alternatives: tuple[Candidate, ...] = (),
        reason: ShedReason | None = None,
    ) -> Command:
        self._sequence += 1
        return Command(
            request=request.id,
            sequence=self._sequence,
            dispatch=self._sequence,
            server=server,
            model=model,
            form=form,
            reason=reason,
            alternatives=alternatives,
        )


class Fleet:
    """Nodes, at most one balancer, and a client."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.executors: dict[str, ControlledExecutor] = {}
        self.balancer = Balancer()
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Fleet:
        self.client = await self.stack.enter_async_context(aiohttp.ClientSession())
        return self

    async def __aexit__(self, *_: object) -> None:
        for executor in self.executors.values():
            executor.go.set()
        await self.stack.aclose()
        for node in self.nodes.values():
            assert node.inflight == 0
            assert node.queue.size == 0
            assert node.queue.busy == 0
            assert all(link.flows == 0 for link in node.monitor.links.values())
            assert node.monitor.access.flows == 0

    async def start_balancer(self) -> str:
        await self.balancer.server.start_server()
        self.stack.push_async_callback(self.balancer.server.close)
        return f"http://127.0.0.1:{self.balancer.server.port}"

    async def start(
        self,
        server: str,
        *,
        balancer: str | None = None,
        peers: Mapping[str, str] | None = None,
        executor: Executor | None = None,
        of: Scenario | None = None,
        **config: Any,
    ) -> Node:
        if executor is None:
            executor = self.executors[server] = ControlledExecutor()
        node = Node(
            NodeConfig(
                scenario="test", server=server, balancer=balancer, peers=dict(peers or {}), **config
            ),
            of or scenario(),
            executor=executor,
        )
        self.nodes[server] = await self.stack.enter_async_context(node)
        return node

    async def pair(self, **changes: Any) -> tuple[Node, Node]:
        """Node a with a peer b, both connected to a balancer."""
        of = scenario(**changes)
        url = await self.start_balancer()
        b = await self.start("b", balancer=url, of=of)
        a = await self.start("a", balancer=url, peers={"b": b.url}, of=of)
        await self.balancer.until(lambda: len(self.balancer.sockets) == 2)
        await until(lambda: a.commands.connected and b.commands.connected)
        return a, b

    async def post(
        self,
        node: Node,
        photo: bytes = b"photo",
        model: str = "imagenet-1k",
        meta: Request | None = None,
        parameters: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        form, body = encode_request(photo, "v2-id", parameters)
        if meta is not None:
            form |= to_headers(meta, node.clock.now())
        url = f"{node.url}/v2/models/{model}/infer"
        async with self.client.post(url, data=body, headers=form | (headers or {})) as response:
            return response.status, msgspec.json.decode(await response.read())


def request_for(node: Node, name: str = "r1", **fields: Any) -> Request:
    values: dict[str, Any] = {
        "id": name,
        "ingress": node.config.server,
        "payload_bytes": 5,
        "sent_at": node.clock.now(),
        "deadline": 5.0,
    }
    return Request(**(values | fields))


def json_body(**changes: Any) -> bytes:
    tensor = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(b"photo").decode()],
    }
    return msgspec.json.encode({"inputs": [tensor | changes]})
