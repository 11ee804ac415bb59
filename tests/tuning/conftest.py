"""A study, searched with made-up epochs: a trial's loss is known from its point."""

from pathlib import Path
from typing import Any

import pytest
from optuna.storages import BaseStorage, InMemoryStorage

from ray_jobs.config import Config, load
from tuning.config import TuneConfig
from tuning.confirm import Confirmation
from tuning.search import Epochs, Job, Search, open_study
from tuning.space import Space

EPOCHS = 9
IDENTITY = {"network": {"width": 64}, "tables": {"events": 1}}


class World:
    """Opens the same study again and again, as one driver after another does."""

    def __init__(self, storage: str | BaseStorage, config: Config) -> None:
        self.storage, self.base = storage, config

    def config(self, **keys: Any) -> TuneConfig:
        tree = {"space": {"network.dropout": None}, **keys}
        return TuneConfig.model_validate(tree)

    def open(self, **keys: Any) -> Search:
        config = self.config(**keys)
        space = Space(config.space, self.base)
        study = open_study(self.storage, config, IDENTITY)
        return Search(study, space, config, EPOCHS, seed=1)

    def confirmation(self, search: Search) -> Confirmation:
        return Confirmation(search.study, search.space, search.config)

    @staticmethod
    def loss(job: Job, epoch: int) -> float:
        """Best at a dropout of 0.4; falls with every epoch."""
        return abs(float(job.point["network.dropout"] or 0) - 0.4) + 1 / (epoch + 1)

    def epochs(self, job: Job, count: int) -> Epochs:
        """A training's epochs so far."""
        losses = [self.loss(job, k) for k in range(count)]
        return [
            {
                "epoch": k,
                "log_loss": x,
                "auc": 1 - x / 2,
                "cost": 1 - x / 3,
                "seconds": 1.0,
                "best": True,
            }
            for k, x in enumerate(losses)
        ]

    def train(self, phase: Search | Confirmation, job: Job) -> int:
        """Report a job's epochs until it ends or is stopped; how many there were."""
        for run in range(len(job.runs)):
            for count in range(1, EPOCHS + 1):
                if phase.report(job, run, self.epochs(job, count)):
                    phase.end(job)
                    return run * EPOCHS + count
        phase.end(job)
        return EPOCHS * len(job.runs)

    def finish(self, phase: Search | Confirmation) -> list[Job]:
        """Train all that is left; what that was."""
        jobs = []
        while (job := phase.next()) is not None:
            jobs.append(job)
            self.train(phase, job)
        assert phase.finished
        return jobs


@pytest.fixture(scope="session")
def base() -> Config:
    return load("demo", ["network.behaviour.encoder=transformer"])  # which has heads


@pytest.fixture
def world(base: Config) -> World:
    """A study in memory, which outlives its drivers."""
    return World(InMemoryStorage(), base)


@pytest.fixture
def world_on_disk(tmp_path: Path, base: Config) -> World:
    """A study in a file."""
    return World(f"sqlite:///{tmp_path}/study.db", base)
