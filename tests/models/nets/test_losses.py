"""Losses of training: their formulas, where they are lowest, and what they leave as it was."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from models.nets.config import BinaryLoss, LossConfig
from models.nets.losses import MOST_LOG_VARIANCE, TaskUncertainty, binary_loss

RATE = 0.1
Y = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
LOGITS = st.lists(st.floats(-30, 30), min_size=4, max_size=4)


def entropy(logit_B: Tensor, y_B: Tensor = Y) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logit_B, y_B, reduction="none")


def lowest(config: BinaryLoss, rate: float) -> float:
    """The constant logit at which the loss of rows with a share of positives is lowest."""
    logit_B = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    ones = torch.ones_like(logit_B)
    positive_B = binary_loss(logit_B, ones, config, rate)
    negative_B = binary_loss(logit_B, 0 * ones, config, rate)
    return float(logit_B[(rate * positive_B + (1 - rate) * negative_B).argmin()])


@given(LOGITS)
def test_by_default_it_is_the_cross_entropy(logits: list[float]) -> None:
    logit_B = torch.tensor(logits, dtype=torch.float64)
    assert torch.allclose(binary_loss(logit_B, Y, BinaryLoss(), RATE), entropy(logit_B))


@given(LOGITS, st.floats(0, 5))
def test_focal_is_its_formula(logits: list[float], gamma: float) -> None:
    logit_B = torch.tensor(logits, dtype=torch.float64)
    p_B = torch.where(Y > 0, torch.sigmoid(logit_B), torch.sigmoid(-logit_B))
    wrong_B = torch.where(Y > 0, torch.sigmoid(-logit_B), torch.sigmoid(logit_B))
    expected_B = -(wrong_B**gamma) * p_B.log()
    loss_B = binary_loss(logit_B, Y, BinaryLoss(focal=gamma), RATE)
    assert torch.allclose(loss_B, expected_B, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_gradient_of_focal_is_finite_where_a_row_is_surely_right_or_wrong(gamma: float) -> None:
    logit_B = torch.tensor([-90.0, 90.0, 90.0, -90.0], requires_grad=True)
    binary_loss(logit_B, Y.float(), BinaryLoss(focal=gamma), RATE).sum().backward()
    assert logit_B.grad is not None and torch.isfinite(logit_B.grad).all()
    assert logit_B.grad.tolist() == pytest.approx([0, 0, 1, -1], abs=1e-6)


def test_smoothing_is_the_cross_entropy_of_softer_labels() -> None:
    logit_B = torch.randn(4, dtype=torch.float64)
    loss_B = binary_loss(logit_B, Y, BinaryLoss(smoothing=0.2), RATE)
    soft_B = torch.tensor([0.1, 0.9, 0.1, 0.9], dtype=torch.float64)
    assert torch.allclose(loss_B, entropy(logit_B, soft_B))


@pytest.mark.parametrize("weight", ["balanced", 0.2, 1.0, 7.0])
@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_class_weights_weigh_rows_but_leave_the_log_odds_those_of_the_data(
    weight: float | str, rate: float
) -> None:
    config = BinaryLoss.model_validate({"positive_weight": weight})
    assert lowest(config, rate) == pytest.approx(math.log(rate / (1 - rate)), abs=1e-3)
    number = (1 - rate) / rate if weight == "balanced" else float(weight)
    base = torch.full((4,), math.log(rate / (1 - rate)), dtype=torch.float64, requires_grad=True)
    binary_loss(base, Y, config, rate).sum().backward()
    assert base.grad is not None
    negative, positive = base.grad[:2].tolist()
    # at the base rate both classes pull alike in sum, and the mean weight of a row is 1
    assert rate * positive + (1 - rate) * negative == pytest.approx(0, abs=1e-12)
    rest = -positive * (rate * number + 1 - rate) / number
    assert rest == pytest.approx((1 - rate) / (1 - rate + rate * number))


def test_balanced_classes_have_the_same_weight_in_sum() -> None:
    weight = BinaryLoss(positive_weight="balanced").weight(0.05)
    assert 0.05 * weight == pytest.approx(0.95)


@pytest.mark.parametrize(
    "bad",
    [
        {"positive_weight": 0},
        {"positive_weight": "even"},
        {"focal": -1},
        {"smoothing": 1.0},
        {"smoothing": -0.1},
        {"alpha": 0.25},
    ],
)
def test_an_impossible_loss_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BinaryLoss.model_validate(bad)
    with pytest.raises(ValidationError):
        LossConfig.model_validate({"task_weights": "guessed"})


def learned_variances(losses: list[float], known: list[bool]) -> list[float]:
    """log s² after the losses have stayed the same for long."""
    made = TaskUncertainty(len(losses))
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    for _ in range(250):
        optimizer.zero_grad()
        made(torch.tensor(losses), torch.tensor(known)).sum().backward()
        optimizer.step()
    raw_K = made.raw_K.detach()
    return (MOST_LOG_VARIANCE * torch.tanh(raw_K / MOST_LOG_VARIANCE)).tolist()


def test_uncertainty_starts_as_the_plain_loss_and_settles_at_twice_the_loss() -> None:
    """L / s² + log s is lowest at s² = 2 L; a negative loss stops at the bound."""
    loss_K = torch.tensor([0.3, 2.0])
    assert torch.equal(TaskUncertainty(2)(loss_K, torch.tensor([True, True])), loss_K)
    settled = learned_variances([0.3, 2.0, -1.0], [True] * 3)
    assert settled[:2] == pytest.approx([math.log(0.6), math.log(4.0)], abs=1e-2)
    assert -MOST_LOG_VARIANCE <= settled[2] < 0.9 * -MOST_LOG_VARIANCE


def test_a_task_without_a_label_leaves_its_uncertainty_as_it_is() -> None:
    assert learned_variances([0.0, 2.0], [False, True])[0] == 0.0
