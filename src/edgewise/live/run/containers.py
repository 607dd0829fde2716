"""A run whose balancer, relay and servers are containers on a private network; the client is not.

Theory of operation
-------------------
What differs from processes is how one is started, stopped and called (`Hosting`), nothing else: the
same configuration files, but for host names (`configs`), the same greeting on stdout, the same log.
`docker run` or `podman run` stays in the foreground as the launcher's child, so that a container's
end is seen as a process's is. Every port is published on 127.0.0.1 under its own number, so the
client, which sends photos from outside, and the launcher find everything where it always is.

What may never happen: a container or network outlives the launcher. An engine's containers are
nobody's children, so a small shell process waits at the end of a pipe that only the launcher holds:
when that closes, however the launcher ended, it removes whatever carries the run's label.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edgewise.errors import BadInput, PeerError
from edgewise.live.run.addresses import Addresses, assign_addresses
from edgewise.live.run.fleet_configs import Hosts
from edgewise.live.run.platforms import display_name
from edgewise.live.run.processes import ChildProcess
from edgewise.scenario import FileTrace, Scenario

DEFAULT_IMAGE = "localhost/edgewise:latest"
"""As `deploy/image.sh` calls it."""
ASK_TIMEOUT = 20.0
"""s for an engine to say whether it is there; a docker without its daemon answers at once."""
ENGINE_TIMEOUT = 60.0
"""s for an engine to remove a run's containers and network: ten take a few seconds."""
LABEL = "edgewise.run"
# Debian 12's podman picks crun, which fails on hybrid cgroups, and raises limits, which needs
# CAP_SYS_RESOURCE (deploy/podman/containers.conf).
PODMAN_CONF = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
"""


class ContainerEngine:
    """docker or podman.

    Raises BadInput if there is none, or it has no such image.
    """

    def __init__(self, folder: Path, image: str = DEFAULT_IMAGE) -> None:
        self.image = image
        self.environment = dict(os.environ)
        self.command = _find(self.environment.get("EDGEWISE_ENGINE", ""))
        self.podman = Path(self.command).name == "podman"
        hybrid = not Path("/sys/fs/cgroup/cgroup.controllers").exists()
        told = "CONTAINERS_CONF" in self.environment
        if self.podman and hybrid and not told and shutil.which("runc"):
            file = folder / "containers.conf"
            file.write_text(PODMAN_CONF, encoding="utf-8")
            self.environment["CONTAINERS_CONF"] = str(file)
        if self._ask("image", "inspect", image) != 0:
            raise BadInput(
                f"there is no image {image} in {Path(self.command).name}; build it with "
                "deploy/image.sh"
            )

    def _ask(self, *arguments: str) -> int:
        return _quiet([self.command, *arguments], self.environment)

    async def run(self, *arguments: str) -> str:
        """Run a command of the engine; returns what it says. Raises PeerError if it fails."""
        process = await asyncio.create_subprocess_exec(
            self.command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            start_new_session=True,  # a Ctrl-C is for the launcher alone
        )
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT):
                said, complaint = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise PeerError(
                f"{shlex.join(arguments)[:80]}: not done after {ENGINE_TIMEOUT:g} s"
            ) from None
        if process.returncode != 0:
            lines = complaint.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
            raise PeerError(f"{Path(self.command).name} {arguments[0]}: {lines[-1]}")
        return said.decode("utf-8", "replace")


class ContainerProcess(ChildProcess):
    """A child in a container. `options` are those of ``run``, `container` is its name.

    SIGTERM reaches it through the engine's process, which hands it on. Should that have to be
    killed, `ContainerPlatform.close` removes the container.
    """

    def __init__(
        self,
        name: str,
        arguments: Iterable[str],
        log: Path,
        engine: ContainerEngine,
        container: str,
        options: Sequence[str],
    ) -> None:
        super().__init__(name, arguments, log)
        self._engine, self._container = engine, container
        self._options = tuple(options)

    def command(self) -> list[str]:
        return [
            self._engine.command,
            *("run", "--rm", "--interactive", "--pull", "never", "--name", self._container),
            *self._options,
            self._engine.image,
            *self._arguments,
        ]

    def environment(self) -> dict[str, str]:
        return self._engine.environment

    async def kill(self) -> None:
        """SIGKILL to what is in the container: the engine's own process would survive it."""
        self.stopping = True
        await self._engine.run("kill", "--signal", "KILL", self._container)
        await self.wait()
        # Its name is to be free again before it is started anew.
        await self._engine.run("rm", "--force", "--volumes", self._container)

    async def pause(self) -> None:
        await self._engine.run("kill", "--signal", "STOP", self._container)

    async def resume(self) -> None:
        await self._engine.run("kill", "--signal", "CONT", self._container)


