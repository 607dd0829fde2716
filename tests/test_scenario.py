"""Scenario files: what they mean, what is refused and how it is said, and that they come back."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from edgewise.benchmark import document
from edgewise.cli import scenarios as command
from edgewise.errors import BadInput, ScenarioError
from edgewise.scenario import (
    CellularTrace,
    DownFailure,
    FileTrace,
    LinkSettings,
    MmppArrivals,
    Scenario,
    ServiceSpec,
    TraceArrivals,
    check,
    dump,
    link_events,
    load,
    loads,
    presets,
    warnings_of,
)

ROOT = Path(__file__).parents[1]

BASE = """
name: base
servers:
  plaza: {services: [lite0-96, {model: own, accuracy: 0.9, latency: [0.03, 0.05]}]}
  depot: {workers: 2, speed: 0.5, services: [lite0-128]}
network:
  link: {rate_mbps: 10, delay: 0.002}
  links:
    plaza: {delay: 0.008}
workload:
  duration: 10
  arrivals: {kind: poisson, rate: 20}
  ingress: {plaza: 3, depot: 1}
  demands: [{deadline: [0.1, 0.4], accuracy: 0.5}]
"""


def changed(old: str, new: str) -> str:
    assert BASE.count(old) == 1, old
    return BASE.replace(old, new)


# -- meaning -------------------------------------------------------------------------------------


def test_short_forms_are_spelt_out() -> None:
    scenario = loads(BASE)
    assert scenario.servers["plaza"].services == (
        ServiceSpec(model="lite0-96"),
        ServiceSpec(model="own", accuracy=0.9, latency=(0.03, 0.05)),
    )
    assert scenario.workload.demands[0].deadline_range == (0.1, 0.4)
    assert scenario.server_names == ("plaza", "depot")
    assert scenario.ingress_shares() == (0.75, 0.25)


def test_a_link_gives_what_differs_from_the_default_link() -> None:
    scenario = loads(BASE)
    assert scenario.link_between("plaza", "depot") == (
        "uplink:plaza",
        LinkSettings(rate_mbps=10.0, delay=0.008),
    )
    assert scenario.link_between("depot", "plaza") == (
        "uplink:depot",
        LinkSettings(rate_mbps=10.0, delay=0.002),
    )
    trace = "plaza: {trace: {kind: cellular, mean_mbps: 5}}"
    scenario = loads(changed("plaza: {delay: 0.008}", trace))
    assert scenario.link_between("plaza", "depot")[1] == LinkSettings(
        trace=CellularTrace(mean_mbps=5.0), delay=0.002
    )
    back = changed("link: {rate_mbps: 10,", "link: {trace: {kind: wifi, mean_mbps: 5},").replace(
        "plaza: {delay: 0.008}", "plaza: {rate_mbps: null}"
    )
    assert loads(back).link_between("plaza", "depot")[1] == LinkSettings(delay=0.002)


def test_links_by_pair() -> None:
    text = changed("network:\n", "network:\n  topology: pair\n").replace(
        "plaza: {delay: 0.008}", "plaza>depot: {rate_mbps: 4}"
    )
    scenario = loads(text)
    assert scenario.link_names() == ("plaza>depot", "depot>plaza", "access:plaza", "access:depot")
    assert scenario.link_between("plaza", "depot")[1].rate_mbps == 4.0
    assert scenario.link_between("depot", "plaza")[1].rate_mbps == 10.0


def test_link_names_and_errors_of_use() -> None:
    scenario = loads(BASE)
    assert scenario.link_names() == (
        "uplink:plaza",
        "uplink:depot",
        "access:plaza",
        "access:depot",
    )
    assert tuple(scenario.all_links()) == scenario.link_names()
    with pytest.raises(ValueError, match="to itself"):
        scenario.link_between("plaza", "plaza")
    with pytest.raises(KeyError):
        scenario.access_of("plazza")


def test_events_are_ordered_and_name_links_in_full() -> None:
    later = "{at: 5, link: plaza, set: {loss: 0.1}}"
    sooner = "{at: 2, link: 'access:depot', set: {rate_mbps: null}}"
    events = f"[{later}, {sooner}]"
    scenario = loads(changed("network:\n", f"network:\n  events: {events}\n"))
    assert [(name, event.at) for name, event in link_events(scenario)] == [
        ("access:depot", 2.0),
        ("uplink:plaza", 5.0),
    ]
    first, second = (event.set for _, event in link_events(scenario))
    assert first.rate_mbps is None, "null means unlimited"
    assert second.rate_mbps is msgspec.UNSET, "left out means unchanged"


def test_yaml_is_version_1_2() -> None:
    text = changed("name: base", "name: base\nprepare: {on: own, seconds: 2e-3}").replace(
        "depot", "no"
    )
    scenario = loads(text)
    assert scenario.prepare.on == "own"
    assert scenario.prepare.seconds == 0.002
    assert scenario.server_names == ("plaza", "no")
    assert loads(dump(scenario)) == scenario


def test_yaml_anchors_and_merges() -> None:
    text = BASE.replace("depot: {", "depot: &d {").replace(
        "network:", "  campus: {<<: *d, speed: 0.25}\nnetwork:"
    )
    scenario = loads(text)
    assert (scenario.servers["campus"].workers, scenario.servers["campus"].speed) == (2, 0.25)
    assert loads(dump(scenario)) == scenario


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "up.txt").write_text("1\n")
    (tmp_path / "times.csv").write_text("1\n2\n")
    (tmp_path / "photos").mkdir()
    file = tmp_path / "mine.yaml"
    file.write_text(
        changed("{delay: 0.008}", "{trace: {kind: file, path: up.txt, scale: 3}}")
        .replace("{kind: poisson, rate: 20}", "{kind: trace, file: times.csv}")
        .replace("duration: 10", "duration: 10\n  images: photos")
    )
    scenario = load(file)
    assert scenario.network.links["plaza"].trace == FileTrace(
        path=str(tmp_path / "up.txt"), scale=3.0
    )
    assert isinstance(scenario.workload.arrivals, TraceArrivals)
    assert scenario.workload.arrivals.file == str(tmp_path / "times.csv")
    assert scenario.workload.images == str(tmp_path / "photos")
    assert loads(dump(scenario), folder="/") == scenario


def test_overrides() -> None:
    scenario = loads(BASE)
    other = scenario.with_overrides(duration=3, rate=5, policy="random", emulate=False, seed=9)
    assert other.workload.duration == 3.0
    assert other.workload.arrivals.mean_rate == 5.0
    assert (other.policy, other.network.emulate, other.seed) == ("random", False, 9)
    assert scenario.with_overrides() == scenario
    assert scenario.with_overrides(images="photos").workload.images == "photos"
    mmpp = MmppArrivals(rates=(0.0, 30.0), sojourns=(1.0, 2.0))
    bursty = msgspec.structs.replace(
        scenario, workload=msgspec.structs.replace(scenario.workload, arrivals=mmpp)
    )
    assert bursty.with_overrides(rate=10).workload.arrivals == MmppArrivals(
        rates=(0.0, 15.0), sojourns=(1.0, 2.0)
    )
    with pytest.raises(ScenarioError, match=r"duration: expected a number > 0.0.*got -1.0"):
        check(scenario.with_overrides(duration=-1))


# -- refusals ------------------------------------------------------------------------------------

REFUSED = [
    # old, new, path, problem
    ("workers: 2", "workers: two", "servers.depot.workers", "a whole number, got 'two'"),
    ("workers: 2", "workers: 0", "servers.depot.workers", "a whole number >= 1, got 0"),
    ("workers: 2", "wrokers: 2", "servers.depot", "'wrokers' (did you mean 'workers'?)"),
    ("speed: 0.5", "speed: .inf", "servers.depot.speed", "got inf"),
    ("speed: 0.5", "speed: .nan", "servers.depot.speed", "got nan"),
    ("depot: {workers", "de pot: {workers", "servers", "a name (letters, digits"),
    ("[lite0-128]", "[lite0-128, lite0-128]", "servers.depot.services[1]", "occurs twice"),
    ("[lite0-128]", "[{accuracy: 1}]", "servers.depot.services[0]", "'model', which is missing"),
    ("[lite0-128]", "[7]", "servers.depot.services[0]", "a mapping, got 7"),
    ("[lite0-128]", "lite0-128", "servers.depot.services", "a list, got 'lite0-128'"),
    ("accuracy: 0.9", "accuracy: 90", "servers.plaza.services[1].accuracy", "<= 1.0, got 90"),
    ("[0.03, 0.05]", "[]", "servers.plaza.services[1].latency", "length >= 1, got a list of 0"),
    ("rate: 20", "rate: -1", "workload.arrivals.rate", "a number > 0.0, got -1"),
    ("rate: 20", "rate: 0", "workload.arrivals.rate", "a number > 0.0, got 0"),
    ("kind: poisson", "kind: poison", "workload.arrivals.kind", "(did you mean 'poisson'?)"),
    ("kind: poisson", "kind: 3", "workload.arrivals.kind", "got 3"),
    ("kind: poisson, ", "", "workload.arrivals", "'kind', which is missing"),
    ("rate: 20", "rat: 20", "workload.arrivals", "did you mean 'rate'?"),
    ("{kind: poisson, rate: 20}", "30", "workload.arrivals", "a mapping, got 30"),
    (
        "{kind: poisson, rate: 20}",
        "{kind: mmpp, rates: [1, 2], sojourns: [1, 2, 3]}",
        "workload.arrivals.sojourns",
        "as many as rates (2), got 3",
    ),
    (
        "{kind: poisson, rate: 20}",
        "{kind: mmpp, rates: [0, 0], sojourns: [1, 2]}",
        "workload.arrivals.rates",
        "one above 0",
    ),
    (
        "{kind: poisson, rate: 20}",
        "{kind: trace, file: nowhere.csv}",
        "workload.arrivals.file",
        "no such file",
    ),
    (
        "{kind: poisson, rate: 20}",
        "{kind: trace, file: nowhere.csv, rate: 3, scale: 2}",
        "workload.arrivals",
        "rate or scale, got both",
    ),
    ("plaza: 3,", "plazza: 3,", "workload.ingress.plazza", "(did you mean 'plaza'?)"),
    ("plaza: 3,", "q: 3,", "workload.ingress.q", "(known: plaza, depot)"),
    ("plaza: 3, depot: 1", "plaza: 0", "workload.ingress", "sum above 0"),
    ("plaza: 3, depot: 1", "", "workload.ingress", "sum above 0"),
    ("plaza: 3", "plaza: -3", "workload.ingress.plaza", ">= 0.0, got -3"),
    ("{deadline: [0.1", "{share: 0, deadline: [0.1", "workload.demands", "sum above 0"),
    ("[0.1, 0.4]", "[0.4, 0.1]", "workload.demands[0].deadline", "got [0.4, 0.1]"),
    ("[0.1, 0.4]", "[0.4, 0.1, 3]", "workload.demands[0].deadline", "length 2, got a list of 3"),
    ("[0.1, 0.4]", "0", "workload.demands[0].deadline", "> 0.0 and <= 3600.0, got 0"),
    ("[0.1, 0.4]", "150 ms", "workload.demands[0].deadline", "number or a list, got '150 ms'"),
    ("[0.1, 0.4]", ".nan", "workload.demands[0].deadline", "got nan"),
    ("duration: 10", "duration: 0", "workload.duration", "> 0.0, got 0"),
    ("  duration: 10\n", "", "workload", "'duration', which is missing"),
    (
        "duration: 10",
        "duration: 10\n  images: nowhere",
        "workload.images",
        "'builtin', a folder or a label file",
    ),
    ("delay: 0.008", "delay: 0.008, loss: 1", "network.links.plaza.loss", "< 1.0, got 1"),
    (
        "delay: 0.008",
        "rate_mbps: 1, trace: {kind: wifi, mean_mbps: 1}",
        "network.links.plaza",
        "rate_mbps or trace, got both",
    ),
    (
        "delay: 0.008",
        "trace: {kind: lte, mean_mbps: 1}",
        "network.links.plaza.trace.kind",
        "one of file, cellular, wifi, backhaul, got 'lte'",
    ),
    (
        "delay: 0.008",
        "trace: {kind: file, path: nowhere}",
        "network.links.plaza.trace.path",
        "no such file",
    ),
    ("    plaza: {delay", "    depott: {delay", "network.links.depott", "mean 'depot'?"),
    (
        "    plaza: {delay",
        "    plaza>depot: {delay",
        "network.links.plaza>depot",
        "topology: pair",
    ),
    ("  link:", "  topology: pair\n  link:", "network.links.plaza", "expected 'a>b'"),
    ("  link:", "  topology: star\n  link:", "network.topology", "uplink, got 'star'"),
    ("  link:", "  access_links: {dept: {}}\n  link:", "network.access_links.dept", "'depot'?"),
    (
        "  link:",
        "  events: [{at: 1, link: plza, set: {delay: 0}}]\n  link:",
        "network.events[0].link",
        "no link is called 'plza' (did you mean 'plaza'?)",
    ),
    (
        "  link:",
        "  events: [{at: 1, link: plaza, set: {}}]\n  link:",
        "network.events[0].set",
        "one of rate_mbps, trace, delay",
    ),
    (
        "name: base",
        "name: base\nnetwork_state: emulator",
        "network_state",
        "needs network.emulate",
    ),
    (
        "name: base",
        "name: base\nservice_noise: {spell: {factor: [2, 1]}}",
        "service_noise.spell.factor",
        "got [2, 1]",
    ),
    (
        "name: base",
        "name: base\nfailures: [{kind: down, at: 1, server: dpot, duration: 1}]",
        "failures[0].server",
        "(did you mean 'depot'?)",
    ),
    (
        "name: base",
        "name: base\nfailures: [{kind: slow, at: 1, server: depot, duration: 1, factor: 0.5}]",
        "failures[0].factor",
        "> 1.0, got 0.5",
    ),
    ("name: base", "name: base\nscore: {lateness: mild}", "score.lateness", "soft, got 'mild'"),
    ("name: base", "name: base\nsed: 1", "", "unknown field 'sed' (did you mean 'seed'?)"),
    ("name: base\n", "", "", "'name', which is missing"),
]


@pytest.mark.parametrize(("old", "new", "path", "problem"), REFUSED)
def test_refused(old: str, new: str, path: str, problem: str) -> None:
    text = changed(old, new)
    if "network_state" in new:
        text = text.replace("network:\n", "network:\n  emulate: false\n", 1)
    with pytest.raises(ScenarioError) as caught:
        loads(text, "mine.yaml")
    assert (caught.value.file, caught.value.path) == ("mine.yaml", path)
    assert problem in caught.value.problem
    assert str(caught.value) == ": ".join(filter(None, ("mine.yaml", path, caught.value.problem)))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected a mapping with name, servers, …, got nothing"),
        ("- a", "got list"),
        ("a: [", "not YAML: line "),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' occurs twice"),
        ("1: 2", "expected a key that is text, got 1"),
        ("? [a]\n: 2", "a key must be text"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: \x07", "not YAML: "),
    ],
)
def test_not_a_scenario(text: str, problem: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(problem)):
        loads(text, "mine.yaml")


def test_no_service_at_all() -> None:
    text = re.sub(r"services: \[.*\]}", "services: []}", BASE)
    with pytest.raises(ScenarioError, match=r"servers: expected a service on at least one"):
        loads(text)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"did you mean 'three-sites'\?"):
        load("three-site")
    with pytest.raises(ScenarioError, match=r"nowhere.yaml: no such file"):
        load("nowhere.yaml")
    with pytest.raises(ScenarioError, match="got a directory"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ScenarioError, match="expected UTF-8, got byte 9"):
        load(tmp_path / "latin.yaml")


# -- warnings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ("accuracy: 0.5}", "accuracy: 0.95}", "the best service has 0.9: 100 % of the requests"),
        (
            "name: base",
            "name: base\nfailures: [{kind: down, at: 10, server: depot, duration: 1}]",
            "failures[0] begins at 10 s, the run ends at 10 s",
        ),
        (
            "  link: {",
            "  events: [{at: 12, link: depot, set: {delay: 0}}]\n  link: {",
            "events[0] is at 12 s",
        ),
        (
            "  link: {",
            "  emulate: false\n  events: [{at: 1, link: depot, set: {delay: 0}}]\n  link: {",
            "change nothing live",
        ),
        (
            "{delay: 0.008}",
            "{outages: [{at: 30, duration: 1}]}",
            "an outage of uplink:plaza begins at 30 s",
        ),
        (
            "duration: 10",
            "duration: 10\n  payload: {kind: lognormal, median_bytes: 1000}",
            "executor onnx needs photos",
        ),
        (
            "duration: 10",
            "duration: 10\n  payload: {kind: lognormal, median_bytes: 1000000, sigma: 0}",
            "clients send 120 Mbit/s to plaza, its access link carries 50 Mbit/s",
        ),
        ("network:", "  idle: {services: []}\nnetwork:", "server idle has no service and gets no"),
    ],
)
def test_warnings(old: str, new: str, warning: str) -> None:
    def accuracy_of(model: str) -> float:
        return 0.6

    assert warnings_of(loads(BASE), accuracy_of) == ()
    found = warnings_of(loads(BASE.replace(old, new, 1)), accuracy_of)
    assert any(warning in each for each in found), found


def test_an_unknown_accuracy_is_no_reason_to_warn() -> None:
    assert warnings_of(loads(changed("accuracy: 0.5}", "accuracy: 0.95}"))) == ()


# -- presets -------------------------------------------------------------------------------------

# s at speed 1 with decoding, and accuracy: upper ends of what was measured on several machines.
REFERENCE = {
    "lite0-96": (0.0076, 0.51),
    "lite0-128": (0.0096, 0.68),
    "lite0-160": (0.0118, 0.80),
    "lite0-192": (0.015, 0.85),
    "lite0-224": (0.019, 0.885),
    "lite1": (0.028, 0.896),
    "lite2": (0.037, 0.906),
    "squeezenet": (0.016, 0.62),
}
FASTER = 0.75
"""The lower ends of the latencies, relative to those: claims must hold over the whole range."""
PHOTO = 107e3


def needed(scenario: Scenario, accuracy: float, server: str | None = None) -> float | None:
    """s at speed 1 of the fastest adequate model, on one server or anywhere."""
    servers = scenario.servers if server is None else {server: scenario.servers[server]}
    fit = [
        REFERENCE[service.model][0]
        for each in servers.values()
        for service in each.services
        if REFERENCE[service.model][1] >= accuracy
    ]
    return min(fit, default=None)


def mean_needed(scenario: Scenario, server: str | None = None) -> float:
    demands = scenario.workload.demands
    total = sum(demand.share for demand in demands)
    work = 0.0
    for demand in demands:
        seconds = needed(scenario, demand.accuracy, server)
        assert seconds is not None
        work += demand.share / total * seconds
    return work


def test_presets_are_there() -> None:
    assert set(presets()) == {"three-sites", "single-model", "volatile", "direct", "smoke"}


@pytest.mark.parametrize("name", sorted(presets()))
def test_preset(name: str) -> None:
    scenario = load(name)
    assert scenario.name == name
    assert scenario.about.endswith(".")
    text = presets()[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "# Purpose: " in text
    assert "# Numbers: " in text
    assert loads(dump(scenario)) == scenario
    assert warnings_of(scenario, lambda model: REFERENCE[model][1]) == ()


@pytest.mark.parametrize("name", ["three-sites", "volatile", "single-model"])
def test_preset_fits_on_two_shared_cores(name: str) -> None:
    scenario = load(name)
    rate = scenario.workload.arrivals.mean_rate
    assert rate is not None
    assert rate * mean_needed(scenario) < 0.8, "cheapest adequate model"
    assert 25 <= rate <= 35


def test_three_sites_is_what_its_comment_says() -> None:
    scenario = load("three-sites")
    rate = scenario.workload.arrivals.mean_rate
    assert rate is not None
    shares = dict(zip(scenario.server_names, scenario.ingress_shares(), strict=True))
    loads_ = {
        name: rate * shares[name] * mean_needed(scenario, name) / server.speed
        for name, server in scenario.servers.items()
    }
    assert FASTER * loads_["plaza"] > 1.05, "local only overloads the plaza, even on a fast machine"
    assert loads_["depot"] < 0.5
    assert loads_["campus"] < 0.5
    speed = sum(server.speed for server in scenario.servers.values())
    assert rate * mean_needed(scenario) / speed < 0.5, "all together there is CPU to spare"
    leaving = rate * shares["plaza"] * 2 / 3 * PHOTO * 8e-6
    capacity = scenario.link_between("plaza", "depot")[1].rate_mbps
    assert capacity is not None
    assert leaving == pytest.approx(14.3, abs=0.1)
    assert leaving > 1.5 * capacity, "round robin overloads its uplink"


def test_direct_is_three_sites_without_relays() -> None:
    other, direct = load("three-sites"), load("direct")
    assert direct == msgspec.structs.replace(
        other.with_overrides(emulate=False), name=direct.name, about=direct.about
    )


def test_volatile_has_the_servers_of_three_sites() -> None:
    volatile = load("volatile")
    assert volatile.servers == load("three-sites").servers
    assert volatile.network.events
    assert volatile.failures
    assert any(link.outages for link in volatile.all_links().values())
    assert any(link.trace for link in volatile.all_links().values())


def test_single_model_is_what_its_comment_says() -> None:
    scenario = load("single-model")
    rate = scenario.workload.arrivals.mean_rate
    assert rate is not None
    assert all(len(server.services) == 1 for server in scenario.servers.values())
    busy = dict.fromkeys(scenario.servers, 0.0)
    total = sum(demand.share for demand in scenario.workload.demands)
    for demand in scenario.workload.demands:
        seconds = needed(scenario, demand.accuracy)
        assert seconds is not None
        for name, server in scenario.servers.items():
            if REFERENCE[server.services[0].model][0] == seconds:
                busy[name] += rate * demand.share / total * seconds / server.speed
    assert busy.pop("shop") == 0.0
    assert all(FASTER * load_ > 0.15 and load_ < 0.5 for load_ in busy.values()), busy
    vault = scenario.servers["vault"]
    assert FASTER * rate * REFERENCE["lite2"][0] / vault.speed > 1.0


def test_smoke_needs_neither_weights_nor_photos() -> None:
    scenario = load("smoke")
    assert scenario.executor == "replay"
    assert scenario.workload.payload.__struct_config__.tag == "lognormal"
    for server in scenario.servers.values():
        assert all(each.accuracy and each.latency for each in server.services)


# -- round trip ----------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True) | st.sampled_from(
    ["on", "no", "null", "true", "1e3", "0x10", "12", "1_0"]
)
SMALL = st.floats(0.001, 50.0, allow_nan=False)


@st.composite
def links(draw: st.DrawFn) -> dict[str, Any]:
    link: dict[str, Any] = {}
    choice = draw(st.sampled_from(["rate", "unlimited", "trace", "default"]))
    if choice == "rate":
        link["rate_mbps"] = draw(SMALL)
    elif choice == "unlimited":
        link["rate_mbps"] = None
    elif choice == "trace":
        kind = draw(st.sampled_from(["cellular", "wifi", "backhaul"]))
        link["trace"] = {"kind": kind, "mean_mbps": draw(SMALL)}
    if draw(st.booleans()):
        link["delay"] = draw(st.floats(0.0, 1.0))
    if draw(st.booleans()):
        link["queue_bytes"] = draw(st.none() | st.integers(1, 10**6))
    if draw(st.booleans()):
        link["outages"] = [{"at": draw(SMALL), "duration": draw(SMALL)}]
    return link


@st.composite
def arrivals(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["constant", "poisson", "mmpp", "diurnal"]))
    if kind == "mmpp":
        count = draw(st.integers(2, 4))
        pair = st.lists(SMALL, min_size=count, max_size=count)
        return {"kind": kind, "rates": draw(pair), "sojourns": draw(pair)}
    return {"kind": kind, "rate": draw(SMALL)}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Files as a person might write them: with short forms, and with most fields left out."""
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    service = NAMES | st.builds(
        lambda model, accuracy: {"model": model, "accuracy": accuracy}, NAMES, st.floats(0.0, 1.0)
    )
    services = st.lists(
        service,
        min_size=1,
        max_size=3,
        unique_by=lambda each: each if isinstance(each, str) else each["model"],
    )
    topology = draw(st.sampled_from(["uplink", "pair"]))
    keys = names if topology == "uplink" else [f"{a}>{b}" for a in names for b in names if a != b]
    some = draw(st.lists(st.sampled_from(keys), unique=True)) if keys else []
    network: dict[str, Any] = {"topology": topology, "links": {key: draw(links()) for key in some}}
    if draw(st.booleans()):
        network["link"] = draw(links())
    if draw(st.booleans()):
        network["access_links"] = {names[0]: draw(links())}
        network["events"] = [
            {"at": 1, "link": f"access:{names[0]}", "set": {"rate_mbps": draw(st.none() | SMALL)}}
        ]
    low = draw(SMALL)
    return {
        "name": draw(NAMES),
        "about": draw(
            st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=20)
        ),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "servers": {name: {"services": draw(services), "speed": draw(SMALL)} for name in names},
        "network": network,
        "workload": {
            "duration": draw(SMALL),
            "arrivals": draw(arrivals()),
            "ingress": {name: draw(SMALL) for name in names},
            "demands": [{"deadline": draw(st.sampled_from([low, [low, low * 2]]))}],
        },
        "failures": [
            {"kind": "slow", "at": draw(SMALL), "server": names[-1], "duration": draw(SMALL)}
        ],
    }


