"""Masked pooling: what is not there has no say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.nets.pooling import DAYS, AttentionPool, masked_softmax

MASKS = st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=0, max_size=6)


@given(MASKS, st.integers(0, 10_000))
def test_weights_sum_to_one_over_the_known_and_are_zero_elsewhere(
    masks: list[list[bool]], seed: int
) -> None:
    known_BN = torch.tensor(masks, dtype=torch.bool).reshape(-1, 5)
    generator = torch.Generator().manual_seed(seed)
    score_BN = torch.randn(known_BN.shape, generator=generator) * 50
    weight_BN = masked_softmax(score_BN, known_BN)
    assert torch.isfinite(weight_BN).all()
    assert (weight_BN[~known_BN] == 0).all()
    assert torch.allclose(weight_BN.sum(1), known_BN.any(1).float(), atol=1e-6)


def test_half_precision_scores_are_normalised_in_full() -> None:
    score_BN = torch.zeros(1, 1000, dtype=torch.bfloat16)
    weight_BN = masked_softmax(score_BN, torch.ones(1, 1000, dtype=torch.bool))
    assert weight_BN.dtype == torch.float32
    assert abs(float(weight_BN.sum()) - 1) < 1e-5


@given(MASKS)
def test_steps_that_are_not_known_do_not_move_the_pool(masks: list[list[bool]]) -> None:
    torch.manual_seed(0)
    pool = AttentionPool(8, 2.0)
    known_BN = torch.tensor(masks, dtype=torch.bool).reshape(-1, 5)
    steps_BND = torch.randn(len(known_BN), 5, 8)
    days_BN = torch.rand(len(known_BN), 5) * 100
    other_BND = torch.where(known_BN.unsqueeze(-1), steps_BND, torch.full_like(steps_BND, 99.0))
    older_BN = torch.where(known_BN, days_BN, days_BN + 50)
    with torch.no_grad():
        pooled_BD = pool(steps_BND, known_BN, days_BN)
        assert torch.allclose(pooled_BD, pool(other_BND, known_BN, older_BN), atol=1e-6)


def test_a_row_with_nothing_pools_to_the_bias() -> None:
    pool = AttentionPool(8, 2.0)
    nothing_BN = torch.zeros(3, 5, dtype=torch.bool)
    pooled_BD = pool(torch.randn(3, 5, 8), nothing_BN, torch.zeros(3, 5))
    assert torch.equal(pooled_BD, pool.out.bias.expand(3, 8))


def test_the_pool_tells_how_often_the_same_step_stands_there() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(8, 2.0)
    steps_BND = torch.randn(8).expand(2, 5, 8)
    known_BN = torch.tensor([[True] * 1 + [False] * 4, [True] * 4 + [False] * 1])
    once_D, often_D = pool(steps_BND, known_BN, torch.zeros(2, 5))
    assert not torch.allclose(once_D, often_D, atol=1e-3)


def told_by_the_sum(days: float) -> torch.Tensor:
    """[D] of a lone step of ones, so many days old, whose gate is half open; scale 1."""
    pool = AttentionPool(8, 1.0)
    with torch.no_grad():
        pool.gate.weight.zero_()
        pool.gate.bias.zero_()
        pool.out.weight.copy_(torch.eye(8, 16).roll(8, 1))  # of both halves, the sum
        pool.out.bias.zero_()
        pooled_BD: torch.Tensor = pool(
            torch.ones(1, 1, 8), torch.ones(1, 1, dtype=torch.bool), torch.full((1, 1), days)
        )
    return pooled_BD[0]


def test_a_lone_step_fades_each_component_at_a_pace_of_its_own() -> None:
    fastest, slowest = DAYS
    assert told_by_the_sum(0.0).tolist() == pytest.approx([0.5] * 8)
    left_D = told_by_the_sum(75.0)
    assert (left_D.diff() > 0).all()
    assert float(left_D[0]) == pytest.approx(math.exp(-75 / fastest) / 2)
    assert float(left_D[-1]) == pytest.approx(math.exp(-75 / slowest) / 2)


def test_what_is_a_century_old_is_gone_and_leaves_finite_gradients() -> None:
    assert float(told_by_the_sum(36_500.0).abs().max()) < 1e-12
    pool = AttentionPool(8, 1.0)
    days_BN = torch.tensor([[36_500.0, 2.0]])
    pool(torch.randn(1, 2, 8), torch.ones(1, 2, dtype=torch.bool), days_BN).sum().backward()
    for name, parameter in pool.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
