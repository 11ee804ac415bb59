"""The behaviour tower: a user's last events in order → one vector.

Shapes: B rows, S events, D width.
"""

from torch import Tensor, nn

from models.data.batch import Batch
from models.nets.config import BehaviourConfig
from models.nets.encoders import ConvolutionEncoder, RecurrentEncoder, TransformerEncoder
from models.nets.events import EventEmbedding
from models.nets.pooling import AttentionPool

EVENTS = 8.0  # of a kind among a user's last, about


def encoder_of(config: BehaviourConfig, width: int, dropout: float) -> nn.Module:
    """The configured encoder of a sequence."""
    match config.encoder:
        case "transformer":
            return TransformerEncoder(width, dropout, config.layers, config.heads)
        case "cnn":
            return ConvolutionEncoder(width, dropout, config.layers)
        case "gru":
            return RecurrentEncoder(nn.GRU, width, dropout, config.layers)
        case "lstm":
            return RecurrentEncoder(nn.LSTM, width, dropout, config.layers)


class BehaviourTower(nn.Module):
    """Events embedded → encoded in their order → pooled."""

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
        self.events = EventEmbedding(width, types, categories, max_events, config.amounts)
        self.encoder = encoder_of(config, width, dropout)
        self.pool = AttentionPool(width, EVENTS)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """[B, D], and [B] bool: whether the user has an event."""
        events_BSD, known_BS = self.events(batch)
        steps_BSD = self.encoder(events_BSD, known_BS)
        return self.pool(steps_BSD, known_BS, batch.event_days), known_BS.any(1)
