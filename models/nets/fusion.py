"""Softmax attention over modalities. Shapes: B rows, M modalities, D width."""

import torch
from torch import Tensor, nn

from models.nets.pooling import masked_softmax

MODALITIES = ("text", "behaviour", "tabular", "social")


class AttentionFusion(nn.Module):
    """f = Σ α_m · f_m with α = softmax(v · tanh(W f_m + b_m)) over the modalities that are there.

    A user's weights α are part of the answer: how much each modality was listened to.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.bias_MD = nn.Parameter(torch.zeros(len(MODALITIES), width))
        self.query = nn.Linear(width, 1, bias=False)

    def forward(self, vectors_BMD: Tensor, known_BM: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D], and the weights [B, M], which sum to 1."""
        score_BM = self.query(torch.tanh(self.hidden(vectors_BMD) + self.bias_MD)).squeeze(-1)
        weight_BM = masked_softmax(score_BM, known_BM)
        fused_BD = (weight_BM.to(vectors_BMD.dtype).unsqueeze(-1) * vectors_BMD).sum(1)
        return fused_BD, weight_BM
