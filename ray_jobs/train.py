"""`train`: a snapshot → a network fine-tuned by DDP ranks → calibrated → a candidate artifact."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import ray
import torch
from ray.train import Checkpoint

from models.data.schema import UserError
from models.nets import int8
from models.nets.config import ARCHITECTURE
from models.nets.lora import merge_adapters
from models.nets.pretrain_events import check_tower
from models.nets.text import check_encoder, encoder_digest, load_tokenizer
from models.scoring import artifact
from models.scoring.expert import Experts, fit_experts
from models.scoring.fit_calibration import Judged, calibrators_of, judge
from models.scoring.predict import Predictor
from ray_jobs import registry, tracking
from ray_jobs.checkpoint import history_of, weights_of
from ray_jobs.config import Config, TrainConfig
from ray_jobs.folds import FILE_FORMAT, check_folds, fold_of, read_judged, write_judged
from ray_jobs.frames import Frames
from ray_jobs.kept import with_kept
from ray_jobs.lake import Lake
from ray_jobs.parallel import result_of
from ray_jobs.progress import say, watched
from ray_jobs.rank import network_of, tower_of
from ray_jobs.ranks import check_room, fit, trainer
from ray_jobs.reporter import SCORE
from ray_jobs.snapshot import Snapshot
from ray_jobs.storage import short_digest
from ray_jobs.unknown import absent_modalities, unknown_tokens

IDENTITY = "identity"  # a file in a run's folder
FOLDS = "folds"  # a folder there, of a training that is cross-fitted
# of `train`, from one start of a run to the next
MAY_CHANGE = {
    "workers", "sharding", "gpu", "cpus_per_worker", "max_failures", "checkpoint_steps", "wandb"
}  # fmt: skip


def train(config: Config, lake: Lake, snapshot: Snapshot, name: str | None = None) -> Path:
    """Train on a snapshot, calibrate, save the artifact, register it as a candidate.

    A run that was cut off goes on after its last checkpoint. It is known by its `name`; by
    default, by all that determines it. Raises UserError.
    """
    _check_rows(config.train, snapshot)
    _check_outcomes(config, snapshot)
    check_room(config.train, config.train.workers)
    check_encoder(config.network.text, config.features.max_tokens)
    unknown = unknown_tokens(config, snapshot)
    absent_modalities(snapshot)
    if config.network.behaviour.pretrained is not None:
        check_tower(config.network.behaviour.pretrained, tower_of(config, snapshot))
    tracking.check(config.train.wandb)
    if config.scoring_precision == "int8":
        int8.check()
    identity, storage = _identity(config, snapshot), Path(config.work) / "train"
    run = name or identity
    _claim(storage / run, identity)
    out_of_fold = _cross_fitted(config, snapshot, storage, run)
    snapshot, best, last = _trained(config, snapshot, storage, run)
    with best.as_directory() as weights, last.as_directory() as newest:
        history = history_of(Path(newest))
        finish = _finish.remote(config, snapshot, weights, run, unknown, out_of_fold)
        path = Path(result_of(finish))
    (Path(config.work) / "artifacts" / f"{path.name}.epochs.json").write_text(json.dumps(history))
    registry.register(lake, path, snapshot.versions, {"epochs": history})
    say(f"train: candidate {path.name}, the best of {len(history)} epochs")
    return path


def _check_rows(config: TrainConfig, snapshot: Snapshot) -> None:
    """Each rank needs a row of both roles. Raises UserError."""
    ranks = config.workers if isinstance(config.workers, int) else config.workers[1]
    held = {
        "fit": snapshot.rows["fit"],
        "select": min(snapshot.rows["select"], config.select_rows),
    }
    for role, rows in held.items():
        if rows < ranks:
            raise UserError(f"train: {rows} rows of the role {role}, for {ranks} ranks")


def _check_outcomes(config: Config, snapshot: Snapshot) -> None:
    """Refuse before the training what its calibration would refuse. Raises UserError."""
    columns = [f"y_{name}" for name in config.tasks]
    select = snapshot.read("select", columns).frame.select(columns)
    if not any(select[column].count() for column in columns):
        raise UserError("train: no label of any task in the select role; see split.select")
    if config.train.cross_fit is not None:
        check_folds(snapshot, columns, config.train.cross_fit, config.seed)
    labels = snapshot.read("calibrate", columns).frame
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
    encoder = encoder_digest(config.network.text.encoder)
    of = short_digest({"architecture": ARCHITECTURE, "encoder": encoder, **parts})
    return f"{Path(snapshot.folder).name}-{of}"


def _claim(folder: Path, identity: str) -> None:
    """Make the folder of a run, or see that it is this run's. Raises UserError."""
    mark = folder / IDENTITY
    if mark.exists() and mark.read_text(encoding="utf-8") != identity:
        raise UserError(
            f"train --name {folder.name}: {folder} holds a run of another snapshot, seed, network "
            "or train; choose another name, or remove it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(identity, encoding="utf-8")


def _trained(
    config: Config, snapshot: Snapshot, storage: Path, run: str
) -> tuple[Snapshot, Checkpoint, Checkpoint]:
    """The snapshot as the network saw it, the checkpoints of its best epoch and of its last."""
    snapshot = with_kept(config, Frames(snapshot, config.train.select_rows, config.seed))
    with watched("train") as board:
        result = fit(trainer(config, snapshot, storage, run, board))
    best = result.get_best_checkpoint(SCORE, "min")
    assert best is not None and result.checkpoint is not None
    return snapshot, best, result.checkpoint


def _cross_fitted(config: Config, snapshot: Snapshot, storage: Path, run: str) -> list[Judged]:
    """What is said of each fold of the fit role by a network and experts trained without it.

    It is kept in the run's folder, a file a fold; of a fold's training nothing else is.
    """
    folds, parts = config.train.cross_fit or 0, []
    folder = storage / run / FOLDS
    said_by = [FILE_FORMAT, config.stack.model_dump(mode="json"), config.scoring_precision]
    judges = short_digest(said_by)
    for number in range(folds):
        name = f"{run}-fold-{number}"
        file, rows = folder / f"{number}-{judges}.parquet", folder / f"{name}-rows"
        if not file.exists():
            say(f"train: fold {number + 1} of {folds}")
            with fold_of(snapshot, number, folds, config.seed, rows) as fold:
                seen, best, _ = _trained(config, fold, folder, name)
                with best.as_directory() as weights:
                    write_judged(result_of(_judge_fold.remote(config, seen, weights)), file)
        for done in (folder / name, rows):  # a kill may have left them after the file was there
            shutil.rmtree(done, ignore_errors=True)
        parts.append(read_judged(file))
    return parts


@ray.remote(num_cpus=1)
def _judge_fold(config: Config, snapshot: Snapshot, weights: str) -> Judged:
    """What a network, and experts trained beside it, say of the fold that they did not see."""
    return _judged(config, snapshot, weights)[0]


@ray.remote(num_cpus=1)
def _finish(
    config: Config,
    snapshot: Snapshot,
    weights: str,
    run: str,
    unknown: float,
    out_of_fold: Sequence[Judged],
) -> str:
    """Calibrate the best epoch's network and save the artifact; its path.

    `out_of_fold`: what is said of the fit role, where the training is cross-fitted.
    """
    judged, predictor, experts = _judged(config, snapshot, weights)
    calibration = calibrators_of([*out_of_fold, judged], config.tasks, config.seed)
    spec = artifact.ModelSpec(
        tasks=config.tasks,
        roles=config.roles,
        features=config.features,
        network=config.network,
        stats=snapshot.stats,
        scorecard=config.scorecard,
        policy=config.policy,
        precision=config.scoring_precision,
        calibrators=calibration.calibrators,
        replicates=calibration.replicates,
        stack=calibration.stack,
        trained_on={
            "snapshot": Path(snapshot.folder).name,
            "versions": json.dumps(snapshot.versions, sort_keys=True),
            "seed": str(config.seed),
            "stack": config.stack.model_dump_json(),
            "cross_fit": str(config.train.cross_fit or 0),
            "run": run,
            "unknown_tokens": f"{unknown:.4f}",  # of the fit role's texts
        },
    )
    own = predictor.network, predictor.tokenizer, experts
    return str(artifact.save(Path(config.work) / "artifacts", spec, *own))


def _judged(config: Config, snapshot: Snapshot, weights: str) -> tuple[Judged, Predictor, Experts]:
    """What the best epoch's network and the experts say of the calibrate role; both of them."""
    torch.set_num_threads(os.cpu_count() or 1)
    network = network_of(config, snapshot)
    network.load_state_dict(weights_of(Path(weights)))
    if config.network.text.lora is not None:  # an artifact holds a plain encoder
        merge_adapters(network.text.encoder)
    tokenizer = load_tokenizer(config.network.text.encoder)
    predictor = Predictor(
        network, snapshot.stats, tokenizer, config.features.max_tokens, config.scoring_precision
    )
    experts = _experts(config, snapshot)
    rows = snapshot.read("calibrate")
    return judge(predictor, rows, config.tasks, experts), predictor, experts


def _experts(config: Config, snapshot: Snapshot) -> Experts:
    """The experts that the configuration asks for beside the network."""
    names = config.stack.experts
    if not names:
        return {}
    labels = [f"y_{name}" for name in config.tasks]
    read = [*snapshot.tabular, *snapshot.social, *snapshot.categorical, "texts", *labels]
    fit, select = snapshot.read("fit", read), snapshot.read("select", read)
    return fit_experts(names, fit, select, config.tasks, config.seed, config.stack.resample)
