"""Small files become one sorted file a partition; the rows stay, and nothing needed is deleted."""

import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.data.clean import conform
from models.data.schema import LABELS, UserError
from ray_jobs.compact import compact, groups_of, shown, sorts
from ray_jobs.lake import DataFile, Lake
from ray_jobs.storage import read_file
from ray_jobs.tables import ingested
from ray_jobs.vacuum import remove_dead_staging, vacuum, versions_needed

PART = {"source": "shop", "period": "2011-01"}
NOW = datetime.now(UTC)
Row = tuple[int, float | None]


def labels(rows: list[Row]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema={"user_key": pl.Int64, "value": pl.Float64}, orient="row")
    return conform(frame, LABELS)


def seen_by_jobs(lake: Lake) -> list[int]:
    """The users of the labels that the last ingest named."""
    return lake.read("labels", version=ingested(lake).versions["labels"])["user_key"].to_list()


def write(lake: Lake, rows: list[Row], bucket: int = 4) -> DataFile:
    return lake.write_part(LABELS, labels(rows), {**PART, "bucket": bucket})


def append(lake: Lake, app: str, *parts: tuple[int, list[Row]]) -> int:
    """Publish files of (bucket, rows) beside those that are there."""
    files = [write(lake, rows, bucket) for bucket, rows in parts]
    return lake.publish(LABELS, app=app, generation=1, files=files)


def content(lake: Lake, table: str, version: int | None = None) -> int:
    """A hash of a table's rows, whatever their order."""
    rows = lake.read(table, version=version)
    rows = rows.select(pl.all().cast(pl.String)).sort(rows.columns)
    return hash(rows.write_csv())


def rewrite(lake: Lake, gone: list[DataFile], files: list[DataFile]) -> bool:
    paths = [file.path for file in gone]
    return lake.rewrite("labels", app="test", gone=paths, files=files, metadata={})


def parquet(lake: Lake, table: str) -> list[Path]:
    return sorted((Path(lake.root) / table).rglob("*.parquet"))


def age(path: Path, days: float) -> None:
    """Make everything below a path look as old as that."""
    at = (NOW - timedelta(days=days)).timestamp()
    for one in [*path.rglob("*"), path]:
        os.utime(one, (at, at))


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


Rows = st.lists(
    st.tuples(
        st.integers(-(2**63), 2**63 - 1),
        st.one_of(st.none(), st.floats(allow_nan=False)),
    ),
    max_size=5,
)


@settings(
    max_examples=8,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=st.lists(st.tuples(st.integers(4, 6), Rows), min_size=1, max_size=6))
def test_compaction_keeps_the_content(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, list[Row]]]
) -> None:
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    # a file is named by its content, so two files of the same rows are one
    distinct = {(bucket, str(rows)): (bucket, rows) for bucket, rows in parts}
    version = append(lake, "a", *distinct.values())
    before = content(lake, "labels")
    compact(lake)
    assert content(lake, "labels") == before == content(lake, "labels", version)
    files = lake.files("labels")
    assert len(files) == len({bucket for bucket, _ in parts})
    for file in files:
        keys = read_file(file["path"])["user_key"]
        wrote_it = sum(bucket == file["partition"]["bucket"] for bucket, _ in distinct.values())
        assert wrote_it == 1 or keys.is_sorted()


