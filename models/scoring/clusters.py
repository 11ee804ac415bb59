"""Rows of one user are one draw: a user with several as-of times is not several users.

`users` is a column (N,) of numbers, one a user; what they are does not matter. Resamples, folds
and standard errors take users whole (the cluster bootstrap of Davison and Hinkley 1997, chapter
3.8); with one row a user they are those of independent rows, bit by bit.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def numbered(users: ArrayLike) -> IntArray:
    """(N,) the same users as 0, 1, … in the order in which they first appear."""
    _, first, own = np.unique(np.asarray(users), return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return place[own]


def own_of(users: ArrayLike | None, rows: int) -> IntArray:
    """The same, of so many rows; None: each row is of another user."""
    return np.arange(rows) if users is None else numbered(users)


def repeat(users: IntArray) -> bool:
    """Whether a user has more than one row."""
    return len(np.unique(users)) < len(users)


def count_of(users: IntArray, rows: ArrayLike) -> int:
    """Users with at least one of the rows (N,) that are true."""
    return len(np.unique(users[np.asarray(rows)]))


def resampled(users: IntArray, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
    """The rows of as many users as there are, drawn with replacement; some have none.

    And which draw each row came by: a user drawn twice is two users to whom reads the sample.
    """
    own = numbered(users)
    sizes = np.bincount(own)
    order, ends = np.argsort(own, kind="stable"), np.cumsum(sizes)
    drawn = rng.integers(0, len(sizes), len(sizes))
    count = sizes[drawn]
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    starts: IntArray = np.repeat((ends - sizes)[drawn], count)
    rows = np.asarray(order[starts + within], dtype=np.int64)
    return rows, np.repeat(np.arange(len(sizes)), count)


def stratified_folds(
    y: FloatArray, users: IntArray, folds: int, rng: np.random.Generator
) -> IntArray:
    """A fold number for each row, one for all of a user's; each gets its share of both outcomes.

    y: (N,) of 0 and 1. An outcome that two users have is seen outside of every fold.
    """
    own = numbered(users)
    ones, rows = np.bincount(own, weights=y), np.bincount(own)
    never, always = np.flatnonzero(ones == 0), np.flatnonzero(ones == rows)
    both = np.flatnonzero((ones > 0) & (ones < rows))
    fold = np.empty(len(rows), dtype=np.int64)
    # who has both comes first, so that neither outcome's users leave a gap in the dealing
    for members, start in ((never, len(both)), (always, len(both)), (both, 0)):
        fold[rng.permutation(members)] = (start + np.arange(len(members))) % folds
    return fold[own]


def standard_error(values: FloatArray, users: IntArray) -> float:
    """That of the mean of `values` (N,), by the spread of the users' sums."""
    off = np.bincount(numbered(users), weights=values - values.mean())
    share = len(off) / max(len(off) - 1, 1)
    return float(np.sqrt(share * np.sum(off**2)) / len(values))
