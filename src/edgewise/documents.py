"""From msgspec's validation error to one that names the place, the value and the remedy.

msgspec says ``Expected `float`, got `str` - at `$.servers[...].speed` ``: without the key of a
mapping, without the value, and of a misspelt field not what it should have been. All three can be
had from the document itself, which is small; this runs only once something is wrong.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import msgspec
from msgspec import inspect

from edgewise.errors import ScenarioError

Path: TypeAlias = tuple[str | int, ...]

_PLAIN = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "object": "a mapping",
    "array": "a list",
    "null": "null",
}


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` or the list of what there is; empty if there is nothing."""
    options = list(known)
    close = difflib.get_close_matches(word, options, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (there is {', '.join(options[:12])})" if options else ""


def show(path: Iterable[str | int]) -> str:
    """``$.servers.plaza.services[0]``."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return "$" + "".join(parts)


def explain(file: str, error: msgspec.ValidationError, raw: Any, cls: type[Any]) -> ScenarioError:
    """The ScenarioError for `error`, which ``msgspec.convert(raw, cls)`` raised."""
    problem, at = _split(str(error))
    path = _locate(problem, at, raw, cls)
    return ScenarioError(file, show(path), _say(problem, path, raw, cls))


def _split(text: str) -> tuple[str, str]:
    problem, _, at = text.partition(" - at ")
    key = re.fullmatch(r"`key` in `(.*)`", at)
    return problem, key.group(1) if key else at.strip("`") or "$"


def _segments(at: str) -> list[str | int | None]:
    """The parts of msgspec's path; None for its ``[...]``, a key that it does not tell."""
    found: list[str | int | None] = []
    for match in re.finditer(r"\.([^.\[]+)|\[(\d+)\]|\[\.\.\.\]", at):
        name, index = match.groups()
        found.append(name if name is not None else int(index) if index is not None else None)
    return found


def _locate(problem: str, at: str, raw: Any, cls: type[Any]) -> Path:
    """Fill in unknown keys: the culprit is the key alone with which the error stays the same."""
    path: list[str | int] = []
    trial = copy.deepcopy(raw)
    for segment in _segments(at):
        if segment is not None:
            path.append(segment)
            continue
        entries = _get(trial, path)
        if not isinstance(entries, dict):
            break
        original = dict(entries)
        for key, value in original.items():
            entries.clear()
            entries[key] = value
            try:
                msgspec.convert(trial, cls)
            except msgspec.ValidationError as again:
                if _split(str(again)) == (problem, at):
                    path.append(key)
                    break
        else:  # cannot happen: one entry caused it
            entries.update(original)
            break
    return tuple(path)


def _get(raw: Any, path: Iterable[str | int]) -> Any:
    for key in path:
        try:
            raw = raw[key]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _say(problem: str, path: Path, raw: Any, cls: type[Any]) -> str:
    unknown = re.match(r"Object contains unknown field `(.*)`", problem)
    if unknown:
        field = unknown.group(1)
        return f"unknown field {field!r}{nearest(field, _fields(path, raw, cls))}"
    missing = re.match(r"Object missing required field `(.*)`", problem)
    if missing:
        return f"expected a field {missing.group(1)!r}, which is missing"
    value = _get(raw, path)
    if problem.startswith(("Invalid value", "Invalid enum value")):
        options = [str(option) for option in _options(path, raw, cls)]
        return f"expected one of {', '.join(options)}, got {value!r:.60}{_close(value, options)}"
    expected = re.match(r"Expected (.*?)(, got .*)?$", problem)
    if not expected:
        return problem
    if "matching regex" in problem:
        return f"expected a name (letters, digits, . _ -; at most 64), got {value!r:.60}"
    what = re.sub(r"`([^`]+)`", lambda match: _plain(match.group(1)), expected.group(1))
    return f"expected {what}, got {_value(value)}"


def _close(value: Any, options: list[str]) -> str:
    close = difflib.get_close_matches(str(value), options, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _plain(types: str) -> str:
    return " or ".join(_PLAIN.get(each, each) for each in types.split(" | "))


def _value(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{value!r:.60}"


# -- looking up the schema -----------------------------------------------------------------------


def _fields(path: Path, raw: Any, cls: type[Any]) -> list[str]:
    """Names of the fields that the mapping at `path` may have."""
    kinds = _at(path, raw, cls)
    return [
        field.encode_name
        for kind in kinds
        if isinstance(kind, inspect.StructType)
        for field in kind.fields
    ]


def _options(path: Path, raw: Any, cls: type[Any]) -> list[Any]:
    """What the value at `path` may be, if it is one of a list."""
    literals = [
        value
        for kind in _at(path, raw, cls)
        if isinstance(kind, inspect.LiteralType)
        for value in kind.values
    ]
    if literals or not path:
        return literals
    return [
        kind.tag
        for kind in _at(path[:-1], raw, cls, narrow=False)
        if isinstance(kind, inspect.StructType) and kind.tag_field == path[-1]
    ]


def _at(path: Path, raw: Any, cls: type[Any], narrow: bool = True) -> list[inspect.Type]:
    """The types that may stand at `path`; `narrow` keeps of a tagged union the one that does."""
    kinds = _narrow([inspect.type_info(cls)], raw if narrow or path else None)
    for depth, key in enumerate(path, start=1):
        below: list[inspect.Type] = []
        for kind in kinds:
            if isinstance(kind, inspect.StructType):
                below += [field.type for field in kind.fields if field.encode_name == key]
            elif isinstance(kind, inspect.DictType):
                below.append(kind.value_type)
            elif isinstance(kind, inspect.VarTupleType):
                below.append(kind.item_type)
            elif isinstance(kind, inspect.TupleType) and isinstance(key, int):
                below += kind.item_types[key : key + 1]
        last = depth == len(path) and not narrow
        kinds = _narrow(below, None if last else _get(raw, path[:depth]))
    return kinds


def _narrow(kinds: list[inspect.Type], value: Any) -> list[inspect.Type]:
    flat: list[inspect.Type] = []
    for kind in kinds:
        while isinstance(kind, inspect.Metadata):
            kind = kind.type
        members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
        for member in members:
            while isinstance(member, inspect.Metadata):
                member = member.type
            flat.append(member)
    if isinstance(value, Mapping):
        tagged: list[inspect.Type] = [
            kind
            for kind in flat
            if isinstance(kind, inspect.StructType)
            and kind.tag_field is not None
            and value.get(kind.tag_field) == kind.tag
        ]
        return tagged or flat
    return flat
