"""`train`: a snapshot → a network fine-tuned by DDP ranks → calibrated → a candidate artifact."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import ray
import ray.data
import ray.train
import torch
from ray.data import ExecutionOptions
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from safetensors.torch import load_file

from models.data.schema import UserError
from models.data.tasks import Role
from models.nets.fit import Loop, unwrapped
from models.nets.lora import merge_adapters
from models.nets.pretrain_events import check_tower
from models.nets.text import load_tokenizer
from models.scoring import artifact
from models.scoring.expert import Expert, fit_expert
from models.scoring.fit_calibration import calibrators_of
from models.scoring.predict import Predictor
from ray_jobs import registry
from ray_jobs.config import Config
from ray_jobs.lake import Lake
from ray_jobs.progress import say, watched
from ray_jobs.rank import WEIGHTS, History, Rank, history_of, network_of, save, tower_of
from ray_jobs.snapshot import Snapshot
from ray_jobs.storage import short_digest
from ray_jobs.unknown import unknown_tokens

EPOCHS = "epochs"  # of a report: all so far
STEPS_A_REPORT = 5


def train(config: Config, lake: Lake, snapshot: Snapshot, name: str | None = None) -> Path:
    """Train on a snapshot, calibrate, save the artifact, register it as a candidate.

    A run that was cut off goes on after its last epoch. It is known by its `name`; by default,
    by all that determines it. Raises UserError.
    """
    unknown = unknown_tokens(config, snapshot)  # a wrong encoder is refused before ranks start
    if config.network.behaviour.pretrained is not None:
        check_tower(config.network.behaviour.pretrained, tower_of(config, snapshot))
    run = name or _identity(config, snapshot)
    with watched("train") as board:
        try:
            result = trainer(config, snapshot, Path(config.work) / "train", run, board).fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
    best = result.get_best_checkpoint("select_loss", "min")
    assert best is not None and result.checkpoint is not None
    with best.as_directory() as weights, result.checkpoint.as_directory() as last:
        history = history_of(Path(last))
        path = Path(ray.get(_finish.remote(config, snapshot, weights, run, unknown)))
    (Path(config.work) / "artifacts" / f"{path.name}.epochs.json").write_text(json.dumps(history))
    registry.register(lake, path, snapshot.versions, {"epochs": history})
    say(f"train: candidate {path.name}, the best of {len(history)} epochs")
    return path


def _identity(config: Config, snapshot: Snapshot) -> str:
    """A name that the snapshot and the configuration of network and training determine."""
    parts = config.model_dump(mode="json", include={"seed", "network", "train"})
    return f"{Path(snapshot.folder).name}-{short_digest(parts)}"


def trainer(
    config: Config,
    snapshot: Snapshot,
    folder: Path,
    run: str,
    board: Any = None,
    callbacks: Sequence[Any] = (),
) -> TorchTrainer:
    """A run of ranks, its checkpoints under `folder`; `fit` goes on with one of the same name."""
    gpu = config.train.gpu
    if gpu is None:
        gpu = ray.cluster_resources().get("GPU", 0) > 0
    cores = os.cpu_count() or 1
    return TorchTrainer(
        _rank,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "snapshot": snapshot.model_dump(mode="json"),
            "threads": max(1, cores // config.train.workers),
            "board": board,
        },
        scaling_config=ScalingConfig(
            num_workers=config.train.workers,
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
            checkpoint_config=CheckpointConfig(
                num_to_keep=2,
                checkpoint_score_attribute="select_loss",
                checkpoint_score_order="min",
            ),
        ),
        # every epoch gives a rank the same rows, whose texts it may have encoded already
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
        datasets={
            "fit": _dataset(snapshot, "fit"),
            "select": _dataset(snapshot, "select").limit(config.train.select_rows),
        },
    )


def _dataset(snapshot: Snapshot, role: Role) -> ray.data.Dataset:
    files = snapshot.files(role)
    if not files:
        raise UserError(f"train: the snapshot has no row in the role {role}")
    return ray.data.read_parquet(files)


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


def _rank(settings: dict[str, Any]) -> None:
    """One rank: its shards, and the training."""
    config = Config.model_validate(settings["config"])
    snapshot = Snapshot.model_validate(settings["snapshot"])
    context, board = ray.train.get_context(), settings["board"]
    first = context.get_world_rank() == 0

    def progress(step: int, steps: int) -> None:
        if board is not None and first and step % STEPS_A_REPORT == 0:
            board.at.remote(step, steps)

    rank = Rank(
        get_device(),
        settings["threads"],
        context.get_world_rank(),
        context.get_world_size(),
        prepare_model if context.get_world_size() > 1 else unwrapped,
        progress,
    )
    checkpoint = ray.train.get_checkpoint()
    with nullcontext() if checkpoint is None else checkpoint.as_directory() as folder:
        start = None if folder is None else Path(folder)
        rank.train(config, snapshot, _shard, start, partial(_report, board))


def _shard(role: Role, rows: int) -> Iterator[pl.DataFrame]:
    """This rank's rows of a role, `rows` at a time."""
    shard = ray.train.get_dataset_shard(role)
    for table in shard.iter_batches(batch_size=rows, batch_format="pyarrow"):
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        yield frame


