from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import polars as pl
import pytest

from models.data.features import FeatureConfig, features
from models.data.history import History, view
from models.data.rows import (
    check_dates,
    check_matured,
    label_columns,
    number,
    only_eligible,
    rows_as_of,
    training_rows,
)
from models.data.schema import LABELS, UserError, empty
from models.data.tasks import Split, Task
from models.data.vocabulary import Vocabulary

Make = Callable[..., pl.DataFrame]

DAY, TICK = timedelta(days=1), timedelta(microseconds=1)
BINARY = Task(kind="binary")
COUNT = Task(kind="amount", expression="COUNT(*)")


def on(month: int, day: int = 1, **more: int) -> datetime:
    return datetime(2024, month, day, **more, tzinfo=UTC)


def split_by(schedule: str, last: str = "2024-07-31") -> Split:
    """fit: January and February; select: April; calibrate: June; test: July."""
    return Split.model_validate(
        {
            "schedule": schedule,
            "fit": {"first": "2024-01-01", "last": "2024-02-01"},
            "select": {"first": "2024-04-01", "last": "2024-04-01"},
            "calibrate": {"first": "2024-06-01", "last": "2024-06-01"},
            "test": {"first": "2024-07-01", "last": last},
        }
    )


def test_by_schedule_everyone_with_an_event_before_a_month_start(make_events: Make) -> None:
    log = [(2, on(1) - TICK), (2, on(3)), (1, on(4)), (1, on(5)), (3, on(7) - TICK), (4, on(7))]
    events = make_events({"user_key": user, "event_time": t} for user, t in log)
    rows = training_rows(events, None, split_by("month"))
    expected = [
        (1, on(6), "calibrate"),
        (1, on(7), "test"),
        *((2, on(m), "fit") for m in (1, 2)),
        (2, on(4), "select"),
        (2, on(6), "calibrate"),
        (2, on(7), "test"),
        (3, on(7), "test"),
    ]
    assert rows.select("user_key", "as_of", "role").rows() == expected
    assert rows["row"].to_list() == list(range(len(expected)))
    assert rows.select("proposed_amount", "proposed_category").null_count().row(0) == (8, 8)


def test_by_labels_each_labelled_user_and_time(make_labels: Make, make_events: Make) -> None:
    """Once for two tasks; with its own time; not outside the roles."""
    proposed = {"proposed_amount": Decimal("12.5"), "proposed_category": "x"}
    labels = make_labels(
        [
            {"as_of": on(7, 3, hour=9), "value": 1.0, **proposed},
            {"as_of": on(7, 3, hour=9), "value": 0.0, "task": "fraud"},
            {"as_of": on(1), "value": 0.0, "user_key": 2},
            {"as_of": on(3), "value": 1.0, "user_key": 2},
            {"as_of": on(8), "value": 1.0, "user_key": 3},
        ]
    )
    expected = [
        (0, 1, on(7, 3, hour=9), "test", 12.5, "x"),
        (1, 2, on(1), "fit", None, None),
    ]
    events = make_events([])
    for order in (labels, labels.reverse()):
        assert training_rows(events, order, split_by("labels")).rows() == expected


def test_given_roles_are_the_periods_of_the_labels(make_labels: Make, make_events: Make) -> None:
    """At the one date only; a file of another name has no role."""
    split = Split.model_validate({"schedule": "given", "as_of": "2024-04-01"})
    given = [(1, "test"), (2, "fit"), (3, "select"), (4, "calibrate"), (5, "more"), (6, "")]
    at_once = [{"user_key": user, "period": role, "as_of": on(4)} for user, role in given]
    later = {"user_key": 7, "period": "fit", "as_of": on(4, 2)}
    rows = training_rows(make_events([]), make_labels([*at_once, later]), split)
    assert rows.select("user_key", "role").rows() == given[:4]
    check_dates(split, {"default": BINARY}, None)  # no window lies between roles that are given
    assert Split.model_validate(split.model_dump(mode="json")) == split


@pytest.mark.parametrize("schedule", ["month", "labels", "given"])
def test_no_rows_have_the_columns_of_rows(make_events: Make, schedule: str) -> None:
    rows = training_rows(make_events([]), empty(LABELS), split_by(schedule))
    assert rows.is_empty()
    assert rows.schema == {
        "row": pl.UInt32,
        "user_key": pl.Int64,
        "as_of": pl.Datetime("us", "UTC"),
        "role": pl.String,
        "proposed_amount": pl.Float64,
        "proposed_category": pl.String,
    }


def test_users_as_of_one_time_in_order_of_their_keys() -> None:
    rows = rows_as_of(pl.Series([5, -3, 5, 7]), on(5))
    assert rows.rows() == [(0, -3, on(5)), (1, 5, on(5)), (2, 7, on(5))]
    assert rows_as_of(pl.Series([], dtype=pl.Int64), on(5)).schema == rows.schema
    assert number(rows.drop("row")).equals(rows)


