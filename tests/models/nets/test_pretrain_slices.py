"""Slices of events: a run of one user's, as of its end; whose habits these are is learned."""

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from models.data.schema import UserError
from models.data.stats import Stats
from models.nets.config import EventPretraining
from models.nets.excerpts import batch_of
from models.nets.pretrain_events import TowerSpec, pretrain_events
from models.nets.pretrain_slices import slices

CPU = torch.device("cpu")


def test_a_slice_is_a_run_of_a_users_events_as_of_its_end(users: pl.DataFrame) -> None:
    drawn = [slices(users, 12, np.random.default_rng(seed)) for seed in range(4)]
    for some in drawn:
        for row, part in zip(users.iter_rows(named=True), some.iter_rows(named=True), strict=True):
            amounts, size = part["events_amount"], len(row["events_amount"])
            first = int(amounts[0])
            assert amounts == row["events_amount"][first : first + len(amounts)]
            assert min(size / 4, 12) <= len(amounts) <= 12
            assert 0 <= part["events_age_h"][-1] <= 1
            assert np.allclose(-np.diff(part["events_age_h"]), 1, atol=1e-5)
            assert part["texts"] == part["texts_age_d"] == []
    ends = [
        sum(some["events_amount"].list.last() + 1 == users["events_type"].list.len())
        for some in drawn
    ]
    assert all(10 < one < 150 for one in ends)  # the last event is seen, and not always
    lengths = drawn[0]["events_amount"].list.len()
    assert lengths.n_unique() > 8 and not lengths.equals(drawn[1]["events_amount"].list.len())


def test_whose_habits_these_are_is_learned(
    users: pl.DataFrame, stats: Stats, tower_spec: TowerSpec
) -> None:
    """Users do one thing each, of three: a third of the others in a batch could be told apart."""
    habit = pl.col("user_key") % 3 + 2
    alike = users.with_columns(
        habit.repeat_by(pl.col("events_type").list.len())
        .cast(pl.List(pl.Int32))
        .alias("events_type")
    )
    config = EventPretraining(objective="slices", epochs=12, batch=30, learning_rate=5e-3)
    tower, losses = pretrain_events(alike, stats, tower_spec, 0.0, config, 1, CPU, lambda *_: None)
    assert losses[-1] < np.log(30 / 3)  # of one that knows the kind, and no more
    one = slices(alike, tower_spec.max_events, np.random.default_rng(9))
    with torch.no_grad():
        vector_BD = tower(batch_of(one, stats))[0]
    vector_BD = torch.nn.functional.normalize(vector_BD, dim=1)
    alike_BB = vector_BD @ vector_BD.T
    kind_B = torch.tensor(one["user_key"].to_list()) % 3
    same_BB = kind_B[:, None] == kind_B
    assert alike_BB[same_BB].mean() > alike_BB[~same_BB].mean() + 0.5


def test_a_user_alone_has_nobody_to_be_told_from(
    users: pl.DataFrame, stats: Stats, tower_spec: TowerSpec
) -> None:
    with pytest.raises(ValidationError, match="batch: 1: expected 2 or more"):
        EventPretraining(objective="slices", batch=1)
    config = EventPretraining(objective="slices")
    with pytest.raises(UserError, match=r"slices: expected two users with two events or more"):
        pretrain_events(users[:1], stats, tower_spec, 0.0, config, 1, CPU, lambda *_: None)
