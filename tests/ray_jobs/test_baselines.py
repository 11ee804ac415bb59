"""A baseline that is read or moved forward is the one that would be built from all events."""

import shutil
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from models.data.buckets import bucket_of, buckets
from models.data.history import Baseline, HistoryConfig, build_baseline
from models.data.keys import user_key
from models.data.schema import EVENTS, UserError
from models.data.tasks import midnight
from models.scoring.scorer import Scorer
from ray_jobs import jobs, registry
from ray_jobs.backfill import backfill
from ray_jobs.baselines import BASELINES, baseline_of, event_files, from_rows, publish, to_rows
from ray_jobs.config import Config, load
from ray_jobs.doubling import split
from ray_jobs.lake import DataFile, Lake
from ray_jobs.tables import Tables

if TYPE_CHECKING:
    from tests.conftest import SmallShop

MARCH, APRIL, MAY = (datetime(2024, month, 1, tzinfo=UTC) for month in (3, 4, 5))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
KEEP = HistoryConfig(kept_events=3, kept_texts=1)
LOW, HIGH = -5, 5  # users of the first and the second of two buckets
Rows = Sequence[dict[str, Any]]


def event(number: int, user: int, time: datetime, lag: timedelta = 0 * DAY) -> dict[str, Any]:
    return {
        "user_key": user,
        "event_id": number,
        "event_time": time,
        "available_at": time + lag,
        "utc_offset_min": 0,
        "event_type": "buy",
        "amount": Decimal(number),
        "text": f"text {number}" if number % 2 else None,
    }


def frame_of(rows: Rows) -> pl.DataFrame:
    schema = pl.Schema(EVENTS.schema)
    return pl.DataFrame({c: [row.get(c) for row in rows] for c in schema}, schema=schema)


def put(lake: Lake, period: str, rows: Rows, source: str = "shop", count: int = 2) -> Tables:
    """Make these the rows of a source's period, as an ingest would; the lake as it is then."""
    frame = frame_of(rows)
    own = frame.with_columns(bucket=bucket_of(pl.col("user_key"), count)).sort(EVENTS.sort)
    where = {"source": source, "period": period}
    files = [
        lake.write_part(EVENTS, part, {**where, "bucket": bucket})
        for (bucket,), part in own.partition_by("bucket", as_dict=True).items()
    ]
    lake.replace(EVENTS, app=f"{source}/{period}", files=files, where=where)
    return Tables(lake, lake.versions(), buckets(count))


def made(tables: Tables, at: datetime, keep: HistoryConfig = KEEP) -> list[str]:
    """How each bucket's baseline was come by; published, and the same as built from all events."""
    files, hows = list[DataFile](), []
    for bucket in tables.buckets:
        one = baseline_of(tables, bucket, at, keep)
        assert_same(one.baseline, build_baseline(tables.events(bucket), at, keep))
        file = one.write(tables.lake)
        files += [file] if file is not None else []
        hows.append("nobody" if file is None else one.how)
    if files:
        publish(tables.lake, at.date(), files)
    return hows


def assert_same(one: Baseline, other: Baseline) -> None:
    assert one.date == other.date
    for part in ("events", "texts", "daily", "lifetime"):
        assert_frame_equal(getattr(one, part), getattr(other, part))


def dates(lake: Lake) -> set[str]:
    return {file["partition"]["baseline_date"] for file in lake.files("baselines")}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def months(lake: Lake) -> Tables:
    """Two months of a shop with a user in each of two buckets."""
    february = [event(n, user, MARCH - n * DAY) for n in (1, 2, 3, 4) for user in (LOW, HIGH)]
    put(lake, "2024-02", february)
    return put(lake, "2024-03", [event(n, u, MARCH + n * DAY) for n in (5, 6) for u in (LOW, HIGH)])


LAGS = (0 * DAY, 0 * DAY, HOUR, 40 * DAY, -2 * DAY)
EVENT = st.builds(
    lambda number, user, quarters, lag: event(number, user, MARCH + quarters * 6 * HOUR, lag),
    st.integers(0, 9),
    st.sampled_from([LOW, HIGH, HIGH + 1]),
    st.integers(-200, 250) | st.sampled_from([-1, 0, 1, 123, 124, 125]),
    st.sampled_from(LAGS),
)
STEP = st.tuples(
    st.sampled_from(["a", "b", "c", "d"]),
    st.lists(EVENT, min_size=1, max_size=8),
    st.sampled_from([MARCH, APRIL, MAY]),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=1, max_size=5))
