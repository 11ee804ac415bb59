"""A training: the same twice, whatever is killed on the way, and nobody else's checkpoint."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.data.schema import UserError
from models.scoring import artifact
from models.scoring.fit_calibration import calibrators_of, judge
from models.scoring.scorer import Scorer
from ray_jobs import checkpoint, jobs, registry, snapshot, tracking, train
from ray_jobs.config import Config, WandbConfig
from ray_jobs.lake import Lake
from tuning.space import applied

EVERY = 10  # steps between checkpoints
MANAGER = "checkpoint_manager_snapshot.json"
Run = Callable[..., tuple[Path, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def shop(demo_run: Config, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The demo's snapshot, and a lake of its own; one rank, and no kept encodings."""
    folder = tmp_path_factory.mktemp("train")
    shutil.copytree(demo_run.lake, folder / "lake")
    shutil.copytree(Path(demo_run.work) / "snapshots", folder / "snapshots")
    exact = {"frozen_epochs": 0, "precision": "fp32", "batch_rows": 64}
    loop = demo_run.train.loop.model_copy(update=exact)
    own = {"workers": 1, "checkpoint_steps": EVERY, "loop": loop}
    ranks = demo_run.train.model_copy(update=own)
    return demo_run.model_copy(
        update={"lake": str(folder / "lake"), "work": str(folder), "train": ranks}
    )


@pytest.fixture(scope="module")
def run(shop: Config) -> Run:
    """Train under a name; the artifact and the epochs."""
    made = snapshot.snapshot(shop, jobs.tables(shop))

    def train_as(name: str, config: Config = shop) -> tuple[Path, list[dict[str, Any]]]:
        path = train.train(config, Lake(config.lake), made, name)
        epochs = json.loads(path.with_name(f"{path.name}.epochs.json").read_text())
        return path, epochs

    return train_as


@pytest.fixture(scope="module")
def undisturbed(run: Run) -> tuple[Path, list[dict[str, Any]]]:
    return run("undisturbed")


def walked(demo_run: Config) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the demo's own training, and its epochs."""
    path = Path(registry.champion(Lake(demo_run.lake)).path)
    epochs = json.loads(path.with_name(f"{path.name}.epochs.json").read_text())
    return Path(demo_run.work) / "train" / artifact.load_spec(path).trained_on["run"], epochs


def reports(config: Config, name: str) -> int:
    """How many checkpoints a run has had in all."""
    kept = Path(config.work) / "train" / name / MANAGER
    count: int = json.loads(kept.read_text())["current_report_index"]
    return count


