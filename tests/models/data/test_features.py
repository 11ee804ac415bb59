import statistics
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from models.data.features import (
    AMOUNT_UNIT,
    FeatureConfig,
    Features,
    check_profile,
    features,
    tabular_columns,
)
from models.data.graph import social_columns
from models.data.history import History, HistoryConfig, no_events, view
from models.data.rows import TIME
from models.data.schema import UserError
from models.data.vocabulary import Vocabulary

Make = Callable[..., pl.DataFrame]
Events = list[dict[str, Any]]
Row = dict[str, Any]

AS_OF = datetime(2024, 5, 17, 15, 30, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
TICK = timedelta(microseconds=1)
TYPES = ("buy", "refund")
VOCABULARY = Vocabulary(event_types=TYPES, categories=("x", "y"))
CONFIG = FeatureConfig()


def made(
    events: pl.DataFrame,
    rows: pl.DataFrame,
    vocabulary: Vocabulary = VOCABULARY,
    config: FeatureConfig = CONFIG,
    **more: pl.DataFrame,
) -> Features:
    return features(view(History(events, **more), rows, config.history), vocabulary, config)


def first(known: Features) -> Row:
    return known.frame.row(0, named=True)


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-12)


def share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def naive(events: Events, as_of: datetime) -> Row:
    """The tabular columns of one user, from their events one by one."""
    seen = [e for e in events if e["event_time"] < as_of]
    result: Row = {}

    def window(name: str, inside: Events, types: bool) -> None:
        amounts = [e["amount"] for e in inside]
        result[f"n_{name}"] = len(inside)
        result[f"sum_{name}"] = float(sum(amounts))
        result[f"max_{name}"] = float(max(amounts)) if amounts else None
        if not types:
            return
        local = [e["event_time"] + e["utc_offset_min"] * MINUTE for e in inside]
        result[f"night_{name}"] = share(sum(t.hour < 6 for t in local), len(inside))
        categories = {e["category"] for e in inside} - {None}
        result[f"categories_{name}"] = len(categories)
        for kind in TYPES:
            own = [e["amount"] for e in inside if e["event_type"] == kind]
            result[f"n_{kind}_{name}"] = len(own)
            result[f"sum_{kind}_{name}"] = float(sum(own))

    for name, length in (("1h", HOUR), ("1d", DAY), ("7d", 7 * DAY)):
        window(name, [e for e in seen if as_of - e["event_time"] <= length], types=False)
    for days in (30, 90, 365):
        oldest = as_of.date() - days * DAY
        window(f"{days}d", [e for e in seen if e["event_time"].date() >= oldest], types=True)
    for what in ("n", "sum", "n_buy", "sum_buy", "n_refund", "sum_refund"):
        whole = result[f"{what}_90d"]
        result[f"trend_{what}"] = share(3 * result[f"{what}_30d"], whole)
    for name, kinds in (("recency_d", None), *((f"recency_{t}_d", t) for t in TYPES)):
        times = [e["event_time"] for e in seen if kinds in (None, e["event_type"])]
        result[name] = (as_of - max(times)) / DAY if times else None
    times = [e["event_time"] for e in seen]
    result["tenure_d"] = (as_of - min(times)) / DAY if times else None
    result["n_lifetime"] = len(seen)
    paid = [float(e["amount"]) for e in seen if e["amount"] > 0]
    result["amount_median"] = statistics.median(paid) if paid else None
    month = [e["counterparty_key"] for e in seen if as_of - e["event_time"] < 30 * DAY]
    result["counterparties_30d"] = len(set(month) - {None})
    return result


AGES = st.one_of(
    st.integers(-200, 9000).map(lambda n: n * MINUTE),
    st.integers(-2, 380).map(lambda n: n * DAY),
    st.sampled_from([HOUR, 7 * DAY, 15.5 * HOUR, 30 * DAY + 15.5 * HOUR, 366 * DAY]),
)
EVENT = st.builds(
    lambda user, age, amount, **rest: {
        "user_key": user,
        "event_time": AS_OF - age,
        "amount": Decimal(amount).scaleb(-4),
        **rest,
    },
    st.integers(1, 2),
    AGES,
    st.integers(-(10**9), 10**9),
    utc_offset_min=st.sampled_from([-600, 0, 480]),
    event_type=st.sampled_from([*TYPES, "other"]),
    category=st.sampled_from([None, "x", "y", "z"]),
    counterparty_key=st.sampled_from([None, 7, 8, 9]),
)


