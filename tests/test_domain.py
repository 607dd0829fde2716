"""Property tests: every type survives its wire forms, and what is malformed names the field."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise import domain as d
from edgewise.decoding import decode_json
from edgewise.errors import PeerError, WireError
from edgewise.live.wire import messages
from edgewise.live.wire.request_metadata import (
    from_headers,
    from_parameters,
    to_headers,
    to_parameters,
)

QUICK = settings(max_examples=20, deadline=None)
"""No deadline: compiling, or a busy machine, is no failure."""

NAMES = st.from_regex(d.Name.__metadata__[0].pattern, fullmatch=True)  # type: ignore[attr-defined]
IDS = st.from_regex(d.RequestId.__metadata__[0].pattern, fullmatch=True)  # type: ignore[attr-defined]
SECONDS = st.floats(0, 1e9)
STAMPS = st.floats(0, 1e12)
SHARES = st.floats(0, 1)
COUNTS = st.integers(0, 2**53)
CLASSES = st.integers(0, 10**6)
FORMS = st.sampled_from(d.PayloadForm)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


def tuples(strategy: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[Any]:
    return st.lists(strategy, max_size=most).map(tuple)


REQUESTS = st.builds(
    d.Request,
    id=IDS,
    ingress=NAMES,
    payload_bytes=COUNTS,
    sent_at=STAMPS,
    deadline=st.floats(1e-6, d.DEADLINE_MAX),
    accuracy=SHARES,
    task=NAMES,
)
SERVICES = st.builds(
    d.Service,
    server=NAMES,
    model=NAMES,
    accuracy=SHARES,
    latency=st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=5).map(tuple),
    input_size=st.integers(1, 4096),
    ready_bytes=COUNTS,
    ready_saving=SECONDS,
    ready_accuracy=maybe(SHARES),
    task=NAMES,
)
PEERS = st.builds(
    d.PeerReport,
    throughput=maybe(st.floats(1e-3, 1e12)),
    measured_at=maybe(STAMPS),
    rtt=maybe(SECONDS),
    backlog=COUNTS,
    flows=COUNTS,
    unanswered=COUNTS,
)
REPORTS = st.builds(
    d.Report,
    server=NAMES,
    at=STAMPS,
    workers=st.integers(1, 4096),
    running=tuples(SECONDS),
    queue=tuples(st.builds(d.QueueItem, deadline=STAMPS, work=SECONDS)),
    prepare_backlog=SECONDS,
    services=st.dictionaries(
        NAMES,
        st.builds(d.ServiceReport, service_time=SECONDS, batch=st.floats(0, 1e3), served=COUNTS),
        max_size=3,
    ),
    peers=st.dictionaries(NAMES, PEERS, max_size=3),
    utilisation=SHARES,
    draining=st.booleans(),
    commands_seen=COUNTS,
    arrivals_low=COUNTS,
    arrivals_bits=st.integers(0, 2**63 - 1),
)
ATTEMPTS = st.builds(d.Attempt, server=NAMES, fault=maybe(st.sampled_from(d.Fault)))
CANDIDATES = st.builds(d.Candidate, server=NAMES, model=NAMES, form=FORMS)
DECISIONS = st.builds(
    d.Decision,
    request=IDS,
    ranked=tuples(CANDIDATES),
    rows=tuples(st.integers(0, 1000)),
    probability=st.floats(1e-12, 1),
    policy=NAMES,
    version=st.text(max_size=5),
    at=STAMPS,
    reason=maybe(st.sampled_from(d.ShedReason)),
)
COMMANDS = st.builds(
    d.Command,
    request=IDS,
    sequence=COUNTS,
    dispatch=COUNTS,
    server=maybe(NAMES),
    model=maybe(NAMES),
    form=FORMS,
    reason=maybe(st.sampled_from(d.ShedReason)),
    alternatives=tuples(CANDIDATES),
)
ALL_STAMPS = st.builds(d.Stamps, **{name: maybe(STAMPS) for name in d.Stamps.__struct_fields__})
OUTCOMES = st.builds(
    d.Outcome,
    request=IDS,
    status=st.sampled_from(d.Status),
    latency=maybe(SECONDS),
    server=maybe(NAMES),
    model=maybe(NAMES),
    form=maybe(FORMS),
    predicted=maybe(CLASSES),
    label=maybe(CLASSES),
    accuracy=maybe(SHARES),
    reason=maybe(st.text(max_size=20)),
    stamps=ALL_STAMPS,
)
SCORES = st.builds(
    d.Score,
    expected=SHARES,
    realised=SHARES,
    effective=st.booleans(),
    timeliness=SHARES,
    meets_demand=st.booleans(),
)
MESSAGES = {
    d.Request: REQUESTS,
    d.Service: SERVICES,
    d.Report: REPORTS,
    d.Candidate: CANDIDATES,
    d.Decision: DECISIONS,
    d.Command: COMMANDS,
    d.Stamps: ALL_STAMPS,
    d.Outcome: OUTCOMES,
    d.Score: SCORES,
}


# -- survival --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("wire", ["json", "msgpack", "yaml"])
@QUICK
@given(data=st.data())
def test_every_type_survives(data: st.DataObject, kind: type, wire: str) -> None:
    value = data.draw(MESSAGES[kind])
    if wire == "yaml" and kind in (d.Decision, d.Outcome):
        return  # free text; only configurations are YAML
    codec = getattr(msgspec, wire)
    assert codec.decode(codec.encode(value), type=kind) == value


@QUICK
@given(REQUESTS)
def test_a_request_survives_headers_in_any_case(request: d.Request) -> None:
    headers = to_headers(request, request.sent_at)
    assert all(value.isascii() and "\n" not in value for value in headers.values())
    shouted = {key.upper(): value for key, value in headers.items()}
    assert from_headers(shouted) == request


@QUICK
@given(REQUESTS)
def test_a_request_survives_v2_parameters(request: d.Request) -> None:
    wire = json.loads(json.dumps(to_parameters(request, request.sent_at)))
    assert from_parameters(wire) == request


@QUICK
@given(REQUESTS, st.floats(0, 4000), st.floats(0, 1e12))
def test_the_budget_moves_a_deadline_to_another_clock(
    request: d.Request, elapsed: float, there: float
) -> None:
    """However far apart the clocks are, what is left is left."""
    now = request.sent_at + elapsed
    left = request.slack(now)
    for back in (
        from_headers(to_headers(request, now), there),
        from_parameters(to_parameters(request, now), there),
        messages.Submission(request=request, budget=left).anchored(there),
    ):
        assert back.deadline == request.deadline
        if there > request.deadline + elapsed:  # no stamp before 1970
            assert back.slack(there) == pytest.approx(left, abs=2e-3)


def test_a_budget_cannot_be_more_than_the_deadline() -> None:
    request = d.Request(id="r", ingress="a", payload_bytes=1, sent_at=50.0, deadline=2.0)
    headers = to_headers(request, 50.0) | {"edgewise-budget": "99"}
    assert from_headers(headers, 1000.0).sent_at == 1000.0
    assert messages.Submission(request=request, budget=99.0).anchored(1000.0).sent_at == 1000.0


def test_tritons_timeout_alone_is_a_deadline() -> None:
    fields = {"timeout": 250_000, "edgewise.id": "r", "edgewise.ingress": "a"}
    request = from_parameters(fields | {"edgewise.payload_bytes": 7}, 100.0)
    assert (request.deadline, request.sent_at) == (0.25, 100.0)


FROM_NODE = st.one_of(
    st.builds(messages.Hello, server=NAMES, models=tuples(NAMES), protocol=COUNTS),
    st.builds(messages.Ask, request=REQUESTS, uploaded=maybe(STAMPS)),
    st.builds(messages.ReportMessage, report=REPORTS),
    st.builds(messages.OutcomeMessage, outcome=OUTCOMES, attempts=tuples(ATTEMPTS)),
    st.builds(messages.Pong, ping=STAMPS, at=STAMPS),
)
FROM_BALANCER = st.one_of(
    st.builds(messages.Welcome, policy=NAMES, at=STAMPS),
    COMMANDS,
    st.builds(messages.Ping, at=STAMPS),
    st.builds(messages.FleetReports, reports=tuples(REPORTS, 2), at=SECONDS),
)


@QUICK
@given(FROM_NODE)
def test_what_a_node_says_is_heard(message: Any) -> None:
    assert messages.decode_from_node(messages.encode(message)) == message


@QUICK
@given(FROM_BALANCER)
def test_what_the_balancer_says_is_heard(message: Any) -> None:
    assert messages.decode_from_balancer(messages.encode(message)) == message


@QUICK
@given(st.binary(max_size=60))
def test_noise_on_the_channel_is_a_peer_error(noise: bytes) -> None:
    for decode in (messages.decode_from_node, messages.decode_from_balancer):
        with pytest.raises(PeerError, match="control channel"):
            decode(noise)


def test_the_wrong_direction_is_a_peer_error() -> None:
    with pytest.raises(PeerError):
        messages.decode_from_node(messages.encode(messages.Welcome(policy="p", at=1.0)))


# -- malformed -------------------------------------------------------------------------------------

GOOD = {
    "id": "r1",
    "ingress": "a",
    "payload_bytes": 10,
    "sent_at": 5.0,
    "deadline": 1.0,
    "accuracy": 0.5,
}
BAD = [
    ("id", ""),
    ("id", "no spaces"),
    ("id", "x" * 129),
    ("id", "-begins-with-a-dash"),
    ("ingress", "a/b"),
    ("payload_bytes", -1),
    ("payload_bytes", 1.5),
    ("sent_at", -1.0),
    ("sent_at", "soon"),
    ("deadline", 0.0),
    ("deadline", -2.0),
    ("deadline", 3601.0),
    ("accuracy", 1.01),
    ("accuracy", -0.1),
    ("accuracy", "high"),
    ("task", ""),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_field_is_named_in_every_form(field: str, value: Any) -> None:
    fields = GOOD | {field: value}
    with pytest.raises(WireError) as caught:
        decode_json(json.dumps(fields), d.Request)
    assert caught.value.field == field

    name = "edgewise-" + field.replace("_", "-")
    with pytest.raises(WireError) as caught:
        from_headers(
            {"edgewise-" + key.replace("_", "-"): str(each) for key, each in fields.items()}
        )
    assert caught.value.field.replace("_", "-") == name

    with pytest.raises(WireError) as caught:
        from_parameters({"edgewise." + key: each for key, each in fields.items()})
    assert caught.value.field == "edgewise." + field


@pytest.mark.parametrize("field", ["id", "ingress", "payload_bytes", "sent_at", "deadline"])
def test_a_missing_field_is_named(field: str) -> None:
    fields = {key: value for key, value in GOOD.items() if key != field}
    with pytest.raises(WireError) as caught:
        decode_json(json.dumps(fields), d.Request)
    assert caught.value.field == field
    with pytest.raises(WireError) as caught:
        from_parameters({"edgewise." + key: each for key, each in fields.items()})
    assert caught.value.field == "edgewise." + field


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
@pytest.mark.parametrize("field", ["deadline", "sent-at", "accuracy", "budget", "payload-bytes"])
def test_no_number_is_infinite(field: str, value: str) -> None:
    request = d.Request(id="r", ingress="a", payload_bytes=1, sent_at=50.0, deadline=2.0)
    with pytest.raises(WireError) as caught:
        from_headers(to_headers(request, 50.0) | {"edgewise-" + field: value}, 1.0)
    assert caught.value.field.replace("_", "-") == "edgewise-" + field


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"id": 3}'])
def test_what_is_not_a_message_is_a_wire_error(text: bytes) -> None:
    with pytest.raises(WireError):
        decode_json(text, d.Request)


@QUICK
@given(st.text(max_size=80) | st.binary(max_size=80))
def test_noise_is_a_wire_error(noise: str | bytes) -> None:
    with pytest.raises(WireError):
        decode_json(noise, d.Request)


# -- methods ---------------------------------------------------------------------------------------


def test_slack_and_expiry() -> None:
    request = d.Request(id="r", ingress="a", payload_bytes=1, sent_at=50.0, deadline=2.0)
    assert request.slack(51.5) == 0.5
    assert request.slack(53.0) == -1.0
    assert not request.expired(51.999)
    assert request.expired(52.0)


@pytest.mark.parametrize(
    ("accuracy", "task", "admits"),
    [(0.7, "imagenet-1k", True), (0.69, "imagenet-1k", False), (0.9, "other", False)],
)
def test_admits(accuracy: float, task: str, admits: bool) -> None:
    request = d.Request(
        id="r", ingress="a", payload_bytes=1, sent_at=0.0, deadline=1.0, accuracy=0.7
    )
    service = d.Service(server="a", model="m", accuracy=accuracy, latency=(0.1,), task=task)
    assert request.admits(service) is admits


def test_stages_add_up_and_hidden_ones_count_nothing() -> None:
    """The upload ends after the decision: the decision was hidden behind it."""
    stamps = d.Stamps(
        sent=0.0,
        uploaded=3.0,
        decided=1.0,
        transferred=5.0,
        started=6.0,
        finished=8.0,
        received=9.0,
    )
    stages = stamps.stages()
    assert stages == {
        "upload": 3.0,
        "decision": 0.0,
        "transfer": 2.0,
        "queue": 1.0,
        "execute": 2.0,
        "return": 1.0,
    }
    assert sum(value for value in stages.values() if value is not None) == 9.0


def test_a_stage_that_was_never_reached_is_none() -> None:
    stages = d.Stamps(sent=0.0, uploaded=3.0).stages()
    assert stages["upload"] == 3.0
    assert [stages[name] for name in ("decision", "execute", "return")] == [None, None, None]


def test_messages_are_frozen() -> None:
    with pytest.raises(AttributeError):
        d.Request(**GOOD).deadline = 9.0  # type: ignore[misc, arg-type]


def test_request_ids_begin_with_their_run_and_end_with_their_number() -> None:
    assert d.request_id(42, d.run_name(1)) == "s1-r0000042"
    assert d.request_id(7) == "r0000007"
    assert d.request_number("s1-r0000042") == 42
    assert d.request_number("s1") == 1
    assert d.request_number("warm-up") is None
