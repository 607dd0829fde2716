"""A node on loopback sockets: who answers a request, that it is answered once, and bad input."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web

from edgewise.domain import Candidate, Outcome, PayloadForm, Report, ShedReason, Status
from edgewise.errors import BadInput
from edgewise.live.node.node import Node
from edgewise.live.wire import messages
from edgewise.live.wire.open_inference import HEADER_LENGTH, decode_answer, encode_request
from edgewise.live.wire.request_metadata import to_headers
from edgewise.live.wire.sockets import listen
from node_fleet import PATIENCE, Fleet, json_body, request_for, scenario, until


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with Fleet() as fleet:
        yield fleet


def outcomes(fleet: Fleet) -> list[Outcome]:
    return [message.outcome for message in fleet.balancer.all(messages.OutcomeMessage)]


# -- who answers -----------------------------------------------------------------------------------


async def test_a_command_for_this_server_runs_here(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick")
    code, answer = await fleet.post(a, meta=request_for(a, deadline=5.0))
    assert code == 200
    assert answer["model_name"] == "quick"
    assert answer["id"] == "v2-id"
    assert answer["outputs"][0]["data"] == [7]
    outcome = decode_answer("r1", code, msgspec.json.encode(answer)).outcome
    assert (outcome.server, outcome.model, outcome.form) == ("a", "quick", PayloadForm.ORIGINAL)
    assert outcome.accuracy == 0.6
    stages = outcome.stamps
    marks = [stages.accepted, stages.decided, stages.started, stages.finished, stages.answered]
    assert None not in marks
    assert marks == sorted(marks)  # type: ignore[type-var]
    await fleet.balancer.until(lambda: len(outcomes(fleet)) == 1)
    assert outcomes(fleet)[0] == outcome
    (ask,) = fleet.balancer.all(messages.Ask)
    assert ask.request.deadline == 5.0


async def test_an_early_command_saves_the_ask(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    request = request_for(a)
    await fleet.balancer.send("a", fleet.balancer.command(request, "a", "quick"))
    await fleet.balancer.send("a", messages.Ping(at=5.0))
    await fleet.balancer.until(lambda: bool(fleet.balancer.all(messages.Pong)))
    code, _ = await fleet.post(a, meta=request)
    assert code == 200
    assert fleet.balancer.all(messages.Ask) == []


async def test_the_original_is_transferred(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    code, answer = await fleet.post(a, b"p" * 200_000, meta=request_for(a), headers={})
    outcome = decode_answer("r1", code, msgspec.json.encode(answer)).outcome
    assert (outcome.status, outcome.server, outcome.model) == (Status.SERVED, "b", "exact")
    assert outcome.form is PayloadForm.ORIGINAL
    (item,) = fleet.executors["b"].items
    assert item.payload == b"p" * 200_000
    assert item.ready_size is None
    assert fleet.executors["a"].items == []
    stamps = outcome.stamps
    assert stamps.transferred is not None
    assert stamps.started is not None
    assert a.monitor.report(a.clock.now()).peers["b"].throughput is not None
    await fleet.balancer.until(
        lambda: any(
            message.report.server == "b" and message.report.arrivals_low == 1
            for message in fleet.balancer.all(messages.ReportMessage)
        )
    )
    # Only the ingress reports the outcome: a message of `b` would be here before its pong.
    await fleet.balancer.send("b", messages.Ping(at=5.0))
    await fleet.balancer.until(
        lambda: bool(outcomes(fleet)) and bool(fleet.balancer.all(messages.Pong))
    )
    assert [outcome.request for outcome in outcomes(fleet)] == ["r1"]


async def test_a_photo_is_forwarded_while_it_still_comes_in(fleet: Fleet) -> None:
    a, b = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    form, body = encode_request(b"p" * 100_000)
    more = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield body[:50_000]
        await more.wait()
        yield body[50_000:]

    form |= to_headers(request_for(a), a.clock.now()) | {"Content-Length": str(len(body))}
    url = f"{a.url}/v2/models/imagenet-1k/infer"
    posting = asyncio.create_task(fleet.client.post(url, data=slowly(), headers=form))
    await until(lambda: b.inflight > 0)
    assert b.queue.size == 1  # it waits there, though its photo is not in anywhere
    assert fleet.executors["b"].items == []
    assert b.monitor.report(b.clock.now()).queue == ()
    assert a.monitor.report(a.clock.now()).peers["b"].flows == 1
    more.set()
    async with await posting as response:
        assert response.status == 200
    assert fleet.executors["b"].items[0].payload == b"p" * 100_000


async def test_a_photo_is_made_ready_for_the_destination(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(
        r, "b", "exact", PayloadForm.MODEL_READY
    )
    code, answer = await fleet.post(a, b"p" * 100_000, meta=request_for(a))
    outcome = decode_answer("r1", code, msgspec.json.encode(answer)).outcome
    assert outcome.form is PayloadForm.MODEL_READY
    (item,) = fleet.executors["b"].items
    assert item.ready_size == 224
    assert len(item.payload) < 30_000


async def test_a_named_model_is_decided_like_any_request(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", r.named_model)
    code, answer = await fleet.post(a, model="exact")  # which `a` does not have
    assert (code, answer["model_name"]) == (200, "exact")
    (ask,) = fleet.balancer.all(messages.Ask)
    assert ask.request.named_model == "exact"
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, reason=ShedReason.PRICE)
    assert (await fleet.post(a, model="quick"))[0] == 429


async def test_a_command_for_another_model_than_the_named_one_is_not_used(fleet: Fleet) -> None:
    """The client's metadata named none."""
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    code, answer = await fleet.post(a, model="quick")
    assert (code, answer["model_name"]) == (200, "quick")
    await until(lambda: not a.monitor.seen("").held)


