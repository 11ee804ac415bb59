"""`snapshot`: the lake as of many times → feature rows with roles and labels, bucket by bucket.

    <work>/snapshots/<id>/<role>/bucket-000004.parquet   features, y_<task>, proposed_amount
    <work>/snapshots/<id>/snapshot.json                vocabulary, stats, columns, versions, account

Buckets are read, turned into rows and written one by one; nothing is shuffled. A bucket's rows of
the fit role are summed up as they are written; the driver merges the summaries, in their order.
"""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from models.data.features import Features, check_profile, features, nobody
from models.data.history import History, view
from models.data.rows import (
    check_dates,
    check_matured,
    label_columns,
    number,
    only_eligible,
    training_rows,
)
from models.data.schema import UserError
from models.data.stats import Stats, Summary, merged, stats_of
from models.data.strict import Strict
from models.data.tasks import ROLES, Role
from models.data.vocabulary import Vocabulary, check_event_types, count_values, most_frequent
from ray_jobs import graph, tombstones
from ray_jobs.config import Config
from ray_jobs.parallel import over, total
from ray_jobs.progress import say
from ray_jobs.storage import in_one_step, short_digest
from ray_jobs.tables import Tables

MANIFEST = "snapshot.json"
FORMAT = 3  # of what a snapshot holds: one of another number is made anew
PARTS = 64  # tasks that count words
ROWS_TOGETHER = 40_000  # whose features are made at one time, in one task
SUMMARIES = "summaries"  # of the fit role, until they are merged


class Snapshot(Strict):
    """A snapshot's manifest. `folder` holds one folder a role."""

    folder: str
    versions: dict[str, int]  # the lake's tables that it was made from
    stats: Stats
    tabular: tuple[str, ...]
    categorical: tuple[str, ...]
    social: tuple[str, ...]
    rows: dict[str, int]  # by role
    account: dict[str, int]

    def files(self, role: Role) -> list[str]:
        """The role's files, one a bucket that has rows."""
        return sorted(str(p) for p in (Path(self.folder) / role).glob("*.parquet"))

    def read(self, role: Role, columns: list[str] | None = None) -> Features:
        """All rows of a role, numbered anew; only some columns where they are named."""
        frames = [pl.read_parquet(f, columns=columns) for f in self.files(role)]
        if not frames:
            raise UserError(f"snapshot: no row in the role {role}; see split.{role} and the data")
        return self.features(pl.concat(frames))

    def features(self, frame: pl.DataFrame) -> Features:
        """Rows of this snapshot as features; `row` counts from 0."""
        numbered = frame.with_columns(row=pl.int_range(pl.len(), dtype=pl.UInt32))
        return Features(numbered, self.tabular, self.categorical, self.social)


def snapshot(config: Config, tables: Tables) -> Snapshot:
    """Write the snapshot that the configuration and the lake's last ingest determine.

    Raises UserError for dates beyond the sources' watermark, for a task with no label, and for
    labels that matured late.
    """
    check_dates(config.split, config.tasks, complete_until(config))
    folder = Path(config.work) / "snapshots" / _identity(config, tables)
    if (folder / MANIFEST).exists():
        say(f"snapshot: {folder.name} is already there")
        return load(folder)
    erased = tombstones.erased(tables.lake)
    vocabulary = _vocabulary(config, tables)
    dates = _graph_dates(config, tables)
    hubs = graph.publish(config, tables, dates)
    with in_one_step(folder) as staged:
        for part in (*ROLES, SUMMARIES):
            (staged / part).mkdir()
        job = _Bucket(config, tables, vocabulary, dates, str(staged))
        account = total(over(tables.buckets, job, "snapshot")) | hubs
        assert account["rows"] == sum(account[role] for role in ROLES) + account["without_events"]
        tombstones.check_same(tables.lake, erased, "make the snapshot again")
        manifest = _fit(config, staged, vocabulary, tables.versions, account)
        (staged / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
    say(f"snapshot: {json.dumps(account)}")
    return load(folder)


def load(folder: Path) -> Snapshot:
    """Read a snapshot's manifest. Raises UserError where there is none."""
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"there is no snapshot {folder}: removed, or of another `work`") from error
    return Snapshot.model_validate_json(text).model_copy(update={"folder": str(folder)})


