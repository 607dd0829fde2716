"""Reading and writing scenario files.

What comes in: YAML. What goes out: a `Scenario` in which every short form is spelt out (a service
that was a bare string, a link that gave only what differs from the default link) and every path is
absolute. ``load(dump(scenario)) == scenario``.

The YAML is 1.2's core schema, not PyYAML's 1.1: there ``on`` is a truth value, ``1e-3`` a text and
``12:30`` the number 750. A key that stands twice is an error, for PyYAML drops the first.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import yaml  # type: ignore[import-untyped]

from edgewise.documents import explain, nearest
from edgewise.errors import ScenarioError
from edgewise.scenario.checks import check
from edgewise.scenario.measured_profile import fill_in
from edgewise.scenario.network_schema import NetworkSpec
from edgewise.scenario.schema import Scenario

_SUFFIXES = (".yaml", ".yml", ".json")
_BASES: dict[str, Any] = msgspec.to_builtins(
    {"link": NetworkSpec().link, "access": NetworkSpec().access}
)


def presets() -> dict[str, Path]:
    """The scenarios that come with edgewise: name to file."""
    folder = Path(str(resources.files("edgewise") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str | Path) -> Path:
    """The file of a preset's name or of a path. Raises ScenarioError if there is neither."""
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


def load(name: str | Path) -> Scenario:
    """Read and check a scenario file or a preset. Raises ScenarioError."""
    path = find(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ScenarioError(str(path), "", f"expected UTF-8, got byte {error.start}") from None
    except OSError as error:
        raise ScenarioError(str(path), "", f"cannot be read: {error.strerror}") from None
    return loads(text, str(path), path.parent)


def loads(text: str, file: str = "<scenario>", folder: str | Path = ".") -> Scenario:
    """Parse and check a scenario; `folder` is what relative paths start from."""
    raw = _parse(text, file)
    if not isinstance(raw, dict):
        what = "nothing" if raw is None else type(raw).__name__
        raise ScenarioError(file, "$", f"expected a mapping with name, servers, …, got {what}")
    _spell_out(raw)
    _absolute(raw, Path(folder).resolve())
    profile = raw.pop("profile", None)
    if isinstance(profile, str) and profile:
        fill_in(raw, Path(folder).resolve() / Path(profile).expanduser())
    elif profile is not None:
        raise ScenarioError(file, "$.profile", f"expected a file, got {profile!r:.60}")
    try:
        scenario = msgspec.convert(raw, Scenario)
    except msgspec.ValidationError as error:
        raise explain(file, error, raw, Scenario) from None
    check(scenario, file)
    return scenario


def dump(scenario: Scenario) -> str:
    """YAML with every field written, defaults too, that loads to the same scenario."""
    raw = msgspec.to_builtins(scenario)
    for server in raw["servers"].values():
        server["services"] = [_short(service) for service in server["services"]]
    network = raw["network"]
    for base, overrides in (("link", "links"), ("access", "access_links")):
        network[overrides] = {
            name: _difference(link, network[base]) for name, link in network[overrides].items()
        }
    text = yaml.dump(
        _plain(raw),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )
    return str(text)


# -- short forms ---------------------------------------------------------------------------------


def _spell_out(raw: dict[str, Any]) -> None:
    """Replace short forms. Whatever has the wrong type is left for the schema to refuse."""
    servers = raw.get("servers")
    for server in servers.values() if isinstance(servers, dict) else ():
        if isinstance(server, dict) and isinstance(server.get("services"), list):
            server["services"] = [
                {"model": each} if isinstance(each, str) else each for each in server["services"]
            ]
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


def _merge(base: dict[str, Any], link: dict[str, Any]) -> dict[str, Any]:
    """`link` over `base`; a rate given there replaces a trace from here, and the reverse."""
    merged = {**base, **link}
    if link.get("trace") is not None and "rate_mbps" not in link:
        merged["rate_mbps"] = None
    if "rate_mbps" in link and "trace" not in link:
        merged["trace"] = None
    return merged


def _difference(link: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """What `_merge` needs over `base` to get `link`."""
    return {key: value for key, value in link.items() if value != base[key]}


def _short(service: dict[str, Any]) -> Any:
    given = {key: value for key, value in service.items() if value is not None}
    return given["model"] if len(given) == 1 else given


def _absolute(raw: dict[str, Any], folder: Path) -> None:
    """Paths relative to the file become absolute, so that a scenario can be passed around."""

    def fix(holder: Any, key: str) -> None:
        if isinstance(holder, dict) and isinstance(holder.get(key), str) and holder[key]:
            holder[key] = str(folder / Path(holder[key]).expanduser())

    def fix_link(link: Any) -> None:
        if isinstance(link, dict):
            fix(link.get("trace"), "path")

    for key in ("policy", "shadow"):
        if isinstance(raw.get(key), str) and raw[key].endswith(".safetensors"):
            fix(raw, key)
    workload, network = raw.get("workload"), raw.get("network")
    if isinstance(workload, dict):
        if workload.get("images") != "builtin":
            fix(workload, "images")
        fix(workload.get("arrivals"), "file")
    if isinstance(network, dict):
        for base in ("link", "access"):
            fix_link(network.get(base))
        for overrides in ("links", "access_links"):
            links = network.get(overrides)
            for link in links.values() if isinstance(links, dict) else ():
                fix_link(link)


def _plain(value: Any) -> Any:
    """Tuples to lists, for YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


# -- YAML 1.2 ------------------------------------------------------------------------------------


def _parse(text: str, file: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # _Loader is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        what = error.problem or error.context or "cannot be parsed"
        raise ScenarioError(file, "", f"not YAML: {where}{what}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ScenarioError(file, "", f"not YAML: {error}") from None


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML 1.2 core schema; refuses duplicate keys."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes what `_Loader` would read as something else, and nothing more."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # equal parts are written out, not as &anchors


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue  # <<: what it brings may be overridden
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"a key must be text, got {key!r:.60}", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", key_node.start_mark
            )
        seen.add(key)
    loader.flatten_mapping(node)
    pairs = [
        (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
        for key, value in node.value
    ]
    return dict(pairs)


_CORE = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", r"<<", "<"),
)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # 010 is ten, as in 1.2


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace(".inf", "inf").replace(".nan", "nan"))


def _set_up() -> None:
    for cls in (_Loader, _Dumper):
        cls.yaml_implicit_resolvers = {}
        for tag, pattern, first in _CORE:
            cls.add_implicit_resolver(
                f"tag:yaml.org,2002:{tag}",
                re.compile(f"^(?:{pattern})$"),
                ["" if letter == "\0" else letter for letter in first],
            )
    _Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
    _Loader.add_constructor("tag:yaml.org,2002:int", _number)
    _Loader.add_constructor("tag:yaml.org,2002:float", _float)


_set_up()
