"""Masked pooling over the steps of a sequence. Shapes: B rows, N steps, D width."""

import torch
from torch import Tensor, nn

SUM_SCALE = 16.0  # steps; keeps a sum of some dozens near one


class AttentionPool(nn.Module):
    """Softmax attention with one learned query, the masked mean and the masked sum; zero where
    nothing is. A mean cannot tell how often something happened; a sum can.

    Source of the attention: Yang et al. 2016, "Hierarchical attention networks", eq. 5-7.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.query = nn.Linear(width, 1, bias=False)
        self.out = nn.Linear(3 * width, width)

    def forward(self, steps_BND: Tensor, known_BN: Tensor) -> Tensor:
        """[B, D]."""
        score_BN = self.query(torch.tanh(self.hidden(steps_BND))).squeeze(-1)
        weight_BN = masked_softmax(score_BN, known_BN).to(steps_BND.dtype)
        each_BN = known_BN.to(steps_BND.dtype)
        mean_BN = each_BN / known_BN.sum(1, keepdim=True).clamp(min=1)
        pooled_B3D = torch.stack([weight_BN, mean_BN, each_BN / SUM_SCALE], 1) @ steps_BND
        return self.out(pooled_B3D.flatten(1))  # type: ignore[no-any-return]  # torch: Any


def masked_softmax(score_BN: Tensor, known_BN: Tensor) -> Tensor:
    """Softmax over the known entries in float32; all zeros where none is known."""
    score_BN = score_BN.float().masked_fill(~known_BN, -1e30)
    return torch.softmax(score_BN, dim=-1) * known_BN
