"""Child processes of a launcher: started, awaited until ready, watched, and stopped for certain.

Each child leads a process group of its own: a Ctrl-C on the terminal reaches only the launcher,
which then stops everything in order, and a child's own children are stopped with it. Each child
dies with the launcher, however that ends (`edgewise.live.run.die_with_parent`).

A child reports to its launcher in JSON lines on stdout; the first one says that it listens:
``{"ready": {"node": "plaza", "url": "http://127.0.0.1:8001"}}``. Everything else it prints goes
into its log, the end of which is part of any error about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from edgewise.errors import PeerError
from edgewise.live.run import die_with_parent

READY_TIMEOUT = 120.0
"""s. A first start compiles the belief (tens of seconds on a busy two-core machine)."""
STOP_GRACE = 8.0
"""s between SIGTERM and SIGKILL: writing a long run's Parquet files takes a second or two."""
LINE_MAX = 1 << 20
"""bytes of a line on a child's stdout, at most."""
TAIL_LINES = 12
"""Lines of a log in an error: the end of a traceback, without its beginning."""

OnMessage = Callable[[str, Any], None]
"""Called with the one key and the value of a JSON line other than ``ready``."""


class ChildProcess:
    """One child. `start` it, await `ready`, and `stop` it (or several with `stop_all`).

    Parameters
    ----------
    name:
        In messages.
    arguments:
        Of ``edgewise``.
    log:
        File that its output is appended to.
    """

    def __init__(self, name: str, arguments: Iterable[str], log: Path) -> None:
        self.name = name
        self.log = log
        self.greeting: dict[str, Any] = {}
        """Its ``ready`` line: ``{"node": name, "url": …}``."""
        self.on_message: OnMessage = lambda key, value: None
        self.stopping = False
        """True when it is ended on purpose: its end is no failure then."""
        self._arguments = tuple(arguments)
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Event = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Raises RuntimeError before `start`."""
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; −N if signal N killed it."""
        return None if self._process is None else self._process.returncode

    def command(self) -> list[str]:
        """The command line of `start`."""
        return [sys.executable, "-m", "edgewise", *self._arguments]

    def environment(self) -> dict[str, str]:
        """The environment of `start`."""
        return dict(os.environ)

    async def start(self) -> None:
        """Run ``edgewise ARGUMENTS``."""
        wrapper = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *wrapper,
                *self.command(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                limit=LINE_MAX,
                # Its log is read while it runs.
                env={**self.environment(), "PYTHONUNBUFFERED": "1"},
            )
        self._listening = asyncio.Event()
        self._reader = asyncio.create_task(self._read(self._process))

    async def ready(self, patience: float = READY_TIMEOUT) -> dict[str, Any]:
        """Wait until it listens; returns its greeting.

        Raises PeerError with the end of its log if it ended, or took longer than `patience` s.
        """
        ended = asyncio.create_task(self.wait())
        listening = asyncio.create_task(self._listening.wait())
        try:
            async with asyncio.timeout(patience):
                await asyncio.wait((ended, listening), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            raise PeerError(
                f"{self.name} was not ready after {patience:g} s{self.tail()}"
            ) from None
        finally:
            ended.cancel()
            listening.cancel()
        if not self._listening.is_set():
            raise PeerError(f"{self.describe_end()} before it was ready{self.tail()}")
        return self.greeting

    async def wait(self) -> int:
        """Wait until it has ended and all its output has been read; returns its exit code."""
        assert self._process is not None
        assert self._reader is not None
        code = await self._process.wait()
        await asyncio.shield(self._reader)
        return code

    async def send_line(self, line: str) -> None:
        """Write a line to its stdin; nothing happens if the child is gone."""
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()

    def signal(self, number: int) -> None:
        """Send a signal to its process group, if that still exists."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def kill(self) -> None:
        """End it with SIGKILL, as a power cut would, and wait for the end."""
        self.stopping = True
        self.signal(signal.SIGKILL)
        await self.wait()

    async def pause(self) -> None:
        """Stop its execution (SIGSTOP); its connections stay open."""
        self.signal(signal.SIGSTOP)

    async def resume(self) -> None:
        """Continue after `pause` (SIGCONT)."""
        self.signal(signal.SIGCONT)

    async def stop(self, grace: float = STOP_GRACE) -> None:
        """End it with SIGTERM, after `grace` s with SIGKILL; nothing if it never started."""
        self.stopping = True
        if self._process is None:
            return
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            # Also when it has ended: there may be others left in its group.
            self.signal(signal.SIGKILL)
        await self.wait()

    def describe_end(self) -> str:
        """``node plaza ended with exit code 2``."""
        code = self.returncode
        if code is None:
            return f"{self.name} is running"
        if code < 0:
            return f"{self.name} was ended by {signal.Signals(-code).name}"
        return f"{self.name} ended with exit code {code}"

    def tail(self) -> str:
        """The end of its log, for an error."""
        try:
            lines = self.log.read_text("utf-8", "replace").splitlines()
        except OSError:
            return ""
        lines = [line for line in lines if line.strip()][-TAIL_LINES:]
        if not lines:
            return f" (its log, {self.log}, is empty)"
        return f"; the end of {self.log}:\n" + "\n".join(f"    {line}" for line in lines)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with self.log.open("ab", buffering=0) as log:
            async for line in process.stdout:
                try:
                    message = msgspec.json.decode(line)
                except msgspec.DecodeError:
                    message = None
                if not isinstance(message, dict) or len(message) != 1:
                    log.write(line)
                    continue
                ((key, value),) = message.items()
                if key == "ready":
                    log.write(line)
                    self.greeting = value if isinstance(value, dict) else {}
                    self._listening.set()
                else:
                    self.on_message(key, value)


async def stop_all(processes: Iterable[ChildProcess], grace: float = STOP_GRACE) -> None:
    """Stop several at the same time; returns when all have ended."""
    await asyncio.gather(*(process.stop(grace) for process in processes))


class FreePorts:
    """Gives ports on which nobody listens now, each once.

    They are below the kernel's range for outgoing connections (32768 on), or one of those might
    take a port before its process listens on it. The first port is random, so that two launchers on
    one machine rarely collide.
    """

    LOW, HIGH = 20_000, 32_000

    def __init__(self, rng: random.Random | None = None) -> None:
        self._next = (rng or random.Random()).randrange(self.LOW, self.HIGH)

    def __call__(self) -> int:
        """Raises PeerError if none is free."""
        for _ in range(self.HIGH - self.LOW):
            port = self._next
            self._next = self.LOW + (port + 1 - self.LOW) % (self.HIGH - self.LOW)
            with socket.socket() as probe:
                # As servers set it, so that a port in TIME_WAIT counts as free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            return port
        raise PeerError(f"no port between {self.LOW} and {self.HIGH} is free")
