"""Next-event prediction: no event after the cut is read, what follows a pattern is learned."""

import numpy as np
import polars as pl
import torch

from models.data.stats import Stats
from models.nets.config import EventPretraining
from models.nets.pretrain_events import TowerSpec, pretrain_events
from models.nets.pretrain_next import cut

CPU = torch.device("cpu")


def test_a_cut_parts_a_users_events_in_two(users: pl.DataFrame) -> None:
    past, following = cut(users, 5, 3, np.random.default_rng(0))
    for row, before, after in zip(
        users.iter_rows(named=True),
        past.iter_rows(named=True),
        following.iter_rows(named=True),
        strict=True,
    ):
        amounts = before["events_amount"] + after["events_amount"]
        first = int(amounts[0])
        assert amounts == row["events_amount"][first : first + len(amounts)]
        assert 1 <= len(before["events_amount"]) <= 5
        assert 1 <= len(after["events_amount"]) <= 3
        assert len(before["events_amount"]) == 5 or first == 0
        # as of a time after the last event that is read, and at most at the next one
        assert 0 <= before["events_age_h"][-1] <= 1
        assert set(after["events_age_h"]) == {0.0}
        assert np.allclose(-np.diff(before["events_age_h"]), 1, atol=1e-5)
    places = past["events_amount"].list.last().to_numpy()
    assert len(set(places)) > 10


def test_what_follows_a_pattern_is_learned(
    users: pl.DataFrame, stats: Stats, tower_spec: TowerSpec
) -> None:
    config = EventPretraining(epochs=12, batch=25, learning_rate=5e-3, horizon=1)
    _, losses = pretrain_events(users, stats, tower_spec, 0.0, config, 1, CPU, lambda *_: None)
    assert losses[-1] < 0.5 * losses[0]
