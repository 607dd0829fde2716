"""The client: one outcome for every request, an open loop, and the evaluator's part."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from msgspec.structs import replace

from edgewise.domain import Outcome, PayloadForm, Stamps, Status, run_name
from edgewise.errors import BadInput, PeerError
from edgewise.fleet.request_noise import replay_label
from edgewise.live.client import balancer_client, client_process
from edgewise.live.client import client as module
from edgewise.live.client.client import Client, SentRequest
from edgewise.live.client.prepared_load import PreparedLoad, read_load
from edgewise.live.clock import Clock
from edgewise.live.process_config import ClientConfig
from edgewise.live.recorder import Recorder
from edgewise.live.records import REQUESTS
from edgewise.live.run.evaluation import evaluate
from edgewise.live.wire.messages import Submission
from edgewise.live.wire.open_inference import (
    InferAnswer,
    decode_request,
    encode_answer,
    encode_request,
)
from edgewise.live.wire.request_metadata import from_headers
from edgewise.scenario import load
from edgewise.score import ScoreShape
from edgewise.sim.results import requests as simulated_requests
from edgewise.tasks import task_of
from edgewise.testing import MemoryNetwork, MemoryRoute, run_virtual, url_of
from edgewise.worlds.workload import Trace

DEADLINE = 0.05
"""s. Short, because tests wait for answers that never come."""


def requests(count: int, due: float = 0.0, deadline: float = DEADLINE) -> PreparedLoad:
    """Requests that are all due at once; their classes are 0, 1, …"""
    return PreparedLoad(
        trace=Trace(
            time=np.full(count, due),
            ingress=np.zeros(count, np.int64),
            image=np.zeros(count, np.int64),
            payload_bytes=np.full(count, 5),
            deadline=np.full(count, deadline),
            accuracy=np.full(count, 0.5),
            lost=np.zeros(count, bool),
        ),
        ids=tuple(f"t-{index}" for index in range(count)),
        servers=("left",),
        payloads={0: b"photo"},
        labels=tuple(range(count)),
        names={0: "photo.jpg"},
    )


class Fleet:
    """An ingress and a balancer in one. It records its input and answers as a test says."""

    def __init__(self) -> None:
        self.photos: dict[str, bytes] = {}
        self.submissions: dict[str, Submission] = {}
        self.outcomes: list[Outcome] = []
        self.behaviour: dict[str, str] = {}
        self.arrived = 0
        self.all_arrived = asyncio.Event()
        self.expected = 0
        self.balancer_code = 200
        self.submitted = asyncio.Event()
        self.takes = 0.0  # s, by its own stamps
        self.server = "right"
        self.budgets: list[float] = []
        self.ingresses: list[str] = []

    async def infer(self, http: web.Request) -> web.StreamResponse:
        request = from_headers(http.headers)
        self.ingresses.append(request.ingress)
        self.budgets.append(float(http.headers["edgewise-budget"]))
        body = await http.read()
        length = http.headers["Inference-Header-Content-Length"]
        self.photos[request.id] = decode_request(body, length).photo
        self.arrived += 1
        if self.arrived == self.expected:
            self.all_arrived.set()
        how = self.behaviour.get(request.id, "serve")
        if how == "hang":
            await asyncio.Event().wait()
        if how == "together":  # answers only once all are here: a closed loop would never end
            await self.all_arrived.wait()
        if how == "submitted":  # answers only once the balancer has the metadata of one
            await self.submitted.wait()
        if how == "break":
            assert http.transport is not None
            http.transport.abort()
        if how == "draining":
            body = {"error": "shed", "parameters": {"edgewise.status": "shed"}}
            body["parameters"]["edgewise.reason"] = "draining"
            return web.json_response(body, status=503)
        if how == "nonsense":
            return web.Response(text="<html>")
        status = {"shed": Status.SHED, "expired": Status.EXPIRED}.get(how, Status.SERVED)
        code = {"shed": 429, "expired": 504}.get(how, 200)
        outcome = Outcome(
            request=request.id,
            status=status,
            server=self.server,
            model="m",
            form=PayloadForm.MODEL_READY,
            predicted=1,
            accuracy=None if how == "anonymous" else 0.8,
            reason="price" if how == "shed" else None,
            stamps=Stamps(accepted=5.0, finished=5.0 + self.takes),
        )
        if self.takes > 0.0:
            await asyncio.sleep(self.takes)
        headers, data = encode_answer(InferAnswer(outcome=outcome, code=code), "", frozenset())
        if how == "stall":  # the answer is in the client's socket, and then the loop stands still
            response = web.StreamResponse(headers=headers)
            await response.prepare(http)
            await response.write(data)
            await response.write_eof()
            time.sleep(4.0 * DEADLINE + 0.2)  # noqa: ASYNC251
            return response
        return web.Response(body=data, headers=headers, status=code)

    async def requests(self, http: web.Request) -> web.Response:
        submission = msgspec.json.decode(await http.read(), type=Submission)
        self.submissions[submission.request.id] = submission
        self.submitted.set()
        return web.Response(status=self.balancer_code)

    async def take(self, http: web.Request) -> web.Response:
        if self.balancer_code == 200:
            self.outcomes += msgspec.json.decode(await http.read(), type=list[Outcome])
        return web.Response(status=self.balancer_code)

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.post("/v2/models/imagenet-1k/infer", self.infer),
                web.post("/v1/requests", self.requests),
                web.post("/v1/outcomes", self.take),
            ]
        )
        return app

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[ClientConfig]:
        async with TestServer(self.app()) as server:
            here = f"http://127.0.0.1:{server.port}"
            yield ClientConfig(scenario="smoke", balancer=here, ingress={"left": here})


class Outcomes:
    """Collects the outcomes."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def __call__(self, entry: SentRequest, outcome: Outcome) -> None:
        assert entry.request.id == outcome.request
        self.outcomes.append(outcome)

    def by_id(self, sent: PreparedLoad) -> dict[str, Outcome]:
        """Exactly one outcome for each request."""
        assert sorted(each.request for each in self.outcomes) == sorted(sent.ids)
        return {each.request: each for each in self.outcomes}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests need not wait long for answers that never come."""
    monkeypatch.setattr(module, "LOST_AFTER", 0.2)
    monkeypatch.setattr(balancer_client, "POST_PERIOD", 0.01)


async def outcomes(fleet: Fleet, sent: PreparedLoad) -> tuple[dict[str, Outcome], Client]:
    collected = Outcomes()
    async with fleet.serve() as config:
        client = Client(config, sent, ScoreShape(), collected)
        await client.run()
    return collected.by_id(sent), client


async def test_payload_to_the_ingress_and_metadata_to_the_balancer() -> None:
    fleet = Fleet()
    got, client = await outcomes(fleet, requests(3, deadline=5.0))
    assert fleet.photos == {f"t-{i}": b"photo" for i in range(3)}
    assert set(fleet.submissions) == set(got) == {"t-0", "t-1", "t-2"}
    metadata = fleet.submissions["t-1"].request
    assert (metadata.ingress, metadata.deadline) == ("left", 5.0)
    assert (metadata.accuracy, metadata.payload_bytes) == (0.5, 5)
    assert 0.0 < fleet.submissions["t-1"].budget <= 5.0
    assert client.balancer.refused == 0


@pytest.mark.parametrize(("how", "second_runs"), [("refused", 0), ("break", 1), ("draining", 0)])
async def test_an_ingress_that_gives_no_answer_gives_way_to_the_next(
    how: str, second_runs: int
) -> None:
    first, second = Fleet(), Fleet()
    first.behaviour = {"t-0": how}
    collected = Outcomes()
    sent = requests(1, deadline=5.0)
    async with first.serve() as config, second.serve() as other:
        ingress = {"right": other.ingress["left"]} | config.ingress
        if how == "refused":
            ingress["left"] = dead_url()
        client = Client(replace(config, ingress=ingress), sent, ScoreShape(), collected)
        await client.run()
    assert collected.by_id(sent)["t-0"].status is Status.SERVED
    assert second.ingresses == ["right"]
    assert second.photos == {"t-0": b"photo"}
    assert set(first.submissions) == {"t-0"}
    assert second.submissions == {}
    counts = client.progress()
    assert (counts["failed_over"], counts["second_runs"]) == (1, second_runs)


async def test_failover_can_be_switched_off_and_ends_with_the_last_ingress() -> None:
    first, second = Fleet(), Fleet()
    sent = requests(1, deadline=5.0)
    async with first.serve() as config, second.serve() as other:
        ingress = {"left": dead_url(), "right": other.ingress["left"]}
        alone = replace(config, ingress=ingress, failover=False)
        collected = Outcomes()
        client = Client(alone, sent, ScoreShape(), collected)
        await client.run()
        assert collected.by_id(sent)["t-0"].status is Status.FAILED
        assert second.photos == {}
        both = replace(config, ingress={"left": dead_url(), "right": dead_url()})
        collected = Outcomes()
        client = Client(both, sent, ScoreShape(), collected)
        await client.run()
    assert collected.by_id(sent)["t-0"].status is Status.FAILED
    assert (client.answers, client.failed_over) == (0, 1)
    assert client.problem.startswith("right at http://127.0.0.1:")


def dead_url() -> str:
    """An address where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_a_fleet_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        client_process, "read_load", lambda scenario, name: requests(2, deadline=5.0)
    )
    config = ClientConfig(
        scenario="smoke", balancer=None, ingress={"left": dead_url(), "right": dead_url()}
    )
    said: dict[str, Any] = {}
    with pytest.raises(PeerError, match=r"no server answered any request.*right at http"):
        client_process.run(config, say=said.__setitem__)
    assert said["done"]["outcomes"]["failed"] == 2


