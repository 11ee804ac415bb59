"""Delta tables: published exactly once, replaced in one commit, read with every page verified."""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from models.data.clean import conform
from models.data.schema import EVENTS, LABELS, Table, UserError, users_table
from ray_jobs.lake import RUNS, DataFile, Lake, write_file
from ray_jobs.tables import ingested

PART = {"source": "shop", "period": "2011-01"}
TIME = datetime(2011, 1, 1, tzinfo=UTC)
SCORES = pa.schema([("user_key", pa.int64()), ("as_of_date", pa.string()), ("bucket", pa.int32())])


def labels(*values: float) -> pl.DataFrame:
    """Label rows with these values."""
    rows = pl.DataFrame({"user_key": range(len(values)), "value": values}, strict=False)
    return conform(rows, LABELS)


def part(lake: Lake, *values: float, bucket: int = 4, **partition: str) -> DataFile:
    return lake.write_part(LABELS, labels(*values), {**PART, **partition, "bucket": bucket})


def publish(lake: Lake, generation: int, *files: DataFile, **partition: str) -> int:
    where = {**PART, **partition}
    return lake.publish(
        LABELS,
        app=f"ingest/labels/{where['source']}/{where['period']}",
        generation=generation,
        files=files,
        replace=where,
        metadata={"content": "x"},
    )


def values(lake: Lake, **where: Any) -> list[float]:
    return sorted(lake.read("labels", **where)["value"].to_list())


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


def test_a_lake_without_tables(lake: Lake) -> None:
    with pytest.raises(UserError, match=r"no table labels in lake .*: run `raycredit ingest`"):
        lake.read("labels")
    with pytest.raises(UserError, match="run `raycredit ingest` first"):
        ingested(lake)
    assert lake.read_if("labels", {}, 0) is None
    assert lake.versions() == {}
    assert lake.latest_run("ingest") is None
    assert lake.generation("labels", "a") == 0
    assert not Path(lake.root).exists()


def test_what_is_published_is_read(lake: Lake) -> None:
    files = [part(lake, 1.0, 2.0), part(lake, 3.0, bucket=5)]
    assert not lake.exists("labels")  # written, and yet not there
    version = publish(lake, 1, *files)
    assert lake.version("labels") == version
    assert values(lake) == [1.0, 2.0, 3.0]
    assert values(lake, bucket=5) == [3.0]
    assert values(lake, where={"value": 2.0}) == [2.0]
    assert values(lake, where={"period": "2011-02"}) == []
    row = lake.read("labels", bucket=5, columns=["bucket", "value", "period"]).row(0)
    assert row == (5, 3.0, "2011-01")
    assert lake.read("labels").schema == pl.Schema(LABELS.schema)
    assert lake.read("labels", bucket=6).schema == pl.Schema(LABELS.schema)
    assert [f["num_records"] for f in lake.files("labels")] == [2, 1]


def test_the_commit_names_every_file_with_its_hash(lake: Lake) -> None:
    file = part(lake, 1.0)
    publish(lake, 1, file)
    note = DeltaTable(lake.url("labels")).history(1)[0]
    assert file.sha256 in note["sha256"]
    assert note["content"] == '"x"'


def test_a_generation_is_published_once(lake: Lake) -> None:
    first = publish(lake, 1, part(lake, 1.0))
    assert publish(Lake(lake.root), 1, part(lake, 1.0)) == first
    assert publish(Lake(lake.root), 1, part(lake, 7.0)) == first
    assert values(lake) == [1.0]
    assert lake.generation("labels", "ingest/labels/shop/2011-01") == 1


def test_a_later_generation_replaces_its_own_partitions_only(lake: Lake) -> None:
    old = publish(lake, 1, part(lake, 1.0), part(lake, 2.0, bucket=5))
    publish(lake, 1, part(lake, 5.0, period="2011-02"), period="2011-02")
    publish(lake, 2, part(lake, 3.0))
    assert values(lake) == [3.0, 5.0]
    assert values(lake, version=old) == [1.0, 2.0]
    publish(lake, 3)
    assert values(lake) == [5.0]


def test_holds(lake: Lake) -> None:
    file = part(lake, 1.0)
    assert not lake.holds("labels", [file], PART)
    publish(lake, 1, file)
    assert lake.holds("labels", [file], PART)
    assert not lake.holds("labels", [], PART)
    assert lake.holds("labels", [], {**PART, "period": "2011-02"})