def ranks_of_this_process() -> list[psutil.Process]:
    """The processes of Ray Train's workers on the Ray that this process has started."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if "RayTrainWorker" in process.name() or "RayTrainWorker" in " ".join(process.cmdline())
    ]


def kill_a_rank_after(folder: Path, stop: threading.Event, killed: list[int]) -> None:
    """SIGKILL to a rank once Ray Train knows of a checkpoint of its run."""
    while not stop.wait(0.02):
        if (folder / MANAGER).exists():
            for process in ranks_of_this_process()[:1]:
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return


@pytest.mark.faults
def test_a_killed_rank_goes_on_from_its_last_checkpoint_to_the_bit(
    shop: Config, run: Run, undisturbed: tuple[Path, list[dict[str, Any]]]
) -> None:
    stop, killed = threading.Event(), list[int]()
    folder = Path(shop.work) / "train" / "disturbed"
    killer = threading.Thread(target=kill_a_rank_after, args=(folder, stop, killed))
    killer.start()
    try:
        path, epochs = run("disturbed")
    finally:
        stop.set()
        killer.join()
    assert len(killed) == 1
    whole, expected = undisturbed
    assert [e["select_loss"] for e in epochs] == [e["select_loss"] for e in expected]
    assert [e["train_loss"] for e in epochs] == [e["train_loss"] for e in expected]
    weights = [(p / "model.safetensors").read_bytes() for p in (path, whole)]
    assert weights[0] == weights[1]
    # each checkpoint was made once, so that less than an interval was trained twice
    assert reports(shop, "disturbed") == reports(shop, "undisturbed") > len(epochs)


def test_only_the_best_epoch_and_the_newest_checkpoint_are_kept(demo_run: Config) -> None:
    folder, epochs = walked(demo_run)
    losses = [e["select_loss"] for e in epochs]
    kept = [path for path in folder.glob("checkpoint_*") if path.is_dir()]
    last_is_best = losses[-1] == min(losses)
    assert len(kept) == (1 if last_is_best else 2)
    ends = [json.loads((path / "epochs.json").read_text())[-1] for path in kept]
    assert min(losses) in [epoch["select_loss"] for epoch in ends]


def test_event_files_hold_every_step(demo_run: Config) -> None:
    folder, epochs = walked(demo_run)
    events = EventAccumulator(str(folder / tracking.EVENTS), {"scalars": 0}).Reload()
    steps = [event.step for event in events.Scalars("train/step_loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) % len(epochs) == 0
    losses = [event.value for event in events.Scalars("select/loss")]
    assert losses == pytest.approx([e["select_loss"] for e in epochs])


def test_a_name_of_another_run_is_refused(demo_run: Config) -> None:
    folder, _ = walked(demo_run)
    other = demo_run.model_copy(update={"seed": demo_run.seed + 1})
    tables = jobs.tables(demo_run)
    with pytest.raises(UserError, match=rf"train --name {folder.name}: .* choose another name"):
        train.train(other, tables.lake, snapshot.snapshot(demo_run, tables), folder.name)


def test_a_run_of_another_architecture_is_another_run(
    demo_run: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = snapshot.snapshot(demo_run, jobs.tables(demo_run))
    before = train._identity(demo_run, made)
    assert train._identity(demo_run, made) == before
    monkeypatch.setattr(train, "ARCHITECTURE", train.ARCHITECTURE + 1)
    assert train._identity(demo_run, made) != before


def test_a_run_of_a_replaced_encoder_is_another_run(demo_run: Config, tmp_path: Path) -> None:
    made = snapshot.snapshot(demo_run, jobs.tables(demo_run))
    config = applied(demo_run, {"network.text.encoder": str(tmp_path)})
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    before = train._identity(config, made)
    assert train._identity(config, made) == before
    file.write_bytes(b"others")
    assert train._identity(config, made) != before


@pytest.mark.parametrize(
    ("train_keys", "line"),
    [
        ({"workers": 500}, r"train\.workers: 500 ranks of .* are 251; Ray here has \d+ \(cluster"),
        ({"workers": [400, 500]}, r"train\.workers: 400 ranks"),
        ({"gpu": True}, r"train\.gpu: 2 ranks need a GPU each; this machine has 0"),
        ({"select_rows": 1}, r"train: 1 rows of the role select, for 2 ranks"),
    ],
)
def test_ranks_that_could_never_start_are_refused(
    demo_run: Config, train_keys: dict[str, Any], line: str
) -> None:
    tables = jobs.tables(demo_run)
    config = applied(demo_run, {f"train.{key}": value for key, value in train_keys.items()})
    with pytest.raises(UserError, match=line):
        train.train(config, tables.lake, snapshot.snapshot(demo_run, tables), "refused")
    assert not (Path(demo_run.work) / "train" / "refused").exists()


@pytest.mark.parametrize(("label", "what"), [(0.0, "only one class"), (None, "no label")])
def test_what_cannot_be_calibrated_is_refused_before_it_is_trained(
    demo_run: Config, tmp_path: Path, label: float | None, what: str
) -> None:
    tables = jobs.tables(demo_run)
    folder = shutil.copytree(snapshot.snapshot(demo_run, tables).folder, tmp_path / "snapshot")
    made = snapshot.load(Path(folder))
    for file in made.files("calibrate"):
        labels = pl.lit(label, dtype=pl.Float64).alias("y_fraud")
        pl.read_parquet(file).with_columns(labels).write_parquet(file)
    line = rf"^tasks\.fraud: {what} in the calibrate role; see split\.calibrate$"
    with pytest.raises(UserError, match=line):
        train.train(demo_run, tables.lake, made, "uncalibrated")
    assert not (Path(demo_run.work) / "train" / "uncalibrated").exists()


def test_a_cross_fitted_training_is_calibrated_by_what_folds_say(shop: Config, run: Run) -> None:
    """Each fold by the network and the experts of the rest; then the calibrate role."""
    folds, name = 2, "cross-fitted"
    loop = shop.train.loop.model_copy(update={"epochs": 1})
    own = shop.train.model_copy(update={"cross_fit": folds, "loop": loop})
    config, storage = shop.model_copy(update={"train": own}), Path(shop.work) / "train"
    path, _ = run(name, config)
    made = snapshot.snapshot(shop, jobs.tables(shop))
    assert [path.name for path in storage.glob(f"{name}*")] == [name]
    kept = sorted(path.name[:2] for path in (storage / name / train.FOLDS).iterdir())
    assert kept == ["0-", "1-"]
    judged = train._cross_fitted(config, made, storage, name)  # of the files that the run keeps
    sizes = [len(part.outcomes["default"]) for part in judged]
    assert sum(sizes) == made.rows["fit"] and min(sizes) > made.rows["fit"] / 3
    spec = artifact.load_spec(path)
    assert spec.trained_on["cross_fit"] == "2"
    scorer = Scorer.load(path)
    judged.append(judge(scorer.predictor, made.read("calibrate"), config.tasks, scorer.experts))
    found = calibrators_of(judged, config.tasks, config.seed)
    alone = calibrators_of(judged[-1:], config.tasks, config.seed)
    for task, calibrator in spec.calibrators.items():
        raw = [-3.0, 0.0, 2.0] if config.tasks[task].kind == "binary" else [1.0, 50.0, 900.0]
        wanted = pytest.approx(calibrator.apply(raw), rel=1e-4)
        assert found.calibrators[task].apply(raw) == wanted, task
        assert alone.calibrators[task].apply(raw) != wanted, task


def test_a_select_role_without_labels_is_refused(demo_run: Config, tmp_path: Path) -> None:
    tables = jobs.tables(demo_run)
    folder = shutil.copytree(snapshot.snapshot(demo_run, tables).folder, tmp_path / "snapshot")
    made = snapshot.load(Path(folder))
    for file in made.files("select"):
        nothing = [pl.lit(None, pl.Float64).alias(f"y_{name}") for name in demo_run.tasks]
        pl.read_parquet(file).with_columns(nothing).write_parquet(file)
    with pytest.raises(UserError, match=r"^train: no label of any task in the select role; see"):
        train.train(demo_run, tables.lake, made, "unselected")


def test_weights_and_biases_must_be_there_when_asked_for(shop: Config, run: Run) -> None:
    asked = shop.train.model_copy(update={"wandb": WandbConfig(project="x")})
    with pytest.raises(UserError, match=r"train\.wandb: wandb is not installed"):
        run("with-wandb", shop.model_copy(update={"train": asked}))
    assert not (Path(shop.work) / "train" / "with-wandb").exists()


@pytest.mark.faults
def test_a_loss_that_is_not_finite_stops_the_run_at_once(shop: Config, run: Run) -> None:
    """It is not tried again, and the line names step and users."""
    loop = shop.train.loop.model_copy(update={"learning_rate": 1e30})
    wild = shop.model_copy(update={"train": shop.train.model_copy(update={"loop": loop})})
    with pytest.raises(UserError, match=r"epoch 0, step \d+: the loss is \S+ for user_key -?\d+"):
        run("wild", wild)
    assert not (Path(shop.work) / "train" / "wild" / MANAGER).exists()


@pytest.mark.faults
def test_a_training_in_shards_goes_the_whole_road(shop: Config, run: Run) -> None:
    """Two ranks, each with a part of the weights, to checkpoints and an artifact of them all."""
    update = {"epochs": 2, "frozen_epochs": 0}
    loop = shop.train.loop.model_copy(update=update)
    own = {"loop": loop, "sharding": "fsdp", "workers": 2, "checkpoint_steps": EVERY}
    path, epochs = run(
        "in shards", shop.model_copy(update={"train": shop.train.model_copy(update=own)})
    )
    assert [epoch["epoch"] for epoch in epochs] == [0, 1]
    assert epochs[1]["train_loss"] < epochs[0]["train_loss"]
    weights = artifact.load(path).network.state_dict()
    assert all(torch.isfinite(weight).all() for weight in weights.values())


@pytest.mark.faults
def test_the_last_good_checkpoint_is_kept(shop: Config, run: Run) -> None:
    """The first epoch, at rest, is fine; in the second the encoder runs away."""
    update = {"epochs": 2, "frozen_epochs": 1, "text_learning_rate": 1e30}
    loop = shop.train.loop.model_copy(update=update)
    own = shop.train.model_copy(update={"loop": loop, "checkpoint_steps": None})
    with pytest.raises(UserError, match=r"epoch 1, step \d+: the loss is \S+ for user_key -?\d+"):
        run("wild later", shop.model_copy(update={"train": own}))
    (kept,) = (Path(shop.work) / "train" / "wild later").glob("checkpoint_*/")
    assert [epoch["epoch"] for epoch in checkpoint.history_of(kept)] == [0]
    assert all(torch.isfinite(weight).all() for weight in checkpoint.weights_of(kept).values())
