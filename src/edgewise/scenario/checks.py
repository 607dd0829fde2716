"""Rules that types cannot express: names must exist, numbers must fit together.

`check` raises at the first mistake. `warnings_of` lists what can run but is probably a mistake.
Both look only at the scenario and at whether the files it names exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import UNSET

from edgewise.decoding import nearest
from edgewise.documents import convert_document
from edgewise.domain import DEADLINE_MAX
from edgewise.errors import ScenarioError
from edgewise.network.settings import CHANGEABLE, LinkEvent, LinkSettings
from edgewise.network.trace import FileTrace
from edgewise.policy_names import is_code
from edgewise.scenario.network_schema import NetworkSpec
from edgewise.scenario.schema import MuteFailure, Scenario
from edgewise.scenario.workload_schema import Demand, LognormalPayload, MmppArrivals, TraceArrivals

Problem = tuple[str, str]
"""The field, and what is wrong with it."""


def check(scenario: Scenario, file: str | None = None) -> Scenario:
    """Return `scenario` if it can run; `file` is the name in error messages. Raises ScenarioError.

    Types and ranges are checked too, so that a scenario made in Python is checked like a file.

    >>> import edgewise as ew
    >>> check(ew.load("smoke").with_overrides(rate=50.0)).name
    'smoke'
    """
    file = scenario.name if file is None else file
    convert_document(msgspec.to_builtins(scenario), Scenario, file)
    for path, problem in _problems(scenario):
        raise ScenarioError(file, path, problem)
    return scenario


def link_events(scenario: Scenario) -> tuple[tuple[str, LinkEvent], ...]:
    """Events of the network in order of time, each with the full name of its link."""
    found = []
    for event in sorted(scenario.network.events, key=lambda event: event.at):
        name = scenario.resolve_link(event.link) or event.link
        if event.set.trace is not UNSET and event.set.trace is not None:
            trace = event.set.trace.drawn(scenario.seed, name)
            change = msgspec.structs.replace(event.set, trace=trace)
            event = msgspec.structs.replace(event, set=change)
        found.append((name, event))
    return tuple(found)


def _problems(scenario: Scenario) -> Iterator[Problem]:
    if scenario.profile is not None:
        yield "profile", "a profile is read with its scenario's file; in Python, give latencies"
    yield from _servers(scenario)
    yield from _network(scenario)
    yield from _workload(scenario)
    low, high = scenario.service_noise.spell.factor
    if low > high:
        yield "service_noise.spell.factor", f"expected [low, high], got [{low:g}, {high:g}]"
    for index, failure in enumerate(scenario.failures):
        if isinstance(failure, MuteFailure):
            continue
        if failure.server not in scenario.servers:
            yield f"failures[{index}].server", _no_server(failure.server, scenario)


def _no_server(name: str, scenario: Scenario) -> str:
    return f"no server is called {name!r}{nearest(name, scenario.servers)}"


def _servers(scenario: Scenario) -> Iterator[Problem]:
    for name, server in scenario.servers.items():
        seen: set[str] = set()
        for index, service in enumerate(server.services):
            if service.model in seen:
                at = f"servers.{name}.services[{index}]"
                yield at, f"the model {service.model!r} occurs twice on this server"
            seen.add(service.model)
    if not any(server.services for server in scenario.servers.values()):
        yield "servers", "expected a service on at least one server, got none"


def _network(scenario: Scenario) -> Iterator[Problem]:
    network = scenario.network
    if scenario.network_state == "emulator" and not network.emulate:
        yield "network_state", "'emulator' needs network.emulate: true; use 'measured'"
    for where, link in _link_specs(network):
        yield from _link(f"network.{where}", link)
    for name in network.access_links:
        if name not in scenario.servers:
            yield f"network.access_links.{name}", _no_server(name, scenario)
    for name in network.links:
        yield from _link_key(name, scenario)
    for index, event in enumerate(network.events):
        at = f"network.events[{index}]"
        if scenario.resolve_link(event.link) is None:
            known = [name.removeprefix("uplink:") for name in scenario.link_names()]
            yield f"{at}.link", f"no link is called {event.link!r}{nearest(event.link, known)}"
        if not msgspec.to_builtins(event.set):
            yield f"{at}.set", f"expected one of {', '.join(CHANGEABLE)}, got none"
        elif event.set.trace is not UNSET and event.set.trace is not None:
            yield from _link(f"{at}.set", LinkSettings().changed(event.set))


def _link_specs(network: NetworkSpec) -> Iterator[tuple[str, LinkSettings]]:
    yield "access", network.access
    yield "link", network.link
    for name, link in network.access_links.items():
        yield f"access_links.{name}", link
    for name, link in network.links.items():
        yield f"links.{name}", link


def _link(at: str, link: LinkSettings) -> Iterator[Problem]:
    if link.trace is not None and link.rate_mbps is not None:
        yield at, "expected rate_mbps or trace, got both"
    if isinstance(link.trace, FileTrace) and not Path(link.trace.path).is_file():
        yield f"{at}.trace.path", f"no such file: {link.trace.path}"


def _link_key(name: str, scenario: Scenario) -> Iterator[Problem]:
    at = f"network.links.{name}"
    if scenario.network.topology == "uplink":
        if ">" in name:
            yield at, f"a pair such as {name!r} needs topology: pair; here a key is a server"
        elif name not in scenario.servers:
            yield at, _no_server(name, scenario)
        return
    ends = name.split(">")
    if len(ends) != 2:
        yield at, f"expected 'a>b' (topology: pair), got {name!r}"
        return
    for end in ends:
        if end not in scenario.servers:
            yield at, _no_server(end, scenario)
    if ends[0] == ends[1]:
        yield at, "expected two servers, got the same one twice"


def _workload(scenario: Scenario) -> Iterator[Problem]:
    workload = scenario.workload
    for name in workload.ingress:
        if name not in scenario.servers:
            yield f"workload.ingress.{name}", _no_server(name, scenario)
    if not math.fsum(workload.ingress.values()) > 0.0:
        yield "workload.ingress", "expected shares with a sum above 0, got 0"
    if not math.fsum(demand.share for demand in workload.demands) > 0.0:
        yield "workload.demands", "expected shares with a sum above 0, got 0"
    for index, demand in enumerate(workload.demands):
        low, high = demand.deadline_range
        at = f"workload.demands[{index}].deadline"
        if not 0.0 < low <= DEADLINE_MAX:
            yield at, f"expected a number > 0.0 and <= {DEADLINE_MAX}, got {low}"
        if low > high:
            yield at, f"expected [low, high], got [{low:g}, {high:g}]"
    arrivals = workload.arrivals
    if isinstance(arrivals, MmppArrivals):
        rates, sojourns = len(arrivals.rates), len(arrivals.sojourns)
        if rates != sojourns:
            at = "workload.arrivals.sojourns"
            yield at, f"expected as many as rates ({rates}), got {sojourns}"
        elif not arrivals.mean_rate > 0.0:
            yield "workload.arrivals.rates", "expected one above 0, got none"
    if isinstance(arrivals, TraceArrivals):
        if arrivals.rate is not None and arrivals.scale != 1.0:
            yield "workload.arrivals", "expected rate or scale, got both"
        if not Path(arrivals.file).is_file():
            yield "workload.arrivals.file", f"no such file: {arrivals.file}"
    if workload.images != "builtin" and not Path(workload.images).exists():
        at = "workload.images"
        yield at, f"expected 'builtin', a folder or a label file, got {workload.images}"


# -- warnings ------------------------------------------------------------------------------------


def warnings_of(
    scenario: Scenario, accuracy_of: Callable[[str], float | None] | None = None
) -> tuple[str, ...]:
    """What can run but is probably a mistake, one sentence each.

    `accuracy_of` returns the accuracy of a model for services that do not state it, None if it is
    unknown. A service of unknown accuracy counts as good enough for every demand.
    """
    return tuple(_doubts(scenario, accuracy_of or (lambda model: None)))


def _doubts(scenario: Scenario, accuracy_of: Callable[[str], float | None]) -> Iterator[str]:
    best = _best_accuracy(scenario, accuracy_of)
    for index, demand in enumerate(scenario.workload.demands):
        if best is not None and demand.accuracy > best:
            yield (
                f"demands[{index}] asks for accuracy {demand.accuracy:g}, the best service has "
                f"{best:g}: {_percent(demand, scenario)} of the requests cannot be served"
            )
    for name, server in scenario.servers.items():
        if not server.services and not scenario.workload.ingress.get(name):
            yield f"server {name} has no service and gets no request"
    for key, policy in (("policy", scenario.policy), ("shadow", scenario.shadow)):
        if policy is not None and is_code(policy):
            yield f"{key} {policy} is Python code: commands refuse the file without --allow-code"
    duration = scenario.workload.duration
    for index, failure in enumerate(scenario.failures):
        if failure.at >= duration:
            yield f"failures[{index}] begins at {failure.at:g} s, the run ends at {duration:g} s"
    for index, event in enumerate(scenario.network.events):
        if event.at >= duration:
            yield f"events[{index}] is at {event.at:g} s, the run ends at {duration:g} s"
    for name, link in scenario.all_links().items():
        for outage in link.outages:
            if outage.at >= duration:
                yield (
                    f"an outage of {name} begins at {outage.at:g} s, the run ends at {duration:g} s"
                )
    if scenario.network.events and not scenario.network.emulate:
        yield "network.events change nothing live while network.emulate is false"
    payload = scenario.workload.payload
    if isinstance(payload, LognormalPayload):
        if scenario.executor == "onnx":
            yield "payload lognormal is for the simulator and replay; executor onnx needs photos"
        yield from _thin_access(scenario, payload.median_bytes * math.exp(payload.sigma**2 / 2))


def _best_accuracy(scenario: Scenario, accuracy_of: Callable[[str], float | None]) -> float | None:
    """The highest accuracy of any service; None if one is unknown."""
    best = 0.0
    for server in scenario.servers.values():
        for service in server.services:
            known = service.accuracy
            if known is None:
                known = accuracy_of(service.model)
            if known is None:
                return None
            best = max(best, known)
    return best


def _percent(demand: Demand, scenario: Scenario) -> str:
    total = math.fsum(each.share for each in scenario.workload.demands)
    return f"{100 * demand.share / total:.3g} %"


def _thin_access(scenario: Scenario, mean_bytes: float) -> Iterator[str]:
    rate = scenario.workload.arrivals.mean_rate
    if rate is None:
        return
    for name, share in zip(scenario.server_names, scenario.ingress_shares(), strict=True):
        capacity = scenario.access_of(name)[1].rate_mbps
        offered = rate * share * mean_bytes * 8e-6
        if capacity is not None and offered > capacity:
            yield (
                f"clients send {offered:.3g} Mbit/s to {name}, "
                f"its access link carries {capacity:g} Mbit/s"
            )
