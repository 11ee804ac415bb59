"""What is estimated: tasks, as-of times, roles of the data in time order, and labels.

A row of the modelling data is a user as of a time. Its label is a matured row of `labels`, or an
SQL aggregate over the user's events in the outcome window `[as_of, as_of + window)`.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any, Literal

import polars as pl
from pydantic import Field, model_validator

from models.data.schema import UserError
from models.data.strict import Strict

Kind = Literal["binary", "amount"]
Role = Literal["fit", "select", "calibrate", "test"]
ROLES: tuple[Role, ...] = ("fit", "select", "calibrate", "test")


class Task(Strict):
    """One outcome. `expression` is None for a task whose labels are rows of `labels`.

    `eligible` is an SQL condition over the feature columns: whom the task is about.
    """

    kind: Kind
    expression: str | None = None
    window: timedelta = timedelta(days=30)
    eligible: str | None = None
    weight: float = Field(default=1.0, gt=0)  # in the sum of the losses


class Roles(Strict):
    """Which task feeds which part of the answer."""

    pd: str
    fraud: str | None = None
    spend: str | None = None


class Period(Strict):
    """As-of dates from `first` to `last`, both included."""

    first: date
    last: date

    @model_validator(mode="after")
    def _ordered(self) -> "Period":
        if self.last < self.first:
            raise ValueError(f"last {self.last} is before first {self.first}")
        return self


class Split(Strict):
    """Which as-of dates belong to which role; monthly dates where `schedule` is set.

    `schedule: month` takes every month start inside the periods, for everyone with an event
    before it; `schedule: labels` takes the rows of `labels`, with their own times; `schedule:
    given`, for data without time, takes the rows of `labels` at the one date `as_of`, each in the
    role that the period of its file names.
    """

    schedule: Literal["month", "labels", "given"] = "month"
    fit: Period
    select: Period
    calibrate: Period
    test: Period

    @model_validator(mode="before")
    @classmethod
    def _one_date(cls, values: Any) -> Any:
        """`as_of`, which stands for the periods of all roles."""
        if not isinstance(values, dict) or values.get("schedule") != "given":
            return values
        others = {name: value for name, value in values.items() if name != "as_of"}
        if len(others) == len(values):
            return values
        period = {"first": values["as_of"], "last": values["as_of"]}
        return {**dict.fromkeys(ROLES, period), **others}

    def period(self, role: Role) -> Period:
        period: Period = getattr(self, role)
        return period

    def check(self, tasks: Mapping[str, Task], rows: pl.DataFrame | None = None) -> None:
        """Roles in time order, an outcome window apart, unless they are given. Raises UserError.

        `rows` (role, as_of): of labels, which have their own times; see `last_times`.
        """
        if self.schedule == "given":
            return
        window, last = max(task.window for task in tasks.values()), self.last_times(rows)
        for before, after in pairwise(ROLES):
            end, start = last[before], self.period(after).first
            if midnight(start) - end < window:
                raise UserError(
                    f"split.{after}.first {start}: must lie at least one outcome window "
                    f"({window.days} days) after split.{before}.last {end:%Y-%m-%d %H:%M}"
                )

    def last_times(self, rows: pl.DataFrame | None = None) -> dict[Role, datetime]:
        """The last as-of time of each role: that of its rows (role, as_of), which may lie at any
        hour of its last day; where it has none, the last midnight."""
        last = {role: midnight(self.period(role).last) for role in ROLES}
        if rows is not None:
            last |= dict(rows.group_by("role").agg(pl.col("as_of").max()).iter_rows())
        return last

    def month_starts(self) -> list[tuple[Role, datetime]]:
        """Every month start inside the periods, with its role, in time order."""
        return [(role, t) for role in ROLES for t in month_starts(self.period(role))]

    def last_fit(self) -> datetime:
        """The last as-of time of the fit role; of labels' own times, the start of its last day."""
        months = month_starts(self.fit) if self.schedule == "month" else []
        return max(months, default=midnight(self.fit.last))

    def role_of(self, as_of: pl.Expr, period: pl.Expr) -> pl.Expr:
        """The role of an as-of time, or of the period of a label's file; null where none."""
        if self.schedule == "given":
            first = midnight(self.fit.first)
            inside = (as_of >= first) & (as_of < first + timedelta(days=1))
            return pl.when(inside & period.is_in(ROLES)).then(period)
        result = pl.lit(None, dtype=pl.String)
        for role in ROLES:
            p = self.period(role)
            inside = (as_of >= midnight(p.first)) & (as_of < midnight(p.last + timedelta(days=1)))
            result = pl.when(inside).then(pl.lit(role)).otherwise(result)
        return result


