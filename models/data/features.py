"""Histories (and a proposed transaction) → feature columns. The one implementation.

Sums are exact: counts and amounts are integers that float64 holds without rounding (in a window
up to 9·10¹¹ of the currency), so the same history gives the same bits for one user or a million,
in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from models.data.graph import MAX_TIES, MEASURES, social_columns
from models.data.history import (
    History,
    HistoryConfig,
    View,
    local_weekday,
    no_events,
    view,
)
from models.data.rows import ROW_COLUMNS, ROW_TYPE, TIME
from models.data.schema import UserError, users_table
from models.data.source import MAPPABLE
from models.data.strict import Strict
from models.data.visible import local_hour
from models.data.vocabulary import UNKNOWN, Vocabulary

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SHORT_WINDOWS = (("1h", 3600), ("1d", 86_400), ("7d", 604_800))  # seconds; exact
LONG_WINDOWS = (("30d", 30), ("90d", 90), ("365d", 365))  # days; aligned to days
AMOUNT_UNIT = 1e-4
TIES = ("ties_known", "ties_bad")  # over all relations
PROPOSED = ("proposed_amount", "proposed_category")
WHOLE = (  # of the whole history, and of the proposed transaction set against it
    "trend_n", "trend_sum", "tenure_d", "n_lifetime", "amount_median", "counterparties_30d",
    "proposed_amount", "proposed_to_median", "proposed_to_max_365d", "proposed_familiar",
)  # fmt: skip


BASE = ("user_key", "as_of", "baseline_date", "graph_date", "saturated")


class FeatureConfig(Strict):
    """What the network sees of a user."""

    history: HistoryConfig = HistoryConfig()
    max_events: int = Field(default=64, ge=1)
    max_texts: int = Field(default=3, ge=1)
    max_tokens: int = Field(default=32, ge=4, le=512)
    max_categories: int = Field(default=64, ge=1)
    max_event_types: int = Field(default=16, ge=1)
    neighbour_outcomes: bool = True
    max_ties_of_a_node: int = Field(default=MAX_TIES, ge=2)  # of more, outcomes are estimated


@dataclass(frozen=True)
class Features:
    """Feature columns of a set of rows, and which column is what.

    `frame`: row, user_key, as_of, baseline_date, graph_date, saturated; float64 columns
    `tabular`; int64 codes `categorical`; float64 `social` (all null: no ties known); lists
    `events_type`, `events_category`, `events_amount`, `events_age_h`, `events_gap_h`,
    `events_hour`, `events_weekday`; lists `texts`, `texts_age_d`.
    """

    frame: pl.DataFrame
    tabular: tuple[str, ...]
    categorical: tuple[str, ...]
    social: tuple[str, ...]

    def having(self) -> dict[str, int]:
        """How many rows have a modality, of those that a user may lack."""
        has = {
            "text": pl.col("texts").list.len() > 0,
            "behaviour": pl.col("events_type").list.len() > 0,
            "social": pl.any_horizontal(
                pl.lit(False), *(pl.col(c).is_not_null() for c in self.social)
            ),
        }
        return self.frame.select(**{name: which.sum() for name, which in has.items()}).row(
            0, named=True
        )


def tabular_columns(vocabulary: Vocabulary) -> tuple[str, ...]:
    """The tabular columns in order; fixed by the vocabulary that was fitted with the model."""
    return (*_computed_columns(vocabulary.event_types), *vocabulary.numeric)


def check_profile(vocabulary: Vocabulary) -> None:
    """Raise UserError for a profile column that has the name of another column.

    Those of the vocabulary's event types and relations, of features, rows, outcomes and `users`.
    """
    bare = vocabulary.model_copy(update={"numeric": (), "categorical": ()})
    own = nobody(bare, FeatureConfig()).frame.columns
    users = (*MAPPABLE["users"], *users_table((), ()).schema.names)
    taken = {*own, *TIES, *ROW_COLUMNS, *users}
    profile = (*vocabulary.numeric, *vocabulary.categorical)
    for place, name in enumerate(profile):
        if name in taken or name.startswith("y_"):
            raise UserError(f"profile: {name!r} is the name of another column; rename it")
        if name in profile[:place]:
            raise UserError(f"profile: {name!r} is declared twice")


def nobody(vocabulary: Vocabulary, config: FeatureConfig) -> Features:
    """Features of no rows: which columns are tabular, categorical and social."""
    rows = pl.DataFrame(schema={"row": ROW_TYPE, "user_key": pl.Int64, "as_of": TIME})
    return features(view(History(no_events()), rows, config.history), vocabulary, config)


def _computed_columns(types: Sequence[str]) -> tuple[str, ...]:
    short = [f"{m}_{w}" for w, _ in SHORT_WINDOWS for m in ("n", "sum", "max")]
    long = [f"{m}_{w}" for w, _ in LONG_WINDOWS for m in ("n", "sum", "max", "night", "categories")]
    by_type = [f"{m}_{t}_{w}" for w, _ in LONG_WINDOWS for m in ("n", "sum") for t in types]
    trend = [f"trend_n_{t}" for t in types] + [f"trend_sum_{t}" for t in types]
    recency = ["recency_d", *(f"recency_{t}_d" for t in types)]
    return (*short, *long, *by_type, *trend, *recency, *WHOLE)


def features(view: View, vocabulary: Vocabulary, config: FeatureConfig) -> Features:
    """The feature columns of every row of a view. `view.rows` may carry `PROPOSED` columns.

    Windows of an hour, a day and 7 days are exact; 30, 90 and 365 days are aligned to UTC days.
    An amount is null where there is nothing to take it of; a count is then 0.
    """
    n = view.rows.height
    columns: dict[str, Floats] = {}
    _short_windows(columns, view, n)
    _long_windows(columns, view, vocabulary, n)
    _lifetime(columns, view, vocabulary, n)
    _habits(columns, view, n)
    _proposed(columns, view, vocabulary, n)
    _profile_numbers(columns, view, vocabulary, n)
    tabular = tabular_columns(vocabulary)
    frame = pl.DataFrame({name: columns[name] for name in tabular}, nan_to_null=True)
    base = view.rows.select("row", *BASE)
    social = _social_names(vocabulary, config)
    lists = _lists(base, _sequences(view, vocabulary, config), _texts(view, config))
    parts = [base, frame, _categorical(view, vocabulary), _social(view, vocabulary, social), lists]
    return Features(
        frame=pl.concat(parts, how="horizontal"),
        tabular=tabular,
        categorical=vocabulary.categorical,
        social=social,
    )


def _sum(rows: Ints, weights: Floats, n: int) -> Floats:
    return np.bincount(rows, weights=weights, minlength=n).astype(np.float64)


def _max(rows: Ints, values: Floats, n: int) -> Floats:
    """The maximum by row (rows ascending); NaN where a row has none."""
    result = np.full(n, np.nan)
    if len(rows):
        starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
        result[rows[starts]] = np.maximum.reduceat(values, starts)
    return result


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole, NaN where the whole is not positive."""
    result = np.full(len(part), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result


def _column(frame: pl.DataFrame, name: str) -> Floats:
    return frame[name].cast(pl.Float64).to_numpy()


def _rows(frame: pl.DataFrame) -> Ints:
    return frame["row"].cast(pl.Int64).to_numpy()


def _age_us() -> pl.Expr:
    return (pl.col("as_of") - pl.col("event_time")).dt.total_microseconds()


def _short_windows(columns: dict[str, Floats], view: View, n: int) -> None:
    rows, amount = _rows(view.events), _column(view.events, "amount")
    age = _column(view.events.select(age=_age_us()), "age")
    for name, seconds in SHORT_WINDOWS:
        inside = age <= seconds * 1e6
        columns[f"n_{name}"] = _sum(rows[inside], np.ones(int(inside.sum())), n)
        columns[f"sum_{name}"] = _sum(rows[inside], amount[inside], n) * AMOUNT_UNIT
        columns[f"max_{name}"] = _max(rows[inside], amount[inside], n) * AMOUNT_UNIT


def _long_windows(columns: dict[str, Floats], view: View, vocabulary: Vocabulary, n: int) -> None:
    daily = view.daily
    rows, age = _rows(daily), _column(daily, "age_days")
    count, night = _column(daily, "n"), _column(daily, "n_night")
    total, largest = _column(daily, "amount_sum"), _column(daily, "amount_max")
    types = vocabulary.event_types
    code = vocabulary.type_codes(daily["event_type"]) - UNKNOWN - 1  # −1: not in the vocabulary
    cell, cells = rows * len(types) + code, n * len(types)
    newest = _newest_by_category(daily)
    for name, days in LONG_WINDOWS:
        inside = age <= days
        r = rows[inside]
        columns[f"n_{name}"] = _sum(r, count[inside], n)
        columns[f"sum_{name}"] = _sum(r, total[inside], n) * AMOUNT_UNIT
        columns[f"max_{name}"] = _max(r, largest[inside], n) * AMOUNT_UNIT
        columns[f"night_{name}"] = _ratio(_sum(r, night[inside], n), columns[f"n_{name}"])
        recent = newest.filter(pl.col("age_days") <= days)
        columns[f"categories_{name}"] = _sum(_rows(recent), np.ones(recent.height), n)
        known = inside & (code >= 0)
        for measure, values, unit in (("n", count, 1.0), ("sum", total, AMOUNT_UNIT)):
            table = _sum(cell[known], values[known], cells).reshape(n, len(types)) * unit
            for k, event_type in enumerate(types):
                columns[f"{measure}_{event_type}_{name}"] = table[:, k]
    for what in ("n", "sum", *(f"{m}_{t}" for m in ("n", "sum") for t in types)):
        columns[f"trend_{what}"] = _ratio(3 * columns[f"{what}_30d"], columns[f"{what}_90d"])


def _newest_by_category(daily: pl.DataFrame) -> pl.DataFrame:
    """(cell, row, age_days) of a row's newest event of each category; a cell is one of both."""
    known = daily.filter(pl.col("category").is_not_null())
    names = pl.col("category").cast(pl.Categorical).to_physical().cast(pl.UInt64)
    cell = pl.col("row").cast(pl.UInt64) * (1 << 32) + names
    return known.group_by(cell.alias("cell")).agg(pl.col("row").first(), pl.col("age_days").min())


def _lifetime(columns: dict[str, Floats], view: View, vocabulary: Vocabulary, n: int) -> None:
    life = view.lifetime.join(view.rows.select("row", "as_of"), on="row", maintain_order="left")
    since = [
        (pl.col("as_of") - pl.col(time)).dt.total_microseconds().alias(name)
        for name, time in (("tenure", "first_time"), ("recency", "last_time"))
    ]
    life = life.with_columns(since)
    day = 86_400e6
    rows = _rows(life)
    columns["n_lifetime"] = _sum(rows, _column(life, "n"), n)
    columns["tenure_d"] = _max(rows, _column(life, "tenure"), n) / day
    columns["recency_d"] = -_max(rows, -_column(life, "recency"), n) / day
    for event_type in vocabulary.event_types:
        one = life.filter(pl.col("event_type") == event_type)
        recency = np.full(n, np.nan)
        recency[_rows(one)] = _column(one, "recency") / day
        columns[f"recency_{event_type}_d"] = recency


def _habits(columns: dict[str, Floats], view: View, n: int) -> None:
    """Of the events kept: the median of positive amounts, and whom the user dealt with."""
    paid = view.events.filter(pl.col("amount") > 0)
    median = paid.group_by("row").agg(pl.col("amount").median())
    columns["amount_median"] = np.full(n, np.nan)
    columns["amount_median"][_rows(median)] = _column(median, "amount") * AMOUNT_UNIT
    month = (pl.col("as_of") - pl.col("event_time")).dt.total_days() < 30
    dealt = view.events.filter(month, pl.col("counterparty_key").is_not_null())
    others = dealt.select("row", "counterparty_key").unique()
    columns["counterparties_30d"] = _sum(_rows(others), np.ones(others.height), n)


def _proposed(columns: dict[str, Floats], view: View, vocabulary: Vocabulary, n: int) -> None:
    """The proposed transaction set against the user's own habits; NaN where none is proposed."""
    if "proposed_amount" in view.rows.columns:
        amount = _column(view.rows, "proposed_amount").copy()
    else:
        amount = np.full(n, np.nan)
    columns["proposed_amount"] = amount
    columns["proposed_to_median"] = _ratio(amount, columns["amount_median"])
    columns["proposed_to_max_365d"] = _ratio(amount, columns["max_365d"])
    familiar = np.full(n, np.nan)
    if "proposed_category" in view.rows.columns:
        seen = view.daily.group_by("row", "category").agg(pl.col("n").sum())
        asked = view.rows.select("row", category=pl.col("proposed_category").cast(pl.Categorical))
        share = asked.join(seen, on=["row", "category"], how="left", maintain_order="left")
        known = share["category"].is_not_null().to_numpy()
        share_n = share["n"].fill_null(0).cast(pl.Float64).to_numpy()
        familiar = np.where(known, _ratio(share_n, columns["n_365d"]), np.nan)
    columns["proposed_familiar"] = familiar


def _profile_numbers(
    columns: dict[str, Floats], view: View, vocabulary: Vocabulary, n: int
) -> None:
    for name in vocabulary.numeric:
        if view.profile is None or name not in view.profile.columns:
            columns[name] = np.full(n, np.nan)
        else:
            columns[name] = _column(view.profile, name)


def _categorical(view: View, vocabulary: Vocabulary) -> pl.DataFrame:
    """Profile categories as codes; 0 is null or a value not seen in training."""
    result = {}
    for name in vocabulary.categorical:
        if view.profile is None or name not in view.profile.columns:
            values = pl.Series(name, [None] * view.rows.height, dtype=pl.String)
        else:
            values = view.profile[name]
        result[name] = vocabulary.level_codes(name, values)
    return pl.DataFrame(result)


def _social_names(vocabulary: Vocabulary, config: FeatureConfig) -> tuple[str, ...]:
    """The social columns in order, neighbours' outcomes among them where these are wanted."""
    names = social_columns(vocabulary.relations)
    if config.neighbour_outcomes:
        return (*names, *TIES) if names else ()
    assert MEASURES[-2:] == ("known", "bad")
    return tuple(name for name in names if not name.endswith(("_known", "_bad")))


def _social(view: View, vocabulary: Vocabulary, names: tuple[str, ...]) -> pl.DataFrame:
    """Degrees and neighbours' outcomes, by relation and over all; `bad` is a share of the known."""
    if view.social is None or not names:
        nothing = pl.Series([None] * view.rows.height, dtype=pl.Float64)
        return pl.DataFrame(dict.fromkeys(names, nothing))
    share = [
        (pl.col(f"{r}_bad") / pl.col(f"{r}_known")).fill_nan(0.0).alias(f"{r}_bad")
        for r in vocabulary.relations
    ]
    known = pl.sum_horizontal(f"{r}_known" for r in vocabulary.relations)
    bad = pl.sum_horizontal(f"{r}_bad" for r in vocabulary.relations)
    everywhere = [known.alias(TIES[0]), (bad / known).fill_nan(0.0).alias(TIES[1])]
    tied = pl.col(names[0]).is_not_null()
    columns = view.social.with_columns(*everywhere, *share).select(names)
    return columns.with_columns(pl.when(tied).then(pl.col(name)) for name in names)


def _sequences(view: View, vocabulary: Vocabulary, config: FeatureConfig) -> pl.DataFrame:
    """(row, events_* lists) of the last events, oldest first."""
    hour = 3_600_000_000
    time = pl.col("event_time")
    before = pl.when(pl.col("row") == pl.col("row").shift(1)).then(time.shift(1))
    gap = (time - before).dt.total_microseconds().fill_null(0)
    events = view.events.with_columns(
        events_type=pl.Series(vocabulary.type_codes(view.events["event_type"]), dtype=pl.Int32),
        events_category=pl.Series(
            vocabulary.category_codes(view.events["category"]), dtype=pl.Int32
        ),
        events_amount=(pl.col("amount") * AMOUNT_UNIT).cast(pl.Float32),
        events_age_h=(_age_us() / hour).cast(pl.Float32),
        events_gap_h=(gap / hour).cast(pl.Float32),
        events_hour=local_hour(time, pl.col("utc_offset_min")).cast(pl.Int32),
        events_weekday=local_weekday(time, pl.col("utc_offset_min")).cast(pl.Int32),
    )
    lists = [c for c in events.columns if c.startswith("events_")]
    return events.group_by("row", maintain_order=True).agg(pl.col(lists).tail(config.max_events))


def _texts(view: View, config: FeatureConfig) -> pl.DataFrame:
    """(row, texts, texts_age_d) of the last texts, oldest first."""
    age = _age_us() / 86_400e6
    texts = view.texts.select(
        "row", pl.col("text").alias("texts"), age.cast(pl.Float32).alias("texts_age_d")
    )
    return texts.group_by("row", maintain_order=True).agg(pl.all().tail(config.max_texts))


def _lists(base: pl.DataFrame, *parts: pl.DataFrame) -> pl.DataFrame:
    """The list columns of the parts, row by row; an empty list where a part has no such row."""
    lists = base.select("row")
    for part in parts:
        lists = lists.join(part, on="row", how="left", maintain_order="left")
    names = lists.columns[1:]
    return lists.select(pl.col(c).fill_null(pl.lit([], dtype=lists.schema[c])) for c in names)
