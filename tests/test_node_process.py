"""``edgewise node`` as a process: its line of JSON, its errors, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from edgewise.live.wire.open_inference import encode_request

pytestmark = pytest.mark.system

PATIENCE = 60.0
SLOW = """
name: slow
executor: replay
servers:
  a: {services: [{model: m, accuracy: 0.6, latency: [0.5], input_size: 96}]}
workload:
  duration: 1
  arrivals: {kind: poisson, rate: 1}
  ingress: {a: 1}
  demands: [{deadline: 5.0}]
  payload: {kind: lognormal, median_bytes: 1000}
"""


@contextlib.asynccontextmanager
async def node(folder: Path, scenario: str = SLOW, config: str = "") -> AsyncIterator[Process]:
    (folder / "scenario.yaml").write_text(scenario)
    (folder / "a.yaml").write_text(f"scenario: scenario.yaml\nserver: a\n{config}")
    command = (sys.executable, "-m", "edgewise", "node", str(folder / "a.yaml"))
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def ready(process: Process) -> str:
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), PATIENCE)
    message = json.loads(line)
    assert message["ready"]["node"] == "a"
    return str(message["ready"]["url"])


async def test_sigterm_finishes_the_requests_in_flight(tmp_path: Path) -> None:
    async with node(tmp_path) as process, aiohttp.ClientSession() as client:
        url = await ready(process)
        headers, body = encode_request(b"photo")

        async def post() -> int:
            path = url + "/v2/models/m/infer"
            async with client.post(path, data=body, headers=headers) as response:
                return response.status

        async def in_flight() -> bool:
            async with client.get(url + "/v1/report") as response:
                return bool((await response.json())["running"])

        posting = asyncio.create_task(post())
        async with asyncio.timeout(PATIENCE):
            while not await in_flight():
                pass
            process.send_signal(signal.SIGTERM)
            assert await posting == 200
            out, err = await process.communicate()
    assert process.returncode == 0
    assert out == b""
    assert b"draining: 1 requests" in err
    assert b"Traceback" not in err


async def test_a_missing_balancer_is_logged_once_and_the_node_serves(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with node(tmp_path, config=f"balancer: {address}") as process:
        url = await ready(process)
        headers, body = encode_request(b"photo")
        async with (
            aiohttp.ClientSession() as client,
            client.post(
                url + "/v2/models/imagenet-1k/infer", data=body, headers=headers
            ) as response,
        ):
            assert response.status == 200
        process.terminate()
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0
    assert err.count(b"no balancer at " + address.encode()) == 1  # once, not at every attempt
    assert b"Traceback" not in err


async def refused(process: Process) -> str:
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 2
    assert out == b""
    assert b"Traceback" not in err
    return " ".join(err.decode().split())


async def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        async with node(tmp_path, config=f"listen: {{port: {port}}}") as process:
            assert f"cannot listen on 127.0.0.1:{port}" in await refused(process)


async def test_a_missing_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    real = (
        SLOW.replace("executor: replay", "executor: onnx")
        .replace("{model: m, accuracy: 0.6, latency: [0.5], input_size: 96}", "lite0-96")
        .replace("  payload: {kind: lognormal, median_bytes: 1000}\n", "")
    )
    async with node(tmp_path, real) as process:
        assert "lite0-96 is not prepared" in await refused(process)


async def test_an_unknown_field(tmp_path: Path) -> None:
    async with node(tmp_path, config="colour: red") as process:
        assert "colour" in await refused(process)
