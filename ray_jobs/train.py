"""`train`: a snapshot → a network fine-tuned by DDP ranks → calibrated → a candidate artifact."""

import json
import os
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
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device, prepare_model
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result

from models.data.schema import UserError
from models.data.tasks import Role
from models.nets.fit import unwrapped
from models.nets.lora import merge_adapters
from models.nets.pretrain_events import check_tower
from models.nets.text import load_tokenizer
from models.scoring import artifact
from models.scoring.expert import Experts, fit_experts
from models.scoring.fit_calibration import calibrators_of
from models.scoring.predict import Predictor
from ray_jobs import registry, tracking
from ray_jobs.checkpoint import history_of, weights_of
from ray_jobs.config import Config
from ray_jobs.frames import Frames
from ray_jobs.kept import with_kept
from ray_jobs.lake import Lake
from ray_jobs.parallel import result_of
from ray_jobs.progress import say, watched
from ray_jobs.rank import Rank, network_of, tower_of
from ray_jobs.reporter import SCORE, Reporter
from ray_jobs.snapshot import Snapshot
from ray_jobs.storage import short_digest
from ray_jobs.unknown import unknown_tokens

IDENTITY = "identity"  # a file in a run's folder
# of `train`, from one start of a run to the next
MAY_CHANGE = {
    "workers", "sharding", "gpu", "cpus_per_worker", "max_failures", "checkpoint_steps", "wandb"
}  # fmt: skip


def train(config: Config, lake: Lake, snapshot: Snapshot, name: str | None = None) -> Path:
    """Train on a snapshot, calibrate, save the artifact, register it as a candidate.

    A run that was cut off goes on after its last checkpoint. It is known by its `name`; by
    default, by all that determines it. Raises UserError.
    """
    _check_outcomes(config, snapshot)
    unknown = unknown_tokens(config, snapshot)  # a wrong encoder is refused before ranks start
    if config.network.behaviour.pretrained is not None:
        check_tower(config.network.behaviour.pretrained, tower_of(config, snapshot))
    tracking.check(config.train.wandb)
    run, storage = name or _identity(config, snapshot), Path(config.work) / "train"
    _claim(storage / run, _identity(config, snapshot))
    snapshot = with_kept(config, Frames(snapshot, config.train.select_rows, config.seed))
    with watched("train") as board:
        result = fit(trainer(config, snapshot, storage, run, board))
    best = result.get_best_checkpoint(SCORE, "min")
    assert best is not None and result.checkpoint is not None
    with best.as_directory() as weights, result.checkpoint.as_directory() as last:
        history = history_of(Path(last))
        path = Path(result_of(_finish.remote(config, snapshot, weights, run, unknown)))
    (Path(config.work) / "artifacts" / f"{path.name}.epochs.json").write_text(json.dumps(history))
    registry.register(lake, path, snapshot.versions, {"epochs": history})
    say(f"train: candidate {path.name}, the best of {len(history)} epochs")
    return path


def _check_outcomes(config: Config, snapshot: Snapshot) -> None:
    """Refuse before the training what its calibration would refuse. Raises UserError."""
    labels = snapshot.read("calibrate", [f"y_{name}" for name in config.tasks]).frame
    for name, task in config.tasks.items():
        distinct = labels[f"y_{name}"].drop_nulls().n_unique()
        if distinct == 0 or (distinct == 1 and task.kind == "binary"):
            what = "only one class" if distinct else "no label"
            raise UserError(f"tasks.{name}: {what} in the calibrate role; see split.calibrate")


def _identity(config: Config, snapshot: Snapshot) -> str:
    """A name that the snapshot and the configuration of network and training determine."""
    parts = config.model_dump(
        mode="json", include={"seed", "network", "train"}, exclude={"train": MAY_CHANGE}
    )
    return f"{Path(snapshot.folder).name}-{short_digest(parts)}"


def _claim(folder: Path, identity: str) -> None:
    """Make the folder of a run, or see that it is this run's. Raises UserError."""
    mark = folder / IDENTITY
    if mark.exists() and mark.read_text(encoding="utf-8") != identity:
        raise UserError(
            f"train --name {folder.name}: {folder} holds a run of another snapshot, seed, network "
            "or train.loop; choose another name, or remove it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(identity, encoding="utf-8")


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
    gpu = config.train.gpu
    if gpu is None:
        gpu = ray.cluster_resources().get("GPU", 0) > 0
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


def _rank(
    config: Config, snapshot: Snapshot, folder: str, board: Any, threads: int | None
) -> str | None:
    """One rank; what the user has to put right, if the loop said so. All ranks say the same."""
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
        except UserError as error:  # if it were raised, Ray Train would try again
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


@ray.remote(num_cpus=1)
def _finish(config: Config, snapshot: Snapshot, weights: str, run: str, unknown: float) -> str:
    """Calibrate the best epoch's network and save the artifact; its path."""
    torch.set_num_threads(os.cpu_count() or 1)
    network = network_of(config, snapshot)
    network.load_state_dict(weights_of(Path(weights)))
    if config.network.text.lora is not None:  # an artifact holds a plain encoder
        merge_adapters(network.text.encoder)
    tokenizer = load_tokenizer(config.network.text.encoder)
    predictor = Predictor(network, snapshot.stats, tokenizer, config.features.max_tokens)
    experts = _experts(config, snapshot)
    rows = snapshot.read("calibrate")
    calibration = calibrators_of(predictor, rows, config.tasks, config.seed, experts)
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
    return str(artifact.save(Path(config.work) / "artifacts", spec, network, tokenizer, experts))


def _experts(config: Config, snapshot: Snapshot) -> Experts:
    """The experts that the configuration asks for beside the network."""
    names = config.stack.experts
    if not names:
        return {}
    labels = [f"y_{name}" for name in config.tasks]
    read = [*snapshot.tabular, *snapshot.social, *snapshot.categorical, "texts", *labels]
    fit, select = snapshot.read("fit", read), snapshot.read("select", read)
    return fit_experts(names, fit, select, config.tasks, config.seed, config.stack.resample)
