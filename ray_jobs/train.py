"""`train`: a snapshot → a network fine-tuned by DDP ranks → calibrated → a candidate artifact."""

import json
import os
import tempfile
from collections.abc import Iterator
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
from safetensors.torch import load_file, save_file

from models.data.schema import UserError
from models.data.tasks import Role
from models.nets.fit import Epoch, Loop, unwrapped
from models.nets.lora import merge_adapters
from models.nets.network import Network
from models.nets.pretrain_events import TowerSpec, check_tower, load_tower
from models.nets.text import encoder_to_train, load_tokenizer
from models.scoring import artifact
from models.scoring.fit_calibration import calibrators_of
from models.scoring.predict import Predictor
from ray_jobs import registry
from ray_jobs.config import Config
from ray_jobs.lake import Lake
from ray_jobs.loader import Loader
from ray_jobs.progress import say, watched
from ray_jobs.snapshot import Snapshot
from ray_jobs.storage import short_digest
from ray_jobs.unknown import unknown_tokens

WEIGHTS = "network.safetensors"
STATE = "loop.pt"
HISTORY = "epochs.json"
STEPS_A_REPORT = 5


def train(config: Config, lake: Lake, snapshot: Snapshot, name: str | None = None) -> Path:
    """Train on a snapshot, calibrate, save the artifact, register it as a candidate.

    A run that was cut off goes on after its last epoch. It is known by its `name`; by default,
    by all that determines it. Raises UserError.
    """
    unknown = unknown_tokens(config, snapshot)  # a wrong encoder is refused before ranks start
    if config.network.behaviour.pretrained is not None:
        check_tower(config.network.behaviour.pretrained, _tower(config, snapshot))
    run = name or _identity(config, snapshot)
    with watched("train") as board:
        try:
            result = _trainer(config, snapshot, run, board).fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
    best = result.get_best_checkpoint("select_loss", "min")
    assert best is not None and result.checkpoint is not None
    with best.as_directory() as weights, result.checkpoint.as_directory() as last:
        history = json.loads((Path(last) / HISTORY).read_text(encoding="utf-8"))
        path = Path(ray.get(_finish.remote(config, snapshot, weights, run, unknown)))
    (Path(config.work) / "artifacts" / f"{path.name}.epochs.json").write_text(json.dumps(history))
    registry.register(lake, path, snapshot.versions, {"epochs": history})
    say(f"train: candidate {path.name}, the best of {len(history)} epochs")
    return path


def _identity(config: Config, snapshot: Snapshot) -> str:
    """A name that the snapshot and the configuration of network and training determine."""
    parts = config.model_dump(mode="json", include={"seed", "network", "train"})
    return f"{Path(snapshot.folder).name}-{short_digest(parts)}"


def _trainer(config: Config, snapshot: Snapshot, run: str, board: Any) -> TorchTrainer:
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
            storage_path=str(Path(config.work).resolve() / "train"),
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
    """One rank: its shards, the network, the loop."""
    config = Config.model_validate(settings["config"])
    snapshot = Snapshot.model_validate(settings["snapshot"])
    context = ray.train.get_context()
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(config.seed)  # the same on every rank: DDP starts from rank 0's weights
    network = _network(config, snapshot)
    checkpoint = ray.train.get_checkpoint()
    history: list[dict[str, Any]] = []
    state: dict[str, Any] | None = None
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            network.load_state_dict(load_file(Path(folder) / WEIGHTS))
            state = torch.load(Path(folder) / STATE, weights_only=True)
            history = json.loads((Path(folder) / HISTORY).read_text(encoding="utf-8"))

    def progress(step: int, steps: int) -> None:
        if context.get_world_rank() == 0 and step % STEPS_A_REPORT == 0:
            settings["board"].at.remote(step, steps)

    loader = Loader(config, snapshot, _shard, context.get_world_size(), progress)
    wrap = prepare_model if context.get_world_size() > 1 else unwrapped
    loop = Loop(network, config.train.loop, loader.steps, get_device(), wrap)
    if state is not None:
        loop.resume(state)
    torch.manual_seed(config.seed + 1 + context.get_world_rank())  # dropout differs by rank

    def done(epoch: Epoch, loop: Loop) -> None:
        history.append(epoch.to_dict())
        _report(epoch, loop, history, settings["board"])

    loop.run(loader.fit, loader.select, done)


def _shard(role: Role, rows: int) -> Iterator[pl.DataFrame]:
    """This rank's rows of a role, `rows` at a time."""
    shard = ray.train.get_dataset_shard(role)
    for table in shard.iter_batches(batch_size=rows, batch_format="pyarrow"):
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        yield frame


def _network(config: Config, snapshot: Snapshot) -> Network:
    encoder = encoder_to_train(config.network.text)
    network = Network(config.network, config.features, snapshot.stats, config.tasks, encoder)
    if config.network.behaviour.pretrained is not None:
        start = config.network.behaviour.pretrained
        load_tower(start, network.behaviour, _tower(config, snapshot))
    return network


def _tower(config: Config, snapshot: Snapshot) -> TowerSpec:
    """What a pretrained behaviour tower must fit to."""
    return TowerSpec.of(config.network, config.features, snapshot.stats.vocabulary)


def _report(epoch: Epoch, loop: Loop, history: list[dict[str, Any]], board: Any) -> None:
    """Every rank reports (it is a barrier); rank 0 with a checkpoint."""
    metrics = epoch.to_dict()
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    board.line.remote(
        f"epoch {epoch.epoch}: train loss {epoch.train_loss:.4f}, select loss "
        f"{epoch.select_loss:.4f}, {epoch.rows_per_s:.0f} rows/s"
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = {k: v.cpu().contiguous() for k, v in loop.network.state_dict().items()}
        save_file(weights, Path(folder) / WEIGHTS)
        torch.save(loop.state(), Path(folder) / STATE)
        (Path(folder) / HISTORY).write_text(json.dumps(history), encoding="utf-8")
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))


@ray.remote(num_cpus=1)
def _finish(config: Config, snapshot: Snapshot, weights: str, run: str, unknown: float) -> str:
    """Calibrate the best epoch's network and save the artifact; its path."""
    torch.set_num_threads(os.cpu_count() or 1)
    network = _network(config, snapshot)
    network.load_state_dict(load_file(Path(weights) / WEIGHTS))
    if config.network.text.lora is not None:  # an artifact holds a plain encoder
        merge_adapters(network.text.encoder)
    tokenizer = load_tokenizer(config.network.text.encoder)
    predictor = Predictor(network, snapshot.stats, tokenizer, config.features.max_tokens)
    rows = snapshot.read("calibrate")
    calibrators, replicates = calibrators_of(predictor, rows, config.tasks, config.seed)
    spec = artifact.ModelSpec(
        tasks=config.tasks,
        roles=config.roles,
        features=config.features,
        network=config.network,
        stats=snapshot.stats,
        scorecard=config.scorecard,
        policy=config.policy,
        calibrators=calibrators,
        replicates=replicates,
        trained_on={
            "snapshot": Path(snapshot.folder).name,
            "versions": json.dumps(snapshot.versions, sort_keys=True),
            "seed": str(config.seed),
            "run": run,
            "unknown_tokens": f"{unknown:.4f}",  # of the fit role's texts
        },
    )
    return str(artifact.save(Path(config.work) / "artifacts", spec, network, tokenizer))