def test_whatever_comes_it_is_as_built_from_all_events(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Rows, datetime]]
) -> None:
    """Late, early and repeated events, periods that come and are corrected in any order."""
    lake = Lake(str(tmp_path_factory.mktemp("lake")))
    for period, rows, at in steps:
        tables = put(lake, period, rows)
        made(tables, at)
        versions = lake.versions()
        assert set(made(tables, at)) <= {"read", "nobody"}
        assert lake.versions() == versions
    shutil.rmtree(lake.root)


def test_a_new_month_extends_and_reads_no_more_than_keys_of_old_files(months: Tables) -> None:
    lake = months.lake
    assert made(months, APRIL) == ["built", "built"]
    old = {f["path"] for f in lake.files("events")}
    new = put(lake, "2024-04", [event(n, u, APRIL + n * DAY) for n in (7, 8) for u in (LOW, HIGH)])
    expected = {b: build_baseline(new.events(b), MAY, KEEP) for b in new.buckets}
    for path in old:
        _spoil(path, {"event_type", "amount", "text", "utc_offset_min"})
    for bucket in new.buckets:
        one = baseline_of(new, bucket, MAY, KEEP)
        assert one.how == "extended"
        assert_same(one.baseline, expected[bucket])
    shutil.rmtree(lake.url("baselines"))
    with pytest.raises(OSError, match="part-"):
        baseline_of(new, 2, MAY, KEEP)


def test_a_month_in_local_time_begins_before_the_date(months: Tables) -> None:
    """Its first hours lie before the date of the baseline, which had not seen them."""
    made(months, APRIL)
    april = [event(9, LOW, APRIL - 5 * HOUR), event(10, LOW, APRIL), event(11, HIGH, APRIL + DAY)]
    new = put(months.lake, "2024-04", april)
    assert made(new, APRIL) == ["extended", "read"]
    assert made(new, MAY) == ["extended", "extended"]


def test_a_corrected_month_rebuilds_the_buckets_that_it_touches(months: Tables) -> None:
    made(months, APRIL)
    february = [event(n, user, MARCH - n * DAY) for n in (1, 2, 3, 4) for user in (LOW, HIGH)]
    february[0]["amount"] = Decimal(77)  # of LOW
    again = put(months.lake, "2024-02", february)
    assert made(again, APRIL) == ["built", "read"]
    assert made(again, MAY) == ["extended", "extended"]


def test_the_month_before_serves_where_the_last_was_corrected(months: Tables) -> None:
    made(months, MARCH)
    made(months, APRIL)
    march = [event(5, user, MARCH + 5 * DAY) for user in (LOW, HIGH)]
    assert made(put(months.lake, "2024-03", march), APRIL) == ["extended", "extended"]


@pytest.mark.parametrize(
    ("lag", "what", "how"),
    [
        (-HOUR, "refund", "built"),
        (0 * HOUR, "ask", "built"),  # of two known at one time the first in order counts
        (0 * HOUR, "refund", "extended"),
        (HOUR, "ask", "extended"),
        (50 * DAY, "ask", "read"),
    ],
)
def test_a_counted_event_that_comes_again(
    months: Tables, lag: timedelta, what: str, how: str
) -> None:
    """It counts as it was known first; where that is another row now, all is read anew."""
    made(months, APRIL)
    again = {**event(1, LOW, MARCH - DAY, lag), "event_type": what}
    assert made(put(months.lake, "again", [again]), APRIL) == [how, "read"]


def test_other_bounds_of_histories_rebuild(months: Tables) -> None:
    made(months, APRIL)
    assert made(months, APRIL, HistoryConfig(kept_events=2, kept_texts=1)) == ["built", "built"]


def test_an_id_that_two_sources_give_is_refused_as_ever(months: Tables) -> None:
    made(months, APRIL)
    new = put(months.lake, "2024-04", [event(1, LOW, APRIL + DAY)], source="till")
    with pytest.raises(UserError, match="sources shop and till give the same event_id"):
        baseline_of(new, 2, MAY, KEEP)


def test_dates_older_than_the_one_before_go(months: Tables) -> None:
    lake = months.lake
    made(months, APRIL)
    made(months, MAY)
    made(months, MARCH)  # one of the past leaves the newer ones
    assert dates(lake) == {"2024-03-01", "2024-04-01", "2024-05-01"}
    made(months, MAY)
    assert dates(lake) == {"2024-04-01", "2024-05-01"}


def test_a_file_without_statistics_may_hold_any_time(months: Tables) -> None:
    lake = months.lake
    made(months, APRIL)
    path = lake.files("events", where={"period": "2024-02", "bucket": 2})[0]["path"]
    pq.write_table(pq.read_table(path, partitioning=None), path, write_statistics=False)
    times = {name: file.first for name, file in event_files(months, 2).items()}
    assert {first[0].year for first in times.values()} == {1, 2024}
    assert made(months, APRIL) == ["read", "read"]
    assert made(months, MAY) == ["extended", "extended"]


