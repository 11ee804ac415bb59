"""Baselines on disk: a backfill moves them forward by what is new, instead of reading years.

    <lake>/baselines/baseline_date=…/bucket=…/part-<hash>.parquet

A baseline follows from the event files that have a say at its date, and the file that holds it
names them. It is used as long as all of them are in the table: rows that came in other files are
added, and a bucket of which a file was corrected is built anew. Which files have a say is read from
the times in their Parquet footers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Literal, get_args

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from models.data.buckets import overlap, within
from models.data.clean import each_once
from models.data.history import Baseline, HistoryConfig, build_baseline, extend_baseline
from models.data.schema import EVENTS, TIMESTAMP, Table, empty
from models.data.tasks import midnight
from ray_jobs.lake import Lake
from ray_jobs.storage import DataFile, filesystem, rows_of
from ray_jobs.tables import Tables

FORMAT = 1  # raised when the same events come to give another baseline
How = Literal["read", "extended", "built"]

_MADE_FROM = b"made_from"  # in a footer: format, history and files of events as JSON
_TIMES = ("available_at", "event_time")
_ANY_TIME = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))

_EVENT = [
    ("event_id", pa.int64()),
    ("event_time", TIMESTAMP),
    ("available_at", TIMESTAMP),
    ("utc_offset_min", pa.int16()),
    ("event_type", pa.string()),
    ("category", pa.string()),
    ("counterparty_key", pa.int64()),
    ("amount", pa.int64()),
    ("text", pa.string()),
]
_TEXT = [("event_id", pa.int64()), ("event_time", TIMESTAMP), ("text", pa.string())]
_DAY = [
    ("day", pa.date32()),
    ("event_type", pa.string()),
    ("category", pa.string()),
    ("n", pa.int64()),
    ("n_night", pa.int64()),
    ("amount_sum", pa.int64()),
    ("amount_max", pa.int64()),
]
_LIFETIME = [
    ("event_type", pa.string()),
    ("n", pa.int64()),
    ("first_time", TIMESTAMP),
    ("last_time", TIMESTAMP),
    ("amount_sum", pa.int64()),
]
_FRAMES = {"events": _EVENT, "texts": _TEXT, "daily": _DAY, "lifetime": _LIFETIME}

BASELINES = Table(
    name="baselines",
    schema=pa.schema(
        [
            ("user_key", pa.int64()),
            *((name, pa.list_(pa.struct(fields))) for name, fields in _FRAMES.items()),
            ("baseline_date", pa.string()),
            ("bucket", pa.int32()),
        ]
    ),
    key=("user_key",),
    sort=("user_key",),
    required=(),
)


@dataclass(frozen=True)
class Made:
    """The baseline of a bucket, how it was come by, and what it follows from."""

    baseline: Baseline
    how: How
    bucket: int
    history: HistoryConfig
    files: Sequence[str]  # of events, those with a say: names below the table, sorted

    def write(self, lake: Lake) -> DataFile | None:
        """Write it as a data file, not yet published; None where nobody has an event."""
        if self.baseline.lifetime.is_empty():
            return None
        made_from = {**_made_by(self.history), "files": self.files}
        schema = BASELINES.schema.with_metadata({_MADE_FROM: json.dumps(made_from)})
        partition = {"baseline_date": _day(self.baseline.date), "bucket": self.bucket}
        return lake.write_part(replace(BASELINES, schema=schema), to_rows(self.baseline), partition)

    def account(self) -> dict[str, int]:
        """`baselines_read`, `baselines_extended` and `baselines_built`, one of which is 1."""
        return {f"baselines_{how}": int(how == self.how) for how in get_args(How)}


@dataclass(frozen=True)
class EventFile:
    """A file of events, as `Lake.files` gives it, and the bounds of its rows' `_TIMES`."""

    entry: Mapping[str, Any]
    first: tuple[datetime, datetime]
    last: tuple[datetime, datetime]

    def has_a_say(self, at: datetime) -> bool:
        """Whether a row of it may count in a baseline at a date, or keep another from counting.

        Of the rows of an event that known first counts, then that of the earlier time
        (`each_once`). So one that was known by the date, of a time before it, gives way only to
        a row that comes before (date, date) as well.
        """
        return self.first < (at, at)

    def is_counted(self, at: datetime) -> bool:
        """Whether every row of it was known by a date, and is of a time before it."""
        known, happened = self.last
        return known <= at and happened < at


def baseline_of(tables: Tables, bucket: int, at: datetime, history: HistoryConfig) -> Made:
    """The baseline of a bucket at a date (midnight), equal to `build_baseline` over all events.

    It is read where the lake has it, else the newest earlier one is extended, else it is built.
    """
    files = event_files(tables, bucket)
    heard = sorted(name for name, file in files.items() if file.has_a_say(at))
    made = partial(Made, bucket=bucket, history=history, files=heard)
    for entry in _stored(tables.lake, bucket, at):
        had = _made_from(entry, history)
        if had is None or not had <= files.keys():
            continue
        since = midnight(date.fromisoformat(entry["partition"]["baseline_date"]))
        if since == at and had == set(heard):
            return made(_read(tables.lake, entry, since), "read")
        new = _uncounted([(files[name], name in had) for name in heard], bucket, since)
        if new is not None:
            stored = _read(tables.lake, entry, since)
            return made(extend_baseline(stored, new, at, history), "extended")
    events = [_rows(files[name], bucket, EVENTS.schema.names) for name in heard]
    every = each_once(pl.concat([empty(EVENTS), *events]))
    return made(build_baseline(every, at, history), "built")