@settings(max_examples=60)
@given(st.lists(EVENT, max_size=25))
def test_every_column_equals_a_count_one_by_one(
    make_events: Make, make_rows: Make, events: Events
) -> None:
    times = [AS_OF, AS_OF - 20 * DAY]
    rows = make_rows([(user, t) for user in (1, 2) for t in times])
    known = made(make_events(events), rows)
    for found, (user, as_of) in zip(
        known.frame.iter_rows(named=True),
        rows.select("user_key", "as_of").iter_rows(),
        strict=True,
    ):
        expected = naive([e for e in events if e["user_key"] == user], as_of)
        assert {c for c in known.tabular if not c.startswith("proposed")} == set(expected)
        for column, value in expected.items():
            same = found[column] is None if value is None else found[column] == close(value)
            assert same, (column, found[column], value)


@settings(max_examples=20)
@given(st.lists(EVENT, max_size=12))
def test_a_row_does_not_depend_on_the_rows_beside_it(
    make_events: Make, make_rows: Make, events: Events
) -> None:
    frame = make_events(events)
    keys = [(2, AS_OF), (1, AS_OF - DAY), (1, AS_OF)]
    together = made(frame, make_rows(keys)).frame.drop("row")
    alone = pl.concat([made(frame, make_rows([key])).frame.drop("row") for key in keys])
    assert_frame_equal(together, alone, check_exact=True)


@pytest.mark.parametrize(("name", "length"), [("1h", HOUR), ("1d", DAY), ("7d", 7 * DAY)])
def test_short_windows_are_exact(
    make_events: Make, make_rows: Make, name: str, length: timedelta
) -> None:
    ages = [TICK, length, length + TICK]
    events = make_events({"event_time": AS_OF - age, "amount": k} for k, age in enumerate(ages))
    row = first(made(events, make_rows([(1, AS_OF)])))
    assert (row[f"n_{name}"], row[f"sum_{name}"], row[f"max_{name}"]) == (2, 1.0, 1.0)


@pytest.mark.parametrize("days", [30, 90, 365])
@pytest.mark.parametrize("as_of", [AS_OF, datetime(2024, 5, 17, tzinfo=UTC)])
def test_long_windows_begin_with_a_day(
    make_events: Make, make_rows: Make, days: int, as_of: datetime
) -> None:
    day = datetime(2024, 5, 17, tzinfo=UTC) - days * DAY
    log = [{"event_time": t, "amount": 1} for t in (day - TICK, day, day + 23 * HOUR)]
    row = first(made(make_events(log), make_rows([(1, as_of)])))
    assert (row[f"n_{days}d"], row[f"sum_{days}d"], row["n_lifetime"]) == (2, 2.0, 3)


def test_counts_are_zero_and_the_rest_null_for_a_user_without_events(make_rows: Make) -> None:
    known = made(no_events(), make_rows([(1, AS_OF)]))
    row = first(known)
    zero = ("n_", "sum_", "categories_", "counterparties_")
    for column in known.tabular:
        assert row[column] == (0 if column.startswith(zero) else None), column
    lists = [c for c in known.frame.columns if c.startswith(("events_", "texts"))]
    assert len(lists) == 9 and all(row[c] == [] for c in lists)


@pytest.mark.parametrize("vocabulary", [VOCABULARY, Vocabulary(event_types=())])
def test_no_rows_have_the_columns_of_rows(
    make_events: Make, make_rows: Make, vocabulary: Vocabulary
) -> None:
    events = make_events([{"event_time": AS_OF - DAY, "text": "a"}])
    none, one = (made(events, make_rows(keys), vocabulary) for keys in ([], [(1, AS_OF)]))
    assert none.frame.height == 0
    assert none.frame.schema == one.frame.schema
    assert none.tabular == one.tabular == tabular_columns(vocabulary)
    assert len(set(none.tabular)) == len(none.tabular)


def test_unknown_types_count_in_all_but_their_own_columns(
    make_events: Make, make_rows: Make
) -> None:
    log = [{"event_time": AS_OF - DAY, "event_type": t, "amount": 2} for t in ("new", "buy")]
    row = first(made(make_events(log), make_rows([(1, AS_OF)])))
    assert (row["n_30d"], row["n_buy_30d"], row["n_refund_30d"]) == (2, 1, 0)
    assert row["events_type"] == [1, 2]
    assert row["recency_refund_d"] is None


