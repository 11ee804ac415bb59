"""The tabular tower: scaled columns → one vector.

Shapes: B rows, F tabular, C categorical, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.data.batch import Batch


def mlp(inputs: int, width: int, dropout: float) -> nn.Sequential:
    """Two hidden layers with GELU."""
    return nn.Sequential(
        nn.Linear(inputs, 2 * width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(2 * width, width),
    )


class TabularTower(nn.Module):
    """Scores of the columns, flags of what is missing, and embedded categories."""

    def __init__(self, columns: int, levels: Sequence[int], width: int, dropout: float) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Embedding(n + 1, 8) for n in levels)
        inputs = 2 * columns + 8 * len(levels)
        self.deep = mlp(inputs, width, dropout)
        self.wide = nn.Linear(inputs, width)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, D], and [B] bool: always known."""
        parts = [batch.tabular_BF, batch.missing_BF]
        parts += [e(batch.categorical_BC[:, k]) for k, e in enumerate(self.levels)]
        inputs = torch.cat(parts, 1)
        known_B = torch.ones(len(inputs), dtype=torch.bool, device=inputs.device)
        return self.wide(inputs) + self.deep(inputs), known_B
