"""Masked pooling over the steps of a sequence. Shapes: B rows, N steps, D width."""

import torch
from torch import Tensor, nn


class AttentionPool(nn.Module):
    """Softmax attention with one learned query beside a gated sum; zero where nothing is.

    The attention says what matters most among the steps, whatever their number. The sum, each
    step behind a gate of its own, says how much of it there was: a mean cannot tell how often
    something happened, nor fade a step with its age. `scale`: steps; keeps the sum near one.
    Source of the attention: Yang et al. 2016, "Hierarchical attention networks", eq. 5-7.
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.query = nn.Linear(width, 1, bias=False)
        self.gate = nn.Linear(width, 1)
        self.scale = scale
        self.out = nn.Linear(2 * width, width)

    def forward(self, steps_BND: Tensor, known_BN: Tensor) -> Tensor:
        """[B, D]."""
        score_BN = self.query(torch.tanh(self.hidden(steps_BND))).squeeze(-1)
        weight_BN = masked_softmax(score_BN, known_BN).to(steps_BND.dtype)
        gate_BN = torch.sigmoid(self.gate(steps_BND).squeeze(-1)) * known_BN / self.scale
        pooled_B2D = torch.stack([weight_BN, gate_BN], 1) @ steps_BND
        pooled_BD: Tensor = self.out(pooled_B2D.flatten(1))
        return pooled_BD


def masked_softmax(score_BN: Tensor, known_BN: Tensor) -> Tensor:
    """Softmax over the known entries in float32; all zeros where none is known."""
    score_BN = score_BN.float().masked_fill(~known_BN, -1e30)
    return torch.softmax(score_BN, dim=-1) * known_BN
