from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.data.schema import EVENTS, UserError, empty
from models.data.tasks import (
    ROLES,
    Period,
    Split,
    Task,
    check_complete,
    label_expression,
    midnight,
    month_floor,
    month_starts,
    outcomes,
)

Make = Callable[..., pl.DataFrame]

AS_OF = datetime(2024, 5, 1, tzinfo=UTC)
DAY, TICK = timedelta(days=1), timedelta(microseconds=1)
MONTHS = ("2024-01-01", "2024-03-01", "2024-05-01", "2024-07-01")


def expressed(expression: str, **more: Any) -> Task:
    return Task(kind="amount", expression=expression, **more)


def split_at(*firsts: str, days: int = 0, schedule: str = "month") -> Split:
    """Roles that begin at these dates, each `days` long."""
    periods = {}
    for role, first in zip(ROLES, map(date.fromisoformat, firsts), strict=True):
        periods[role] = {"first": first, "last": first + days * DAY}
    return Split.model_validate({"schedule": schedule, **periods})


def label(events: pl.DataFrame, rows: pl.DataFrame, task: Task) -> list[float]:
    return outcomes(rows, events, {"t": task})["y_t"].to_list()


LOG = [
    {"event_time": AS_OF + DAY, "event_type": "buy", "amount": "10.10"},
    {"event_time": AS_OF + 2 * DAY, "event_type": "buy", "amount": "0.20"},
    {"event_time": AS_OF + 3 * DAY, "event_type": "refund", "amount": "-5.00"},
    {"event_time": AS_OF + DAY, "event_type": "view", "user_key": 2},
]


@pytest.mark.parametrize(
    ("expression", "values"),  # of a user who bought, one who looked, one who did nothing
    [
        ("COUNT(*) FILTER (WHERE event_type = 'refund') > 0", [1, 0, 0]),
        ("COUNT(*) FILTER (WHERE event_type = 'buy')", [2, 0, 0]),
        ("SUM(amount) FILTER (WHERE event_type = 'buy')", [10.3, 0, 0]),
        ("SUM(amount)", [5.3, 0, 0]),
        ("SUM(amount) > 100", [0, 0, 0]),
        ("MAX(amount)", [10.1, 0, 0]),
        ("COUNT(*) = 0", [0, 0, 1]),  # who leaves: true of nothing
        ("COUNT(*) FILTER (WHERE event_type = 'refund') / COUNT(*)", [1 / 3, 0, 0]),
    ],
)
def test_labels_are_aggregates_of_the_outcome_window(
    make_events: Make, make_rows: Make, expression: str, values: list[float]
) -> None:
    rows = make_rows([(user, AS_OF) for user in (1, 2, 3)])
    assert label(make_events(LOG), rows, expressed(expression)) == pytest.approx(values)
    zero = label(make_events([]), rows, expressed(expression))
    assert zero == [values[2]] * 3


def test_the_window_is_half_open(make_events: Make, make_rows: Make) -> None:
    ages = [-TICK, 0 * DAY, 10 * DAY - TICK, 10 * DAY]
    events = make_events({"event_time": AS_OF + age} for age in ages)
    rows = make_rows([(1, AS_OF), (1, AS_OF + 10 * DAY), (1, AS_OF - 10 * DAY)])
    assert label(events, rows, expressed("COUNT(*)", window=timedelta(days=10))) == [2, 1, 1]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(-40, 80)), max_size=15))
def test_labels_equal_a_count_one_by_one(
    make_events: Make, make_rows: Make, log: list[tuple[int, int]]
) -> None:
    events = make_events({"user_key": user, "event_time": AS_OF + n * DAY} for user, n in log)
    keys = [(user, start) for user in (3, 1, 2) for start in (30, 0)]
    rows = make_rows([(user, AS_OF + start * DAY) for user, start in keys])
    naive = [sum(u == user and start <= n < start + 30 for u, n in log) for user, start in keys]
    assert label(events, rows, expressed("COUNT(*)")) == naive


