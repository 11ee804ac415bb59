"""Masked pooling over the steps of a sequence. Shapes: B rows, N steps, D width."""

import math

import torch
from torch import Tensor, nn

DAYS = 5.0, 1000.0  # that the fastest and the slowest component last, at first


class AttentionPool(nn.Module):
    """Softmax attention with one learned query beside a fading sum; a bias where nothing is.

    The attention says what matters most among the steps, whatever their number. The sum, each step
    behind a gate of its own, says how much of it there was, and how long ago: no weights that sum
    to one can tell how often something happened, nor that a lone step is old. Each component of a
    step fades as exp(−days / τ), with a τ of its own that is learned. `scale`: steps; keeps the sum
    near one. Source of the attention: Yang et al. 2016, "Hierarchical attention networks", eq. 5-7;
    of the fading: Che et al. 2018, "Recurrent neural networks for multivariate time series with
    missing values", eq. 10.
    """

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.query = nn.Linear(width, 1, bias=False)
        self.gate = nn.Linear(width, 1)
        self.scale = scale
        fastest, slowest = (-math.log(days) for days in DAYS)
        self.log_rate_D = nn.Parameter(torch.linspace(fastest, slowest, width))
        self.out = nn.Linear(2 * width, width)

    def forward(self, steps_BND: Tensor, known_BN: Tensor, days_BN: Tensor) -> Tensor:
        """[B, D] of steps that are `days_BN` old."""
        score_BN = self.query(torch.tanh(self.hidden(steps_BND))).squeeze(-1)
        weight_BN1 = masked_softmax(score_BN, known_BN).unsqueeze(-1).to(steps_BND.dtype)
        gate_BN1 = torch.sigmoid(self.gate(steps_BND)) * known_BN.unsqueeze(-1) / self.scale
        left_BND = torch.exp(-days_BN.unsqueeze(-1) * self.log_rate_D.exp())
        most_BD = (weight_BN1 * steps_BND).sum(1)
        sum_BD = (gate_BN1 * left_BND * steps_BND).sum(1)
        pooled_BD: Tensor = self.out(torch.cat([most_BD, sum_BD], 1))
        return pooled_BD


def masked_softmax(score_BN: Tensor, known_BN: Tensor) -> Tensor:
    """Softmax over the known entries in float32; all zeros where none is known."""
    score_BN = score_BN.float().masked_fill(~known_BN, -1e30)
    return torch.softmax(score_BN, dim=-1) * known_BN