def test_replacing_is_done_once_and_back_again(lake: Lake) -> None:
    def replace(*files: DataFile) -> int:
        lake.replace(LABELS, app="scores", files=files, where=PART)
        return lake.version("labels")

    old, new = part(lake, 1.0), part(lake, 2.0)
    first = replace(old)
    assert replace(old) == first
    assert replace(new) == first + 1
    assert values(lake) == [2.0]
    assert replace(old) == first + 2
    assert values(lake) == [1.0]


def test_a_table_without_rows(lake: Lake) -> None:
    publish(lake, 1)
    assert lake.read("labels").is_empty()
    assert lake.read_if("labels", {}, 0) is not None
    assert lake.read_if("labels", {"events": 1}, 0) is None


def test_a_table_whose_first_commit_has_no_file_is_partitioned_as_any_other(lake: Lake) -> None:
    scores = Table(name="scores", schema=SCORES, key=(), sort=(), required=())
    lake.replace(scores, app="scores", files=[], where={"as_of_date": "2011-01-01"})
    assert DeltaTable(lake.url("scores")).metadata().partition_columns == ["as_of_date", "bucket"]


@pytest.mark.parametrize("damage", ["missing", "shorter", "other"])
def test_a_damaged_file_is_refused_before_anything_is_published(lake: Lake, damage: str) -> None:
    publish(lake, 1, part(lake, 1.0))
    good, bad = part(lake, 2.0), part(lake, 3.0, bucket=5)
    path = Path(bad.path)
    if damage == "missing":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[:-1] if damage == "shorter" else bytes(len(content)))
    with pytest.raises(UserError, match="nothing was published"):
        publish(lake, 2, good, bad)
    assert values(lake) == [1.0]
    assert publish(lake, 2, good, part(lake, 3.0, bucket=5)) == 2
    assert values(lake) == [2.0, 3.0]


def test_a_flipped_byte_in_a_published_file_raises(lake: Lake) -> None:
    file = part(lake, 1.0, 2.0)
    publish(lake, 1, file)
    content = bytearray(Path(file.path).read_bytes())
    column = pq.read_metadata(file.path).row_group(0).column(0)
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1  # the page's last
    Path(file.path).write_bytes(bytes(content))
    with pytest.raises(OSError, match=r"part-.*\.parquet"):
        lake.read("labels")


def test_writers_at_one_time_land_once(lake: Lake) -> None:
    publish(lake, 1, part(lake, 0.0))
    files = [part(lake, float(n)) for n in range(1, 5)]
    start = threading.Barrier(len(files))
    failed = list[BaseException]()

    def write(file: DataFile) -> None:
        try:
            start.wait()
            publish(Lake(lake.root), 2, file)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=[file]) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(values(lake)) == 1 and values(lake)[0] > 0
    assert lake.generation("labels", "ingest/labels/shop/2011-01") == 2


def test_writers_of_other_partitions_all_land(lake: Lake) -> None:
    months = [f"2011-{m:02}" for m in range(1, 7)]
    threads = [
        threading.Thread(
            target=lambda m=m: publish(Lake(lake.root), 1, part(lake, 1.0, period=m), period=m)
        )
        for m in months
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lake.read("labels")["period"]) == months


class Publishing(RuleBasedStateMachine):
    """Publish, replace and retry in any order, from old handles and new: a table holds, for each
    period, the rows of its newest generation."""

    root: str

    def __init__(self) -> None:
        super().__init__()
        self.lake = Lake(f"{self.root}/{id(self)}-{datetime.now(UTC).timestamp()}")
        self.newest: dict[str, tuple[int, list[float]]] = {}

    @rule(period=st.sampled_from("ab"), step=st.integers(-1, 2), rows=st.lists(st.integers(0, 3)))
    def publish(self, period: str, step: int, rows: list[int]) -> None:
        generation = max(1, self.newest.get(period, (0, []))[0] + step)
        floats = [float(r) for r in rows]
        files = [part(self.lake, *floats, period=period)] if rows else []
        publish(Lake(self.lake.root), generation, *files, period=period)
        if generation > self.newest.get(period, (0, []))[0]:
            self.newest[period] = (generation, floats)

    @rule()
    def checkpoint(self) -> None:
        if self.newest:
            DeltaTable(self.lake.url("labels")).create_checkpoint()

    @invariant()
    def holds_the_newest(self) -> None:
        for period, (generation, expected) in self.newest.items():
            assert values(self.lake, where={"period": period}) == sorted(expected)
            assert self.lake.generation("labels", f"ingest/labels/shop/{period}") == generation


