"""The relay over real loopback sockets: orders, ratios and sums, never an absolute time."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import multiprocessing
import os
import random
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest

from edgewise.errors import BadInput, PeerError, ScenarioError
from edgewise.network.control import RelayControl
from edgewise.network.emulated_network import run
from edgewise.network.relay.config import Address, RelayConfig, Route, load_config
from edgewise.network.relay.connection import Endpoint
from edgewise.network.relay.relay import Relay
from edgewise.network.relay.timers import Timers
from edgewise.network.settings import LinkChange, LinkEvent, LinkSettings, Outage
from edgewise.network.trace import FileTrace, WifiTrace
from edgewise.network.units import CHUNK_BYTES

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

PATIENCE_S = 20.0  # a test that waits longer has failed


@contextlib.asynccontextmanager
async def server(handler: Handler) -> AsyncIterator[Address]:
    """A target; its connections are closed when their handler ends, and all when the test does."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield Address(*listening.sockets[0].getsockname()[:2])
    finally:
        for task in tasks:
            task.cancel()
        listening.close()
        await listening.wait_closed()
        await asyncio.sleep(0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


class Collector:
    """Takes all that comes, and remembers how much by when and in what order flows ended."""

    def __init__(self) -> None:
        self.got = 0
        self.ended: list[tuple[int, float]] = []
        self.read = asyncio.Event()
        self.read.set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        n = 0
        while True:
            await self.read.wait()
            data = await reader.read(65536)
            if not data:
                break
            n += len(data)
            self.got += len(data)
        self.ended.append((n, time.monotonic()))
        writer.write(b"done")
        writer.write_eof()


@contextlib.asynccontextmanager
async def connect(relay: Relay, route: int = 0) -> AsyncIterator[Stream]:
    listen = relay.ports["routes"][route]["listen"]
    reader, writer = await asyncio.open_connection(listen["host"], listen["port"])
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def push(relay: Relay, size: int, route: int = 0) -> bytes:
    """Send ``size`` bytes and an end; return the answer."""
    async with connect(relay, route) as (reader, writer):
        writer.write(bytes(size))
        writer.write_eof()
        return await reader.read()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the relay has no event for what tests look at
            await asyncio.sleep(0.002)


def one_route(to: Address, forward: dict[str, LinkSettings], **more: Any) -> RelayConfig:
    return RelayConfig(links=forward, routes=(Route(to=to, forward=tuple(forward)),), **more)


def idle(relay: Relay) -> bool:
    return not relay.connections and all(
        s.backlog == s.in_flight == 0 for s in relay.shapers.values()
    )


@pytest.mark.parametrize(
    "links",
    [
        {},
        {"a": LinkSettings()},
        {"a": LinkSettings(rate_mbps=200, delay=0.005)},
        {
            "a": LinkSettings(rate_mbps=300, delay=0.002, jitter=0.004),
            "b": LinkSettings(rate_mbps=200, queue_bytes=20_000),
            "c": LinkSettings(delay=0.003, loss=0.02, stall=0.005),
        },
    ],
)
async def test_bytes_arrive_whole_and_in_order_both_ways(links: dict[str, LinkSettings]) -> None:
    data = random.Random(1).randbytes(1_500_001)
    async with server(echo) as to:
        names = tuple(links)
        config = RelayConfig(
            links=links, routes=(Route(to=to, forward=names, backward=names[::-1]),)
        )
        async with Relay(config) as relay:
            async with connect(relay) as (reader, writer):
                writer.write(data)
                writer.write_eof()
                assert await reader.read() == data
            await until(lambda: idle(relay))
            for shaper in relay.shapers.values():
                assert shaper.delivered == shaper.sent == 2 * len(data)


async def test_many_small_writes_arrive_as_their_sum() -> None:
    """Many writes smaller than a chunk: the link carries the sum."""
    async with (
        server(echo) as to,
        Relay(one_route(to, {"a": LinkSettings(rate_mbps=50)})) as relay,
        connect(relay) as (reader, writer),
    ):
        for i in range(300):
            writer.write(b"%4d" % i)
            await asyncio.sleep(0)
        writer.write_eof()
        assert await reader.read() == b"".join(b"%4d" % i for i in range(300))


async def test_half_close_keeps_the_other_direction() -> None:
    order: list[str] = []

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"question"
        order.append("end seen")
        writer.write(b"answer")

    async with (
        server(late) as to,
        Relay(one_route(to, {"a": LinkSettings(rate_mbps=1)})) as relay,
    ):
        async with connect(relay) as (reader, writer):
            writer.write(b"question")
            writer.write_eof()
            assert await reader.read() == b"answer"
            order.append("answer")
        await until(lambda: idle(relay))
    assert order == ["end seen", "answer"]


async def test_the_target_may_end_first() -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        assert await reader.read() == b"still here"

    async with server(hasty) as to, Relay(one_route(to, {"a": LinkSettings()})) as relay:
        async with connect(relay) as (reader, writer):
            assert await reader.read() == b"bye"
            writer.write(b"still here")
        await until(lambda: idle(relay))


async def test_refusal_resets_the_client_at_once() -> None:
    with socket.socket() as taken:  # bound and not listening: refuses
        taken.bind(("127.0.0.1", 0))
        to = Address(*taken.getsockname())
        # The link would need minutes: the reset must not queue behind the data.
        async with Relay(one_route(to, {"a": LinkSettings(rate_mbps=0.001)})) as relay:
            with pytest.raises(ConnectionResetError):
                await push(relay, 100_000)
            assert relay.refused == 1
            # The chunk on the wire stays there, as it would on a real one.
            await until(lambda: not relay.connections and relay.shapers["a"].backlog <= 16384)


async def test_an_end_that_cannot_be_written_ends_that_side_all_the_same() -> None:
    """asyncio's own loop raises ENOTCONN if the client is gone when the target ends."""

    class Gone:
        def is_closing(self) -> bool:
            return False

        def write_eof(self) -> None:
            raise OSError(errno.ENOTCONN, "not connected")

    connection = Mock()
    endpoint = Endpoint(connection, bytearray(1))
    endpoint.transport = Gone()  # type: ignore[assignment]
    endpoint.write_eof()
    assert endpoint.sent_eof
    connection.ended.assert_called_once_with()


async def test_a_reset_of_one_side_reaches_the_other() -> None:
    seen = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(65536):
                pass
        except ConnectionResetError:
            seen.set()

    async with server(handler) as to, Relay(one_route(to, {"a": LinkSettings()})) as relay:
        async with connect(relay) as (_, writer):
            writer.write(b"hello")
            await until(lambda: relay.shapers["a"].delivered == 5)
            handle = writer.get_extra_info("socket")
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            await seen.wait()
        await until(lambda: idle(relay))


async def test_loss_as_reset() -> None:
    link = LinkSettings(loss=0.5, loss_mode="reset")
    async with server(Collector()) as to, Relay(one_route(to, {"a": link})) as relay:
        with pytest.raises(ConnectionResetError):
            await push(relay, 200_000)
        await until(lambda: idle(relay))


async def test_a_live_change_affects_the_chunk_on_the_wire() -> None:
    collector = Collector()
    async with (
        server(collector) as to,
        Relay(one_route(to, {"a": LinkSettings(rate_mbps=0.008)})) as relay,
    ):
        pushing = asyncio.create_task(push(relay, 300_000))  # five minutes at this rate
        await until(lambda: relay.shapers["a"].backlog > 50_000)
        async with RelayControl(control_url(relay)) as control:
            assert (await control.link("a"))["rate_bps"] == pytest.approx(8e3)
            state = await control.set("a", rate_mbps=100, delay=0.001)
            assert state["rate_bps"] == pytest.approx(100e6)
            assert state["settings"]["delay"] == 0.001
        assert await pushing == b"done"
        assert collector.got == 300_000


async def test_outage_stops_everything_and_ends() -> None:
    collector = Collector()
    async with (
        server(collector) as to,
        Relay(one_route(to, {"a": LinkSettings(rate_mbps=20)})) as relay,
        RelayControl(control_url(relay)) as control,
    ):
        shaper = relay.shapers["a"]
        pushing = asyncio.create_task(push(relay, 500_000))
        await until(lambda: shaper.delivered > 0)
        state = await control.outage("a", 0.3)
        sent = shaper.sent
        assert state["rate_bps"] == 0.0
        # What was sent is read before the clock, so it is of a time when the outage lasted.
        while (now_sent := shaper.sent, shaper.link.rate_bps(time.monotonic()))[1] == 0.0:
            assert now_sent == sent
            await asyncio.sleep(0.01)
        assert await pushing == b"done"
        assert collector.got == 500_000


async def test_reset_of_a_link_ends_an_outage_and_undoes_changes() -> None:
    async with (
        server(Collector()) as to,
        Relay(one_route(to, {"a": LinkSettings(rate_mbps=50)})) as relay,
        RelayControl(control_url(relay)) as control,
    ):
        await control.set("a", rate_mbps=0.001)
        await control.outage("a", 1000.0)
        pushing = asyncio.create_task(push(relay, 10_000))
        await until(lambda: relay.shapers["a"].backlog > 0)
        assert (await control.reset("a"))["rate_bps"] == pytest.approx(50e6)
        assert await pushing == b"done"


async def test_equal_flows_share_equally() -> None:
    collector = Collector()
    async with (
        server(collector) as to,
        Relay(one_route(to, {"a": LinkSettings(rate_mbps=80)})) as relay,
    ):
        begin = time.monotonic()
        await asyncio.gather(*(push(relay, 250_000) for _ in range(12)))
        times = [end - begin for _, end in collector.ended]
        assert collector.got == 12 * 250_000
        assert min(times) / max(times) > 0.5  # first come, first served gives 0.08


async def test_a_short_transfer_overtakes_a_long_one() -> None:
    collector = Collector()
    async with (
        server(collector) as to,
        Relay(one_route(to, {"a": LinkSettings(rate_mbps=40)})) as relay,
    ):
        long = asyncio.create_task(push(relay, 2_000_000))
        await until(lambda: collector.got > 0)
        await push(relay, 50_000)
        await long
        assert [n for n, _ in collector.ended] == [50_000, 2_000_000]


async def test_a_short_message_does_not_wait_for_a_turn_of_each_flow() -> None:
    collector = Collector()
    async with (
        server(collector) as to,
        Relay(one_route(to, {"a": LinkSettings(rate_mbps=32)})) as relay,
    ):
        link = relay.shapers["a"]
        crowd = asyncio.gather(*(push(relay, 250_000) for _ in range(16)))
        # Every flow has had its first turn: now they are ahead of a newcomer.
        await until(lambda: link.flows() == 16 and link.sent > 24 * CHUNK_BYTES)
        before = link.sent
        await push(relay, 300)
        # Turns in a row would be one of each flow for the message, and again for its end.
        assert link.sent - before < 10 * CHUNK_BYTES
        await crowd


async def test_a_named_link_is_shared_by_routes_and_directions() -> None:
    async with server(echo) as to:
        shared = Route(to=to, forward=("a",), backward=("a",))
        config = RelayConfig(links={"a": LinkSettings(rate_mbps=60)}, routes=(shared, shared))
        async with Relay(config) as relay:

            async def timed(*routes: int) -> float:
                begin = time.monotonic()
                await asyncio.gather(*(push(relay, 200_000, r) for r in routes))
                return time.monotonic() - begin

            alone = await timed(0)
            assert 1.3 < await timed(0, 1) / alone < 3.5
            assert relay.shapers["a"].delivered == 3 * 2 * 200_000


async def test_the_slowest_link_of_a_path_sets_the_pace() -> None:
    fast, slow = LinkSettings(rate_mbps=200), LinkSettings(rate_mbps=20)
    async with server(Collector()) as to:
        links = {"f": fast, "s": slow, "u": LinkSettings(delay=0.001)}
        routes = [Route(to=to, forward=f) for f in (("f",), ("s",), ("f", "s", "u"))]
        async with Relay(RelayConfig(links=links, routes=tuple(routes))) as relay:
            times = []
            for r in range(3):
                begin = time.monotonic()
                await push(relay, 400_000, r)
                times.append(time.monotonic() - begin)
            assert times[1] > 3 * times[0]
            assert 0.7 < times[2] / times[1] < 1.6


async def test_a_receiver_that_does_not_read_holds_the_sender_back() -> None:
    collector = Collector()
    collector.read.clear()
    total = 30_000_000
    async with server(collector) as to, Relay(one_route(to, {"a": LinkSettings()})) as relay:
        pushing = asyncio.create_task(push(relay, total))
        shaper = relay.shapers["a"]
        await until(lambda: shaper.delivered > 0)
        still, before = 0, -1
        while still < 10:
            still = still + 1 if shaper.delivered == before else 0
            before = shaper.delivered
            await asyncio.sleep(0.01)
        assert shaper.delivered + shaper.backlog + shaper.in_flight < 12_000_000
        collector.read.set()
        assert await pushing == b"done"
        assert collector.got == total


async def test_a_slow_link_bounds_the_bytes_that_are_read() -> None:
    link = LinkSettings(rate_mbps=0.08, queue_bytes=30_000)
    async with server(Collector()) as to, Relay(one_route(to, {"a": link})) as relay:
        tasks = [asyncio.create_task(push(relay, 2_000_000)) for _ in range(3)]
        shaper = relay.shapers["a"]
        await until(lambda: shaper.backlog > 0 and len(relay.connections) == 3)
        await asyncio.sleep(0.1)
        # One read of 64 KiB each, whatever the cap: a flow must not starve.
        assert shaper.backlog <= 3 * 65536
        assert shaper.flows() == 3
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_events_and_start() -> None:
    link = msgspec.convert({"rate_mbps": 8, "outages": [{"at": 7200, "duration": 1}]}, LinkSettings)
    events = msgspec.convert(
        [
            {"at": 3600, "link": "a", "set": {"delay": 9}},
            {"at": 0.05, "link": "a", "set": {"rate_mbps": 16}},
        ],
        tuple[LinkEvent, ...],
    )
    async with (
        server(echo) as to,
        Relay(one_route(to, {"a": link}, events=events)) as relay,
        RelayControl(control_url(relay)) as control,
    ):

        def rate() -> float:
            return relay.shapers["a"].link.rate_bps(time.monotonic())

        await until(lambda: rate() == pytest.approx(16e6))
        await control.set("a", rate_mbps=1)
        assert rate() == pytest.approx(1e6)
        before = (await control.link("a"))["time"]
        await control.start()
        assert (await control.link("a"))["time"] < before
        await until(lambda: rate() == pytest.approx(16e6))
        assert (await control.link("a"))["settings"]["delay"] == 0.0


async def test_state_of_a_busy_link() -> None:
    async with (
        server(Collector()) as to,
        Relay(one_route(to, {"a": LinkSettings(rate_mbps=10, delay=0.02)})) as relay,
        RelayControl(control_url(relay)) as control,
    ):
        pushing = asyncio.create_task(push(relay, 400_000))
        await until(lambda: relay.shapers["a"].delivered > 100_000)
        state = (await control.links())["a"]
        assert state["flows"] == 1
        assert state["backlog_bytes"] > 0
        assert state["in_flight_bytes"] > 0
        assert 0.0 < state["utilisation"] <= 1.0
        assert 0.0 < state["throughput_bps"] < 15e6
        assert (await control.health())["connections"] == 1
        await pushing
        state = await control.link("a")
        assert state["delivered_bytes"] == 400_000
        assert state["backlog_bytes"] == state["in_flight_bytes"] == state["flows"] == 0


def control_url(relay: Relay) -> str:
    address = relay.ports["control"]
    return f"http://{address['host']}:{address['port']}"


async def test_the_control_api_reads_no_file_unless_a_folder_is_given(tmp_path: Path) -> None:
    """The configuration's own folder may hold keys."""
    (tmp_path / "ok").write_text("1\n")
    config = one_route(Address("h", 1), {"a": LinkSettings(rate_mbps=8)}, folder=str(tmp_path))
    async with Relay(config) as relay, RelayControl(control_url(relay)) as control:
        for path in ("ok", str(tmp_path / "ok"), "/etc/passwd"):
            with pytest.raises(BadInput, match="the configuration names no `traces`"):
                await control.set("a", trace={"kind": "file", "path": path})


async def test_the_control_api_names_the_wrong_field(tmp_path: Path) -> None:
    (tmp_path / "ok").write_text("1\n")
    (tmp_path / "bad").write_text("1\nx\n")
    (tmp_path / "link").symlink_to("/etc/passwd")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "huge").write_text("9" * 5000)
    os.mkfifo(tmp_path / "pipe")  # reading it would never end
    config = one_route(Address("h", 1), {"a": LinkSettings(rate_mbps=8)}, traces=str(tmp_path))
    async with Relay(config) as relay, RelayControl(control_url(relay)) as control:
        for changes, problem in [
            ({"rate_mbps": "fast"}, "rate_mbps: expected"),
            ({"rate_mbps": -1}, "rate_mbps: expected"),
            ({"loss": 1.0}, "loss: expected"),
            ({"speed": 1}, "unknown field 'speed'"),
            ({"rate_mbps": 1, "trace": {"kind": "file", "path": "ok"}}, "rate_mbps: .*both"),
            ({"trace": {"kind": "lan", "mean_mbps": 1}}, "trace.kind: expected one of file"),
            ({"trace": {"kind": "file", "path": "bad"}}, "bad: line 2: expected a whole number"),
            ({"trace": {"kind": "file", "path": "/etc/passwd"}}, "trace.path: expected a file"),
            ({"trace": {"kind": "file", "path": "../x"}}, "trace.path: expected a file below"),
            ({"trace": {"kind": "file", "path": "link"}}, "trace.path: expected a file below"),
            ({"trace": {"kind": "file", "path": "pipe"}}, "trace.path: expected a file below"),
            ({"trace": {"kind": "file", "path": "loop"}}, "trace.path: expected a file below"),
            ({"trace": {"kind": "file", "path": "a\0b"}}, "trace.path: expected a file below"),
            ({"trace": {"kind": "file", "path": "x" * 5000}}, "trace.path: expected a file below"),
            ({"trace": {"kind": "file", "path": "huge"}}, "huge: line 1: expected a whole number"),
            ({"trace": {"kind": "wifi", "mean_mbps": 1, "duration": 1e9}}, "duration: expected"),
            ({"delay": 1e9}, "delay: expected"),
            ({"delay": 1.0, "trace": {}}, "trace: expected a field 'kind'"),
        ]:
            with pytest.raises(BadInput, match=problem):
                await control.set("a", **changes)
        assert relay.shapers["a"].link.settings.delay == 0.0  # a wrong change changes nothing
        for duration in (0.0, 1e9):
            with pytest.raises(BadInput, match="duration: expected"):
                await control.outage("a", duration)
        with pytest.raises(BadInput, match="no link is called 'z/1'; there are: a"):
            await control.link("z/1")
        state = await control.set("a", trace={"kind": "file", "path": "ok"}, loss=0.1)
        assert state["rate_bps"] == pytest.approx(12.032e6, rel=0.01)
        assert state["settings"]["loss"] == 0.1
        assert (await control.set("a", rate_mbps=None))["rate_bps"] is None


