"""Identities and who may do what: `docs/security.md` names a test of this file in each row."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop
from aiohttp import web
from typer.testing import CliRunner

from edgewise.cli.main import app as commands
from edgewise.errors import BadInput, ScenarioError
from edgewise.live.balancer.balancer_process import serve
from edgewise.live.node.node import Node
from edgewise.live.process_config import (
    BalancerConfig,
    ClientConfig,
    Listen,
    NodeConfig,
    load_config,
)
from edgewise.live.recorder import read
from edgewise.live.run.deployment import Deployment
from edgewise.live.run.fleet_configs import EVALUATOR
from edgewise.live.wire.open_inference import encode_request
from edgewise.live.wire.request_metadata import to_headers
from edgewise.network.relay.config import Address, RelayConfig, Route
from edgewise.network.relay.relay import Relay
from edgewise.network.settings import LinkSettings
from edgewise.scenario import load
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
        tls = credentials(keys / "foreign", ALICE).calls(node("a"))
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
        assert answer["code"] == 200
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
        self, url: str, ingress: Any, who: Identity, name: str = "r1", **fields: Any
    ) -> dict[str, Any]:
        headers, body = encode_request(b"photo")
        headers |= to_headers(request_for(ingress, name, **fields), ingress.clock.now())
        async with self.client.post(
            f"{url}/v2/models/imagenet-1k/infer",
            data=body,
            headers=headers,
            **credentials(self.keys, who).calls(node(ingress.config.server)),
        ) as response:
            return {"code": response.status, **msgspec.json.decode(await response.read())}


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