async def test_an_answer_that_is_in_the_socket_is_not_lost() -> None:
    """A starved process runs its timers before it reads its sockets."""
    fleet = Fleet()
    fleet.behaviour = {"t-0": "stall"}
    got, _ = await outcomes(fleet, requests(1))
    assert got["t-0"].status is Status.SERVED


async def test_the_client_adds_its_own_facts_to_an_outcome() -> None:
    got, _ = await outcomes(Fleet(), requests(2, deadline=5.0))
    outcome = got["t-1"]
    assert (outcome.status, outcome.server, outcome.model) == (Status.SERVED, "right", "m")
    assert (outcome.form, outcome.accuracy) == (PayloadForm.MODEL_READY, 0.8)
    assert (outcome.predicted, outcome.label) == (1, 1)
    assert outcome.latency is not None
    assert outcome.stamps.sent is not None
    assert outcome.stamps.received == pytest.approx(outcome.stamps.sent + outcome.latency)
    assert outcome.stamps.accepted == 5.0  # the ingress's own stays
    assert got["t-0"].label == 0  # predicted 1: wrong


async def test_every_request_ends_in_exactly_one_outcome_whatever_happens() -> None:
    fleet = Fleet()
    ways = ["serve", "shed", "expired", "hang", "break", "nonsense", "anonymous"]
    fleet.behaviour = {f"t-{i}": way for i, way in enumerate(ways)}
    got, client = await outcomes(fleet, requests(len(ways), deadline=0.3))
    status = {way: got[f"t-{i}"].status.value for i, way in enumerate(ways)}
    assert status == {
        "serve": "served",
        "shed": "shed",
        "expired": "expired",
        "hang": "lost",
        "break": "failed",
        "nonsense": "failed",
        "anonymous": "failed",  # served, but with what accuracy?
    }
    assert got["t-1"].reason == "price"
    assert "no answer in" in (got["t-3"].reason or "")
    # And the balancer has learnt of each, once, with its label.
    assert sorted(each.request for each in fleet.outcomes) == sorted(got)
    assert {each.request: each.label for each in fleet.outcomes}["t-3"] == 3
    assert client.progress()["outcomes"] == {
        "served": 1, "shed": 1, "expired": 1, "failed": 3, "lost": 1,
    }  # fmt: skip


