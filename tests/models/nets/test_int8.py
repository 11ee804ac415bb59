"""Linear layers of integers: near the layer they stand for, each row by itself to the bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.data.batch import Tokenizer, make_texts
from models.data.schema import UserError
from models.nets.int8 import Int8Linear, check, exact, integers, to_int8
from models.nets.text import TextTower, load_encoder

pytestmark = pytest.mark.skipif(not exact(), reason="this processor adds in too few bits")

TEXTS = [" ".join(["good", "late", "money", "fast"][: 1 + n % 4] * (1 + n // 4)) for n in range(24)]


@pytest.fixture
def tower(encoder_folder: Path) -> TextTower:
    torch.manual_seed(3)
    return TextTower(load_encoder(str(encoder_folder)), 16, dropout=0.0).eval()


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 70), st.floats(1e-6, 1e6))
def test_integers_are_the_nearest(seed: int, rows: int, width: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values_NI = size * torch.randn(rows, width, generator=generator)
    values_NI[0] = 0.0
    integers_NI, scale_N1 = integers(values_NI)
    assert integers_NI.dtype == torch.int8 and integers_NI.min() >= -127
    assert torch.equal(integers_NI[0], torch.zeros(width, dtype=torch.int8))
    error_NI = (integers_NI * scale_N1 - values_NI).abs()
    assert (error_NI <= 0.5001 * scale_N1).all()


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 70), st.integers(1, 50))
def test_sums_are_exact(seed: int, rows: int, width: int, outputs: int) -> None:
    torch.manual_seed(seed)
    layer = Int8Linear(nn.Linear(width, outputs))
    inputs_NI = torch.randn(rows, width)
    integers_NI, scale_N1 = integers(inputs_NI)
    sums_NO = integers_NI.double() @ layer.integers_IO.double()
    expected_NO = sums_NO * scale_N1.double() * layer.scale_O.double() + layer.bias.double()
    with torch.no_grad():
        assert np.allclose(layer(inputs_NI), expected_NO, rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 70), st.integers(1, 70), st.booleans())
def test_a_row_is_the_same_alone_and_among_others(
    seed: int, rows: int, width: int, bias: bool
) -> None:
    torch.manual_seed(seed)
    layer = Int8Linear(nn.Linear(width, 5, bias=bias))
    inputs_NI = torch.randn(rows, width)
    with torch.no_grad():
        together_NO = layer(inputs_NI)
        assert all(torch.equal(layer(inputs_NI[n : n + 1])[0], together_NO[n]) for n in range(rows))


def test_an_encoder_keeps_its_weights_and_comes_near_to_what_it_was(
    tower: TextTower, tokenizer: Tokenizer
) -> None:
    weights = {name: value.clone() for name, value in tower.state_dict().items()}
    texts, _ = make_texts(TEXTS, tokenizer, 16)
    with torch.no_grad():
        before_UE = tower.encode(texts)
        to_int8(tower.encoder)
        after_UE = tower.encode(texts)
    kept = tower.state_dict()
    assert list(kept) == list(weights)
    assert all(torch.equal(kept[name], value) for name, value in weights.items())
    assert any(isinstance(module, Int8Linear) for module in tower.encoder.modules())
    assert not torch.equal(before_UE, after_UE)
    assert torch.cosine_similarity(before_UE, after_UE).min() > 0.99


def test_a_text_is_the_same_beside_any_of_its_length(
    tower: TextTower, tokenizer: Tokenizer
) -> None:
    to_int8(tower.encoder)
    with torch.inference_mode():
        texts, rank = make_texts(TEXTS, tokenizer, 16, evenness=1.0)
        assert all(mask.all() for mask in texts.masks)
        together_UE = tower.encode(texts)[torch.from_numpy(rank)]
        for place, text in enumerate(TEXTS):
            alone_UE = tower.encode(make_texts([text], tokenizer, 16, evenness=1.0)[0])
            assert torch.equal(alone_UE[0], together_UE[place])


def test_an_encoder_without_linear_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"Sequential.* no linear layers"):
        to_int8(nn.Sequential(nn.LayerNorm(8)))


def test_a_processor_that_is_not_exact_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    saturated = torch.full((64, 64), 32_767, dtype=torch.int32)
    monkeypatch.setattr(torch, "_int_mm", lambda left, right: saturated)
    with pytest.raises(UserError, match=r"scoring_precision: int8.*or fp32"):
        check()
