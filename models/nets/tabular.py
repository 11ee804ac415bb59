"""The tabular tower: scaled columns → one vector.

Shapes: B rows, F tabular, K kept of them, C categorical, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.data.batch import Batch
from models.nets.config import TabularConfig
from models.nets.cross import CrossNetwork
from models.nets.piecewise import PiecewiseLinear

BINS = 8  # of a column


def mlp(inputs: int, width: int, dropout: float) -> nn.Sequential:
    """Two hidden layers with GELU."""
    return nn.Sequential(
        nn.Linear(inputs, 2 * width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(2 * width, width),
    )


class TabularTower(nn.Module):
    """Scores of the columns, flags of what is missing, and embedded categories.

    `kept`: the places of the columns that it sees; None: all.
    """

    kept: Tensor | None

    def __init__(
        self,
        config: TabularConfig,
        columns: int,
        levels: Sequence[int],
        width: int,
        dropout: float,
        kept: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        places = None if kept is None else torch.tensor(kept)
        self.register_buffer("kept", places, persistent=False)
        columns = columns if kept is None else len(kept)
        self.levels = nn.ModuleList(nn.Embedding(n + 1, 8) for n in levels)
        self.bins = PiecewiseLinear(BINS) if config.numbers == "piecewise" else None
        inputs = (1 + (BINS if self.bins else 1)) * columns + 8 * len(levels)
        self.deep = mlp(inputs, width, dropout)
        self.wide = nn.Linear(inputs, width)
        self.cross = None
        if config.cross_layers:
            self.cross = nn.Sequential(
                CrossNetwork(inputs, width, config.cross_layers),
                nn.Dropout(dropout),
                nn.Linear(inputs, width),
            )

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, D], and [B] bool: always known."""
        vectors_BD = self.vectors(batch.tabular_BF, batch.missing_BF, batch.categorical_BC)
        known_B = torch.ones(len(vectors_BD), dtype=torch.bool, device=vectors_BD.device)
        return vectors_BD, known_B

    def vectors(self, values_BF: Tensor, missing_BF: Tensor, categorical_BC: Tensor) -> Tensor:
        """[B, D] of the columns themselves."""
        values_BK, missing_BK = values_BF, missing_BF
        if self.kept is not None:
            values_BK, missing_BK = values_BK[:, self.kept], missing_BK[:, self.kept]
        scores = values_BK if self.bins is None else self.bins(values_BK).flatten(1)
        parts = [scores, missing_BK]
        parts += [e(categorical_BC[:, k]) for k, e in enumerate(self.levels)]
        inputs = torch.cat(parts, 1)
        vectors_BD: Tensor = self.wide(inputs) + self.deep(inputs)
        if self.cross is not None:
            vectors_BD = vectors_BD + self.cross(inputs)
        return vectors_BD
