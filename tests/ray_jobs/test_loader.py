"""The batches of a training: all rows, each once, from anywhere on, with little padding."""

from collections.abc import Iterator

import polars as pl
import pytest
import torch

from models.data.tasks import Role
from ray_jobs import jobs, snapshot
from ray_jobs.config import Config
from ray_jobs.loader import Loader


@pytest.fixture(scope="module")
def loader(demo_run: Config) -> Loader:
    made = snapshot.snapshot(demo_run, jobs.tables(demo_run))

    def frames(role: Role, rows: int) -> Iterator[pl.DataFrame]:
        return made.read(role).frame.iter_slices(rows // 8)

    return Loader(demo_run, made, frames, 1)


def test_an_epoch_holds_every_row_once_and_the_next_another_order(loader: Loader) -> None:
    epochs = [torch.cat([b.user_B for b in loader.fit(epoch)]) for epoch in (0, 1, 0)]
    rows = loader.snapshot.read("fit").frame["user_key"]
    assert sorted(epochs[0].tolist()) == sorted(epochs[1].tolist()) == sorted(rows)
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("size", [1, 100, 3000, 5000])
def test_an_epoch_has_the_steps_that_its_schedule_counts_on(loader: Loader, size: int) -> None:
    """Whatever a batch is: what is shuffled together is whole batches."""
    train = loader.config.train
    loop = train.loop.model_copy(update={"batch_rows": size})
    config = loader.config.model_copy(update={"train": train.model_copy(update={"loop": loop})})
    few = pl.concat([loader.snapshot.read("fit").frame] * 200)["user_key"].head(20_000)

    def frames(role: Role, rows: int) -> Iterator[pl.DataFrame]:
        return few.to_frame().iter_slices(rows)

    made = loader.snapshot.model_copy(update={"rows": {"fit": few.len()}})
    parts = Loader(config, made, frames, 1)
    assert sum(1 for _ in parts._parts(0, 0)) == parts.steps


@pytest.mark.parametrize("start", [0, 1, 5, 10_000])
def test_an_epoch_goes_on_from_any_batch(loader: Loader, start: int) -> None:
    whole = list(loader.fit(1))[start:]
    rest = list(loader.fit(1, start))
    assert len(rest) == len(whole)
    for one, expected in zip(rest, whole, strict=True):
        assert torch.equal(one.user_B, expected.user_B)
        assert torch.equal(one.tabular_BF, expected.tabular_BF)


def test_what_fails_in_making_a_batch_is_raised_where_it_is_used(loader: Loader) -> None:
    size = loader.config.train.loop.batch_rows

    def frames(role: Role, rows: int) -> Iterator[pl.DataFrame]:
        yield loader.snapshot.read(role).frame.head(size)
        raise RuntimeError("a file is gone")

    broken = Loader(loader.config, loader.snapshot, frames, 1)
    batches = broken.fit(0)
    assert len(next(batches)) == size
    with pytest.raises(RuntimeError, match="a file is gone"):
        list(batches)


def test_an_epoch_may_be_left(loader: Loader) -> None:
    """Whoever stops asking waits for the batch in the making, and no longer."""
    batches = loader.fit(0)
    next(batches)
    batches.close()
    assert next(batches, None) is None
