"""Shared by the tests with real containers: the engine, a fleet by deploy/fleet.sh, and photos."""

from __future__ import annotations

import asyncio
import collections
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from edgewise.domain import Request
from edgewise.live.wire.open_inference import InferAnswer, decode_answer, encode_request
from edgewise.live.wire.request_metadata import to_headers
from edgewise.security.identity import Credentials, Role, node
from edgewise.tasks.imagenet.images import load_images

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
BUILD = "EDGEWISE_TEST_IMAGE" not in os.environ
"""Whether to build the image; otherwise the one named there is tested, which saves minutes."""
IMAGE = os.environ.get("EDGEWISE_TEST_IMAGE", "localhost/edgewise-test:latest")
ENGINE = "podman"
"""Installed by deploy/install-podman.sh; docs/deploy.md has what differs with docker."""
ENVIRONMENT = {**os.environ, "EDGEWISE_ENGINE": ENGINE}
if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
    ENVIRONMENT.setdefault("CONTAINERS_CONF", str(DEPLOY / "podman" / "containers.conf"))


def run(*command: str | Path, timeout: float = 120.0, **environment: str) -> str:
    """Run a command; returns its stdout. AssertionError with all its output if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**ENVIRONMENT, **environment},
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def engine(*arguments: str, timeout: float = 60.0) -> str:
    return run(ENGINE, *arguments, timeout=timeout).strip()


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    for _ in range(100):
        first = 20_000 + secrets.randbelow(10_000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no ports in a row are free")


def left_behind(word: str) -> list[str]:
    """Containers and networks whose name has `word` in it."""
    names = engine("ps", "--all", "--format", "{{.Names}}").splitlines()
    names += engine("network", "ls", "--format", "{{.Name}}").splitlines()
    return [name for name in names if word in name]


def remove_strays() -> None:
    """Remove what a killed test session left behind: it holds ports and CPU.

    Everything the tests start is on a network of its own, and goes with it.
    """
    for network in engine("network", "ls", "--format", "{{.Name}}").splitlines():
        if re.match(r"edgewise(-t[0-9a-f]{6}$|test_|-kube-)", network):
            engine("network", "rm", "--force", network)


def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for something outside of this process; AssertionError if it does not happen."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(0.1)


class Fleet:
    """A fleet by deploy/fleet.sh."""

    def __init__(self, folder: Path, *options: str, ports: int = 20) -> None:
        self.name = f"t{secrets.token_hex(3)}"
        self.state = folder / "state"
        self.port = free_ports(ports)
        self._options = ("--port", str(self.port), "--image", IMAGE, *options)
        self.output = ""
        """Output of the last `up`."""
        self.ingress: dict[str, str] = {}

    def script(self, *words: str) -> str:
        return run(
            DEPLOY / "fleet.sh",
            *words,
            "--name",
            self.name,
            timeout=300,
            XDG_STATE_HOME=str(self.state),
        )

    def up(self, *options: str) -> None:
        self.output = self.script("up", *self._options, *options)
        lines = [line.split() for line in self.output.splitlines() if "https://" in line]
        self.ingress = {
            line[0]: line[1] for line in lines if line[0] not in ("balancer", "relay", "photos:")
        }

    def down(self) -> None:
        self.script("down")

    def container(self, process: str) -> str:
        return f"edgewise-{self.name}-{process}"

    def container_ids(self) -> dict[str, str]:
        """Id of each container; a container that was replaced has another."""
        listed = engine("ps", "--filter", f"label=edgewise.fleet={self.name}", "--format",
                        "{{.Names}} {{.ID}}")  # fmt: skip
        return dict(line.split() for line in listed.splitlines())

    @property
    def balancer(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def identity(self, who: str) -> Path:
        """The folder of an identity."""
        return self.state / "edgewise" / self.name / "edgewise-keys" / who

    def as_operator(self) -> list[str]:
        """Options of curl."""
        return as_operator(self.identity("operator"))

    def fetched(self, url: str) -> Any:
        """JSON of an operator's GET, also of a refusal (503 of /readyz)."""
        command = ("curl", "--silent", "--max-time", "10", *self.as_operator(), url)
        return msgspec.json.decode(run(*command))


class Reply(msgspec.Struct):
    """The answer to one request, at the client."""

    request: Request
    label: int
    answer: InferAnswer | None
    """None: the connection broke."""
    at: float = 0.0


class Photos:
    """Sends the built-in photos to a fleet, from outside, all at the same time."""

    def __init__(self) -> None:
        self._photos = [(image.label, image.read()) for image in load_images("builtin")]
        self.answers: collections.Counter[str] = collections.Counter()
        """Answers by request id."""

    async def send(
        self,
        fleet: Fleet,
        plan: Sequence[tuple[str, float]],
        deadline: float,
        meanwhile: Callable[[], Any] | None = None,
    ) -> list[Reply]:
        """One request for each (ingress, accuracy demanded); `meanwhile` runs in a thread."""
        who = Credentials(fleet.identity("evaluator"), (Role.EVALUATOR,))
        timeout = aiohttp.ClientTimeout(total=2 * deadline + 10)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            sending = [
                asyncio.create_task(self._one(session, fleet, who, number, *each, deadline))
                for number, each in enumerate(plan)
            ]
            if meanwhile is not None:
                await asyncio.to_thread(meanwhile)
            return list(await asyncio.gather(*sending))

    async def _one(
        self,
        session: aiohttp.ClientSession,
        fleet: Fleet,
        who: Credentials,
        number: int,
        ingress: str,
        accuracy: float,
        deadline: float,
    ) -> Reply:
        label, photo = self._photos[number % len(self._photos)]
        headers, body = encode_request(photo)
        request = Request(
            id=secrets.token_hex(8),
            ingress=ingress,
            payload_bytes=len(body),
            sent_at=time.time(),
            deadline=deadline,
            accuracy=accuracy,
        )
        url = f"{fleet.ingress[ingress]}/v2/models/{request.task}/infer"
        headers |= to_headers(request, time.time())
        try:
            async with session.post(
                url, data=body, headers=headers, **who.calls(node(ingress))
            ) as response:
                answer = decode_answer(request.id, response.status, await response.read())
        except (aiohttp.ClientError, OSError):
            return Reply(request, label, None, time.monotonic())
        self.answers[request.id] += 1
        return Reply(request, label, answer, time.monotonic())


def needs(program: str) -> str:
    found = shutil.which(program)
    assert found, f"{program} is not installed"
    return found


def as_operator(keys: Path) -> list[str]:
    """Options of curl that show the identity in `keys`."""
    files = (("--cacert", "ca.crt"), ("--cert", "tls.crt"), ("--key", "tls.key"))
    return [word for option, file in files for word in (option, str(keys / file))]
