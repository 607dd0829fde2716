"""Read and write the files that users edit: scenarios, configurations, profiles.

All are YAML with the core schema of YAML 1.2. PyYAML alone reads YAML 1.1, where ``no`` is a truth
value, ``20e6`` is text and ``12:30`` is the number 750, and where of two equal keys the last wins
in silence. Here these are text, a number, text, and an error with its line.

Every error is a ScenarioError that reads ``FILE: field: expected …, got …``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml  # type: ignore[import-untyped]

from edgewise.decoding import explain
from edgewise.errors import ScenarioError

T = TypeVar("T")


def read_document(path: Path, cls: type[T]) -> T:
    """Read a YAML (or JSON) file into a `cls`. Raises ScenarioError."""
    return convert_document(parse_yaml(read_text(path), str(path)), cls, str(path))


def read_text(path: Path) -> str:
    """A UTF-8 file; a byte order mark is dropped. Raises ScenarioError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ScenarioError(str(path), "", f"expected UTF-8, got byte {error.start}") from None
    except OSError as error:
        raise ScenarioError(str(path), "", f"cannot be read: {error.strerror}") from None


def parse_yaml(text: str, file: str) -> Any:
    """The mappings, lists and scalars in `text`; `file` is what an error names.

    Raises ScenarioError with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # _Loader is a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = error.problem or error.context or "cannot be parsed"
        raise ScenarioError(file, "", f"not YAML: {where}{problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem, *_ = str(error).splitlines()
        raise ScenarioError(file, "", f"not YAML: {problem}") from None


def convert_document(raw: Any, cls: type[T], file: str) -> T:
    """`raw`, as `parse_yaml` returns it, as a `cls`. Raises ScenarioError naming the field."""
    try:
        return msgspec.convert(raw, cls)
    except msgspec.ValidationError as error:
        raise ScenarioError(file, *explain(error, raw, cls)) from None


def dump_yaml(value: Any) -> str:
    """`value` as YAML that `parse_yaml` reads to the same mappings, lists and scalars."""
    text = yaml.dump(
        _without_tuples(msgspec.to_builtins(value)),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )
    return str(text)


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_tuples(each) for each in value]
    return value


# -- YAML 1.2 on top of PyYAML -------------------------------------------------------------------


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads YAML 1.2's core schema and refuses duplicate keys."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace each ``<<`` by the pairs that it brings; keys of the mapping itself override
        them, and of several merged mappings the first has precedence.

        PyYAML's own tells keys apart by the identity of their text, so that of some equal keys the
        wrong one wins. Raises ConstructorError for a key that occurs twice or is no text or number.
        """
        own: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for source in _merge_sources(value_node):
                    self.flatten_mapping(source)
                    for pair in source.value:
                        merged.setdefault(self.construct_object(pair[0], deep=True), pair)
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int):
                raise _wrong(key_node, f"a key must be text, got {key!r:.60}")
            if key in own:
                raise _wrong(key_node, f"the key {key!r} occurs twice")
            own[key] = key_node, value_node
        node.value = [*(merged | own).values()]


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Quotes text that `_Loader` would read as something else, and no other."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # equal parts are written out, not as &anchors


def _merge_sources(node: yaml.Node) -> list[yaml.MappingNode]:
    """The mappings that the value of a ``<<`` names."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    for each in nodes:
        if not isinstance(each, yaml.MappingNode):
            raise _wrong(each, f"expected a mapping to merge, got a {each.id}")
    return list(nodes)


def _wrong(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
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


def _bool(loader: _Loader, node: yaml.ScalarNode) -> bool:
    text = loader.construct_scalar(node)
    if text.lower() not in ("true", "false"):  # tagged !!bool
        raise _wrong(node, f"expected true or false, got {text!r:.60}")
    return bool(text.lower() == "true")


def _int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))  # 010 is ten, as in 1.2


def _float(loader: _Loader, node: yaml.ScalarNode) -> float:
    return float(re.sub(r"\.(inf|nan)", r"\1", loader.construct_scalar(node).lower()))


def _set_up() -> None:
    for cls in (_Loader, _Dumper):
        cls.yaml_implicit_resolvers = {}
        for tag, pattern, first in _CORE:
            cls.add_implicit_resolver(
                _TAG + tag,
                re.compile(f"^(?:{pattern})$"),
                ["" if letter == "\0" else letter for letter in first],
            )
    # Without timestamps, sets and other types that the core schema does not have.
    _Loader.yaml_constructors = {
        tag: constructor
        for tag, constructor in _Loader.yaml_constructors.items()
        if tag in (None, *(_TAG + name for name in ("null", "str", "seq")))
    }
    for name, constructor in (
        ("map", _mapping),
        ("bool", _bool),
        ("int", _int),
        ("float", _float),
    ):
        _Loader.add_constructor(_TAG + name, constructor)


_set_up()
