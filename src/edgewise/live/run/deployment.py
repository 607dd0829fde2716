"""All processes of one run: started in order, watched, and stopped for certain.

The balancer starts first: the others then find compiled what it compiled. All others follow; the
client reads its photos, reports that it is ready, and waits. When all are ready and every node is
connected, time begins: the clocks of relay and client start together, and with them the scenario's
failures.

The addresses that each process is given come from `addresses`; with and without the emulator the
code here is the same.

Never: a process that outlives the launcher (`processes`), a process that ends unnoticed, an error
without the log that explains it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from edgewise.domain import run_name
from edgewise.errors import BadInput, MissingExtra, PeerError
from edgewise.live.records import RUN_SCENARIO
from edgewise.live.run.fleet_configs import (
    OPERATOR,
    file_name,
    fleet_configs,
    fleet_hosts,
    ports,
    write_configs,
)
from edgewise.live.run.platforms import LocalPlatform, Platform
from edgewise.live.run.processes import READY_TIMEOUT, ChildProcess, FreePorts, stop_all
from edgewise.network.control import RelayControl
from edgewise.scenario import (
    DownFailure,
    Misbehaviour,
    MuteFailure,
    Scenario,
    dump,
    misbehaviours,
    slowness,
)
from edgewise.security.authority import Authority, issue_all
from edgewise.security.identity import BALANCER, Credentials, Role, calls, is_loopback

try:
    import aiohttp
except ImportError as error:
    raise MissingExtra("live", error.name or "aiohttp") from error

CLIENT_GRACE = 30.0
"""s that a client may take after its last request can still be answered; then it is stuck, and
waiting longer would hide that."""
COMPILE_NOTICE = 10.0
"""s after which a balancer that is not ready is not just slow to start but compiles."""
STATE_TIMEOUT = 2.0
"""s for the balancer's state: it answers in milliseconds, and one answer may be missed."""

Say = Callable[[str], None]


