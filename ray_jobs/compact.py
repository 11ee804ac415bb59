"""`compact`: a table's small files → one sorted file a partition, the same rows; on request the
files and the history that nothing needs any more are deleted.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import polars as pl
import pyarrow as pa
from rich.table import Table as Shown

from models.data.schema import (
    EDGES,
    EVENTS,
    IDENTITIES,
    LABELS,
    REJECTED,
    UserError,
    protected_table,
    users_table,
)
from ray_jobs.baselines import BASELINES
from ray_jobs.commits import COMPACTED
from ray_jobs.lake import Lake
from ray_jobs.parallel import over
from ray_jobs.progress import say
from ray_jobs.runs import RUNS
from ray_jobs.storage import STAGING_KEPT, DataFile
from ray_jobs.tombstones import TOMBSTONES
from ray_jobs.vacuum import Freed, remove_dead_staging, vacuum, versions_needed

File = dict[str, Any]  # as `Lake.files` gives it
MOST_BYTES = 128 << 20  # of the files merged into one where a partition is not one user bucket


@dataclass(frozen=True)
class Unit:
    """Files of one partition that are to become one."""

    table: str
    sort: tuple[str, ...]
    files: tuple[File, ...]


@dataclass(frozen=True)
class Compacted:
    """What became of a table."""

    table: str
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    freed: Freed


def sorts() -> dict[str, tuple[str, ...]]:
    """The tables whose files may be merged, and the order of their rows."""
    from ray_jobs.backfill import scores_table  # these need torch, the tasks of this job do not
    from ray_jobs.graph import graph_table
    from ray_jobs.registry import MODELS

    dynamic = (users_table((), ()), protected_table(()), graph_table(()))
    fixed = (EVENTS, EDGES, LABELS, IDENTITIES, REJECTED, BASELINES, MODELS, RUNS, TOMBSTONES)
    return {t.name: t.sort for t in (*fixed, *dynamic, scores_table(pa.schema([])))}


def compact(
    lake: Lake, vacuum_days: int | None = None, *, most_bytes: int = MOST_BYTES
) -> list[Compacted]:
    """Compact every table of the lake; what became of each. Ray must be running.

    A table is committed once for all its partitions, and only while the files that were merged
    are still those of the table. With `vacuum_days`, data files and history that are older and
    needed neither by the jobs nor by a run of the last so many days are deleted; by default only
    the staging folders of killed ingests are, once a day old.

    No row of `runs` is entered: nothing was read or left behind that replay would need, and the
    row would itself be the next small file. The jobs go on reading the versions that the last
    ingest or erasure named. They hold the same rows as the compacted ones, so snapshots and
    scores that are known by those versions stay known; the next ingest names the compacted
    versions. Vacuum keeps both.

    Raises UserError for a negative number of days and where there is no lake.
    """
    if vacuum_days is not None and vacuum_days < 0:
        raise UserError(f"--vacuum-days {vacuum_days}: 0 or more days")
    tables = sorted({*lake.versions(), *([RUNS.name] if lake.exists(RUNS.name) else [])})
    if not tables:
        raise UserError(f"nothing in lake {lake.root} yet: run `raycredit ingest` first")
    before = {table: lake.files(table) for table in tables}
    known = sorts()
    units = [
        Unit(table, known[table], files)
        for table in tables
        if table in known
        for files in groups_of(before[table], most_bytes)
    ]
    merged = over(units, partial(_merge, lake), "compact")
    for table in tables:
        made = [(u, f) for u, f in zip(units, merged, strict=True) if u.table == table]
        gone = [file["path"] for unit, _ in made for file in unit.files]
        files = [file for _, file in made]
        done = {COMPACTED: len(gone)}
        if not lake.rewrite(table, app=f"compact/{table}", gone=gone, files=files, metadata=done):
            say(f"compact: {table} was replaced meanwhile by another job, and left as it is")
    now = datetime.now(UTC)
    freed = _freed(lake, tables, vacuum_days, now)
    return [_compacted(t, before[t], lake.files(t), freed.get(t, Freed())) for t in tables]


def groups_of(files: Sequence[File], most_bytes: int) -> list[tuple[File, ...]]:
    """The files to merge, partition by partition.

    The files of a user bucket become one, so that its rows stand in one order; elsewhere, such as
    all scores of a date, as many as together have `most_bytes`. Where one file stands alone it is
    left as it is.
    """
    partitions: dict[tuple[tuple[str, Any], ...], list[list[File]]] = defaultdict(list)
    for file in files:
        partition = file["partition"]
        groups = partitions[tuple(partition.items())]
        full = groups and sum(f["bytes"] for f in groups[-1]) + file["bytes"] > most_bytes
        if not groups or (full and "bucket" not in partition):
            groups.append([])
        groups[-1].append(file)
    return [tuple(group) for groups in partitions.values() for group in groups if len(group) > 1]


def _merge(lake: Lake, unit: Unit) -> DataFile:
    """Write the unit's rows as one file, sorted; not yet published."""
    table = lake.table(unit.table, unit.sort)
    rows = pl.concat([lake.rows(table, file) for file in unit.files])
    partition = unit.files[0]["partition"]
    file = lake.write_part(table, rows.sort(table.sort, maintain_order=True), partition)
    assert file.rows == sum(f["num_records"] for f in unit.files)
    return file


def _freed(
    lake: Lake, tables: Sequence[str], vacuum_days: int | None, now: datetime
) -> dict[str, Freed]:
    """Delete what nothing needs; of each table, what went."""
    kept = STAGING_KEPT
    freed: dict[str, Freed] = {}
    if vacuum_days is not None:
        since = now - timedelta(days=vacuum_days)
        kept = min(kept, now - since)
        needed = versions_needed(lake, since)
        freed = {table: vacuum(lake, table, needed.get(table, ()), since) for table in tables}
    dead = remove_dead_staging(lake, now, kept)
    if dead:
        say(f"compact: {dead} staging folders of killed ingests removed")
    return freed


def _compacted(table: str, before: list[File], after: list[File], freed: Freed) -> Compacted:
    return Compacted(
        table,
        len(before),
        len(after),
        sum(file["bytes"] for file in before),
        sum(file["bytes"] for file in after),
        freed,
    )


def shown(account: Sequence[Compacted]) -> Shown:
    """The account for a terminal, a line a table."""
    table = Shown(title="compact")
    table.add_column("table")
    for heading in ("files before", "after", "bytes before", "after", "deleted", "its bytes"):
        table.add_column(heading, justify="right")
    for row in account:
        figures = (
            row.files_before,
            row.files_after,
            row.bytes_before,
            row.bytes_after,
            row.freed.files + row.freed.log_files,
            row.freed.bytes,
        )
        table.add_row(row.table, *(f"{figure:,}" for figure in figures))
    return table
