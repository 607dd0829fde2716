"""Every process of a run on one machine: started in order, watched, and stopped for certain.

The order. The balancer first: what it compiles the others find compiled. Then all others; the
client reads its photos, says that it is ready and holds. When all are ready and the balancer sees
every node connected, time begins: the relay's clock and the client's start together, and with them
the scenario's failures.

Who is told what comes from `addresses`; with and without the emulator this is the same code.

What may never happen: a process outlives the launcher (`processes`), a process ends unnoticed, an
error without the log that explains it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgewise.domain import run_name
from edgewise.errors import MissingExtra, PeerError
from edgewise.live.records import RUN_SCENARIO
from edgewise.live.run.addresses import Addresses
from edgewise.live.run.fleet_configs import fleet_configs, ports, write_configs
from edgewise.live.run.platforms import LocalPlatform, Platform
from edgewise.live.run.processes import READY_TIMEOUT, ChildProcess, FreePorts, stop_all
from edgewise.network.control import RelayControl
from edgewise.scenario import DownFailure, MuteFailure, Scenario, dump, slowness
from edgewise.score import ScoreShape, worthless_after

try:
    import aiohttp
except ImportError as error:
    raise MissingExtra("live", error.name or "aiohttp") from error

LATEST = 30.0
"""s that a client may take after its last request; beyond the patience of any one request it is
stuck, and waiting longer would hide it."""
PATIENCE = 10.0
"""s after which a balancer that is not ready is not just slow to start but compiles."""
STATE_TIMEOUT = 2.0
"""s for the balancer's state: it answers in milliseconds, and a look may be missed."""

Say = Callable[[str], None]


