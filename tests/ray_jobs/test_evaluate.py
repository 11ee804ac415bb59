"""An evaluation reads of the snapshot what it learns from and what it judges, and no more."""

from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from models.scoring.baselines import Baselines
from ray_jobs import evaluate, jobs
from ray_jobs.config import Config
from tuning.space import applied


class EnoughError(Exception):
    """What was to be judged is known, and the rest of no interest."""


def test_lists_of_events_are_read_by_the_scorer_alone(
    demo_run: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: dict[str, pl.DataFrame] = {}
    fit = evaluate._baselines._function

    def fitted(of: dict[str, pl.DataFrame], *_: Any, **__: Any) -> Baselines:
        frames.update(of)
        return Baselines({})

    def judged(test: pl.DataFrame, *_: Any, **__: Any) -> None:
        frames["judged"] = test
        raise EnoughError

    monkeypatch.setattr(evaluate, "fit_baselines", fitted)
    monkeypatch.setattr(evaluate, "_baselines", SimpleNamespace(remote=fit))
    monkeypatch.setattr(evaluate, "result_of", lambda done: done)
    monkeypatch.setattr(evaluate, "_predict", lambda *_: None)
    monkeypatch.setattr(evaluate, "evaluation_of", judged)
    # what a configuration has come to ask for since, the model does not estimate
    since = applied(demo_run, {"tasks.since": {"kind": "binary"}, "roles.pd": "since"})
    with pytest.raises(EnoughError):
        evaluate.evaluate(since, jobs.tables(demo_run))
    labels = {f"y_{name}" for name in demo_run.tasks}
    assert set(frames["judged"].columns) == {"row", "user_key", "as_of"} | labels
    for role in ("fit", "select", "calibrate", "test"):
        assert {"texts", "n_lifetime"} | labels <= set(frames[role].columns)
        assert not [name for name in frames[role].columns if name.startswith("events_")]
