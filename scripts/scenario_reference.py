"""Write the tables of docs/scenario.md from the schema, in place.

    python scripts/scenario_reference.py [--check]

A field's docstring is ``[unit] What it means. Default: why the default is what it is.`` With
``--check`` nothing is written and the exit code says whether the file is current.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec

from edgewise.benchmark import document
from edgewise.network import settings, trace, trace_reader
from edgewise.network.impairments import IMPAIRMENTS
from edgewise.network.settings import LinkBase, LinkSettings
from edgewise.scenario import network_schema, schema, workload_schema

DOCUMENT = Path(__file__).parents[1] / "docs" / "scenario.md"
MARK = "reference"
"""The name in the two marks around what is written."""

# In the order of the file; the heading is the place where the mapping stands.
SECTIONS: tuple[tuple[str, type[Any]], ...] = (
    ("(top level)", schema.Scenario),
    ("prepare", schema.Prepare),
    ("servers.NAME", schema.ServerSpec),
    ("servers.NAME.services[]", schema.ServiceSpec),
    ("service_noise", schema.ServiceNoise),
    ("service_noise.spell", schema.Spell),
    ("network", network_schema.NetworkSpec),
    ("network.access, .link, .access_links.NAME, .links.NAME", LinkSettings),
    ("network.….outages[]", settings.Outage),
    ("network.….trace, kind: file", trace.FileTrace),
    ("network.….trace, kind: file, units", trace_reader.TraceUnits),
    ("network.….trace, kind: cellular", trace.CellularTrace),
    ("network.….trace, kind: wifi", trace.WifiTrace),
    ("network.….trace, kind: backhaul", trace.BackhaulTrace),
    ("network.events[]", settings.LinkEvent),
    ("workload", workload_schema.WorkloadSpec),
    ("workload.arrivals, kind: constant", workload_schema.ConstantArrivals),
    ("workload.arrivals, kind: poisson", workload_schema.PoissonArrivals),
    ("workload.arrivals, kind: mmpp", workload_schema.MmppArrivals),
    ("workload.arrivals, kind: diurnal", workload_schema.DiurnalArrivals),
    ("workload.arrivals, kind: trace", workload_schema.TraceArrivals),
    ("workload.demands[]", workload_schema.Demand),
    ("workload.payload, kind: images", workload_schema.ImagesPayload),
    ("workload.payload, kind: lognormal", workload_schema.LognormalPayload),
    ("failures[], kind: down", schema.DownFailure),
    ("failures[], kind: slow", schema.SlowFailure),
    ("failures[], kind: errors", schema.ErrorsFailure),
    ("failures[], kind: wrong", schema.WrongFailure),
    ("failures[], kind: mute", schema.MuteFailure),
    ("ejection", schema.EjectionSpec),
    ("score", schema.ScoreSpec),
)


class Row(NamedTuple):
    """One field."""

    name: str
    unit: str
    meaning: str
    required: bool
    default: str
    reason: str


def docstrings(module: ModuleType) -> dict[str, dict[str, str]]:
    """Class to field to the docstring below the field."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = found.setdefault(node.name, {})
        for field, after in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                fields[field.target.id] = " ".join(str(after.value.value).split())
    return found


def rows(cls: type[Any]) -> Iterator[Row]:
    """The fields of a struct. Raises KeyError for a field without a docstring."""
    texts: dict[str, str] = {}
    impairments = (each.settings for each in IMPAIRMENTS) if cls is LinkSettings else ()
    for each in (*cls.__mro__, *impairments):
        if each.__module__.startswith("edgewise."):
            texts |= docstrings(sys.modules[each.__module__]).get(each.__name__, {})
    for field in msgspec.structs.fields(cls):
        text = texts[field.name]
        match = re.fullmatch(r"(?:\[(?P<unit>[^\]]+)\] ?)?(?P<meaning>.*)", text)
        assert match
        meaning, _, reason = match["meaning"].partition("Default: ")
        required = field.required
        yield Row(
            field.encode_name,
            match["unit"] or "",
            _code(meaning.strip()),
            required,
            "**required**" if required else _default(field),
            _code(reason[:1].upper() + reason[1:]),
        )


def _code(text: str) -> str:
    return text.replace("``", "`").replace("|", r"\|")


def _value(field: msgspec.structs.FieldInfo) -> Any:
    made = field.default_factory
    return field.default if made is msgspec.NODEFAULT else made()


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = _value(field)
    if value is msgspec.UNSET:
        return "–"
    plain = msgspec.to_builtins(value)
    if isinstance(value, msgspec.Struct):
        blank = {
            each.encode_name: msgspec.to_builtins(_value(each))
            for each in msgspec.structs.fields(value)
            if not each.required
        }
        plain = {key: each for key, each in plain.items() if blank.get(key, blank) != each}
        if not plain:
            return "as below"
    text = msgspec.json.encode(plain).decode().strip('"')
    text = re.sub(r'"(\w+)":', r"\1: ", text).replace('"', "").replace(",", ", ")
    return f"`{text}`" if text else "empty"


def reference() -> str:
    """The tables as Markdown."""
    parts: list[str] = []
    for place, cls in SECTIONS:
        about = LinkBase if cls is LinkSettings else cls
        doc = " ".join((about.__doc__ or "").partition(">>>")[0].split())
        parts += [f"### {place}", "", _code(doc), ""]
        table = list(rows(cls))
        if table:
            parts += [
                "| field | unit | meaning | default | why |",
                "|---|---|---|---|---|",
                *(
                    f"| `{row.name}` | {row.unit} | {row.meaning} | {row.default} | {row.reason} |"
                    for row in table
                ),
                "",
            ]
    return "\n".join(parts)


def main() -> int:
    if "--check" in sys.argv[1:]:
        return int(not document.is_current(DOCUMENT, MARK, reference()))
    document.rewrite(DOCUMENT, MARK, reference())
    return 0


if __name__ == "__main__":
    sys.exit(main())
