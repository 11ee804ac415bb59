"""The loop of pretraining: it descends, tells how far it is, and says where a loss went wrong."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.data.schema import UserError
from models.nets.pretrain import TEMPERATURE, PretrainLoop, contrast, descend

CPU = torch.device("cpu")


def test_contrast_is_the_cross_entropy_of_both_ways() -> None:
    draws = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 5, 3, generator=draws)
    unit = [one / one.norm(dim=1, keepdim=True) for one in (first, second)]
    alike = (unit[0] @ unit[1].T / TEMPERATURE).exp()
    own = alike.diagonal()
    both = -(own / alike.sum(1)).log().mean() - (own / alike.sum(0)).log().mean()
    assert torch.allclose(contrast(first, second), both / 2, atol=1e-5)
    assert contrast(first, 7 * first) < 1e-2 < contrast(first, second)
    assert contrast(first.bfloat16(), second.bfloat16()).dtype == torch.float32


def test_the_loss_falls_and_every_step_is_told() -> None:
    model, told = nn.Linear(2, 1), list[tuple[int, int]]()
    rows = torch.randn(4, 8, 2, generator=torch.Generator().manual_seed(0))

    def loss_of(x: Tensor) -> Tensor:
        loss: Tensor = (model(x)[:, 0] - x[:, 0]).square().mean()
        return loss

    config = PretrainLoop(epochs=30, learning_rate=0.05)
    losses = descend(
        model, lambda _: rows, 4, loss_of, config, CPU, lambda step, of: told.append((step, of))
    )
    assert told == [(step, 120) for step in range(120)]
    assert len(losses) == 30
    assert losses[-1] < 0.05 * losses[0]
    assert not model.training


def test_a_loss_that_is_not_finite_names_epoch_and_step() -> None:
    model, seen = nn.Linear(1, 1), list[int]()

    def loss_of(x: Tensor) -> Tensor:
        seen.append(1)
        loss: Tensor = model(x).mean() * (math.nan if len(seen) == 5 else 1.0)
        return loss

    with pytest.raises(UserError, match="epoch 1, step 1: the loss is nan"):
        descend(
            model, lambda _: torch.ones(3, 1, 1), 3, loss_of, PretrainLoop(), CPU, lambda *_: None
        )
