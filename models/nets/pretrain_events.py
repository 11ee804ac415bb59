"""Next-event prediction: a behaviour tower that has learned what users do next, without labels.

A user's events are cut at a random time. The tower reads what lies before it, as of that time,
just as it does in the network; from its one vector the next events are told: their types and
categories, amounts and time gaps. So the tower learns from everyone's events, and any encoder of
events can be pretrained, also one that looks both ways.

Shapes: B users, H next events, V types, C categories, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from models.data.batch import Batch, make_batch
from models.data.features import FeatureConfig, Features
from models.data.schema import UserError
from models.data.stats import Stats
from models.data.strict import Strict
from models.data.vocabulary import Vocabulary
from models.nets.config import ARCHITECTURE, BehaviourConfig, EventPretraining, NetworkConfig
from models.nets.pretrain import descend
from models.nets.sequence import BehaviourTower

WEIGHTS = "tower.safetensors"
SPEC = "tower.json"
LISTS = ("type", "category", "amount", "age_h", "gap_h", "hour", "weekday")  # events_…


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


class NextEvents(nn.Module):
    """A tower, and what it says of the next events."""

    def __init__(self, tower: BehaviourTower, spec: TowerSpec) -> None:
        super().__init__()
        self.tower = tower
        self.types = nn.Linear(spec.width, len(spec.event_types) + 2)
        self.categories = nn.Linear(spec.width, len(spec.categories) + 2)
        self.numbers = nn.Linear(spec.width, 2)  # amount and gap, as they are scaled in a batch

    def forward(self, past: Batch, following: Batch) -> Tensor:
        """The mean over the next events of cross-entropies and smooth absolute errors."""
        vector_BD = self.tower(past)[0]
        known_BH = following.type_BS > 0
        type_BHV = self.types(vector_BD).unsqueeze(1).expand(-1, known_BH.shape[1], -1)
        category_BHC = self.categories(vector_BD).unsqueeze(1).expand(-1, known_BH.shape[1], -1)
        number_BHX = self.numbers(vector_BD).unsqueeze(1).expand(-1, known_BH.shape[1], -1)
        return (
            functional.cross_entropy(type_BHV[known_BH].float(), following.type_BS[known_BH])
            + functional.cross_entropy(
                category_BHC[known_BH].float(), following.category_BS[known_BH]
            )
            + functional.smooth_l1_loss(
                number_BHX[known_BH].float(), following.event_BSX[known_BH][:, :2]
            )
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
    """A tower that has learned to tell the next events; each epoch's mean loss.

    `users`: user_key and the columns `events_*` of `Features`, with two events or more each. The
    same for the same users in the same order.
    """
    torch.manual_seed(seed)
    tower = spec.tower(dropout)
    model = NextEvents(tower, spec)
    cuts = _Cuts(users, stats, spec, config, seed)

    def loss_of(batch: tuple[Batch, Batch]) -> Tensor:
        past, following = batch
        loss: Tensor = model(past.to(device), following.to(device))
        return loss

    losses = descend(model, cuts, cuts.steps, loss_of, config, device, progress)
    return tower.cpu(), losses


class _Cuts:
    """Users in another order every epoch, the events of each cut at another time."""

    def __init__(
        self,
        users: pl.DataFrame,
        stats: Stats,
        spec: TowerSpec,
        config: EventPretraining,
        seed: int,
    ) -> None:
        self.users, self.stats, self.spec, self.config = users, stats, spec, config
        self.random = np.random.default_rng(seed)
        self.steps = -(-users.height // config.batch)

    def __call__(self, epoch: int) -> Iterator[tuple[Batch, Batch]]:
        """What lies before a user's cut, as of then, and the events that follow."""
        shuffled = self.users[self.random.permutation(self.users.height)]
        for some in shuffled.iter_slices(self.config.batch):
            parts = cut(some, self.spec.max_events, self.config.horizon, self.random)
            past, following = (
                make_batch(Features(part, (), (), ()), self.stats, _no_texts, 0) for part in parts
            )
            yield past, following


def cut(
    users: pl.DataFrame, max_events: int, horizon: int, random: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Feature rows of users as of a time between two of their events, and of the events after it.

    The place of the cut is drawn evenly from a user's events, the time evenly from the gap there.
    """
    sizes = users["events_type"].list.len().to_numpy()
    place = random.integers(1, sizes)
    start = np.maximum(0, place - max_events)
    cuts = users.with_columns(
        place=place, start=start, length=place - start, share=random.random(len(place))
    )
    before, after = (pl.col("events_age_h").list.get(pl.col("place") - k) for k in (1, 0))
    cuts = cuts.with_columns(age=(after + pl.col("share") * (before - after)).cast(pl.Float32))
    ages = pl.col("events_age_h")
    nothing = {
        "texts": pl.lit([], pl.List(pl.String)),
        "texts_age_d": pl.lit([], pl.List(pl.Float32)),
    }
    past = cuts.with_columns(_lists(pl.col("start"), pl.col("length")), **nothing)
    following = cuts.with_columns(_lists(pl.col("place"), pl.lit(horizon)), **nothing)
    return past.with_columns(ages - pl.col("age")), following.with_columns(ages * 0)


def _lists(start: pl.Expr, length: pl.Expr) -> list[pl.Expr]:
    return [pl.col(f"events_{name}").list.slice(start, length) for name in LISTS]


def _no_texts(
    texts: Sequence[str], *, truncation: bool, max_length: int
) -> dict[str, list[list[int]]]:
    raise AssertionError("these rows have no texts")


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