@settings(max_examples=25, deadline=None)
@given(documents())
def test_what_is_dumped_loads_to_the_same(document: dict[str, Any]) -> None:
    scenario = loads(msgspec.json.encode(document).decode())  # JSON is YAML
    text = dump(scenario)
    assert loads(text) == scenario
    assert dump(loads(text)) == text


def test_control_characters_survive() -> None:
    scenario = msgspec.structs.replace(loads(BASE), about="\x7f\n\x00 ä\u2028")
    assert loads(dump(scenario)) == scenario


# -- the command line and the document -----------------------------------------------------------


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(command.scenarios)
    app.add_typer(command.scenario, name="scenario")
    return app


def run(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_of_presets(app: typer.Typer) -> None:
    output = run(app, "scenarios")
    for name in presets():
        assert name in output


def test_check_says_what_was_understood(app: typer.Typer, tmp_path: Path) -> None:
    assert "11 %" in run(app, "scenario", "check", "smoke")
    output = run(app, "scenario", "check", "volatile")
    assert "cellular ~9 Mbit/s" in output
    file = tmp_path / "odd.yaml"
    file.write_text(
        changed("accuracy: 0.5}", "accuracy: 0.95}")
        .replace("lite0-96, ", "")
        .replace("[lite0-128]", "[{model: own, accuracy: 0.5, latency: [0.01]}]")
    )
    assert "warning: demands[0] asks for accuracy 0.95" in run(app, "scenario", "check", str(file))
    file.write_text(changed("workers: 2", "workers: two"))
    with pytest.raises(ScenarioError, match="got 'two'"):
        run(app, "scenario", "check", str(file))


TRACED = "network:\n  access: {{trace: {{kind: file, path: {}}}}}"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "servers:",
            "policy: priced_gredy\nservers:",
            "policy: unknown policy 'priced_gredy' (did",
        ),
        ("servers:", "shadow: no.safetensors\nservers:", "shadow: "),
        ("lite0-128", "brand-new", "unknown model 'brand-new'"),
        ("network:", TRACED.format("bad.tsv"), "line 1: expected numbers"),
        ("network:", TRACED.format("no.tsv"), "no such file"),
    ],
)
def test_check_refuses_what_cannot_run(
    old: str, new: str, problem: str, app: typer.Typer, tmp_path: Path
) -> None:
    (tmp_path / "bad.tsv").write_text("no trace\n")
    file = tmp_path / "odd.yaml"
    file.write_text(changed(old, new))
    with pytest.raises(BadInput) as caught:
        run(app, "scenario", "check", str(file))
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "warning"),
    [
        ("lite0-128", "{model: own, accuracy: 0.6, latency: 0.01}", "executor onnx has no model"),
        ("rate: 20", "rate: 20000", "% of all workers"),
        ("[0.1, 0.4]", "200", "demands[0] has a deadline of 200 s, the slowest service takes"),
        ("[0.1, 0.4]", "0.002", "the fastest service that meets it takes"),
        ("network:", TRACED.format("ms.tsv"), "hours long"),
    ],
)
def test_check_warns_of_what_is_hardly_meant(
    old: str, new: str, warning: str, app: typer.Typer, tmp_path: Path
) -> None:
    (tmp_path / "ms.tsv").write_text("0\t2\n100000000\t3\n")
    file = tmp_path / "odd.yaml"
    file.write_text(changed(old, new))
    shown = run(app, "scenario", "check", str(file))
    assert warning in shown
    assert shown.endswith("ok\n")