PROPOSALS = [  # amount, category, to the median, to the maximum, share of the category
    (30.0, "x", 1.5, 1.0, 0.5),
    (10.0, "z", 0.5, 1 / 3, 0.0),
    (0.0, None, 0.0, 0.0, None),
    (None, "y", None, None, 0.25),
    (None, None, None, None, None),
]


def test_a_proposed_transaction_is_set_against_own_habits(
    make_events: Make, make_rows: Make
) -> None:
    """User 1 paid 10, 20 and 30 (a refund is no payment); user 2 did nothing before."""
    log = [
        {"event_time": AS_OF - days * DAY, "amount": amount, "category": category}
        for days, amount, category in [(1, 10, "x"), (2, 20, "x"), (3, 30, "y"), (4, -99, None)]
    ]
    log.append({"event_time": AS_OF - 400 * DAY, "amount": 0, "category": "z"})
    rows = make_rows([(1, AS_OF)] * len(PROPOSALS) + [(2, AS_OF)])
    proposed = {
        "proposed_amount": [p[0] for p in PROPOSALS] + [5.0],
        "proposed_category": [p[1] for p in PROPOSALS] + ["x"],
    }
    frame = made(make_events(log), rows.with_columns(pl.DataFrame(proposed))).frame
    columns = ("proposed_amount", "proposed_to_median", "proposed_to_max_365d")
    found = frame.select(*columns, "proposed_familiar").rows()
    for row, (amount, _, median, largest, familiar) in zip(found, PROPOSALS, strict=False):
        assert row == pytest.approx((amount, median, largest, familiar), nan_ok=True)
    assert found[-1] == (5.0, None, None, None)
    none = made(make_events(log), rows).frame.select(*columns, "proposed_familiar")
    assert none.null_count().row(0) == (len(PROPOSALS) + 1,) * 4


def test_sequences_are_the_last_events_oldest_first(make_events: Make, make_rows: Make) -> None:
    log = [
        {
            "event_time": AS_OF - hours * HOUR,
            "event_type": kind,
            "category": category,
            "amount": hours,
            "utc_offset_min": offset,
        }
        for hours, kind, category, offset in [
            (90, "buy", "x", 0),
            (2, "refund", "y", 480),  # 13:30 on Friday is 21:30 there
            (12, "other", "q", 540),  # 03:30 on Friday is 12:30 there
            (20, "buy", None, -1200),  # 19:30 on Thursday is 23:30 on Wednesday there
        ]
    ]
    config = FeatureConfig(max_events=3)
    row = first(made(make_events(log), make_rows([(1, AS_OF)]), config=config))
    assert {c: v for c, v in row.items() if c.startswith("events_")} == {
        "events_type": [2, 1, 3],
        "events_category": [1, 1, 3],
        "events_amount": [20.0, 12.0, 2.0],
        "events_age_h": [20.0, 12.0, 2.0],
        "events_gap_h": [70.0, 8.0, 10.0],
        "events_hour": [23, 12, 21],
        "events_weekday": [2, 4, 4],
    }


def test_the_first_event_has_no_gap_to_another_users(make_events: Make, make_rows: Make) -> None:
    log = [{"event_time": AS_OF - hours * HOUR, "user_key": hours % 2} for hours in (5, 4, 2)]
    frame = made(make_events(log), make_rows([(0, AS_OF), (1, AS_OF)])).frame
    assert frame["events_gap_h"].to_list() == [[0.0, 2.0], [0.0]]


def test_texts_are_the_last_ones_with_their_age(make_events: Make, make_rows: Make) -> None:
    log = [{"event_time": AS_OF - d * DAY, "text": t} for d, t in enumerate([None, *"abcd"])]
    row = first(made(make_events(log), make_rows([(1, AS_OF)]), config=FeatureConfig(max_texts=2)))
    assert (row["texts"], row["texts_age_d"]) == (["b", "a"], [2.0, 1.0])


def test_habits_are_of_the_events_kept(make_events: Make, make_rows: Make) -> None:
    log = [{"event_time": AS_OF - d * DAY, "amount": d, "counterparty_key": d} for d in range(9)]
    config = FeatureConfig(history=HistoryConfig(kept_events=3))
    row = first(made(make_events(log), make_rows([(1, AS_OF)]), config=config))
    assert (row["amount_median"], row["counterparties_30d"]) == (2.0, 3)
    assert (row["n_30d"], row["n_lifetime"], row["saturated"]) == (8, 8, True)


