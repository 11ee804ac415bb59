"""The social tower: what a user's ties say → one vector. Shapes: B rows, G social, D width."""

from torch import Tensor, nn

from models.data.batch import Batch
from models.nets.tabular import mlp


class SocialTower(nn.Module):
    """Degrees and matured outcomes of neighbours, by relation."""

    def __init__(self, columns: int, width: int, dropout: float) -> None:
        super().__init__()
        self.deep = mlp(columns, width, dropout)
        self.wide = nn.Linear(columns, width)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, D], and [B] bool: whether the user has a tie."""
        return self.wide(batch.social_BG) + self.deep(batch.social_BG), batch.tied_B
