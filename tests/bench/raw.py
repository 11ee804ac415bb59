"""Raw behaviour events of a made-up shop, quick to make at any size, to time the data plane on.

    <folder>/part-00000.parquet …   a million rows each, in order of local time, as a log is

Columns: user_id, type, item, category, counterparty, text (strings), event_id (int64), time (local,
microseconds), amount (float64). Some rows stand again in the next file, and some cannot be used;
`Shares` says how many.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

SEED = 7
ROWS_A_FILE = 1_000_000
ROWS_A_USER = 50
TIMEZONE = "Asia/Shanghai"
START, END = datetime(2024, 1, 1), datetime(2025, 1, 1)
NOW = datetime(2025, 2, 1)  # no row may be later
LATE = datetime(2031, 1, 1)
TYPES = ("view", "search", "cart", "buy", "pay", "pay_late", "refund", "login")
TYPE_SHARES = (0.5, 0.15, 0.1, 0.1, 0.08, 0.01, 0.02, 0.04)
CATEGORIES = tuple(f"category {k}" for k in range(40))
TEXTS = tuple(
    f"{subject} {verb} {end}".strip()
    for subject in ("The parcel", "My order", "This seller", "The refund", "Your courier")
    for verb in ("came late", "was fine", "never arrived", "is as described", "was sent back")
    for end in ("", "again", "write to li.wei@example.com", "call 138 1234 5678", "thank you")
)


@dataclass(frozen=True)
class Shares:
    """How many of the rows are special."""

    twice: float = 0.01
    no_user: float = 0.005
    infinite: float = 0.003
    in_future: float = 0.002
    with_text: float = 0.02


SHARES = Shares()


def write(folder: Path, rows: int) -> None:
    """Write `rows` rows, the same each time; files that are there are left."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in range(-(-rows // ROWS_A_FILE)):
        path = folder / f"part-{file:05d}.parquet"
        if not path.exists():
            staged = path.with_suffix(".tmp")
            pq.write_table(part(file, rows).to_arrow(), staged, compression="zstd")
            staged.replace(path)


def part(file: int, total: int) -> pl.DataFrame:
    """The rows of one file of `total` rows in all."""
    own = _own(file, total)
    if file == 0:
        return own
    again = _own(file - 1, total).tail(int(own.height * SHARES.twice))
    return pl.concat([again, own.slice(again.height)])


def _own(file: int, total: int) -> pl.DataFrame:
    """A file's rows before some give way to rows of the file before it."""
    count = min(ROWS_A_FILE, total - file * ROWS_A_FILE)
    rng = np.random.default_rng([SEED, file])
    first = file * ROWS_A_FILE
    span_us = (END - START).total_seconds() * 1e6
    micros = np.sort((first + rng.random(count) * count) / total * span_us).astype(np.int64)
    user = (max(1, total // ROWS_A_USER) * rng.random(count) ** 1.5).astype(
        np.int64
    )  # some do more
    kind = rng.choice(len(TYPES), count, p=TYPE_SHARES)
    bought = kind >= TYPES.index("cart")
    amount = np.where(bought, np.round(np.exp(rng.normal(3.5, 1.0, count)), 2), np.nan)
    late = pl.lit(LATE).cast(pl.Datetime("us"))
    chance = pl.Series(rng.random(count))
    s = SHARES
    bad_user, bad_amount = chance < s.no_user, chance > 1 - s.infinite
    bad_time = (chance >= s.no_user) & (chance < s.no_user + s.in_future)
    return pl.DataFrame(
        {
            "user_id": "u" + pl.Series(user).cast(pl.String),
            "event_id": np.arange(first, first + count, dtype=np.int64),
            "time": pl.Series(micros).cast(pl.Duration("us")),
            "type": pl.Series(np.array(TYPES)[kind]),
            "item": "item " + pl.Series(rng.integers(0, 100_000, count)).cast(pl.String),
            "category": pl.Series(np.array(CATEGORIES)[rng.integers(0, len(CATEGORIES), count)]),
            "counterparty": "m" + pl.Series(rng.integers(0, 20_000, count)).cast(pl.String),
            "amount": amount,
            "text": pl.Series(np.array(TEXTS)[rng.integers(0, len(TEXTS), count)]),
        }
    ).with_columns(
        pl.when(~bad_user).then("user_id").alias("user_id"),
        pl.when(bad_time).then(late).otherwise(START + pl.col("time")).alias("time"),
        pl.when(bad_amount)
        .then(float("inf"))
        .otherwise(pl.col("amount").fill_nan(None))
        .alias("amount"),
        pl.when(pl.Series(rng.random(count)) < s.with_text).then("text").alias("text"),
    )