def test_many_appends_become_one_file(
    lake: Lake, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(5):
        lake.record_run(
            "ingest", f"r{n}", {"n": n, "buckets": 4}, {"rows_in": n}, versions={"labels": 0}
        )
    append(lake, "a", (4, [(3, 1.0), (1, 2.0)]))
    append(lake, "b", (4, [(2, None)]))
    append(lake, "c", (5, [(9, 0.5)]))
    alone = next(f["path"] for f in lake.files("labels", where={"bucket": 5}))
    before = {t: content(lake, t) for t in ("runs", "labels")}
    account = compact(lake)
    counted = {row.table: (row.files_before, row.files_after) for row in account}
    assert counted == {"labels": (3, 2), "runs": (5, 1)}
    assert {t: content(lake, t) for t in before} == before
    assert lake.read("labels", bucket=4)["user_key"].to_list() == [1, 2, 3]
    assert alone in {f["path"] for f in lake.files("labels")}
    assert lake.latest_run("ingest")["config"]["n"] == 4  # type: ignore[index]  # it is there
    assert ingested(lake).versions == {"labels": 0}
    assert [row.files_before for row in compact(lake)] == [2, 1]  # nothing left to do
    versions = lake.version("labels"), lake.version("runs")
    compact(lake)
    assert (lake.version("labels"), lake.version("runs")) == versions
    lake.record_run("ingest", "r5", {"n": 5, "buckets": 4}, {}, versions={"labels": 0})
    lake.record_run("ingest", "r5", {"n": 5, "buckets": 4}, {}, versions={"labels": 0})
    assert lake.read("runs").height == 6  # what was published once stays published once
    assert shown(account).row_count == 2


def test_files_without_a_bucket_are_merged_up_to_a_size() -> None:
    def file(size: int, **partition: Any) -> dict[str, Any]:
        return {"path": str(size), "bytes": size, "partition": partition}

    dates = [file(n, as_of_date="2024-01-01") for n in (6, 3, 4, 9, 2)]
    sizes = [[f["bytes"] for f in group] for group in groups_of(dates, 10)]
    assert sizes == [[6, 3]]  # 4 and 9 have no room beside each other, nor 9 and 2
    buckets = [file(n, bucket=4) for n in (6, 30)] + [file(1, bucket=5)]
    assert [len(group) for group in groups_of(buckets, 10)] == [2]
    assert groups_of([], 10) == []


def test_the_order_of_every_table_is_known() -> None:
    tables = {"events", "scores", "baselines", "graph", "runs", "models", "tombstones"}
    assert tables <= sorts().keys()
    assert sorts()["scores"] == ("user_key",)


def test_a_lake_without_tables_and_a_negative_age(lake: Lake) -> None:
    with pytest.raises(UserError, match="run `raycredit ingest` first"):
        compact(lake)
    with pytest.raises(UserError, match="--vacuum-days -1: 0 or more days"):
        compact(lake, -1)


def test_a_rewrite_of_files_that_are_gone_publishes_nothing(lake: Lake) -> None:
    one, two = write(lake, [(1, 1.0)]), write(lake, [(2, 2.0)])
    lake.publish(LABELS, app="a", generation=1, files=[one, two])
    both = write(lake, [(1, 1.0), (2, 2.0)])
    assert rewrite(lake, [one, two], [both])
    version = lake.version("labels")
    assert not rewrite(lake, [one], [write(lake, [(5, 5.0)])])
    assert rewrite(lake, [both], [both])  # as it is: no commit
    assert lake.version("labels") == version
    assert lake.read("labels")["user_key"].to_list() == [1, 2]


def test_writers_at_one_time_leave_no_row_twice(lake: Lake) -> None:
    """Several compactions, and an ingest that replaces the same partition, at one moment."""
    small = [write(lake, [(n, 1.0)]) for n in range(4)]
    lake.publish(LABELS, app="a", generation=1, files=small)
    merged = [write(lake, [(n, 1.0) for n in range(m)]) for m in (2, 3, 4)]
    newer = write(lake, [(7, 7.0)])
    start = threading.Barrier(len(merged) + 1)
    done = list[bool]()
    failed = list[BaseException]()

    def compacts(n: int) -> None:
        start.wait()
        done.append(rewrite(Lake(lake.root), small[: n + 2], [merged[n]]))

    def replaces() -> None:
        start.wait()
        where = {**PART, "bucket": "4"}
        Lake(lake.root).publish(LABELS, app="a", generation=2, files=[newer], replace=where)

    def run(job: Any, *arguments: int) -> None:
        try:
            job(*arguments)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=[compacts, n]) for n in range(len(merged))]
    threads.append(threading.Thread(target=run, args=[replaces]))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert done.count(True) <= 1
    assert lake.read("labels")["user_key"].to_list() == [7]


def test_a_rewrite_on_an_old_handle_fails(lake: Lake) -> None:
    """What `rewrite` rests on: deltalake refuses what a competing commit made impossible."""
    small = [write(lake, [(n, 1.0)]) for n in range(3)]
    lake.publish(LABELS, app="a", generation=1, files=small)
    old = DeltaTable(lake.url("labels"))
    files = {f["path"]: f for f in lake.files("labels")}
    assert rewrite(lake, small[:2], [write(lake, [(0, 1.0), (1, 1.0)])])
    three = write(lake, [(n, 1.0) for n in range(3)])
    gone = [files[f.path] for f in small]
    assert not lake._commit_rewrite("labels", old, "other", gone, [three], {})
    assert lake.read("labels").height == 3


