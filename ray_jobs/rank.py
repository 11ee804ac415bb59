"""One rank of a training: network, batches and loop, from a checkpoint on where there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from models.nets.fit import Epoch, Loop, Step, unwrapped
from models.nets.network import Network
from models.nets.pretrain_events import TowerSpec, load_tower
from models.nets.sharding import shard
from models.nets.text import encoder_to_train
from ray_jobs import checkpoint
from ray_jobs.checkpoint import History
from ray_jobs.config import Config
from ray_jobs.loader import Loader, Rows
from ray_jobs.observed import Figures, Observer, quality
from ray_jobs.snapshot import Snapshot

Stepped = Callable[[Step, Loop, History], None]


def unseen(step: Step, loop: Loop, history: History) -> None:
    """What is done after a step where nobody looks."""


@dataclass(frozen=True)
class Rank:
    """Which rank of how many, and what it runs on."""

    device: torch.device
    threads: int
    rank: int = 0
    ranks: int = 1
    wrap: Callable[[Network], nn.Module] = unwrapped
    figures: Figures = quality  # of the PD on the select role, after every epoch

    def train(
        self,
        config: Config,
        snapshot: Snapshot,
        frames: Rows,
        last: Path | None,
        done: Callable[[History, Loop], None],
        stepped: Stepped = unseen,
    ) -> None:
        """Train to the end, from the checkpoint `last` on. `done` is told all epochs so far after
        each of them, and `stepped` after each step of the optimiser."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(config.seed)  # the same on every rank: DDP starts from rank 0's weights
        network, wrap = network_of(config, snapshot), self.wrap
        if config.train.sharding == "fsdp":
            network, wrap = shard(network.to(self.device)), unwrapped
        observer = Observer(network, config.roles.pd, self.figures)
        loader = Loader(config, snapshot, frames, self.ranks)
        loop = Loop(network, config.train.loop, loader.steps, self.device, wrap)
        torch.manual_seed(config.seed + 1 + self.rank)  # dropout differs by rank
        history = [] if last is None else checkpoint.restore(last, loop, self.rank)

        def ended(epoch: Epoch, loop: Loop) -> None:
            history.append(epoch.to_dict() | observer.figures())
            done(history, loop)

        loop.run(
            lambda epoch: loader.fit(epoch, loop.step),
            loader.select,
            ended,
            lambda step, loop: stepped(step, loop, history),
        )


def network_of(config: Config, snapshot: Snapshot) -> Network:
    """The network that training starts from, with all that is pretrained of it."""
    encoder = encoder_to_train(config.network.text)
    network = Network(config.network, config.features, snapshot.stats, config.tasks, encoder)
    if config.network.behaviour.pretrained is not None:
        start = config.network.behaviour.pretrained
        load_tower(start, network.behaviour, tower_of(config, snapshot))
    return network


def tower_of(config: Config, snapshot: Snapshot) -> TowerSpec:
    """What a pretrained behaviour tower must fit to."""
    return TowerSpec.of(config.network, config.features, snapshot.stats.vocabulary)
