"""Dated graph snapshots in the lake: one row a tied user and month, published once a month."""

from datetime import datetime

import polars as pl
import pyarrow as pa

from models.data.graph import graph_snapshot, social_columns
from models.data.schema import TIMESTAMP, Table, bucket_of
from ray_jobs.config import Config
from ray_jobs.tables import Tables


def relations(tables: Tables) -> tuple[str, ...]:
    """The kinds of tie that the lake knows, in alphabetical order."""
    edges = tables.read("edges", columns=["relation"])
    return () if edges is None else tuple(sorted(edges["relation"].unique().to_list()))


def graph_table(kinds: tuple[str, ...]) -> Table:
    """The `graph` table: what a user's ties said at the end of a month."""
    measures = [(name, pa.float64()) for name in social_columns(kinds)]
    origin = [("graph_month", pa.string()), ("bucket", pa.int32())]
    return Table(
        name="graph",
        schema=pa.schema([("user_key", pa.int64()), ("graph_date", TIMESTAMP), *measures, *origin]),
        key=("user_key", "graph_date"),
        sort=("user_key", "graph_date"),
        required=(),
    )


def publish(config: Config, tables: Tables, dates: list[datetime]) -> None:
    """Publish the snapshots of these dates, unless they are there for this state of the lake."""
    kinds = relations(tables)
    if not kinds:
        return
    table, lake = graph_table(kinds), tables.lake
    edges, outcomes = tables.read("edges"), _outcomes(tables.read("labels"), config.roles.pd)
    assert edges is not None
    for date in dates:
        month = {"graph_month": f"{date:%Y-%m-%d}"}
        frame = graph_snapshot(edges, outcomes, date, kinds).with_columns(
            bucket=bucket_of(pl.col("user_key"), config.buckets)
        )
        files = [
            lake.write_part(table, part.drop("bucket"), {**month, "bucket": bucket})
            for (bucket,), part in frame.group_by("bucket", maintain_order=True)
        ]
        lake.replace(table, app=f"graph/{date:%Y-%m-%d}", files=files, where=month)


def _outcomes(labels: pl.DataFrame | None, task: str) -> pl.DataFrame:
    """(user_key, value, matured_at) of the default task; nothing where it has no label rows."""
    if labels is None:
        time = pl.Datetime("us", "UTC")
        return pl.DataFrame(schema={"user_key": pl.Int64, "value": pl.Float64, "matured_at": time})
    return labels.filter(pl.col("task") == task).select("user_key", "value", "matured_at")
