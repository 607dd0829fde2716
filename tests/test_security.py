"""Identities and who may do what: `docs/security.md` names a test of this file in each row."""

from __future__ import annotations

import asyncio
import re
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import web
from aiohttp.test_utils import TestServer
from typer.testing import CliRunner

from edgewise.cli.main import app as commands
from edgewise.domain import Outcome, Request, Status
from edgewise.errors import BadInput, ScenarioError
from edgewise.live.balancer import node_connection
from edgewise.live.balancer.api import BalancerApi
from edgewise.live.balancer.balancer import Balancer
from edgewise.live.balancer.balancer_process import serve
from edgewise.live.balancer.dispatcher import Dispatcher
from edgewise.live.balancer.experience import experience_row
from edgewise.live.clock import Clock
from edgewise.live.node.http_api import NodeApi
from edgewise.live.node.node import Node
from edgewise.live.process_config import (
    BalancerConfig,
    ClientConfig,
    Listen,
    NodeConfig,
    load_config,
)
from edgewise.live.recorder import read
from edgewise.live.records import decision_row
from edgewise.live.run.deployment import Deployment
from edgewise.live.run.fleet_configs import EVALUATOR
from edgewise.live.wire import messages
from edgewise.live.wire.http_server import Usage
from edgewise.live.wire.open_inference import encode_request
from edgewise.live.wire.request_metadata import to_headers
from edgewise.live.wire.transfers import TransferHeaders
from edgewise.network.control import RelayControl, control_app
from edgewise.network.link_controller import LinkController
from edgewise.network.relay.config import Address, RelayConfig, Route
from edgewise.network.relay.relay import Relay
from edgewise.network.settings import LinkSettings
from edgewise.policies import make as make_policy
from edgewise.scenario import load
from edgewise.security import access
from edgewise.security.authority import Authority, issue_all, open_authority
from edgewise.security.identity import (
    BALANCER,
    RELAY,
    Credentials,
    Identity,
    Role,
    credentials_for,
    identity_of,
    is_loopback,
    node,
)
from fleet_case import two_servers
from node_fleet import Fleet, request_for, scenario, until

