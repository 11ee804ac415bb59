"""The wire format: what passes, what is refused, and that nothing breaks it."""

import json
import math
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models.data.schema import MAX_ABS_AMOUNT
from ray_jobs.config import Profile
from ray_jobs.serving import api

TERMS = api.Terms(
    profile=Profile(numeric=("age",), categorical=("city",)),
    sources={"orders": api.EventSource(), "reviews": api.EventSource()},
)
EVENT = {"event_id": 1, "event_time": "2024-05-01T09:30:00+02:00", "event_type": "pay"}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=10,
)


def request(**fields: Any) -> dict[str, Any]:
    return {"user_id": "u1", **fields}


def event(**fields: Any) -> dict[str, Any]:
    return request(events=[{**EVENT, **fields}])


def parse(content: object) -> api.ScoreRequest:
    return api.parse(json.dumps(content).encode(), TERMS)


def refusal(content: object) -> list[api.Fault]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    with pytest.raises(ValidationError) as refused:
        api.parse(body, TERMS)
    return api.faults(api.details(refused.value))


def test_reads_everything() -> None:
    one = parse(
        request(
            as_of="2024-06-01T00:00:00Z",
            events=[
                {
                    **EVENT,
                    "event_id": "order 17",
                    "source": "reviews",
                    "available_at": "2024-05-01T07:30:00Z",
                    "category": " food ",
                    "counterparty_id": "m-1",
                    "amount": "-12.5000",
                    "text": "late again",
                }
            ],
            profile={"age": 41, "city": None},
            proposed={"amount": 99.99, "category": "loan"},
        )
    )
    (first,) = one.events
    assert first.event_time == datetime(2024, 5, 1, 7, 30, tzinfo=UTC)
    assert first.event_time.utcoffset() == timedelta(hours=2)
    assert first.amount == Decimal("-12.5")
    assert str(parse(request(proposed={"amount": "9" * 10 + "." + "0" * 28})).proposed.amount) == (
        "9999999999.0000"
    )
    assert first.category == "food"
    assert one.proposed is not None and one.proposed.amount == Decimal("99.99")
    assert one.profile == {"age": 41.0, "city": None}


def test_as_of_is_now_by_default() -> None:
    before = datetime.now(UTC)
    assert before <= parse(request()).as_of <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({}, "user_id"),
        ([], "body"),
        (None, "body"),
        (request(user_id=""), "user_id"),
        (request(user_id="  "), "user_id"),
        (request(user_id="u" * 129), "user_id"),
        (request(user_id=17), "user_id"),
        (request(score=100), "score"),
        (request(as_of="2024-05-01T09:30:00"), "as_of"),
        (request(as_of="2024-05-01"), "as_of"),
        (request(as_of="1714555800"), "as_of"),
        (request(as_of=1714555800), "as_of"),
        (request(as_of=None), "as_of"),
        (request(as_of="1989-12-31T23:59:59Z"), "as_of"),
        (request(as_of="1990-01-01T00:00:00+00:01"), "as_of"),
        (request(as_of="9999-12-31T23:59:59-23:59"), "as_of"),
        (request(as_of="0001-01-01T00:00:00+23:59"), "as_of"),
        (request(as_of="2024-02-30T00:00:00Z"), "as_of"),
        (request(as_of="2024-05-01T09:30:00+99:00"), "as_of"),
        (request(as_of="٢٠٢٤-05-01T09:30:00Z"), "as_of"),
        (request(as_of=(datetime.now(UTC) + timedelta(hours=25)).isoformat()), "as_of"),
        (event(event_time="2024-05-01T09:30:00"), "events.0.event_time"),
        (event(event_time="1970-01-01T00:00:00Z"), "events.0.event_time"),
        (event(event_time="2124-01-01T00:00:00Z"), "events.0.event_time"),
        (event(available_at="2024-05-01T07:29:59Z"), "events.0"),
        (event(event_id=2**63), "events.0.event_id"),
        (event(event_id=1.5), "events.0.event_id"),
        (event(event_id=None), "events.0.event_id"),
        (event(event_id=""), "events.0.event_id"),
        (event(event_type=" "), "events.0.event_type"),
        (event(source="chat"), "events.0.source"),
        (event(text="x" * 2001), "events.0.text"),
        (event(currency="GBP"), "events.0.currency"),
        (event(amount=True), "events.0.amount"),
        (event(amount=math.nan), "events.0.amount"),
        (event(amount=math.inf), "events.0.amount"),
        (event(amount=-math.inf), "events.0.amount"),
        (event(amount=1e11), "events.0.amount"),
        (event(amount=MAX_ABS_AMOUNT + 1), "events.0.amount"),
        (event(amount=0.00001), "events.0.amount"),
        (event(amount="1e3"), "events.0.amount"),
        (event(amount="1_000"), "events.0.amount"),
        (event(amount="１"), "events.0.amount"),
        (event(amount=" 1"), "events.0.amount"),
        (event(amount="NaN"), "events.0.amount"),
        (event(amount=""), "events.0.amount"),
        (event(amount=[]), "events.0.amount"),
        (request(events=[EVENT] * 2001), "events"),
        (request(events=[EVENT] * 10_000), "events"),
        (request(events=[{}] * 10_000), "events.0.event_id"),
        (request(events={}), "events"),
        (request(profile={"income": 1}), "profile"),
        (request(profile={"age": "41"}), "profile"),
        (request(profile={"age": True}), "profile.age"),
        (request(profile={"age": math.nan}), "profile.age"),
        (request(profile={"age": -math.inf}), "profile.age"),
        (request(profile={"age": 10**400}), "profile.age"),
        (request(profile={"city": 1}), "profile"),
        (request(profile={"city": "x" * 65}), "profile"),
        (request(proposed={"amount": 0}), "proposed.amount"),
        (request(proposed={"amount": -1}), "proposed.amount"),
        (request(proposed={"category": "loan"}), "proposed.amount"),
        (b'{"user_id": "u1"', "body"),
        (b"", "body"),
        (b'{"user_id": "\xff"}', "body"),
        (b'{"user_id": "\\ud800"}', "body"),
        (b"[" * 100_000, "body"),
        (b'{"user_id": "u1", "as_of": ' + b"9" * 5000 + b"}", "body"),
    ],
)
def test_refuses(content: object, field: str) -> None:
    assert field in [fault.field for fault in refusal(content)]


