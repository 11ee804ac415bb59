"""Raw rows → canonical rows, rejected rows with reasons, identities; every row accounted for."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from models.data import keys
from models.data.clean import ERASED, Cleaned, Cleaner, conform, dedupe, each_once
from models.data.mapping import resolve
from models.data.schema import (
    EDGES,
    EVENTS,
    IDENTITIES,
    LABELS,
    REJECTED,
    Table,
    UserError,
    empty,
    protected_table,
    users_table,
)
from models.data.source import Source

SECRET = b"a secret of the tests"
NOW = datetime(2012, 1, 1, tzinfo=UTC)
USERS = users_table(("age", "income"), ("city",))
PROTECTED = protected_table(("sex",))
TABLES: dict[str, Table] = {t.name: t for t in (EVENTS, USERS, EDGES, LABELS, PROTECTED)}
EVENT = {"user_id": "u", "event_time": "t", "event_type": "k"}


def clean(
    rows: pl.DataFrame, columns: dict[str, str], table: str = "events", **more: Any
) -> Cleaned:
    """Clean rows of a made-up file; every row must be accounted for."""
    if table == "users":
        more.setdefault("immutable", True)
    source = Source(table=table, path="f", columns=columns, **more)
    cleaner = Cleaner(
        name="shop",
        source=source,
        table=TABLES[table],
        buckets=4,
        secret=SECRET,
        now=NOW,
    )
    mapped = resolve(source, rows.schema, "f.parquet", untyped=False)
    numbers = pl.int_range(1, rows.height + 1, eager=True)
    cleaned = cleaner.clean(rows, numbers, mapped, file="f.parquet", period="2011-12")
    found = cleaned.accepted.height + cleaned.rejected.height + cleaned.duplicates
    assert rows.height == found
    assert (
        cleaned.accepted.drop("file", "row", "content", strict=False).schema
        == empty(TABLES[table]).schema
    )
    assert cleaned.rejected.schema == empty(REJECTED).schema
    assert cleaned.identities.schema == empty(IDENTITIES).schema
    return cleaned


def events(**columns: list[Any]) -> pl.DataFrame:
    """Rows of users at a good time, with these columns besides or instead."""
    height = len(next(iter(columns.values())))
    good = {
        "u": [f"user {i}" for i in range(height)],
        "t": [datetime(2011, 12, 1, 12)] * height,
        "k": ["buy"] * height,
    }
    return pl.DataFrame({**good, **columns})


def reasons(cleaned: Cleaned) -> list[str]:
    return cleaned.rejected.sort("row")["reason"].to_list()


def test_a_row_becomes_an_event() -> None:
    rows = pl.DataFrame(
        {
            "u": [17850.0],
            "t": [datetime(2011, 6, 1, 8, 26)],
            "no": ["C536365"],
            "code": ["85123A"],
            "q": [6.0],
            "price": [2.55],
            "shop": ["EC2"],
            "d": ["call 01632 960123"],
        }
    )
    columns = {
        "user_id": "u",
        "event_time": "t",
        "event_type": "CASE WHEN no LIKE 'C%' THEN 'cancel' ELSE 'buy' END",
        "item": "code",
        "amount": "q * price",
        "counterparty_id": "shop",
        "text": "d",
    }
    cleaned = clean(rows, columns, timezone="Europe/London", currency="GBP", lag=timedelta(hours=1))
    row = cleaned.accepted.row(0, named=True)
    assert row.pop("event_id") == keys.row_hash(rows, "shop")[0]
    bucket = row.pop("bucket")
    assert row == {
        "user_key": keys.user_key(SECRET, "17850"),
        "event_time": datetime(2011, 6, 1, 7, 26, tzinfo=UTC),
        "available_at": datetime(2011, 6, 1, 8, 26, tzinfo=UTC),
        "utc_offset_min": 60,
        "event_type": "cancel",
        "item": "85123A",
        "category": None,
        "counterparty_key": keys.user_key(SECRET, "counterparty:EC2"),
        "amount": Decimal("15.3000"),
        "currency": "GBP",
        "text": "call [PHONE]",
        "source": "shop",
        "period": "2011-12",
    }
    assert cleaned.identities.row(0, named=True) == {
        "user_key": row["user_key"],
        "user_id": "17850",
        "source": "shop",
        "period": "2011-12",
        "bucket": bucket,
    }


def test_nothing_in_nothing_out() -> None:
    for columns in (EVENT, {**EVENT, "event_id": "k"}):
        cleaned = clean(events(u=["a"]).clear(), columns)
        assert cleaned.accepted.is_empty() and cleaned.identities.is_empty()


def test_rows_that_cannot_be_used_are_rejected_with_the_reason() -> None:
    late, early = datetime(2012, 1, 2), datetime(1989, 12, 31)
    good = datetime(2011, 12, 1)
    rows = events(
        u=["a", None, "  ", "b", "c", "d", "e", "f", "g"],
        t=[good, good, good, late, early, None, good, good, good],
        k=["buy"] * 6 + [None, "buy", "buy"],
        a=[1.0] * 7 + [float("nan"), float("-inf")],
    )
    cleaned = clean(rows, {**EVENT, "amount": "a"}, currency="GBP")
    assert reasons(cleaned) == [
        "no user id",
        "no user id",
        "event_time: in the future",
        "event_time: before 1990",
        "event_time: missing",
        "event_type: missing",
        "amount: expected a number, got NaN or infinity",
        "amount: expected a number, got NaN or infinity",
    ]
    assert cleaned.rejected["row"].sort().to_list() == [2, 3, 4, 5, 6, 7, 8, 9]


def test_a_rejected_row_shows_its_columns_but_no_id_and_no_text() -> None:
    rows = events(u=["anna"], t=["no time"], d=["I live at 5 High Street"], a=[1.5], x=["unmapped"])
    cleaned = clean(rows, {**EVENT, "text": "d", "amount": "a"}, currency="GBP")
    row = cleaned.rejected.row(0, named=True)
    shown = {"u": "***", "t": "no time", "k": "buy", "d": "***", "a": 1.5}
    assert json.loads(row["content"]) == shown
    assert row["reason"] == "event_time: expected a time such as 2011-12-09 08:26:00, got text"
    assert (row["source"], row["period"], row["file"]) == ("shop", "2011-12", "f.parquet")


def test_only_exact_duplicates_are_dropped_where_no_id_is_mapped() -> None:
    rows = events(u=["a", "a", "a", "b"], note=["x", "x", "y", "x"])
    cleaned = clean(rows, EVENT)  # the note is not mapped, and yet it counts
    assert (cleaned.accepted.height, cleaned.duplicates) == (3, 1)


def test_mapped_event_ids_are_unique_for_a_user() -> None:
    rows = events(u=["a", "a", "b", "a"], id=["7", "7", "7", None], item=["x", "y", "x", "x"])
    cleaned = clean(rows, {**EVENT, "event_id": "id", "item": "item"})
    assert reasons(cleaned) == ["event_id: missing"]
    assert cleaned.accepted["event_id"].to_list() == [7, 7]
    assert cleaned.duplicates == 1


def test_value_maps_and_currency() -> None:
    rows = events(k=["1", "2", "3"], c=["usd", None, "dollars"], a=[1, 2, 3])
    columns = {**EVENT, "currency": "c", "amount": "a"}
    cleaned = clean(rows, columns, currency="GBP", values={"event_type": {"1": "buy"}})
    assert sorted(cleaned.accepted["event_type"]) == ["2", "buy"]
    assert sorted(cleaned.accepted["currency"]) == ["GBP", "USD"]
    assert reasons(cleaned) == ["currency: expected a code of three letters"]


def test_availability_is_the_mapped_time() -> None:
    rows = events(
        u=["a", "b", "c"],
        seen=[datetime(2011, 12, 5), None, datetime(2012, 6, 1)],
    )
    cleaned = clean(rows, {**EVENT, "available_at": "seen"}, lag=timedelta(days=1))
    assert cleaned.accepted["available_at"].to_list() == [datetime(2011, 12, 5, tzinfo=UTC)]
    assert reasons(cleaned) == ["available_at: missing", "available_at: in the future"]


def test_columns_of_the_wrong_type() -> None:
    rows = pl.DataFrame({"u": [[1]], "t": [True], "k": ["buy"]})
    assert reasons(clean(rows, EVENT)) == ["user_id: expected an id, got list"]
    rows = events(u=["a"], k=[b"\x00\xff"])
    cleaned = clean(rows, EVENT)
    assert reasons(cleaned) == ["event_type: expected text, got binary"]
    assert json.loads(cleaned.rejected["content"][0])["k"] == "00ff"


def test_users() -> None:
    ages, incomes = ["30", "old", None], [1.0, 2.0, float("inf")]
    rows = pl.DataFrame({"u": [1, 2, 3], "age": ages, "income": incomes, "c": ["x"] * 3})
    cleaned = clean(rows, {"user_id": "u", "age": "age", "income": "income", "city": "c"}, "users")
    assert reasons(cleaned) == [
        "age: expected a number, got text",
        "income: expected a number, got NaN or infinity",
    ]
    row = cleaned.accepted.row(0, named=True)
    assert (row["age"], row["income"], row["city"]) == (30.0, 1.0, "x")
    assert row["valid_from"] == row["available_at"] == datetime(1990, 1, 1, tzinfo=UTC)


def test_users_with_history_and_a_column_that_is_not_mapped() -> None:
    rows = pl.DataFrame({"u": [1, 1, 1], "v": ["2011-01-01", "2011-02-01", "2011-02-01"]})
    cleaned = clean(rows, {"user_id": "u", "valid_from": "v"}, "users", immutable=False)
    assert (cleaned.accepted.height, cleaned.duplicates) == (2, 1)
    assert cleaned.accepted["age"].null_count() == 2


def test_protected() -> None:
    cleaned = clean(pl.DataFrame({"u": [1], "s": ["f"]}), {"user_id": "u", "sex": "s"}, "protected")
    assert cleaned.accepted["sex"].to_list() == ["f"]
    assert cleaned.identities.height == 1


def test_edges() -> None:
    rows = pl.DataFrame(
        {
            "u": ["a", "a", "a", "a"],
            "o": ["b", "x", "a", "b"],
            "kind": [None, "device", "user", "user"],
            "w": [None, 2, 1, 1],
            "from": ["2011-01-01"] * 4,
            "to": [None, "2013-01-01", None, "2010-01-01"],
        }
    )
    columns = {
        "user_id": "u",
        "other_id": "o",
        "other_kind": "kind",
        "relation": "'tie'",
        "weight": "w",
        "valid_from": "from",
        "valid_to": "to",
    }
    cleaned = clean(rows, columns, "edges")
    ties = {row["dst_kind"]: row for row in cleaned.accepted.to_dicts()}
    assert ties["user"]["dst"] == keys.user_key(SECRET, "b")
    assert ties["user"]["weight"] == 1.0 and ties["user"]["valid_to"] is None
    assert ties["device"]["dst"] == keys.user_key(SECRET, "device:x")
    assert sorted(cleaned.identities["user_id"]) == ["a", "b"]  # a device is nobody
    assert reasons(cleaned) == [
        "other_id: a tie of a user to themselves",
        "valid_to: before valid_from",
    ]


def test_labels() -> None:
    rows = pl.DataFrame(
        {
            "u": ["a", "b", "c", "d"],
            "as_of": ["2011-06-01", "2011-06-01", "2011-06-01", "2011-12-31"],
            "y": [1.0, 0.0, None, 1.0],
            "done": ["2011-07-01", "2011-05-01", "2011-07-01", "2012-02-01"],
            "ask": [100.5] * 4,
        }
    )
    columns = {
        "user_id": "u",
        "task": "'default'",
        "as_of": "as_of",
        "value": "y",
        "matured_at": "done",
        "proposed_amount": "ask",
    }
    cleaned = clean(rows, columns, "labels")
    assert cleaned.accepted["proposed_amount"].to_list() == [Decimal("100.5")]
    assert cleaned.accepted.select("file", "row").row(0) == ("f.parquet", 1)
    assert cleaned.identities.is_empty()  # a label does not make a user known
    assert reasons(cleaned) == [
        "matured_at: before as_of",
        "value: missing",
        "matured_at: in the future",
    ]


FEW = st.integers(0, 2)
ROWS = st.lists(st.tuples(FEW, FEW, FEW, st.sampled_from(["a", None])), max_size=12)


@given(ROWS, st.randoms(use_true_random=False))
def test_dedupe_keeps_one_row_a_key_in_any_order(rows: list[Any], random: Any) -> None:
    def table(values: list[Any]) -> pl.DataFrame:
        schema = {"user_key": pl.Int64, "event_id": pl.Int64, "day": pl.Int64, "item": pl.String}
        frame = pl.DataFrame(values, schema=schema, orient="row")
        day = datetime(2011, 1, 1, tzinfo=UTC) + pl.duration(days="day")
        return conform(frame.with_columns(available_at=day), EVENTS)

    once, dropped = dedupe(table(rows), EVENTS)
    assert once.height + dropped == len(rows)
    assert once.select(EVENTS.key).n_unique() == once.height == len({r[:2] for r in rows})
    earliest = table(rows).group_by(EVENTS.key).agg(pl.col("available_at").min())
    shown = once.select(*EVENTS.key, "available_at")
    assert_frame_equal(shown, earliest, check_row_order=False)
    random.shuffle(rows)
    again, _ = dedupe(table(rows), EVENTS)
    assert_frame_equal(once, again, check_row_order=False)
    split = len(rows) // 2
    parts = [dedupe(table(part), EVENTS)[0] for part in (rows[:split], rows[split:])]
    assert_frame_equal(dedupe(pl.concat(parts), EVENTS)[0], once, check_row_order=False)


def test_amounts_of_two_currencies_are_refused_when_events_are_read() -> None:
    """Each row's own was a column that nobody looked at; without an amount it does not matter."""

    def table(*rows: tuple[str, str, int | None]) -> pl.DataFrame:
        frame = pl.DataFrame(rows, schema=["source", "currency", "amount"], orient="row")
        return conform(frame.with_row_index("event_id").with_columns(user_key=pl.lit(1)), EVENTS)

    one = [("shop", "EUR", 1), ("bank", "EUR", None), ("bank", "USD", None)]
    assert each_once(table(*one)).height == 3
    assert each_once(table()).height == 0
    with pytest.raises(UserError) as refused:
        each_once(table(("shop", "USD", 2), *one))
    assert str(refused.value) == (
        "amounts in EUR (source shop) and in USD (source shop), which would be added up; expected "
        "one currency: convert the others in columns.amount"
    )