async def test_requests_do_not_wait_for_answers() -> None:
    """An open loop: the last request is sent although no earlier one has been answered."""
    fleet = Fleet()
    fleet.expected = 150  # more than aiohttp's own limit of 100 connections
    fleet.behaviour = {f"t-{i}": "together" for i in range(150)}
    got, _ = await outcomes(fleet, requests(150, deadline=20.0))
    assert all(outcome.status is Status.SERVED for outcome in got.values())


async def test_metadata_follow_as_soon_as_a_request_goes_out() -> None:
    fleet = Fleet()
    fleet.behaviour = {"t-0": "submitted"}
    got, _ = await outcomes(fleet, requests(1, deadline=5.0))
    assert got["t-0"].status is Status.SERVED


async def test_a_client_goes_on_without_its_balancer() -> None:
    fleet = Fleet()
    fleet.balancer_code = 503
    got, client = await outcomes(fleet, requests(3, deadline=5.0))
    assert all(outcome.status is Status.SERVED for outcome in got.values())
    assert client.balancer.refused == 3
    assert client.balancer.unposted == 3


async def test_a_missing_ingress_fails_each_request() -> None:
    config = ClientConfig(scenario="smoke", balancer=None, ingress={"left": "http://127.0.0.1:1"})
    collected = Outcomes()
    await Client(config, requests(2), ScoreShape(), collected).run()
    assert [each.status for each in collected.outcomes] == [Status.FAILED] * 2