def test_vacuum_keeps_what_replay_and_the_jobs_need(lake: Lake, ray_cluster: None) -> None:
    first = append(lake, "a", (4, [(1, 1.0)]))
    lake.record_run("ingest", "r1", {"buckets": 4}, {}, versions={"labels": first})
    where = {**PART, "bucket": "4"}
    versions = [
        lake.publish(LABELS, app="b", generation=n, files=[write(lake, [(n, 2.0)])], replace=where)
        for n in (1, 2, 3)
    ]
    killed = write(lake, [(8, 8.0)])  # written, never published
    compact(lake)
    assert len(parquet(lake, "labels")) == 5  # by default nothing goes
    needed = versions_needed(lake, datetime.now(UTC) - timedelta(days=1))
    assert needed == {"labels": {first}}

    account = {row.table: row for row in compact(lake, 1)}  # all of it is younger
    assert account["labels"].freed.files == 0
    for path in Path(lake.root).rglob("*"):
        os.utime(path, ((NOW - timedelta(days=9)).timestamp(),) * 2)
    account = {row.table: row for row in compact(lake, 1)}
    assert account["labels"].freed.files == 1 and not Path(killed.path).exists()
    assert [lake.read("labels", version=v)["user_key"][0] for v in versions] == [1, 2, 3]

    compact(lake, 0)  # the last ingest's version stays: the jobs read it
    assert seen_by_jobs(lake) == [1]
    assert lake.read("labels")["user_key"].to_list() == [3]
    # the first version, the newest, and the checkpoint that stands for what came before the first
    assert len(parquet(lake, "labels")) == 3

    lake.record_run("ingest", "r2", {"buckets": 4}, {}, versions={"labels": lake.version("labels")})
    compact(lake, 0)
    assert seen_by_jobs(lake) == [3]
    data = [p for p in parquet(lake, "labels") if "_delta_log" not in p.parts]
    assert len(data) == 1
    with pytest.raises(UserError):
        lake.read("labels", version=first)
    assert lake.generation("labels", "b") == 3  # what was published once is still known
    assert append(lake, "a", (4, [(9, 9.0)])) == lake.version("labels")
    assert lake.read("labels")["user_key"].to_list() == [3]
    assert {r["run_id"] for r in lake.read("runs").to_dicts()} == {"r1", "r2"}


def test_history_is_cut_at_the_age_asked_for(lake: Lake) -> None:
    where = {**PART, "bucket": "4"}
    for n in (1, 2, 3):
        files = [write(lake, [(n, 2.0)])]
        lake.publish(LABELS, app="b", generation=n, files=files, replace=where)
    times = {c["version"]: c["timestamp"] for c in DeltaTable(lake.url("labels")).history()}
    since = datetime.fromtimestamp(times[2] / 1000, UTC)  # when the second was the newest
    age(Path(lake.root), 1)
    freed = vacuum(lake, "labels", [], since)
    assert (freed.files, freed.log_files) == (1, 2)
    assert [lake.read("labels", version=v)["user_key"][0] for v in (2, 3)] == [2, 3]
    assert vacuum(lake, "labels", [], since).files == 0


def test_staging_of_killed_ingests_goes_once_it_is_old(lake: Lake, ray_cluster: None) -> None:
    append(lake, "a", (4, [(1, 1.0)]))
    dead, alive = Path(lake.url("_staging-dead")), Path(lake.url("_staging-alive"))
    for folder in (dead, alive):
        (folder / "shop" / "all").mkdir(parents=True)
        (folder / "shop" / "all" / "x.rows").write_bytes(b"rows")
    age(dead, 2)
    age(alive, 2)
    os.utime(alive / "shop" / "all" / "x.rows")  # an ingest still writes here
    compact(lake)
    assert not dead.exists() and alive.exists()
    assert remove_dead_staging(lake, datetime.now(UTC), timedelta(0)) == 1
    assert not alive.exists()