def test_online_retail(shared_data: Path) -> None:
    """541,909 lines = 401,604 accepted + 135,080 without a customer + 5,225 exact duplicates."""
    rows = pl.read_parquet(shared_data / "online_retail" / "onlineretail.parquet")
    columns = {
        "user_id": "CustomerID",
        "event_time": "InvoiceDate",
        "event_type": "CASE WHEN InvoiceNo LIKE 'C%' THEN 'cancel' ELSE 'buy' END",
        "item": "StockCode",
        "amount": "Quantity * UnitPrice",
        "text": "Description",
    }
    cleaned = clean(rows, columns, timezone="Europe/London", currency="GBP")
    assert rows.height == 541_909
    assert cleaned.accepted.height == 401_604
    assert cleaned.duplicates == 5_225
    assert cleaned.rejected["reason"].value_counts().rows() == [("no user id", 135_080)]
    assert cleaned.identities.height == 4_372


def test_rows_that_name_an_erased_user_are_refused_without_their_content() -> None:
    erased = frozenset(keys.erased_hashes(SECRET, keys.keys_of(SECRET, pl.Series(["bo"]))))
    ties = pl.DataFrame(
        {
            "a": ["bo", "al", "al", "al", None, "bo"],
            "b": ["al", "bo", "bo", "cy", "bo", "bo"],
            "kind": ["user", "user", "device", "user", "user", "user"],
            "t": ["2011-01-01"] * 5 + ["not a time"],
        }
    )
    mapping = {"user_id": "a", "other_id": "b", "other_kind": "kind", "relation": "'tie'"}
    source = Source(table="edges", path="f", columns={**mapping, "valid_from": "t"})
    cleaner = Cleaner(
        name="shop", source=source, table=EDGES, buckets=4, secret=SECRET, now=NOW, erased=erased
    )
    mapped = resolve(source, ties.schema, "f.csv", untyped=True)
    numbers = pl.int_range(1, 7, eager=True)
    cleaned = cleaner.clean(ties, numbers, mapped, file="f.csv", period="all")
    assert cleaned.accepted.height == 2  # a device of the same name is no user
    refused = cleaned.rejected.filter(pl.col("reason") == ERASED)
    assert refused["row"].to_list() == [1, 2, 5, 6]
    assert refused["content"].null_count() == 4
    assert "bo" not in cleaned.identities["user_id"].to_list()
