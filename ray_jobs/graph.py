"""Dated graph snapshots in the lake: one row a tied user and month, published once a month.

The one real exchange. Users and nodes lie in buckets of their own, and what they have to tell each
other changes hands through storage:

0. `_Turn`, a bucket of users: ties to other users → the buckets of those users.
1. `_Members`, a bucket of users: each month, who is at which node, with their outcome → the
   buckets of the nodes.
2. `_Sums`, a month and bucket of nodes: the sums of each node → the buckets of its users.
3. `_Measures`, a bucket of users: each month, their measures → a file of the table.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from models.data.buckets import bucket_of
from models.data.graph import (
    NODE,
    TIE,
    hub_account,
    members,
    node_sums,
    other_ends,
    partial_sums,
    social_columns,
    user_measures,
)
from models.data.keys import row_hash
from models.data.schema import TIMESTAMP, Table, UserError
from models.data.tasks import Split
from ray_jobs.exchange import Block, exchange_folder, read_blocks, write_blocks
from ray_jobs.lake import Lake
from ray_jobs.parallel import over, total
from ray_jobs.progress import say
from ray_jobs.storage import DataFile
from ray_jobs.tables import Neighbours, Tables

if TYPE_CHECKING:  # the tasks need no network, whose libraries take as much memory as their rows
    from models.scoring.artifact import ModelSpec
    from ray_jobs.config import Config

Blocks = tuple[Block, ...]

_MOST_BLOCKS = 1 << 20  # that the driver keeps track of: buckets² a month


def graph_table(kinds: tuple[str, ...]) -> Table:
    """The `graph` table: what a user's ties said at the end of a month."""
    measures = [(name, pa.float64()) for name in social_columns(kinds)]
    origin = [("graph_month", pa.string()), ("neighbours", pa.string()), ("bucket", pa.int32())]
    return Table(
        name="graph",
        schema=pa.schema([("user_key", pa.int64()), ("graph_date", TIMESTAMP), *measures, *origin]),
        key=("user_key", "graph_date"),
        sort=("user_key", "graph_date"),
        required=(),
    )


def neighbours_of(model: "Config | ModelSpec") -> Neighbours:
    """Whose outcomes a model is told, be it trained or only configured."""
    return Neighbours(model.roles.pd, model.features.max_ties_of_a_node)


def check(lake: Lake) -> None:
    """Raise UserError for a table that does not say whose outcomes it tells."""
    if lake.exists("graph") and "neighbours" not in lake.table("graph").schema.names:
        raise UserError(
            f"table graph is of an earlier version: remove {lake.url('graph')}, and it is made anew"
        )


