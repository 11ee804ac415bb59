"""What a rank tells Ray Train and the driver: checkpoints, progress, and its course by step."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
from ray.train import Checkpoint

from models.nets.fit import Loop, Step
from ray_jobs import checkpoint
from ray_jobs.checkpoint import History
from ray_jobs.config import TrainConfig
from ray_jobs.tracking import Tracker

EPOCHS = "epochs"  # in a report of an epoch: all so far
SCORE = "select_loss"  # by which the best checkpoint is kept
# of a checkpoint within an epoch, so that it is never the best; Ray cannot store an infinite one,
# and takes one without a score for the best of all
WORST = sys.float_info.max
SHOWN_S = 0.5  # seconds between looks at the progress


class Reporter:
    """Of one rank. `folder` is the run's; `board` shows progress, where somebody looks."""

    def __init__(self, config: TrainConfig, folder: str, rank: int, board: Any) -> None:
        self.config, self.folder, self.rank, self.board = config, folder, rank, board
        self.tracker: Tracker | None = None
        self.shown = time.monotonic()

    def stepped(self, step: Step, loop: Loop, history: History) -> None:
        """After each step of the optimiser."""
        if self.rank == 0:
            self._tracker(loop.updates).step(step, loop)
            if time.monotonic() - self.shown > SHOWN_S:
                self._at(loop, f", {step.rows / step.seconds:,.0f} rows/s a rank")
        every = self.config.checkpoint_steps
        if every is not None and loop.updates % every == 0 and loop.step < loop.steps_per_epoch:
            with loop.average.applied():
                self._report({SCORE: WORST}, loop, history)

    def done(self, history: History, loop: Loop) -> None:
        """After each epoch, when the network has its averaged weights."""
        if self.rank == 0:
            self._tracker(loop.updates).epoch(history[-1], loop)
            self._at(loop)
            if self.board is not None:
                self.board.line.remote(_line(history[-1], loop))
        self._report(history[-1] | {EPOCHS: history}, loop, history)

    def close(self) -> None:
        """Finish what is written beside the checkpoints."""
        if self.tracker is not None:
            self.tracker.close()

    def _tracker(self, updates: int) -> Tracker:
        """Opened at the first step, when it is known which one that is."""
        if self.tracker is None:
            self.tracker = Tracker(self.folder, self.config.wandb, updates)
        return self.tracker

    def _at(self, loop: Loop, speed: str = "") -> None:
        if self.board is not None:
            self.board.at.remote(loop.updates, loop.total_updates, speed)
        self.shown = time.monotonic()

    def _report(self, metrics: dict[str, Any], loop: Loop, history: History) -> None:
        """Every rank reports (it is a barrier), each with its part of the checkpoint."""
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), loop, history, self.rank)
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


def _line(epoch: dict[str, Any], loop: Loop) -> str:
    left = (loop.config.epochs - loop.epoch) * epoch["seconds"]
    return (
        f"epoch {epoch['epoch']}: train loss {epoch['train_loss']:.4f}, "
        f"select loss {epoch['select_loss']:.4f}, {epoch['rows_per_s']:.0f} rows/s "
        f"in {epoch['precision']}, {epoch['waiting']:.1%} waiting for data, "
        f"{epoch['padding']:.1%} padding, {left:.0f} s left at most"
    )
