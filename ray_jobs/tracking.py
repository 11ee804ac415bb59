"""A training's course by step, for TensorBoard and, where configured, Weights & Biases."""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from models.data.schema import UserError
from models.nets.fit import Loop, Step
from ray_jobs.config import WandbConfig

EVENTS = "tensorboard"  # the folder of the event files, in the run's


def check(config: WandbConfig | None) -> None:
    """Raises UserError when Weights & Biases is asked for and not there."""
    if config is not None and importlib.util.find_spec("wandb") is None:
        raise UserError("train.wandb: wandb is not installed; `pip install wandb`, or leave it out")


class Tracker:
    """Writes numbers by step of the optimiser. What was written after step `first` is dropped:
    a run that goes on from a checkpoint repeats it."""

    def __init__(self, folder: str, config: WandbConfig | None, first: int) -> None:
        self.writer = SummaryWriter(str(Path(folder) / EVENTS), purge_step=first)
        self.wandb: Any = None
        if config is not None:
            wandb = importlib.import_module("wandb")  # no dependency of ours: it may not be there

            name = Path(folder).name
            self.wandb = wandb.init(
                project=config.project,
                entity=config.entity,
                name=name,
                id=name,
                resume="allow",
                dir=folder,
            )

    def step(self, step: Step, loop: Loop) -> None:
        """The loss, rates and speed of a step, on rank 0."""
        self._write(
            {
                "train/step_loss": step.loss,
                "train/learning_rate": max(group["lr"] for group in loop.optimizer.param_groups),
                "train/rows_per_s_a_rank": step.rows / step.seconds,
                "train/waiting": step.waited / step.seconds,
            },
            loop.updates,
        )

    def epoch(self, epoch: Mapping[str, float], loop: Loop) -> None:
        """The losses of an epoch (`Epoch.to_dict()`), over all ranks."""
        values = {
            "train/loss": epoch["train_loss"],
            "select/loss": epoch["select_loss"],
            "train/rows_per_s": epoch["rows_per_s"],
            "train/padding": epoch["padding"],
        }
        self._write(values, loop.updates)

    def close(self) -> None:
        """Flush and end."""
        self.writer.close()
        if self.wandb is not None:
            self.wandb.finish()

    def _write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(dict(values), step=step)