class Deployment:
    """The processes of one run. Use it as ``async with Deployment(…) as deployment``.

    Entering starts everything and waits until it is ready; leaving stops it, whatever happened.

    Parameters
    ----------
    scenario:
        With its policy; written to `folder` as ``scenario.yaml``.
    folder:
        Of the run; made if it is not there.
    say:
        Called with a sentence for each thing that happens.
    with_client:
        Whether the client is started; without it there is a fleet to talk to, and no `run`.
    hosting:
        Where all but the client live; None: processes of this machine.

    Raises (on entering) PeerError with the end of the log of whatever did not come up.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        say: Say = lambda line: None,
        *,
        with_client: bool = True,
        hosting: Platform | None = None,
    ) -> None:
        self.scenario = scenario
        self.folder = folder.absolute()
        self._say = say
        self._with_client = with_client
        self._hosting: Platform = LocalPlatform() if hosting is None else hosting
        self.addresses: Addresses = self._hosting.assign_addresses(scenario, FreePorts())
        self._ports = ports(self.addresses)
        self.balancer = self._process("balancer", "balancer")
        self.nodes = {name: self._process("node", name) for name in scenario.server_names}
        self.relay = self._process("relay", "relay") if self.addresses.relay else None
        self.client = ChildProcess(
            "client",
            # The same ids under every policy: what replay draws by them is then the same too.
            ["client", "--hold", "--name", run_name(scenario.seed), self._config("client")],
            self._log("client"),
        )
        self.progress: dict[str, Any] = {}
        """What the client said last of how far it is."""
        self.client.messages = self._heard
        self._slow: dict[str, float] = {}
        """How much slower each server is now."""
        self._session: aiohttp.ClientSession | None = None
        self._control: RelayControl | None = None

    @property
    def processes(self) -> list[ChildProcess]:
        """All of them, in the order in which they start."""
        relay = [] if self.relay is None else [self.relay]
        return [self.balancer, *relay, *self.nodes.values(), self.client]

    async def __aenter__(self) -> Deployment:
        self._write_configs()
        try:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=STATE_TIMEOUT)
            )
            await self._hosting.open()
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            # Shielded: a second Ctrl-C ends the launcher, not only its tidying up, and then the
            # kernel ends the rest.
            await asyncio.shield(self._stop())
        finally:
            if self._control is not None:
                await self._control.close()
            if self._session is not None:
                await self._session.close()

    # -- coming up -------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._say("starting the balancer")
        await self.balancer.start()
        patience = asyncio.get_running_loop().call_later(
            PATIENCE, self._say, "it compiles what decides, for about a minute, only this once"
        )
        try:
            await self.balancer.ready()
        finally:
            patience.cancel()
        others = [process for process in self.processes if process is not self.balancer]
        if not self._with_client:
            others.remove(self.client)
        self._say(f"starting {', '.join(process.name for process in others)}")
        for process in others:
            await process.start()
        await _all_ready(others)
        if self.addresses.relay is not None:
            control = self.addresses.relay.control
            self._control = RelayControl(f"http://{control.host}:{control.port}")
        await self._connected()

    async def _connected(self) -> None:
        """Wait until the balancer sees every node."""
        missing = list(self.nodes)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT):
                while missing:
                    self.check()
                    state = await self.state()
                    servers = {} if state is None else state["servers"]
                    missing = [n for n in self.nodes if not servers.get(n, {}).get("connected")]
                    if missing:
                        await asyncio.sleep(0.05)
        if missing:
            raise PeerError(f"the balancer does not see {', '.join(missing)}{self.balancer.tail()}")

    # -- running ---------------------------------------------------------------------------------

    async def run(self, look: Callable[[], Any] = lambda: None, period: float = 0.5) -> None:
        """Let the client send everything; returns when it has every outcome and has written it.

        `look` is awaited every `period` s if it returns an awaitable. Raises PeerError if any
        process ends that should not.
        """
        await self.begin()
        await self.client.send_line("go")
        patience = self.scenario.workload.duration + LATEST
        longest = max(d.deadline_range[1] for d in self.scenario.workload.demands)
        patience += worthless_after(longest, ScoreShape.of(self.scenario.score).grace)
        done = asyncio.create_task(self.client.wait())
        failures = [asyncio.create_task(self._fail(each)) for each in self.scenario.failures]
        failures += [asyncio.create_task(self._slow_down(name)) for name in self.nodes]
        try:
            async with asyncio.timeout(patience):
                while not done.done():
                    self.check()
                    for task in failures:
                        if task.done():
                            task.result()  # a node that did not come back
                    glance = look()
                    if glance is not None:
                        await glance
                    await asyncio.wait((done,), timeout=period)
        except TimeoutError:
            raise PeerError(
                f"the client was not done {LATEST:g} s after its last request could have been "
                f"answered{self.client.tail()}"
            ) from None
        finally:
            done.cancel()
            for task in failures:
                task.cancel()
            await asyncio.gather(done, *failures, return_exceptions=True)
        if self.client.returncode != 0:
            raise PeerError(f"{self.client.describe_end()}{self.client.tail()}")

    def check(self) -> None:
        """Raise PeerError if a process has ended that should not have."""
        for process in self.processes:
            if process is self.client and process.returncode == 0:
                continue
            if process.returncode is not None and not process.stopping:
                raise PeerError(f"{process.describe_end()}{process.tail()}")

    async def _fail(self, failure: Any) -> None:
        """Let a server go down and come back, or the balancer fall silent for a while."""
        if isinstance(failure, MuteFailure):
            await asyncio.sleep(failure.at)
            self._say(f"the balancer falls silent for {failure.duration:g} s")
            try:
                await self.balancer.pause()
                await asyncio.sleep(failure.duration)
            finally:  # also when the run ends before: it is to be stopped in order
                await self.balancer.resume()
            return
        if not isinstance(failure, DownFailure):
            return  # `_slow_down` plays it
        await asyncio.sleep(failure.at)
        node = self.nodes[failure.server]
        self._say(f"{node.name} goes down for {failure.duration:g} s")
        await node.kill()
        await asyncio.sleep(failure.duration)
        await node.start()
        node.stopping = False
        await node.ready()
        await self._tell_slow(failure.server)
        self._say(f"{node.name} is back")

    async def _slow_down(self, name: str) -> None:
        """Tell a node of its slow spells and *slow* failures, each at its time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for at, factor in slowness(self.scenario, name, self.scenario.workload.duration):
            await asyncio.sleep(max(0.0, began + at - loop.time()))
            self._slow[name] = factor
            await self._tell_slow(name)

    async def _tell_slow(self, name: str) -> None:
        factor = self._slow.get(name, 1.0)
        await self.nodes[name].send_line(msgspec.json.encode({"slow": factor}).decode())

    async def begin(self) -> None:
        """Make now the time 0 of the emulated network, if there is one."""
        if self._control is not None:
            await self._control.start()

    async def state(self) -> dict[str, Any] | None:
        """The fleet as the balancer believes it to be (``GET /v1/state``); None if it is silent."""
        assert self._session is not None
        try:
            async with self._session.get(self.addresses.balancer_url() + "/v1/state") as response:
                return msgspec.json.decode(await response.read(), type=dict[str, Any])
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return None

    async def links(self) -> dict[str, dict[str, Any]]:
        """What the relay says of its links; empty without one."""
        if self._control is None:
            return {}
        try:
            return await self._control.links()
        except PeerError:
            return {}

    # -- inside ----------------------------------------------------------------------------------

    async def _stop(self) -> None:
        try:
            await stop_all(self.processes)
        finally:
            await self._hosting.close()

    def _process(self, role: str, server: str) -> ChildProcess:
        file = role if role == server else f"{role}-{server}"
        return self._hosting.process(
            role, server, [role, self._config(file)], self._log(file), self._ports[server]
        )

    def _config(self, file: str) -> str:
        return str(self.folder / "config" / f"{file}.yaml")

    def _log(self, file: str) -> Path:
        return self.folder / "logs" / f"{file}.log"

    def _heard(self, key: str, value: Any) -> None:
        if key == "progress" and isinstance(value, dict):
            self.progress = value

    def _write_configs(self) -> None:
        """The same files that one would write by hand, kept with the results."""
        for folder in ("config", "logs"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        file = self.folder / RUN_SCENARIO
        file.write_text(dump(self.scenario), encoding="utf-8")
        made = fleet_configs(
            self.scenario,
            self.addresses,
            file=str(file),
            out=str(self.folder),
            hosts=self._hosting.hosts,
        )
        write_configs(self.folder / "config", made)


async def _all_ready(processes: list[ChildProcess]) -> None:
    """Wait for all; the first that fails ends the wait for the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for process in processes:
                group.create_task(process.ready())
    except* PeerError as errors:
        raise errors.exceptions[0] from None


def ignored_settings(scenario: Scenario) -> tuple[str, ...]:
    """What of a scenario a live run does not play, one sentence each."""
    said = []
    if not scenario.network.emulate and (scenario.network.events or _outages(scenario)):
        said.append("without the emulator the network's events and outages do not happen")
    return tuple(said)


def _outages(scenario: Scenario) -> bool:
    return any(link.outages for link in scenario.all_links().values())