async def test_a_model_named_twice_must_be_the_same(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    named = request_for(a, named_model="exact")
    code, answer = await fleet.post(a, model="quick", meta=named)
    assert (code, "edgewise-named-model" in answer["error"]) == (400, True)
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", r.named_model)
    code, answer = await fleet.post(a, meta=named)
    assert (code, answer["model_name"]) == (200, "exact"), "a header is enough"


async def test_a_fallback_is_of_the_named_model(fleet: Fleet) -> None:
    """The quickest service here would be another one."""
    b = await fleet.start("b", balancer=await fleet.start_balancer())
    await until(lambda: b.commands.connected)
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", r.named_model)
    code, answer = await fleet.post(b, model="exact")  # `a` cannot be reached
    assert (code, answer["model_name"]) == (200, "exact")


@pytest.mark.parametrize(("after", "header"), [(None, "1"), (0.2, "1"), (7.3, "8")])
async def test_a_refusal_says_when_to_try_again(
    fleet: Fleet, after: float | None, header: str
) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: msgspec.structs.replace(
        fleet.balancer.command(r, reason=ShedReason.PRICE), retry_after=after
    )
    async with fleet.client.post(a.url + "/v2/models/quick/infer", data=json_body()) as response:
        assert (response.status, response.headers["Retry-After"]) == (429, header)


async def test_a_demand_that_nothing_meets_is_refused_for_good(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, reason=ShedReason.NO_SERVICE)
    headers = {"edgewise-accuracy": "0.95"}
    async with fleet.client.post(
        a.url + "/v2/models/imagenet-1k/infer", data=json_body(), headers=headers
    ) as response:
        assert response.status == 422
        assert "Retry-After" not in response.headers
        answer = await response.json()
    assert "the best there is has 0.9 (exact)" in answer["error"]
    code, answer = await fleet.post(a, model="quick", headers={"edgewise-accuracy": "0.8"})
    assert (code, "the best there is has 0.6 (quick)" in answer["error"]) == (422, True)


async def test_a_shed_answer_has_the_reason(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    for reason, code in (("price", 429), ("no_service", 422), ("none_up", 503)):
        fleet.balancer.decide = lambda r, reason=reason: fleet.balancer.command(  # type: ignore[misc]
            r, reason=ShedReason(reason)
        )
        answered, answer = await fleet.post(a, meta=request_for(a, reason))
        assert answered == code
        assert reason in answer["error"]
        assert answer["parameters"]["edgewise.status"] == "shed"


# -- when things break -----------------------------------------------------------------------------


def dead_port() -> str:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


async def lone(fleet: Fleet, peer: str, **changes: Any) -> Node:
    """Node a with a balancer, and a peer b at the given address."""
    url = await fleet.start_balancer()
    a = await fleet.start("a", balancer=url, peers={"b": peer}, of=scenario(**changes))
    await fleet.balancer.until(lambda: "a" in fleet.balancer.sockets)
    return a


async def test_a_dead_peer_gives_way_to_this_server(fleet: Fleet) -> None:
    a = await lone(fleet, dead_port())
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    code, answer = await fleet.post(a, meta=request_for(a, accuracy=0.5))
    assert code == 200
    assert answer["parameters"]["edgewise.server"] == "a"


async def test_a_dead_peer_and_no_service_here_is_an_explicit_error(fleet: Fleet) -> None:
    a = await lone(fleet, dead_port())
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    code, answer = await fleet.post(a, meta=request_for(a, accuracy=0.8))
    assert code == 503
    assert answer["parameters"]["edgewise.status"] == "failed"
    assert answer["error"].startswith("b: ")
    await fleet.balancer.until(lambda: len(outcomes(fleet)) == 1)


async def test_the_next_alternative_is_tried(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(
        r, "b", "nosuch", alternatives=(Candidate("a", "quick", PayloadForm.ORIGINAL),)
    )
    code, answer = await fleet.post(a, meta=request_for(a))
    assert (code, answer["parameters"]["edgewise.model"]) == (200, "quick")


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A peer that accepts everything and never answers."""
    try:
        while await reader.read(65536):
            pass
    finally:
        writer.close()


async def test_a_silent_peer_does_not_hold_a_request(fleet: Fleet) -> None:
    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        a = await lone(fleet, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
        begun = a.clock.now()
        here, nowhere = await asyncio.gather(
            fleet.post(a, meta=request_for(a, "here", deadline=0.2)),
            fleet.post(a, meta=request_for(a, "nowhere", deadline=0.7, accuracy=0.8)),
        )
        assert a.clock.now() - begun < 0.7 + 1.0
        assert here[0] == 200
        assert here[1]["parameters"]["edgewise.server"] == "a"
        assert nowhere[0] == 504
        assert "b: no answer in time" in nowhere[1]["error"]


async def test_a_request_made_late_by_a_peer_takes_no_worker_from_others(
    fleet: Fleet,
) -> None:
    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        a = await lone(fleet, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        here = (Candidate("a", "quick", PayloadForm.ORIGINAL),)
        fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact", alternatives=here)
        fleet.executors["a"].go.clear()
        other = asyncio.create_task(fleet.post(a, model="quick", meta=request_for(a, "other")))
        await asyncio.wait_for(fleet.executors["a"].running.wait(), PATIENCE)
        code, answer = await fleet.post(a, meta=request_for(a, "late", deadline=0.2))
        assert code == 504
        assert "a: too late to run it here" in answer["error"]
        fleet.executors["a"].go.set()
        assert (await other)[0] == 200
    assert [item.request for item in fleet.executors["a"].items] == ["other"]


async def test_a_server_that_did_not_answer_is_not_asked_again(fleet: Fleet) -> None:
    a = await lone(fleet, dead_port())
    again = (Candidate("b", "quick", PayloadForm.ORIGINAL),)
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact", alternatives=again)
    code, answer = await fleet.post(a, meta=request_for(a, accuracy=0.8))
    assert code == 503
    assert answer["error"].count("b: ") == 1


async def test_a_peer_that_breaks_off_with_requests_queued(fleet: Fleet) -> None:
    a, b = await fleet.pair()
    fleet.executors["b"].go.clear()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    posts = [
        asyncio.create_task(fleet.post(a, meta=request_for(a, f"r{i}", accuracy=0.5)))
        for i in range(4)
    ]
    await until(lambda: b.inflight == 4)
    await b.__aexit__()
    answers = await asyncio.gather(*posts)
    assert [code for code, _ in answers] == [200] * 4
    assert {answer["parameters"]["edgewise.server"] for _, answer in answers} == {"a"}
    await fleet.balancer.until(lambda: len(outcomes(fleet)) == 4)


async def test_a_silent_balancer_is_not_waited_for(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    code, _ = await fleet.post(a, meta=request_for(a, deadline=0.4))
    assert code == 200
    assert len(fleet.balancer.all(messages.Ask)) == 1


async def test_a_node_without_a_balancer_decides_and_asks_its_peers(fleet: Fleet) -> None:
    b = await fleet.start("b")
    a = await fleet.start("a", peers={"b": b.url})
    await until(lambda: a.monitor.rtts["b"].get(a.clock.now()) is not None)
    code, answer = await fleet.post(a, meta=request_for(a, accuracy=0.8))
    assert (code, answer["parameters"].get("edgewise.server")) == (200, "b")
    assert b.monitor.seen("a").low > 0
    code, answer = await fleet.post(a, meta=request_for(a, "r2", accuracy=0.95))
    assert code == 422
    assert "no_service" in answer["error"]


async def test_the_channel_comes_back(fleet: Fleet) -> None:
    await fleet.pair()
    await fleet.balancer.sockets["a"].close()
    await fleet.balancer.until(
        lambda: sum(hello.server == "a" for hello in fleet.balancer.all(messages.Hello)) == 2
    )


async def test_a_peer_that_gave_up_meanwhile_is_no_error(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")

    async def gone(self: web.StreamResponse, data: bytes) -> None:
        raise ConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.StreamResponse, "write", gone)
    code, answer = await fleet.post(a, meta=request_for(a, accuracy=0.5))
    assert (code, answer["parameters"]["edgewise.server"]) == (200, "a")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_client_that_goes_away_leaves_nothing(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.executors["a"].go.clear()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick")
    posting = asyncio.create_task(fleet.post(a, meta=request_for(a)))
    await asyncio.wait_for(fleet.executors["a"].running.wait(), PATIENCE)
    posting.cancel()
    await until(lambda: a.inflight == 0)
    await fleet.balancer.until(lambda: len(outcomes(fleet)) == 1)
    assert outcomes(fleet)[0].status is Status.FAILED
    fleet.executors["a"].go.set()
    code, answer = await fleet.post(a, meta=request_for(a))
    assert code == 409
    assert "twice" in answer["error"]
    assert len(fleet.executors["a"].items) == 1


async def test_a_retry_joins_the_first(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.executors["a"].go.clear()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick")
    posts = [asyncio.create_task(fleet.post(a, meta=request_for(a))) for _ in range(2)]
    await asyncio.wait_for(fleet.executors["a"].running.wait(), PATIENCE)
    fleet.executors["a"].go.set()
    first, second = await asyncio.gather(*posts)
    third = await fleet.post(a, meta=request_for(a))
    assert first == second == third
    assert len(fleet.executors["a"].items) == 1
    await fleet.balancer.until(lambda: len(outcomes(fleet)) >= 1)
    assert len(outcomes(fleet)) == 1


async def test_a_request_under_way_is_remembered_however_many_others_end(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.live.node.single_flight.REMEMBERED", 1)
    a, _ = await fleet.pair()
    fleet.executors["a"].go.clear()
    fleet.balancer.decide = lambda r: (
        fleet.balancer.command(r, "a", "quick") if r.id == "r1" else fleet.balancer.command(r)
    )
    first = asyncio.create_task(fleet.post(a, meta=request_for(a)))
    await asyncio.wait_for(fleet.executors["a"].running.wait(), PATIENCE)
    for name in ("r2", "r3", "r4"):
        assert (await fleet.post(a, meta=request_for(a, name)))[0] == 429
    again = asyncio.create_task(fleet.post(a, meta=request_for(a)))
    assert (await fleet.post(a, meta=request_for(a, "r5")))[0] == 429
    fleet.executors["a"].go.set()
    assert await first == await again
    assert len(fleet.executors["a"].items) == 1
    await fleet.balancer.until(lambda: len(outcomes(fleet)) >= 5)
    assert sorted(each.request for each in outcomes(fleet)) == ["r1", "r2", "r3", "r4", "r5"]


async def test_a_full_queue_sheds(fleet: Fleet) -> None:
    small = scenario()
    servers = dict(small.servers)
    servers["a"] = msgspec.structs.replace(servers["a"], queue_limit=1)
    a = await fleet.start("a", of=scenario(servers=servers))
    fleet.executors["a"].go.clear()
    running = asyncio.create_task(fleet.post(a, model="quick"))
    await asyncio.wait_for(fleet.executors["a"].running.wait(), PATIENCE)
    waiting = asyncio.create_task(fleet.post(a, model="quick"))
    await until(lambda: bool(a.queue.waiting()))
    code, answer = await fleet.post(a, model="quick")
    assert code == 429
    assert "queue_full" in answer["error"]
    fleet.executors["a"].go.set()
    assert (await running)[0] == (await waiting)[0] == 200


async def test_a_request_that_waits_too_long_expires(fleet: Fleet) -> None:
    a = await fleet.start("a")
    fleet.executors["a"].go.clear()
    running = asyncio.create_task(fleet.post(a, model="quick", meta=request_for(a, "r0")))
    await asyncio.wait_for(fleet.executors["a"].running.wait(), PATIENCE)
    code, answer = await fleet.post(a, model="quick", meta=request_for(a, deadline=0.05))
    assert code == 504
    assert answer["parameters"]["edgewise.status"] == "expired"
    fleet.executors["a"].go.set()
    assert (await running)[0] == 200
    assert [item.request for item in fleet.executors["a"].items] == ["r0"]


async def test_draining(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.executors["a"].go.clear()
    running = asyncio.create_task(fleet.post(a, model="quick"))
    await asyncio.wait_for(fleet.executors["a"].running.wait(), PATIENCE)
    draining = asyncio.create_task(a.drain())
    await fleet.balancer.until(
        lambda: any(
            message.report.draining for message in fleet.balancer.all(messages.ReportMessage)
        )
    )
    code, answer = await fleet.post(a, meta=request_for(a))
    assert code == 503
    assert "draining" in answer["error"]
    async with fleet.client.get(a.url + "/v2/health/ready") as response:
        assert response.status == 503
    assert not draining.done()
    fleet.executors["a"].go.set()
    assert await draining
    assert (await running)[0] == 200
    assert not await drained_late(fleet)


async def drained_late(fleet: Fleet) -> bool:
    """Whether b drains at once although its work does not end."""
    b = fleet.nodes["b"]
    fleet.executors["b"].go.clear()
    running = asyncio.create_task(fleet.post(b, model="quick"))
    await asyncio.wait_for(fleet.executors["b"].running.wait(), PATIENCE)
    result = await b.drain(limit=0.01)
    fleet.executors["b"].go.set()
    await running
    return result


# -- bad input -------------------------------------------------------------------------------------


async def raw(fleet: Fleet, node: Node, body: Any, model: str = "quick", **headers: str) -> Any:
    url = f"{node.url}/v2/models/{model}/infer"
    names = {key.replace("_", "-"): value for key, value in headers.items()}
    async with fleet.client.post(url, data=body, headers=names) as response:
        return response.status, msgspec.json.decode(await response.read())["error"]


async def test_bad_input(fleet: Fleet) -> None:
    a = await fleet.start("a", body_limit=5000)
    table: list[tuple[Any, str, dict[str, str], int, str]] = [
        (json_body(), "nosuch", {}, 404, "known: imagenet-1k, exact, quick"),
        (json_body(), "exact", {}, 503, "none_up"),
        (json_body(shape=[2]), "quick", {}, 400, "inputs[0].shape"),
        (json_body(datatype="FP32"), "quick", {}, 400, "inputs[0].datatype"),
        (json_body(name="x"), "quick", {}, 400, "inputs[0].name"),
        (json_body(name="x"), "imagenet-1k", {}, 400, "inputs[0].name"),
        (b"{", "quick", {}, 400, "not JSON"),
        (json_body(), "quick", {"Inference_Header_Content_Length": "x"}, 400, HEADER_LENGTH),
        (b"x" * 5001, "quick", {}, 413, "limit of 5000 bytes"),
        (json_body(data=["bm8gaW1hZ2U="]), "quick", {}, 422, "cannot be decoded"),
        (json_body(), "quick", {"edgewise_deadline": "soon"}, 400, "edgewise-deadline"),
        (json_body(), "quick", {"edgewise_deadline": "-1"}, 400, "edgewise-deadline"),
        (json_body(), "quick", {"edgewise_accuracy": "2"}, 400, "edgewise-accuracy"),
        (json_body(), "quick", {"edgewise_id": "a b"}, 400, "edgewise-id"),
        (json_body(), "quick", {"edgewise_ingress": "b"}, 400, "edgewise-ingress"),
        (json_body(), "quick", {"edgewise_budget": "-0.1"}, 504, "deadline"),
        (json_body(), "quick", {"edgewise_dispatch": "1"}, 400, "edgewise-via"),
        (json_body(), "imagenet-1k", {"edgewise_accuracy": "0.99"}, 422, "no_service"),
    ]
    for body, model, headers, code, says in table:
        answered, error = await raw(fleet, a, body, model, **headers)
        assert (answered, says in error) == (code, True), (answered, error, code, says)
    async with fleet.client.get(a.url + "/nowhere") as response:
        assert response.status == 404
        assert "error" in await response.json()
    assert (await fleet.post(a, model="quick"))[0] == 200  # unharmed


async def test_a_body_without_a_length_is_limited_too(fleet: Fleet) -> None:
    a = await fleet.start("a", body_limit=5000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 2000

    code, error = await raw(fleet, a, chunks())
    assert (code, "limit of 5000 bytes" in error) == (413, True)


async def test_an_undecodable_image_harms_no_other(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    answers = await asyncio.gather(
        fleet.post(a, b"no image", meta=request_for(a, "bad")),
        *(fleet.post(a, meta=request_for(a, f"good{i}")) for i in range(3)),
    )
    assert [code for code, _ in answers] == [422, 200, 200, 200]
    assert "cannot be decoded" in answers[0][1]["error"]
    await fleet.balancer.until(lambda: len(outcomes(fleet)) == 4)


async def test_metadata_in_v2_parameters(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick")
    parameters = {"timeout": 700_000, "edgewise.accuracy": 0.5, "edgewise.id": "p1"}
    code, _ = await fleet.post(a, parameters=parameters)
    assert code == 200
    (ask,) = fleet.balancer.all(messages.Ask)
    assert (ask.request.id, ask.request.deadline, ask.request.accuracy) == ("p1", 0.7, 0.5)
    assert ask.uploaded is not None


async def test_without_metadata_the_node_makes_its_own(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick")
    assert (await fleet.post(a))[0] == 200
    (ask,) = fleet.balancer.all(messages.Ask)
    assert (ask.request.deadline, ask.request.accuracy, ask.request.ingress) == (1.0, 0.0, "a")


# -- the rest --------------------------------------------------------------------------------------


async def test_health_metadata_metrics_and_report(fleet: Fleet) -> None:
    a = await fleet.start("a")
    await fleet.post(a, model="quick")

    async def get(path: str) -> tuple[int, bytes]:
        async with fleet.client.get(a.url + path) as response:
            return response.status, await response.read()

    for path in (
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/quick",
        "/v2/models/imagenet-1k/versions/1",
        "/v2/models/quick/ready",
    ):
        assert (await get(path))[0] == 200, path
    assert (await get("/v2/models/quick/versions/2"))[0] == 404
    metadata = msgspec.json.decode((await get("/v2/models/quick"))[1])
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [1]}]
    _, text = await get("/metrics")
    assert b'request_total{model="quick",status="served"} 1.0' in text
    _, report = await get("/v1/report?for=a")
    assert msgspec.json.decode(report, type=Report).services["quick"].served == 1


async def test_reports_come_on_their_period_and_number_what_was_seen(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick")
    await fleet.post(a, meta=request_for(a))

    def last() -> Report | None:
        mine = [
            message.report
            for message in fleet.balancer.all(messages.ReportMessage)
            if message.report.server == "a"
        ]
        return mine[-1] if len(mine) > 3 else None

    await fleet.balancer.until(lambda: (r := last()) is not None and r.commands_seen == 1)
    report = last()
    assert report is not None
    assert report.arrivals_low == 1


async def test_a_peer_that_gives_no_sign_of_life_is_reported(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.live.node.node.SIGN_PERIOD", 0.01)
    a, b = await fleet.pair()

    def unanswered() -> int:
        return a.monitor.report(a.clock.now()).peers["b"].unanswered

    await until(lambda: a.monitor.rtts["b"].get(a.clock.now()) is not None)
    assert unanswered() == 0
    await b.__aexit__()
    await until(lambda: unanswered() > 2)


def test_a_taken_port_is_named(fleet: Fleet) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        with pytest.raises(BadInput, match=f"cannot listen on 127.0.0.1:{port}"):
            listen("127.0.0.1", port)


async def test_wrong_configuration(fleet: Fleet) -> None:
    with pytest.raises(BadInput, match="unknown 'z'; the scenario has: a, b"):
        await fleet.start("z")
    with pytest.raises(BadInput, match="'a' is no other server"):
        await fleet.start("a", peers={"a": "http://127.0.0.1:1"})
