"""The Open Inference Protocol without sockets: messages that are read, and those refused."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.domain import Outcome, PayloadForm, Stamps, Status
from edgewise.errors import PeerError, WireError
from edgewise.live.wire.open_inference import (
    HEADER_LENGTH,
    InferAnswer,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)

PHOTO = b"\xff\xd8 a photo \xff\xd9"


def tensor(**changes: Any) -> dict[str, Any]:
    return {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(PHOTO).decode()],
    } | changes


def body(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs)} | more).encode()


@given(st.binary(max_size=300), st.text(max_size=20))
def test_binary_form_round_trip(photo: bytes, name: str) -> None:
    headers, encoded = encode_request(photo, name, {"timeout": 5})
    request = decode_request(encoded, headers[HEADER_LENGTH])
    assert (request.photo, request.id, request.parameters) == (photo, name, {"timeout": 5})


@pytest.mark.parametrize("shape", [[1], [1, 1]])
def test_json_form(shape: list[int]) -> None:
    data: Any = base64.b64encode(PHOTO).decode()
    for _ in shape:
        data = [data]
    assert decode_request(body(tensor(shape=shape, data=data)), None).photo == PHOTO


def test_a_request_of_tritonclient() -> None:
    """The body that tritonclient[http] 2.73 sends for one image, byte for byte."""
    head = (
        b'{"id":"7","inputs":[{"name":"image","shape":[1],"datatype":"BYTES",'
        b'"parameters":{"binary_data_size":7}}],"parameters":{"binary_data_output":true}}'
    )
    assert len(head) == 146
    request = decode_request(head + b"\x03\x00\x00\x00abc", str(len(head)))
    assert request.photo == b"abc"
    assert request.binary == {"class", "score"}


BINARY = {"shape": [1], "datatype": "BYTES", "data": None}


@pytest.mark.parametrize(
    ("encoded", "length", "field"),
    [
        (body(tensor(datatype="FP32")), None, "inputs[0].datatype"),
        (body(tensor(shape=[2])), None, "inputs[0].shape"),
        (body(tensor(shape=[])), None, "inputs[0].shape"),
        (body(tensor(shape="1")), None, "inputs[0].shape"),
        (body(tensor(name="photo")), None, "inputs[0].name"),
        (body(), None, "inputs"),
        (body(tensor(), tensor()), None, "inputs"),
        (body(tensor(data=["%%%"])), None, "inputs[0].data"),
        (body(tensor(data=[1])), None, "inputs[0].data"),
        (body(tensor(data=[])), None, "inputs[0].data"),
        (body(tensor(data=["YQ==", "YQ=="])), None, "inputs[0].data"),
        (body(tensor(), outputs=[{"name": "logits"}]), None, "outputs[0].name"),
        (b"{}", None, "inputs"),
        (b"not json", None, ""),
        (b"\xff\xfe", None, ""),
        (b"", None, ""),
        (body(tensor()), "999999", HEADER_LENGTH),
        (body(tensor()), "-1", HEADER_LENGTH),
        (body(tensor()), "x", HEADER_LENGTH),
    ],
)
def test_a_bad_request_names_the_field(encoded: bytes, length: str | None, field: str) -> None:
    with pytest.raises(WireError) as caught:
        decode_request(encoded, length)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("size", "behind"),
    [
        (7, b"\x04\x00\x00\x00abc"),  # the element says one byte more than there is
        (7, b"\x02\x00\x00\x00abc"),
        (8, b"\x03\x00\x00\x00abc"),
        (3, b"abc"),
        ("7", b"\x03\x00\x00\x00abc"),
        (True, b"a"),
    ],
)
def test_binary_sizes_must_agree(size: Any, behind: bytes) -> None:
    head = body(tensor(data=None, parameters={"binary_data_size": size}))
    with pytest.raises(WireError):
        decode_request(head + behind, str(len(head)))


SERVED = InferAnswer(
    outcome=Outcome(
        request="r1",
        status=Status.SERVED,
        server="plaza",
        model="lite1",
        form=PayloadForm.MODEL_READY,
        predicted=65,
        accuracy=0.9,
        stamps=Stamps(accepted=1.0, uploaded=2.0, started=3.0),
    ),
    code=200,
    score=0.5,
)


def test_answer_round_trip() -> None:
    _, encoded = encode_answer(SERVED, "7", frozenset())
    assert decode_answer("r1", 200, encoded) == SERVED


def test_binary_answer() -> None:
    headers, encoded = encode_answer(SERVED, "7", frozenset({"class"}))
    length = int(headers[HEADER_LENGTH])
    head = json.loads(encoded[:length])
    assert struct.unpack("<q", encoded[length:]) == (65,)
    assert [output["name"] for output in head["outputs"]] == ["class", "score"]
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert head["outputs"][1]["data"] == [0.5]
    assert head["id"] == "7"


def test_error_round_trip() -> None:
    outcome = Outcome(request="r1", status=Status.SHED, reason="queue_full")
    answer = InferAnswer(outcome=outcome, code=429, error="shed: queue_full")
    _, encoded = encode_answer(answer, "", frozenset())
    assert json.loads(encoded)["error"] == "shed: queue_full"
    assert decode_answer("r1", 429, encoded) == answer


def test_foreign_error_is_a_failure() -> None:
    """A proxy's answer has no status of ours."""
    answer = decode_answer("r1", 502, b'{"error": "bad gateway"}')
    assert (answer.outcome.status, answer.outcome.reason) == (Status.FAILED, "bad gateway")


@pytest.mark.parametrize(
    ("code", "encoded"),
    [
        (502, b"<html>"),
        (200, b"{}"),
        (200, b'{"outputs": [{"name": "class", "datatype": "INT64", "shape": [1], "data": []}]}'),
        (200, b'{"outputs": [{"name": "class", "datatype": "X", "shape": [1], "data": ["a"]}]}'),
        (500, b'{"parameters": {"edgewise.status": "served"}}'),
        (500, b'{"parameters": {"edgewise.status": "odd"}}'),
    ],
)
def test_a_malformed_answer_is_refused(code: int, encoded: bytes) -> None:
    with pytest.raises(PeerError):
        decode_answer("r1", code, encoded)