async def test_stopping_leaves_no_request_without_an_outcome() -> None:
    fleet = Fleet()
    fleet.behaviour = {f"t-{i}": "hang" for i in range(3)}
    fleet.expected = 3
    async with fleet.serve() as config:
        collected = Outcomes()
        client = Client(config, requests(3, deadline=500.0), ScoreShape(), collected)
        task = asyncio.create_task(client.run())
        await fleet.all_arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [each.status for each in collected.outcomes] == [Status.LOST] * 3
    assert len(fleet.outcomes) == 3


def virtually(
    fleet: Fleet,
    sent: PreparedLoad,
    there: float,
    back: float,
    skipped: Callable[[], float] = lambda: 0.0,
) -> tuple[dict[str, Outcome], Client]:
    """`outcomes` on virtual time. Messages take `there` and `back` s; `skipped()` is added to the
    clock as the time that the client itself has taken."""

    async def play() -> tuple[dict[str, Outcome], Client]:
        loop = asyncio.get_running_loop()
        network = MemoryNetwork(lambda *_: MemoryRoute(None, there, back))
        network.applications = dict.fromkeys(("left", "balancer"), fleet.app())
        config = ClientConfig(
            scenario="smoke", balancer=url_of("balancer"), ingress={"left": url_of("left")}
        )
        collected = Outcomes()
        client = Client(
            config,
            sent,
            ScoreShape(),
            collected,
            clock=Clock(lambda: loop.time() + skipped(), epoch=0.0),
            session=lambda: network.session("client"),
        )
        await client.run()
        return collected.by_id(sent), client

    return run_virtual(play())


def test_preparing_a_request_counts_as_delay_and_not_as_latency(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skipped = 0.0

    def slowly(photo: bytes, ident: str) -> tuple[dict[str, str], bytes]:
        nonlocal skipped
        skipped += 0.25
        return encode_request(photo, ident)

    monkeypatch.setattr(module, "encode_request", slowly)
    fleet = Fleet()
    got, client = virtually(fleet, requests(1, deadline=60.0), 0.125, 0.125, lambda: skipped)
    outcome = got["t-0"]
    assert client.delays[0] == pytest.approx(0.25)
    assert outcome.latency == pytest.approx(0.25)  # the way there and back
    assert outcome.stamps.sent == fleet.submissions["t-0"].request.sent_at
    assert fleet.budgets == [pytest.approx(60.0)]  # all of its deadline, for it has just been sent


@pytest.mark.parametrize(("server", "known"), [("left", 0.15), ("right", 0.0)])
def test_a_budget_is_what_will_be_left_on_arrival(server: str, known: float) -> None:
    """Half of an answer's latency beyond the ingress's own time is the delay one way. An answer of
    another server is not counted."""
    fleet = Fleet()
    fleet.takes, fleet.server = 0.125, server
    sent = requests(2, deadline=60.0)
    sent.trace.time[:] = (0.0, 1.0)
    virtually(fleet, sent, 0.1, 0.2)
    assert fleet.budgets == [pytest.approx(60.0), pytest.approx(60.0 - known)]
    assert fleet.submissions["t-0"].budget == pytest.approx(60.0)
    assert fleet.submissions["t-1"].budget == pytest.approx(60.0 - 0.15)


async def test_metadata_of_a_request_that_cannot_be_sent_are_posted() -> None:
    fleet = Fleet()
    async with fleet.serve() as config:
        nobody = msgspec.structs.replace(config, ingress={"left": "http://127.0.0.1:1"})
        client = Client(nobody, requests(2), ScoreShape(), Outcomes())
        await client.run()
    assert sorted(fleet.submissions) == ["t-0", "t-1"]
    assert len(client.delays) == 2


async def test_delay_behind_schedule_is_measured() -> None:
    sent = requests(2, deadline=5.0)
    sent.trace.time[:] = -0.5  # due half a second before the start
    async with Fleet().serve() as config:
        client = Client(config, sent, ScoreShape(), Outcomes())
        await client.run()
    assert len(client.delays) == 2
    assert all(0.5 <= late < 2.0 for late in client.delays)


async def test_the_summary_is_made_from_the_clients_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet()
    fleet.behaviour = {"t-2": "shed"}
    monkeypatch.setattr(
        client_process, "read_load", lambda scenario, run: requests(3, deadline=5.0)
    )
    monkeypatch.setattr(client_process, "warm_up", lambda shape: None)
    news: list[tuple[str, Any]] = []
    async with fleet.serve() as config:
        everything = msgspec.structs.replace(
            config, ingress=dict.fromkeys(("left", "right"), config.balancer), out=str(tmp_path)
        )
        # `run` is a whole process; here it has a thread and no signals.
        monkeypatch.setattr(client_process, "_until_signal", lambda client, tell: client.run(tell))
        done = await asyncio.to_thread(
            client_process.run, everything, say=lambda key, value: news.append((key, value))
        )
    assert news[0] == ("ready", {"client": "smoke", "requests": 3})
    assert done["outcomes"]["served"] == 2
    summary = evaluate(tmp_path)
    (policy,) = summary.policies
    assert (summary.scenario, policy.policy) == ("smoke", "edgewise")
    assert policy.outcomes == {"served": 2, "shed": 1, "expired": 0, "failed": 0, "lost": 0}
    assert policy.utility.expected == pytest.approx(2 * 0.8 / 3)
    assert policy.accuracy == 0.5  # of classes 0 and 1, with 1 predicted for both
    assert (policy.transferred, policy.model_ready) == (1.0, 1.0)
    assert policy.late_send_ms is not None
    assert done["expected"] == pytest.approx(policy.utility.expected)


def test_evaluate_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="expected the folder of a run"):
        evaluate(tmp_path / "nosuch")
    with pytest.raises(BadInput, match=r"expected requests\.parquet"):
        evaluate(tmp_path)
    with Recorder(tmp_path, (REQUESTS,)):
        pass
    with pytest.raises(BadInput, match=r"scenario\.yaml"):
        evaluate(tmp_path)


