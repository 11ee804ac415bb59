"""What jobs read of the lake: always the table versions that one ingest named."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from models.data.buckets import buckets
from models.data.clean import dedupe
from models.data.history import History, no_events
from models.data.schema import LABELS
from ray_jobs.lake import Lake
from ray_jobs.storage import short_digest


@dataclass(frozen=True)
class Neighbours:
    """Whose outcomes a graph snapshot tells: those of a task, among so many users of a node."""

    task: str
    cap: int

    def month(self, date: datetime) -> dict[str, str]:
        """The partition of `graph` for them, as of a month's start."""
        # a digest: the name of a task need be no folder's
        own = short_digest([self.task, self.cap])
        return {"graph_month": f"{date:%Y-%m-%d}", "neighbours": own}

    def app(self, date: datetime) -> str:
        """The application, in the table's log, that publishes this month."""
        return "/".join(["graph", *self.month(date).values()])


@dataclass(frozen=True)
class Tables:
    """The lake as one ingest left it. Cheap to send to a task.

    `content`: a digest of the files that it was made of, and how. A lake that is made anew of other
    files may have the same versions.
    """

    lake: Lake
    versions: dict[str, int]
    buckets: range  # of users: the parts in which jobs read the tables
    content: str = ""

    def read(
        self, table: str, bucket: int | None = None, columns: Sequence[str] | None = None
    ) -> pl.DataFrame | None:
        """A table's rows (of one bucket), or None where the ingest left no such table."""
        if table not in self.versions:
            return None
        return self.lake.read_if(table, self.versions, bucket, columns)

    def events(self, bucket: int) -> pl.DataFrame:
        """A bucket's events, each once."""
        if "events" not in self.versions:
            return no_events()
        return self.lake.events(bucket, self.versions)

    def labels(self, bucket: int) -> pl.DataFrame | None:
        """A bucket's labels, each once: of those that differ, in two periods or sources, the one
        that was known first counts. None where the ingest left no such table."""
        labels = self.read("labels", bucket)
        return None if labels is None else dedupe(labels, LABELS)[0]

    def graph(
        self, neighbours: Neighbours, date: datetime, bucket: int | None = None
    ) -> pl.DataFrame | None:
        """The graph snapshot of a month's start (a bucket's rows of it) without what its partitions
        say; None where the lake has none of that month."""
        if "edges" not in self.versions or not self.lake.exists("graph"):
            return None
        where, version = neighbours.month(date), self.lake.version("graph")
        rows = self.lake.read("graph", version=version, bucket=bucket, where=where)
        rows = rows.drop(*where, "bucket")
        if rows.is_empty() and not self.lake.generation("graph", neighbours.app(date), version):
            return None
        return rows

    def history(
        self,
        bucket: int,
        events: pl.DataFrame,
        neighbours: Neighbours,
        graph_dates: Sequence[datetime],
    ) -> History:
        """All that the lake knows of a bucket's users, with the given events as recent ones."""
        months = [self.graph(neighbours, date, bucket) for date in graph_dates]
        known = [month for month in months if month is not None]
        return History(
            recent=events,
            profiles=self.read("users", bucket),
            social=pl.concat(known) if known else None,
        )


def ingested(lake: Lake) -> Tables:
    """The lake as the last ingest left it. Raises UserError when there was none."""
    state = lake.ingested()
    made_of = state["config"]
    return Tables(lake, state["table_versions"], buckets(made_of["buckets"]), short_digest(made_of))
