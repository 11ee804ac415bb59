"""A run of Ray Train: ranks that train one network on shards of a snapshot's rows.

Imports no more than a rank needs: each of them, and their controller, imports it anew.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import ray.train
from ray.data import ExecutionOptions
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result

from models.data.schema import UserError
from models.data.tasks import Role
from models.nets.fit import DivergedError, unwrapped
from ray_jobs.cluster import on_gpus
from ray_jobs.config import Config, TrainConfig
from ray_jobs.rank import Rank
from ray_jobs.reporter import SCORE, Reporter
from ray_jobs.snapshot import Snapshot

BESIDE = 1  # CPU for the tasks that read rows


def fit(job: TorchTrainer) -> Result:
    """Run the ranks to their end. Raises UserError where the user can put it right."""
    try:
        result = job.fit()
    except TrainingFailedError as error:
        raise _cause(error) from error
    assert isinstance(result, Result)
    if result.return_value is not None:
        raise UserError(result.return_value)
    return result


def trainer(
    config: Config,
    snapshot: Snapshot,
    folder: Path,
    run: str,
    board: Any = None,
    callbacks: Sequence[Any] = (),
    threads: int | None = None,
) -> TorchTrainer:
    """A run of ranks, its checkpoints under `folder`; `fit` goes on with one of the same name.

    A rank has so many threads, or its share of its node's cores.
    """
    gpu = on_gpus(config.train.gpu)
    told = config, snapshot, str(folder.resolve() / run), board, threads
    return TorchTrainer(
        partial(_rank, *told),  # type: ignore[arg-type]  # what rank 0 returns is handed on
        scaling_config=ScalingConfig(
            num_workers=config.train.workers,  # type: ignore[arg-type]  # its base's
            use_gpu=gpu,
            resources_per_worker={
                "CPU": config.train.cpus_per_worker,
                **({"GPU": 1} if gpu else {}),
            },
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name=run,
            storage_path=str(folder.resolve()),
            callbacks=list(callbacks),
            failure_config=FailureConfig(max_failures=config.train.max_failures),
            # the best epoch's checkpoint; Ray Train keeps the newest one beside it
            checkpoint_config=CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=SCORE,
                checkpoint_score_order="min",
            ),
        ),
        # every epoch gives a rank the same rows, whose texts it may have encoded already
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
        datasets={
            "fit": dataset(snapshot, "fit"),
            "select": dataset(snapshot, "select").limit(config.train.select_rows),
        },
    )


def check_room(config: TrainConfig, workers: int | tuple[int, int]) -> None:
    """Raises UserError where the Ray that was started here never has room for the ranks; a cluster
    that was joined may grow."""
    if os.environ.get("RAY_ADDRESS"):
        return
    least, total = workers if isinstance(workers, int) else workers[0], ray.cluster_resources()
    needed, cpus = least * config.cpus_per_worker + BESIDE, total.get("CPU", 0.0)
    if needed > cpus:
        raise UserError(
            f"train.workers: {least} ranks of {config.cpus_per_worker:g} CPUs, and one beside them "
            f"for Ray Data, are {needed:g}; Ray here has {cpus:g} (cluster.num_cpus)"
        )
    if on_gpus(config.gpu) and least > total.get("GPU", 0.0):
        raise UserError(
            f"train.gpu: {least} ranks need a GPU each; this machine has {total.get('GPU', 0.0):g}"
        )


def dataset(snapshot: Snapshot, role: Role) -> ray.data.Dataset:
    """A role's rows, a file a task. Raises UserError when there are none."""
    files = snapshot.files(role)
    if not files:
        raise UserError(f"train: the snapshot has no row in the role {role}")

    # pickled with what it needs: a task that had to import this module would import torch
    def rows(named: pa.Table) -> Iterator[pa.Table]:
        for file in named["file"].to_pylist():
            with pq.ParquetFile(file) as opened:
                for place in range(opened.num_row_groups):
                    yield opened.read_row_group(place)

    # not read_parquet: for the footers it starts 32 actors, in each pass over the data anew
    units = ray.data.from_items([{"file": file} for file in files], override_num_blocks=len(files))
    return units.map_batches(rows, batch_format="pyarrow")


def _cause(error: TrainingFailedError) -> Exception:
    """What a user can put right, if a rank said so; else the failure itself."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UserError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    return error


def _rank(
    config: Config, snapshot: Snapshot, folder: str, board: Any, threads: int | None
) -> str | None:
    """One rank; what the user has to put right, where the loss is not finite.

    All ranks say that in the same step. Another mistake may be this rank's alone, such as an
    encoder that its node lacks: it is raised, so that the others do not wait.
    """
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    share = max(1, (os.cpu_count() or 1) // context.get_local_world_size())
    wrap = prepare_model if ranks > 1 else unwrapped
    own = Rank(get_device(), threads or share, rank, ranks, wrap)
    reporter, last = Reporter(config.train, folder, rank, board), ray.train.get_checkpoint()
    with nullcontext() if last is None else last.as_directory() as path:
        start = None if path is None else Path(path)
        try:
            own.train(config, snapshot, _shard, start, reporter.done, reporter.stepped)
        except DivergedError as error:  # if it were raised, Ray Train would try again
            return str(error)
        finally:
            reporter.close()
    return None


def _shard(role: Role, rows: int) -> Iterator[pl.DataFrame]:
    """This rank's rows of a role, `rows` at a time."""
    shard = ray.train.get_dataset_shard(role)
    for table in shard.iter_batches(batch_size=rows, batch_format="pyarrow"):
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        yield frame
