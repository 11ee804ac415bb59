"""A user's ties, online: rows of the lake's `graph` table, by month and bucket of users."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from models.data.buckets import bucket_of

logger = logging.getLogger("ray.serve")
BYTES_KEPT = 1 << 29  # of a replica's memory
PART_BYTES = 1 << 12  # what a part takes that has no rows
LOOK_AGAIN_S = 300.0  # after which a month that was not there is looked for again


@dataclass(frozen=True)
class GraphReader:
    """Reads graph snapshots in parts.

    `read`: a month's start and a bucket → its rows (user_key, graph_date, measures …), or None
    where there is no snapshot of that month yet. `count`: how many buckets of users there are.
    """

    read: Callable[[datetime, int], pl.DataFrame | None]
    count: int


class SocialLookup:
    """Finds users' rows of the graph snapshots.

    A part of a snapshot is read when first asked for, and the parts not asked for the longest make
    room. A month that has no snapshot is looked for again after a while.
    """

    def __init__(self, reader: GraphReader) -> None:
        self._reader = reader
        self._parts: OrderedDict[tuple[datetime, int], pl.DataFrame] = OrderedDict()
        self._bytes = 0
        self._absent: dict[datetime, float] = {}

    def rows(self, user_keys: pl.Series, graph_dates: pl.Series) -> pl.DataFrame | None:
        """The snapshot rows of (user, date) pairs, each once; None where no date has a snapshot.

        `user_keys`: int64. `graph_dates`: datetime[us, UTC], month starts. A user without ties has
        no row.
        """
        asked = pl.DataFrame({"graph_date": graph_dates, "user_key": user_keys}).unique()
        bucket = bucket_of(pl.col("user_key"), self._reader.count).alias("bucket")
        parts = asked.with_columns(bucket).partition_by("graph_date", "bucket", as_dict=True)
        found = []
        for (date, number), users in sorted(parts.items()):
            part = self._part(date, number)
            if part is not None:
                found.append(_pick(part, users["user_key"]))
        return pl.concat(found, how="diagonal") if found else None

    def _part(self, date: datetime, bucket: int) -> pl.DataFrame | None:
        place = date, bucket
        if place in self._parts:
            self._parts.move_to_end(place)
            return self._parts[place]
        if time.monotonic() < self._absent.get(date, 0.0):
            return None
        part = self._reader.read(date, bucket)
        if part is None:
            self._absent[date] = time.monotonic() + LOOK_AGAIN_S
            logger.warning("no ties of %s yet, scored without: run backfill", f"{date:%Y-%m-%d}")
            return None
        self._parts[place] = part = part.sort("user_key")
        self._bytes += _size(part)
        while self._bytes > BYTES_KEPT and len(self._parts) > 1:
            self._bytes -= _size(self._parts.popitem(last=False)[1])
        return part


def _size(part: pl.DataFrame) -> int:
    return PART_BYTES + int(part.estimated_size())


def _pick(part: pl.DataFrame, user_keys: pl.Series) -> pl.DataFrame:
    """The rows of some users, by binary search: a join would hash the whole part."""
    if part.is_empty():
        return part
    places = part["user_key"].search_sorted(user_keys, side="left")
    nearest = part[places.clip(upper_bound=part.height - 1)]
    return nearest.filter(nearest["user_key"] == user_keys)
