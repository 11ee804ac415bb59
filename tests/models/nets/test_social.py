"""The social tower."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from models.data.batch import Batch
from models.nets.social import SocialTower

WIDTH = 16


def test_known_are_those_with_a_tie(
    batch: Batch, take: Callable[[Batch, Sequence[int]], Batch]
) -> None:
    tower = SocialTower(batch.social_BG.shape[1], WIDTH, dropout=0.0)
    vectors_BD, known_B = tower(batch)
    assert vectors_BD.shape == (len(batch), WIDTH)
    assert torch.equal(known_B, batch.tied_B)
    assert known_B.any() and not known_B.all()
    assert tower(take(batch, []))[0].shape == (0, WIDTH)


def test_every_measure_matters(batch: Batch) -> None:
    torch.manual_seed(0)
    tower = SocialTower(batch.social_BG.shape[1], WIDTH, dropout=0.0)
    plain_BD, _ = tower(batch)
    for column in range(batch.social_BG.shape[1]):
        values_BG = batch.social_BG.clone()
        values_BG[:, column] += 1.0
        changed_BD, _ = tower(replace(batch, social_BG=values_BG))
        assert ((plain_BD - changed_BD).abs().amax(1) > 1e-4).all(), column