def test_doubled_buckets_are_built_anew(months: Tables, ray_cluster: None) -> None:
    lake = months.lake
    made(months, APRIL)
    split(lake, 4)
    assert {f["partition"]["bucket"] for f in lake.files("baselines")} == {5, 6}
    finer = Tables(lake, lake.versions(), buckets(4))
    assert made(finer, APRIL) == ["nobody", "built", "built", "nobody"]
    assert made(finer, MAY) == ["nobody", "extended", "extended", "nobody"]


def test_an_ingest_that_corrects_and_an_erasure(
    tmp_path: Path, small_shop: "SmallShop", ray_cluster: None
) -> None:
    """The buckets that they touch are built anew; an erased user is gone, and stays away."""
    small_shop.write(tmp_path / "raw")
    config = load(small_shop.config(tmp_path / "run", str(tmp_path / "raw")))
    later = tmp_path / "later"
    later.mkdir()
    for month in range(5, 9):
        (tmp_path / f"raw/events/2024-{month:02}.parquet").rename(later / f"{month}.parquet")
    jobs.run_ingest(config)
    assert made(jobs.tables(config), APRIL) == ["built", "built"]
    (later / "5.parquet").rename(tmp_path / "raw/events/2024-05.parquet")
    jobs.run_ingest(config)
    assert made(jobs.tables(config), MAY) == ["extended", "extended"]
    secret = Path(str(config.secret_file)).read_bytes()
    erased = user_key(secret, "user 3")
    place = 0 if erased < 0 else 1
    month = small_shop.month(2)
    twice = pl.when(pl.col("who") == "user 3").then(pl.col("how_much") * 2)
    corrected = month.with_columns(twice.otherwise("how_much").alias("how_much"))
    corrected.write_parquet(tmp_path / "raw/events/2024-02.parquet")
    jobs.run_ingest(config)
    assert made(jobs.tables(config), MAY) == ["built" if n == place else "read" for n in (0, 1)]

    jobs.run_erase(config, ["user 3"], None)
    lake = jobs.tables(config).lake
    for when in ("erased", "made again"):
        users = lake.read("baselines", where={"baseline_date": "2024-05-01"})["user_key"]
        assert len(users) == small_shop.users - 1 and erased not in users, when
        hows = made(jobs.tables(config), MAY)
    assert hows == ["read", "read"]


def test_a_backfill_moves_the_baselines_forward(demo_run: Config, tmp_path: Path) -> None:
    shutil.copytree(demo_run.lake, tmp_path / "lake")
    day = date(2024, 8, 15)
    dated = demo_run.backfill.model_copy(update={"as_of": day})
    config = demo_run.model_copy(update={"lake": str(tmp_path / "lake"), "backfill": dated})
    tables = jobs.tables(config)
    first = tables.lake.latest_run("backfill")
    assert first is not None
    accounts = [first["counts"], backfill(config, tables)]
    names = [f"baselines_{how}" for how in ("read", "extended", "built")]
    assert [[one[name] for name in names] for one in accounts] == [[0, 0, 2], [0, 2, 0]]
    stored = tables.lake.read("baselines", where={"baseline_date": str(day)})
    scores = tables.lake.read("scores", where={"as_of_date": str(day)})
    assert stored["user_key"].sort().equals(scores["user_key"].sort())
    history = Scorer.load(registry.champion(tables.lake).path).spec.features.history
    assert made(tables, midnight(day), history) == ["read", "read"]


@pytest.mark.parametrize("rows", [[], [event(2, LOW, MARCH)], [event(1, HIGH, MARCH)]])
def test_rows_and_back(rows: Rows) -> None:
    frame = frame_of(rows)
    for at in (APRIL, APRIL + 800 * DAY):  # of later dates there are no days any more
        baseline = build_baseline(frame, at, KEEP)
        stored = to_rows(baseline).cast(dict(pl.Schema(list(_columns()))))
        assert stored.height == len(rows)
        assert_same(from_rows(stored, at), baseline)


def _columns() -> Iterable[tuple[str, pl.DataType]]:
    for name, dtype in pl.Schema(BASELINES.schema).items():
        if name not in ("baseline_date", "bucket"):
            yield name, dtype


def _spoil(path: str, columns: set[str]) -> None:
    """Damage the pages of some columns of a file; its footer and the other columns stay whole."""
    group = pq.read_metadata(path).row_group(0)
    with open(path, "r+b") as file:
        for column in (group.column(i) for i in range(group.num_columns)):
            if column.path_in_schema in columns:
                start = column.dictionary_page_offset or column.data_page_offset
                file.seek(start + column.total_compressed_size - 4)
                file.write(b"\xff\xff\xff\xff")
