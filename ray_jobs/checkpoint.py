"""A training's checkpoint: what each rank leaves behind, merged by Ray Train into one folder.

network.safetensors   the averaged weights
loop.pt               the optimiser, the latest weights, the position
rank-<k>.pt           random numbers and sums of the epoch, of each rank
epochs.json           the epochs that are finished
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models.data.schema import UserError
from models.nets.fit import Loop
from models.nets.sharding import gathered, like

WEIGHTS = "network.safetensors"
STATE = "loop.pt"
OWN = "rank-{}.pt"
HISTORY = "epochs.json"

History = list[dict[str, Any]]  # `Epoch.to_dict()`, and what was observed


def save(folder: Path, loop: Loop, history: History, rank: int = 0) -> None:
    """Write this rank's part. The network must have its averaged weights; every rank must ask."""
    torch.save(loop.own_state(), folder / OWN.format(rank))
    state, weights = loop.state(), gathered(loop.network.state_dict())
    if rank == 0:
        save_file({k: v.cpu().contiguous() for k, v in weights.items()}, folder / WEIGHTS)
        torch.save(state, folder / STATE)
        (folder / HISTORY).write_text(json.dumps(history), encoding="utf-8")


def restore(folder: Path, loop: Loop, rank: int = 0) -> History:
    """Put a rank where the checkpoint was made; the epochs that were finished by then.

    A rank that was not there takes up new random numbers. Raises UserError for a checkpoint of
    another network, such as of an encoder that has since been replaced in its folder.
    """
    own_weights = loop.network.state_dict()
    weights = weights_of(folder)
    if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in own_weights.items()}:
        raise UserError(
            f"train: the checkpoint {folder.name} is of another network; remove the run's folder, "
            "or choose another --name"
        )
    loop.network.load_state_dict({k: like(v, own_weights[k]) for k, v in weights.items()})
    # by way of the CPU: the device that it was saved from may not be here, or be another rank's
    load = partial(torch.load, map_location="cpu", weights_only=True)
    own = folder / OWN.format(rank)
    loop.resume(load(folder / STATE), load(own) if own.exists() else None)
    return history_of(folder)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The averaged weights."""
    return load_file(folder / WEIGHTS)


def history_of(folder: Path) -> History:
    """The epochs that were finished."""
    history: History = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    return history


def keep(folder: Path, loop: Loop, history: History) -> None:
    """Save into a folder of checkpoints, in the place of the one before; of a single rank."""
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