def complete_until(config: Config) -> datetime | None:
    """Until when every events source is complete."""
    marks = [s.complete_until_utc for s in config.sources.values() if s.table == "events"]
    return min((m for m in marks if m is not None), default=None)


class _Bucket:
    """One bucket's rows, written by role; returns how many."""

    def __init__(
        self,
        config: Config,
        tables: Tables,
        vocabulary: Vocabulary,
        graph_dates: list[datetime],
        out: str,
    ) -> None:
        self.config, self.tables, self.vocabulary = config, tables, vocabulary
        self.graph_dates, self.out = graph_dates, out

    def __call__(self, bucket: int) -> dict[str, int]:
        events = self.tables.events(bucket)
        labels = self.tables.labels(bucket)
        rows = training_rows(events, labels, self.config.split)
        check_dates(self.config.split, self.config.tasks, complete_until(self.config), rows)
        check_matured(rows, labels, self.config.split, self.config.tasks)
        neighbours = graph.neighbours_of(self.config)
        history = self.tables.history(bucket, events, neighbours, self.graph_dates)
        counts = Counter(dict.fromkeys(("rows", "without_events", *ROLES), 0))
        summaries = []
        with _RoleFiles(self.out, bucket) as files:
            for part in rows.iter_slices(ROWS_TOGETHER):
                known = self._features(number(part.drop("row")), history, labels)
                counts["rows"] += part.height
                counts["without_events"] += part.height - known.frame.height
                for role in ROLES:
                    own = known.frame.filter(pl.col("role") == role)
                    counts[role] += own.height
                    files.write(role, own)
                    if role == "fit" and own.height:
                        fit = dataclasses.replace(known, frame=own)
                        summaries.append(Summary.of(fit, own, self.config.tasks))
            summary = merged(summaries)
            if summary is not None:
                files.write(SUMMARIES, summary.to_frame())
        return dict(counts)

    def _features(
        self, rows: pl.DataFrame, history: History, labels: pl.DataFrame | None
    ) -> Features:
        """Features and labels of some rows, in order of user, that have an event by then."""
        config, keys = self.config, rows["user_key"]
        own = history.recent.filter(pl.col("user_key").is_between(keys.first(), keys.last()))
        history = dataclasses.replace(history, recent=own)
        known = features(
            view(history, rows, config.features.history), self.vocabulary, config.features
        )
        frame = known.frame.with_columns(
            rows["role"],
            rows["proposed_amount"],
            *label_columns(rows, own, labels, config.tasks).iter_columns(),
        ).filter(pl.col("n_lifetime") > 0)
        return dataclasses.replace(known, frame=only_eligible(frame, config.tasks))


class _RoleFiles(AbstractContextManager["_RoleFiles"]):
    """A bucket's Parquet files, one a role (or summary) that has rows, written part by part."""

    def __init__(self, folder: str, bucket: int) -> None:
        self.folder, self.name = Path(folder), f"bucket-{bucket:06d}.parquet"
        self.writers: dict[str, pq.ParquetWriter] = {}

    def write(self, role: str, rows: pl.DataFrame) -> None:
        """Add rows to a role's file."""
        if rows.is_empty():
            return
        table = rows.to_arrow()
        if role not in self.writers:
            path = self.folder / role / self.name
            self.writers[role] = pq.ParquetWriter(path, table.schema, compression="zstd")
        self.writers[role].write_table(table)

    def __exit__(self, *_: object) -> None:
        for writer in self.writers.values():
            writer.close()


