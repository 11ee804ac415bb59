"""Events as vectors. Shapes: B rows, S events, X numbers of an event, D width."""

import torch
from torch import Tensor, nn

from models.data.batch import Batch
from models.nets.config import Amounts
from models.nets.piecewise import PiecewiseLinear

NUMBERS = 3  # amount, time gap, age
AMOUNT_BINS = 16


class EventEmbedding(nn.Module):
    """Type, category, amount, gap, age, local hour, weekday and place → a vector an event.

    A width-3 convolution gives each event its neighbours before any encoder is learned: what stands
    directly after what is then a local pattern.
    """

    def __init__(
        self, width: int, types: int, categories: int, max_events: int, amounts: Amounts
    ) -> None:
        super().__init__()
        self.event_type = nn.Embedding(types, width, padding_idx=0)
        self.category = nn.Embedding(categories, width, padding_idx=0)
        self.hour = nn.Embedding(24, width)
        self.weekday = nn.Embedding(7, width)
        self.bins = PiecewiseLinear(AMOUNT_BINS) if amounts == "piecewise" else None
        self.numbers = nn.Linear(NUMBERS + (AMOUNT_BINS if self.bins else 0), width)
        self.position = nn.Embedding(max_events, width)
        self.neighbours = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(width)
        for embedding in (self.event_type, self.category, self.hour, self.weekday, self.position):
            nn.init.normal_(embedding.weight, std=0.3)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, S, D], and [B, S] bool: where an event stands."""
        known_BS = batch.type_BS > 0
        count_B1 = known_BS.sum(1, keepdim=True)
        steps = torch.arange(known_BS.shape[1], device=known_BS.device)
        from_last_BS = (count_B1 - 1 - steps).clamp(min=0)  # 0: the newest event
        numbers_BSX = batch.event_BSX
        if self.bins is not None:
            numbers_BSX = torch.cat([numbers_BSX, self.bins(numbers_BSX[..., 0])], -1)
        events_BSD = (
            self.event_type(batch.type_BS)
            + self.category(batch.category_BS)
            + self.hour(batch.hour_BS)
            + self.weekday(batch.weekday_BS)
            + self.numbers(numbers_BSX)
            + self.position(from_last_BS)
        ) * known_BS.unsqueeze(-1)
        local_BSD = self.neighbours(events_BSD.transpose(1, 2)).transpose(1, 2)
        return self.norm(events_BSD + torch.relu(local_BSD)), known_BS