class ContainerPlatform:
    """How the parts of one run are hosted, as `launch.Deployment` asks for it.

    `open` before anything is started; after `close` nothing of the run is left.
    """

    def __init__(self, scenario: Scenario, folder: Path, image: str = DEFAULT_IMAGE) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder.absolute()
        self._engine = ContainerEngine(self._folder, image)
        self._run = secrets.token_hex(4)
        self._network = f"edgewise-{self._run}"
        self._traces = sorted(
            {
                str(Path(link.trace.path).absolute())
                for link in scenario.all_links().values()
                if isinstance(link.trace, FileTrace)
            }
        )
        self._reaper: asyncio.subprocess.Process | None = None

    @property
    def hosts(self) -> Hosts | None:
        return lambda process: f"edgewise-{self._run}-{process}"

    def assign_addresses(self, scenario: Scenario, free_port: Callable[[], int]) -> Addresses:
        return assign_addresses(scenario, free_port)

    def process(
        self, role: str, server: str, arguments: Sequence[str], log: Path, ports: Sequence[int]
    ) -> ChildProcess:
        """The container of a process, named as the others call it."""
        writes = role == "balancer"  # it records
        options = [
            *("--network", self._network, "--label", f"{LABEL}={self._run}"),
            *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges", "--stop-timeout", "15"),
            *("--volume", f"{self._folder}:{self._folder}:{'rw' if writes else 'ro'}"),
        ]
        for trace in self._traces:
            options += ["--volume", f"{trace}:{trace}:ro"]
        for port in ports:
            options += ["--publish", f"127.0.0.1:{port}:{port}"]
        if writes:
            # What it writes is to be the user's, not the image's user's.
            options += ["--user", f"{os.getuid()}:{os.getgid()}"]
            if self._engine.podman and os.getuid() != 0:
                options += ["--userns", "keep-id"]
        return ContainerProcess(
            display_name(role, server),
            arguments,
            log,
            self._engine,
            f"edgewise-{self._run}-{server}",
            options,
        )

    async def open(self) -> None:
        """Make the network. Raises PeerError."""
        engine = shlex.quote(self._engine.command)
        label = f"label={LABEL}={self._run}"
        network = shlex.quote(self._network)
        script = (
            "cat >/dev/null; "
            f"ids=$({engine} ps --all --quiet --filter {label}); "
            f'[ -z "$ids" ] || {engine} rm --force --volumes $ids; '
            f"{engine} network rm {network}"
        )
        self._reaper = await asyncio.create_subprocess_exec(
            *("sh", "-c", script),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=self._engine.environment,
            start_new_session=True,
        )
        await self._engine.run(
            *("network", "create", "--label", f"{LABEL}={self._run}", self._network)
        )

    async def close(self) -> None:
        """Remove everything. Raises PeerError if the engine does not manage in a minute."""
        reaper, self._reaper = self._reaper, None
        if reaper is None:
            return
        assert reaper.stdin is not None
        reaper.stdin.close()
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT):
                await reaper.wait()
        except TimeoutError:
            raise PeerError(
                f"the containers of {self._network} were not removed in {ENGINE_TIMEOUT:g} s"
            ) from None


def _find(wish: str) -> str:
    if wish not in ("", "docker", "podman"):
        raise BadInput(f"EDGEWISE_ENGINE: expected docker or podman, got {wish!r}")
    for name in (wish,) if wish else ("docker", "podman"):
        found = shutil.which(name)
        if found is None:
            continue
        # A docker without its daemon is not there.
        if name == "podman" or wish or _quiet([found, "info"], dict(os.environ)) == 0:
            return found
    raise BadInput(
        f"EDGEWISE_ENGINE: {wish} is not here"
        if wish
        else "neither docker (with its daemon) nor podman is here; deploy/install-podman.sh"
    )


def _quiet(command: list[str], environment: dict[str, str]) -> int:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=ASK_TIMEOUT,
            check=False,
        ).returncode
    except (OSError, subprocess.TimeoutExpired):
        return sys.maxsize
