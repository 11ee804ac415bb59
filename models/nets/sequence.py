"""The behaviour tower: a user's last events in order → one vector.

Shapes: B rows, S events, X numbers of an event, D width.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from models.data.batch import Batch
from models.data.strict import Strict
from models.nets.pooling import AttentionPool

NUMBERS = 3  # amount, time gap, age
EVENTS = 8.0  # of a kind among a user's last, about


class BehaviourConfig(Strict):
    """A Transformer over the last events."""

    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)


class BehaviourTower(nn.Module):
    """Event embedding → a width-3 convolution over neighbours → Transformer → pooled.

    The convolution gives each event its neighbours before any attention is learned: what stands
    directly after what is then a local pattern.
    """

    def __init__(
        self,
        config: BehaviourConfig,
        width: int,
        dropout: float,
        types: int,
        categories: int,
        max_events: int,
    ) -> None:
        super().__init__()
        self.event_type = nn.Embedding(types, width, padding_idx=0)
        self.category = nn.Embedding(categories, width, padding_idx=0)
        self.hour = nn.Embedding(24, width)
        self.weekday = nn.Embedding(7, width)
        self.numbers = nn.Linear(NUMBERS, width)
        self.position = nn.Embedding(max_events, width)
        self.neighbours = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.pool = AttentionPool(width, EVENTS)
        for embedding in (self.event_type, self.category, self.hour, self.weekday, self.position):
            nn.init.normal_(embedding.weight, std=0.3)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, D], and [B] bool: whether the user has an event."""
        known_BS = batch.type_BS > 0
        count_B1 = known_BS.sum(1, keepdim=True)
        steps = torch.arange(known_BS.shape[1], device=known_BS.device)
        from_last_BS = (count_B1 - 1 - steps).clamp(min=0)  # 0: the newest event
        events_BSD = (
            self.event_type(batch.type_BS)
            + self.category(batch.category_BS)
            + self.hour(batch.hour_BS)
            + self.weekday(batch.weekday_BS)
            + self.numbers(batch.event_BSX)
            + self.position(from_last_BS)
        ) * known_BS.unsqueeze(-1)
        local_BSD = self.neighbours(events_BSD.transpose(1, 2)).transpose(1, 2)
        events_BSD = self.norm(events_BSD + torch.relu(local_BSD))
        # a row without events attends to its padding: masked rows would give NaN
        visible_BS = known_BS | ~known_BS.any(1, keepdim=True)
        mask_BS = torch.zeros_like(visible_BS, dtype=events_BSD.dtype)
        mask_BS = mask_BS.masked_fill(~visible_BS, -1e9)
        steps_BSD = self.layers(events_BSD, src_key_padding_mask=mask_BS)
        return self.pool(steps_BSD, known_BS), known_BS.any(1)
