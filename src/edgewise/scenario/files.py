"""Read and write scenario files.

Reading spells out every short form (a service that is only a name, a link that gives only what
differs from the default link) and makes every path absolute. ``loads(dump(scenario)) == scenario``.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from edgewise.decoding import nearest
from edgewise.documents import convert_document, dump_yaml, parse_yaml, read_text
from edgewise.errors import ScenarioError
from edgewise.policy_names import absolute, is_code
from edgewise.scenario.checks import check
from edgewise.scenario.measured_profile import fill_in
from edgewise.scenario.network_schema import NetworkSpec
from edgewise.scenario.schema import Scenario

_SUFFIXES = (".yaml", ".yml", ".json")
_BASES: dict[str, Any] = msgspec.to_builtins(
    {"link": NetworkSpec().link, "access": NetworkSpec().access}
)


def presets() -> dict[str, Path]:
    """The scenarios that come with edgewise: a file for each name.

    >>> "three-sites" in presets()
    True
    """
    folder = Path(str(resources.files("edgewise") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str | Path) -> Path:
    """The file of a preset or a path. Raises ScenarioError if `name` is neither."""
    path = Path(name)
    if path.is_file():
        return path
    known = presets()
    if str(name) in known:
        return known[str(name)]
    if path.is_dir():
        raise ScenarioError(str(name), "", "expected a file, got a directory")
    if path.suffix in _SUFFIXES or len(path.parts) > 1:
        raise ScenarioError(str(name), "", "no such file")
    raise ScenarioError(
        str(name), "", f"expected a file or a preset, got neither{nearest(str(name), known)}"
    )


def load(name: str | Path, *, allow_code: bool = False) -> Scenario:
    """Read and check a scenario file or a preset. Raises ScenarioError.

    A file whose policy or shadow is Python code is refused unless `allow_code`: whoever runs the
    policy imports that code, and a scenario may come from anywhere. Reading it imports nothing.

    >>> load("smoke").server_names
    ('left', 'right')
    """
    path = find(name)
    return loads(read_text(path), str(path), path.parent, allow_code=allow_code)


def refuse_code(file: str, key: str, policy: object) -> None:
    """Raises ScenarioError if a file names a policy that is Python code."""
    if isinstance(policy, str) and is_code(policy):
        raise ScenarioError(
            file,
            key,
            f"{policy} is Python code, which a file may not have run; allow it with --allow-code, "
            "or name it on the command line",
        )


def loads(
    text: str,
    file: str = "<scenario>",
    folder: str | Path = ".",
    *,
    allow_code: bool = False,
) -> Scenario:
    """Parse and check a scenario; relative paths start from `folder`."""
    raw = parse_yaml(text, file)
    if not isinstance(raw, dict):
        what = "nothing" if raw is None else type(raw).__name__
        raise ScenarioError(file, "", f"expected a mapping with name, servers, …, got {what}")
    _spell_out(raw)
    _absolute(raw, Path(folder).resolve())
    if not allow_code:
        for key in ("policy", "shadow"):
            refuse_code(file, key, raw.get(key))
    profile = raw.pop("profile", None)
    if isinstance(profile, str) and profile:
        fill_in(raw, Path(folder).resolve() / Path(profile).expanduser())
    elif profile is not None:
        raise ScenarioError(file, "profile", f"expected a file, got {profile!r:.60}")
    return check(convert_document(raw, Scenario, file), file)


def dump(scenario: Scenario) -> str:
    """YAML of `scenario` with every field, defaults included; `loads` reads it back unchanged."""
    raw = msgspec.to_builtins(scenario)
    for server in raw["servers"].values():
        server["services"] = [_short(service) for service in server["services"]]
    network = raw["network"]
    for base, overrides in (("link", "links"), ("access", "access_links")):
        network[overrides] = {
            name: _difference(link, network[base]) for name, link in network[overrides].items()
        }
    return dump_yaml(raw)


# -- short forms ---------------------------------------------------------------------------------


def _spell_out(raw: dict[str, Any]) -> None:
    """Replace short forms. Values of a wrong type stay, for the schema to refuse."""
    servers = raw.get("servers")
    for server in servers.values() if isinstance(servers, dict) else ():
        if isinstance(server, dict) and isinstance(server.get("services"), list):
            server["services"] = [_spelt_out(each) for each in server["services"]]
    network = raw.get("network")
    if not isinstance(network, dict):
        return
    for base, overrides in (("link", "links"), ("access", "access_links")):
        given = network.get(overrides)
        start = network.get(base, _BASES[base])
        if not isinstance(given, dict) or not isinstance(start, dict):
            continue
        for name, link in given.items():
            if isinstance(link, dict):
                given[name] = _merge(start, link)


def _spelt_out(service: Any) -> Any:
    """A service that is a bare name, or has a single number as its latency, in full."""
    if isinstance(service, str):
        return {"model": service}
    if isinstance(service, dict) and isinstance(service.get("latency"), int | float):
        return {**service, "latency": [service["latency"]]}
    return service


def _merge(base: dict[str, Any], link: dict[str, Any]) -> dict[str, Any]:
    """`base` updated by `link`; a rate replaces a trace, and the reverse."""
    merged = {**base, **link}
    if link.get("trace") is not None and "rate_mbps" not in link:
        merged["rate_mbps"] = None
    if "rate_mbps" in link and "trace" not in link:
        merged["trace"] = None
    return merged


def _difference(link: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The fields of `link` that differ from `base`: `_merge` puts them together again."""
    return {key: value for key, value in link.items() if value != base[key]}


def _short(service: dict[str, Any]) -> Any:
    given = {key: value for key, value in service.items() if value is not None}
    return given["model"] if len(given) == 1 else given


_PATHS = (
    "workload.images",
    "workload.arrivals.file",
    "network.link.trace.path",
    "network.access.trace.path",
    "network.links.*.trace.path",
    "network.access_links.*.trace.path",
    "network.events.*.set.trace.path",
)
"""Fields that hold a path; * stands for every key."""


def _absolute(raw: dict[str, Any], folder: Path) -> None:
    """Make paths absolute, so that a scenario works from any folder."""
    for key in ("policy", "shadow"):
        if isinstance(raw.get(key), str):
            raw[key] = absolute(raw[key], folder)
    for place in _PATHS:
        *way, key = place.split(".")
        for holder in _at(raw, way):
            path = holder.get(key)
            if isinstance(path, str) and path and (place, path) != ("workload.images", "builtin"):
                holder[key] = str(folder / Path(path).expanduser())


def _at(raw: Any, way: list[str]) -> Iterator[dict[str, Any]]:
    """The mappings that `way` leads to; none where something else is in the way."""
    if isinstance(raw, list):
        raw = dict(enumerate(raw))
    if not isinstance(raw, dict):
        return
    if not way:
        yield raw
        return
    for below in raw.values() if way[0] == "*" else [raw.get(way[0])]:
        yield from _at(below, way[1:])