def publish(
    model: "Config | ModelSpec", tables: Tables, dates: Sequence[datetime]
) -> dict[str, int]:
    """Publish the snapshots of these dates for a model, unless they are there for this state of
    the lake.

    The account: `hubs` (nodes with more ties than are counted, each once a month) and
    `ties_left_out` of what was counted there. Raises UserError as `check` does.
    """
    account = {"hubs": 0, "ties_left_out": 0}
    if "edges" not in tables.versions:
        return account
    check(tables.lake)
    with exchange_folder(tables.lake.root) as folder:
        work = _Work(tables, folder, len(tables.buckets), neighbours_of(model))
        turned = over(tables.buckets, _Turn(work), "graph: other ends")
        kinds = tuple(sorted({kind for found, _ in turned for kind in found}))
        if not kinds:
            return account
        came = _received(tables.buckets, [blocks for _, blocks in turned])
        users = [_Users(bucket, _blocks(came, bucket)) for bucket in tables.buckets]
        at_once = max(1, _MOST_BLOCKS // len(tables.buckets) ** 2)
        for first in range(0, len(dates), at_once):
            some = dates[first : first + at_once]
            counts = _publish_some(work, graph_table(kinds), kinds, users, some)
            account = total([account, *counts])
    if account["hubs"]:
        say(f"graph: {account['hubs']:,} hubs, {account['ties_left_out']:,} ties left out")
    return account


def labelled_months(tables: Tables, split: Split) -> list[datetime]:
    """The month starts at or before the labelled times that have a role.

    Raises UserError where there are no labels.
    """
    if "labels" not in tables.versions:
        raise UserError(
            f"split.schedule is {split.schedule}, but no source maps to the labels table"
        )
    found = over(tables.buckets, partial(_months_of, tables, split), "graph: months")
    return sorted({month for months in found for month in months})


def _months_of(tables: Tables, split: Split, bucket: int) -> list[datetime]:
    labels = tables.read("labels", bucket, ["as_of", "period"])
    assert labels is not None
    inside = labels.filter(split.role_of(pl.col("as_of"), pl.col("period")).is_not_null())
    return inside["as_of"].dt.truncate("1mo").unique().to_list()


@dataclass(frozen=True)
class _Work:
    """What every task needs to know."""

    tables: Tables
    folder: str
    buckets: int
    neighbours: Neighbours


@dataclass(frozen=True)
class _Users:
    """A bucket of users, with the ties that other users have to them."""

    bucket: int
    came: Blocks

    def ties(self, work: _Work) -> pl.DataFrame:
        """All ties of these users, at any time."""
        edges = work.tables.read("edges", self.bucket, TIE)
        assert edges is not None
        return pl.concat([edges, read_blocks(self.came)]) if self.came else edges

    def outcomes(self, work: _Work) -> pl.DataFrame:
        """(user_key, value, matured_at) of the default task; nothing where it has no label rows."""
        columns = ("user_key", "value", "matured_at")
        labels = work.tables.labels(self.bucket)
        if labels is None:
            time = pl.Datetime("us", "UTC")
            types = (pl.Int64(), pl.Float64(), time)
            return pl.DataFrame(schema=dict(zip(columns, types, strict=True)))
        return labels.filter(pl.col("task") == work.neighbours.task).select(columns)


@dataclass(frozen=True)
class _Nodes:
    """A bucket of nodes in a month: what each bucket of users has to tell them."""

    month: int
    bucket: int
    told: tuple[tuple[int, Block], ...]


@dataclass(frozen=True)
class _Answers:
    """A bucket of users, with the sums of their nodes, month by month."""

    users: _Users
    sums: tuple[Blocks, ...]


@dataclass(frozen=True)
class _Turn:
    """The relations of a bucket, and its ties to other users by their buckets."""

    work: _Work

    def __call__(self, bucket: int) -> tuple[list[str], dict[int, Block]]:
        work, ties = self.work, _Users(bucket, ()).ties(self.work)
        turned = other_ends(ties).with_columns(bucket=bucket_of(pl.col("user_key"), work.buckets))
        blocks = write_blocks(turned, f"{work.folder}/ends-{bucket}")
        return ties["relation"].unique().to_list(), blocks


@dataclass(frozen=True)
class _Members:
    """What the users of a bucket have to tell their nodes, each month, by the nodes' buckets."""

    work: _Work
    dates: Sequence[datetime]

    def __call__(self, users: _Users) -> list[dict[int, Block]]:
        ties, outcomes = users.ties(self.work), users.outcomes(self.work)
        told = []
        for date in self.dates:
            tied = members(ties, outcomes, date)
            parts = partial_sums(tied, self.work.neighbours.cap)
            node = row_hash(parts.select(NODE), "node").alias("node")
            bucket = bucket_of(pl.col("node"), self.work.buckets).alias("bucket")
            placed = parts.with_columns(node).with_columns(bucket).drop("node")
            path = f"{self.work.folder}/members-{users.bucket}-{date:%Y-%m-%d}"
            told.append(write_blocks(placed, path))
        return told


@dataclass(frozen=True)
class _Sums:
    """The sums of the nodes of a bucket, by the buckets of their users, and the account."""

    work: _Work

    def __call__(self, nodes: _Nodes) -> tuple[dict[int, Block], dict[str, int]]:
        told = [read_blocks([b]).with_columns(bucket=pl.lit(user)) for user, b in nodes.told]
        parts = pl.concat(told)
        sums = node_sums(parts.drop("bucket"), self.work.neighbours.cap)
        asked = parts.select(*NODE, "bucket").unique()
        path = f"{self.work.folder}/sums-{nodes.bucket}-{nodes.month}"
        return write_blocks(asked.join(sums, on=NODE), path), hub_account(sums)


@dataclass(frozen=True)
class _Measures:
    """The files of a bucket of users, a month each; None where nobody is tied."""

    work: _Work
    dates: Sequence[datetime]
    table: Table
    kinds: tuple[str, ...]

    def __call__(self, answers: _Answers) -> list[DataFile | None]:
        users = answers.users
        ties, outcomes = users.ties(self.work), users.outcomes(self.work)
        files: list[DataFile | None] = []
        for date, blocks in zip(self.dates, answers.sums, strict=True):
            if not blocks:
                files.append(None)
                continue
            tied = members(ties, outcomes, date)
            frame = user_measures(tied, read_blocks(blocks), date, self.kinds)
            partition = {**self.work.neighbours.month(date), "bucket": users.bucket}
            files.append(self.work.tables.lake.write_part(self.table, frame, partition))
        return files


def _publish_some(
    work: _Work,
    table: Table,
    kinds: tuple[str, ...],
    users: Sequence[_Users],
    dates: Sequence[datetime],
) -> list[dict[str, int]]:
    """Publish some dates in one pass; the accounts of its parts."""
    months, senders = range(len(dates)), [one.bucket for one in users]
    told = over(users, _Members(work, dates), "graph: members")
    nodes = [
        _Nodes(month, bucket, tuple(blocks))
        for month in months
        for bucket, blocks in _received(senders, [one[month] for one in told]).items()
    ]
    summed = over(nodes, _Sums(work), "graph: nodes")
    sums = []
    for month in months:
        mine = [(n.bucket, b) for n, (b, _) in zip(nodes, summed, strict=True) if n.month == month]
        sums.append(_received([bucket for bucket, _ in mine], [blocks for _, blocks in mine]))
    answers = [_Answers(u, tuple(_blocks(month, u.bucket) for month in sums)) for u in users]
    written = over(answers, _Measures(work, dates, table, kinds), "graph: measures")
    for month, date in enumerate(dates):
        files = [one for files in written if (one := files[month]) is not None]
        lake, app, where = work.tables.lake, work.neighbours.app(date), work.neighbours.month(date)
        if files or lake.generation(table.name, app):
            lake.replace(table, app=app, files=files, where=where)
        else:  # nothing to replace, but from now on it is known that nobody had a tie
            lake.publish(table, app=app, generation=1, files=(), replace=where)
    return [counts for _, counts in summed]


Received = Mapping[int, Sequence[tuple[int, Block]]]


def _received(senders: Sequence[int], sent: Sequence[Mapping[int, Block]]) -> Received:
    """Receiving bucket → (sending bucket, block) …, from what each sender sent."""
    received: dict[int, list[tuple[int, Block]]] = defaultdict(list)
    for sender, blocks in zip(senders, sent, strict=True):
        for bucket, block in blocks.items():
            received[bucket].append((sender, block))
    return dict(sorted(received.items()))


def _blocks(received: Received, bucket: int) -> Blocks:
    return tuple(block for _, block in received.get(bucket, ()))
