"""Towers → fusion → heads.

Shapes: B rows, M modalities, U distinct texts, E width of the text encoder, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.data.batch import Batch
from models.data.features import FeatureConfig, tabular_columns
from models.data.stats import Stats
from models.data.tasks import Task
from models.nets.config import NetworkConfig
from models.nets.fusion import MODALITIES, ModalityDropout, fusion_of
from models.nets.heads import Alone, Heads
from models.nets.sequence import BehaviourTower
from models.nets.social import SocialTower
from models.nets.tabular import TabularTower
from models.nets.text import TextTower, freeze

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Outputs:
    """`tasks`: name → [B] logit or [B, 3] amount parameters; `weight_BM`: of the modalities.

    `alone`, in training: each modality's own logits [B, M, J] of the J binary tasks, and which
    modalities are there [B, M], withheld or not.
    """

    tasks: dict[str, Tensor]
    weight_BM: Tensor
    alone: tuple[Tensor, Tensor] | None = None


class Network(nn.Module):
    """The fused model of a user as of a time."""

    def __init__(
        self,
        config: NetworkConfig,
        features: FeatureConfig,
        stats: Stats,
        tasks: Mapping[str, Task],
        encoder: "PreTrainedModel",
    ) -> None:
        super().__init__()
        self.learned_M: Tensor
        words = stats.vocabulary
        width, dropout = config.width, config.dropout
        freeze(encoder, config.text.trainable_layers)
        self.text = TextTower(encoder, width, dropout, config.text.words)
        self.behaviour = BehaviourTower(
            config.behaviour,
            width,
            dropout,
            len(words.event_types) + 2,
            len(words.categories) + 2,
            features.max_events,
        )
        levels = [len(words.levels.get(c, ())) for c in words.categorical]
        columns = tabular_columns(words)
        kept = None if stats.kept is None else [columns.index(name) for name in stats.kept]
        self.tabular = TabularTower(config.tabular, len(columns), levels, width, dropout, kept)
        # with no edges at all the modality is masked for everyone, and has no tower
        self.social = SocialTower(len(stats.social), width, dropout) if stats.social else None
        learned_M = torch.tensor([name not in stats.absent for name in MODALITIES])
        self.register_buffer("learned_M", learned_M, persistent=False)  # the stats have it
        self.withhold = ModalityDropout(config.modality_dropout)
        self.fusion = fusion_of(config.fusion, width)
        self.heads = Heads(tasks, stats.targets, width, config.loss)
        self.alone = Alone(tasks, stats.targets, len(MODALITIES), width)

    def towers(self, batch: Batch, encoded_UE: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [B, M, D] and whether each modality is there [B, M], in order of MODALITIES.

        One that nobody of the fit role had is there for no one: its tower has learned nothing.
        """
        tabular = self.tabular(batch)
        none = torch.zeros_like(tabular[0]), torch.zeros_like(tabular[1])
        pairs = (
            self.text(encoded_UE, batch),
            self.behaviour(batch),
            tabular,
            none if self.social is None else self.social(batch),
        )
        vectors_BMD = torch.stack([v.float() for v, _ in pairs], 1)
        known_BM = torch.stack([k for _, k in pairs], 1)
        return vectors_BMD, known_BM & self.learned_M

    def fuse(self, vectors_BMD: Tensor, known_BM: Tensor) -> Outputs:
        """From the towers' vectors to the heads: the cheap part, run again to explain a score."""
        fused_BD, weight_BM = self.fusion(vectors_BMD, known_BM)
        return Outputs(self.heads(fused_BD), weight_BM)

    def forward(self, batch: Batch) -> Outputs:
        """Outputs of every task for the batch."""
        vectors_BMD, known_BM = self.towers(batch, self.text.encode(batch.texts))
        outputs = self.fuse(vectors_BMD, self.withhold(known_BM))
        if not self.training:
            return outputs
        return replace(outputs, alone=(self.alone(vectors_BMD), known_BM))

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums and counts [2, K] of the tasks' losses, and the loss of the modalities alone."""
        sums = self.heads.loss(outputs.tasks, batch.labels_BK)
        if outputs.alone is None:
            return sums, sums.new_zeros(())
        return sums, self.alone.loss(*outputs.alone, batch.labels_BK)
