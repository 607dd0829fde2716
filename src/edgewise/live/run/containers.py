"""A run whose balancer, relay and servers are containers on a private network; the client is not.

Theory of operation
-------------------
Containers differ from processes in how they are started, stopped and named (`Platform`), and in
nothing else: the configuration files are the same but for host names (`fleet_configs`), and so are
the ready line on stdout and the log. ``docker run`` or ``podman run`` stays in the foreground as
the launcher's child, so a container's end is noticed as a process's is. Every port is published on
127.0.0.1 under its own number, where client and launcher, which are outside, find it.

Never: a container or network that outlives the launcher. An engine's containers are nobody's
children, so a small shell process waits at the end of a pipe that only the launcher holds: when
that closes, however the launcher ended, it removes everything with the run's label.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgewise.errors import BadInput, PeerError
from edgewise.live.run.fleet_configs import Hosts
from edgewise.live.run.platforms import LocalPlatform, display_name
from edgewise.live.run.processes import ChildProcess
from edgewise.scenario import FileTrace, Scenario

DEFAULT_IMAGE = "localhost/edgewise:latest"
"""The name that `deploy/image.sh` gives it."""
ASK_TIMEOUT = 20.0
"""s for an engine to answer at all; a docker without its daemon answers at once."""
ENGINE_TIMEOUT = 60.0
"""s for an engine to remove a run's containers and network: ten take a few seconds."""
LABEL = "edgewise.run"
IMAGE_USER = 10001
"""User and group of the image's processes."""
# Debian 12's podman picks crun, which fails on hybrid cgroups, and raises limits, which needs
# CAP_SYS_RESOURCE (deploy/podman/containers.conf).
PODMAN_CONF = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
"""


class ContainerEngine:
    """docker or podman, with the image to run.

    Raises BadInput if there is neither, or it has no such image.
    """

    def __init__(self, folder: Path, image: str = DEFAULT_IMAGE) -> None:
        self.image = image
        self.environment = dict(os.environ)
        self.command = _find_engine(self.environment.get("EDGEWISE_ENGINE", ""))
        self.podman = Path(self.command).name == "podman"
        hybrid = not Path("/sys/fs/cgroup/cgroup.controllers").exists()
        configured = "CONTAINERS_CONF" in self.environment
        if self.podman and hybrid and not configured and shutil.which("runc"):
            file = folder / "containers.conf"
            file.write_text(PODMAN_CONF, encoding="utf-8")
            self.environment["CONTAINERS_CONF"] = str(file)
        if _exit_code([self.command, "image", "inspect", image], self.environment) != 0:
            raise BadInput(
                f"there is no image {image} in {Path(self.command).name}; build it with "
                "deploy/image.sh"
            )

    async def run(self, *arguments: str) -> str:
        """Run a command of the engine; returns its output. Raises PeerError if it fails."""
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
                output, errors = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise PeerError(
                f"{shlex.join(arguments)[:80]}: not done after {ENGINE_TIMEOUT:g} s"
            ) from None
        if process.returncode != 0:
            lines = errors.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
            raise PeerError(f"{Path(self.command).name} {arguments[0]}: {lines[-1]}")
        return output.decode("utf-8", "replace")


class ContainerProcess(ChildProcess):
    """A child in a container. `options` are those of ``run``, `container` is its name.

    The engine's process passes SIGTERM on to it. If that process has to be killed,
    `ContainerPlatform.close` removes the container.
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
        """End the process in the container; the engine's own process alone would not."""
        self.stopping = True
        await self._engine.run("kill", "--signal", "KILL", self._container)
        await self.wait()
        # Its name must be free before it is started again.
        await self._engine.run("rm", "--force", "--volumes", self._container)

    async def pause(self) -> None:
        await self._engine.run("kill", "--signal", "STOP", self._container)

    async def resume(self) -> None:
        await self._engine.run("kill", "--signal", "CONT", self._container)


class ContainerPlatform(LocalPlatform):
    """Containers for the processes of one run; after `close` nothing of them is left."""

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
        self._keys: list[Path] = []
        """Folders of keys that a container reads as the image's user."""
        self._reaper: asyncio.subprocess.Process | None = None

    @property
    def hosts(self) -> Hosts | None:
        return lambda process: f"edgewise-{self._run}-{process}"

    def process(
        self,
        role: str,
        server: str,
        arguments: Sequence[str],
        log: Path,
        ports: Sequence[int],
        keys: Path | None = None,
    ) -> ChildProcess:
        """A process in a container, which has the host name that the others use."""
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
        if keys is not None:
            options += ["--volume", f"{keys}:{keys}:ro"]
        if writes or (keys is not None and os.getuid() != 0):
            # Its files should belong to the user, not to the image's user; and its key does.
            options += ["--user", f"{os.getuid()}:{os.getgid()}"]
            if self._engine.podman and os.getuid() != 0:
                options += ["--userns", "keep-id"]
        elif keys is not None:
            self._keys.append(keys)
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
        for keys in self._keys:
            for file in (keys, *keys.iterdir()):
                os.chown(file, IMAGE_USER, IMAGE_USER)
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


def _find_engine(wanted: str) -> str:
    """Path of the engine `wanted` by EDGEWISE_ENGINE, or of any if it is empty."""
    if wanted not in ("", "docker", "podman"):
        raise BadInput(f"EDGEWISE_ENGINE: expected docker or podman, got {wanted!r}")
    for name in (wanted,) if wanted else ("docker", "podman"):
        path = shutil.which(name)
        if path is None:
            continue
        # A docker without its daemon does not count.
        if name == "podman" or wanted or _exit_code([path, "info"], dict(os.environ)) == 0:
            return path
    raise BadInput(
        f"EDGEWISE_ENGINE: {wanted} is not installed"
        if wanted
        else "neither docker (with its daemon) nor podman is installed: deploy/install-podman.sh"
    )


def _exit_code(command: list[str], environment: dict[str, str]) -> int:
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
