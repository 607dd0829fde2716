"""Whose failure an attempt is, who answers instead, and how often a node tries again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from edgewise.domain import Attempt, Candidate, Fault, PayloadForm, Status
from edgewise.errors import ImagesError
from edgewise.fleet.retries import RETRY_MEMORY, RETRY_RATE, RetryBudget, refilled
from edgewise.live.node.executor import BatchItem, Result
from edgewise.live.node.node import Node
from edgewise.live.wire import messages
from node_fleet import PATIENCE, Fleet, predictions, request_for, until

BUDGET = int(RETRY_RATE * RETRY_MEMORY)
"""Second tries of an ingress that has been idle."""

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with Fleet() as fleet:
        yield fleet


class BrokenExecutor:
    """An executor that raises while `broken`."""

    def __init__(self) -> None:
        self.broken = True
        self.items: list[BatchItem] = []

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        self.items += batch
        if self.broken:
            raise RuntimeError("out of memory")
        return predictions(batch)


class BrokenDecoder:
    """An executor that can read no photo."""

    async def run(self, batch: Sequence[BatchItem]) -> list[Result]:
        return [ImagesError("the image cannot be decoded: expected JPEG") for _ in batch]


class ScriptedPeer:
    """A server that gives the same answer to every transfer."""

    def __init__(self, answer: Answer) -> None:
        self.transfers = 0
        self._answer = answer
        app = web.Application()
        app.router.add_post("/v2/models/{model}/infer", self._infer)
        app.router.add_get("/v2/health/live", self._live)
        self.server = TestServer(app)

    async def _infer(self, http: web.Request) -> web.StreamResponse:
        self.transfers += 1
        return await self._answer(http)

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response()


def says(code: int, body: Any = None) -> Answer:
    """Answer with `code` once the body is in."""

    async def answer(http: web.Request) -> web.Response:
        await http.read()
        return web.json_response({"error": "no"} if body is None else body, status=code)

    return answer


async def beside(fleet: Fleet, answer: Answer, **executor: Any) -> tuple[Node, ScriptedPeer]:
    """Node a beside a scripted server in b's place, and a balancer."""
    peer = ScriptedPeer(answer)
    await peer.server.start_server()
    fleet.stack.push_async_callback(peer.server.close)
    balancer = await fleet.start_balancer()
    url = f"http://127.0.0.1:{peer.server.port}"
    a = await fleet.start("a", balancer=balancer, peers={"b": url}, **executor)
    await until(lambda: a.commands.connected)
    fleet.balancer.decide = lambda r: fleet.balancer.command(
        r,
        "b",
        "exact",
        alternatives=(
            Candidate("b", "exact", PayloadForm.MODEL_READY),
            Candidate("b", "quick", PayloadForm.ORIGINAL),
            Candidate("b", "quick", PayloadForm.MODEL_READY),
            Candidate("a", "quick", PayloadForm.ORIGINAL),
        ),
    )
    return a, peer


def attempts(fleet: Fleet) -> list[tuple[Attempt, ...]]:
    return [message.attempts for message in fleet.balancer.all(messages.OutcomeMessage)]


async def metric(fleet: Fleet, node: Node, name: str) -> float:
    async with fleet.client.get(node.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    (value,) = (line.rsplit(" ", 1)[1] for line in lines if line.rsplit(" ", 1)[0] == name)
    return float(value)


# -- what a peer answers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "body", "fault"),
    [
        (400, None, Fault.ERROR),
        (413, None, Fault.ERROR),
        (422, None, Fault.ERROR),
        (500, None, Fault.ERROR),
        (504, {"error": "no", "parameters": {"edgewise.status": "expired"}}, Fault.ERROR),
        (404, None, Fault.ERROR),
        (200, {"outputs": []}, Fault.ERROR),
        (429, None, Fault.REFUSED),
        (503, {"error": "no", "parameters": {"edgewise.status": "shed"}}, Fault.REFUSED),
        (302, None, Fault.ERROR),
    ],
)
async def test_a_bad_answer_ends_that_server_and_the_next_is_tried(
    fleet: Fleet, code: int, body: Any, fault: Fault
) -> None:
    a, peer = await beside(fleet, says(code, body))
    answered, answer = await fleet.post(a, meta=request_for(a))
    assert (answered, answer["parameters"]["edgewise.server"]) == (200, "a")
    assert peer.transfers == 1
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 1)
    assert attempts(fleet)[0] == (Attempt("b", fault), Attempt("a"))
    assert await metric(fleet, a, f'attempt_total{{result="{fault.value}"}}') == 1.0


async def reset(http: web.Request) -> web.StreamResponse:
    assert http.transport is not None
    http.transport.abort()
    return web.Response()


async def hang(http: web.Request) -> web.StreamResponse:
    await http.read()
    await asyncio.Event().wait()
    raise AssertionError


