"""Next-event prediction: what a user does next, told from the vector of what was done before.

A user's events are cut at a random time. The tower reads what lies before it, as of that time,
just as it does in the network; from its one vector the next events are told: their types and
categories, amounts and time gaps.

Shapes: B users, H next events, V types, C categories, D width.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
from torch import Tensor, nn
from torch.nn import functional

from models.data.batch import Batch
from models.nets.excerpts import Pairs, batch_of, between, seen_between
from models.nets.sequence import BehaviourTower


class NextEvents(nn.Module):
    """A tower, and what it says of the next events."""

    def __init__(self, tower: BehaviourTower, types: int, categories: int) -> None:
        super().__init__()
        self.tower = tower
        width = tower.pool.out.out_features
        self.types = nn.Linear(width, types)
        self.categories = nn.Linear(width, categories)
        self.numbers = nn.Linear(width, 2)  # amount and gap, as they are scaled in a batch

    def forward(self, past: Batch, following: Batch) -> Tensor:
        """The mean over the next events of cross-entropies and smooth absolute errors."""
        vector_BD = self.tower(past)[0]
        known_BH = following.type_BS > 0
        type_BHV = self.types(vector_BD).unsqueeze(1).expand(-1, known_BH.shape[1], -1)
        category_BHC = self.categories(vector_BD).unsqueeze(1).expand(-1, known_BH.shape[1], -1)
        number_BHX = self.numbers(vector_BD).unsqueeze(1).expand(-1, known_BH.shape[1], -1)
        return (
            functional.cross_entropy(type_BHV[known_BH].float(), following.type_BS[known_BH])
            + functional.cross_entropy(
                category_BHC[known_BH].float(), following.category_BS[known_BH]
            )
            + functional.smooth_l1_loss(
                number_BHX[known_BH].float(), following.event_BSX[known_BH][:, :2]
            )
        )


class NextBatches(Pairs):
    """Users in another order every epoch, the events of each cut at another time."""

    @property
    def steps(self) -> int:
        return -(-self.users.height // self.config.batch)

    def __call__(self, epoch: int) -> Iterator[tuple[Batch, Batch]]:
        """What lies before a user's cut, as of then, and the events that follow."""
        shuffled = self.users[self.random.permutation(self.users.height)]
        for some in shuffled.iter_slices(self.config.batch):
            past, following = cut(some, self.max_events, self.config.horizon, self.random)
            yield batch_of(past, self.stats), batch_of(following, self.stats)


def cut(
    users: pl.DataFrame, max_events: int, horizon: int, random: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Feature rows of users as of a time between two of their events, and of the events after it.

    The place of the cut is drawn evenly from a user's events, the time evenly from the gap there.
    """
    place = random.integers(1, users["events_type"].list.len().to_numpy())
    past = seen_between(users, np.maximum(0, place - max_events), place, random)
    following = between(users, place, place + horizon)
    return past, following.with_columns(pl.col("events_age_h") * 0)
