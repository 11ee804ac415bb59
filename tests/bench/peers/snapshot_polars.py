"""The windows in Polars, in one process with two threads, an as-of time after the other."""

from datetime import timedelta
from pathlib import Path

import polars as pl

from tests.bench.peers.steps import main
from tests.bench.peers.windows import AS_OFS, CHECKED, LONG_D, SHORT_S, TYPES, events_of


def snapshot(_: None, source: Path, out: Path, buckets: int) -> dict[str, int]:
    """The rows, and sums of some columns."""
    events = pl.scan_parquet(f"{events_of(source)}/**/*.parquet")
    files = []
    for as_of in AS_OFS:
        files.append(out / f"{as_of:%Y-%m-%d}.parquet")
        known = events.filter(pl.col("event_time").dt.replace_time_zone(None) < as_of)
        known.group_by("user_key").agg(_windows(as_of)).sink_parquet(
            files[-1], compression="zstd", mkdir=True
        )
    made = pl.scan_parquet(files)
    row = made.select(pl.len().alias("rows"), *(pl.col(c).sum() for c in CHECKED)).collect()
    return {name: round(value) for name, value in row.row(0, named=True).items()}


def _windows(as_of: object) -> list[pl.Expr]:
    time = pl.col("event_time").dt.replace_time_zone(None)
    age = pl.lit(as_of) - time
    days = (pl.lit(as_of).dt.date() - time.dt.date()).dt.total_days()
    amount = pl.col("amount").fill_null(0).cast(pl.Float64)
    night = time.dt.offset_by("8h").dt.hour() < 6
    made = [pl.len().alias("n_lifetime"), (pl.lit(as_of) - time.min()).alias("tenure")]
    made += [(pl.lit(as_of) - time.max()).alias("recency")]
    made += [amount.filter(amount > 0).median().alias("amount_median")]
    dealt = pl.col("counterparty_key").filter(age < timedelta(days=30)).drop_nulls()
    made += [dealt.n_unique().alias("counterparties_30d")]
    for name, seconds in SHORT_S.items():
        inside = age <= timedelta(seconds=seconds)
        made += [inside.sum().alias(f"n_{name}"), amount.filter(inside).sum().alias(f"sum_{name}")]
        made += [amount.filter(inside).max().alias(f"max_{name}")]
    for name, length in LONG_D.items():
        inside = days <= length
        categories = pl.col("category").filter(inside).drop_nulls().n_unique()
        made += [inside.sum().alias(f"n_{name}"), amount.filter(inside).sum().alias(f"sum_{name}")]
        made += [amount.filter(inside).max().alias(f"max_{name}")]
        made += [night.filter(inside).mean().alias(f"night_{name}")]
        made += [categories.alias(f"categories_{name}")]
        for kind in TYPES:
            own = inside & (pl.col("event_type") == kind)
            made += [own.sum().alias(f"n_{kind}_{name}")]
            made += [amount.filter(own).sum().alias(f"sum_{kind}_{name}")]
    for kind in TYPES:
        newest = time.filter(pl.col("event_type") == kind).max()
        made += [(pl.lit(as_of) - newest).alias(f"recency_{kind}")]
    return made


def start() -> None:
    """Nothing to start."""


if __name__ == "__main__":
    main(start, snapshot)