async def take_and_hang(http: web.Request) -> web.StreamResponse:
    await http.read()
    response = web.StreamResponse(status=202)
    await response.prepare(http)
    await asyncio.Event().wait()
    return response


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (reset, Fault.UNREACHABLE),
        (hang, Fault.UNDELIVERED),
        (take_and_hang, Fault.UNANSWERED),
    ],
)
async def test_silence_is_the_paths_until_the_payload_is_there(
    fleet: Fleet, answer: Answer, fault: Fault
) -> None:
    a, _ = await beside(fleet, answer)
    await fleet.post(a, meta=request_for(a, deadline=0.4))
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 1)
    assert attempts(fleet)[0][0] == Attempt("b", fault)


async def test_a_request_that_is_refused_or_given_up_has_no_attempts(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(
        r, *(("a", "quick") if r.id == "gone" else ())
    )
    assert (await fleet.post(a, meta=request_for(a)))[0] == 429
    fleet.executors["a"].go.clear()
    posting = asyncio.create_task(fleet.post(a, meta=request_for(a, "gone")))
    await asyncio.wait_for(fleet.executors["a"].running.wait(), PATIENCE)
    posting.cancel()
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 2)
    assert attempts(fleet) == [(), ()]


# -- a photo that cannot be read -------------------------------------------------------------------


async def test_two_servers_agree_that_a_photo_is_bad(fleet: Fleet) -> None:
    a, _ = await fleet.pair()
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    code, answer = await fleet.post(a, b"no image", meta=request_for(a))
    assert (code, "cannot be decoded" in answer["error"]) == (422, True)
    assert len(fleet.executors["a"].items) == len(fleet.executors["b"].items) == 1
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 1)
    bad = Fault.BAD_REQUEST
    assert attempts(fleet)[0] == (Attempt("b", bad), Attempt("a", bad))


async def test_a_server_that_can_read_no_photo_is_not_believed(fleet: Fleet) -> None:
    url = await fleet.start_balancer()
    b = await fleet.start("b", balancer=url)
    a = await fleet.start("a", balancer=url, peers={"b": b.url}, executor=BrokenDecoder())
    await until(lambda: a.commands.connected)
    there = (Candidate("b", "quick", PayloadForm.ORIGINAL),)
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick", alternatives=there)
    code, answer = await fleet.post(a, meta=request_for(a))
    assert (code, answer["parameters"]["edgewise.server"]) == (200, "b")
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 1)
    assert attempts(fleet)[0] == (Attempt("a", Fault.ERROR), Attempt("b"))


@pytest.mark.parametrize(("readable", "code"), [(True, 503), (False, 422)])
async def test_where_nobody_else_can_be_asked_the_ingress_decodes(
    fleet: Fleet, readable: bool, code: int
) -> None:
    a, peer = await beside(fleet, says(422))
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")

    async def convert(*_: Any) -> bytes:
        if not readable:
            raise ImagesError("expected JPEG")
        return b"small"

    a.converter.convert = convert  # type: ignore[method-assign]
    answered, _ = await fleet.post(a, meta=request_for(a, accuracy=0.8))
    assert (answered, peer.transfers) == (code, 1)
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 1)
    assert attempts(fleet)[0] == (Attempt("b", Fault.ERROR if readable else Fault.BAD_REQUEST),)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ImagesError("expected JPEG")])
async def test_a_photo_that_cannot_be_converted_here_goes_as_it_came(
    fleet: Fleet, error: Exception
) -> None:
    a, _ = await fleet.pair()
    ready = PayloadForm.MODEL_READY
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact", ready)

    async def convert(*_: Any) -> bytes:
        raise error

    a.converter.convert = convert  # type: ignore[method-assign]
    code, answer = await fleet.post(a, meta=request_for(a))
    parameters = answer["parameters"]
    assert (code, parameters["edgewise.server"], parameters["edgewise.form"]) == (200, "b", 0)
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 1)
    assert attempts(fleet)[0] == (Attempt("a", Fault.ERROR), Attempt("b"))


# -- an executor that fails ------------------------------------------------------------------------


async def test_when_the_executor_here_fails_a_peer_answers(fleet: Fleet) -> None:
    url = await fleet.start_balancer()
    b = await fleet.start("b", balancer=url)
    a = await fleet.start("a", balancer=url, peers={"b": b.url}, executor=BrokenExecutor())
    await until(lambda: a.commands.connected)
    there = (Candidate("b", "exact", PayloadForm.ORIGINAL),)
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick", alternatives=there)
    code, answer = await fleet.post(a, meta=request_for(a))
    assert (code, answer["parameters"]["edgewise.server"]) == (200, "b")
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 1)
    assert attempts(fleet)[0] == (Attempt("a", Fault.ERROR), Attempt("b"))
    assert await metric(fleet, a, "executor_failure_total") == 1.0
    assert await metric(fleet, a, "retry_total") == 1.0