class _Words:
    """Counts of some buckets' event types, categories, levels and relations, as known at the last
    as-of time of the fit role."""

    def __init__(self, config: Config, tables: Tables) -> None:
        self.config, self.tables = config, tables

    def __call__(self, several: Sequence[int]) -> dict[str, pl.DataFrame]:
        return _added([self._of(bucket) for bucket in several])

    def _of(self, bucket: int) -> dict[str, pl.DataFrame]:
        config = self.config
        end = config.split.last_fit()
        known = pl.col("available_at") <= end
        events = self.tables.events(bucket).filter(pl.col("event_time") < end, known)
        counts = {c: count_values(events, c) for c in ("event_type", "category")}
        profiles = self.tables.read("users", bucket)
        if profiles is not None:
            past = profiles.filter(pl.col("valid_from") < end, known)
            counts |= {c: count_values(past, c) for c in config.profile.categorical}
        ties = self.tables.read("edges", bucket, ["relation", "valid_from", "available_at"])
        if ties is not None:
            past = ties.filter(pl.col("valid_from") < end, known)
            counts["relation"] = count_values(past, "relation")
        return counts


def _added(parts: Sequence[Mapping[str, pl.DataFrame]]) -> dict[str, pl.DataFrame]:
    """Column → counts of its values, those of all parts together."""
    columns = dict.fromkeys(column for part in parts for column in part)
    return {
        column: pl.concat([part[column] for part in parts if column in part])
        .group_by("value")
        .agg(pl.col("n").sum())
        for column in columns
    }


def _vocabulary(config: Config, tables: Tables) -> Vocabulary:
    # a column may have as many values as users: of some buckets together, each value comes once
    size = -(-len(tables.buckets) // PARTS)
    groups = [tables.buckets[i : i + size] for i in range(0, len(tables.buckets), size)]
    counts = _added(over(groups, _Words(config, tables), "vocabulary"))

    def words(column: str, limit: int) -> tuple[str, ...]:
        return most_frequent(counts[column], limit) if column in counts else ()

    event_types = words("event_type", config.features.max_event_types)
    check_event_types(event_types)
    relations = counts["relation"]["value"].to_list() if "relation" in counts else []
    vocabulary = Vocabulary(
        event_types=event_types,
        categories=words("category", config.features.max_categories),
        relations=tuple(sorted(relations)),
        numeric=config.profile.numeric,
        categorical=config.profile.categorical,
        levels={c: words(c, 32) for c in config.profile.categorical},
    )
    check_profile(vocabulary)
    return vocabulary


def _graph_dates(config: Config, tables: Tables) -> list[datetime]:
    """The month starts at or before the as-of times of the split."""
    if config.split.schedule == "month":
        return sorted({t for _, t in config.split.month_starts()})
    return graph.labelled_months(tables, config.split)


def _fit(
    config: Config,
    staged: Path,
    vocabulary: Vocabulary,
    versions: dict[str, int],
    account: dict[str, int],
) -> Snapshot:
    """The stats of the merged summaries; the manifest. One summary is read at a time."""
    none = nobody(vocabulary, config.features)
    files = sorted((staged / SUMMARIES).iterdir())
    summary = merged(Summary.from_frame(pl.read_parquet(f), none, config.tasks) for f in files)
    if summary is None:
        raise UserError(
            f"split.fit {config.split.fit.first} … {config.split.fit.last}: no user has an event "
            "before these dates"
        )
    say(f"snapshot: quantiles are off by at most {summary.rank_error:.3%} of the ranks")
    shutil.rmtree(staged / SUMMARIES)
    return Snapshot(
        folder=str(staged),
        versions=versions,
        stats=stats_of(vocabulary, summary, config.tasks),
        tabular=none.tabular,
        categorical=none.categorical,
        social=none.social,
        rows={role: account[role] for role in ROLES},
        account=account,
    )


def _identity(config: Config, tables: Tables) -> str:
    """A name that the content determines: the same configuration and lake, the same snapshot."""
    parts = {
        "format": FORMAT,
        "versions": tables.versions,
        "content": tables.content,
        **config.model_dump(
            mode="json", include={"tasks", "split", "features", "profile", "roles", "lake"}
        ),
    }
    return short_digest(parts)
