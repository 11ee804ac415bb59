"""One trial of a search, in a process of its own: a point of the space, trained as by `train`."""

import traceback
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from models.data.schema import UserError
from models.data.strict import Strict
from models.nets.fit import Loop
from ray_jobs.config import Config
from ray_jobs.frames import Frames
from ray_jobs.rank import History, Rank, history_of, keep, latest
from ray_jobs.snapshot import load
from ray_jobs.train import EPOCHS, trainer

RUN, FAILED, TRACE = "run", "failed", "trace"  # of a report
SEEDS_APART = 1000  # so that no epoch of one seed has the order of rows of another's


class Assignment(Strict):
    """What a trial's process is told. `config` has the point's values."""

    config: Config
    snapshot: str  # its folder
    folder: str  # for checkpoints
    runs: tuple[tuple[int, int | None], ...]  # a training each: added to the seed; fold
    folds: int | None
    share: float
    threads: int


def trial(told: dict[str, Any]) -> None:
    """What Ray Tune runs: each training in turn, each reported epoch by epoch.

    Whatever goes wrong in a training is reported too, so that only the loss of the process makes
    Tune try again.
    """
    assignment = Assignment.model_validate(told)
    ranks = assignment.config.train.workers
    try:
        for number in range(len(assignment.runs)):
            (_train if ranks == 1 else _train_ranks)(assignment, number)
    except Exception as error:
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        tune.report({FAILED: why, TRACE: traceback.format_exc()})


def _train(assignment: Assignment, number: int) -> None:
    """One training in this process, from its last checkpoint on."""
    _, fold = assignment.runs[number]
    config, snapshot = assignment.config, load(Path(assignment.snapshot))
    frames = Frames(
        snapshot, config.train.select_rows, config.seed, assignment.share, assignment.folds, fold
    )
    folder = Path(assignment.folder) / str(number)
    last = latest(folder)
    if last is not None:  # the driver may not have heard of it, or is another one
        _report(assignment, number, history_of(last))

    def done(history: History, loop: Loop) -> None:
        keep(folder, loop, history)
        _report(assignment, number, history)

    Rank(torch.device("cuda" if torch.cuda.is_available() else "cpu"), assignment.threads).train(
        _seeded(assignment, number),
        snapshot.model_copy(update={"rows": snapshot.rows | {"fit": frames.count()}}),
        frames,
        last,
        done,
    )


def _train_ranks(assignment: Assignment, number: int) -> None:
    """One training by several ranks of Ray Train, from its last checkpoint on."""
    config, snapshot = _seeded(assignment, number), load(Path(assignment.snapshot))
    callbacks = [_ToTune(number)]
    result = trainer(
        config, snapshot, Path(assignment.folder), str(number), callbacks=callbacks
    ).fit()
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as last:  # all of it may have been done before
        _report(assignment, number, history_of(Path(last)))


class _ToTune(TuneReportCallback):
    """Passes the epochs of a run of ranks on to Tune."""

    def __init__(self, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = number

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Called after every epoch, with a dictionary a rank."""
        told = {RUN: self.number, EPOCHS: metrics[0][EPOCHS]}
        super().after_report(run_context, [told], None)


def _seeded(assignment: Assignment, number: int) -> Config:
    seed = assignment.config.seed + assignment.runs[number][0] * SEEDS_APART
    return assignment.config.model_copy(update={"seed": seed})


def _report(assignment: Assignment, number: int, history: History) -> None:
    lacking = set(assignment.config.tune.objectives) - set(history[-1])
    if lacking:
        task = assignment.config.roles.pd
        raise UserError(f"{lacking.pop()}: there are not both outcomes of {task} to judge by")
    tune.report({RUN: number, EPOCHS: history})
