"""Histories of a set of users: a bounded baseline, and the set of events since.

A **baseline** is cut at a date D: the last events, daily rollups, the last texts and lifetime
counters of each user. **Recent** events are a set keyed by `event_id`, so their order and
repetition do no harm. `view` sees, as of T, the events with `event_time < T` and
`available_at <= T`; an event older than D counts only if it was available by D, whether a baseline
has been built or the raw events are at hand. So the view is the same for any split between the two.

All aggregates are integers (amounts in units of 1e-4), hence exact and free of order.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import polars as pl
from pydantic import Field

from models.data.doubles import may_be_double
from models.data.schema import EVENTS, empty
from models.data.strict import Strict
from models.data.tasks import month_floor
from models.data.visible import Visible, at_night, lifetime_sums

LONGEST_WINDOW = 365  # days
EVENT_COLUMNS = (
    "user_key", "event_id", "event_time", "available_at", "utc_offset_min", "event_type",
    "category", "counterparty_key", "amount", "text",
)  # fmt: skip


class HistoryConfig(Strict):
    """Bounds of what is kept of a user."""

    kept_events: int = Field(default=512, ge=1)
    kept_texts: int = Field(default=8, ge=1)


@dataclass(frozen=True)
class Baseline:
    """What is kept of each user's events before `date`.

    `events`: `EVENT_COLUMNS` with `amount` in 1e-4 (int64), the last ones of each user.
    `texts`: user_key, event_id, event_time, text.
    `daily`: user_key, day, event_type, category, n, n_night, amount_sum, amount_max.
    `lifetime`: user_key, event_type, n, first_time, last_time, amount_sum.
    """

    date: datetime
    events: pl.DataFrame
    texts: pl.DataFrame
    daily: pl.DataFrame
    lifetime: pl.DataFrame


@dataclass(frozen=True)
class History:
    """All that is known of a set of users.

    `recent`: canonical events (`EVENT_COLUMNS`), any order, repeats allowed. With no baseline,
    all the events there are. `profiles`: the `users` table. `social`: one row a user and
    `graph_date` (see `models.data.graph`).
    """

    recent: pl.DataFrame
    baseline: Baseline | None = None
    profiles: pl.DataFrame | None = None
    social: pl.DataFrame | None = None


@dataclass(frozen=True)
class View:
    """What a set of rows (a user as of a time) may see; every frame is keyed by `row`.

    `rows`: row (0 … n−1), user_key, as_of, baseline_date, graph_date, saturated, and whatever
    else the caller's rows carried. `events` and `texts`: the last ones in time order.
    `daily`: contributions to windows (age_days, event_type, category, n, n_night, amount_sum,
    amount_max). `lifetime`: one row an event type. `profile`, `social`: one row a row, nulls
    where nothing is known; None where there is no such source.
    """

    rows: pl.DataFrame
    events: pl.DataFrame
    texts: pl.DataFrame
    daily: pl.DataFrame
    lifetime: pl.DataFrame
    profile: pl.DataFrame | None = field(default=None)
    social: pl.DataFrame | None = field(default=None)


def build_baseline(events: pl.DataFrame, date: datetime, config: HistoryConfig) -> Baseline:
    """The baseline at `date` from canonical events, of which only those before it are used."""
    return _cut(known_by(distinct(events), date), date, config)


def extend_baseline(
    baseline: Baseline, events: pl.DataFrame, date: datetime, config: HistoryConfig
) -> Baseline:
    """Move a baseline forward to `date` with events of which it has counted none.

    Equal to `build_baseline` over all events.
    """
    assert date >= baseline.date
    added = build_baseline(events, date, config)
    oldest = date.date() - timedelta(days=LONGEST_WINDOW)
    return Baseline(
        date=date,
        events=_last(pl.concat([baseline.events, added.events]), ["user_key"], config.kept_events),
        texts=_last(pl.concat([baseline.texts, added.texts]), ["user_key"], config.kept_texts),
        daily=_sum_daily(pl.concat([baseline.daily, added.daily]).filter(pl.col("day") >= oldest)),
        lifetime=_sum_lifetime(pl.concat([baseline.lifetime, added.lifetime]), "user_key"),
    )


def view(history: History, rows: pl.DataFrame, config: HistoryConfig) -> View:
    """What each row may see.

    `rows`: row (0 … n−1 in order), user_key, as_of [us, UTC]. With a baseline its date is D, and
    no row may lie before it; without one, D is the start of the row's month.
    """
    base = history.baseline
    date = month_floor(pl.col("as_of")) if base is None else pl.lit(base.date, rows["as_of"].dtype)
    rows = rows.with_columns(
        baseline_date=date, graph_date=month_floor(pl.col("as_of")), saturated=False
    )
    events = distinct(history.recent).sort("user_key", "event_time", "event_id")
    seen = Visible.of(_named(events), rows, with_baseline=base is not None)
    last, texts = seen.events(config.kept_events), seen.texts(config.kept_texts)
    daily, lifetime = seen.daily(LONGEST_WINDOW), seen.lifetime()
    if base is not None:
        assert rows.filter(pl.col("as_of") < base.date).is_empty()
        own = rows.select("row", "user_key", "as_of")
        known = _named(own.join(base.events, on="user_key")).select(last.columns)
        last = _last(pl.concat([known, last]), ["row"], config.kept_events)
        known = own.join(base.texts, on="user_key").select(texts.columns)
        texts = _last(pl.concat([known, texts]), ["row"], config.kept_texts)
        past = _with_age(_named(own.join(base.daily, on="user_key"))).select(daily.columns)
        daily = pl.concat([past, daily]).sort("row", maintain_order=True)
        past = _named(own.join(base.lifetime, on="user_key")).select(lifetime.columns)
        lifetime = _sum_lifetime(pl.concat([past, lifetime]), "row")
    return View(
        rows=_mark_saturated(rows, last, lifetime, config.kept_events),
        events=last,
        texts=texts.drop("event_id"),
        daily=daily,
        lifetime=lifetime,
        profile=None if history.profiles is None else profile_as_of(history.profiles, rows),
        social=None if history.social is None else _social(history.social, rows),
    )


def _named(frame: pl.DataFrame) -> pl.DataFrame:
    """Names as numbers: gathered, grouped and joined as such."""
    names = [c for c in ("event_type", "category") if c in frame.columns]
    return frame.with_columns(pl.col(names).cast(pl.Categorical))


def distinct(events: pl.DataFrame) -> pl.DataFrame:
    """The set of events: one row a (user_key, event_id), amounts in 1e-4, order-free.

    Of two that differ under one id the earliest available counts, then the smallest content.
    """
    columns = [c for c in EVENT_COLUMNS if c not in ("user_key", "event_id", "available_at")]
    scaled = pl.col("amount").fill_null(0).to_physical().cast(pl.Int64)
    events = events.select(EVENT_COLUMNS).with_columns(amount=scaled)
    if may_be_double(events.select("user_key", "event_id")) is not None:
        order = ["user_key", "event_id", "available_at", *columns]
        events = events.sort(order).unique(["user_key", "event_id"], keep="first")
    return events


def no_events() -> pl.DataFrame:
    """An empty set of events."""
    return empty(EVENTS).select(EVENT_COLUMNS)


def known_by(events: pl.DataFrame, date: datetime) -> pl.DataFrame:
    """The events before a date that were available by it."""
    return events.filter(pl.col("event_time") < date, pl.col("available_at") <= date)


def _cut(known: pl.DataFrame, date: datetime, config: HistoryConfig) -> Baseline:
    texts = known.filter(pl.col("text").is_not_null())
    day = pl.col("event_time").dt.date()
    windowed = known.filter(day >= date.date() - timedelta(days=LONGEST_WINDOW))
    return Baseline(
        date=date,
        events=_last(known, ["user_key"], config.kept_events),
        texts=_last(
            texts.select("user_key", "event_id", "event_time", "text"),
            ["user_key"],
            config.kept_texts,
        ),
        daily=_sum_daily(_daily_of(windowed)),
        lifetime=_lifetime_of(known),
    )


def _last(frame: pl.DataFrame, by: list[str], count: int) -> pl.DataFrame:
    """The last rows in time of each group, in time order."""
    return (
        frame.sort([*by, "event_time", "event_id"])
        .group_by(by, maintain_order=True)
        .tail(count)
        .select(frame.columns)
    )


def local_weekday(event_time: pl.Expr, utc_offset_min: pl.Expr) -> pl.Expr:
    """Day of the week where the event happened, Monday 0 … Sunday 6."""
    minutes = event_time.dt.epoch("s") // 60 + utc_offset_min.cast(pl.Int64)
    return (minutes // 1440 + 3) % 7  # 1970-01-01 was a Thursday


def _daily_of(events: pl.DataFrame) -> pl.DataFrame:
    """Each event as a contribution to its UTC day; not summed, since sums follow anyway."""
    return events.select(
        "user_key",
        pl.col("event_time").dt.date().alias("day"),
        "event_type",
        "category",
        pl.lit(1, pl.Int64).alias("n"),
        at_night().cast(pl.Int64).alias("n_night"),
        pl.col("amount").alias("amount_sum"),
        pl.col("amount").alias("amount_max"),
    )


def _sum_daily(daily: pl.DataFrame) -> pl.DataFrame:
    keys = ["user_key", "day", "event_type", "category"]
    return (
        daily.group_by(keys)
        .agg(pl.col("n", "n_night", "amount_sum").sum(), pl.col("amount_max").max())
        .sort(keys)
    )


def _lifetime_of(events: pl.DataFrame) -> pl.DataFrame:
    sums = events.group_by("user_key", "event_type").agg(lifetime_sums())
    return sums.sort("user_key", "event_type")


def _sum_lifetime(lifetime: pl.DataFrame, key: str) -> pl.DataFrame:
    return (
        lifetime.group_by(key, "event_type")
        .agg(
            pl.col("n").sum(),
            pl.col("first_time").min(),
            pl.col("last_time").max(),
            pl.col("amount_sum").sum(),
        )
        .sort(key, "event_type")
    )


def _with_age(daily: pl.DataFrame) -> pl.DataFrame:
    """Contributions within the longest window, with their age in whole days."""
    age = (pl.col("as_of").dt.date() - pl.col("day")).dt.total_days()
    return daily.with_columns(age_days=age).filter(pl.col("age_days") <= LONGEST_WINDOW)


def _mark_saturated(
    rows: pl.DataFrame, last: pl.DataFrame, lifetime: pl.DataFrame, kept: int
) -> pl.DataFrame:
    """Saturated: events were dropped, and a 7-day window may have counted some of them."""
    oldest = last.group_by("row").agg(pl.len(), pl.col("event_time").min())
    total = lifetime.group_by("row").agg(total=pl.col("n").sum())
    full = (
        rows.select("row", "as_of")
        .join(oldest.join(total, on="row"), on="row", how="inner")
        .filter(
            pl.col("len") >= kept,
            pl.col("total") > pl.col("len"),
            pl.col("event_time") >= pl.col("as_of") - timedelta(days=7),
        )["row"]
    )
    return rows.with_columns(saturated=pl.col("row").is_in(full.implode()))


def profile_as_of(profiles: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The profile valid and available as of each row (row, user_key, as_of).

    Of each source the latest `valid_from` counts; where several tell a column, the latest of them.
    """
    apart = ("user_key", "as_of", "valid_from", "available_at", "source", "period", "bucket")
    columns = [c for c in profiles.columns if c not in apart]
    source = [c for c in ("source",) if c in profiles.columns]  # a request's is a source by itself
    known = (
        rows.select("row", "user_key", "as_of")
        .join(profiles, on="user_key")
        .filter(pl.col("valid_from") <= pl.col("as_of"), pl.col("available_at") <= pl.col("as_of"))
        .sort("row", "valid_from", "available_at", *source)
        .unique(["row", *source], keep="last", maintain_order=True)
        .group_by("row")
        .agg(pl.col(columns).drop_nulls().last())
    )
    return rows.select("row").join(known, on="row", how="left", maintain_order="left")


def _social(social: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The user's row of the graph snapshot of the last month end at or before as-of."""
    columns = [c for c in social.columns if c not in ("user_key", "graph_date", "bucket")]
    return (
        rows.select("row", "user_key", "graph_date")
        .join(social, on=["user_key", "graph_date"], how="left", maintain_order="left")
        .select("row", *columns)
    )
