"""Modalities → one vector, by attention, gates or concatenation.

Every fusion also gives each user's weights of the modalities: above 0 for those that are there,
exactly 0 for the others, with a sum of 1. They say how far each modality was listened to, and are
part of the answer. Shapes: B rows, M modalities, D width.
"""

import torch
from torch import Tensor, nn

from models.nets.config import FusionConfig
from models.nets.pooling import masked_softmax

MODALITIES = ("text", "behaviour", "tabular", "social")


def fusion_of(config: FusionConfig, width: int) -> nn.Module:
    """The configured fusion."""
    match config.kind:
        case "attention":
            return AttentionFusion(width)
        case "gated":
            return GatedFusion(width)
        case "concat":
            return ConcatFusion(width)


class AttentionFusion(nn.Module):
    """f = Σ α_m · f_m with α = softmax(v · tanh(W f_m + b_m)) over the modalities that are there.

    The weights are α itself.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.bias_MD = nn.Parameter(torch.zeros(len(MODALITIES), width))
        self.query = nn.Linear(width, 1, bias=False)

    def forward(self, vectors_BMD: Tensor, known_BM: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D], and the weights [B, M]."""
        score_BM = self.query(torch.tanh(self.hidden(vectors_BMD) + self.bias_MD)).squeeze(-1)
        weight_BM = masked_softmax(score_BM, known_BM)
        fused_BD = (weight_BM.to(vectors_BMD.dtype).unsqueeze(-1) * vectors_BMD).sum(1)
        return fused_BD, weight_BM


class GatedFusion(nn.Module):
    """f = Σ z_m ⊙ f_m with gates z = σ(W [f_1, …, f_M, which are there] + b), one a component.

    What one modality says can so open or close another. The weights are each modality's mean gate
    as a share of all. Source: Arevalo et al. 2017, "Gated multimodal units for information fusion".
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(len(MODALITIES) * (width + 1), len(MODALITIES) * width)

    def forward(self, vectors_BMD: Tensor, known_BM: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D], and the weights [B, M]."""
        there_BM = known_BM.to(vectors_BMD.dtype)
        vectors_BMD = vectors_BMD * there_BM.unsqueeze(-1)
        logit_BX = self.gate(torch.cat([vectors_BMD.flatten(1), there_BM], 1))
        gate_BMD = torch.sigmoid(logit_BX).view_as(vectors_BMD)
        return (gate_BMD * vectors_BMD).sum(1), _shares(gate_BMD.float().mean(-1), known_BM)


class ConcatFusion(nn.Module):
    """f = V · gelu(Σ (W_m f_m + b_m)): one layer over the concatenation, another over its sum.

    A modality that is not there adds nothing. There is no weight in this fusion; given instead is
    the length of what each modality adds to the sum, as a share of all lengths.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(width, width) for _ in MODALITIES)
        self.out = nn.Linear(width, width)

    def forward(self, vectors_BMD: Tensor, known_BM: Tensor) -> tuple[Tensor, Tensor]:
        """[B, D], and the weights [B, M]."""
        parts = [part(vectors_BMD[:, m]) for m, part in enumerate(self.parts)]
        part_BMD = torch.stack(parts, 1) * known_BM.unsqueeze(-1)
        fused_BD = self.out(nn.functional.gelu(part_BMD.sum(1)))
        return fused_BD, _shares(part_BMD.float().norm(dim=-1), known_BM)


def _shares(size_BM: Tensor, known_BM: Tensor) -> Tensor:
    """Sizes as shares of those known; above 0 for each, however small."""
    size_BM = (size_BM + 1e-6) * known_BM
    return size_BM / size_BM.sum(1, keepdim=True).clamp(min=1e-6)


class ModalityDropout(nn.Module):
    """In training, withholds each modality of a row with probability `rate`, but never all.

    A row that would lose all of them keeps one of them, whichever. Source: Neverova et al. 2016,
    "ModDrop: adaptive multi-modal gesture recognition".
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, known_BM: Tensor) -> Tensor:
        """[B, M]: which modalities are left of those that are there."""
        if not self.training or self.rate == 0:
            return known_BM
        draw_BM = torch.rand(known_BM.shape, device=known_BM.device).masked_fill(~known_BM, -1.0)
        return known_BM & (draw_BM >= draw_BM.amax(1, keepdim=True).clamp(max=self.rate))
