"""Heads: the losses against scipy, expectations in closed form, unknown labels without effect."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import bernoulli, lognorm
from torch import Tensor

from models.data.schema import UserError
from models.data.stats import Target, logit
from models.data.tasks import Task
from models.nets.config import BinaryLoss, LossConfig
from models.nets.heads import (
    Alone,
    Heads,
    expected_amount,
    most_log_amount,
    spread,
    zero_inflated_log_normal,
)
from models.nets.losses import binary_loss

NAN = float("nan")
TARGET = Target(rate=0.3, log_mean=3.5, log_std=0.8)
PARAMETERS = st.tuples(st.floats(-6, 6), st.floats(-2, 2), st.floats(-3, 2))
TASKS = {"default": Task(kind="binary"), "spend": Task(kind="amount")}
PLAIN = LossConfig()
TARGETS = {"default": Target(rate=0.07), "spend": TARGET}


def heads(width: int = 16, losses: LossConfig = PLAIN) -> Heads:
    torch.manual_seed(0)
    return Heads(TASKS, TARGETS, width, losses)


def in_scipys_terms(raw: Tensor) -> tuple[float, float, float]:
    """p, σ and scale of a zero-inflated log-normal of amounts."""
    sigma = TARGET.log_std * float(spread(raw[2]))
    scale = math.exp(TARGET.log_mean + TARGET.log_std * float(raw[1]))
    return float(expit(raw[0].item())), sigma, scale


@pytest.mark.parametrize("name", ["type", "values", "train"])
def test_a_task_may_not_have_a_name_of_a_modules_own(name: str) -> None:
    with pytest.raises(UserError, match=f"tasks.{name}: torch has a use for this name"):
        Heads({name: Task(kind="binary")}, {name: TARGET}, 16, PLAIN)


@given(PARAMETERS, st.floats(0.01, 1e5))
def test_the_loss_of_an_amount_is_scipys(raw: tuple[float, float, float], amount: float) -> None:
    output_B3 = torch.tensor([raw, raw], dtype=torch.float64)
    zero_and_amount = torch.tensor([0.0, amount], dtype=torch.float64)
    none, some = zero_inflated_log_normal(output_B3, zero_and_amount, TARGET).tolist()
    p, sigma, scale = in_scipys_terms(output_B3[0])
    assert none == pytest.approx(-math.log1p(-p), rel=1e-9)
    # the loss leaves out what no parameter moves: the change of variable and the constant
    left_out = math.log(amount * TARGET.log_std * math.sqrt(2 * math.pi))
    density = lognorm.logpdf(amount, s=sigma, scale=scale)
    assert some == pytest.approx(-math.log(p) - density - left_out, rel=1e-9, abs=1e-9)


@given(PARAMETERS)
def test_the_expected_amount_has_its_closed_form(raw: tuple[float, float, float]) -> None:
    output_B3 = torch.tensor([raw])
    p, sigma, scale = in_scipys_terms(output_B3[0])
    expected = p * min(lognorm.mean(s=sigma, scale=scale), math.exp(most_log_amount(TARGET)))
    assert expected_amount(output_B3, TARGET).item() == pytest.approx(expected, rel=1e-6)


def test_the_expected_amount_is_the_mean_of_draws(seed: int) -> None:
    raw = torch.tensor([0.4, -0.2, -0.5])
    p, sigma, scale = in_scipys_terms(raw)
    rng = np.random.default_rng(seed)
    draws = lognorm.rvs(s=sigma, scale=scale, size=400_000, random_state=rng)
    draws *= bernoulli.rvs(p, size=400_000, random_state=rng)
    error = 5 * draws.std() / math.sqrt(len(draws))
    assert expected_amount(raw[None], TARGET).item() == pytest.approx(draws.mean(), abs=error)


def test_no_output_makes_an_infinite_amount() -> None:
    extreme = torch.tensor([[900.0, 900.0, 900.0], [-900.0, -900.0, -900.0], [0.0, 900.0, 0.0]])
    amount_B = expected_amount(extreme, TARGET)
    assert amount_B.dtype == torch.float64
    assert torch.isfinite(amount_B).all() and (amount_B >= 0).all()
    assert amount_B.max().item() == pytest.approx(math.exp(most_log_amount(TARGET)))


def test_the_spread_starts_at_one_and_stays_in_bounds() -> None:
    assert spread(torch.zeros(())).item() == pytest.approx(1.0)
    values = spread(torch.linspace(-100, 100, 400))
    assert (values.diff() >= 0).all()
    assert values.min().item() == pytest.approx(0.05) and values.max().item() == 4.0


def test_an_untrained_head_answers_with_the_base_rate() -> None:
    torch.manual_seed(0)
    outputs = heads(64)(torch.randn(500, 64))
    assert outputs["default"].shape == (500,)
    assert outputs["spend"].shape == (500, 3)
    assert outputs["default"].mean().item() == pytest.approx(logit(0.07), abs=0.1)
    assert outputs["spend"][:, 0].mean().item() == pytest.approx(logit(TARGET.rate), abs=0.1)
    assert outputs["spend"][:, 1:].mean(0).tolist() == pytest.approx([0, 0], abs=0.1)
    # a log-normal with the fit role's own mean and spread of log amounts
    mean = TARGET.rate * lognorm.mean(s=TARGET.log_std, scale=math.exp(TARGET.log_mean))
    amount_B = expected_amount(outputs["spend"], TARGET)
    assert amount_B.mean().item() == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("rate", [0.0, 1e-9, 1 - 1e-9, 1.0])
def test_a_base_rate_at_the_edge_still_starts_finite(rate: float) -> None:
    made = Heads({"spend": TASKS["spend"]}, {"spend": Target(rate=rate)}, 8, PLAIN)
    assert torch.isfinite(made(torch.zeros(1, 8))["spend"]).all()


def labelled(labels: list[list[float]]) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(3)
    rows = len(labels)
    outputs = {"default": torch.randn(rows), "spend": torch.randn(rows, 3)}
    return {n: o.requires_grad_() for n, o in outputs.items()}, torch.tensor(labels)


def test_unknown_labels_have_no_part_in_the_loss_nor_in_its_gradient() -> None:
    outputs, labels_BK = labelled([[1.0, 12.5], [NAN, 3.0], [0.0, NAN], [NAN, NAN]])
    sums, counts = heads().loss(outputs, labels_BK)
    assert counts.tolist() == [2, 2]
    plain = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs["default"][[0, 2]], torch.tensor([1.0, 0.0]), reduction="sum"
    )
    amounts = zero_inflated_log_normal(
        outputs["spend"][:2], torch.tensor([12.5, 3.0]), TARGET
    ).sum()
    assert sums.tolist() == pytest.approx([plain.item(), amounts.item()], rel=1e-6)
    sums.sum().backward()
    gradient = {name: output.grad for name, output in outputs.items()}
    assert gradient["default"] is not None and gradient["spend"] is not None
    assert (gradient["default"] == 0).tolist() == [False, True, False, True]
    assert (gradient["spend"] == 0).all(1).tolist() == [False, False, True, True]


def test_no_label_at_all_gives_zero_and_a_gradient() -> None:
    outputs, labels_BK = labelled([[NAN, NAN], [NAN, NAN]])
    result = heads().loss(outputs, labels_BK)
    assert result.tolist() == [[0, 0], [0, 0]]
    result.sum().backward()
    assert all(o.grad is not None and (o.grad == 0).all() for o in outputs.values())


def test_losses_of_the_parts_add_up() -> None:
    outputs, labels_BK = labelled([[1.0, 0.0], [NAN, 3.0], [0.0, 80.0], [1.0, NAN]])
    made = heads()
    whole = made.loss(outputs, labels_BK)
    parts = [
        made.loss({n: o[s] for n, o in outputs.items()}, labels_BK[s])
        for s in (slice(0, 3), slice(3, 4))
    ]
    assert torch.allclose(whole, sum(parts, torch.zeros(2, 2)))


LABELS = [[1.0, 0.0], [NAN, 3.0], [0.0, 80.0], [1.0, NAN]]
FOCAL = BinaryLoss(focal=2.0, positive_weight="balanced")


def test_by_default_the_objective_is_the_weighted_sum_of_the_mean_losses() -> None:
    outputs, labels_BK = labelled(LABELS)
    made = heads()
    made.tasks["spend"] = Task(kind="amount", weight=0.25)
    (default, spend), (defaults, spends) = made.loss(outputs, labels_BK).tolist()
    expected = default / defaults + 0.25 * spend / spends
    assert made.objective(outputs, labels_BK).item() == pytest.approx(expected, rel=1e-6)


def test_a_configured_loss_is_minimised_and_never_reported() -> None:
    outputs, labels_BK = labelled(LABELS)
    plain, focal = heads(), heads(losses=LossConfig(binary={"default": FOCAL}))
    assert torch.equal(plain.loss(outputs, labels_BK), focal.loss(outputs, labels_BK))
    y_B, rows = torch.tensor([1.0, 0.0, 1.0]), [0, 2, 3]
    expected = binary_loss(outputs["default"][rows], y_B, FOCAL, 0.07).mean()
    spend = plain.loss(outputs, labels_BK)[0, 1] / 3
    objective = focal.objective(outputs, labels_BK)
    assert objective.item() == pytest.approx((expected + spend).item(), rel=1e-6)


def test_learned_task_weights_start_as_the_fixed_ones_and_have_gradients() -> None:
    outputs, labels_BK = labelled(LABELS)
    fixed, learned = heads(), heads(losses=LossConfig(task_weights="learned"))
    assert torch.equal(fixed.objective(outputs, labels_BK), learned.objective(outputs, labels_BK))
    nothing = learned.objective(outputs, labels_BK * NAN)
    assert nothing.item() == 0
    nothing.backward()
    assert learned.uncertainty is not None and learned.uncertainty.raw_K.grad is not None
    assert learned.uncertainty.raw_K.grad.tolist() == [0, 0]
    learned.objective(outputs, labels_BK).backward()
    assert (learned.uncertainty.raw_K.grad != 0).all()


@pytest.mark.parametrize("name", ["spend", "fraud"])
def test_a_loss_of_what_is_no_binary_task_is_refused(name: str) -> None:
    with pytest.raises(UserError) as refused:
        heads(losses=LossConfig(binary={name: FOCAL}))
    said = f"network.loss.binary: no binary task {name!r}; there is default"
    assert str(refused.value) == said


def test_a_net_refund_counts_as_no_purchase() -> None:
    raw = torch.tensor([[0.3, 0.1, -0.2]])
    refund, nothing = (
        zero_inflated_log_normal(raw, torch.tensor([amount]), TARGET) for amount in (-25.0, 0.0)
    )
    assert torch.equal(refund, nothing)


def test_an_empty_batch() -> None:
    made = heads()
    outputs = made(torch.zeros(0, 16))
    assert {name: output.shape for name, output in outputs.items()} == {
        "default": (0,),
        "spend": (0, 3),
    }
    assert made.loss(outputs, torch.zeros(0, 2)).tolist() == [[0, 0], [0, 0]]
    assert expected_amount(outputs["spend"], TARGET).shape == (0,)


def test_a_modality_alone_starts_at_the_base_rates() -> None:
    """Else its first gradients are one constant, which drives all texts to one encoding."""
    alone = Alone(TASKS, TARGETS, modalities=2, width=8)
    logits_BMJ = alone(torch.randn(5, 2, 8))
    assert torch.sigmoid(logits_BMJ).flatten().tolist() == pytest.approx([0.07] * 10)


def test_a_modality_that_is_not_there_has_no_loss_of_its_own() -> None:
    alone = Alone(TASKS, TARGETS, modalities=2, width=8)
    labels_BK = torch.tensor([[1.0, math.nan], [0.0, math.nan], [math.nan] * 2, [1.0, math.nan]])
    known_BM = torch.tensor([[True, False], [True, True], [True, True], [True, False]])
    expected = -(2 * math.log(0.07) + math.log(0.93)) / 3 - math.log(0.93)
    loss = alone.loss(alone(torch.randn(4, 2, 8)), known_BM, labels_BK)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