def midnight(day: date) -> datetime:
    """The start of a day in UTC."""
    return datetime.combine(day, time(), tzinfo=UTC)


def month_starts(period: Period) -> list[datetime]:
    """The starts of months from `period.first` to `period.last`, in UTC."""
    months = range(period.first.year * 12 + period.first.month - 1, 12 * period.last.year + 12)
    starts = (date(m // 12, m % 12 + 1, 1) for m in months)
    return [midnight(day) for day in starts if period.first <= day <= period.last]


def month_floor(as_of: pl.Expr) -> pl.Expr:
    """The start of the month (UTC) that an as-of time lies in: baseline and graph date alike."""
    return as_of.dt.truncate("1mo")


def check_complete(
    as_of: datetime, window: timedelta, complete_until: datetime | None, what: str
) -> None:
    """Refuse an as-of time, or an outcome window, beyond the events' watermark."""
    if complete_until is not None and as_of + window > complete_until:
        raise UserError(
            f"{what} {as_of:%Y-%m-%d}: its outcome window ends {as_of + window:%Y-%m-%d %H:%M}, "
            f"after complete_until {complete_until:%Y-%m-%d %H:%M} of the events"
            if window
            else f"{what} {as_of:%Y-%m-%d} lies after complete_until "
            f"{complete_until:%Y-%m-%d %H:%M} of the events"
        )


def check_binary(key: str, names: Iterable[str], tasks: Mapping[str, Task]) -> None:
    """Raise UserError where a key of the configuration names what is no binary task."""
    binary = [name for name, task in tasks.items() if task.kind == "binary"]
    for name in names:
        if name not in binary:
            raise UserError(f"{key}: no binary task {name!r}; there is {', '.join(binary)}")


def label_expression(name: str, task: Task, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """The task's SQL aggregate as an expression. Raises UserError when it is not an aggregate."""
    assert task.expression is not None
    try:
        expression = pl.sql_expr(task.expression)
        probe = pl.DataFrame(schema=schema).select(expression.alias("value"))
    except pl.exceptions.PolarsError as error:
        line = str(error).splitlines()[0]
        raise UserError(f"tasks.{name}.expression {task.expression!r}: {line}") from error
    kind = probe.schema["value"]
    if probe.height != 1 or not (kind.is_numeric() or kind == pl.Boolean):
        raise UserError(
            f"tasks.{name}.expression {task.expression!r}: must be an aggregate of the events "
            "in the outcome window, such as COUNT(*) or SUM(amount)"
        )
    return expression.cast(pl.Float64).fill_nan(0.0).fill_null(0.0)


def outcomes(rows: pl.DataFrame, events: pl.DataFrame, tasks: Mapping[str, Task]) -> pl.DataFrame:
    """Labels by expression of each row: (`row`, one float64 column `y_<task>` a task).

    Columns used: `rows` (row, user_key, as_of), `events` of the canonical table. A row without
    an event in its outcome window gets the expression's value over nothing: 0 of counts and
    sums, 1 of `COUNT(*) = 0`.
    """
    result = rows.select("row")
    for name, task in tasks.items():
        if task.expression is None:
            continue
        expression = label_expression(name, task, events.schema)
        inside = (
            rows.lazy()
            .select("row", "user_key", "as_of")
            .join(events.lazy(), on="user_key")
            .filter(
                pl.col("event_time") >= pl.col("as_of"),
                pl.col("event_time") < pl.col("as_of") + task.window,
            )
            .group_by("row")
            .agg(expression.alias(f"y_{name}"))
            .collect()
        )
        result = result.join(inside, on="row", how="left", maintain_order="left")
        nothing = events.clear().select(expression.alias("value"))["value"].item()
        result = result.with_columns(pl.col(f"y_{name}").fill_null(nothing))
    return result
