"""A lake's buckets follow its size; doubling them moves rows, and changes none."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from models.data.schema import UserError
from models.data.source import Source
from ray_jobs.doubling import split
from ray_jobs.ingest import ingest
from ray_jobs.lake import Lake
from ray_jobs.tables import Tables, ingested

pytestmark = pytest.mark.usefixtures("ray_cluster")

USERS = 40
TABLES = ("events", "identities", "labels")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two months of events, and labels."""
    folder = tmp_path / "raw"
    folder.mkdir()
    users = pl.DataFrame({"u": [f"u{n}" for n in range(USERS)]})
    for month in (1, 2):
        at = pl.lit(datetime(2011, month, 3))
        users.with_columns(t=at, k=pl.lit("buy")).write_parquet(folder / f"events-{month}.parquet")
    at = pl.lit(datetime(2011, 3, 1))
    labels = users.with_columns(as_of=at, matured=at, task=pl.lit("late"), value=pl.lit(1.0))
    labels.write_parquet(folder / "labels.parquet")
    return folder


def run(lake: Lake, raw: Path, buckets: int | None) -> None:
    event = {"user_id": "u", "event_time": "t", "event_type": "k"}
    label = {"user_id": "u", "as_of": "as_of", "matured_at": "matured"}
    sources = {
        "shop": Source(
            table="events", path=f"{raw}/events-*", columns=event, period=r"(\d)\.parquet"
        ),
        "late": Source(
            table="labels",
            path=f"{raw}/labels*",
            columns={**label, "task": "task", "value": "value"},
        ),
    }
    ingest(
        lake,
        sources,
        numeric=(),
        categorical=(),
        protected=(),
        buckets=buckets,
        secret=b"a secret of the tests",
        now=datetime(2012, 1, 1, tzinfo=UTC),
    )


def held(lake: Lake, table: str) -> set[int]:
    return {file["partition"]["bucket"] for file in lake.files(table)}


def rows(tables: Tables, table: str) -> pl.DataFrame:
    """What the jobs read, bucket by bucket."""
    parts = [tables.read(table, bucket) for bucket in tables.buckets]
    return pl.concat([p for p in parts if p is not None]).drop("bucket")


def test_a_small_input_has_the_fewest_buckets(lake: Lake, raw: Path) -> None:
    run(lake, raw, None)
    assert ingested(lake).buckets == range(4, 8)
    assert held(lake, "events") == {4, 5, 6, 7}


def test_doubling_splits_files_and_moves_no_row(lake: Lake, raw: Path) -> None:
    run(lake, raw, 2)
    before = ingested(lake)
    (raw / "events-2.parquet").unlink()  # its rows stay: they are of a period of their own
    run(lake, raw, 8)
    after = ingested(lake)
    assert after.buckets == range(8, 16)
    for table in TABLES:
        assert min(held(lake, table)) >= 8
        assert_frame_equal(rows(after, table), rows(before, table), check_row_order=False)
        keys = after.read(table, 11, ["user_key"])
        assert keys is not None and keys.to_series().is_between(-(2**61), 0, "left").all()
    run(lake, raw, None)  # as it is: neither the number of buckets nor anything else changes
    assert ingested(lake) == after


def test_a_doubling_that_was_cut_off_is_finished(lake: Lake, raw: Path) -> None:
    """Readers see the same rows before it, between its commits and after it."""
    run(lake, raw, 2)
    before = ingested(lake)
    expected = {table: rows(before, table) for table in TABLES}
    original = Lake.rewrite

    def rewrite(self: Lake, table: str, **more: object) -> bool:
        if table == "identities":
            raise KeyboardInterrupt
        return original(self, table, **more)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Lake, "rewrite", rewrite)
        run(lake, raw, 4)
    assert held(lake, "events") == {4, 5, 6, 7} and held(lake, "identities") == {2, 3}
    assert ingested(lake) == before
    newest = Tables(lake, lake.versions(), before.buckets)
    for tables in (before, newest, Tables(lake, lake.versions(), range(4, 8))):
        for table in TABLES:
            assert_frame_equal(rows(tables, table), expected[table], check_row_order=False)
    run(lake, raw, 4)
    assert ingested(lake).buckets == range(4, 8)
    assert held(lake, "identities") == {4, 5, 6, 7}
    version = lake.versions()
    split(lake, 4)
    assert lake.versions() == version


def test_fewer_buckets_are_refused(lake: Lake, raw: Path) -> None:
    run(lake, raw, 4)
    versions = lake.versions()
    with pytest.raises(UserError, match="has 4, which can only be doubled"):
        run(lake, raw, 2)
    assert lake.versions() == versions
