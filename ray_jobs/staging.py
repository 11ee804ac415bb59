"""The tasks of an ingest. Each reads and writes files; only counts come back to the driver.

1. `stage`: a slice of a source file → one staged file, a block a bucket.
2. `merge`: a bucket's blocks of all staged files → the final, sorted file of the bucket.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from models.data.clean import ERASED, Cleaner, conform, dedupe
from models.data.keys import check_identities
from models.data.mapping import Mapped, check_seen, open_schema, resolve
from models.data.schema import IDENTITIES, REJECTED, Table, empty
from models.data.source import Source
from ray_jobs.account import Part
from ray_jobs.exchange import Block, read_blocks, write_blocks
from ray_jobs.files import (
    Batch,
    Slice,
    SourceFile,
    UnreadableError,
    batches,
    rows_about,
    schema_of,
    slices,
)
from ray_jobs.lake import Lake
from ray_jobs.storage import DataFile, digest_of, read_file, write_file

UNKNOWN_USER = "unknown user: neither events nor users name them"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every task of an ingest needs to know."""

    lake: Lake
    folder: str  # where this ingest stages its files
    sources: Mapping[str, Source]
    tables: Mapping[str, Table]
    buckets: int
    secret: bytes = field(repr=False)
    now: datetime
    erased: frozenset[str] = frozenset()  # hashes of users whose rows are not to come back
    found: Mapping[str, int] = field(default_factory=dict)  # the tables' versions at the start

    @property
    def by(self) -> str:
        """What this ingest's commits note, so that it can tell them from those of others."""
        return self.folder.rpartition("/")[2]

    def table_of(self, source: str) -> Table:
        """The table that a source maps to."""
        return self.tables[self.sources[source].table]


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """A source file before it is read: its hash, its slices, or why it cannot be read."""

    file: SourceFile
    sha256: str = ""
    rows: int = 0  # about
    slices: tuple[Slice, ...] = ()
    unreadable: str | None = None

    @property
    def part(self) -> Part:
        """Its source and period."""
        return self.file.source, self.file.period


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A batch of rows that was cleaned, or a file that broke off."""

    file: SourceFile
    rows_in: int = 0
    duplicates: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    first: tuple[int, str] | None = None  # the first rejected row of no erased user, and why
    rows: Mapping[int, Block] = field(default_factory=dict)  # by bucket
    identities: Mapping[int, Block] = field(default_factory=dict)
    rejected: DataFile | None = None
    unreadable: str | None = None


@dataclass(frozen=True, kw_only=True)
class RowsUnit:
    """A bucket of one source and period; for labels also where to look for known users."""

    source: str
    period: str
    bucket: int
    blocks: tuple[Block, ...]
    known: tuple[Block, ...] = ()


@dataclass(frozen=True, kw_only=True)
class IdentitiesUnit:
    """A bucket's identities, of every source and period that this ingest brings."""

    bucket: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class RejectedUnit:
    """The rejected rows of one source and period, with the files that could not be read."""

    source: str
    period: str
    files: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]  # file name, reason


Unit = RowsUnit | IdentitiesUnit | RejectedUnit


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A final file, not yet published, and the rows that fell away as it was made."""

    table: str
    part: Part
    file: DataFile
    duplicates: int = 0
    unknown: int = 0
    first: tuple[str, int] | None = None  # the first label of an unknown user: file name, row


@dataclass(frozen=True)
class Earlier:
    """What earlier ingests published that this one leaves alone."""

    replaced: frozenset[Part]  # published anew by this ingest
    user_sources: frozenset[str]  # whose users are known users: events and users

    def identities(self, lake: Lake, bucket: int) -> pl.DataFrame:
        """The identities of a bucket that stay."""
        found = lake.read_if(IDENTITIES.name, {}, bucket)
        if found is None:
            return empty(IDENTITIES)
        gone = pl.DataFrame(
            list(self.replaced), schema={"source": pl.String, "period": pl.String}, orient="row"
        )
        return found.join(gone, on=["source", "period"], how="anti")


def inspect(plan: Plan, file: SourceFile) -> Inspected:
    """Hash a file and check its columns against the source's mapping. Raises UserError."""
    digest = ""
    try:
        size, digest = digest_of(file.path)
        schema = schema_of(file)
        if schema is not None:
            _resolve(plan.sources[file.source], file, schema)
        parts = tuple(slices(file))
        rows = rows_about(file, size, parts)
        return Inspected(file=file, sha256=digest, rows=rows, slices=parts)
    except (UnreadableError, OSError) as error:
        return Inspected(file=file, sha256=digest, unreadable=f"unreadable: {error}")


def stage(plan: Plan, part: Slice) -> list[Staged]:
    """Clean a slice batch by batch; what is left is on disk. Raises UserError."""
    file, source = part.file, plan.sources[part.file.source]
    schema = schema_of(file)
    mapped = None if schema is None else _resolve(source, file, schema)
    seen: dict[str, None] = {}
    staged = []
    try:
        for at, batch in enumerate(batches(part, _needed(plan, file, mapped))):
            seen |= dict.fromkeys(batch.rows.columns)
            if mapped is None:
                mapped = _resolve(source, file, open_schema(source, seen))
            staged.append(_stage_batch(plan, part, at, batch, mapped))
    except UnreadableError as error:
        return [Staged(file=file, unreadable=f"unreadable: {error}")]
    if mapped is not None and seen:
        check_seen(mapped, seen)
    return staged


def merge(plan: Plan, earlier: Earlier, unit: Unit) -> list[Merged]:
    """Make the final files of a unit. Raises UserError when two users share a key."""
    if isinstance(unit, RowsUnit):
        return _merge_rows(plan, earlier, unit)
    if isinstance(unit, IdentitiesUnit):
        return _merge_identities(plan, earlier, unit)
    return [_merge_rejected(plan, unit)]


