"""Fusion of modalities: weights over what is there, nothing from what is not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from models.nets.fusion import MODALITIES, FusionConfig, ModalityDropout, fusion_of

WIDTH = 8
M = len(MODALITIES)
TABULAR = MODALITIES.index("tabular")
KINDS = ("attention", "gated", "concat")
MASKS = st.lists(st.lists(st.booleans(), min_size=M, max_size=M), min_size=0, max_size=8)


def fusion(kind: str) -> nn.Module:
    torch.manual_seed(1)
    made = fusion_of(FusionConfig.model_validate({"kind": kind}), WIDTH)
    for name, parameter in made.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return made


def known_of(masks: list[list[bool]]) -> Tensor:
    """[B, M]; the tabular modality is there for everyone."""
    known_BM = torch.tensor(masks, dtype=torch.bool).reshape(-1, M)
    known_BM[:, TABULAR] = True
    return known_BM


@given(st.sampled_from(KINDS), MASKS, st.integers(0, 10_000))
def test_weights_sum_to_one_and_are_exactly_zero_where_masked(
    kind: str, masks: list[list[bool]], seed: int
) -> None:
    known_BM = known_of(masks)
    generator = torch.Generator().manual_seed(seed)
    vectors_BMD = 10 * torch.randn((*known_BM.shape, WIDTH), generator=generator)
    fused_BD, weight_BM = fusion(kind)(vectors_BMD, known_BM)
    assert fused_BD.shape == (len(masks), WIDTH)
    assert (weight_BM[~known_BM] == 0).all()
    assert (weight_BM[known_BM] > 0).all()
    assert torch.allclose(weight_BM.sum(1), torch.ones(len(masks)), atol=1e-6)
    if kind == "attention":
        expected_BD = torch.einsum("bm,bmd->bd", weight_BM, vectors_BMD)
        assert torch.allclose(fused_BD, expected_BD, atol=1e-5)


@given(st.sampled_from(KINDS), MASKS)
def test_the_vector_of_a_masked_modality_moves_nothing(kind: str, masks: list[list[bool]]) -> None:
    known_BM = known_of(masks)
    torch.manual_seed(0)
    vectors_BMD = torch.randn(*known_BM.shape, WIDTH)
    other_BMD = torch.where(known_BM.unsqueeze(-1), vectors_BMD, vectors_BMD + 1e6)
    made = fusion(kind)
    for one, two in zip(made(vectors_BMD, known_BM), made(other_BMD, known_BM), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_a_user_of_whom_only_the_tabular_modality_is_known(kind: str) -> None:
    vectors_BMD = torch.randn(1, M, WIDTH)
    fused_BD, weight_BM = fusion(kind)(vectors_BMD, known_of([[False] * M]))
    assert weight_BM.tolist() == [[float(m == TABULAR) for m in range(M)]]
    if kind == "attention":
        assert torch.equal(fused_BD, vectors_BMD[:, TABULAR])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_differ_by_user_and_by_modality(kind: str) -> None:
    vectors_BMD = torch.randn(1, 1, WIDTH).expand(2, M, WIDTH).clone()
    vectors_BMD[1] *= -2
    _, weight_BM = fusion(kind)(vectors_BMD, known_of([[True] * M] * 2))
    assert not torch.allclose(weight_BM[0], weight_BM[1], atol=1e-3)
    # one vector for all: what is left is what a fusion knows of the modality itself
    assert weight_BM[0].unique().numel() == M


@pytest.mark.parametrize("kind", KINDS)
def test_a_modality_that_says_more_weighs_more(kind: str) -> None:
    """By the measure of the kind: attention's score, an open gate, the length of what is added."""
    made = fusion(kind)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
        if kind == "attention":
            made.get_parameter("bias_MD")[0] += 5
            made.get_parameter("query.weight")[:] = 1
        elif kind == "gated":
            made.get_parameter("gate.bias")[:WIDTH] += 5
        else:
            made.get_parameter("parts.0.bias")[:] = 3
            made.get_parameter("parts.1.bias")[:] = 1
    _, weight_BM = made(torch.randn(3, M, WIDTH), known_of([[True] * M] * 3))
    assert (weight_BM[:, 0] > 1.5 * weight_BM[:, 1:].amax(1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_modality_gets_a_gradient_of_zero(kind: str) -> None:
    made = fusion(kind)
    vectors_BMD = torch.randn(3, M, WIDTH, requires_grad=True)
    known_BM = known_of([[False] * M] * 3)
    made(vectors_BMD, known_BM)[0].sum().backward()
    assert vectors_BMD.grad is not None
    assert (vectors_BMD.grad[~known_BM] == 0).all()
    assert (vectors_BMD.grad[known_BM] != 0).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_its_type_and_weights_in_full(kind: str) -> None:
    made = fusion(kind).to(torch.bfloat16)
    fused_BD, weight_BM = made(torch.randn(2, M, WIDTH).bfloat16(), known_of([[True] * M] * 2))
    assert (fused_BD.dtype, weight_BM.dtype) == (torch.bfloat16, torch.float32)
    assert weight_BM.sum(1).tolist() == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.parametrize("bad", [{"kind": "sum"}, {"heads": 2}])
def test_an_unknown_fusion_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FusionConfig.model_validate(bad)


@given(MASKS, st.floats(0, 0.99))
def test_dropout_withholds_only_what_is_there_and_never_all(
    masks: list[list[bool]], rate: float
) -> None:
    known_BM = known_of(masks)
    left_BM = ModalityDropout(rate)(known_BM)
    assert (known_BM | ~left_BM).all()
    assert left_BM.any(1).all()


def test_dropout_withholds_at_its_rate_and_in_training_only(seed: int) -> None:
    torch.manual_seed(seed)
    drop = ModalityDropout(0.3)
    known_BM = torch.ones(20_000, M, dtype=torch.bool)
    share_M = 1 - drop(known_BM).float().mean(0)
    spared = 0.3**M / M  # one of those of a row that would have lost everything
    assert share_M.tolist() == pytest.approx([0.3 - spared] * M, abs=0.02)
    assert ModalityDropout(0.99)(known_BM).sum(1).float().mean() < 1.1
    assert drop.eval()(known_BM) is known_BM
    assert ModalityDropout(0.0)(known_BM) is known_BM


@pytest.mark.parametrize("kind", KINDS)
def test_with_modality_dropout_a_missing_modality_costs_less(kind: str) -> None:
    """The first modality tells all, the tabular one nearly all: without dropout the fit leans on
    the first alone, and is lost where it is missing."""
    torch.manual_seed(0)
    truth_B = torch.randn(512)
    vectors_BMD = torch.zeros(512, M, WIDTH)
    vectors_BMD[:, 0, 0] = 3 * truth_B
    vectors_BMD[:, TABULAR, 1] = 0.3 * (truth_B + 0.3 * torch.randn(512))
    known_BM = known_of([[True] + [False] * (M - 1)] * 512)
    missing_BM = known_of([[False] * M] * 512)

    def loss_without(rate: float) -> float:
        made, drop, head = fusion(kind), ModalityDropout(rate), nn.Linear(WIDTH, 1)
        optimizer = torch.optim.Adam([*made.parameters(), *head.parameters()], lr=1e-2)
        for _ in range(150):
            fused_BD, _ = made(vectors_BMD, drop(known_BM))
            loss = (head(fused_BD).squeeze(1) - truth_B).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            fused_BD, _ = made(vectors_BMD, missing_BM)
            return float((head(fused_BD).squeeze(1) - truth_B).square().mean())

    assert loss_without(0.5) < 0.7 * loss_without(0.0)
