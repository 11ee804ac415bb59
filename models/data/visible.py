"""Which events a row (a user as of a time) may see: pairs of a row and an event.

Events in order of user and time make what a row may see of its user one run of events, found by
binary search; the pairs are two arrays of numbers, and columns are gathered only where asked for.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Places = NDArray[np.uint32]

NIGHT_END = 6  # local hours 0 … 5 are night


@dataclass(frozen=True)
class Visible:
    """Pairs in order of row, then of time and id. `row` and `event` are places in the frames."""

    rows: pl.DataFrame
    own: pl.DataFrame  # events, in order of user, time and id
    row: Places
    event: Places

    @classmethod
    def of(cls, events: pl.DataFrame, rows: pl.DataFrame, *, with_baseline: bool) -> "Visible":
        """Of events in order of user, time and id. `rows`: user_key, as_of, baseline_date.

        A row sees what happened before its as-of time and was available by then; of what lies
        before the baseline's date, nothing with a baseline, else what was available by that date.
        """
        start, stop = _runs(events, rows)
        count = stop - start
        row = np.repeat(np.arange(rows.height, dtype=np.uint32), count)
        first = np.cumsum(count) - count
        event = (np.arange(len(row)) + np.repeat(start - first, count)).astype(np.uint32)
        time, available = _us(events["event_time"]), _us(events["available_at"])
        as_of, date = _us(rows["as_of"]), _us(rows["baseline_date"])
        seen = time[event] >= date[row]
        if not with_baseline:
            seen |= available[event] <= date[row]
        seen &= available[event] <= as_of[row]
        if not seen.all():
            row, event = row[seen], event[seen]
        return cls(rows, events, row, event)

    def events(self, kept: int) -> pl.DataFrame:
        """(row, as_of, event columns) of the last events of each row."""
        last = _last(self.row, kept)
        columns = ("event_id", "event_time", "utc_offset_min", "event_type", "category")
        return self._frame(self.row[last], self.event[last], *columns, "counterparty_key", "amount")

    def texts(self, kept: int) -> pl.DataFrame:
        """(row, as_of, event_id, event_time, text) of the last texts of each row."""
        some = self.own["text"].is_not_null().to_numpy()[self.event]
        row, event = self.row[some], self.event[some]
        last = _last(row, kept)
        return self._frame(row[last], event[last], "event_id", "event_time", "text")

    def daily(self, days: int) -> pl.DataFrame:
        """Each event of the last days as a contribution to its UTC day; not summed, as sums follow.

        (row, event_type, category, n, n_night, amount_sum, amount_max, age_days)
        """
        day = self.own["event_time"].dt.date().to_physical().to_numpy()
        today = self.rows["as_of"].dt.date().to_physical().to_numpy()
        age = today[self.row] - day[self.event]
        inside = age <= days
        row, event, age = self.row[inside], self.event[inside], age[inside]
        night = at_night().cast(pl.Int64)
        own = self.own.select("event_type", "category", "amount", n_night=night)
        return pl.DataFrame({"row": row}).with_columns(
            *own.select("event_type", "category")[event].iter_columns(),
            pl.lit(1, pl.Int64).alias("n"),
            own["n_night"][event],
            own["amount"][event].alias("amount_sum"),
            own["amount"][event].alias("amount_max"),
            pl.Series("age_days", age.astype(np.int64)),
        )

    def lifetime(self) -> pl.DataFrame:
        """(row, event_type, n, first_time, last_time, amount_sum) of all the events."""
        kind = self.own["event_type"].to_physical().to_numpy().astype(np.uint64)
        kinds = int(kind.max()) + 1 if len(kind) else 1
        cell = self.row.astype(np.uint64) * np.uint64(kinds) + kind[self.event]
        sums = (
            pl.DataFrame({"cell": cell, "event": self.event})
            .with_columns(self.own["event_time"][self.event], self.own["amount"][self.event])
            .group_by("cell")
            .agg(pl.col("event").first(), *lifetime_sums())
        )
        return sums.select(
            (pl.col("cell") // kinds).cast(pl.UInt32).alias("row"),
            self.own["event_type"][sums["event"]],
            pl.exclude("cell", "event"),
        ).sort("row", "event_type")

    def _frame(self, row: Places, event: Places, *columns: str) -> pl.DataFrame:
        """Pairs as (row, as_of, columns of the event)."""
        as_of = self.rows["as_of"][row]
        return pl.DataFrame({"row": row}).with_columns(
            as_of, *self.own.select(columns)[event].iter_columns()
        )


def local_hour(event_time: pl.Expr, utc_offset_min: pl.Expr) -> pl.Expr:
    """Hour of the day, 0 … 23, where the event happened."""
    minutes = event_time.dt.epoch("s") // 60 + utc_offset_min.cast(pl.Int64)
    return minutes // 60 % 24


def at_night() -> pl.Expr:
    """Whether an event happened at night, by its local hour."""
    return local_hour(pl.col("event_time"), pl.col("utc_offset_min")) < NIGHT_END


def lifetime_sums() -> list[pl.Expr]:
    """What a group of events comes to over a lifetime."""
    return [
        pl.len().cast(pl.Int64).alias("n"),
        pl.col("event_time").min().alias("first_time"),
        pl.col("event_time").max().alias("last_time"),
        pl.col("amount").sum().alias("amount_sum"),
    ]


def _runs(events: pl.DataFrame, rows: pl.DataFrame) -> tuple[Ints, Ints]:
    """Where the events of each row's user begin, and where those before its as-of time end."""
    theirs, wanted = events["user_key"].to_numpy(), rows["user_key"].to_numpy()
    times = np.unique(_us(rows["as_of"]))
    users, begin = np.unique(theirs, return_index=True)
    # events by (user, number of as-of times at or before them): one number, in the same order
    passed = np.searchsorted(times, _us(events["event_time"]), side="right")
    place = np.searchsorted(users, theirs) * (len(times) + 1) + passed
    user = np.searchsorted(users, wanted)
    as_of = np.searchsorted(times, _us(rows["as_of"]))
    stop = np.searchsorted(place, user * (len(times) + 1) + as_of, side="right")
    start = np.append(begin, len(theirs))[user]
    known = np.append(users, 0)[user] == wanted
    return start, np.where(known & (user < len(users)), stop, start)


def _last(row: Places, kept: int) -> NDArray[np.bool_]:
    """Which pairs are among the last ones of their row; rows ascend."""
    if not len(row):
        return np.zeros(0, dtype=bool)
    starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])
    ends = np.r_[starts[1:], len(row)]
    return np.arange(len(row)) >= np.repeat(ends - kept, ends - starts)


def _us(times: pl.Series) -> Any:
    return times.to_physical().to_numpy()
