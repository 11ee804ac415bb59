"""One rank of a training: network, batches and loop, from a checkpoint on where there is one."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.nets.fit import Epoch, Loop, unwrapped
from models.nets.network import Network
from models.nets.pretrain_events import TowerSpec, load_tower
from models.nets.text import encoder_to_train
from ray_jobs.config import Config
from ray_jobs.loader import Frames, Loader
from ray_jobs.observed import Figures, Observer, quality
from ray_jobs.snapshot import Snapshot

WEIGHTS = "network.safetensors"
STATE = "loop.pt"
HISTORY = "epochs.json"
History = list[dict[str, Any]]  # `Epoch.to_dict()`, and what was observed


@dataclass(frozen=True)
class Rank:
    """Which rank of how many, and what it runs on."""

    device: torch.device
    threads: int
    rank: int = 0
    ranks: int = 1
    wrap: Callable[[Network], nn.Module] = unwrapped
    progress: Callable[[int, int], None] = lambda step, steps: None
    figures: Figures = quality  # of the PD on the select role, after every epoch

    def train(
        self,
        config: Config,
        snapshot: Snapshot,
        frames: Frames,
        checkpoint: Path | None,
        done: Callable[[History, Loop], None],
    ) -> None:
        """Train to the end; `done` is told all epochs so far after each of them."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(config.seed)  # the same on every rank: DDP starts from rank 0's weights
        network = network_of(config, snapshot)
        history: History = []
        if checkpoint is not None:
            network.load_state_dict(load_file(checkpoint / WEIGHTS))
            history = history_of(checkpoint)
        observer = Observer(network, config.roles.pd, self.figures)
        loader = Loader(config, snapshot, frames, self.ranks, self.progress)
        loop = Loop(network, config.train.loop, loader.steps, self.device, self.wrap)
        if checkpoint is not None:
            loop.resume(torch.load(checkpoint / STATE, weights_only=True))
        torch.manual_seed(config.seed + 1 + self.rank)  # dropout differs by rank

        def ended(epoch: Epoch, loop: Loop) -> None:
            history.append(epoch.to_dict() | observer.figures())
            done(history, loop)

        loop.run(loader.fit, loader.select, ended)


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


def save(folder: Path, loop: Loop, history: History) -> None:
    """Write what a rank needs to go on after this epoch."""
    weights = {k: v.cpu().contiguous() for k, v in loop.network.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    torch.save(loop.state(), folder / STATE)
    (folder / HISTORY).write_text(json.dumps(history), encoding="utf-8")


def history_of(checkpoint: Path) -> History:
    """The epochs until a checkpoint."""
    history: History = json.loads((checkpoint / HISTORY).read_text(encoding="utf-8"))
    return history


def keep(folder: Path, loop: Loop, history: History) -> None:
    """Save into a folder of checkpoints, in the place of the one before."""
    before = latest(folder)
    staged = folder / ".staged"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    save(staged, loop, history)
    os.replace(staged, folder / f"{len(history):04}")
    if before is not None:
        shutil.rmtree(before)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a folder."""
    return max(folder.glob("[0-9]*"), default=None)
