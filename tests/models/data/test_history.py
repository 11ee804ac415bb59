from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from models.data.features import FeatureConfig, features
from models.data.history import (
    Baseline,
    History,
    HistoryConfig,
    View,
    build_baseline,
    distinct,
    extend_baseline,
    local_weekday,
    no_events,
    view,
)
from models.data.visible import local_hour
from models.data.vocabulary import Vocabulary

Make = Callable[..., pl.DataFrame]
Events = list[dict[str, Any]]

START = datetime(2024, 1, 1, tzinfo=UTC)
MONTH = datetime(2024, 3, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
QUARTER = 6 * HOUR  # a coarse clock: many events at midnight, at the same time, at a date itself
LAGS = (0 * DAY, 0 * DAY, HOUR, 2 * DAY, 45 * DAY)
KEEP = HistoryConfig(kept_events=6, kept_texts=2)
VOCABULARY = Vocabulary(event_types=("buy", "refund"), categories=("x",))


def at(quarters: int) -> datetime:
    return START + quarters * QUARTER


EVENT = st.fixed_dictionaries(
    {
        "user_key": st.integers(1, 2),
        "event_time": st.integers(-1700, 300).map(at) | st.integers(200, 300).map(at),
        "lag": st.sampled_from(LAGS),
        "utc_offset_min": st.sampled_from([-720, 0, 345, 840]),
        "event_type": st.sampled_from(["buy", "refund", "other"]),
        "category": st.sampled_from([None, "x", "y"]),
        "counterparty_key": st.sampled_from([None, 7, 8]),
        "amount": st.integers(-(10**14), 10**14).map(lambda units: Decimal(units).scaleb(-4)),
        "text": st.sampled_from([None, "fine", "late again"]),
    }
)
EVENTS = st.lists(EVENT, max_size=20)
SEED = st.integers(0, 2**32 - 1)


def dated(events: Events, cuts: Sequence[datetime] = ()) -> Events:
    """With ids and availability; an event that was late across one of the cuts was not late."""
    result = []
    for place, event in enumerate(events):
        time, known = event["event_time"], event["event_time"] + event["lag"]
        late = any(time < cut < known for cut in cuts)
        own = {c: v for c, v in event.items() if c != "lag"}
        result.append(own | {"event_id": place, "available_at": time if late else known})
    return result


def mess(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """The same set in another order, with repetitions."""
    repeated = frame.sample(fraction=0.5, seed=seed) if frame.height else frame
    return pl.concat([frame, repeated]).sample(fraction=1.0, shuffle=True, seed=seed)


def daily_sums(seen: View) -> pl.DataFrame:
    keys = ["row", "age_days", "event_type", "category"]
    sums = pl.col("n", "n_night", "amount_sum").sum()
    return seen.daily.group_by(keys).agg(sums, pl.col("amount_max").max()).sort(keys)


def assert_same(one: View, other: View) -> None:
    """Equal in all that features are made of, and in the features, bit by bit."""
    assert_frame_equal(one.rows.drop("baseline_date"), other.rows.drop("baseline_date"))
    for part in ("events", "texts", "lifetime"):
        assert_frame_equal(getattr(one, part), getattr(other, part), check_column_order=False)
    assert_frame_equal(daily_sums(one), daily_sums(other))
    made = [features(seen, VOCABULARY, FeatureConfig(history=KEEP)).frame for seen in (one, other)]
    assert_frame_equal(*(m.drop("baseline_date") for m in made), check_exact=True)


def assert_same_baseline(one: Baseline, other: Baseline) -> None:
    assert one.date == other.date
    for part in ("events", "texts", "daily", "lifetime"):
        assert_frame_equal(getattr(one, part), getattr(other, part))


def chain(frame: pl.DataFrame, dates: Sequence[datetime], seed: int) -> Baseline:
    """A baseline moved forward through dates."""
    baseline = build_baseline(mess(frame, seed), dates[0], KEEP)
    for step, date in enumerate(dates[1:]):
        new = uncounted(frame, baseline.date)
        baseline = extend_baseline(baseline, mess(new, seed + step), date, KEEP)
    return baseline


def uncounted(frame: pl.DataFrame, date: datetime) -> pl.DataFrame:
    """The events that a baseline at a date does not count."""
    return frame.filter((pl.col("event_time") >= date) | (pl.col("available_at") > date))


DATES = st.lists(st.integers(-1500, 236).map(at), max_size=3).map(sorted)


@settings(max_examples=40)
@given(EVENTS, DATES, st.lists(st.integers(240, 310).map(at), min_size=1, max_size=3), SEED)
def test_order_repetition_and_split_do_not_matter(
    make_events: Make,
    make_rows: Make,
    events: Events,
    dates: list[datetime],
    as_ofs: list[datetime],
    seed: int,
) -> None:
    months = [t.replace(day=1, hour=0) for t in as_ofs]
    frame = make_events(dated(events, [*dates, *months]))
    rows = make_rows([(user, t) for t in as_ofs for user in (2, 1, 3)])
    expected = view(History(frame), rows, KEEP)
    assert_same(view(History(mess(frame, seed)), rows, KEEP), expected)
    if dates:
        baseline = chain(frame, dates, seed)
        assert_same_baseline(baseline, build_baseline(frame, dates[-1], KEEP))
        assert_same(view(History(mess(frame, seed), baseline), rows, KEEP), expected)
        since = frame.filter(pl.col("event_time") >= dates[-1])
        assert_same(view(History(mess(since, seed), baseline), rows, KEEP), expected)


@settings(max_examples=40)
@given(EVENTS, DATES, st.lists(st.integers(0, 122), min_size=1, max_size=2), SEED)
def test_late_events_count_the_same_with_a_baseline_at_the_month_start(
    make_events: Make,
    make_rows: Make,
    events: Events,
    dates: list[datetime],
    quarters: list[int],
    seed: int,
) -> None:
    frame = make_events(dated(events))
    rows = make_rows([(user, MONTH + q * QUARTER) for q in quarters for user in (1, 2)])
    baseline = chain(frame, [*dates, MONTH], seed)
    assert_same_baseline(baseline, build_baseline(frame, MONTH, KEEP))
    with_baseline = view(History(mess(frame, seed), baseline), rows, KEEP)
    assert_same(with_baseline, view(History(frame), rows, KEEP))
    assert with_baseline.rows["baseline_date"].unique().to_list() == [MONTH]


PLANTED = st.one_of(
    st.tuples(st.integers(0, 40), st.just(0)),  # of the future
    st.tuples(st.integers(-300, -1), st.integers(1, 40)),  # of the past, known after as-of
)


@settings(max_examples=40)
@given(EVENTS, st.lists(PLANTED, min_size=1, max_size=3), st.booleans())
def test_what_is_known_later_moves_nothing(
    make_events: Make,
    make_rows: Make,
    events: Events,
    planted: list[tuple[int, int]],
    from_baseline: bool,
) -> None:
    as_of = MONTH + 9 * DAY
    known = dated(events)
    future = [
        {
            "event_id": 1000 + place,
            "event_time": as_of + quarters * QUARTER,
            "available_at": as_of + max(quarters, delay) * QUARTER,
            "amount": 10**10,
            "text": "planted",
            "category": "x",
        }
        for place, (quarters, delay) in enumerate(planted)
    ]
    rows = make_rows([(1, as_of), (2, as_of)])
    views = []
    for log in (known, [*future, *known]):
        frame = make_events(log)
        baseline = build_baseline(frame, MONTH, KEEP) if from_baseline else None
        views.append(view(History(frame, baseline), rows, KEEP))
    assert_same(*views)


def test_what_was_late_for_the_month_start_waits_for_the_next(
    make_events: Make, make_rows: Make
) -> None:
    """Known as of the row, but its day lies in a baseline that was cut without it."""
    late = {"event_time": MONTH - DAY, "available_at": MONTH + HOUR}
    frame = make_events([{"event_time": MONTH + DAY}, late])
    rows = make_rows([(1, MONTH + 9 * DAY), (1, datetime(2024, 4, 1, tzinfo=UTC))])
    seen = view(History(frame), rows, KEEP)
    assert seen.lifetime["n"].to_list() == [1, 2]
    built = build_baseline(frame, MONTH, KEEP)
    assert view(History(frame, built), rows[:1], KEEP).lifetime["n"].to_list() == [1]
    assert built.lifetime.is_empty()
    moved = extend_baseline(built, frame, MONTH + 31 * DAY, KEEP)
    assert moved.lifetime["n"].to_list() == [2]


def test_events_at_the_edges_of_time(make_events: Make, make_rows: Make) -> None:
    """Before as-of strictly; available at as-of or before."""
    tick = timedelta(microseconds=1)
    as_of = MONTH + DAY
    frame = make_events(
        [
            {"event_time": as_of},
            {"event_time": as_of - tick},
            {"event_time": as_of - HOUR, "available_at": as_of},
            {"event_time": as_of - HOUR, "available_at": as_of + tick},
        ]
    )
    seen = view(History(frame), make_rows([(1, as_of)]), KEEP)
    assert seen.events["event_id"].to_list() == [2, 1]
    assert build_baseline(frame, as_of, KEEP).events["event_id"].to_list() == [2, 1]


@given(st.permutations(range(4)))
def test_of_two_contents_under_one_id_the_choice_is_free_of_order(
    make_events: Make, order: list[int]
) -> None:
    known = MONTH + HOUR
    versions = [
        {"event_id": 5, "event_time": MONTH, "available_at": known, "amount": 3},
        {"event_id": 5, "event_time": MONTH, "available_at": known + HOUR, "amount": 1},
        {"event_id": 5, "event_time": MONTH, "available_at": known, "amount": 2, "text": "b"},
        {"event_id": 5, "event_time": MONTH, "available_at": known, "amount": 2, "text": "a"},
    ]
    chosen = distinct(make_events(versions[i] for i in order))
    assert chosen.select("available_at", "amount", "text").rows() == [(known, 20_000, "a")]


def test_one_id_of_two_users_is_two_events(make_events: Make) -> None:
    same = {"event_id": 5, "event_time": MONTH}
    frame = make_events([same, {**same, "user_key": 2}, same])
    assert sorted(distinct(frame)["user_key"].to_list()) == [1, 2]


def test_sums_are_exact(make_events: Make, make_rows: Make) -> None:
    """Floats would lose the small ones among the large."""
    amounts = ["9999999999.9999", "0.0001", "-9999999999.9999", "0.1", "0.2", "0.0001"] * 40
    log = [{"event_time": MONTH - DAY, "amount": a} for a in amounts]
    frame, rows = make_events(log), make_rows([(1, MONTH)])
    units = int(sum(map(Decimal, amounts)).scaleb(4))
    for baseline in (None, build_baseline(frame, MONTH, KEEP)):
        seen = view(History(frame, baseline), rows, KEEP)
        assert seen.lifetime["amount_sum"].to_list() == [units]
        assert seen.daily["amount_sum"].sum() == units
    assert build_baseline(frame, MONTH, KEEP).daily["amount_max"].to_list() == [99_999_999_999_999]


def test_the_last_events_and_texts_are_kept(make_events: Make, make_rows: Make) -> None:
    log = [{"event_time": at(-i), "text": str(i) if i % 2 else None} for i in range(1, 10)]
    keep = HistoryConfig(kept_events=3, kept_texts=4)
    seen = view(History(make_events(log)), make_rows([(1, START)]), keep)
    assert seen.events["event_time"].to_list() == [at(-3), at(-2), at(-1)]
    assert seen.texts["text"].to_list() == ["7", "5", "3", "1"]
    assert seen.lifetime["n"].to_list() == [9]
    kept = build_baseline(make_events(log), START, keep)
    assert (kept.events.height, kept.texts.height) == (3, 4)


@pytest.mark.parametrize(
    ("ages", "flag"),
    [
        ([1, 2, 3], False),  # all kept
        ([1, 2, 3, 4], True),  # one of this week was dropped
        ([1, 2, 7, 8], True),  # the oldest kept lies at the edge of the week: cannot be ruled out
        ([1, 2, 8, 9], False),  # what was dropped is older than the short windows
        ([], False),
    ],
)
def test_saturated_tells_that_short_windows_may_lack_events(
    make_events: Make, make_rows: Make, ages: list[int], flag: bool
) -> None:
    frame = make_events({"event_time": MONTH - age * DAY} for age in ages)
    keep, rows = HistoryConfig(kept_events=3), make_rows([(1, MONTH), (2, MONTH)])
    for baseline in (None, build_baseline(frame, MONTH, keep)):
        assert view(History(frame, baseline), rows, keep).rows["saturated"].to_list() == [flag, 0]


def test_daily_rollups_reach_back_a_year(make_events: Make, make_rows: Make) -> None:
    log = [{"event_time": START - days * DAY} for days in (366, 365, 1)]
    frame, rows = make_events(log), make_rows([(1, START)])
    built = build_baseline(frame, START, KEEP)
    before = build_baseline(frame, START - 9 * DAY, KEEP)
    moved = extend_baseline(before, uncounted(frame, before.date), START, KEEP)
    for baseline in (None, built, moved):
        seen = view(History(frame, baseline), rows, KEEP)
        assert seen.daily["age_days"].sort().to_list() == [1, 365]
        assert seen.lifetime["n"].to_list() == [3]
    assert moved.daily["day"].min() == (START - 365 * DAY).date()


@pytest.mark.parametrize("with_baseline", [False, True])
def test_users_with_no_events_have_rows(
    make_events: Make, make_rows: Make, with_baseline: bool
) -> None:
    frame = make_events([{"event_time": MONTH - DAY, "user_key": 2, "text": "one"}])
    history = History(frame, build_baseline(frame, MONTH, KEEP) if with_baseline else None)
    seen = view(history, make_rows([(1, MONTH), (2, MONTH), (3, MONTH), (2, MONTH + DAY)]), KEEP)
    assert seen.rows["row"].to_list() == [0, 1, 2, 3]
    assert seen.events["row"].to_list() == seen.texts["row"].to_list() == [1, 3]
    assert seen.daily.select("row", "age_days").rows() == [(1, 1), (3, 2)]


@pytest.mark.parametrize("with_baseline", [False, True])
@pytest.mark.parametrize("users", [(), (1,)])
def test_empty_history_and_no_rows(
    make_rows: Make, with_baseline: bool, users: tuple[int, ...]
) -> None:
    baseline = build_baseline(no_events(), START, KEEP) if with_baseline else None
    rows = make_rows([(user, MONTH) for user in users])
    seen = view(History(no_events(), baseline), rows, KEEP)
    assert seen.rows.height == len(users)
    assert seen.events.height == seen.daily.height == seen.lifetime.height == 0
    assert seen.profile is None and seen.social is None


def test_no_row_may_lie_before_the_baseline(make_rows: Make) -> None:
    history = History(no_events(), build_baseline(no_events(), MONTH, KEEP))
    with pytest.raises(AssertionError):
        view(history, make_rows([(1, MONTH - DAY)]), KEEP)
    with pytest.raises(AssertionError):
        extend_baseline(build_baseline(no_events(), MONTH, KEEP), no_events(), START, KEEP)


def test_ties_are_those_of_the_month_start(make_rows: Make) -> None:
    dates = [START, START + 31 * DAY, MONTH]
    social = pl.DataFrame(
        {"user_key": [1, 1, 1], "graph_date": dates, "device_nodes": [1.0, 2.0, 3.0]},
        schema_overrides={"graph_date": pl.Datetime("us", "UTC")},
    )
    as_ofs = [START, START + 30 * DAY, START + 31 * DAY, MONTH + HOUR, MONTH + 40 * DAY]
    rows = make_rows([(1, t) for t in as_ofs] + [(2, MONTH)])
    seen = view(History(no_events(), social=social), rows, KEEP).social
    assert seen is not None and seen.columns == ["row", "device_nodes"]
    assert seen["device_nodes"].to_list() == [1.0, 1.0, 2.0, 3.0, None, None]


@given(st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)), st.integers(-840, 840))
def test_local_hour_and_weekday(time: datetime, offset: int) -> None:
    zone = pl.Datetime("us", "UTC")
    frame = pl.DataFrame({"t": [time], "o": [offset]}, schema={"t": zone, "o": pl.Int16})
    local = time + timedelta(minutes=offset)
    hour, weekday = local_hour(pl.col("t"), pl.col("o")), local_weekday(pl.col("t"), pl.col("o"))
    assert frame.select(hour=hour, day=weekday).row(0) == (local.hour, local.weekday())