class Deployment:
    """The processes of one run. Use it as ``async with Deployment(…) as deployment``.

    Entering starts everything and waits until it is ready; leaving stops it, whatever happened.

    Parameters
    ----------
    scenario:
        With its policy; written to `folder` as ``scenario.yaml``.
    folder:
        The run's; made if it does not exist.
    say:
        Called with a sentence for each event.
    with_client:
        False: start a fleet without a client; `run` cannot be used then.
    platform:
        Where all but the client live; None: processes of this machine.
    identities:
        Give every process an identity, which lasts as long as the run. They get one in any case
        where they listen beyond the loopback.

    Raises (on entering) PeerError with the end of the log of a process that did not start.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: Path,
        say: Say = lambda line: None,
        *,
        with_client: bool = True,
        platform: Platform | None = None,
        identities: bool = False,
    ) -> None:
        self.scenario = scenario
        self.folder = folder.absolute()
        self._say = say
        self._with_client = with_client
        self._platform: Platform = LocalPlatform() if platform is None else platform
        self.addresses = self._platform.assign_addresses(scenario, FreePorts())
        self._ports = ports(self.addresses)
        listening = (self.addresses.balancer, *self.addresses.nodes.values())
        is_wide = self._platform.hosts is not None or not all(
            is_loopback(each.host) for each in listening
        )
        self._keys = Path(tempfile.gettempdir()) / f"edgewise-{secrets.token_hex(8)}"
        """No part of the results; removed at the end."""
        self._has_identities = identities or is_wide
        self._credentials: Credentials | None = None
        self.balancer = self._process("balancer", "balancer")
        self.nodes = {name: self._process("node", name) for name in scenario.server_names}
        self.relay = self._process("relay", "relay") if self.addresses.relay else None
        self.client = ChildProcess(
            "client",
            # The same ids under every policy, so that what replay draws by them is the same too.
            ["client", "--hold", "--name", run_name(scenario.seed), self._config("client")],
            self._log("client"),
        )
        self.progress: dict[str, Any] = {}
        """The client's last `Client.progress`."""
        self.client.on_message = self._on_client_message
        self._slowdowns: dict[str, float] = {}
        self._misbehaviours: dict[str, Misbehaviour] = {}
        """Current factor of each server's service times."""
        self._session: aiohttp.ClientSession | None = None
        self._control: RelayControl | None = None

    @property
    def processes(self) -> list[ChildProcess]:
        """All processes, in the order in which they start."""
        relay = [] if self.relay is None else [self.relay]
        return [self.balancer, *relay, *self.nodes.values(), self.client]

    async def __aenter__(self) -> Deployment:
        self._write_configs()
        try:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=STATE_TIMEOUT)
            )
            await self._platform.open()
            await self._start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            # Shielded: a second Ctrl-C ends the launcher, not only its cleaning up, and then the
            # kernel ends the rest.
            await asyncio.shield(self._stop())
        finally:
            if self._control is not None:
                await self._control.close()
            if self._session is not None:
                await self._session.close()

    # -- starting --------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._say("starting the balancer")
        await self.balancer.start()
        compiling = "it compiles its policy, for about a minute, only this once"
        loop = asyncio.get_running_loop()
        notice = loop.call_later(COMPILE_NOTICE, self._say, compiling)
        try:
            await self.balancer.ready()
        finally:
            notice.cancel()
        others = [process for process in self.processes if process is not self.balancer]
        if not self._with_client:
            others.remove(self.client)
        self._say(f"starting {', '.join(process.name for process in others)}")
        for process in others:
            await process.start()
        await _all_ready(others)
        if self.addresses.relay is not None:
            control = self.addresses.relay.control
            self._control = RelayControl(
                self._url(f"http://{control.host}:{control.port}"), credentials=self._credentials
            )
        await self._all_connected()

    async def _all_connected(self) -> None:
        """Wait until every node is connected to the balancer."""
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

    async def run(
        self, watch: Callable[[], Awaitable[None]] | None = None, period: float = 0.5
    ) -> None:
        """Let the client send everything; returns when it has written every outcome.

        `watch` is awaited every `period` s. Raises PeerError if a process ends that should not.
        """
        await self.begin()
        await self.client.send_line("go")
        workload = self.scenario.workload
        longest = max(demand.deadline_range[1] for demand in workload.demands)
        done = asyncio.create_task(self.client.wait())
        failures = [asyncio.create_task(self._fail(each)) for each in self.scenario.failures]
        failures += [asyncio.create_task(self._slow_down(name)) for name in self.nodes]
        failures += [asyncio.create_task(self._misbehave(name)) for name in self.nodes]
        try:
            async with asyncio.timeout(workload.duration + 2.0 * longest + CLIENT_GRACE):
                while not done.done():
                    self.check()
                    for task in failures:
                        if task.done():
                            task.result()  # raises if a node did not come back
                    if watch is not None:
                        await watch()
                    await asyncio.wait((done,), timeout=period)
        except TimeoutError:
            raise PeerError(
                f"the client was not done {CLIENT_GRACE:g} s after its last request could have "
                f"been answered{self.client.tail()}"
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
        """Carry out one *down* or *mute* failure; `_slow_down` and `_misbehave` do the others."""
        if not isinstance(failure, MuteFailure | DownFailure):
            return
        await asyncio.sleep(failure.at)
        if isinstance(failure, MuteFailure):
            self._say(f"the balancer falls silent for {failure.duration:g} s")
            try:
                await self.balancer.pause()
                await asyncio.sleep(failure.duration)
            finally:  # also if the run ends before: a paused process could not stop in order
                await self.balancer.resume()
            return
        node = self.nodes[failure.server]
        self._say(f"{node.name} goes down for {failure.duration:g} s")
        await node.kill()
        await asyncio.sleep(failure.duration)
        await node.start()
        node.stopping = False
        await node.ready()
        await self._send_condition(failure.server)
        self._say(f"{node.name} is back")

    async def _slow_down(self, name: str) -> None:
        """Send a node its slow spells and *slow* failures, each at its time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for at, factor in slowness(self.scenario, name, self.scenario.workload.duration):
            await asyncio.sleep(max(0.0, began + at - loop.time()))
            self._slowdowns[name] = factor
            await self._send_condition(name)

    async def _misbehave(self, name: str) -> None:
        """Tell a node of its *errors* and *wrong* failures, each at its time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for at, how in misbehaviours(self.scenario, name):
            await asyncio.sleep(max(0.0, began + at - loop.time()))
            self._misbehaviours[name] = how
            await self._send_condition(name)

    async def _send_condition(self, name: str) -> None:
        condition = {
            "slow": self._slowdowns.get(name, 1.0),
            "misbehave": int(self._misbehaviours.get(name, 0)),
        }
        await self.nodes[name].send_line(msgspec.json.encode(condition).decode())

    async def begin(self) -> None:
        """Start the emulated network's time now, if there is one."""
        if self._control is not None:
            await self._control.start()

    async def state(self) -> dict[str, Any] | None:
        """The balancer's belief about the fleet (``GET /v1/state``); None if it does not answer."""
        assert self._session is not None
        try:
            url = self._url(self.addresses.balancer_url()) + "/v1/state"
            async with self._session.get(url, **calls(self._credentials, BALANCER)) as response:
                return msgspec.json.decode(await response.read(), type=dict[str, Any])
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError):
            return None

    async def links(self) -> dict[str, dict[str, Any]]:
        """The relay's description of its links; empty without a relay."""
        if self._control is None:
            return {}
        try:
            return await self._control.links()
        except PeerError:
            return {}

    # -- details ---------------------------------------------------------------------------------

    async def _stop(self) -> None:
        try:
            await stop_all(self.processes)
        finally:
            try:
                await self._platform.close()
            finally:
                shutil.rmtree(self._keys, ignore_errors=True)

    def _process(self, role: str, server: str) -> ChildProcess:
        file = role if role == server else f"{role}-{server}"
        arguments = [role, self._config(file)]
        # The launcher may run this policy, so its children may: a file alone could not allow it.
        if role in ("balancer", "node") and self.scenario.runs_code:
            arguments.append("--allow-code")
        keys = self._keys / file_name(server) if self._has_identities else None
        return self._platform.process(
            role, server, arguments, self._log(file), self._ports[server], keys
        )

    def _url(self, url: str) -> str:
        return url.replace("http:", "https:", 1) if self._has_identities else url

    def _config(self, file: str) -> str:
        return str(self.folder / "config" / f"{file}.yaml")

    def _log(self, file: str) -> Path:
        return self.folder / "logs" / f"{file}.log"

    def _on_client_message(self, key: str, value: Any) -> None:
        if key == "progress" and isinstance(value, dict):
            self.progress = value

    def _write_configs(self) -> None:
        """Write the files that one would write by hand, and keep them with the results."""
        for folder in ("config", "logs"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        file = self.folder / RUN_SCENARIO
        file.write_text(dump(self.scenario), encoding="utf-8")
        if self._has_identities:
            self._issue()
        configs = fleet_configs(
            self.scenario,
            self.addresses,
            file=str(file),
            out=str(self.folder),
            hosts=self._platform.hosts,
            identity=str(self._keys / "{}") if self._has_identities else None,
        )
        write_configs(self.folder / "config", configs)

    def _issue(self) -> None:
        """Give every process its identity. The authority's own key is kept nowhere."""
        try:
            self._keys.mkdir(mode=0o700)
        except OSError as error:
            raise BadInput(f"{self._keys}: cannot be made: {error.strerror}") from None
        days = 2.0 + self.scenario.workload.duration / 86_400.0
        hosts = fleet_hosts(self.scenario.server_names, self._platform.hosts)
        issue_all(Authority.create(), self._keys, hosts, days)
        self._credentials = Credentials(self._keys / OPERATOR.folder, (Role.OPERATOR,))


async def _all_ready(processes: list[ChildProcess]) -> None:
    """Wait for all; the first that fails ends the wait for the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for process in processes:
                group.create_task(process.ready())
    except ExceptionGroup as errors:  # `except*` would raise a group again
        raise errors.exceptions[0] from None


def ignored_settings(scenario: Scenario) -> tuple[str, ...]:
    """Settings of a scenario that a live run ignores, one sentence each."""
    outages = any(link.outages for link in scenario.all_links().values())
    if not scenario.network.emulate and (scenario.network.events or outages):
        return ("without the emulator the network's events and outages do not happen",)
    return ()