ALICE, BOB = Identity(Role.CLIENT, "alice"), Identity(Role.CLIENT, "bob")
OPERATOR = Identity(Role.OPERATOR, "operator")
EVERYBODY = (node("a"), node("b"), BALANCER, RELAY, ALICE, BOB, EVALUATOR, OPERATOR)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Identities of one authority, and below ``foreign`` the same ones of another."""
    folder = tmp_path_factory.mktemp("keys")
    for where in (folder, folder / "foreign"):
        issue_all(open_authority(where), where, dict.fromkeys(EVERYBODY, ()))
    return folder


@cache
def credentials(keys: Path, who: Identity, **more: Any) -> Credentials:
    return Credentials(keys / who.folder, (who.role,), **more)


# -- identities --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["node/plaza", "client/kiosk-7", "node/lite0.v2_x", "node/Plaza"])
def test_an_identity_is_read_back_from_its_dns_name(text: str) -> None:
    identity = Identity.parse(text)
    assert str(identity) == text
    assert Identity.from_dns(identity.dns) == identity


@pytest.mark.parametrize(
    "text",
    ["plaza", "king/plaza", "node/", "node/a..b", "node/*", "node/a b", "node/" + "x" * 64, "n/a/b",
     "node/ä", "node/.a"],
)  # fmt: skip
def test_what_is_no_identity_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="expected ROLE/NAME"):
        Identity.parse(text)


def test_a_certificate_with_two_identities_has_none() -> None:
    def cert(*names: str) -> dict[str, Any]:
        return {"subjectAltName": [("DNS", name) for name in names]}

    assert identity_of(cert("localhost", "a.node.edgewise")) == node("a")
    for wrong in ({}, None, cert("localhost"), cert("a.node.edgewise", "b.node.edgewise")):
        assert identity_of(wrong) is None


# -- the files ---------------------------------------------------------------------------------


def test_keys_are_readable_by_their_owner_alone(keys: Path) -> None:
    private = [*keys.rglob("*.key")]
    assert len(private) == 2 * (len(EVERYBODY) + 1)
    assert {stat.S_IMODE(file.stat().st_mode) for file in private} == {0o600}


def missing_key(own: Path, _: Path) -> None:
    (own / "tls.key").unlink()


def readable_key(own: Path, _: Path) -> None:
    (own / "tls.key").chmod(0o644)


def others_key(own: Path, keys: Path) -> None:
    (own / "tls.key").write_bytes((keys / "node-b" / "tls.key").read_bytes())


def others_certificate(own: Path, keys: Path) -> None:
    (own / "tls.crt").write_bytes((keys / "node-b" / "tls.crt").read_bytes())


def clients_certificate(own: Path, keys: Path) -> None:
    (own / "tls.crt").write_bytes((keys / "client-alice" / "tls.crt").read_bytes())


def foreign_authority(own: Path, keys: Path) -> None:
    (own / "ca.crt").write_bytes((keys / "foreign" / "ca.crt").read_bytes())


def no_pem(own: Path, _: Path) -> None:
    (own / "tls.crt").write_text("hello")


def no_authority(own: Path, _: Path) -> None:
    (own / "ca.crt").unlink()


def expired(own: Path, keys: Path) -> None:
    Authority.load(keys).issue(node("a"), own, days=-0.001)


@pytest.mark.parametrize(
    ("spoil", "file", "problem"),
    [
        (missing_key, "tls.key", "expected this process's private key: No such file"),
        (readable_key, "tls.key", "expected mode 600, got 644"),
        (others_key, "tls.key", "expected the key of .*tls.crt.*: they do not belong together"),
        (others_certificate, "tls.crt", "expected the identity node/a, got node/b"),
        (clients_certificate, "tls.crt", "expected the identity node/a, got client/alice"),
        (foreign_authority, "tls.crt", "expected to be signed by an authority in .*ca.crt"),
        (no_pem, "tls.crt", "expected this process's certificate in PEM"),
        (no_authority, "ca.crt", "expected the authorities to trust: No such file"),
        (expired, "tls.crt", "expected a certificate that is valid now"),
    ],
)
def test_a_wrong_file_is_named_in_one_line_with_what_was_expected(
    keys: Path, tmp_path: Path, spoil: Callable[[Path, Path], None], file: str, problem: str
) -> None:
    Authority.load(keys).issue(node("a"), tmp_path)
    assert Credentials(tmp_path, (Role.NODE,), "a").own == node("a")
    spoil(tmp_path, keys)
    with pytest.raises(BadInput, match=f"{tmp_path}/{file}: {problem}") as caught:
        Credentials(tmp_path, (Role.NODE,), "a")
    assert "\n" not in str(caught.value)


def test_pki_issues_renews_and_shows(tmp_path: Path) -> None:
    def edgewise(*words: str) -> str:
        done = CliRunner().invoke(commands, ["pki", *words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    edgewise("fleet", str(tmp_path), "smoke", "--hosts", "{}.example.org")
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert folders == {"node-left", "node-right", "balancer", "relay", "client", "evaluator",
                       "operator", "monitor"}  # fmt: skip
    left = tmp_path / "node-left"
    before = (left / "tls.crt").read_bytes()
    edgewise("issue", str(tmp_path), "node/left", "--host", "10.0.0.7", "--days", "2")
    assert (left / "tls.crt").read_bytes() != before
    assert edgewise("show", str(left)).startswith("node/left\tvalid until ")


def test_names_that_tls_does_not_tell_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="upper and lower case"):
        issue_all(Authority.create(), tmp_path, {node("a"): (), node("A"): ()})


# -- connections -------------------------------------------------------------------------------


async def whoami(http: web.Request) -> web.Response:
    return web.Response(text=str(identity_of(http.get_extra_info("peercert"))))


@asynccontextmanager
async def serving(own: Credentials) -> AsyncIterator[str]:
    """A server that answers with the caller's identity."""
    application = web.Application()
    application.router.add_get("/", whoami)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=own.server_context()).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def ask(url: str, **tls: Any) -> str:
    async with aiohttp.ClientSession() as session, session.get(url, **tls) as response:
        return await response.text()


