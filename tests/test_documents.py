"""YAML 1.2 and its errors, which scenarios and process configurations share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from edgewise.decoding import convert, decode_json
from edgewise.documents import dump_yaml, parse_yaml, read_document
from edgewise.errors import ScenarioError, WireError
from edgewise.live.process_config import NodeConfig
from edgewise.scenario import loads

NODE = """
server: {server}
scenario: fleet.yaml
peers: {{}}
"""


class Inner(Struct, forbid_unknown_fields=True):
    rate: float = 1.0
    names: dict[str, int] = {}


class Outer(Struct, forbid_unknown_fields=True):
    inner: Inner
    many: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("010", 10),
        ("20e6", 2e7),
        ("1e-3", 0.001),
        ("-.inf", float("-inf")),
        ("true", True),
        ("~", None),
        ("'20e6'", "20e6"),
        ("{a: 1, a b: [2]}", {"a": 1, "a b": [2]}),
        (".NaN", pytest.approx(float("nan"), nan_ok=True)),
        ("+.INF", float("inf")),
        ("b: {<<: {x: 1, y: 2}, x: 3}", {"b": {"x": 3, "y": 2}}),
        ("b: {<<: [{x: 1}, {x: 2, yy: 3}], z: 4}", {"b": {"x": 1, "yy": 3, "z": 4}}),
        ("b: {<<: [{xx: 1}, {xx: 2}]}", {"b": {"xx": 1}}),
        # A mapping that overrides what it merges, merged again: `x` and `xx` must not differ.
        (
            "a: {<<: &b {<<: {x: 1, xx: 1}, x: 2, xx: 2}}\nb: *b\nc: {<<: *b}",
            {key: {"x": 2, "xx": 2} for key in "abc"},
        ),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert parse_yaml(text, "f") == value


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**12), 10**12)
        | st.floats(allow_nan=False)
        | st.sampled_from(["no", "1e3", "010", "null", "", "~", "12:30", "a: b", "- x", "é\n"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["no", "a", "1", "x y"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_what_is_dumped_is_read_again(value: Any) -> None:
    assert parse_yaml(dump_yaml(value), "f") == value


def test_merges_of_merges_take_no_time() -> None:
    levels = (f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30))
    text = "a0: &a0 {x: 1, xx: 2}\n" + "".join(levels)
    assert parse_yaml(text, "f")["a29"] == {"x": 1, "xx": 2}


def test_a_process_configuration_reads_like_a_scenario(tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text(NODE.format(server="no"))
    assert read_document(file, NodeConfig).server == "no"  # YAML 1.1 has false here
    file.write_text(NODE.format(server="plaza") + "server: depot\n")
    with pytest.raises(ScenarioError, match=r"yaml: not YAML: line 5, .*'server' occurs twice"):
        read_document(file, NodeConfig)
    file.write_text(NODE.format(server="plaza") + "scenari: x\n")
    with pytest.raises(ScenarioError, match=r"unknown field 'scenari' \(did you mean 'scenario'"):
        read_document(file, NodeConfig)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inner: {rate: fast}", "f.yaml: inner.rate: expected a number, got 'fast'"),
        ("inner: {rate: [1]}", "f.yaml: inner.rate: expected a number, got a list of 1"),
        (
            "inner: {}\nmany: {a: {}, b: {rate: x}}",
            "f.yaml: many.b.rate: expected a number, got 'x'",
        ),
        ("inner: {}\nmany: {a: {}, b: {rat: 1}}", "unknown field 'rat' (did you mean 'rate'?)"),
        ("inner: {names: {2: 1}}", "f.yaml: inner.names: expected a key that is text, got 2"),
        ("{}", "f.yaml: expected a field 'inner', which is missing"),
        ("3", "f.yaml: expected a mapping, got 3"),
        ("inner: {", "f.yaml: not YAML: line "),
        ("inner: {<<: {rate: 1, rate: 2}}", "line 1, column 23: the key 'rate' occurs twice"),
        ("inner: {<<: 5}", "line 1, column 13: expected a mapping to merge, got a scalar"),
        ("inner: &a {<<: *a}", "f.yaml: not YAML: "),
        ("inner: !!bool maybe", "line 1, column 8: expected true or false, got 'maybe'"),
        ("inner: !!timestamp x", "could not determine a constructor for the tag"),
        ("[" * 100_000, "f.yaml: not YAML: "),
    ],
)
def test_errors_name_file_field_value_and_what_was_expected(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        read_document(file, Outer)
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"x.yaml: cannot be read: No such file"):
        read_document(tmp_path / "x.yaml", Outer)
    (tmp_path / "x.yaml").write_bytes(b"inner: \xff")
    with pytest.raises(ScenarioError, match=r"x.yaml: expected UTF-8, got byte 7"):
        read_document(tmp_path / "x.yaml", Outer)
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfinner: {}")
    assert read_document(tmp_path / "x.yaml", Outer) == Outer(Inner())


@pytest.mark.parametrize(
    ("data", "field", "problem"),
    [
        (b'{"inner": {"rate": "x"}}', "inner.rate", "expected a number, got text"),
        (b"{}", "inner", "missing"),
        (b'{"inner": {}, "many": {"a": {"rate": []}}}', "many[...].rate", "expected a number"),
        (b"[]", "", "expected a mapping, got a list"),
        (b"{", "", "not JSON"),
        (b"[" * 100_000, "", ""),
    ],
)
def test_errors_of_messages_name_the_field(data: bytes, field: str, problem: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_json(data, Outer)
    assert caught.value.field == field
    assert problem in caught.value.problem


def test_fields_of_a_message_get_a_prefix() -> None:
    with pytest.raises(WireError, match=r"^edgewise-rate: expected a number, got text$"):
        convert({"rate": "x"}, Inner, "edgewise-")


def test_a_single_latency_needs_no_list() -> None:
    text = """
name: one
servers: {a: {services: [{model: m, accuracy: 0.5, latency: 0.004}]}}
workload:
  {duration: 1, arrivals: {kind: constant, rate: 1}, ingress: {a: 1}, demands: [{deadline: 1}]}
"""
    assert loads(text).servers["a"].services[0].latency == (0.004,)
