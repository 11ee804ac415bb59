"""Attention over modalities: weights over what is there, nothing from what is not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.nets.fusion import MODALITIES, AttentionFusion

WIDTH = 8
M = len(MODALITIES)
TABULAR = MODALITIES.index("tabular")
MASKS = st.lists(st.lists(st.booleans(), min_size=M, max_size=M), min_size=0, max_size=8)


def fusion() -> AttentionFusion:
    torch.manual_seed(1)
    made = AttentionFusion(WIDTH)
    torch.nn.init.normal_(made.bias_MD)
    return made


def known_of(masks: list[list[bool]]) -> torch.Tensor:
    """[B, M]; the tabular modality is there for everyone."""
    known_BM = torch.tensor(masks, dtype=torch.bool).reshape(-1, M)
    known_BM[:, TABULAR] = True
    return known_BM


@given(MASKS, st.integers(0, 10_000))
def test_weights_sum_to_one_and_are_exactly_zero_where_masked(
    masks: list[list[bool]], seed: int
) -> None:
    known_BM = known_of(masks)
    generator = torch.Generator().manual_seed(seed)
    vectors_BMD = 10 * torch.randn((*known_BM.shape, WIDTH), generator=generator)
    fused_BD, weight_BM = fusion()(vectors_BMD, known_BM)
    assert fused_BD.shape == (len(masks), WIDTH)
    assert (weight_BM[~known_BM] == 0).all()
    assert (weight_BM[known_BM] > 0).all()
    assert torch.allclose(weight_BM.sum(1), torch.ones(len(masks)), atol=1e-6)
    expected_BD = torch.einsum("bm,bmd->bd", weight_BM, vectors_BMD)
    assert torch.allclose(fused_BD, expected_BD, atol=1e-5)


@given(MASKS)
def test_the_vector_of_a_masked_modality_moves_nothing(masks: list[list[bool]]) -> None:
    known_BM = known_of(masks)
    torch.manual_seed(0)
    vectors_BMD = torch.randn(*known_BM.shape, WIDTH)
    other_BMD = torch.where(known_BM.unsqueeze(-1), vectors_BMD, vectors_BMD + 1e6)
    made = fusion()
    for one, two in zip(made(vectors_BMD, known_BM), made(other_BMD, known_BM), strict=True):
        assert torch.equal(one, two)


def test_a_user_of_whom_only_the_tabular_modality_is_known() -> None:
    vectors_BMD = torch.randn(1, M, WIDTH)
    fused_BD, weight_BM = fusion()(vectors_BMD, known_of([[False] * M]))
    assert weight_BM.tolist() == [[float(m == TABULAR) for m in range(M)]]
    assert torch.equal(fused_BD, vectors_BMD[:, TABULAR])


def test_attention_differs_by_user_and_by_modality() -> None:
    vectors_BMD = torch.randn(1, 1, WIDTH).expand(2, M, WIDTH).clone()
    vectors_BMD[1] *= -2
    _, weight_BM = fusion()(vectors_BMD, known_of([[True] * M] * 2))
    assert not torch.allclose(weight_BM[0], weight_BM[1], atol=1e-3)
    # one vector for all: what is left is the modality's own bias
    assert weight_BM[0].unique().numel() == M


def test_a_masked_modality_gets_a_gradient_of_zero() -> None:
    made = fusion()
    vectors_BMD = torch.randn(3, M, WIDTH, requires_grad=True)
    known_BM = known_of([[False] * M] * 3)
    made(vectors_BMD, known_BM)[0].sum().backward()
    assert vectors_BMD.grad is not None
    assert (vectors_BMD.grad[~known_BM] == 0).all()
    assert (vectors_BMD.grad[known_BM] == 1).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters())


def test_half_precision_keeps_its_type_and_weights_in_full() -> None:
    made = fusion().to(torch.bfloat16)
    fused_BD, weight_BM = made(torch.randn(2, M, WIDTH).bfloat16(), known_of([[True] * M] * 2))
    assert (fused_BD.dtype, weight_BM.dtype) == (torch.bfloat16, torch.float32)
    assert weight_BM.sum(1).tolist() == pytest.approx([1, 1], abs=1e-6)