async def test_when_nobody_can_run_it_the_error_is_json_and_the_servers(fleet: Fleet) -> None:
    url = await fleet.start_balancer()
    a = await fleet.start("a", balancer=url, executor=BrokenExecutor())
    await until(lambda: a.commands.connected)
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick")
    code, answer = await fleet.post(a, meta=request_for(a))
    assert code == 503
    assert "a: the executor failed: RuntimeError: out of memory" in answer["error"]
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 1)
    (message,) = fleet.balancer.all(messages.OutcomeMessage)
    assert message.outcome.status is Status.FAILED
    assert "client" not in message.outcome.reason
    assert message.attempts == (Attempt("a", Fault.ERROR),)


async def test_a_peer_whose_executor_fails_says_so(fleet: Fleet) -> None:
    url = await fleet.start_balancer()
    b = await fleet.start("b", balancer=url, executor=BrokenExecutor())
    a = await fleet.start("a", balancer=url, peers={"b": b.url})
    await until(lambda: a.commands.connected)
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "b", "exact")
    code, answer = await fleet.post(a, meta=request_for(a))
    assert (code, answer["parameters"]["edgewise.server"]) == (200, "a")
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 1)
    assert attempts(fleet)[0] == (Attempt("b", Fault.ERROR), Attempt("a"))
    assert await metric(fleet, b, 'transfer_total{code="500"}') == 1.0


async def test_readiness_follows_the_executor(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edgewise.live.node.readiness.CHECK_PERIOD", 0.0)
    executor = BrokenExecutor()
    a = await fleet.start("a", executor=executor)

    async def ready() -> int:
        async with fleet.client.get(a.url + "/v2/health/ready") as response:
            return response.status

    for expected in (200, 200, 503):
        await fleet.post(a, model="quick")
        assert await ready() == expected
    assert await metric(fleet, a, "ready") == 0.0
    await until(lambda: any(item.request == "check" for item in executor.items))
    assert await ready() == 503
    executor.broken = False  # no request comes: the node finds out by itself
    await until(lambda: a.readiness.ready)
    assert await ready() == 200
    assert sum(record.exc_info is not None for record in caplog.records) == 1


async def test_an_error_of_the_program_is_json_and_not_the_clients(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    url = await fleet.start_balancer()
    a = await fleet.start("a", balancer=url)
    await until(lambda: a.commands.connected)

    async def fail(*_: Any) -> None:
        raise KeyError("a mistake")

    a.commands.command_for = fail  # type: ignore[method-assign,assignment]
    code, answer = await fleet.post(a, b"secret photo", meta=request_for(a))
    assert (code, answer["error"]) == (500, "an error of the server")
    await fleet.balancer.until(lambda: len(attempts(fleet)) == 1)
    (message,) = fleet.balancer.all(messages.OutcomeMessage)
    assert message.outcome.reason == "an error of the server"
    assert "secret photo" not in caplog.text


# -- the retry budget ------------------------------------------------------------------------------


def test_a_budget_has_a_fifth_of_the_requests() -> None:
    budget = RetryBudget(now=0.0)
    taken, now = 0, 0.0
    for _ in range(60):  # a minute at 100 requests/s, of which each wants a second try
        for _ in range(100):
            budget.first_try()
            taken += budget.take(now)
            now += 0.01
    assert 0.2 * 6000 <= taken <= 0.2 * 6000 + BUDGET
    assert (budget.granted, budget.denied) == (taken, 6000 - taken)


def test_a_budget_has_three_a_second_however_few_requests() -> None:
    budget = RetryBudget(now=0.0)
    assert sum(budget.take(0.0) for _ in range(100)) == BUDGET
    # Tokens fade as they come in, so a minute's pause gives no more than ten seconds' worth.
    assert sum(budget.take(60.0) for _ in range(100)) == BUDGET - 1
    assert sum(budget.take(60.0 + 0.1 * i) for i in range(100)) == pytest.approx(30, abs=1)


def test_a_busy_ingress_has_saved_ten_seconds_of_tokens() -> None:
    assert refilled(0.0, 1000.0, 1_000_000) == pytest.approx(0.2 * 1000 * RETRY_MEMORY)


async def test_a_node_stops_trying_when_its_budget_is_spent(fleet: Fleet) -> None:
    a, peer = await beside(fleet, says(500), executor=BrokenExecutor())
    there = (Candidate("b", "exact", PayloadForm.ORIGINAL),)
    fleet.balancer.decide = lambda r: fleet.balancer.command(r, "a", "quick", alternatives=there)
    code, _ = await fleet.post(a, meta=request_for(a))
    assert (code, peer.transfers, a.budget.granted) == (503, 1, 1)
    a.budget._record.retry_tokens = -1e9
    code, answer = await fleet.post(a, meta=request_for(a, "r2"))
    assert (code, peer.transfers) == (503, 1)
    assert "too much fails here" in answer["error"]
    assert await metric(fleet, a, "retry_total") == 1.0
    assert await metric(fleet, a, "retry_denied_total") == 1.0
