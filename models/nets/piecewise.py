"""Piecewise-linear encoding of scores. Shapes: … any, K bins."""

from typing import cast

import torch
from scipy.special import ndtri
from torch import Tensor, nn

from models.data.stats import TAIL


class PiecewiseLinear(nn.Module):
    """A score as how far it has gone through each of `bins` bins: 0 before a bin, 1 beyond it.

    A linear layer on top is then any function that bends at the bins' edges. These are quantiles of
    the fit role: what comes in are its normal scores (`models.data.stats.Scale`), whose quantiles
    are those of the normal distribution. Source: Gorishniy, Rubachev and Babenko 2022, "On
    embeddings for numerical features in tabular deep learning", eq. 1.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        shares = torch.linspace(0, 1, bins + 1).clamp(TAIL, 1 - TAIL)
        edges = torch.from_numpy(ndtri(shares.double().numpy())).float()
        self.register_buffer("start_K", edges[:-1], persistent=False)
        self.register_buffer("width_K", edges.diff(), persistent=False)

    def forward(self, score: Tensor) -> Tensor:
        """[…, K] of […]."""
        start_K, width_K = cast(Tensor, self.start_K), cast(Tensor, self.width_K)
        return ((score.unsqueeze(-1) - start_K) / width_K).clamp(0, 1)