@pytest.mark.parametrize("name", presets())
def test_nothing_speaks_against_a_preset(name: str, app: typer.Typer) -> None:
    assert "warning" not in run(app, "scenario", "check", name)


def test_show(app: typer.Typer) -> None:
    text = run(app, "scenario", "show", "smoke")
    assert text == presets()["smoke"].read_text(encoding="utf-8")
    assert loads(run(app, "scenario", "show", "smoke", "--full")) == load("smoke")


def test_local_load_counts_the_fastest_adequate_service() -> None:
    assert command.local_load(load("smoke"), 10.0, 1, ()) == (0.0, True)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "scenario_reference", ROOT / "scripts" / "scenario_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current(script: ModuleType) -> None:
    assert document.is_current(script.DOCUMENT, script.MARK, script.reference()), (
        "run scripts/scenario_reference.py"
    )


def test_every_default_has_its_reason(script: ModuleType) -> None:
    for place, cls in script.SECTIONS:
        for row in script.rows(cls):
            assert row.required or row.reason, f"{place}: {row.name}"


def test_the_example_of_the_document_loads() -> None:
    text = (ROOT / "docs" / "scenario.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert loads(example).server_names == ("plaza", "depot")


def test_a_failure_keeps_its_kind() -> None:
    text = changed(
        "name: base", "name: base\nfailures: [{kind: down, at: 1, server: depot, duration: 2}]"
    )
    assert loads(text).failures == (DownFailure(at=1.0, server="depot", duration=2.0),)