def publish(lake: Lake, day: date, files: Sequence[DataFile]) -> None:
    """Make these files, at least one, the baselines of a date; drop dates older than the one
    before it."""
    assert files
    _replace(lake, str(day), files)
    dates = {file["partition"]["baseline_date"] for file in lake.files(BASELINES.name)}
    for old in sorted(one for one in dates if one < str(day))[:-1]:
        _replace(lake, old, [])


def to_rows(baseline: Baseline) -> pl.DataFrame:
    """One row a user, in order of key: each frame of the baseline as a list of structs."""
    rows = baseline.lifetime.select(pl.col("user_key").unique().sort())
    for name in _FRAMES:
        frame: pl.DataFrame = getattr(baseline, name)
        own = frame.group_by("user_key", maintain_order=True).agg(
            pl.struct(pl.exclude("user_key")).alias(name)
        )
        rows = rows.join(own, on="user_key", how="left", maintain_order="left")
    return rows


def from_rows(rows: pl.DataFrame, at: datetime) -> Baseline:
    """The baseline at a date that `to_rows` made these rows of."""
    frames = {
        name: rows.select("user_key", name).explode(name, keep_nulls=False).unnest(name)
        for name in _FRAMES
    }
    return Baseline(date=at, **frames)


def event_files(tables: Tables, bucket: int) -> dict[str, EventFile]:
    """The files, by name, that may hold events of a bucket's users; only footers are read."""
    if EVENTS.name not in tables.versions:
        return {}
    files = tables.lake.files(EVENTS.name, version=tables.versions[EVENTS.name])
    folder = tables.lake.url(EVENTS.name, "")
    return {
        entry["path"].removeprefix(folder): EventFile(entry, *_bounds(entry["path"]))
        for entry in files
        if overlap(entry["partition"]["bucket"], bucket)
    }


def _bounds(path: str) -> tuple[tuple[datetime, datetime], tuple[datetime, datetime]]:
    """The first and the last of each of `_TIMES`; any time where the footer does not tell."""
    system, inner = filesystem(path)
    footer = pq.read_metadata(inner, filesystem=system)
    spans = []
    for name in _TIMES:
        column = footer.schema.names.index(name)
        groups = range(footer.num_row_groups)
        told = [footer.row_group(group).column(column).statistics for group in groups]
        if told and all(one is not None and one.has_min_max for one in told):
            spans.append((min(one.min for one in told), max(one.max for one in told)))
        else:
            spans.append(_ANY_TIME)
    (first_known, last_known), (first, last) = spans
    return (first_known, first), (last_known, last)


def _made_by(history: HistoryConfig) -> dict[str, Any]:
    return {"format": FORMAT, "history": history.model_dump(mode="json")}


def _made_from(entry: Mapping[str, Any], history: HistoryConfig) -> set[str] | None:
    """The event files that a stored baseline was made from; None where it was made in another
    way, or written again since, as by an erasure."""
    system, path = filesystem(entry["path"])
    notes = pq.read_metadata(path, filesystem=system).metadata or {}
    made_from = json.loads(notes.get(_MADE_FROM, b"{}"))
    files = set(made_from.pop("files", ()))
    return files if made_from == _made_by(history) else None


def _stored(lake: Lake, bucket: int, at: datetime) -> list[dict[str, Any]]:
    """The files of a bucket's baselines at a date and before it, the newest first."""
    if not lake.exists(BASELINES.name):
        return []
    files = lake.files(BASELINES.name, where={"bucket": bucket})
    dated = [(file["partition"]["baseline_date"], file) for file in files]
    dated = [one for one in dated if one[0] <= _day(at)]
    return [file for _, file in sorted(dated, key=lambda one: str(one[0]), reverse=True)]


def _read(lake: Lake, entry: Mapping[str, Any], at: datetime) -> Baseline:
    return from_rows(lake.rows(BASELINES, entry), at)


def _uncounted(
    files: Sequence[tuple[EventFile, bool]], bucket: int, since: datetime
) -> pl.DataFrame | None:
    """The events that a baseline at a date has not counted, each once; `files` with whether it was
    made from them. None where one that it has counted would be another now.

    Of files that hold nothing but counted rows only keys are read, and more where one is a new
    row's too.
    """
    before = (pl.col("available_at") <= since) & (pl.col("event_time") < since)
    whole = [(f, had) for f, had in files if not (had and f.is_counted(since))]
    old = [f for f, had in files if had and f.is_counted(since)]
    names = EVENTS.schema.names
    none = empty(EVENTS).with_columns(counted=pl.lit(False))
    read = [_rows(f, bucket, names).with_columns(counted=before & had) for f, had in whole]
    rows = pl.concat([none, *read])
    again = [
        _rows(f, bucket, names).with_columns(counted=pl.lit(True))
        for f in old
        if _rows(f, bucket, EVENTS.key).join(rows, on=EVENTS.key, how="semi").height
    ]
    rows = pl.concat([rows, *again])
    new = each_once(rows).filter(~pl.col("counted"))
    counted = rows.filter("counted")
    return None if new.join(counted, on=EVENTS.key, how="semi").height else new


def _rows(file: EventFile, bucket: int, columns: Sequence[str]) -> pl.DataFrame:
    """A file's rows of a bucket's users."""
    types = empty(EVENTS).select(columns).schema
    return within(rows_of(file.entry, types), file.entry["partition"]["bucket"], bucket)


def _replace(lake: Lake, day: str, files: Sequence[DataFile]) -> None:
    where = {"baseline_date": day}
    lake.replace(BASELINES, app=f"baselines/{day}", files=files, where=where)


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d}"
