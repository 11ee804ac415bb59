"""Excerpts of users' events, as feature rows to pretrain on.

Rows are `user_key` and the columns `events_*` of `Features`. Shape: B users.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.data.batch import Batch, make_batch
from models.data.features import Features
from models.data.stats import Stats
from models.nets.config import EventPretraining

LISTS = ("type", "category", "amount", "age_h", "gap_h", "hour", "weekday")  # events_…
Ints = NDArray[np.int64]


class Pairs(ABC):
    """Batches of two excerpts a user, in another order every epoch and cut elsewhere.

    `users`: rows of all their events; `max_events`: of an excerpt that a tower reads.
    """

    def __init__(
        self,
        users: pl.DataFrame,
        stats: Stats,
        max_events: int,
        config: EventPretraining,
        seed: int,
    ) -> None:
        self.users, self.stats, self.max_events, self.config = users, stats, max_events, config
        self.random = np.random.default_rng(seed)

    @property
    @abstractmethod
    def steps(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def __call__(self, epoch: int) -> Iterator[tuple[Batch, Batch]]:
        """Those of an epoch."""


def between(users: pl.DataFrame, start_B: Ints, end_B: Ints) -> pl.DataFrame:
    """Each user's events from `start` to before `end`, ages as they are; nobody wrote anything."""
    start, length = pl.lit(pl.Series(start_B)), pl.lit(pl.Series(end_B - start_B))
    return users.with_columns(
        *(pl.col(f"events_{name}").list.slice(start, length) for name in LISTS),
        texts=pl.lit([], pl.List(pl.String)),
        texts_age_d=pl.lit([], pl.List(pl.Float32)),
    )


def seen_between(
    users: pl.DataFrame, start_B: Ints, end_B: Ints, random: np.random.Generator
) -> pl.DataFrame:
    """The same, as of a time before the event at `end`: drawn evenly from the gap there.

    After a user's last event that gap is what has passed since.
    """
    last, following = (
        users["events_age_h"].list.get(pl.Series(end_B - back), null_on_oob=True).fill_null(0.0)
        for back in (1, 0)
    )
    age = following + pl.Series(random.random(len(end_B))) * (last - following)
    ages = pl.col("events_age_h") - pl.lit(age.cast(pl.Float32))
    return between(users, start_B, end_B).with_columns(ages)


def batch_of(rows: pl.DataFrame, stats: Stats) -> Batch:
    """The events of rows as a batch."""
    return make_batch(Features(rows, (), (), ()), stats, _no_texts, 0)


def _no_texts(
    texts: Sequence[str], *, truncation: bool, max_length: int
) -> dict[str, list[list[int]]]:
    raise AssertionError("these rows have no texts")
