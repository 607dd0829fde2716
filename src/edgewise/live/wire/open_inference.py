"""The Open Inference Protocol (V2) as edgewise speaks it: bytes in, values out. No sockets.

A request has one input tensor ``image``, BYTES, of shape [1] or [1, 1]: a JPEG or PNG. It stands
either as base64 in the JSON (``"data": ["..."]``) or behind the JSON in Triton's binary form:
``binary_data_size`` says how many bytes, the header `Inference-Header-Content-Length` where the
JSON ends, and the bytes begin with a 4-byte little-endian length. An answer has ``class`` INT64 [1]
and ``score`` FP32 [1]. All else stands in its ``parameters``, namespaced ``edgewise.``; the JSON of
an error has them too.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from edgewise.decoding import convert, decode_json
from edgewise.domain import Outcome, ShedReason, Status, own_id
from edgewise.errors import PeerError, WireError

INPUT = "image"
OUTPUTS = {"class": "INT64", "score": "FP32"}
HEADER_LENGTH = "Inference-Header-Content-Length"

PREFIX = "edgewise."
_OUTCOME_FIELDS = ("server", "model", "accuracy", "reason", "form")
"""Fields of an outcome that an answer carries, beside request, status, class and stamps."""


class _Tensor(Struct, kw_only=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Any = None


class _Output(Struct, kw_only=True):
    name: str
    parameters: dict[str, Any] | None = None


class _Infer(Struct, kw_only=True):
    """The JSON of a request. Optional members may be null, as some clients write them."""

    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class InferRequest(Struct, frozen=True, kw_only=True):
    """The content of an infer request."""

    photo: bytes
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: tuple[str, ...] = tuple(OUTPUTS)
    """Outputs that the client wants."""
    binary: frozenset[str] = frozenset()
    """Those of them that it wants in binary form."""


def is_raw_photo(content_type: str | None) -> bool:
    """Whether a body of that Content-Type is a photo and nothing else."""
    return content_type is not None and content_type.strip().lower().startswith("image/")


def decode_request(
    body: bytes, header_length: str | None, content_type: str | None = None
) -> InferRequest:
    """Read the body of an infer request. Raises WireError naming the field: answer 400."""
    if is_raw_photo(content_type):
        return InferRequest(photo=body)
    length = len(body)
    if header_length is not None:
        try:
            length = int(header_length)
        except ValueError:
            length = -1
        if not 0 <= length <= len(body):
            raise WireError(
                HEADER_LENGTH, f"expected 0 to {len(body)} (the body), got {header_length!r:.40}"
            )
    message = decode_json(body if length == len(body) else body[:length], _Infer)
    return InferRequest(
        photo=_photo(message, memoryview(body)[length:]),
        id=message.id or "",
        parameters=message.parameters or {},
        outputs=_wanted(message),
        binary=_wanted_binary(message),
    )


def _photo(message: _Infer, binary: memoryview) -> bytes:
    if len(message.inputs) != 1:
        raise WireError("inputs", f"expected one tensor, got {len(message.inputs)}")
    tensor = message.inputs[0]
    if tensor.name != INPUT:
        raise WireError("inputs[0].name", f"expected {INPUT!r}, got {tensor.name!r:.60}")
    if tensor.datatype != "BYTES":
        raise WireError("inputs[0].datatype", f"expected 'BYTES', got {tensor.datatype!r:.20}")
    if tensor.shape not in ([1], [1, 1]):
        raise WireError("inputs[0].shape", f"expected [1], got {tensor.shape!r:.60}")
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        return _from_json(tensor.data)
    if type(size) is not int or size < 4 or size != len(binary):
        raise WireError(
            "inputs[0].parameters.binary_data_size",
            f"expected {len(binary)} (the bytes behind the JSON, at least 4), got {size!r:.40}",
        )
    (length,) = struct.unpack_from("<I", binary)
    if length != size - 4:
        raise WireError("inputs[0]", f"expected one element of {size - 4} bytes, got {length}")
    return bytes(binary[4:])


def _from_json(data: Any) -> bytes:
    while isinstance(data, list) and len(data) == 1:  # [x], or [[x]] for shape [1, 1]
        data = data[0]
    if not isinstance(data, str):
        raise WireError("inputs[0].data", "expected one base64 string")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WireError("inputs[0].data", f"expected base64: {error}") from None


def _wanted(message: _Infer) -> tuple[str, ...]:
    for i, output in enumerate(message.outputs or ()):
        if output.name not in OUTPUTS:
            raise WireError(
                f"outputs[{i}].name", f"expected {' or '.join(OUTPUTS)}, got {output.name!r:.60}"
            )
        if (output.parameters or {}).get("classification"):
            raise WireError(
                f"outputs[{i}].parameters.classification",
                "expected none: the output 'class' is the best class already",
            )
    return tuple(dict.fromkeys(each.name for each in message.outputs or ())) or tuple(OUTPUTS)


def _wanted_binary(message: _Infer) -> frozenset[str]:
    everything = (message.parameters or {}).get("binary_data_output") is True
    if not message.outputs:
        return frozenset(OUTPUTS if everything else ())
    return frozenset(
        output.name
        for output in message.outputs
        if (output.parameters or {}).get("binary_data", everything) is True
    )


def encode_request(
    photo: bytes, request_id: str = "", parameters: Mapping[str, Any] | None = None
) -> tuple[dict[str, str], bytes]:
    """Headers and body of an infer request in binary form."""
    head = msgspec.json.encode(
        {
            "id": request_id,
            "parameters": dict(parameters or {}),
            "inputs": [
                {
                    "name": INPUT,
                    "shape": [1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(photo) + 4},
                }
            ],
        }
    )
    headers = {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    return headers, head + struct.pack("<I", len(photo)) + photo


# -- answers -------------------------------------------------------------------------------------


class InferAnswer(Struct, frozen=True, kw_only=True):
    """An outcome as an HTTP answer."""

    outcome: Outcome
    code: int
    """HTTP status."""
    error: str = ""
    """The problem, for people; empty if served."""
    score: float = 0.0
    """Probability that the model gives the class, 0–1."""
    retry_after: float | None = None
    """s after which a refused request may be worth sending again; None: no telling."""

    @property
    def served(self) -> bool:
        return self.outcome.status is Status.SERVED


def model_metadata(name: str, versions: Sequence[str]) -> dict[str, Any]:
    """The protocol's metadata of a model, ready for JSON."""
    return {
        "name": name,
        "versions": list(versions),
        "platform": "edgewise",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [1]}],
        "outputs": [
            {"name": output, "datatype": datatype, "shape": [1]}
            for output, datatype in OUTPUTS.items()
        ],
    }


