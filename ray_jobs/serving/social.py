"""A user's ties, online: rows of the lake's `graph` table, a month at a time in memory."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime

import polars as pl

logger = logging.getLogger("ray.serve")
DATES_KEPT = 3  # months in memory
LOOK_AGAIN_S = 300.0  # after which a month that was not there is looked for again

# A date → its whole snapshot: (user_key, graph_date, measures …); None or no rows where there is
# none yet.
GraphReader = Callable[[datetime], pl.DataFrame | None]


class SocialLookup:
    """Finds users' rows of the graph snapshots.

    `read` is called once a date, and again after a while for a date that had no snapshot.
    """

    def __init__(self, read: GraphReader) -> None:
        self._read = read
        self._snapshots: OrderedDict[datetime, pl.DataFrame] = OrderedDict()
        self._absent: dict[datetime, float] = {}

    def rows(self, user_keys: pl.Series, graph_dates: pl.Series) -> pl.DataFrame | None:
        """The snapshot rows of (user, date) pairs, each once; None where no date has a snapshot.

        `user_keys`: int64. `graph_dates`: datetime[us, UTC], month starts. A user without ties has
        no row.
        """
        asked = pl.DataFrame({"user_key": user_keys, "graph_date": graph_dates})
        found = []
        for date in graph_dates.unique().sort().to_list():
            snapshot = self._snapshot(date)
            if snapshot is not None:
                keys = asked.filter(pl.col("graph_date") == date)["user_key"].unique()
                found.append(_pick(snapshot, keys))
        return pl.concat(found, how="diagonal") if found else None

    def _snapshot(self, date: datetime) -> pl.DataFrame | None:
        if date in self._snapshots:
            self._snapshots.move_to_end(date)
            return self._snapshots[date]
        if time.monotonic() < self._absent.get(date, 0.0):
            return None
        snapshot = self._read(date)
        if snapshot is None or snapshot.is_empty():
            self._absent[date] = time.monotonic() + LOOK_AGAIN_S
            logger.warning("no ties of %s yet, scored without: run backfill", f"{date:%Y-%m-%d}")
            return None
        self._snapshots[date] = snapshot = snapshot.sort("user_key")
        if len(self._snapshots) > DATES_KEPT:
            self._snapshots.popitem(last=False)
        return snapshot


def _pick(snapshot: pl.DataFrame, user_keys: pl.Series) -> pl.DataFrame:
    """The rows of some users, by binary search: a join would hash the whole snapshot."""
    places = snapshot["user_key"].search_sorted(user_keys, side="left")
    nearest = snapshot[places.clip(upper_bound=snapshot.height - 1)]
    return nearest.filter(nearest["user_key"] == user_keys)
