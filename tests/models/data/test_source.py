from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from models.data.source import MAPPABLE, REQUIRED, Source

EVENTS = {
    "table": "events",
    "path": "lines.csv",
    "columns": {"user_id": "customer", "event_time": "at", "event_type": "kind"},
}
USERS = {"table": "users", "path": "users.csv", "columns": {"user_id": "customer"}}


def source(base: dict[str, Any], **more: Any) -> Source:
    columns = {**base["columns"], **more.pop("columns", {})}
    return Source.model_validate({**base, **more, "columns": columns})


def refusal(base: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ValidationError) as refused:
        source(base, **more)
    return str(refused.value.errors()[0]["msg"])


def test_the_plainest_source() -> None:
    plain = source(EVENTS)
    assert (plain.timezone, plain.lag, plain.complete_until_utc) == ("UTC", timedelta(0), None)
    assert plain.values == {}


@pytest.mark.parametrize("table", sorted(REQUIRED))
def test_what_a_table_needs_can_be_mapped_and_must_be(table: str) -> None:
    assert set(REQUIRED[table]) <= set(MAPPABLE[table])
    whole = {"table": table, "path": "x", "columns": {c: c for c in REQUIRED[table]}}
    source(whole, immutable=True)
    for column in REQUIRED[table]:
        columns = {c: c for c in REQUIRED[table] if c != column}
        assert column in refusal({**whole, "columns": columns}, immutable=True)


def test_a_column_that_the_table_has_not_is_refused_with_those_it_has() -> None:
    message = refusal(EVENTS, columns={"colour": "c"})
    assert "events has no 'colour'; it has user_id, event_id" in message


def test_amounts_need_a_currency() -> None:
    assert "must state its currency" in refusal(EVENTS, columns={"amount": "price"})
    source(EVENTS, columns={"amount": "price"}, currency="GBP")
    source(EVENTS, columns={"amount": "price", "currency": "unit"})


def test_a_profile_without_history_must_be_marked_immutable() -> None:
    assert "immutable: true" in refusal(USERS)
    source(USERS, immutable=True)
    source(USERS, columns={"valid_from": "since"})


def test_declared_profile_columns_may_have_any_name() -> None:
    columns = {"income": "income", "valid_from": "since"}
    assert source(USERS, columns=columns).columns["income"] == "income"


@pytest.mark.parametrize("zone", ["Europe/Lundon", "", "../etc/passwd"])
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    assert f"unknown time zone {zone!r}" in refusal(EVENTS, timezone=zone)


@pytest.mark.parametrize(
    "wrong",
    [
        {"table": "scores"},
        {"format": "xlsx"},
        {"max_rejected_fraction": 1.5},
        {"max_rejected_fraction": float("nan")},
        {"colour": "red"},
        {"columns": {"event_time": 3}},
    ],
)
def test_wrong_values_and_unknown_keys_are_refused(wrong: dict[str, Any]) -> None:
    refusal(EVENTS, **wrong)


@pytest.mark.parametrize(
    ("zone", "given", "expected"),
    [
        ("UTC", "2011-12-09", datetime(2011, 12, 9, tzinfo=UTC)),
        ("Europe/London", "2011-07-01", datetime(2011, 6, 30, 23, tzinfo=UTC)),  # summer time
        ("Europe/London", "2011-12-09T10:00:00", datetime(2011, 12, 9, 10, tzinfo=UTC)),
        ("Asia/Shanghai", "2024-08-31", datetime(2024, 8, 30, 16, tzinfo=UTC)),
        ("Asia/Shanghai", "2024-08-31T00:00:00+00:00", datetime(2024, 8, 31, tzinfo=UTC)),
    ],
)
def test_the_watermark_is_read_in_the_sources_own_zone(
    zone: str, given: str, expected: datetime
) -> None:
    assert source(EVENTS, timezone=zone, complete_until=given).complete_until_utc == expected
