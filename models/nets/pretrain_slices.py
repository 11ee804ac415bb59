"""Two slices of one user's events belong together: a tower that says who somebody is, by habit.

Of all the second slices in a batch the tower's vector is to find that of each first one, and the
other way round. Source: Babaev et al. 2022, "CoLES: Contrastive learning for event sequences with
self-supervision"; the loss here is `contrast`'s. Shape: B users.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
from torch import Tensor, nn

from models.data.batch import Batch
from models.data.schema import UserError
from models.nets.excerpts import Pairs, batch_of, seen_between
from models.nets.pretrain import contrast
from models.nets.sequence import BehaviourTower

SHORTEST = 0.25  # of a user's events that a slice has


class SameUser(nn.Module):
    """A tower that is asked which slices are of one user."""

    def __init__(self, tower: BehaviourTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, one: Batch, other: Batch) -> Tensor:
        """The mean cross-entropy over both directions."""
        return contrast(self.tower(one)[0], self.tower(other)[0])


class SliceBatches(Pairs):
    """Users beside others in every epoch, sliced elsewhere; two or more in a batch.

    Asked for the batches of a single user, raises UserError.
    """

    @property
    def steps(self) -> int:
        # of even sizes, rather too large: the last few users would have little to be told from
        return max(1, self.users.height // self.config.batch)

    def __call__(self, epoch: int) -> Iterator[tuple[Batch, Batch]]:
        """Two slices of each user."""
        if self.users.height < 2:
            raise UserError(
                "pretrain.behaviour.objective: slices: expected two users with two events or more"
            )
        order = self.random.permutation(self.users.height)
        for some in np.array_split(order, self.steps):
            one, other = (slices(self.users[some], self.max_events, self.random) for _ in "ab")
            yield batch_of(one, self.stats), batch_of(other, self.stats)


def slices(users: pl.DataFrame, max_events: int, random: np.random.Generator) -> pl.DataFrame:
    """Feature rows of users with a slice of their events, as of a time before the event after it.

    Its length is drawn evenly from a quarter of a user's events to all, of `max_events` at most;
    where it starts, evenly from where it can.
    """
    size_B = users["events_type"].list.len().to_numpy().astype(np.int64)
    most_B = np.minimum(size_B, max_events)
    least_B = np.minimum(np.ceil(SHORTEST * size_B).astype(np.int64), most_B)
    length_B = random.integers(least_B, most_B + 1)
    start_B = random.integers(0, size_B - length_B + 1)
    return seen_between(users, start_B, start_B + length_B, random)