def _resolve(
    source: Source, file: SourceFile, schema: Mapping[str, pl.DataType]
) -> tuple[Mapped, ...]:
    return resolve(source, schema, file.path, untyped=file.format != "parquet")


def _needed(plan: Plan, file: SourceFile, mapped: tuple[Mapped, ...] | None) -> list[str] | None:
    """The columns to read; None (all) where an event's id is a hash of its whole row."""
    events = plan.sources[file.source].table == "events"
    names = [column.name for column in mapped or ()]
    if mapped is None or (events and "event_id" not in names):
        return None
    return list(dict.fromkeys(root for column in mapped for root in column.roots))


def _stage_batch(
    plan: Plan, part: Slice, at: int, batch: Batch, mapped: tuple[Mapped, ...]
) -> Staged:
    file = part.file
    table = plan.table_of(file.source)
    roots = dict.fromkeys(root for column in mapped for root in column.roots)
    height = batch.rows.height
    absent = [
        pl.repeat(None, height, dtype=pl.String, eager=True).alias(root)
        for root in roots
        if root not in batch.rows.columns
    ]
    cleaner = Cleaner(
        name=file.source,
        source=plan.sources[file.source],
        table=table,
        buckets=plan.buckets,
        secret=plan.secret,
        now=plan.now,
        erased=plan.erased,
    )
    cleaned = cleaner.clean(
        batch.rows.with_columns(absent), batch.numbers, mapped, file=file.name, period=file.period
    )
    bad = pl.DataFrame(batch.bad, schema={"row": pl.Int64, "reason": pl.String}, orient="row")
    rejected = pl.concat([cleaned.rejected, _rejected(bad, file)]).sort("row")
    name = hashlib.sha256(file.name.encode()).hexdigest()[:16]
    faults = rejected.filter(pl.col("reason") != ERASED)
    stem = f"{plan.folder}/{file.source}/{file.period}/{name}-{part.first_row}-{at}"
    return Staged(
        file=file,
        rows_in=batch.rows.height + bad.height,
        duplicates=cleaned.duplicates,
        reasons=Counter(rejected["reason"].to_list()),
        first=faults.select("row", "reason").row(0) if faults.height else None,
        rows=write_blocks(cleaned.accepted.drop("source", "period"), f"{stem}.rows"),
        identities=write_blocks(cleaned.identities, f"{stem}.identities"),
        rejected=write_file(rejected, REJECTED, f"{stem}.parquet") if rejected.height else None,
    )


def _rejected(rows: pl.DataFrame, file: SourceFile) -> pl.DataFrame:
    """Rejected rows of a file from (row, reason)."""
    named = rows.with_columns(source=pl.lit(file.source), period=pl.lit(file.period))
    return conform(named.with_columns(file=pl.lit(file.name)), REJECTED)


def _merge_rows(plan: Plan, earlier: Earlier, unit: RowsUnit) -> list[Merged]:
    table, part = plan.table_of(unit.source), (unit.source, unit.period)
    lake, rows, merged = Lake(plan.folder), read_blocks(unit.blocks), list[Merged]()
    partition = {"source": unit.source, "period": unit.period}
    if table.name == "labels":
        stays = earlier.identities(plan.lake, unit.bucket)
        stays = stays.filter(pl.col("source").is_in(list(earlier.user_sources)))
        keys = stays["user_key"]
        if unit.known:
            keys = pl.concat([keys, read_blocks(unit.known, ["user_key"])["user_key"]])
        is_known = pl.col("user_key").is_in(keys.unique().implode())
        unknown = rows.filter(~is_known).with_columns(reason=pl.lit(UNKNOWN_USER))
        unknown = conform(unknown, REJECTED).sort(REJECTED.sort)
        rows = rows.filter(is_known)
        if unknown.height:
            first = unknown.select("file", "row").row(0)
            merged.append(
                Merged(
                    table=REJECTED.name,
                    part=part,
                    file=lake.write_part(REJECTED, unknown, partition),
                    unknown=unknown.height,
                    first=first,
                )
            )
    kept, duplicates = dedupe(conform(rows, table), table)
    if kept.height:
        partition["bucket"] = str(unit.bucket)
        file = lake.write_part(table, kept.sort(table.sort), partition)
        merged.append(Merged(table=table.name, part=part, file=file, duplicates=duplicates))
    return merged


def _merge_identities(plan: Plan, earlier: Earlier, unit: IdentitiesUnit) -> list[Merged]:
    rows = conform(read_blocks(unit.blocks).unique(), IDENTITIES)
    check_identities(pl.concat([rows, earlier.identities(plan.lake, unit.bucket)]))
    merged = []
    for (source, period), part in rows.partition_by("source", "period", as_dict=True).items():
        partition = {"source": source, "period": period, "bucket": unit.bucket}
        file = Lake(plan.folder).write_part(IDENTITIES, part.sort(IDENTITIES.sort), partition)
        merged.append(Merged(table=IDENTITIES.name, part=(str(source), str(period)), file=file))
    return merged


def _merge_rejected(plan: Plan, unit: RejectedUnit) -> Merged:
    frames = [read_file(path) for path in unit.files]
    schema = {"file": pl.String, "reason": pl.String}
    broken = pl.DataFrame(unit.unreadable, schema=schema, orient="row")
    named = broken.with_columns(source=pl.lit(unit.source), period=pl.lit(unit.period))
    rows = pl.concat([*frames, conform(named, REJECTED)]).sort(REJECTED.sort)
    partition = {"source": unit.source, "period": unit.period}
    file = Lake(plan.folder).write_part(REJECTED, rows, partition)
    return Merged(table=REJECTED.name, part=(unit.source, unit.period), file=file)