async def test_both_ends_know_each_other(keys: Path) -> None:
    async with serving(credentials(keys, node("a"))) as url:
        assert await ask(url, **credentials(keys, ALICE).calls(node("a"))) == "client/alice"


@pytest.mark.parametrize("how", ["another name", "foreign authority", "no certificate", "no TLS"])
async def test_whoever_is_not_expected_is_refused(keys: Path, how: str) -> None:
    alice = credentials(keys, ALICE)
    tls: dict[str, Any] = alice.calls(node("a"))
    if how == "another name":
        tls = alice.calls(node("b"))
    elif how == "foreign authority":
        foreign = Credentials(keys / "foreign" / ALICE.folder, (Role.CLIENT,))
        tls = foreign.calls(node("a"))
        tls["ssl"].check_hostname, tls["ssl"].verify_mode = False, 0  # the server's turn
    elif how == "no certificate":
        tls = {"ssl": False}
    async with serving(credentials(keys, node("a"))) as url:
        if how == "no TLS":
            url, tls = url.replace("https", "http"), {}
        with pytest.raises((aiohttp.ClientConnectionError, ConnectionError)) as caught:
            await ask(url, **tls)
        if how == "another name":
            assert "not valid for 'b.node.edgewise'" in str(caught.value)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_certificates_and_authorities_are_replaced_while_a_process_runs(
    keys: Path, tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    first, second = Authority.create(), Authority.create()
    first.issue(node("a"), tmp_path / "node-a")
    first.issue(ALICE, tmp_path / "client-alice")
    second.issue(BOB, tmp_path / "client-bob")

    async def rotate() -> None:
        server = credentials(tmp_path, node("a"), look_every=0.0)
        alice = credentials(tmp_path, ALICE, look_every=0.0)
        bob = credentials(tmp_path, BOB)
        async with serving(server) as url:
            assert await ask(url, **alice.calls(node("a"))) == "client/alice"
            # Half of a change is no change.
            whole = (tmp_path / "node-a" / "tls.key").read_bytes()
            (tmp_path / "node-a" / "tls.key").write_bytes(
                (keys / "node-a" / "tls.key").read_bytes()
            )
            assert await ask(url, **alice.calls(node("a"))) == "client/alice"
            (tmp_path / "node-a" / "tls.key").write_bytes(whole)
            # Another authority in place of the first: the first one's certificates end.
            second.issue(node("a"), tmp_path / "node-a")
            assert await ask(url, **bob.calls(node("a"))) == "client/bob"
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await ask(url, **alice.calls(node("a")))
            second.issue(ALICE, tmp_path / "client-alice")
            assert await ask(url, **alice.calls(node("a"))) == "client/alice"

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(rotate())


async def test_a_relay_passes_tls_on_between_two_nodes(keys: Path) -> None:
    """A request crosses a relay on its way to the ingress, and another to the peer."""
    async with SecureFleet(keys) as fleet:
        balancer = await fleet.start_balancer()
        fleet.balancer.decide = lambda request: fleet.balancer.command(request, "b", "exact")
        b = await fleet.start("b", balancer=balancer)
        a_to_b = await fleet.relay(b.url)
        a = await fleet.start("a", balancer=balancer, peers={"b": a_to_b})
        await until(lambda: a.commands.connected)
        answer = await fleet.infer(await fleet.relay(a.url), a, ALICE)
        assert answer["http"] == 200
        assert answer["parameters"]["edgewise.server"] == "b"


class SecureFleet(Fleet):
    """Nodes and a balancer with identities."""

    def __init__(self, keys: Path) -> None:
        super().__init__()
        self.keys = keys

    async def start_balancer(self) -> str:
        context = credentials(self.keys, BALANCER).server_context()
        await self.balancer.server.start_server(ssl=context)
        self.stack.push_async_callback(self.balancer.server.close)
        return f"https://127.0.0.1:{self.balancer.server.port}"

    async def start(self, server: str, **more: Any) -> Any:
        return await super().start(server, identity=str(self.keys / node(server).folder), **more)

    async def relay(self, url: str) -> str:
        """The URL of a way through a relay."""
        to = Address("127.0.0.1", int(url.rpartition(":")[2]))
        config = RelayConfig(
            links={"up": LinkSettings(delay=0.001)}, routes=(Route(to=to, forward=("up",)),)
        )
        relay = await self.stack.enter_async_context(Relay(config))
        return f"https://127.0.0.1:{relay.ports['routes'][0]['listen']['port']}"

    async def infer(
        self,
        url: str,
        ingress: Any,
        who: Identity,
        name: str = "r1",
        photo: bytes = b"photo",
        model: str = "imagenet-1k",
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        form, body = encode_request(photo)
        form |= to_headers(request_for(ingress, name), ingress.clock.now())
        async with self.client.post(
            f"{url}/v2/models/{model}/infer",
            data=body,
            headers=form | (headers or {}),
            **credentials(self.keys, who).calls(node(ingress.config.server)),
        ) as response:
            return {"http": response.status, **msgspec.json.decode(await response.read())}


# -- who may do what ---------------------------------------------------------------------------


class SecureBalancer:
    """A balancer with an identity, called by whom the test says; a node ``a`` is connected."""

    def __init__(self, keys: Path, stack: AsyncExitStack) -> None:
        self._keys, self._stack = keys, stack
        self.dispatcher = Dispatcher(two_servers(), make_policy("earliest_completion"), time.time())
        own = credentials(keys, BALANCER)
        self.balancer = Balancer(self.dispatcher, Clock(), credentials=own)
        self.server = TestServer(BalancerApi(self.balancer).app())
        self._context = own.server_context()

    async def start(self) -> None:
        await self.server.start_server(ssl=self._context)
        self._stack.push_async_callback(self.server.close)
        self._stack.push_async_callback(self.balancer.stop)
        self._session = await self._stack.enter_async_context(aiohttp.ClientSession())

    async def call(
        self, who: Identity, method: str, path: str, value: Any = None
    ) -> tuple[int, dict[str, Any]]:
        async with self._session.request(
            method,
            self.server.make_url(path),
            data=None if value is None else msgspec.json.encode(value),
            **credentials(self._keys, who).calls(BALANCER),
        ) as response:
            body = await response.read()
            return response.status, msgspec.json.decode(body) if body[:1] == b"{" else {}

    async def hello(self, who: Identity, server: str, instance: int = 0) -> Any:
        """A channel on which `who` says that it is `server`."""
        tls = credentials(self._keys, who).calls(BALANCER)
        socket = await self._session.ws_connect(self.server.make_url("/v1/control"), **tls)
        self._stack.push_async_callback(socket.close)
        models = {"a": ("small", "large"), "b": ("large",)}[server]
        hello = messages.Hello(server=server, models=models, instance=instance)
        await socket.send_bytes(messages.encode(hello))
        return socket

    async def submit(self, who: Identity, name: str) -> tuple[int, dict[str, Any]]:
        request = Request(id=name, ingress="a", payload_bytes=9, sent_at=time.time(), deadline=60.0)
        submission = messages.Submission(request=request, budget=60.0)
        return await self.call(who, "POST", "/v1/requests", submission)

    async def decided(self, who: Identity, name: str = "r1") -> None:
        status, reply = await self.submit(who, name)
        assert (status, reply["request"]) == (200, name)


@asynccontextmanager
async def secure_balancer(keys: Path) -> AsyncIterator[SecureBalancer]:
    async with AsyncExitStack() as stack:
        made = SecureBalancer(keys, stack)
        await made.start()
        channel = await made.hello(node("a"), "a")
        await until(lambda: "a" in made.balancer.connections)
        made.channel = channel  # type: ignore[attr-defined]
        yield made


def served(request: str, **more: Any) -> Outcome:
    fields = {"status": Status.SERVED, "server": "a", "model": "small", "latency": 0.5} | more
    return Outcome(request=request, **fields)


def test_every_path_of_every_server_stands_in_a_table() -> None:
    controller = LinkController(RelayConfig(routes=(Route(to=Address(port=9)),)))
    balancer = Balancer(Dispatcher(two_servers(), make_policy("local"), 0.0), Clock())
    made = Node(NodeConfig(scenario="test", server="a"), scenario())
    node_api = NodeApi(None, Clock(), made.monitor, None, Usage(), (), "t", ())  # type: ignore[arg-type]
    open_to_all = access.guard({}, None, on_loopback=True)
    for table, application in (
        (access.BALANCER, BalancerApi(balancer).app()),
        (access.RELAY, control_app(controller)),
        (access.NODE, node_api.app(open_to_all)),
    ):
        routes = {
            f"{route.method} {route.resource.canonical}"
            for route in application.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
        assert routes == table.keys()


async def test_a_role_may_call_what_the_table_says_and_nothing_else(keys: Path) -> None:
    async with secure_balancer(keys) as s:
        for who in EVERYBODY:
            for path, allowed in access.BALANCER.items():
                method, where = path.replace("{id}", "r1").split()
                status, reply = await s.call(who, method, where)
                assert (status == 403) == (who.role not in allowed), (str(who), path)
                if status == 403:
                    assert f"{who} may not do this (allowed: " in reply["error"]


async def test_the_relay_is_changed_by_operators_and_read_by_balancers(keys: Path) -> None:
    config = RelayConfig(
        links={"up": LinkSettings()},
        routes=(Route(to=Address(port=9), forward=("up",)),),
        identity=str(keys / RELAY.folder),
    )
    async with Relay(config) as relay:
        url = f"https://127.0.0.1:{relay.ports['control']['port']}"
        for who, reads, changes in (
            (OPERATOR, True, True),
            (BALANCER, True, False),
            (ALICE, False, False),
            (node("a"), False, False),
        ):
            async with RelayControl(url, credentials=credentials(keys, who)) as control:
                for call, may in (
                    (control.links, reads),
                    (partial(control.set, "up", rate_mbps=5.0), changes),
                    (partial(control.outage, "up", 0.001), changes),
                ):
                    if may:
                        await call()
                    else:
                        with pytest.raises(BadInput, match=f"{who} may not do this"):
                            await call()


async def test_a_node_speaks_for_itself_alone(keys: Path) -> None:
    async with secure_balancer(keys) as s:
        for who, server in ((node("a"), "b"), (node("b"), "a")):
            socket = await s.hello(who, server)
            frame = await socket.receive(timeout=10)
            assert (frame.data, frame.extra) == (1008, f"hello of {server} by {who}")
        assert set(s.balancer.connections) == {"a"}


async def test_a_restarted_node_takes_its_place_by_its_identity(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first connection does not answer; only whoever has the certificate may replace it."""
    monkeypatch.setattr(node_connection, "ANSWER_TO_PING", 0.01)
    async with secure_balancer(keys) as s:
        first = s.balancer.connections["a"]
        await s.hello(node("a"), "a", instance=7)
        await until(lambda: s.balancer.connections["a"] is not first)


async def test_request_ids_belong_to_their_client(keys: Path) -> None:
    async with secure_balancer(keys) as s:
        await s.decided(ALICE)
        await s.decided(BOB)  # the same id: another request
        assert s.dispatcher.counts.requests == 2
        for who, name in ((ALICE, "client.bob/r1"), (OPERATOR, "r1")):
            status, _ = await s.call(who, "GET", f"/v1/decisions/{name}")
            assert status in (403, 404)
        for who, name in ((ALICE, "r1"), (EVALUATOR, "client.bob/r1"), (OPERATOR, "client.bob/r1")):
            assert (await s.call(who, "GET", f"/v1/decisions/{name}"))[0] == 200
        assert (await s.submit(ALICE, "client.bob/r2"))[0] == 403


async def test_outcomes_come_from_the_evaluator_or_the_client_whose_request_it_was(
    keys: Path,
) -> None:
    async with secure_balancer(keys) as s:
        await s.decided(ALICE)
        path = "/v1/outcomes"
        # Bob's own r1 was never decided, and alice's is not his to name.
        assert (await s.call(BOB, "POST", path, served("r1")))[1]["unknown"] == 1
        assert (await s.call(BOB, "POST", path, served("client.alice/r1")))[0] == 403
        # A client is not believed how accurate a service is, nor what the right class is.
        claim = served("r1", accuracy=1.0, label=3, predicted=3)
        assert (await s.call(ALICE, "POST", path, claim))[1]["joined"] == 1
        entry = s.dispatcher.decisions.get("client.alice/r1")
        assert entry is not None
        assert entry.outcome is not None
        assert (entry.outcome.accuracy, entry.outcome.label) == (0.7, None)
        assert not entry.settled
        judged = served("client.alice/r1", label=3, predicted=3)
        assert (await s.call(EVALUATOR, "POST", path, judged))[1]["joined"] == 1
        assert entry.settled


def test_the_tables_of_a_run_have_the_ids_as_their_client_gave_them() -> None:
    request = Request(id="client.alice/r1", ingress="a", payload_bytes=9, sent_at=1.0, deadline=1.0)
    made = Dispatcher(two_servers(), make_policy("local"), 0.0)
    made.tracker.connect("a", 0.0)
    entry = made.decide(request, 1.0, "ask")
    row = decision_row(entry.request, entry.decision, entry.command, "ask", None)
    assert row[0] == experience_row(entry)[0] == "r1"


async def test_two_clients_of_a_node_do_not_get_each_others_answers(keys: Path) -> None:
    async with SecureFleet(keys) as fleet:
        a = await fleet.start("a")
        for who, photo in ((ALICE, b"one"), (BOB, b"two")):
            answer = await fleet.infer(a.url, a, who, photo=photo)
            assert answer["parameters"]["edgewise.request"] == "r1"
        assert [item.payload for item in fleet.executors["a"].items] == [b"one", b"two"]


async def test_transfers_come_from_the_node_that_they_say(keys: Path) -> None:
    async with SecureFleet(keys) as fleet:
        a = await fleet.start("a")
        transfer = TransferHeaders(via="b", dispatch=1).encode()
        for who, headers, code in (
            (node("b"), transfer, 202),
            (node("a"), transfer, 403),
            (ALICE, transfer, 403),
            (node("b"), {}, 403),  # as a client
            (OPERATOR, {}, 403),
        ):
            answer = await fleet.infer(
                a.url, a, who, name=f"r-{who.name}", model="quick", headers=headers
            )
            assert answer["http"] == code, (str(who), answer)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 400),
        ({"Origin": "http://127.0.0.1:{port}"}, 400),  # its own page
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "rebound.example:{port}"}, 403),
        ({"Host": "localhost:{port}"}, 400),
        ({"Host": "[::1]:{port}"}, 400),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json"}, 400),
    ],
)
async def test_a_page_from_elsewhere_can_use_no_process(headers: dict[str, str], code: int) -> None:
    """Without identities, on the loopback. Whoever reads the body answers 400: it is no request."""
    balancer = Balancer(Dispatcher(two_servers(), make_policy("local"), 0.0), Clock())
    relay = RelayConfig(
        links={"up": LinkSettings()}, routes=(Route(to=Address(port=9), forward=("up",)),)
    )
    async with (
        Fleet() as fleet,
        TestServer(BalancerApi(balancer).app()) as server,
        Relay(relay) as network,
    ):
        a = await fleet.start("a")
        control = f"http://127.0.0.1:{network.ports['control']['port']}/links/up/outage"
        infer = f"{a.url}/v2/models/imagenet-1k/infer"
        for url in (str(server.make_url("/v1/outcomes")), infer, control):
            port = url.split(":")[2].partition("/")[0]
            shown = {name: value.format(port=port) for name, value in headers.items()}
            async with fleet.client.post(url, data=b"{", headers=shown) as response:
                assert response.status == code, (url, await response.text())


def test_an_unreadable_key_is_not_shown(keys: Path, tmp_path: Path) -> None:
    Authority.load(keys).issue(node("a"), tmp_path)
    (tmp_path / "tls.key").write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n")
    with pytest.raises(BadInput, match=r"tls\.key: expected the key of") as caught:
        Credentials(tmp_path, (Role.NODE,), "a")
    assert "c2VjcmV0" not in str(caught.value)


# -- without identities ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "mine"),
    [("127.0.0.1", True), ("127.3.0.1", True), ("localhost", True), ("::1", True), ("", False),
     ("0.0.0.0", False), ("::", False), ("10.1.2.3", False), ("plaza.example.org", False)],
)  # fmt: skip
def test_a_process_that_others_can_reach_needs_an_identity(host: str, mine: bool) -> None:
    assert is_loopback(host) == mine
    if not mine:
        with pytest.raises(BadInput, match="`trust_anyone_who_connects: true` instead"):
            credentials_for(None, (Role.NODE,), hosts=(host,))
    trusting = credentials_for(None, (Role.NODE,), hosts=(host,), trust_anyone=True)
    assert trusting is None


async def test_every_role_refuses_to_listen_wide_without_an_identity() -> None:
    wide = Listen(host="0.0.0.0")
    with pytest.raises(BadInput, match=r"host 0\.0\.0\.0: others can reach it"):
        Node(NodeConfig(scenario="test", server="a", listen=wide), scenario())
    with pytest.raises(BadInput, match=r"host 0\.0\.0\.0: others can reach it"):
        await serve(BalancerConfig(scenario="smoke", listen=wide), asyncio.Event())
    for control, listen in (("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")):
        route = Route(listen=Address(listen), to=Address(port=9))
        with pytest.raises(BadInput, match=r"host 0\.0\.0\.0: others can reach it"):
            Relay(RelayConfig(control=Address(control), routes=(route,)))


@pytest.mark.parametrize("identity", ["", "identity: keys\n"])
def test_urls_and_identity_must_agree(tmp_path: Path, identity: str) -> None:
    scheme = "http" if identity else "https"
    file = tmp_path / "node.yaml"
    file.write_text(f"scenario: smoke\nserver: left\n{identity}peers: {{right: {scheme}://h:1}}\n")
    with pytest.raises(
        ScenarioError, match=r"node\.yaml: peers\.right: expected https?://…, since"
    ):
        load_config(file, NodeConfig)


# -- a fleet of processes ----------------------------------------------------------------------


@pytest.mark.system
async def test_a_fleet_with_identities_serves_as_one_without(tmp_path: Path) -> None:
    """Through relays; the keys are gone afterwards."""
    smoke = load("smoke").with_overrides(duration=1.0)
    deployment = Deployment(smoke, tmp_path, identities=True)
    async with deployment:
        keys = deployment._keys
        assert stat.S_IMODE(keys.stat().st_mode) == 0o700
        await deployment.run()
        assert (await deployment.links()).keys() == smoke.all_links().keys() | {
            "return:left", "return:right"
        }  # fmt: skip
    assert not keys.exists()
    outcomes = read(tmp_path, "outcomes")
    assert outcomes.num_rows > 10
    assert set(outcomes["status"].to_pylist()) == {"served"}
    config = load_config(tmp_path / "config" / "client.yaml", ClientConfig)
    assert all(url.startswith("https:") for url in config.urls().values())


def test_every_threat_names_tests_that_exist() -> None:
    root = Path(__file__).parents[1]
    text = (root / "docs" / "security.md").read_text("utf-8")
    threats = text.partition("## Threats")[2].partition("## ")[0]
    rows = [line for line in threats.splitlines() if line.startswith("| ")][1:]
    defined = set()
    for file in (root / "tests").glob("test_*.py"):
        defined |= set(re.findall(r"^(?:async )?def (test_\w+)", file.read_text("utf-8"), re.M))
    assert len(rows) > 10
    for row in rows:
        named = set(re.findall(r"`(test_\w+)`", row))
        assert named, row
        assert named <= defined, named - defined
