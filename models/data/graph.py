"""A dated snapshot of the social graph: what a user's ties say, relation by relation.

Edges are bipartite (a user, and a device, address, referral code or another user). Users who share
a node are tied; the graph is never projected to pairs: each node is summed up once, and a user
receives the node's sums less their own part. That takes three steps, each over a part of the graph:
`members` of a part of the users, `node_sums` of a part of the nodes, `user_measures` of a part of
the users again. `graph_snapshot` is the three over all of it.

A node of more than `cap` users is a hub. How many users it has stays exact; the outcomes there are
counted among `cap` of them and scaled up. Who is counted is drawn by a hash of node and user, so
that it is the same in any order, from any number of parts, and from one month to the next.
"""

from datetime import datetime

import polars as pl

from models.data.keys import row_hash

MEASURES = ("nodes", "shared", "max_shared", "known", "bad")
TIE = ("user_key", "dst", "dst_kind", "relation", "valid_from", "valid_to", "available_at")
NODE = ("relation", "low", "high")
MAX_TIES = 10_000  # the standard error of a share of 10 % is then 0.3 %


def social_columns(relations: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of a graph snapshot, in order."""
    return tuple(f"{relation}_{measure}" for relation in relations for measure in MEASURES)


def graph_snapshot(
    edges: pl.DataFrame,
    outcomes: pl.DataFrame,
    date: datetime,
    relations: tuple[str, ...],
    cap: int = MAX_TIES,
) -> pl.DataFrame:
    """One row a tied user: (user_key, graph_date, `<relation>_<measure>` float64 …).

    `edges`: the canonical table. `outcomes`: (user_key, value, matured_at) of one binary task.
    Only ties valid and available at `date`, and outcomes that had matured by then, count.
    Measures: nodes tied to; other users there in all and at the busiest node; of these, users
    with a known outcome and with a bad one (each user counted once a node; at a hub estimated, to
    the nearest whole user).
    """
    tied = members(pl.concat([edges.select(TIE), other_ends(edges)]), outcomes, date)
    return user_measures(tied, node_sums(partial_sums(tied, cap), cap), date, relations)


def other_ends(edges: pl.DataFrame) -> pl.DataFrame:
    """The ties to users as those users have them: `user_key` and `dst` change places."""
    to_users = edges.select(TIE).filter(pl.col("dst_kind") == "user")
    return to_users.with_columns(user_key=pl.col("dst"), dst=pl.col("user_key"))


def members(edges: pl.DataFrame, outcomes: pl.DataFrame, date: datetime) -> pl.DataFrame:
    """(user_key, relation, low, high, known, bad, draw): each user at each of their nodes, once.

    `edges`: all ties of some users, the `other_ends` among them; `outcomes`: of these users. A tie
    to another user is a node of the two of them, (low, high); of any other node both are `dst`.
    `draw`: int64, another one for each user of a node; the lowest are counted at a hub.
    """
    ties = edges.lazy().filter(
        pl.col("valid_from") < date,
        pl.col("available_at") <= date,
        pl.col("valid_to").is_null() | (pl.col("valid_to") > date),
    )
    to_user = pl.col("dst_kind") == "user"
    ends = ("user_key", "dst")
    distinct = ties.select(
        "user_key",
        "relation",
        low=pl.when(to_user).then(pl.min_horizontal(ends)).otherwise("dst"),
        high=pl.when(to_user).then(pl.max_horizontal(ends)).otherwise("dst"),
    ).unique()
    nodes = distinct.collect()
    matured = (
        outcomes.filter(pl.col("matured_at") <= date)
        .group_by("user_key")
        .agg(known=pl.lit(True), bad=pl.col("value").max() > 0)
    )
    draw = row_hash(nodes.select("user_key", *NODE), "ties").alias("draw")
    return (
        nodes.with_columns(draw)
        .join(matured, on="user_key", how="left")
        .with_columns(pl.col("known", "bad").fill_null(False))
    )


def partial_sums(tied: pl.DataFrame, cap: int) -> pl.DataFrame:
    """(relation, low, high, draw, known, bad, users): what the nodes need to know of members.

    One row a member, at most `cap` a node; `users` says for how many members a row stands.
    """
    users = pl.lit(1, dtype=pl.Int64).alias("users")
    return _lowest(tied.select(*NODE, "draw", "known", "bad", users), cap)


def node_sums(parts: pl.DataFrame, cap: int) -> pl.DataFrame:
    """(relation, low, high, users, counted, node_known, node_bad, last): one row a node.

    `parts`: the `partial_sums` of all members of these nodes. `users`: all of them, `counted`:
    those whose outcomes are in `node_known` and `node_bad`, drawn up to `last`; at a hub fewer.
    """
    return (
        _lowest(parts, cap)
        .group_by(NODE)
        .agg(
            pl.col("users").sum(),
            counted=pl.len().cast(pl.Int64),
            node_known=pl.col("known").sum().cast(pl.Int64),
            node_bad=pl.col("bad").sum().cast(pl.Int64),
            last=pl.col("draw").max(),
        )
    )


def hub_account(sums: pl.DataFrame) -> dict[str, int]:
    """How many of these nodes are hubs, and how many ties to them were not counted."""
    left_out = (sums["users"] - sums["counted"]).to_numpy()
    return {"hubs": int((left_out > 0).sum()), "ties_left_out": int(left_out.sum())}


def user_measures(
    tied: pl.DataFrame, sums: pl.DataFrame, date: datetime, relations: tuple[str, ...]
) -> pl.DataFrame:
    """The rows of `graph_snapshot` for the users of `members`, from the sums of all their nodes."""
    counted = (pl.col("draw") <= pl.col("last")).cast(pl.Int64)
    others = (
        tied.lazy()
        .join(sums.lazy(), on=NODE)
        .select(
            "user_key",
            "relation",
            users=pl.col("users") - 1,
            counted=pl.col("counted") - counted,
            known=pl.col("node_known") - counted * pl.col("known"),
            bad=pl.col("node_bad") - counted * pl.col("bad"),
        )
    )
    scale = [
        # whole users: their sums are exact in any order
        (pl.col(outcome) * pl.col("users") / pl.col("counted")).fill_nan(0.0).round().alias(outcome)
        for outcome in ("known", "bad")
    ]
    measured = others.with_columns(scale).drop("counted").collect()
    result = tied.select("user_key").unique().sort("user_key")
    for relation in relations:
        own = (
            measured.filter(pl.col("relation") == relation)
            .group_by("user_key")
            .agg(
                pl.len().cast(pl.Float64).alias(f"{relation}_nodes"),
                pl.col("users").sum().cast(pl.Float64).alias(f"{relation}_shared"),
                pl.col("users").max().cast(pl.Float64).alias(f"{relation}_max_shared"),
                pl.col("known").sum().alias(f"{relation}_known"),
                pl.col("bad").sum().alias(f"{relation}_bad"),
            )
        )
        result = result.join(own, on="user_key", how="left", maintain_order="left")
    stamped = pl.lit(date).cast(pl.Datetime("us", "UTC")).alias("graph_date")
    return result.select("user_key", stamped, pl.exclude("user_key").fill_null(0.0))


def _lowest(parts: pl.DataFrame, cap: int) -> pl.DataFrame:
    """At most `cap` rows a node: those drawn lowest, the first of them standing for the users of
    the rows that are left out as well."""
    sizes = parts.group_by(NODE).agg(pl.len(), total=pl.col("users").sum())
    large = sizes.filter(pl.col("len") > cap).drop("len")
    if large.is_empty():
        return parts
    kept = (
        parts.join(large, on=NODE)
        .sort("draw")
        .group_by(NODE, maintain_order=True)
        .head(cap)
        .with_columns(
            users=pl.when(pl.col("draw") == pl.col("draw").min().over(NODE))
            .then(pl.col("users") + pl.col("total") - pl.col("users").sum().over(NODE))
            .otherwise("users")
        )
    )
    return pl.concat([parts.join(large, on=NODE, how="anti"), kept.select(parts.columns)])