def _report(board: Any, history: History, loop: Loop) -> None:
    """Every rank reports (it is a barrier); rank 0 with a checkpoint."""
    epoch = history[-1]
    metrics = epoch | {EPOCHS: history}
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    if board is not None:
        board.line.remote(
            f"epoch {epoch['epoch']}: train loss {epoch['train_loss']:.4f}, select loss "
            f"{epoch['select_loss']:.4f}, {epoch['rows_per_s']:.0f} rows/s"
        )
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), loop, history)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


@ray.remote(num_cpus=1)
def _finish(config: Config, snapshot: Snapshot, weights: str, run: str, unknown: float) -> str:
    """Calibrate the best epoch's network and save the artifact; its path."""
    torch.set_num_threads(os.cpu_count() or 1)
    network = network_of(config, snapshot)
    network.load_state_dict(load_file(Path(weights) / WEIGHTS))
    if config.network.text.lora is not None:  # an artifact holds a plain encoder
        merge_adapters(network.text.encoder)
    tokenizer = load_tokenizer(config.network.text.encoder)
    predictor = Predictor(network, snapshot.stats, tokenizer, config.features.max_tokens)
    expert = _expert(config, snapshot)
    rows = snapshot.read("calibrate")
    calibration = calibrators_of(predictor, rows, config.tasks, config.seed, expert)
    spec = artifact.ModelSpec(
        tasks=config.tasks,
        roles=config.roles,
        features=config.features,
        network=config.network,
        stats=snapshot.stats,
        scorecard=config.scorecard,
        policy=config.policy,
        calibrators=calibration.calibrators,
        replicates=calibration.replicates,
        stack=calibration.stack,
        trained_on={
            "snapshot": Path(snapshot.folder).name,
            "versions": json.dumps(snapshot.versions, sort_keys=True),
            "seed": str(config.seed),
            "stack": config.stack.model_dump_json(),
            "run": run,
            "unknown_tokens": f"{unknown:.4f}",  # of the fit role's texts
        },
    )
    return str(artifact.save(Path(config.work) / "artifacts", spec, network, tokenizer, expert))


def _expert(config: Config, snapshot: Snapshot) -> Expert | None:
    """The expert that the configuration asks for beside the network."""
    if not config.stack.experts:
        return None
    labels = [f"y_{name}" for name in config.tasks]
    read = [*snapshot.tabular, *snapshot.social, *snapshot.categorical, *labels]
    fit, select = snapshot.read("fit", read), snapshot.read("select", read)
    return fit_expert(fit, select, config.tasks, config.seed, config.stack.resample)