def test_any_order_of_publishing(tmp_path: Path) -> None:
    Publishing.root = str(tmp_path)
    few = settings(max_examples=10, stateful_step_count=8)
    run_state_machine_as_test(Publishing, settings=few)


def test_new_columns_and_columns_of_another_type(lake: Lake) -> None:
    def users(table: Table, period: str, **columns: list[Any]) -> None:
        frame = conform(pl.DataFrame({"user_key": [1], **columns}), table)
        where = {"source": "crm", "period": period}
        file = lake.write_part(table, frame, {**where, "bucket": 4})
        lake.publish(table, app=f"u/{period}", generation=1, files=[file], replace=where)

    users(users_table(("age",), ()), "1", age=[30.0])
    users(users_table(("age", "income"), ()), "2", age=[40.0], income=[1.0])
    read = lake.read("users").sort("period")
    assert read["age"].to_list() == [30.0, 40.0]
    assert read["income"].to_list() == [None, 1.0]
    users(users_table((), ()), "3")  # as of a file that has none of these any more
    read = lake.read("users").sort("period")
    assert read["age"].to_list() == [30.0, 40.0, None]
    assert read["income"].to_list() == [None, 1.0, None]
    with pytest.raises(UserError, match=r"column age is Float64, not String"):
        users(users_table((), ("age",)), "4", age=["old"])


def test_other_partitions_by_the_folders_of_the_files(lake: Lake) -> None:
    schema = pa.schema([("user_key", pa.int64()), ("as_of_date", pa.string())])
    table = Table(name="scores", schema=schema, key=("user_key",), sort=(), required=())
    frame = pl.DataFrame({"user_key": [1, 2]})
    file = write_file(frame, table, lake.url("scores", "as_of_date=2011-11-01", "x.parquet"))
    where = {"as_of_date": "2011-11-01"}
    lake.publish(table, app="scores/2011-11-01", generation=1, files=[file], replace=where)
    assert lake.read("scores", where=where)["user_key"].to_list() == [1, 2]
    assert lake.read("scores").columns == ["user_key", "as_of_date"]


def test_a_file_of_another_place_cannot_be_published(lake: Lake, tmp_path: Path) -> None:
    file = write_file(labels(1.0), LABELS, str(tmp_path / "elsewhere.parquet"))
    with pytest.raises(AssertionError, match="is not in"):
        publish(lake, 1, file)


def test_rows_are_appended_once(lake: Lake) -> None:
    for run, at in (("r1", 1), ("r2", 2), ("r1", 3)):
        lake.record_run(
            "ingest", run, {"at": at, "buckets": 4}, {"rows_in": at}, versions={"events": at}
        )
    lake.record_run("backfill", "b", {}, {"users": 9}, "cafe", versions={"events": 1})
    assert lake.read(RUNS.name).height == 3
    assert ingested(lake).versions == {"events": 2}
    assert lake.run("ingest", "r1") == {"rows_in": 1}
    assert lake.run("ingest", "r9") is None
    newest = lake.latest_run("backfill")
    assert newest is not None
    assert (newest["model_sha256"], newest["counts"]) == ("cafe", {"users": 9})
    assert newest["started_at"] <= newest["finished_at"]


def events(lake: Lake, source: str, period: str, *ids: int) -> None:
    rows = pl.DataFrame(
        {"user_key": [1] * len(ids), "event_id": ids, "event_time": [TIME] * len(ids)}
    )
    where = {"source": source, "period": period}
    frame = conform(rows.with_columns(item=pl.lit(source)), EVENTS)
    file = lake.write_part(EVENTS, frame, {**where, "bucket": 4})
    lake.publish(EVENTS, app=f"e/{source}/{period}", generation=1, files=[file], replace=where)


def test_an_event_that_two_periods_bring_counts_once(lake: Lake) -> None:
    events(lake, "shop", "2011-01", 3, 1)
    events(lake, "shop", "2011-02", 1, 2)
    assert lake.events(4, lake.versions())["event_id"].to_list() == [1, 2, 3]
    assert lake.events(5, lake.versions()).is_empty()


def test_one_event_id_in_two_sources_is_refused(lake: Lake) -> None:
    events(lake, "shop", "2011-01", 1)
    events(lake, "reviews", "2011-01", 1)
    with pytest.raises(UserError, match="sources reviews and shop give the same event_id"):
        lake.events(4, lake.versions())