def test_tasks_of_label_rows_have_no_outcome_column(make_events: Make, make_rows: Make) -> None:
    tasks = {"own": Task(kind="binary"), "n": expressed("COUNT(*)")}
    found = outcomes(make_rows([(1, AS_OF)]), make_events(LOG), tasks)
    assert found.columns == ["row", "y_n"]
    assert outcomes(make_rows([]), make_events(LOG), tasks).height == 0


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("amount", "must be an aggregate of the events in the outcome window"),
        ("amount > 0", "must be an aggregate"),
        ("SUM(amount) > amount", "must be an aggregate"),
        ("SUM(amount) OVER (PARTITION BY item)", "must be an aggregate"),
        ("MAX(text)", "must be an aggregate"),
        ("MAX(event_time)", "must be an aggregate"),
        ("SUM(price)", 'unable to find column "price"'),
        ("SUM(amount", "unable to parse"),
        ("", "unable to parse"),
        ("NOPE(amount)", "unsupported function"),
        ("SUM(text)", "not supported"),
    ],
)
def test_what_is_no_aggregate_is_refused_in_one_line(expression: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        label_expression("late", expressed(expression), empty(EVENTS).schema)
    line = str(refused.value)
    assert line.startswith(f"tasks.late.expression {expression!r}: ")
    assert message in line and "\n" not in line


def test_roles_lie_an_outcome_window_apart() -> None:
    tasks = {"a": expressed("COUNT(*)", window=7 * DAY), "b": expressed("COUNT(*)")}
    split_at(*MONTHS).check(tasks)
    split_at("2024-01-01", "2024-01-31", "2024-03-01", "2024-04-01").check(tasks)
    with pytest.raises(UserError, match=r"split\.select\.first 2024-01-30: must lie .*30 days"):
        split_at("2024-01-01", "2024-01-30", "2024-03-01", "2024-04-01").check(tasks)
    with pytest.raises(UserError, match=r"split\.test\.first .* after split\.calibrate\.last"):
        split_at("2024-01-01", "2024-03-01", "2024-05-01", "2024-05-01").check(tasks)
    split_at("2024-01-01", "2024-01-08", "2024-01-15", "2024-01-22").check({"a": tasks["a"]})


def test_a_period_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValidationError, match="last 2024-01-01 is before first 2024-02-01"):
        Period(first=date(2024, 2, 1), last=date(2024, 1, 1))


@pytest.mark.parametrize(
    ("first", "last", "months"),
    [
        ("2024-01-01", "2024-01-01", [(2024, 1)]),
        ("2023-11-02", "2024-02-01", [(2023, 12), (2024, 1), (2024, 2)]),
        ("2023-12-01", "2023-12-31", [(2023, 12)]),
        ("2024-01-02", "2024-01-31", []),
    ],
)
def test_month_starts(first: str, last: str, months: list[tuple[int, int]]) -> None:
    period = Period(first=date.fromisoformat(first), last=date.fromisoformat(last))
    assert month_starts(period) == [datetime(y, m, 1, tzinfo=UTC) for y, m in months]


def test_month_starts_of_a_split_carry_their_role() -> None:
    split = split_at(*MONTHS, days=31)
    assert [(role, f"{t:%m}") for role, t in split.month_starts()] == [
        *(("fit", "01"), ("fit", "02"), ("select", "03"), ("select", "04")),
        *(("calibrate", "05"), ("calibrate", "06"), ("test", "07"), ("test", "08")),
    ]


def test_the_last_as_of_time_of_the_fit_role() -> None:
    split = split_at(*MONTHS, days=31)
    assert split.last_fit() == max(t for role, t in split.month_starts() if role == "fit")
    late = split.fit.model_copy(update={"last": split.fit.last + timedelta(days=13)})
    assert split.model_copy(update={"fit": late}).last_fit() == split.last_fit()
    own = split.model_copy(update={"fit": late, "schedule": "labels"})
    assert own.last_fit() == midnight(late.last)


def test_the_role_of_a_time() -> None:
    """The last day counts to its end; between the periods there is no role."""
    split = split_at(*MONTHS, days=1)
    start = datetime(2024, 3, 1, tzinfo=UTC)
    times = [start - TICK, start, start + 2 * DAY - TICK, start + 2 * DAY]
    frame = pl.DataFrame({"t": times}, schema={"t": pl.Datetime("us", "UTC")})
    roles = frame.select(split.role_of(pl.col("t"), pl.lit("fit")))
    assert roles.to_series().to_list() == [None, "select", "select", None]


@given(st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)))
def test_month_floor_and_midnight(time: datetime) -> None:
    frame = pl.DataFrame({"t": [time]}, schema={"t": pl.Datetime("us", "UTC")})
    assert frame.select(month_floor(pl.col("t"))).item() == midnight(time.date().replace(day=1))


def test_outcomes_beyond_the_watermark_are_refused() -> None:
    end = AS_OF + 30 * DAY
    check_complete(AS_OF, 30 * DAY, end, "split.test: as-of")
    check_complete(AS_OF, 30 * DAY, None, "split.test: as-of")
    with pytest.raises(UserError) as refused:
        check_complete(AS_OF, 30 * DAY, end - TICK, "split.test: as-of")
    assert str(refused.value) == (
        "split.test: as-of 2024-05-01: its outcome window ends 2024-05-31 00:00, after "
        "complete_until 2024-05-30 23:59 of the events"
    )
    check_complete(AS_OF, 0 * DAY, AS_OF, "backfill.as_of")
    with pytest.raises(UserError, match=r"backfill\.as_of 2024-05-01 lies after complete_until"):
        check_complete(AS_OF, 0 * DAY, AS_OF - TICK, "backfill.as_of")