def test_the_load_is_the_same_under_every_policy() -> None:
    scenario = load("smoke")
    one = read_load(scenario, "s1")
    two = read_load(scenario.with_overrides(policy="local"), "s1")
    assert one.ids == two.ids
    assert len(set(one.ids)) == len(one.ids) == len(one.trace)
    assert [one.payload(i) for i in range(5)] == [two.payload(i) for i in range(5)]
    assert [len(one.payload(i)) for i in range(len(one))] == list(one.trace.payload_bytes)
    assert one.labels == tuple(replay_label(each, task_of().classes) for each in one.ids)
    assert read_load(scenario, "other").ids != one.ids


def test_live_and_simulated_requests_have_the_same_ids() -> None:
    scenario = load("smoke").with_overrides(seed=3)
    load_ = read_load(scenario, run_name(scenario.seed))
    simulated = simulated_requests(scenario, load_.trace, run_name(scenario.seed))
    assert load_.ids == tuple(request.id for request in simulated)
    assert load_.ids[0] == "s3-r0000000"


def test_photos_have_their_class() -> None:
    scenario = load("three-sites").with_overrides(duration=2.0)
    sent = read_load(scenario, "x")
    for index in range(len(sent)):
        name = sent.image_name(index)
        assert name is not None
        assert int(name.rpartition("_")[2].removesuffix(".jpg")) == sent.labels[index]
        assert len(sent.payload(index)) == sent.request(index, 0.0).payload_bytes
        assert sent.payload(index).startswith(b"\xff\xd8\xff")


def test_run_refuses_a_configuration_that_lacks_an_ingress() -> None:
    config = ClientConfig(scenario="smoke", balancer=None, ingress={"left": "http://127.0.0.1:1"})
    with pytest.raises(BadInput, match="expected an address of 'right'"):
        client_process.run(config)


def test_progress_lines_are_json() -> None:
    config = ClientConfig(scenario="smoke", balancer=None, ingress={})
    client = Client(config, requests(1), ScoreShape(), Outcomes())
    state: dict[str, Any] = json.loads(msgspec.json.encode(client.progress()))
    assert (state["sent"], state["expected"]) == (0, None)