def test_amounts_are_in_currency_to_the_fourth_place(make_events: Make, make_rows: Make) -> None:
    events = make_events([{"event_time": AS_OF - DAY, "amount": "0.0001"}] * 3)
    row = first(made(events, make_rows([(1, AS_OF)])))
    assert row["sum_30d"] == 3 * AMOUNT_UNIT and row["max_1d"] == AMOUNT_UNIT


def test_profile_columns_and_those_the_profile_lacks(make_rows: Make) -> None:
    vocabulary = Vocabulary(
        event_types=TYPES,
        numeric=("income", "rooms"),
        categorical=("city", "plan"),
        levels={"city": ("Oslo", "Bergen"), "plan": ("gold",)},
    )
    profiles = pl.DataFrame(
        {"user_key": [1, 2], "income": [5.0, None], "city": ["Bergen", "Narvik"]}
    ).with_columns(valid_from=pl.lit(AS_OF).cast(TIME), available_at=pl.lit(AS_OF).cast(TIME))
    rows = make_rows([(user, AS_OF) for user in (1, 2, 3)])
    known = made(no_events(), rows, vocabulary, profiles=profiles)
    assert known.frame.select("income", "rooms").rows() == [(5.0, None), (None, None), (None, None)]
    assert known.frame.select(known.categorical).rows() == [(2, 0), (0, 0), (0, 0)]
    assert known.tabular[-2:] == ("income", "rooms")
    without = made(no_events(), rows, vocabulary).frame
    assert without.select("income", "city", "plan").rows() == [(None, 0, 0)] * 3


def test_bad_neighbours_are_a_share_of_the_known(make_rows: Make) -> None:
    relations = ("device", "referral")
    counts = [[2.0, 5.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]]
    social = pl.DataFrame(counts, schema=list(social_columns(relations)), orient="row")
    social = social.with_columns(
        user_key=pl.lit(1, pl.Int64), graph_date=pl.lit(AS_OF).cast(TIME).dt.truncate("1mo")
    )
    vocabulary = Vocabulary(event_types=TYPES, relations=relations)
    rows = make_rows([(1, AS_OF), (2, AS_OF)])
    known = made(no_events(), rows, vocabulary, social=social)
    assert known.frame.select(known.social).rows() == [
        (2, 5, 4, 4, 0.25, 1, 1, 1, 0, 0, 4, 0.25),
        (None,) * 12,
    ]
    blind = FeatureConfig(neighbour_outcomes=False)
    known = made(no_events(), rows, vocabulary, blind, social=social)
    assert known.social == tuple(
        f"{r}_{m}" for r in relations for m in ("nodes", "shared", "max_shared")
    )
    assert known.frame.select(known.social).row(0) == (2, 5, 4, 1, 1, 1)
    for config in (CONFIG, blind):
        without = made(no_events(), rows, vocabulary, config)
        assert without.frame.select(without.social).null_count().row(0) == (2,) * len(
            without.social
        )


def test_ties_of_no_known_relation_give_no_columns(make_rows: Make) -> None:
    social = pl.DataFrame({"user_key": [1], "graph_date": [AS_OF], "new_nodes": [1.0]})
    social = social.cast({"graph_date": TIME})
    known = made(no_events(), make_rows([(1, AS_OF), (2, AS_OF)]), social=social)
    assert known.social == () and known.frame.height == 2


@pytest.mark.parametrize("kind", ["numeric", "categorical"])
@pytest.mark.parametrize(
    "name",
    [
        "n_30d", "sum_refund_90d", "user_key", "ties_bad", "device_nodes", "texts", "events_type",
        "role", "proposed_category", "y_default", "source", "valid_from", "user_id",
    ],
)  # fmt: skip
def test_a_profile_column_may_not_take_the_name_of_another_column(kind: str, name: str) -> None:
    words = {"event_types": TYPES, "relations": ("device",)}
    check_profile(Vocabulary(**words, **{kind: ("income",)}))
    with pytest.raises(UserError, match=f"profile: '{name}' is the name of another column"):
        check_profile(Vocabulary(**words, **{kind: ("income", name)}))


def test_a_profile_column_is_declared_once() -> None:
    with pytest.raises(UserError, match="profile: 'age' is declared twice"):
        check_profile(Vocabulary(event_types=(), numeric=("age",), categorical=("age",)))