@pytest.mark.parametrize(
    ("request_line", "body", "status", "problem"),
    [
        ("GET /nothing", "", "404", "GET /nothing"),
        ("DELETE /links/a", "", "405", "DELETE /links/a"),
        ("GET /links/b", "", "404", "name: no link is called 'b'"),
        ("PATCH /links/a", "{", "400", "body: expected JSON"),
        ("PATCH /links/a", "[]", "400", "expected a mapping"),
        ("POST /links/a/outage", "{}", "400", "duration"),
    ],
)
async def test_errors_are_json(request_line: str, body: str, status: str, problem: str) -> None:
    async with Relay(one_route(Address("h", 1), {"a": LinkSettings()})) as relay:
        address = relay.ports["control"]
        reader, writer = await asyncio.open_connection(address["host"], address["port"])
        writer.write(
            f"{request_line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        head, _, content = answer.partition("\r\n\r\n")
        assert head.split()[1] == status
        assert problem in msgspec.json.decode(content)["error"]


async def test_client_without_a_relay() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with RelayControl(f"http://127.0.0.1:{taken.getsockname()[1]}") as control:
            with pytest.raises(PeerError, match="GET /links"):
                await control.links()


@pytest.mark.parametrize("part", ["listen", "control"])
async def test_a_port_that_is_taken(part: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = Address(*taken.getsockname())
        route = Route(to=Address("h", 1), listen=address if part == "listen" else Address())
        config = RelayConfig(routes=(route,), control=address if part == "control" else Address())
        with pytest.raises(BadInput, match=f"cannot listen on 127.0.0.1:{address.port}.* in use"):
            async with Relay(config):
                pass


def test_load_config(tmp_path: Path) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(
        """
        control: {host: 127.0.0.1, port: 0}
        links:
          up: {rate_mbps: 20, delay: 0.01, outages: [{at: 5, duration: 2}]}
          down: {trace: {kind: cellular, seed: 1, mean_mbps: 30}, loss: 0.01, loss_mode: reset}
        routes:
          - {listen: {host: 127.0.0.1, port: 0}, to: {host: h, port: 1}, forward: [up, down]}
        """
    )
    config = load_config(path)
    assert config.links["up"].rate_mbps == 20.0
    assert config.links["up"].intervals() == [(5.0, 7.0)]
    assert config.links["down"].capacity(tmp_path).mean_bps == pytest.approx(30e6)
    assert config.routes[0].backward == ()
    assert config.folder == str(tmp_path)
    as_json = tmp_path / "net.json"
    as_json.write_bytes(msgspec.json.encode(config))
    assert load_config(as_json) == config


@pytest.mark.parametrize(
    ("text", "where", "problem"),
    [
        ("routes: []", "routes", "length >= 1"),
        ("links: {}", "", "expected a field 'routes'"),
        ("routes: [{to: {port: 99999}}]", "routes[0].to.port", "<= 65535"),
        ("routes: [{to: {port: 0}}]", "routes[0].to.port", "from 1 on"),
        ("routes: [{to: {port: 1}, forward: [x]}]", "routes[0].forward[0]", "got 'x'"),
        ("{links: {a: {rate: 1}}, routes: [{to: {port: 1}}]}", "links.a", "field 'rate'"),
        ("{links: {a: {delay: -1}}, routes: [{to: {port: 1}}]}", "links.a.delay", ">= 0"),
        ("{links: {[1]: {}}, routes: [{to: {port: 1}}]}", "", "not YAML"),
        ("{", "", "not YAML"),
        ("", "", "expected a mapping"),
    ],
)
def test_bad_config(tmp_path: Path, text: str, where: str, problem: str) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        load_config(path)
    assert caught.value.path == where
    assert problem in str(caught.value)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "link",
    [
        LinkSettings(rate_mbps=1, trace=WifiTrace(mean_mbps=1)),
        LinkSettings(trace=FileTrace(path="none")),
        LinkSettings(outages=(Outage(at=1, duration=float("inf")),)),
    ],
)
def test_a_bad_link_is_named_before_anything_listens(link: LinkSettings) -> None:
    with pytest.raises(BadInput, match=r"links\.bad: "):
        Relay(one_route(Address("h", 1), {"bad": link}))


@pytest.mark.parametrize(
    "change", [LinkChange(delay=float("inf")), LinkChange(trace=FileTrace(path="none"))]
)
def test_a_bad_event_is_named_before_anything_listens(change: LinkChange) -> None:
    events = (LinkEvent(at=1.0, link="a", set=change),)
    with pytest.raises(BadInput, match=r"events\[0\]\.set: "):
        Relay(one_route(Address("h", 1), {"a": LinkSettings()}, events=events))


async def test_timers_fire_in_order_and_can_be_cancelled() -> None:
    timers = Timers(asyncio.get_running_loop())
    fired: list[str] = []
    done = asyncio.Event()
    zero = time.monotonic()
    try:
        late = timers.at(zero + 0.02, lambda now: done.set())
        timers.at(zero + 0.01, lambda now: fired.append("second"))
        timers.at(zero + 0.005, lambda now: fired.append("cancelled")).cancel()
        timers.at(zero - 1.0, lambda now: fired.append("first"))
        timers.at(float("inf"), lambda now: fired.append("never"))
        timers.at(zero + 0.01, lambda now: timers.at(now, lambda _: fired.append("third")) and None)
        async with asyncio.timeout(PATIENCE_S):
            await done.wait()
        assert time.monotonic() >= late.when
    finally:
        timers.close()
    assert fired == ["first", "second", "third"]


def _run(config: RelayConfig, ports: Connection) -> None:
    run(Relay(config), ports.send)


@contextlib.contextmanager
def relay_process(config: RelayConfig) -> Iterator[tuple[SpawnProcess, list[dict[str, Any]]]]:
    """A relay as it is deployed, on uvloop, and its routes; whoever uses it must end it."""
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    process = context.Process(target=_run, args=(config, other))
    process.start()
    try:
        assert mine.poll(PATIENCE_S)
        yield process, mine.recv()["routes"]
        process.join(PATIENCE_S)
    finally:
        process.kill()
        process.join()
        process.close()
        mine.close()
        other.close()


async def exchange(port: int, data: bytes) -> bytes:
    """Send ``data`` and an end; all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def signalled(process: SpawnProcess, number: signal.Signals) -> int | None:
    """Send a signal; the exit code."""
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(PATIENCE_S)
    return process.exitcode


@pytest.mark.system
def test_the_process_ends_cleanly_in_mid_transfer(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        config = one_route(Address(*target.getsockname()), {"a": LinkSettings(rate_mbps=1)})
        with relay_process(config) as (process, routes):
            listen = (routes[0]["listen"]["host"], routes[0]["listen"]["port"])
            with socket.create_connection(listen) as client:
                client.sendall(bytes(100_000))
                accepted, _ = target.accept()
                with accepted:
                    assert accepted.recv(1) == b"\0"
                    assert signalled(process, signal.SIGTERM) == 0
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(listen)
    assert capfd.readouterr().err == ""


@pytest.mark.system
async def test_the_process_carries_bytes_ends_and_resets(capfd: pytest.CaptureFixture[str]) -> None:
    """What the tests above see on asyncio's own loop, on uvloop."""
    data = random.Random(2).randbytes(2_000_003)
    links = {"a": LinkSettings(rate_mbps=300, delay=0.003), "b": LinkSettings()}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with server(echo) as to:
            route = Route(to=to, forward=("a", "b"), backward=("b",))
            refused = Route(to=Address(*taken.getsockname()), forward=("a",))
            config = RelayConfig(links=links, routes=(route, refused))
            with relay_process(config) as (process, routes):
                port = [r["listen"]["port"] for r in routes]
                async with asyncio.timeout(PATIENCE_S):
                    assert await exchange(port[0], data) == data
                    with pytest.raises(ConnectionResetError):  # maybe while still connecting
                        await exchange(port[1], b"?")
                assert signalled(process, signal.SIGINT) == 0
    assert capfd.readouterr().err == ""


def test_the_example_in_the_document_prints_what_it_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (Path(__file__).parent.parent / "docs" / "network.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(code, "docs/network.md", "exec"), {"__name__": "example"})
    _, *said = capsys.readouterr().out.splitlines()
    assert said == re.findall(r"\)  # (\S+)$", code, re.M) != []
