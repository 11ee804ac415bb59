"""A dated snapshot of the social graph: what a user's ties say, relation by relation.

Edges are bipartite (a user, and a device, address, referral code or another user). Users who share
a node are tied; the graph is never projected to pairs: each node is summed up once, and a user
receives the node's sums less their own part.
"""

from datetime import datetime

import polars as pl

MEASURES = ("nodes", "shared", "max_shared", "known", "bad")


def social_columns(relations: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of a graph snapshot, in order."""
    return tuple(f"{relation}_{measure}" for relation in relations for measure in MEASURES)


def graph_snapshot(
    edges: pl.DataFrame, outcomes: pl.DataFrame, date: datetime, relations: tuple[str, ...]
) -> pl.DataFrame:
    """One row a tied user: (user_key, graph_date, `<relation>_<measure>` float64 …).

    `edges`: the canonical table. `outcomes`: (user_key, value, matured_at) of one binary task.
    Only ties valid and available at `date`, and outcomes that had matured by then, count.
    Measures: nodes tied to; other users there in all and at the busiest node; of these, users
    with a known outcome and with a bad one (each user counted once a node).
    """
    ties = edges.filter(
        pl.col("valid_from") < date,
        pl.col("available_at") <= date,
        pl.col("valid_to").is_null() | (pl.col("valid_to") > date),
    ).select("user_key", "dst", "dst_kind", "relation")
    ties = _both_ways(ties).unique()
    known = (
        outcomes.filter(pl.col("matured_at") <= date)
        .group_by("user_key")
        .agg(known=pl.lit(1.0), bad=(pl.col("value").max() > 0).cast(pl.Float64))
    )
    members = ties.join(known, on="user_key", how="left").with_columns(
        pl.col("known", "bad").fill_null(0.0)
    )
    node = ["relation", "node"]
    sums = members.group_by(node).agg(
        users=pl.len().cast(pl.Float64),
        node_known=pl.col("known").sum(),
        node_bad=pl.col("bad").sum(),
    )
    others = members.join(sums, on=node).with_columns(
        users=pl.col("users") - 1,
        known=pl.col("node_known") - pl.col("known"),
        bad=pl.col("node_bad") - pl.col("bad"),
    )
    result = ties.select("user_key").unique().sort("user_key")
    for relation in relations:
        own = (
            others.filter(pl.col("relation") == relation)
            .group_by("user_key")
            .agg(
                pl.len().cast(pl.Float64).alias(f"{relation}_nodes"),
                pl.col("users").sum().alias(f"{relation}_shared"),
                pl.col("users").max().alias(f"{relation}_max_shared"),
                pl.col("known").sum().alias(f"{relation}_known"),
                pl.col("bad").sum().alias(f"{relation}_bad"),
            )
        )
        result = result.join(own, on="user_key", how="left", maintain_order="left")
    stamped = pl.lit(date).cast(pl.Datetime("us", "UTC")).alias("graph_date")
    return result.select("user_key", stamped, pl.exclude("user_key").fill_null(0.0))


def _both_ways(ties: pl.DataFrame) -> pl.DataFrame:
    """(user_key, relation, node): a tie to another user becomes a node of the two of them."""
    to_user = ties.filter(pl.col("dst_kind") == "user").select(
        "relation",
        low=pl.min_horizontal("user_key", "dst"),
        high=pl.max_horizontal("user_key", "dst"),
    )
    pair = pl.struct("low", "high").alias("pair")
    ends = [
        to_user.select(pl.col(end).alias("user_key"), "relation", pair) for end in ("low", "high")
    ]
    single = pl.struct(low=pl.col("dst"), high=pl.col("dst")).alias("pair")
    shared = ties.filter(pl.col("dst_kind") != "user").select("user_key", "relation", single)
    return pl.concat([shared, *ends]).rename({"pair": "node"})
