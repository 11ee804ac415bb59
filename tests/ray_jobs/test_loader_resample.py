"""An epoch of resampled rows: the share asked for, about as many steps as promised."""

from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

from models.data.tasks import Role
from ray_jobs import jobs, snapshot
from ray_jobs.config import Config
from ray_jobs.loader import SHUFFLED_ROWS, Loader


@pytest.mark.parametrize("method", ["over", "under"])
def test_classes_of_one_task_are_brought_nearer_in_training_only(
    demo_run: Config, method: str
) -> None:
    tree: dict[str, Any] = demo_run.model_dump(mode="json")
    tree["train"]["resample"] = {"task": "default", "method": method, "ratio": 0.5}
    config = Config.model_validate(tree)
    made = snapshot.snapshot(config, jobs.tables(config))

    def frames(role: Role, rows: int) -> Iterator[pl.DataFrame]:
        return made.read(role).frame.iter_slices(rows)

    loader = Loader(config, made, frames, 1)
    epochs = [[batch.labels_BK[:, 0] for batch in loader.fit(epoch)] for epoch in (0, 1)]
    for labels in epochs:
        y = pl.concat([pl.Series(part.numpy()) for part in labels]).fill_nan(None)
        positive, negative = (y == 1).sum(), (y == 0).sum()
        assert positive / negative == pytest.approx(0.5, abs=0.02)
        assert y.null_count() == made.read("fit").frame["y_default"].null_count()
        parts = len(list(frames("fit", SHUFFLED_ROWS)))  # each ends with a batch that is not full
        assert abs(len(labels) - loader.steps) <= parts
    select = sum(len(batch) for batch in loader.select(0))
    assert select == made.rows["select"]


@pytest.mark.parametrize("method", ["over", "under"])
def test_ranks_whose_labels_differ_have_as_many_batches(demo_run: Config, method: str) -> None:
    """Else one would wait for gradients that never come."""
    tree: dict[str, Any] = demo_run.model_dump(mode="json")
    tree["train"]["resample"] = {"task": "default", "method": method, "ratio": 0.5}
    tree["train"]["loop"]["batch_rows"] = 16
    config = Config.model_validate(tree)
    made = snapshot.snapshot(config, jobs.tables(config))
    rows = made.read("fit").frame.sort("y_default", "user_key")
    half = rows.height // 2
    sizes = []
    for own in (rows[:half], rows[-half:]):  # all who paid; the others, and all who did not

        def frames(role: Role, size: int, own: pl.DataFrame = own) -> Iterator[pl.DataFrame]:
            return own.iter_slices(size)

        loader = Loader(config, made, frames, 2)
        sizes.append([len(batch) for batch in loader.fit(0)])
    assert sizes[0] == sizes[1] and abs(len(sizes[0]) - loader.steps) <= 1