def encode_answer(
    answer: InferAnswer,
    echo: str,
    binary: frozenset[str],
    wanted: Sequence[str] = tuple(OUTPUTS),
) -> tuple[dict[str, str], bytes]:
    """Headers and body; `echo` is the V2 request's own id, `binary` the outputs to send binary."""
    outcome = answer.outcome
    parameters = _parameters_of(outcome)
    json_type = {"Content-Type": "application/json"}
    if not answer.served:
        return json_type, msgspec.json.encode({"error": answer.error, "parameters": parameters})
    raw = {
        "class": ("INT64", struct.pack("<q", outcome.predicted or 0), outcome.predicted),
        "score": ("FP32", struct.pack("<f", answer.score), answer.score),
    }
    outputs = []
    behind = b""
    for name in wanted:
        datatype, data, value = raw[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [1]}
        if name in binary:
            tensor["parameters"] = {"binary_data_size": len(data)}
            behind += data
        else:
            tensor["data"] = [value]
        outputs.append(tensor)
    head = msgspec.json.encode(
        {
            "model_name": outcome.model,
            "model_version": "1",
            "id": echo,
            "parameters": parameters,
            "outputs": outputs,
        }
    )
    if not behind:
        return json_type, head
    headers = {HEADER_LENGTH: str(len(head)), "Content-Type": "application/octet-stream"}
    return headers, head + behind


def _parameters_of(outcome: Outcome) -> dict[str, Any]:
    values = msgspec.to_builtins(outcome)
    carried = {name: values[name] for name in ("request", "status", *_OUTCOME_FIELDS)}
    carried["request"] = own_id(outcome.request)
    carried |= {"stamp." + name: stamp for name, stamp in values["stamps"].items()}
    return {PREFIX + name: value for name, value in carried.items() if value is not None}


class _Reply(Struct, kw_only=True):
    parameters: dict[str, Any] = {}
    outputs: list[_Tensor] = []
    error: str = ""
    code: int = 0


def decode_answer(request_id: str, code: int, body: bytes) -> InferAnswer:
    """Read an answer in JSON form, from a node or a proxy in front of it.

    Raises PeerError if it is no JSON object, or if it is *served* without a class.
    """
    try:
        reply = msgspec.json.decode(body, type=_Reply)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PeerError(f"HTTP {code} with a body that is no V2 answer: {error}") from None
    own = {k.removeprefix(PREFIX): v for k, v in reply.parameters.items() if k.startswith(PREFIX)}
    fields = {name: own[name] for name in _OUTCOME_FIELDS if name in own}
    fields["request"] = request_id
    fields["stamps"] = {
        name.removeprefix("stamp."): stamp
        for name, stamp in own.items()
        if name.startswith("stamp.") and stamp is not None
    }
    served, score = code == 200, 0.0
    fields["status"] = "served" if served else own.get("status", "failed")
    if served:
        values = {tensor.name: tensor.data for tensor in reply.outputs}
        try:
            fields["predicted"] = values["class"][0]
            score = float(values["score"][0]) if "score" in values else 0.0
        except (KeyError, IndexError, TypeError, ValueError):
            raise PeerError("an answer without a class") from None
    elif fields["status"] == "served":
        raise PeerError(f"HTTP {code} with a status of served")
    else:
        fields.setdefault("reason", reply.error or f"HTTP {code}")
    try:
        outcome = convert(fields, Outcome)
    except WireError as error:
        raise PeerError(f"an answer that does not parse: {error}") from None
    return InferAnswer(outcome=outcome, code=code, error=reply.error, score=score)


def shed_code(reason: ShedReason) -> int:
    """HTTP status of a request that was shed for `reason`; 422: trying again will not help."""
    if reason is ShedReason.NO_SERVICE:
        return 422
    return 503 if reason in (ShedReason.NONE_UP, ShedReason.DRAINING) else 429
