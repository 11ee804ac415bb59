"""A behaviour tower that has learned from everyone's events, without labels.

By one of two objectives: to tell what a user does next (`pretrain_next`), or whose slices of events
belong together (`pretrain_slices`). Both ask the tower's one vector, as the network does, so that
its pooling is pretrained too, and any encoder of events can be, also one that looks both ways.
"""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.data.batch import Batch
from models.data.features import FeatureConfig
from models.data.schema import UserError
from models.data.stats import Stats
from models.data.strict import Strict
from models.data.vocabulary import Vocabulary
from models.nets.config import ARCHITECTURE, BehaviourConfig, EventPretraining, NetworkConfig
from models.nets.excerpts import Pairs
from models.nets.pretrain import descend
from models.nets.pretrain_next import NextBatches, NextEvents
from models.nets.pretrain_slices import SameUser, SliceBatches
from models.nets.sequence import BehaviourTower

WEIGHTS = "tower.safetensors"
SPEC = "tower.json"


class TowerSpec(Strict):
    """What a pretrained tower's weights fit to."""

    width: int
    behaviour: BehaviourConfig
    max_events: int
    event_types: tuple[str, ...]
    categories: tuple[str, ...]
    architecture: int = 1  # of those that did not say

    @classmethod
    def of(cls, network: NetworkConfig, features: FeatureConfig, words: Vocabulary) -> "TowerSpec":
        """That of a network with this configuration and vocabulary."""
        return cls(
            width=network.width,
            behaviour=network.behaviour.model_copy(update={"pretrained": None}),
            max_events=features.max_events,
            event_types=words.event_types,
            categories=words.categories,
            architecture=ARCHITECTURE,
        )

    def tower(self, dropout: float) -> BehaviourTower:
        """An untrained tower."""
        types, categories = len(self.event_types) + 2, len(self.categories) + 2
        return BehaviourTower(
            self.behaviour, self.width, dropout, types, categories, self.max_events
        )


def pretrain_events(
    users: pl.DataFrame,
    stats: Stats,
    spec: TowerSpec,
    dropout: float,
    config: EventPretraining,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None],
) -> tuple[BehaviourTower, list[float]]:
    """A tower that has learned by the objective; each epoch's mean loss.

    `users`: user_key and the columns `events_*` of `Features`, with two events or more each. The
    same for the same users in the same order. Raises UserError where there are too few of them.
    """
    torch.manual_seed(seed)
    tower = spec.tower(dropout)
    model: nn.Module
    batches: Pairs
    if config.objective == "next":
        model = NextEvents(tower, len(spec.event_types) + 2, len(spec.categories) + 2)
        batches = NextBatches(users, stats, spec.max_events, config, seed)
    else:
        model = SameUser(tower)
        batches = SliceBatches(users, stats, spec.max_events, config, seed)

    def loss_of(batch: tuple[Batch, Batch]) -> Tensor:
        one, other = batch
        loss: Tensor = model(one.to(device), other.to(device))
        return loss

    losses = descend(model, batches, batches.steps, loss_of, config, device, progress)
    return tower.cpu(), losses


def save_tower(folder: Path, tower: BehaviourTower, spec: TowerSpec) -> None:
    """Write a pretrained tower's weights and what they fit to."""
    save_file({k: v.contiguous() for k, v in tower.state_dict().items()}, folder / WEIGHTS)
    (folder / SPEC).write_text(spec.model_dump_json(indent=1), encoding="utf-8")


def check_tower(folder: str, expected: TowerSpec) -> None:
    """Raise UserError where a folder holds no pretrained tower, or one that does not fit."""
    key = f"network.behaviour.pretrained {folder!r}"
    try:
        text = (Path(folder) / SPEC).read_text(encoding="utf-8")
        spec = TowerSpec.model_validate_json(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: holds no tower that `raycredit pretrain` made") from error
    for field in TowerSpec.model_fields:
        if getattr(spec, field) != getattr(expected, field):
            raise UserError(
                f"{key}: pretrained with another {field} than this run's; run `raycredit pretrain` "
                "with this configuration and lake"
            )


def load_tower(folder: str, tower: BehaviourTower, expected: TowerSpec) -> None:
    """Give a tower the weights of a pretrained one. Raises UserError as `check_tower`."""
    check_tower(folder, expected)
    try:
        tower.load_state_dict(load_file(Path(folder) / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise UserError(f"network.behaviour.pretrained {folder!r}: {line}") from error
