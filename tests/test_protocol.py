"""What clients may send: forms of bodies and metadata, broken HTTP, and the limits on all of it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import re
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewise.live.node.node import Node
from edgewise.live.process_config import Limits
from edgewise.live.wire import messages
from edgewise.live.wire.open_inference import encode_request
from edgewise.live.wire.request_metadata import to_headers
from node_fleet import PATIENCE, Fleet, json_body, request_for, until

INFER = "/v2/models/quick/infer"


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with Fleet() as fleet:
        yield fleet


async def post(
    fleet: Fleet, node: Node, body: bytes, model: str = "quick", **headers: str
) -> tuple[int, dict[str, Any]]:
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    url = f"{node.url}/v2/models/{model}/infer"
    async with fleet.client.post(url, data=body, headers=names) as response:
        assert response.content_type in ("application/json", "application/octet-stream")
        return response.status, msgspec.json.decode(await response.read())


async def raw(node: Node, *parts: bytes, eof: bool = False) -> bytes:
    """Send bytes as they are, and return everything that comes until the server closes."""
    host, port = node.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if eof:
            writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def answered(data: bytes) -> tuple[int, dict[str, Any]]:
    """Code and JSON of the last answer in `data`."""
    head, _, body = data.rpartition(b"\r\n\r\n")
    assert b"application/json" in head
    return int(head.rpartition(b"HTTP/1.")[2][2:5]), msgspec.json.decode(body)


async def counted(fleet: Fleet, node: Node, line: str) -> float:
    async with fleet.client.get(node.url + "/metrics") as response:
        for each in (await response.text()).splitlines():
            if each.rsplit(" ", 1)[0] == line:
                return float(each.rsplit(" ", 1)[1])
    return 0.0


def message(**fields: Any) -> bytes:
    """An infer request in JSON with these members, and those of its tensor under ``tensor``."""
    tensor = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(b"photo").decode()],
    } | fields.pop("tensor", {})
    return msgspec.json.encode({"inputs": [tensor], **fields})


# -- bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body_is_read_here_and_transferred(
    fleet: Fleet, coding: str, pack: Any
) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    form, body = encode_request(b"p" * 80_000)
    form |= to_headers(request_for(a), a.clock.now()) | {"Content-Encoding": coding}
    url = f"{a.url}/v2/models/imagenet-1k/infer"
    async with fleet.client.post(url, data=pack(body), headers=form) as response:
        answer = msgspec.json.decode(await response.read())
    assert (response.status, answer["parameters"]["edgewise.server"]) == (200, "b")
    assert fleet.executors["b"].items[0].payload == b"p" * 80_000


async def test_a_compressed_body_is_limited_as_it_unfolds(fleet: Fleet) -> None:
    a = await fleet.start("a", body_limit=50_000)
    code, answer = await post(fleet, a, gzip.compress(b"x" * 1_000_000), Content_Encoding="gzip")
    assert (code, "limit of 50000 bytes" in answer["error"]) == (413, True)


@pytest.mark.parametrize("coding", ["br", "zstd", "lzma"])
async def test_an_unknown_coding_is_refused(fleet: Fleet, coding: str) -> None:
    a = await fleet.start("a")
    code, answer = await post(fleet, a, json_body(), Content_Encoding=coding)
    assert (code, "gzip" in answer["error"]) == (415, True)


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "IMAGE/JPEG; q=1"])
async def test_a_photo_may_come_as_it_is(fleet: Fleet, kind: str) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    code, answer = await post(
        fleet, a, b"raw photo", "imagenet-1k", Content_Type=kind, edgewise_deadline="5"
    )
    assert (code, answer["outputs"][0]["data"]) == (200, [7])
    assert fleet.executors["b"].items[0].payload == b"raw photo"


@pytest.mark.parametrize(
    "body",
    [
        message(id=None, parameters=None, outputs=None, tensor={"parameters": None}),
        message(parameters={"timeout": None, "edgewise.deadline": None, "edgewise.id": None}),
        message(outputs=[{"name": "class", "parameters": None}]),
    ],
)
async def test_null_is_absent(fleet: Fleet, body: bytes) -> None:
    a = await fleet.start("a")
    assert (await post(fleet, a, body))[0] == 200


async def test_only_the_outputs_asked_for_are_sent(fleet: Fleet) -> None:
    a = await fleet.start("a")
    for wanted in (["score"], ["class"], ["score", "class"], ["class", "class"]):
        _, answer = await post(fleet, a, message(outputs=[{"name": name} for name in wanted]))
        assert [each["name"] for each in answer["outputs"]] == list(dict.fromkeys(wanted))
    _, answer = await post(fleet, a, message(outputs=[]))
    assert [each["name"] for each in answer["outputs"]] == ["class", "score"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (message(outputs=[{"name": "class", "parameters": {"classification": 3}}]), "classific"),
        (message(parameters={"edgewise.id": "n1\n"}), "edgewise.id"),
        (message(parameters={"edgewise.id": 5}), "edgewise.id"),
        (message().replace(b"[1]", b"[" * 1000 + b"1" + b"]" * 1000), "shape"),
        (message(parameters={"x": 1}).replace(b'"x":1', b'"x":' + b"[" * 99_999), "not JSON"),
        (
            message(parameters={"edgewise.deadline": 1}).replace(b":1}", b":" + b"9" * 400 + b"}"),
            "",
        ),
        (message(parameters={"timeout": 1}).replace(b":1}", b":" + b"9" * 400 + b"}"), ""),
        (message().replace(b"[1]", b"[" + b"9" * 400 + b"]"), "shape"),
        (message(tensor={"data": [[[[["x"] * 2]]]]}), "data"),
        (b"\xff\xfe{}", "not JSON"),
        (b"[]", ""),
    ],
)
async def test_bad_json_names_the_field(fleet: Fleet, body: bytes, field: str) -> None:
    a = await fleet.start("a")
    code, answer = await post(fleet, a, body)
    assert (code, field in answer["error"]) == (400, True), answer
    assert (await post(fleet, a, json_body()))[0] == 200


# -- metadata --------------------------------------------------------------------------------------


async def test_headers_and_parameters_are_merged(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    parameters = {"edgewise.accuracy": 0.8, "edgewise.deadline": 4.0, "timeout": 9}
    code, _ = await post(
        fleet, a, message(parameters=parameters), "imagenet-1k", edgewise_deadline="4"
    )
    assert code == 200
    (ask,) = fleet.balancer.all(messages.Ask)
    assert (ask.request.deadline, ask.request.accuracy) == (4.0, 0.8)


@pytest.mark.parametrize("complete", [False, True])
async def test_headers_and_parameters_that_disagree_are_refused(
    fleet: Fleet, complete: bool
) -> None:
    a = await fleet.start("a")
    headers = {"edgewise_accuracy": "0.5"}
    if complete:  # decided before the body is there
        headers |= {"edgewise_id": "r1", "edgewise_deadline": "5"}
    body = message(parameters={"edgewise.accuracy": 0.99})
    code, answer = await post(fleet, a, body, **headers)
    assert code == 400
    assert "edgewise-accuracy: the header says '0.5', the parameter" in answer["error"]
    assert fleet.executors["a"].items == []


@pytest.mark.parametrize("how", ["header", "parameter"])
async def test_a_task_that_the_fleet_does_not_have_is_unknown(fleet: Fleet, how: str) -> None:
    a = await fleet.start("a")
    headers = {"edgewise_task": "other"} if how == "header" else {}
    parameters = {"edgewise.task": "other"} if how == "parameter" else {}
    body = message(parameters=parameters)
    code, answer = await post(fleet, a, body, "imagenet-1k", **headers)
    assert (code, "unknown task 'other'" in answer["error"]) == (404, True)


async def test_an_id_with_another_photo_is_refused(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick")
    meta = request_for(a, deadline=60.0)
    assert (await fleet.post(a, b"photo 1", meta=meta))[0] == 200
    code, answer = await fleet.post(a, b"photo 2", meta=meta)
    assert (code, answer["error"]) == (409, "this id was used for another photo")
    assert (await fleet.post(a, b"photo 1", meta=meta))[0] == 200
    assert len(fleet.executors["a"].items) == 1
    # The same while the first one is under way.
    fleet.executors["a"].go.clear()
    other = request_for(a, "r2", deadline=60.0)
    first = asyncio.create_task(fleet.post(a, b"photo 1", meta=other))
    await until(lambda: len(fleet.executors["a"].items) == 2)
    second = asyncio.create_task(fleet.post(a, b"photo 2", meta=other))
    fleet.executors["a"].go.set()
    assert ((await first)[0], (await second)[0]) == (200, 409)


async def test_refusals_are_counted(fleet: Fleet) -> None:
    a = await fleet.start("a")
    for _ in range(3):
        assert (await post(fleet, a, json_body(), "nosuch"))[0] == 404
        assert (await post(fleet, a, b"{"))[0] == 400
    async with fleet.client.get(a.url + "/nowhere") as response:
        assert response.status == 404
    assert await counted(fleet, a, 'request_error_total{code="404"}') == 4.0
    assert await counted(fleet, a, 'request_error_total{code="400"}') == 3.0


# -- HTTP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nX: " + b"secret" * 2000 + b"\r\n\r\n", 431),
        (b"GET /" + b"secret" * 2000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nsecret", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03secret", 400),
        (b"secret\r\n\r\n", 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\nContent-Length: 0\r\n"
         b"Connection: close\r\n\r\n", 400),
    ],
)  # fmt: skip
async def test_what_is_no_http_gets_json_and_one_line_in_the_log(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, data: bytes, code: int
) -> None:
    a = await fleet.start("a")
    caplog.set_level("INFO")
    caplog.clear()
    found, answer = answered(await raw(a, data))
    assert found == code
    assert answer["error"]
    assert "secret" not in caplog.text + answer["error"]
    assert "Traceback" not in caplog.text
    assert len([each for each in caplog.records if each.name.startswith(("edge", "aio"))]) <= 1
    assert await counted(fleet, a, f'request_error_total{{code="{code}"}}') == 1.0


def post_head(length: int, *lines: bytes) -> bytes:
    head = [
        b"POST " + INFER.encode() + b" HTTP/1.1",
        b"Host: localhost",
        b"Content-Length: %d" % length,
    ]
    return b"\r\n".join([*head, *lines]) + b"\r\n\r\n"


async def test_a_client_that_sends_no_more_is_answered(fleet: Fleet) -> None:
    a = await fleet.start("a")
    fleet.executors["a"].go.clear()
    body = json_body()
    sending = asyncio.create_task(raw(a, post_head(len(body)), body, eof=True))
    await asyncio.wait_for(fleet.executors["a"].running.wait(), PATIENCE)
    fleet.executors["a"].go.set()
    code, answer = answered(await sending)
    assert (code, answer["outputs"][0]["data"]) == (200, [7])


async def test_a_client_that_is_gone_is_noticed(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await fleet.start("a")
    fleet.executors["a"].go.clear()
    host, port = a.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = json_body()
    writer.write(post_head(len(body)) + body)
    await asyncio.wait_for(fleet.executors["a"].running.wait(), PATIENCE)
    writer.close()
    await until(lambda: a.inflight == 0)


async def test_a_body_over_the_limit_is_not_asked_for(fleet: Fleet) -> None:
    a = await fleet.start("a", body_limit=5000)
    data = await raw(a, post_head(5001, b"Expect: 100-continue"))
    assert b"100 Continue" not in data
    code, answer = answered(data)
    assert (code, "limit of 5000 bytes" in answer["error"]) == (413, True)
    body = json_body()
    head = post_head(len(body), b"Expect: 100-continue", b"Connection: close")
    data = await raw(a, head, body)
    assert data.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answered(data)[0] == 200


# -- limits ----------------------------------------------------------------------------------------

LONG = {
    "header_timeout": 60.0,
    "idle_timeout": 60.0,
    "body_progress_timeout": 60.0,
    "body_timeout": 60.0,
}


def limits(**changes: Any) -> Limits:
    """Limits of which only `changes` can be reached within a test."""
    return Limits(**(LONG | changes))


META = b"edgewise-id: r1\r\nedgewise-deadline: 60\r\nedgewise-accuracy: 0"


@pytest.mark.parametrize(
    ("parts", "limit"),
    [
        ((b"POST / HTTP/1.1\r\nHost: localhost\r\n",), {"header_timeout": 0.05}),
        ((post_head(1000, META), b"x" * 10), {"body_progress_timeout": 0.05}),
        ((post_head(1000, META), b"x" * 10), {"body_timeout": 0.05}),
    ],
)
async def test_slow_clients_are_given_up(
    fleet: Fleet, parts: tuple[bytes, ...], limit: dict[str, float]
) -> None:
    a = await fleet.start("a", limits=limits(**limit))
    code, answer = answered(await raw(a, *parts))
    assert (code, "in time" in answer["error"]) == (408, True)
    (name,) = limit
    assert await counted(fleet, a, f'limit_reached_total{{limit="{name}"}}') == 1.0
    assert await counted(fleet, a, 'request_error_total{code="408"}') == 1.0
    assert await counted(fleet, a, "upload_bytes") == 0.0


async def test_a_body_without_metadata_may_stand_still_for_the_default_deadline(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.live.node.client_request.DEADLINE_DEFAULT", 0.05)
    a = await fleet.start("a", limits=limits())
    assert answered(await raw(a, post_head(1000)))[0] == 408


async def test_an_idle_connection_is_closed(fleet: Fleet) -> None:
    a = await fleet.start("a", limits=limits(idle_timeout=0.05))
    assert await raw(a) == b""
    assert (await raw(a, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")).startswith(
        b"HTTP/1.1 200"
    )
    await until(lambda: a.usage.connections == 0)
    assert a.usage.reached["idle_timeout"] >= 2


@pytest.mark.parametrize("limit", ["connections", "connections_per_client"])
async def test_connections_are_bounded(fleet: Fleet, limit: str) -> None:
    a = await fleet.start("a", limits=limits(**{limit: 2}))
    host, port = a.url.removeprefix("http://").split(":")
    # The node's first request to itself, when it started, may have a connection still.
    writers = []
    while a.usage.connections < 2:
        _, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)
        await until(lambda: a.usage.connections >= len(writers))
    code, answer = answered(await raw(a))
    assert (code, limit in answer["error"]) == (503, True)
    assert a.usage.reached[limit] == 1
    for writer in writers:
        writer.close()
    await until(lambda: a.usage.connections < 2)
    assert (await post(fleet, a, json_body()))[0] == 200


async def test_bodies_that_come_in_hold_no_more_than_the_limit(fleet: Fleet) -> None:
    a = await fleet.start("a", limits=limits(upload_bytes=100_000))
    host, port = a.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(post_head(200_000, META) + b"x" * 80_000)
    await until(lambda: a.usage.upload_bytes == 80_000)
    code, answer = answered(
        await raw(
            a, post_head(50_000, META.replace(b"r1", b"r2"), b"Connection: close"), b"y" * 50_000
        )
    )
    assert (code, "memory" in answer["error"]) == (503, True)
    assert a.usage.reached["upload_bytes"] == 1
    writer.close()
    await until(lambda: a.usage.upload_bytes == 0)
    assert (await post(fleet, a, json_body()))[0] == 200


async def test_a_request_has_a_limit_whatever_its_deadline(fleet: Fleet) -> None:
    a = await fleet.start("a", limits=limits(request_timeout=0.1))
    fleet.executors["a"].go.clear()
    code, answer = await fleet.post(a, model="quick", meta=request_for(a, deadline=3600.0))
    assert (code, "the server's limit" in answer["error"]) == (504, True)
    assert a.usage.reached["request_timeout"] == 1
    fleet.executors["a"].go.set()


async def test_an_early_refusal_leaves_the_connection_usable(fleet: Fleet) -> None:
    """The rest of a refused request's body is no new request's headers."""
    url = await fleet.start_balancer()
    a = await fleet.start("a", balancer=url, limits=limits(header_timeout=0.05))
    await until(lambda: a.commands.connected)
    fleet.balancer.decide = lambda r: fleet.balancer.command(r)
    head = post_head(10_000, META)
    host, port = a.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head)
    async with asyncio.timeout(PATIENCE):
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 429")
        for _ in range(10):
            writer.write(b"x" * 1000)
            await asyncio.sleep(0.01)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        rest = await reader.read()
    writer.close()
    assert b"HTTP/1.1 200" in rest
    assert b"408" not in rest


def test_the_table_of_limits_has_their_defaults() -> None:
    text = (Path(__file__).parent.parent / "docs" / "protocol.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    assert dict(rows) == {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in msgspec.structs.asdict(Limits()).items()
    }
