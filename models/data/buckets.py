"""Buckets of users: places in the binary tree of key prefixes.

    1: everyone    2, 3: the halves    4 … 7: the quarters, in order of key    …

A bucket's number says how fine it is, so files of several sizes can stand side by side, and to
double the buckets is a local split: b becomes 2b and 2b + 1.
"""

import polars as pl

FEWEST, MOST = 4, 1 << 16
ROWS = 1 << 20  # of input a bucket, at most about: what a worker sorts, and reads, at one time


def buckets(count: int) -> range:
    """All buckets where there are `count` of them, in order of key."""
    return range(count, 2 * count)


def count_for(rows: int) -> int:
    """How many buckets so many rows of input need: a power of two."""
    return min(MOST, max(FEWEST, 1 << ((rows - 1) // ROWS).bit_length()))


def bucket_of(user_key: pl.Expr, count: int) -> pl.Expr:
    """The bucket (int32) of an int64 user key where there are `count`, a power of two."""
    k = count.bit_length() - 1
    assert count == 1 << k and count <= MOST
    place = user_key // (1 << (64 - k)) + count // 2 if k else user_key * 0
    return (place + count).cast(pl.Int32)


def overlap(one: int, other: int) -> bool:
    """Whether two buckets share users: they are one, or one is a part of the other."""
    finer = one.bit_length() - other.bit_length()
    return one >> finer == other if finer >= 0 else other >> -finer == one


def within(rows: pl.DataFrame, held: int, bucket: int) -> pl.DataFrame:
    """The rows of a bucket's users among those of a file of bucket `held`, which overlaps it."""
    if held >= bucket:
        return rows
    count = 1 << (bucket.bit_length() - 1)
    return rows.filter(bucket_of(pl.col("user_key"), count) == bucket)
