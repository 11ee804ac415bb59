"""A training's course by step: the same numbers for TensorBoard and for Weights & Biases."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from models.nets.fit import Loop, Step
from ray_jobs.config import WandbConfig
from ray_jobs.tracking import EVENTS, Tracker, check


class Wandb:
    """The part of the package that is called; its own server cannot be had in a test."""

    def __init__(self) -> None:
        self.started: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = False

    def init(self, **told: Any) -> "Wandb":
        self.started = told
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


def test_both_are_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    config = WandbConfig(project="credit", entity="risk")
    check(config)
    tracker = Tracker(str(tmp_path / "run-1"), config, first=3)
    rates = SimpleNamespace(param_groups=[{"lr": 0.25}, {"lr": 0.5}])
    loop = cast(Loop, SimpleNamespace(updates=3, optimizer=rates))
    tracker.step(Step(loss=0.5, rows=64, seconds=2.0, waited=0.5), loop)
    epoch = {"train_loss": 0.4, "select_loss": 0.3, "rows_per_s": 32.0, "padding": 0.05}
    tracker.epoch(epoch, loop)
    tracker.close()
    told = {"project": "credit", "entity": "risk", "name": "run-1", "id": "run-1"}
    assert wandb.started == told | {"resume": "allow", "dir": str(tmp_path / "run-1")}
    assert wandb.finished and [step for _, step in wandb.logged] == [3, 3]
    logged = wandb.logged[0][0] | wandb.logged[1][0]
    assert logged["train/rows_per_s_a_rank"] == 32 and logged["train/waiting"] == 0.25
    events = EventAccumulator(str(tmp_path / "run-1" / EVENTS), {"scalars": 0}).Reload()
    shown = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert shown == pytest.approx(logged)
