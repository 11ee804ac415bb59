"""How many buckets of users a lake has. One that grew gets more: its files are split in place."""

from functools import partial
from typing import Any

import polars as pl

from models.data.buckets import bucket_of, count_for
from models.data.schema import UserError
from ray_jobs.commits import SPLIT
from ray_jobs.lake import Lake
from ray_jobs.parallel import over
from ray_jobs.progress import say
from ray_jobs.storage import DataFile

File = dict[str, Any]  # as `Lake.files` gives it


def buckets_of(lake: Lake, wanted: int | None, rows: int) -> int:
    """How many buckets a lake is to have: as many as `wanted`, by default as `rows` of input need.

    Raises UserError when fewer are wanted than there are.
    """
    state = lake.state()
    there = 1 if state is None else int(state["config"]["buckets"])
    if wanted is None:
        return max(there, count_for(rows))
    if wanted < there:
        raise UserError(f"buckets: lake {lake.root} has {there}, which can only be doubled")
    return wanted


def split(lake: Lake, count: int) -> None:
    """Split the files of every table that are coarser than `count` buckets, a commit a table.

    The rows and their order stay; a file of each bucket that has rows takes the place of the
    coarse one. What was left over by a run that was cut off is split by the next. Ray must be
    running.
    """
    units = [
        (table, file)
        for table in lake.versions()
        for file in lake.files(table)
        if file["partition"].get("bucket", count) < count
    ]
    if not units:
        return
    made = over(units, partial(_split, lake, count), "split buckets")
    for table in dict.fromkeys(table for table, _ in units):
        mine = [(f, new) for (name, f), new in zip(units, made, strict=True) if name == table]
        gone, files = [f["path"] for f, _ in mine], [one for _, new in mine for one in new]
        note = {SPLIT: len(gone)}
        if not lake.rewrite(table, app=f"split/{table}", gone=gone, files=files, metadata=note):
            say(f"ingest: {table} was replaced meanwhile by another job; not split into {count}")


def _split(lake: Lake, count: int, unit: tuple[str, File]) -> list[DataFile]:
    """Write the rows of a file bucket by bucket; not yet published."""
    name, file = unit
    table = lake.table(name)
    rows = lake.rows(table, file)
    placed = rows.with_columns(bucket_of(pl.col("user_key"), count).alias("bucket"))
    parts = placed.partition_by("bucket", maintain_order=True, as_dict=True)
    files = [
        lake.write_part(table, part, {**file["partition"], "bucket": bucket})
        for (bucket,), part in parts.items()
    ]
    assert sum(one.rows for one in files) == file["num_records"]
    return files
