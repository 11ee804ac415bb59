"""Requests → History: they do not mix, order and repetition do not matter, keys as in ingest."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data.history import HistoryConfig, View, view
from models.data.keys import id_hash, user_key
from ray_jobs.config import Profile, load
from ray_jobs.serving import api, convert

SECRET = b"only for tests"
TERMS = api.Terms(
    profile=Profile(numeric=("age",), categorical=("city",)),
    sources={
        "orders": api.EventSource("Asia/Shanghai"),
        "reviews": api.EventSource("America/New_York", timedelta(days=2)),
    },
)
AS_OF = datetime(2024, 5, 20, 12, tzinfo=UTC)
MAY = datetime(2024, 5, 1, tzinfo=UTC)


def event(event_id: int | str = 1, **fields: Any) -> dict[str, Any]:
    time = datetime(2024, 5, 2, 9, 30, tzinfo=UTC)
    return {"event_id": event_id, "event_time": time, "event_type": "pay", **fields}


def request(user_id: str = "u1", **fields: Any) -> api.ScoreRequest:
    content = {"user_id": user_id, "as_of": AS_OF, **fields}
    content["events"] = tuple(content.get("events", ()))
    return api.ScoreRequest.model_validate(content, context=TERMS)


def seen(*requests: api.ScoreRequest, social: pl.DataFrame | None = None) -> View:
    history, rows = convert.to_history(requests, secret=SECRET, terms=TERMS, social=social)
    return view(history, rows, HistoryConfig())


def graph(**nodes: float) -> pl.DataFrame:
    keys = [user_key(SECRET, user) for user in nodes]
    return pl.DataFrame(
        {
            "user_key": pl.Series(keys, dtype=pl.Int64),
            "graph_date": pl.Series([MAY] * len(nodes), dtype=convert.TIMES),
            "device_nodes": list(nodes.values()),
        }
    )


events = st.builds(
    event,
    st.integers(1, 4) | st.sampled_from(["a", "b"]),
    amount=st.none() | st.integers(-5, 5).map(Decimal),
    text=st.none() | st.sampled_from(["good", "late"]),
    event_type=st.sampled_from(["pay", "refund"]),
    event_time=st.datetimes(
        datetime(2024, 4, 1), datetime(2024, 6, 1), timezones=st.just(UTC)
    ),
)  # fmt: skip
requests = st.builds(
    request,
    st.sampled_from(["u1", "u2"]),
    as_of=st.sampled_from([AS_OF, datetime(2024, 5, 10, tzinfo=UTC)]),
    events=st.lists(events, max_size=4),
    profile=st.fixed_dictionaries({}, optional={"age": st.just(3.0), "city": st.just("x")}),
)


@settings(max_examples=40)
@given(st.lists(requests, min_size=1, max_size=5))
def test_a_request_sees_the_same_alone_and_in_a_batch(batch: list[api.ScoreRequest]) -> None:
    social = graph(u1=2.0)
    together = seen(*batch, social=social)
    for row, one in enumerate(batch):
        alone = seen(one, social=social)
        for part in ("rows", "events", "texts", "daily", "lifetime", "profile", "social"):
            in_batch = getattr(together, part).filter(pl.col("row") == row)
            kept = [c for c in in_batch.columns if c not in ("row", "user_key")]
            left, right = in_batch.select(kept), getattr(alone, part).select(kept)
            if part == "daily":  # contributions to sums, in no order
                left, right = left.sort(kept), right.sort(kept)
            assert left.equals(right), part


@settings(max_examples=40)
@given(st.lists(events, max_size=4), st.randoms(use_true_random=False))
def test_events_are_a_set(some: list[dict[str, Any]], random: Any) -> None:
    shuffled = [*some, *some]
    random.shuffle(shuffled)
    once, twice = seen(request(events=some)), seen(request(events=shuffled))
    assert once.events.equals(twice.events)
    assert once.lifetime.equals(twice.lifetime)


def test_no_requests_and_no_events() -> None:
    assert seen().rows.is_empty()
    nothing = seen(request())
    assert nothing.rows.height == 1
    assert nothing.events.is_empty()


def test_events_as_ingest_makes_them() -> None:
    history, rows = convert.to_history(
        [
            request(
                events=[
                    event("order 17", text=" mail a@b.org ", counterparty_id="m-1"),
                    event("order 17", source="reviews", text=" "),
                    event("18", amount=Decimal("-1.5")),
                    event(2**63 - 1),
                ],
                proposed={"amount": Decimal("99.99"), "category": "loan"},
            )
        ],
        secret=SECRET,
        terms=TERMS,
        social=None,
    )
    made = history.recent
    ids = [id_hash(pl.Series(["order 17"]), source)[0] for source in ("orders", "reviews")]
    assert made["event_id"].to_list() == [*ids, 18, 2**63 - 1]
    assert made["text"].to_list() == ["mail [EMAIL]", None, None, None]
    assert made["counterparty_key"][0] == user_key(SECRET, "counterparty:m-1")
    assert made["amount"].to_list() == [None, None, Decimal("-1.5000"), None]
    lags = made["available_at"] - made["event_time"]
    assert lags.dt.total_days().to_list() == [0, 2, 0, 0]
    assert rows.schema["as_of"] == pl.Datetime("us", "UTC")
    assert rows.row(0, named=True)["proposed_amount"] == Decimal("99.9900")
    assert rows["row"].dtype == pl.UInt32


@pytest.mark.parametrize(
    "time", ["2024-05-02T01:30:00+02:00", "2024-05-02T01:30:00-09:30", "2024-05-02T01:30:00Z"]
)
@pytest.mark.parametrize(("source", "offset"), [(None, 480), ("reviews", -240)])
def test_local_time_is_that_of_the_source(time: str, source: str | None, offset: int) -> None:
    """As in ingest, whatever offset the caller writes the time in."""
    one = event(event_time=time) if source is None else event(event_time=time, source=source)
    (row,) = seen(request(events=[one])).events.rows(named=True)
    assert row["utc_offset_min"] == offset
    assert row["event_time"] == datetime.fromisoformat(time)


def test_what_was_not_known_yet_is_not_seen() -> None:
    late = datetime(2024, 5, 20, 12, 0, 1, tzinfo=UTC)
    view_of = seen(request(events=[event(1, available_at=late), event(2, event_time=AS_OF)]))
    assert view_of.events.is_empty()


def test_an_event_is_known_when_ingest_says_so() -> None:
    """`lag` after it happened, unless the event, or its source, tells when that was."""
    one = event(1, source="reviews", event_time=AS_OF - timedelta(days=2))
    late = event(2, source="reviews", event_time=AS_OF - timedelta(days=1))
    told = {**late, "event_id": 3, "available_at": AS_OF}
    orders = {**late, "event_id": 4, "source": "orders"}
    assert seen(request(events=[one, late, told, orders])).events["event_id"].to_list() == [1, 3, 4]
    lag = "sources.events.lag=P2D"
    late_by = api.EventSource("Asia/Shanghai", timedelta(days=2))
    assert api.terms_of(load("demo", [lag])).sources == {"events": late_by}
    mapped = "sources.events.columns.available_at=seen"
    at_once = api.EventSource("Asia/Shanghai")
    assert api.terms_of(load("demo", [lag, mapped])).sources == {"events": at_once}


def test_identify_gives_the_lakes_key_and_the_month() -> None:
    (row,) = convert.identify([request("u2")], SECRET).rows(named=True)
    assert row == {
        "row": 0,
        "user_key": user_key(SECRET, "u2"),
        "as_of": AS_OF,
        "graph_date": MAY,
    }


def test_ties_are_found_by_the_real_key_and_month() -> None:
    april = datetime(2024, 4, 10, tzinfo=UTC)
    view_of = seen(
        request("u1"), request("u2"), request("u1", as_of=april), request("u1"),
        social=graph(u1=7.0, other=1.0),
    )  # fmt: skip
    assert view_of.social is not None
    assert view_of.social["device_nodes"].to_list() == [7.0, None, None, 7.0]


def test_without_a_graph_ties_are_unknown() -> None:
    assert seen(request()).social is None


def test_profile_of_each_request() -> None:
    view_of = seen(
        request(profile={"age": 41, "city": " Bern "}), request(), request(profile={"age": None})
    )
    assert view_of.profile is not None
    assert view_of.profile["age"].to_list() == [41.0, None, None]
    assert view_of.profile["city"].to_list() == ["Bern", None, None]


def test_no_profile_columns_declared() -> None:
    history, _ = convert.to_history([request()], secret=SECRET, terms=api.Terms(), social=None)
    assert history.profiles is None
