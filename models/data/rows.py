"""Which rows there are: users as of times, their roles and their labels."""

import math
from collections.abc import Mapping
from datetime import datetime, timedelta

import polars as pl

from models.data.mapping import beyond_the_row
from models.data.schema import UserError
from models.data.tasks import Split, Task, check_complete, outcomes

ROW_TYPE = pl.UInt32
TIME = pl.Datetime("us", "UTC")
ROW_COLUMNS = ("user_key", "as_of", "role", "proposed_amount", "proposed_category")


def training_rows(events: pl.DataFrame, labels: pl.DataFrame | None, split: Split) -> pl.DataFrame:
    """(row, user_key, as_of, role, proposed_amount, proposed_category), by user and time.

    By schedule: everyone with an event before a month start, labelled or not. By labels, and where
    roles are given: each labelled user and time. Either way with the transaction that a label is
    about, if any.
    """
    proposed = _proposals(labels)
    if split.schedule == "month":
        starts = pl.DataFrame(
            split.month_starts(), schema={"role": pl.String, "as_of": TIME}, orient="row"
        )
        first = events.group_by("user_key").agg(first=pl.col("event_time").min())
        rows = first.join(starts, how="cross").filter(pl.col("first") < pl.col("as_of"))
        rows = rows.join(proposed, on=["user_key", "as_of"], how="left")
    else:
        rows = proposed.with_columns(role=split.role_of(pl.col("as_of"), pl.col("period")))
        rows = rows.filter(pl.col("role").is_not_null())
    return number(rows.select(ROW_COLUMNS).sort("user_key", "as_of"))


def _proposals(labels: pl.DataFrame | None) -> pl.DataFrame:
    """(user_key, as_of, proposed_amount, proposed_category, period): once a labelled time."""
    if labels is None:
        schema = pl.Schema(
            {
                "user_key": pl.Int64(),
                "as_of": TIME,
                "proposed_amount": pl.Float64(),
                "proposed_category": pl.String(),
                "period": pl.String(),
            }
        )
        return pl.DataFrame(schema=schema)
    return labels.group_by("user_key", "as_of").agg(
        pl.col("proposed_amount").max().cast(pl.Float64),
        pl.col("proposed_category", "period").max(),
    )


def number(rows: pl.DataFrame) -> pl.DataFrame:
    """The same rows with `row` 0 … n−1 in front."""
    return rows.with_row_index("row").with_columns(pl.col("row").cast(ROW_TYPE))


def rows_as_of(users: pl.Series, as_of: datetime) -> pl.DataFrame:
    """(row, user_key, as_of): users as of one time, in order of their keys."""
    keys = users.unique().sort().alias("user_key").to_frame()
    return number(keys.with_columns(as_of=pl.lit(as_of).cast(TIME)))


def label_columns(
    rows: pl.DataFrame,
    events: pl.DataFrame,
    labels: pl.DataFrame | None,
    tasks: Mapping[str, Task],
) -> pl.DataFrame:
    """(row, `y_<task>` float64 …): the outcome of each row, null where it is not known.

    Raises UserError for an outcome of a binary task that is neither 0 nor 1.
    """
    result = outcomes(rows, events, tasks)
    for name, task in tasks.items():
        if task.expression is None:
            own = _labels_of(name, labels).rename({"value": f"y_{name}"})
            joined = rows.select("row", "user_key", "as_of").join(
                own, on=["user_key", "as_of"], how="left", maintain_order="left"
            )
            result = result.with_columns(joined[f"y_{name}"])
        if task.kind == "binary":
            _check_zero_or_one(name, task, result[f"y_{name}"])
    return result.select("row", *(f"y_{name}" for name in tasks))


def _check_zero_or_one(name: str, task: Task, values: pl.Series) -> None:
    odd = values.filter(~values.is_in([0.0, 1.0]))
    if odd.len():
        where, hint = f"tasks.{name}", "0 or 1"
        if task.expression is not None:
            where, hint = f"{where}.expression {task.expression!r}", "a condition, such as … > 0"
        raise UserError(f"{where}: {odd[0]:g} is no outcome of a binary task; expected {hint}")


def check_matured(
    rows: pl.DataFrame, labels: pl.DataFrame | None, split: Split, tasks: Mapping[str, Task]
) -> None:
    """Refuse labels of these rows that matured after their task's window: roles that stand in time
    order lie this far apart. Raises UserError."""
    if labels is None or split.schedule == "given":
        return
    used = labels.join(rows, on=["user_key", "as_of"], how="semi")
    for name, task in tasks.items():
        took = pl.col("matured_at") - pl.col("as_of")
        late = used.filter(pl.col("task") == name, took > task.window)
        if task.expression is None and late.height:
            as_of, matured = late.sort(took).select("as_of", "matured_at").row(-1)
            days = math.ceil((matured - as_of) / timedelta(days=1))
            raise UserError(
                f"tasks.{name}: a label as of {as_of:%Y-%m-%d} matured on {matured:%Y-%m-%d}, when "
                f"a later role may have begun; expected tasks.{name}.window of at least {days} days"
            )


def _labels_of(task: str, labels: pl.DataFrame | None) -> pl.DataFrame:
    if labels is None:
        raise UserError(f"tasks.{task}: has no expression, and no source maps to the labels table")
    return labels.filter(pl.col("task") == task).select("user_key", "as_of", "value")


def only_eligible(frame: pl.DataFrame, tasks: Mapping[str, Task]) -> pl.DataFrame:
    """The frame with the labels of rows that a task is not about set to null.

    `eligible` is an SQL condition over the frame's feature columns, row by row: frames are parts of
    a bucket, and labels do not hang on which. Raises UserError.
    """
    for name, task in tasks.items():
        if task.eligible is None:
            continue
        where = f"tasks.{name}.eligible {task.eligible!r}"
        try:
            condition = pl.sql_expr(task.eligible)
            if beyond_the_row(condition, frame.schema):
                raise UserError(f"{where} looks at more than its own row")
            eligible = condition.cast(pl.Boolean).fill_null(False)
            label = pl.when(eligible).then(pl.col(f"y_{name}"))
            frame = frame.with_columns(label.alias(f"y_{name}"))
        except pl.exceptions.PolarsError as error:
            line = str(error).splitlines()[0]
            raise UserError(f"{where}: {line}") from error
    return frame


def check_dates(
    split: Split,
    tasks: Mapping[str, Task],
    complete_until: datetime | None,
    rows: pl.DataFrame | None = None,
) -> None:
    """Refuse roles that overlap, and as-of times whose outcomes cannot be complete yet.

    Of labels, which have their own times, the last one of each role stands for all; `rows`
    (role, as_of): some of those there are, once these are known.
    """
    split.check(tasks, rows)
    window = max(
        (task.window for task in tasks.values() if task.expression is not None),
        default=timedelta(0),
    )
    if split.schedule == "month":
        times = split.month_starts()
    else:
        times = list(split.last_times(rows).items())
    for role, as_of in times:
        check_complete(as_of, window, complete_until, f"split.{role}: as-of")
