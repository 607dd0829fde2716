"""Processes within one event loop on virtual time: they can be stopped, continued and killed.

Every callback of an event loop runs in a context (`contextvars`), which tasks hand on to what they
start. A `Process` is a context with a name: whatever was started in it belongs to it. A stopped
process runs nothing, as after SIGSTOP: what was due waits, in order, until it continues. A killed
one never runs again, not even its ``finally`` blocks, as after SIGKILL. What belongs to no process,
such as the network, always runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import Any

from edgewise.testing.virtual_loop import Timer, VirtualLoop

_OWNER: ContextVar[Process | None] = ContextVar("owner", default=None)


def current_process() -> Process | None:
    """The process whose code runs now; None: it belongs to none."""
    return _OWNER.get()


class Process:
    """One life of a program: a restarted program is another process of the same name.

    Parameters
    ----------
    number:
        Counts the lives of the program, from 1.
    """

    def __init__(self, name: str, number: int = 1) -> None:
        self.name, self.number = name, number
        self.alive = True
        """False once it was killed or has ended."""
        self.stopped = False
        self._context = Context()
        self._context.run(_OWNER.set, self)
        self._waiting: list[asyncio.Handle] = []

    def __repr__(self) -> str:
        return f"{self.name}#{self.number}"

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine in this process."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    def stop(self) -> None:
        """Run nothing until `go_on`. Idempotent."""
        self.stopped = True

    def go_on(self) -> None:
        """Run what was due meanwhile, and go on. Idempotent."""
        self.stopped = False
        if self.alive:
            waiting, self._waiting = self._waiting, []
            asyncio.get_running_loop()._ready.extend(waiting)  # type: ignore[attr-defined]

    def kill(self) -> None:
        """Never run anything of it again."""
        self.alive, self.stopped = False, True

    def clean_up(self) -> None:
        """Let a killed process run, so that its tasks can be cancelled when the loop is closed."""
        self.stopped = False
        asyncio.get_running_loop()._ready.extend(self._waiting)  # type: ignore[attr-defined]
        self._waiting = []

    def put_off(self, handle: asyncio.Handle) -> None:
        """Keep what was due while the process is stopped. Of a killed one it is kept too, so that
        no garbage collector runs its ``finally`` blocks at some moment of the run."""
        self._waiting.append(handle)


def _run_or_wait(handle: asyncio.Handle, run: Callable[[], None]) -> None:
    owner = handle._context.get(_OWNER)  # type: ignore[attr-defined]
    if owner is None or not owner.stopped:
        run()
    else:
        owner.put_off(handle)


class _Handle(asyncio.Handle):
    __slots__ = ()

    def _run(self) -> None:
        _run_or_wait(self, super()._run)


class _Timer(Timer):
    __slots__ = ()

    def _run(self) -> None:
        _run_or_wait(self, super()._run)


class ProcessLoop(VirtualLoop):
    """A `VirtualLoop` that heeds which process a callback belongs to."""

    timer = _Timer

    def __init__(self) -> None:
        super().__init__()
        # Not weak: a killed process's tasks must not be collected before the end.
        self._owners: dict[asyncio.Task[Any], Process] = {}

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None
    ) -> asyncio.Task[Any]:
        task = super().create_task(coro, name=name, context=context)
        owner = current_process() if context is None else context.get(_OWNER)
        if owner is not None:
            self._owners[task] = owner
        return task

    def tasks_of(self, process: Process) -> list[asyncio.Task[Any]]:
        """The tasks of a process that have not ended."""
        self._owners = {task: owner for task, owner in self._owners.items() if not task.done()}
        return [task for task, owner in self._owners.items() if owner is process]

    def _call_soon(
        self, callback: Callable[..., object], args: Any, context: Context | None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle


NOBODY = Context()
"""The context of what belongs to no process."""