def test_labels_of_both_kinds_lie_beside_their_rows(
    make_events: Make, make_labels: Make, make_rows: Make
) -> None:
    labels = make_labels(
        [
            {"as_of": on(5), "value": 1.0},
            {"as_of": on(5), "value": 0.0, "user_key": 2},
            {"as_of": on(6), "value": 0.0},
            {"as_of": on(5), "value": 7.0, "task": "other"},
            {"as_of": on(5), "value": 1.0, "user_key": 99},  # nobody's row
        ]
    )
    events = make_events([{"event_time": on(5)}, {"event_time": on(5, 2)}])
    rows = make_rows([(2, on(5)), (1, on(6)), (1, on(5)), (3, on(5))])
    tasks = {"default": BINARY, "n": COUNT, "fraud": BINARY}
    found = label_columns(rows, events, labels, tasks)
    assert found.columns == ["row", "y_default", "y_n", "y_fraud"]
    assert found["y_default"].to_list() == [0.0, 0.0, 1.0, None]
    assert found["y_n"].to_list() == [0.0, 0.0, 2.0, 0.0]
    assert found["y_fraud"].to_list() == [None] * 4
    assert label_columns(rows[:0], events, labels, tasks).schema == found.schema


def test_a_task_without_expression_needs_labels(make_events: Make, make_rows: Make) -> None:
    with pytest.raises(UserError, match=r"tasks\.fraud: has no expression"):
        label_columns(make_rows([(1, on(5))]), make_events([]), None, {"fraud": BINARY})


def test_a_binary_task_has_the_outcomes_0_and_1(
    make_events: Make, make_labels: Make, make_rows: Make
) -> None:
    rows, events = make_rows([(1, on(5)), (2, on(5))]), make_events([{"event_time": on(5)}] * 2)
    buys = "COUNT(*) FILTER (WHERE event_type = 'buy')"
    some = Task(kind="binary", expression=f"{buys} > 0")
    assert label_columns(rows, events, None, {"buys": some})["y_buys"].to_list() == [1.0, 0.0]
    with pytest.raises(UserError) as refused:
        label_columns(rows, events, None, {"buys": Task(kind="binary", expression=buys)})
    assert str(refused.value) == (
        f"tasks.buys.expression {buys!r}: 2 is no outcome of a binary task; expected a condition, "
        "such as … > 0"
    )
    labels = make_labels([{"as_of": on(5), "value": -1.0}])
    with pytest.raises(
        UserError, match=r"^tasks\.default: -1 is no .* binary task; expected 0 or 1$"
    ):
        label_columns(rows, events, labels, {"default": BINARY})
    amount = Task(kind="amount")
    assert label_columns(rows, events, labels, {"default": amount})["y_default"][0] == -1.0


@pytest.mark.parametrize("schedule", ["month", "labels"])
def test_labels_that_matured_after_the_window_are_refused(
    make_events: Make, make_labels: Make, schedule: str
) -> None:
    """A later role may have begun by then; of labels without a role or task no matter."""
    split, tasks = split_by(schedule), {"default": BINARY, "n": COUNT}
    events = make_events([{"event_time": on(1) - TICK}])

    def check(**label: object) -> None:
        labels = make_labels([{"as_of": on(2), "value": 1.0, **label}])
        check_matured(training_rows(events, labels, split), labels, split, tasks)

    late = on(2) + 180 * DAY
    check(matured_at=on(2) + 30 * DAY)
    check(matured_at=late, as_of=on(3))
    check(matured_at=late, task="n")
    check(matured_at=late, task="other")
    with pytest.raises(UserError) as refused:
        check(matured_at=late - TICK)
    assert str(refused.value) == (
        "tasks.default: a label as of 2024-02-01 matured on 2024-07-29, when a later role may have "
        "begun; expected tasks.default.window of at least 180 days"
    )
    check_matured(training_rows(events, None, split), None, split, tasks)


def test_labels_of_given_roles_may_mature_at_any_time(make_events: Make, make_labels: Make) -> None:
    split = Split.model_validate({"schedule": "given", "as_of": "2024-02-01"})
    label = {"as_of": on(2), "value": 1.0, "matured_at": on(12), "period": "fit"}
    labels = make_labels([label])
    rows = training_rows(make_events([]), labels, split)
    assert rows.height == 1
    check_matured(rows, labels, split, {"default": BINARY})


