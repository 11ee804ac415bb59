"""Columns of any type become text, ids, numbers, money and times, or a reason."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.data.values import (
    Parsed,
    parse_amount,
    parse_id,
    parse_number,
    parse_text,
    parse_time,
    utc_offset_min,
)

LONDON = "Europe/London"


def one(parsed: Parsed) -> tuple[Any, str | None]:
    """The value and the reason of a column of one row."""
    return parsed.values[0], None if parsed.reason is None else parsed.reason[0]


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]  # the parts of a time


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2011-06-01 08:26:00", utc(2011, 6, 1, 7, 26)),
        ("2011-06-01T08:26:00", utc(2011, 6, 1, 7, 26)),
        ("2011-06-01 08:26", utc(2011, 6, 1, 7, 26)),
        ("2011-06-01", utc(2011, 5, 31, 23)),
        ("20110601", utc(2011, 5, 31, 23)),
        ("2011/6/1 8:26", utc(2011, 6, 1, 7, 26)),
        ("01.12.2010 08:26", utc(2010, 12, 1, 8, 26)),
        ("1 Dec 2010 8:26", utc(2010, 12, 1, 8, 26)),
        ("Dec 1, 2010 08:26:11.5", utc(2010, 12, 1, 8, 26, 11, 500_000)),
        ("1 December 2010", utc(2010, 12, 1)),
        ("2011-06-01T08:26:00Z", utc(2011, 6, 1, 8, 26)),
        ("2011-06-01T08:26:00+02:00", utc(2011, 6, 1, 6, 26)),
        ("2011-06-01T10:00:00.123456-0530", utc(2011, 6, 1, 15, 30, 0, 123_456)),
        ("1300000000", utc(2011, 3, 13, 7, 6, 40)),
        ("1300000000123", utc(2011, 3, 13, 7, 6, 40, 123_000)),
        ("  ", None),
    ],
)
def test_a_time_in_text(text: str, expected: datetime | None) -> None:
    assert one(parse_time(pl.Series("event_time", [text]), LONDON)) == (expected, None)


@pytest.mark.parametrize(
    "text",
    [
        "12/1/2010 8:26",  # January or December?
        "-2011-01-02",
        "01.12.-2010",
        "2011-02-30",
        "2011-06-01 25:00:00",
        "2011-06-01+02:00",
        "yesterday",
        "9" * 30,
    ],
)
def test_text_that_is_no_time_gives_a_reason_without_the_text(text: str) -> None:
    value, reason = one(parse_time(pl.Series("event_time", [text]), LONDON))
    assert value is None
    assert reason == "event_time: expected a time such as 2011-12-09 08:26:00, got text"


def test_clock_changes() -> None:
    times = pl.Series("t", [datetime(2011, 10, 30, 1, 30), datetime(2011, 3, 27, 1, 30)])
    parsed = parse_time(times, LONDON)
    assert parsed.values.to_list() == [utc(2011, 10, 30, 0, 30), None]  # the earlier one, summer
    assert parsed.reason is not None
    assert parsed.reason.to_list() == [None, "t: a local time that Europe/London skips"]
    assert utc_offset_min(parsed.values, LONDON).to_list() == [60, None]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pl.Series("t", [1_300_000_000]), utc(2011, 3, 13, 7, 6, 40)),
        (pl.Series("t", [1_300_000_000_123]), utc(2011, 3, 13, 7, 6, 40, 123_000)),
        (pl.Series("t", [1_300_000_000_123_456]), utc(2011, 3, 13, 7, 6, 40, 123_456)),
        (pl.Series("t", [1_300_000_000_123_456_789]), utc(2011, 3, 13, 7, 6, 40, 123_456)),
        (pl.Series("t", [1_300_000_000.5]), utc(2011, 3, 13, 7, 6, 40, 500_000)),
        (pl.Series("t", [date(2011, 6, 1)]), utc(2011, 5, 31, 23)),
        (pl.Series("t", [utc(2011, 6, 1)]), utc(2011, 6, 1)),
        (pl.Series("t", [utc(2011, 6, 1)]).dt.convert_time_zone("Asia/Tokyo"), utc(2011, 6, 1)),
        (pl.Series("t", [float("nan")]), None),
        (pl.Series("t", [None]), None),
    ],
)
def test_a_time_of_other_types(column: pl.Series, expected: datetime | None) -> None:
    assert one(parse_time(column, LONDON)) == (expected, None)


@pytest.mark.parametrize("value", [float("inf"), 1e30, True, [1]])
def test_what_is_no_time_at_all(value: object) -> None:
    got, reason = one(parse_time(pl.Series("t", [value]), "UTC"))
    assert got is None and reason is not None and reason.startswith("t: expected a time")


def test_amounts_are_rounded_half_to_even_at_the_fourth_place() -> None:
    parsed = parse_amount(pl.Series("amount", [15.299999999999999, 0.03125, 0.09375, -2.0, None]))
    expected = [Decimal("15.3"), Decimal("0.0312"), Decimal("0.0938"), Decimal(-2), None]
    assert parsed.values.to_list() == expected
    assert parsed.values.dtype == pl.Decimal(18, 4)
    assert parsed.reason is None


@given(st.integers(-(10**14), 10**14))
def test_every_exact_amount_survives(units: int) -> None:
    exact = Decimal(units) / 10_000
    for column in (pl.Series([float(exact)]), pl.Series([str(exact)])):
        assert one(parse_amount(column)) == (exact, None)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "a: expected a number, got NaN or infinity"),
        (float("inf"), "a: expected a number, got NaN or infinity"),
        ("NaN", "a: expected a number, got NaN or infinity"),
        (-1.1e10, "a: an amount beyond ±10,000,000,000"),
        ("1,000", "a: expected a number, got text"),
        ("secret", "a: expected a number, got text"),
        (True, "a: expected a number, got boolean"),
        ([1.0], "a: expected a number, got list"),
        (date(2011, 1, 1), "a: expected a number, got date"),
    ],
)
def test_what_is_no_amount(value: object, reason: str) -> None:
    assert one(parse_amount(pl.Series("a", [value]))) == (None, reason)


def test_numbers() -> None:
    assert parse_number(pl.Series("n", [True, False, None])).values.to_list() == [1.0, 0.0, None]
    assert parse_number(pl.Series("n", [" 1.5", "", "-3e2"])).values.to_list() == [1.5, None, -300]
    parsed = parse_number(pl.Series("n", [1.0, float("inf")]))
    assert parsed.reason is not None and parsed.reason[1] is not None


def test_ids() -> None:
    floats = parse_id(pl.Series("user_id", [17850.0, float("nan"), 1.5, 1e20]))
    assert floats.values.to_list()[:2] == ["17850", None]
    assert floats.reason is not None
    expected = "user_id: expected an id, got a number that is not whole"
    assert floats.reason.to_list() == [None, None, expected, expected]
    assert parse_id(pl.Series("u", [7])).values.to_list() == ["7"]
    assert parse_id(pl.Series("u", [" a b ", "", None])).values.to_list() == ["a b", None, None]
    assert one(parse_id(pl.Series("u", [True])))[1] == "u: expected an id, got boolean"
    assert parse_id(pl.Series("u", [Decimal("12")])).values.to_list() == ["12"]


def test_texts() -> None:
    assert parse_text(pl.Series([6.0, 1.5, float("nan")])).values.to_list() == ["6", "1.5", None]
    assert parse_text(pl.Series([True])).values.to_list() == ["true"]
    assert parse_text(pl.Series([date(2011, 1, 1)])).values.to_list() == ["2011-01-01"]
    assert one(parse_text(pl.Series("item", [[1]])))[1] == "item: expected text, got list"


TYPES = [
    pl.String(), pl.Float64(), pl.Int64(), pl.UInt8(), pl.Datetime("us"), pl.Datetime("ns"),
    pl.Datetime("ms", "UTC"), pl.Date(), pl.Null(), pl.Boolean(), pl.Decimal(10, 2),
    pl.List(pl.Int64()), pl.Categorical(), pl.Struct({"a": pl.Int64()}), pl.Duration("us"),
]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_nothing_and_nulls_of_any_type(dtype: pl.DataType) -> None:
    for parse in (
        parse_text,
        parse_id,
        parse_number,
        parse_amount,
        lambda c: parse_time(c, LONDON),
    ):
        for values in ([], [None, None]):
            parsed = parse(pl.Series("x", values, dtype=dtype))
            assert parsed.values.null_count() == parsed.values.len() == len(values)
            assert parsed.reason is None
