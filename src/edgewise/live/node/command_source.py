"""Commands meet requests: whichever comes first waits for the other.

The client's metadata may have caused a command before the headers of its photo are in; then no
question is asked. Otherwise the node asks, and if no answer comes within a share of the deadline it
decides by itself, with the policy the balancer would have used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import Struct

from edgewise.domain import Command, Request
from edgewise.fleet.timeouts import DECISION_PATIENCE
from edgewise.live.clock import Clock
from edgewise.live.node.control_channel import ControlChannel
from edgewise.live.node.local_decider import LocalDecider
from edgewise.live.node.monitor import BALANCER, Monitor
from edgewise.live.wire.messages import Ask

EARLY_MAX = 4096
"""Commands kept for requests whose headers are not in. Seconds of traffic, 2 MB at most."""
EARLY_AGE = 30.0
"""s after which such a command is dropped: its request was lost, or went to another ingress."""


class ReceivedCommand(Struct, frozen=True, kw_only=True):
    """A command, and whose it is."""

    command: Command
    decider: str
    """`monitor.BALANCER` or this node's name."""
    at: float


class CommandSource:
    """Commands for this ingress, from the balancer or from itself.

    Parameters
    ----------
    alone:
        Decides where no balancer does.
    """

    def __init__(self, server: str, clock: Clock, monitor: Monitor, alone: LocalDecider) -> None:
        self.alone = alone
        self._server = server
        self._clock = clock
        self._monitor = monitor
        self._channel: ControlChannel | None = None
        self._early: dict[str, ReceivedCommand] = {}
        self._waiting: dict[str, asyncio.Future[ReceivedCommand]] = {}

    def use(self, channel: ControlChannel) -> None:
        """Ask over `channel` from now on."""
        self._channel = channel

    @property
    def attached(self) -> bool:
        """Whether a balancer decides."""
        return self._channel is not None and self._channel.connected

    def on_command(self, command: Command) -> None:
        """The balancer sent one."""
        now = self._clock.now()
        seen = self._monitor.seen(BALANCER)
        seen.commands = max(seen.commands, command.sequence)
        decided = ReceivedCommand(command=command, decider=BALANCER, at=now)
        future = self._waiting.get(command.request)
        if future is not None:
            if not future.done():
                future.set_result(decided)
            return
        self._early[command.request] = decided
        while self._early:
            oldest = next(iter(self._early))
            if len(self._early) <= EARLY_MAX and now - self._early[oldest].at <= EARLY_AGE:
                break
            del self._early[oldest]

    async def decide(
        self, request: Request, uploaded: Callable[[], float | None]
    ) -> ReceivedCommand:
        """What to do with a request whose headers are in; `uploaded()` when its body was, if so."""
        early = self._early.pop(request.id, None)
        if early is not None:
            return early
        now = self._clock.now()
        if self._channel is not None and self._channel.connected:
            future: asyncio.Future[ReceivedCommand] = asyncio.get_running_loop().create_future()
            self._waiting[request.id] = future
            try:
                if self._channel.send(Ask(request=request, uploaded=uploaded())):
                    patience = min(
                        DECISION_PATIENCE * request.deadline, max(0.0, request.slack(now))
                    )
                    async with asyncio.timeout(patience):
                        return await future
            except TimeoutError:
                pass
            finally:
                del self._waiting[request.id]
        now = self._clock.now()
        # Reports go out on their period; a decision of ours rests on this very moment.
        self.alone.on_own_report(self._monitor.report(now, self._server), now)
        command = self.alone.decide(request, now, uploaded())
        self._monitor.seen(self._server).commands = command.sequence
        return ReceivedCommand(command=command, decider=self._server, at=now)