def test_eligible_is_a_condition_over_the_features(make_events: Make, make_rows: Make) -> None:
    log = [(1, 2), (1, 40), (2, 50), (3, 3)]
    events = make_events({"user_key": u, "event_time": on(5) - n * DAY} for u, n in log)
    rows, config = make_rows([(user, on(5)) for user in (1, 2, 3, 4)]), FeatureConfig()
    seen = view(History(events), rows, config.history)
    frame = features(seen, Vocabulary(event_types=("buy",)), config).frame
    labelled = frame.with_columns(y_a=pl.lit(1.0), y_b=pl.lit(0.0))
    tasks = {
        "a": Task(kind="binary", eligible="n_buy_30d > 0 AND n_lifetime > 1"),
        "b": Task(kind="binary", eligible="recency_d >= 3"),
    }
    found = only_eligible(labelled, tasks)
    assert found["y_a"].to_list() == [1.0, None, None, None]
    assert found["y_b"].to_list() == [None, 0.0, 0.0, None]  # unknown is not eligible
    assert found.drop("y_a", "y_b").equals(frame)
    assert only_eligible(labelled, {"a": BINARY}).equals(labelled)
    assert only_eligible(labelled[:0], tasks).height == 0


@pytest.mark.parametrize("condition", ["income > 5", "n >", "name", "n > 'many'", ""])
def test_a_condition_that_is_none_is_refused_in_one_line(condition: str) -> None:
    frame = pl.DataFrame({"n": [1.0], "name": ["x"], "y_t": [1.0]})
    with pytest.raises(UserError) as refused:
        only_eligible(frame, {"t": Task(kind="binary", eligible=condition)})
    assert str(refused.value).startswith(f"tasks.t.eligible {condition!r}: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "condition",
    ["n > AVG(n)", "n > SUM(n) OVER ()", "RANK() OVER (ORDER BY n) > 1", "n > COVAR_POP(n, n)",
     "COUNT(*) > 2", "n > QUANTILE_CONT(n, 0.5)"],
)  # fmt: skip
def test_whom_a_task_is_about_does_not_hang_on_other_rows(condition: str) -> None:
    frame = pl.DataFrame({"n": [1.0, 2.0], "y_t": [1.0, 1.0]})
    with pytest.raises(UserError) as refused:
        only_eligible(frame, {"t": Task(kind="binary", eligible=condition)})
    line = f"tasks.t.eligible {condition!r} looks at more than its own row"
    assert str(refused.value) == line


def test_dates_within_the_watermark_pass() -> None:
    for schedule in ("month", "labels"):
        check_dates(split_by(schedule, "2024-07-01"), {"n": COUNT}, on(7, 31))
        check_dates(split_by(schedule), {"n": COUNT}, None)
        check_dates(split_by(schedule), {"default": BINARY}, on(8))  # its labels have matured


@pytest.mark.parametrize(
    ("schedule", "last", "complete_until", "what"),
    [
        ("month", "2024-07-01", on(7, 31) - TICK, "as-of 2024-07-01: its outcome window"),
        ("labels", "2024-07-01", on(7, 31) - TICK, "as-of 2024-07-01: its outcome window"),
        ("labels", "2024-07-15", on(8, 1), "as-of 2024-07-15: its outcome window"),
        ("month", "2024-08-01", on(8, 1), "as-of 2024-08-01: its outcome window"),
    ],
)
def test_dates_beyond_the_watermark_are_refused(
    schedule: str, last: str, complete_until: datetime, what: str
) -> None:
    with pytest.raises(UserError, match=f"split.test: {what}"):
        check_dates(split_by(schedule, last), {"n": COUNT}, complete_until)


def test_of_labels_the_last_hour_of_a_day_counts(make_events: Make, make_labels: Make) -> None:
    """A role's last day lasts until midnight, so the day is not enough to tell."""
    split, tasks = split_by("labels", "2024-07-15"), {"n": COUNT}
    until = on(8, 15)

    def check(*times: datetime) -> None:
        labels = make_labels({"as_of": time, "value": 1.0} for time in times)
        check_dates(split, tasks, until, training_rows(make_events([]), labels, split))

    check_dates(split, tasks, until)
    check()
    check(on(2), on(2, hour=23), on(6), on(7), on(7, 15, hour=23))
    with pytest.raises(UserError, match=r"30 days\) after split\.calibrate\.last 2024-06-01 09:00"):
        check(on(6), on(6, 1, hour=9), on(7))
    until = on(8, 14)
    with pytest.raises(UserError, match="2024-07-15: its outcome window ends 2024-08-14 09:00"):
        check(on(7, 15), on(7, 15, hour=9))


def test_an_as_of_beyond_the_watermark_is_refused_for_label_rows_too() -> None:
    with pytest.raises(UserError, match="2024-07-01 lies after complete_until 2024-06-30"):
        check_dates(split_by("month"), {"default": BINARY}, on(6, 30))


def test_roles_that_overlap_are_refused() -> None:
    quarter = Task(kind="binary", window=timedelta(days=90))
    with pytest.raises(UserError, match=r"split\.select\.first 2024-04-01: must lie at least"):
        check_dates(split_by("month"), {"default": quarter}, None)
