"""Where an ingress gets its commands: from the balancer, or from its own local decider.

A command and the headers of its request arrive in either order. A client's metadata may have made
the balancer decide before the photo's headers are in; that command waits here. Otherwise the node
asks. If no answer comes within a share of the deadline (`DECISION_PATIENCE`), the node decides for
itself, with the policy that the balancer would have used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec import Struct

from edgewise.domain import Candidate, Command, Request
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
    """A command, who gave it, and when it was here."""

    command: Command
    decider: str
    """`monitor.BALANCER` or this node's name."""
    at: float

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The servers and models to try, best first; empty: shed."""
        command = self.command
        if command.server is None or command.model is None:
            return ()
        return (
            Candidate(command.server, command.model, command.form),
            *command.alternatives,
        )

    def may_run(self, request: Request) -> bool:
        """Whether all its candidates are of the model that the request names, if it names one."""
        names = {candidate.model for candidate in self.candidates}
        return request.named_model is None or names <= {request.named_model}


class CommandSource:
    """The commands for the requests of one ingress.

    Parameters
    ----------
    local_decider:
        Decides where no balancer does.
    """

    def __init__(
        self, server: str, clock: Clock, monitor: Monitor, local_decider: LocalDecider
    ) -> None:
        self._local_decider = local_decider
        self._server = server
        self._clock = clock
        self._monitor = monitor
        self._channel: ControlChannel | None = None
        self._early: dict[str, ReceivedCommand] = {}
        self._waiting: dict[str, asyncio.Future[ReceivedCommand]] = {}

    def use(self, channel: ControlChannel) -> None:
        """Ask the balancer at the other end of `channel` from now on."""
        self._channel = channel

    @property
    def connected(self) -> bool:
        """Whether a balancer decides."""
        return self._channel is not None and self._channel.connected

    def on_command(self, command: Command) -> None:
        """Take a command of the balancer: for whoever waits for it, or for later."""
        now = self._clock.now()
        seen = self._monitor.seen(BALANCER)
        seen.commands = max(seen.commands, command.sequence)
        received = ReceivedCommand(command=command, decider=BALANCER, at=now)
        future = self._waiting.get(command.request)
        if future is not None:
            if not future.done():
                seen.held.add(command.sequence)  # at once: the next report may come first
                future.set_result(received)
            return
        self._early[command.request] = received
        while self._early:
            oldest = next(iter(self._early))
            if len(self._early) <= EARLY_MAX and now - self._early[oldest].at <= EARLY_AGE:
                break
            del self._early[oldest]

    async def command_for(
        self, request: Request, uploaded: Callable[[], float | None]
    ) -> ReceivedCommand:
        """The command for a request whose headers are in; call `finished` when that has ended.

        `uploaded()` is when its body was in, None while it is still coming.
        """
        received = self._early.pop(request.id, None)
        if received is not None:
            self._monitor.seen(received.decider).held.add(received.command.sequence)
        else:
            received = await self._ask(request, uploaded)
        if received is not None and not received.may_run(request):
            self.finished(received)  # decided on metadata that named no model, or another one
            received = None
        return received or self._decide(request, uploaded())

    def finished(self, received: ReceivedCommand) -> None:
        """The request of a command is no longer under way here."""
        self._monitor.seen(received.decider).held.discard(received.command.sequence)

    async def _ask(
        self, request: Request, uploaded: Callable[[], float | None]
    ) -> ReceivedCommand | None:
        """The balancer's command; None if it does not answer in time, or cannot be reached."""
        channel = self._channel
        if channel is None or not channel.connected:
            return None
        slack = request.slack(self._clock.now())
        patience = min(DECISION_PATIENCE * request.deadline, max(0.0, slack))
        future: asyncio.Future[ReceivedCommand] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        received = None
        try:
            if channel.send(Ask(request=request, uploaded=uploaded())):
                async with asyncio.timeout(patience):
                    received = await future
        except TimeoutError:
            pass
        finally:
            del self._waiting[request.id]
            if received is None and future.done() and not future.cancelled():
                self.finished(future.result())  # it came too late to be used
        return received

    def _decide(self, request: Request, uploaded: float | None) -> ReceivedCommand:
        now = self._clock.now()
        # Reports go out on their period; this decision rests on the state at this very moment.
        self._local_decider.on_own_report(self._monitor.report(now, self._server), now)
        command = self._local_decider.decide(request, now, uploaded)
        seen = self._monitor.seen(self._server)
        seen.commands = command.sequence
        seen.held.add(command.sequence)
        return ReceivedCommand(command=command, decider=self._server, at=now)
