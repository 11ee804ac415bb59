"""Masked-language modelling: which tokens are asked for."""

from pathlib import Path

import pytest
import torch

from models.nets.pretrain_masked import IGNORED, MaskedTokens
from models.nets.text import load_encoder


def test_only_masked_tokens_are_asked_for(encoder_folder: Path) -> None:
    model = MaskedTokens(load_encoder(str(encoder_folder)))
    tokens = torch.tensor([[2, 5, 4, 7, 3, 0, 0, 0]])
    mask = (tokens > 0).long()
    labels = torch.full_like(tokens, IGNORED)
    assert model(tokens, mask, labels).item() == 0
    labels[0, 2] = 6
    loss = model(tokens, mask, labels)
    hidden = model.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state[0, 2]
    scores = model.words.weight @ model.transform(hidden) + model.bias_V
    assert loss.item() == pytest.approx(-torch.log_softmax(scores, 0)[6].item(), rel=1e-5)
