"""Which rows there are: users as of times, their roles and their labels."""

from collections.abc import Mapping
from datetime import datetime, timedelta

import polars as pl

from models.data.schema import UserError
from models.data.tasks import Split, Task, check_complete, outcomes

ROW_TYPE = pl.UInt32
TIME = pl.Datetime("us", "UTC")


def training_rows(events: pl.DataFrame, labels: pl.DataFrame | None, split: Split) -> pl.DataFrame:
    """(row, user_key, as_of, role, proposed_amount, proposed_category), by user and time.

    By schedule: everyone with an event before a month start. By labels: each labelled user and
    time, with the transaction that the label is about, if any.
    """
    if split.schedule == "month":
        starts = pl.DataFrame(
            split.month_starts(), schema={"role": pl.String, "as_of": TIME}, orient="row"
        )
        first = events.group_by("user_key").agg(first=pl.col("event_time").min())
        rows = first.join(starts, how="cross").filter(pl.col("first") < pl.col("as_of"))
        rows = rows.select(
            "user_key",
            "as_of",
            "role",
            proposed_amount=pl.lit(None, pl.Float64),
            proposed_category=pl.lit(None, pl.String),
        )
    else:
        assert labels is not None
        rows = (
            labels.group_by("user_key", "as_of")
            .agg(pl.col("proposed_amount").max(), pl.col("proposed_category").max())
            .with_columns(
                pl.col("proposed_amount").cast(pl.Float64), role=split.role_of(pl.col("as_of"))
            )
            .filter(pl.col("role").is_not_null())
            .select("user_key", "as_of", "role", "proposed_amount", "proposed_category")
        )
    return number(rows.sort("user_key", "as_of"))


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
    """(row, `y_<task>` float64 …): the outcome of each row, null where it is not known."""
    result = outcomes(rows, events, tasks)
    for name, task in tasks.items():
        if task.expression is None:
            own = _labels_of(name, labels).rename({"value": f"y_{name}"})
            joined = rows.select("row", "user_key", "as_of").join(
                own, on=["user_key", "as_of"], how="left", maintain_order="left"
            )
            result = result.with_columns(joined[f"y_{name}"])
    return result.select("row", *(f"y_{name}" for name in tasks))


def _labels_of(task: str, labels: pl.DataFrame | None) -> pl.DataFrame:
    if labels is None:
        raise UserError(f"tasks.{task}: has no expression, and no source maps to the labels table")
    return labels.filter(pl.col("task") == task).select("user_key", "as_of", "value")


def only_eligible(frame: pl.DataFrame, tasks: Mapping[str, Task]) -> pl.DataFrame:
    """The frame with the labels of rows that a task is not about set to null.

    `eligible` is an SQL condition over the frame's feature columns. Raises UserError.
    """
    for name, task in tasks.items():
        if task.eligible is None:
            continue
        try:
            condition = pl.sql_expr(task.eligible).cast(pl.Boolean).fill_null(False)
            label = pl.when(condition).then(pl.col(f"y_{name}"))
            frame = frame.with_columns(label.alias(f"y_{name}"))
        except pl.exceptions.PolarsError as error:
            line = str(error).splitlines()[0]
            raise UserError(f"tasks.{name}.eligible {task.eligible!r}: {line}") from error
    return frame


def check_dates(split: Split, tasks: Mapping[str, Task], complete_until: datetime | None) -> None:
    """Refuse roles that overlap, and as-of times whose outcomes cannot be complete yet."""
    split.check(tasks)
    window = max(
        (task.window for task in tasks.values() if task.expression is not None),
        default=timedelta(0),
    )
    for role, as_of in split.month_starts():
        check_complete(as_of, window, complete_until, f"split.{role}: as-of")