def test_the_limits_themselves_pass() -> None:
    one = parse(
        request(
            user_id="u" * 128,
            as_of=(datetime.now(UTC) + timedelta(hours=23)).isoformat(),
            events=[{**EVENT, "amount": -MAX_ABS_AMOUNT, "text": "x" * 2000}] * 2000,
            profile={"city": "x" * 64},
            proposed={"amount": "0.0001"},
        )
    )
    assert len(one.events) == 2000
    assert parse(event(event_id=-(2**63))).events[0].event_id == -(2**63)
    assert parse(request(as_of="1990-01-01T00:00:00Z")).as_of.year == 1990


@pytest.mark.parametrize(
    ("amount", "expected"),
    [(1, "1"), (1.0, "1"), (0.1, "0.1"), (1e2, "100"), (12345678.9999, "12345678.9999"),
     ("0.10000000", "0.1"), ("-0", "0"), (9999999999.9999, "9999999999.9999")],
)  # fmt: skip
def test_amounts_are_exact(amount: object, expected: str) -> None:
    assert parse(event(amount=amount)).events[0].amount == Decimal(expected)


@given(st.decimals(-MAX_ABS_AMOUNT, MAX_ABS_AMOUNT, places=4))
def test_amount_round_trip(amount: Decimal) -> None:
    assert parse(event(amount=str(amount))).events[0].amount == amount
    assert parse(event(amount=float(amount))).events[0].amount == amount


OFFSETS = st.integers(-12 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m)))


@given(st.datetimes(datetime(1990, 1, 2), datetime(2024, 1, 1), timezones=OFFSETS))
def test_time_round_trip(time: datetime) -> None:
    read = parse(event(event_time=time.isoformat())).events[0].event_time
    assert read == time
    assert read.utcoffset() == time.utcoffset()


@given(st.dictionaries(st.sampled_from(list(api.ScoreRequest.model_fields)), JSON))
def test_no_content_breaks_it(content: dict[str, Any]) -> None:
    try:
        parse({"user_id": "u1", **content})
    except ValidationError as refused:
        assert api.faults(api.details(refused))


@given(st.dictionaries(st.sampled_from(list(api.Event.model_fields)), JSON))
def test_no_event_breaks_it(fields: dict[str, Any]) -> None:
    try:
        parse(event(**fields))
    except ValidationError as refused:
        assert api.faults(api.details(refused))


@given(st.binary(max_size=200))
def test_no_bytes_break_it(body: bytes) -> None:
    with pytest.raises(ValidationError):
        api.parse(body, TERMS)


def test_faults_are_few_short_and_without_values() -> None:
    secret = "4929123412341234"
    found = refusal(request(**{f"{'k' * 5000}{i}": secret for i in range(100)}))
    assert len(found) == api.MAX_FAULTS
    assert all(len(fault.field) <= 4 * api.MAX_NAME for fault in found)
    found = refusal(event(text=secret * 200, amount=secret, event_time=secret))
    assert len(found) == 3
    assert secret not in str(found)


SCORED: dict[str, Any] = {
    "row": 0,
    "user_key": 0,
    "as_of": datetime(2024, 5, 20, tzinfo=UTC),
    "baseline_date": datetime(2024, 5, 1, tzinfo=UTC),
    "graph_date": datetime(2024, 5, 1, tzinfo=UTC),
    "saturated": False,
    "default_30d": {"probability": 0.04, "low": 0.03, "high": 0.06},
    "spend_30d": {"amount": 120.0, "low": 10.0, "high": 400.0},
    "score": 80.0,
    "grade": "BB",
    "weights": {"text": 0.2, "behaviour": 0.3, "tabular": 0.5, "social": None},
    "reasons": [{"code": "event:refund", "text": "Events of type refund", "effect": 0.4}],
    "decision": {"action": "review", "review_level": "standard", "limit": None, "tier": "gold"},
    "model_sha256": "ab" * 32,
}


def test_response_round_trip() -> None:
    answer = api.to_response(SCORED, "r-1")
    sent = json.loads(answer.model_dump_json())
    assert sent["estimates"]["default_30d"] == SCORED["default_30d"]
    assert sent["estimates"]["spend_30d"] == SCORED["spend_30d"]
    assert sent["as_of"] == "2024-05-20T00:00:00Z"
    assert not {"user_id", "user_key", "row"} & set(sent)
    assert api.ScoreResponse.model_validate_json(answer.model_dump_json()) == answer


@pytest.mark.parametrize(
    "wrong", [{"score": math.nan}, {"default_30d": {"probability": math.nan, "low": 0, "high": 1}}]
)
def test_response_never_holds_nan(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        api.to_response({**SCORED, **wrong}, "r-1")
