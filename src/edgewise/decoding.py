"""Decode what users and peers wrote, and say in plain words what is wrong with it.

msgspec reports ``Expected `float`, got `str` - at `$.servers[...].speed` ``. That lacks the key of
the mapping and the offending value, and for a misspelt field it does not say which field was meant.
`explain` finds all three in the decoded document, which costs something only once there is an
error. Scenarios, configurations, JSON messages and HTTP headers all get their errors here.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

import msgspec
from msgspec import inspect

from edgewise.errors import WireError

T = TypeVar("T")
Path: TypeAlias = tuple[str | int, ...]

_TYPES = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "object": "a mapping",
    "array": "a list",
    "null": "null",
}


_PATTERNS: dict[str, str] = {}


def pattern(regex: str, words: str) -> msgspec.Meta:
    """Constrain text to `regex`; `words` say in errors what was expected: ``a URL``."""
    _PATTERNS[regex] = words
    return msgspec.Meta(pattern=regex)


def decode_json(data: bytes | str, cls: type[T]) -> T:
    """Decode a JSON message. Raises WireError naming the field."""
    try:
        return msgspec.json.decode(data, type=cls)
    except msgspec.ValidationError as error:
        raise wire_error(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError("", f"not JSON: {error}") from None


def convert(data: Any, cls: type[T], prefix: str = "") -> T:
    """`msgspec.convert` for a message's fields. Raises WireError naming ``PREFIXfield``."""
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        raise wire_error(error, prefix) from None


def wire_error(error: msgspec.ValidationError, prefix: str = "") -> WireError:
    """The WireError for `error`.

    Only msgspec's own text is used: the message may be large, and its sender hostile.
    """
    problem, *ats = str(error).split(" - at ")  # an array inside a message has a path of its own
    field = "".join(at.strip("`").lstrip("$") for at in reversed(ats)).removeprefix(".")
    missing = re.search(r"missing required field `([^`]+)`", problem)
    if missing:
        field = f"{field}.{missing.group(1)}" if field else missing.group(1)
        problem = "missing"
    return WireError(prefix + field if field else prefix.rstrip(".-"), _plain(problem))


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)`` or `` (known: X, Y)``, to append to a message; empty if none is."""
    options = list(known)
    close = difflib.get_close_matches(word, options, n=1)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(options[:12])})" if options else ""


def show(path: Iterable[str | int]) -> str:
    """A path into a document as text: ``servers.plaza.services[0]``."""
    parts = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return "".join(parts).removeprefix(".")


def explain(error: msgspec.ValidationError, raw: Any, cls: type[Any]) -> tuple[str, str]:
    """Where ``msgspec.convert(raw, cls)`` failed with `error`, and why, in plain words."""
    problem, at = _split(str(error))
    path = _locate(problem, at, raw, cls)
    value = _get(raw, path)
    if "`key` in" in str(error) and path:
        value, path = path[-1], path[:-1]
        problem = problem.replace("Expected", "Expected a key that is", 1)
    return show(path), _say(problem, path, value, raw, cls)


def _split(text: str) -> tuple[str, str]:
    problem, _, at = text.partition(" - at ")
    key = re.fullmatch(r"`key` in `(.*)`", at)
    return problem, f"{key.group(1)}[...]" if key else at.strip("`") or "$"


def _segments(at: str) -> list[str | int | None]:
    """The parts of msgspec's path; None for ``[...]``, which stands for a key it leaves out."""
    segments: list[str | int | None] = []
    for match in re.finditer(r"\.([^.\[]+)|\[(\d+)\]|\[\.\.\.\]", at):
        name, index = match.groups()
        segments.append(name if name is not None else int(index) if index is not None else None)
    return segments


def _locate(problem: str, at: str, raw: Any, cls: type[Any]) -> Path:
    """The path of the error with its left-out keys filled in.

    The culprit is the key that, left alone in its mapping, gives the same error again.
    """
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


def _say(problem: str, path: Path, value: Any, raw: Any, cls: type[Any]) -> str:
    unknown = re.match(r"Object contains unknown field `(.*)`", problem)
    if unknown:
        field = unknown.group(1)
        return f"unknown field {field!r}{nearest(field, _fields(path, raw, cls))}"
    missing = re.match(r"Object missing required field `(.*)`", problem)
    if missing:
        return f"expected a field {missing.group(1)!r}, which is missing"
    if problem.startswith(("Invalid value", "Invalid enum value")):
        options = [str(option) for option in _options(path, raw, cls)]
        return f"expected one of {', '.join(options)}, got {value!r:.60}{_close(value, options)}"
    expected = re.match(r"Expected (.*?)(, got .*)?$", problem)
    if not expected:
        return problem
    return f"expected {_plain(expected.group(1))}, got {_value(value)}"


def _close(value: Any, options: list[str]) -> str:
    close = difflib.get_close_matches(str(value), options, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _plain(problem: str) -> str:
    """msgspec's wording with plain words for types: ``expected a number, got text``."""

    regex = re.search(r"`str` matching regex '(.*)'", problem)
    if regex:
        words = _PATTERNS.get(regex.group(1).replace("\\\\", "\\"), "other text")
        problem = problem.replace(regex.group(0), words)

    def types(match: re.Match[str]) -> str:
        return " or ".join(_TYPES.get(each, each) for each in match.group(1).split(" | "))

    text = re.sub(r"`([^`]+)`", types, problem)
    return text[:1].lower() + text[1:]


def _value(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"{value!r:.60}"


# -- look-ups in the schema ------------------------------------------------------------------------


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
    """The values allowed at `path`, if there is a list of them."""
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
    """The types allowed at `path`; with `narrow`, of a tagged union only the one given there."""
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
