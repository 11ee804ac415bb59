"""One trial of a search, in a process of its own: a point of the space, trained as by `train`."""

import traceback
from pathlib import Path
from typing import Any

import polars as pl
import ray
import torch
from ray import cloudpickle, tune
from ray.tune.integration.ray_train import TuneReportCallback

from models.data.schema import UserError
from models.data.strict import Strict
from models.nets.fit import Loop
from ray_jobs.checkpoint import History, history_of, keep, latest
from ray_jobs.cluster import on_gpus
from ray_jobs.config import Config
from ray_jobs.frames import Frames
from ray_jobs.kept import with_kept
from ray_jobs.loader import SELECT_ROWS
from ray_jobs.observed import Figures, cost, fairness_gap, groups_of, quality
from ray_jobs.parallel import threads_of
from ray_jobs.rank import Rank, network_of
from ray_jobs.ranks import fit, trainer
from ray_jobs.reporter import EPOCHS
from ray_jobs.snapshot import load

RUN, FAILED, TRACE = "run", "failed", "trace"  # of a report
CONTROLLER = "controller"  # of a report: a handle of what runs the ranks, in bytes for Tune
SEEDS_APART = 1000  # so that no epoch of one seed has the order of rows of another's


class Assignment(Strict):
    """What a trial's process is told. `config` has the point's values."""

    config: Config
    snapshot: str  # its folder
    folder: str  # for checkpoints
    protected: str | None  # a file of user keys and attributes, where these are to be judged by
    runs: tuple[tuple[int, int | None], ...]  # a training each: added to the seed; fold
    folds: int | None
    share: float
    at_once: int  # trials on the cluster


def trial(told: dict[str, Any]) -> None:
    """What Ray Tune runs: each training in turn, each reported epoch by epoch.

    Whatever goes wrong in a training is reported too, so that only the loss of the process makes
    Tune try again.
    """
    assignment = Assignment.model_validate(told)
    ranks = assignment.config.train.workers
    try:
        fixed = _fixed(assignment)
        for number in range(len(assignment.runs)):
            (_train if ranks == 1 else _train_ranks)(assignment, number, fixed)
    except Exception as error:
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        tune.report({FAILED: why, TRACE: traceback.format_exc()})


def _fixed(assignment: Assignment) -> dict[str, float]:
    """The figures that training does not change."""
    config = assignment.config
    if "cost" not in config.tune.objectives:
        return {}
    torch.set_num_threads(threads_of(assignment.at_once))
    snapshot = with_kept(config, _frames(assignment, 0))
    return {"cost": cost(network_of(config, snapshot), config, snapshot)}


def _frames(assignment: Assignment, number: int) -> Frames:
    """The rows of one training."""
    config, (_, fold) = assignment.config, assignment.runs[number]
    return Frames(
        load(Path(assignment.snapshot)),
        config.train.select_rows,
        config.seed,
        assignment.share,
        assignment.folds,
        fold,
    )


def _train(assignment: Assignment, number: int, fixed: dict[str, float]) -> None:
    """One training in this process, from its last checkpoint on."""
    config, frames = _seeded(assignment, number), _frames(assignment, number)
    snapshot = with_kept(config, frames)
    folder = Path(assignment.folder) / str(number)
    last = latest(folder)
    if last is not None:  # the driver may not have heard of it, or is another one
        _report(assignment, number, fixed, history_of(last))

    def done(history: History, loop: Loop) -> None:
        keep(folder, loop, history)
        _report(assignment, number, fixed, history)

    # not where CUDA is there: Ray hides no GPU from a process that holds none
    device = torch.device("cuda" if on_gpus(config.train.gpu) else "cpu")
    Rank(device, threads_of(assignment.at_once), figures=_figures(assignment, frames)).train(
        config,
        snapshot.model_copy(update={"rows": snapshot.rows | {"fit": frames.count()}}),
        frames,
        last,
        done,
    )


def _figures(assignment: Assignment, frames: Frames) -> Figures:
    """What the select role is judged by."""
    if assignment.protected is None:
        return quality
    keys = pl.concat([part.select("user_key") for part in frames("select", SELECT_ROWS)])
    groups = groups_of(keys["user_key"], pl.read_parquet(assignment.protected))
    return lambda y, z: quality(y, z) | {"fairness_gap": fairness_gap(groups, y, z)}


def _train_ranks(assignment: Assignment, number: int, fixed: dict[str, float]) -> None:
    """One training by several ranks of Ray Train, from its last checkpoint on."""
    config = _seeded(assignment, number)
    snapshot = with_kept(config, _frames(assignment, number))
    callbacks = [_ToTune(number, fixed)]
    folder, ranks = Path(assignment.folder), assignment.config.tune.workers
    threads = threads_of(assignment.at_once * ranks)
    job = trainer(config, snapshot, folder, str(number), callbacks=callbacks, threads=threads)
    result = fit(job)
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as last:  # all of it may have been done before
        _report(assignment, number, fixed, history_of(Path(last)))


class _ToTune(TuneReportCallback):
    """Passes the epochs of a run of ranks on to Tune."""

    def __init__(self, number: int, fixed: dict[str, float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number, self.fixed = number, fixed

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Called after every report, with a dictionary a rank; epochs are of interest."""
        if EPOCHS not in metrics[0]:
            return
        epochs = [epoch | self.fixed for epoch in metrics[0][EPOCHS]]
        controller = cloudpickle.dumps(ray.get_runtime_context().current_actor)
        told = {RUN: self.number, EPOCHS: epochs, CONTROLLER: controller}
        super().after_report(run_context, [told], None)


def _seeded(assignment: Assignment, number: int) -> Config:
    seed = assignment.config.seed + assignment.runs[number][0] * SEEDS_APART
    return assignment.config.model_copy(update={"seed": seed})


def _report(assignment: Assignment, number: int, fixed: dict[str, float], history: History) -> None:
    lacking = set(assignment.config.tune.objectives) - set(history[-1]) - set(fixed)
    if lacking:
        task = assignment.config.roles.pd
        raise UserError(f"{lacking.pop()}: there are not both outcomes of {task} to judge by")
    tune.report({RUN: number, EPOCHS: [epoch | fixed for epoch in history]})
