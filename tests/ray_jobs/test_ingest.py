"""Files → lake: every row accounted for, nothing half written, nothing twice."""

import gzip
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from models.data.clean import conform
from models.data.keys import user_key
from models.data.schema import IDENTITIES, UserError
from models.data.source import Source
from ray_jobs import ingest as job
from ray_jobs.account import Account
from ray_jobs.exchange import write_blocks
from ray_jobs.ingest import ingest
from ray_jobs.lake import Lake
from ray_jobs.staging import Earlier, IdentitiesUnit, Plan, merge
from ray_jobs.tables import ingested

pytestmark = pytest.mark.usefixtures("ray_cluster")

SECRET = b"a secret of the tests"
NOW = datetime(2012, 1, 1, tzinfo=UTC)
EVENT = {"user_id": "u", "event_id": "id", "event_time": "t", "event_type": "k", "amount": "a"}


def run(lake: Lake, sources: dict[str, Source], **more: Any) -> Account:
    arguments: dict[str, Any] = {
        "numeric": ("age",),
        "categorical": ("city",),
        "protected": ("sex",),
        "buckets": 4,
        "secret": SECRET,
        "now": NOW,
    }
    return ingest(lake, sources, **{**arguments, **more})


def events(path: Path, **more: Any) -> dict[str, Source]:
    columns = more.pop("columns", EVENT)
    return {"shop": Source(table="events", path=str(path), columns=columns, currency="GBP", **more)}


def month(users: int = 20, day: int = 1, first: int = 0, amount: float = 1.0) -> pl.DataFrame:
    """One event of each user on a day of June 2011."""
    at = datetime(2011, 6, day, 12)
    return pl.DataFrame({"u": [f"u{n}" for n in range(users)]}).with_columns(
        id=pl.int_range(first, first + users), t=pl.lit(at), k=pl.lit("buy"), a=pl.lit(amount)
    )


def everything(lake: Lake) -> dict[str, pl.DataFrame]:
    """All tables of the lake, runs aside."""
    return {name: lake.read(name) for name in lake.versions()}


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def marketplace(raw: Path) -> dict[str, Source]:
    """Five sources in four formats, with a fault in most of them."""
    (raw / "events").mkdir()
    month(20).write_parquet(raw / "events" / "2011-06.parquet", row_group_size=7)
    july = pl.concat([month(20, 2, first=50), month(1, 2, first=50)])
    july.write_csv(raw / "events" / "2011-07.csv")
    users = [{"id": f"u{n}", "age": 30 + n, "town": "Leeds"} for n in range(25)]
    pl.DataFrame(users).write_ndjson(raw / "users.jsonl")
    pl.DataFrame({"id": ["u1", "u2"], "s": ["f", "m"]}).write_csv(raw / "protected.csv")
    (raw / "edges.csv").write_text(
        "a,b,kind,since\nu1,u2,user,2011-01-01\nu1,D-9,device,2011-01-01\nu3,u3,user,2011-01-01\n"
    )
    (raw / "labels.csv").write_text(
        "u,task,at,y,done\nu1,default,2011-07-01,1,2011-08-01\nu1,default,2011-07-01,1,2011-08-01\n"
        "nobody,default,2011-07-01,0,2011-08-01\nu2,default,2011-07-01,maybe,2011-08-01\n"
    )
    tie = {"user_id": "a", "other_id": "b", "other_kind": "kind", "relation": "'tie'"}
    label = {"user_id": "u", "task": "task", "as_of": "at", "value": "y", "matured_at": "done"}
    profile = {"user_id": "id", "age": "age", "city": "town"}

    def source(table: Any, path: str, columns: dict[str, str], **more: Any) -> Source:
        loose = {"max_rejected_fraction": 0.6}
        return Source(table=table, path=str(raw / path), columns=columns, **loose, **more)

    return {
        **events(raw / "events", period=r"(\d{4}-\d\d)\.\w+$"),
        "crm": source("users", "users.jsonl", profile, immutable=True),
        "sensitive": source("protected", "protected.csv", {"user_id": "id", "sex": "s"}),
        "ties": source("edges", "edges.csv", {**tie, "valid_from": "since"}),
        "outcomes": source("labels", "labels.csv", label),
    }


def test_a_marketplace(lake: Lake, raw: Path) -> None:
    sources = marketplace(raw)
    account = run(lake, sources)
    counted = {n: tuple(c.to_json().values()) for n, c in account.by_source().items()}
    assert counted == {  # rows in, accepted, rejected, duplicates
        "shop": (41, 40, 0, 1),
        "crm": (25, 25, 0, 0),
        "sensitive": (2, 2, 0, 0),
        "ties": (3, 2, 1, 0),
        "outcomes": (4, 1, 2, 1),
    }
    assert set(lake.versions()) == set(ingested(lake).versions) == set(job.ORDER)
    assert lake.events(0, ingested(lake).versions).height > 0
    shop = lake.read("events")
    assert shop["period"].value_counts().sort("period").rows() == [("2011-06", 20), ("2011-07", 20)]
    assert shop.select("user_key", "bucket").n_unique() == shop["user_key"].n_unique()
    rejected = lake.read("rejected").sort("source", "row")
    assert rejected.select("source", "file", "row", "reason").rows() == [
        ("outcomes", "labels.csv", 3, "unknown user: neither events nor users name them"),
        ("outcomes", "labels.csv", 4, "value: expected a number, got text"),
        ("ties", "edges.csv", 3, "other_id: a tie of a user to themselves"),
    ]
    assert "nobody" not in "".join(rejected["content"].to_list())
    people = lake.read("identities")
    assert people["user_id"].n_unique() == 25
    assert all(key == user_key(SECRET, i) for key, i in people.select("user_key", "user_id").rows())
    assert lake.read("labels")["user_key"].to_list() == [user_key(SECRET, "u1")]
    assert [p for p in Path(lake.root).iterdir() if p.name.startswith("_staging")] == []
    last = lake.latest_run("ingest")
    assert last is not None and last["counts"] == account.to_json()
    assert SECRET.decode() not in str(last)

    before = everything(lake), lake.versions(), lake.version("runs")
    again = run(lake, sources)
    assert again.unchanged and again.to_json() == account.to_json()
    assert (lake.versions(), lake.version("runs")) == before[1:]

    month(5, 2, first=90).write_csv(raw / "events" / "2011-07.csv")  # a corrected file
    corrected = run(lake, sources)
    assert not corrected.unchanged
    assert corrected.parts["shop", "2011-06"].unchanged
    shop = lake.read("events")
    assert shop["period"].value_counts().sort("period").rows() == [("2011-06", 20), ("2011-07", 5)]
    assert lake.read("events", version=before[1]["events"]).height == 40
    assert_frame_equal(lake.read("users"), before[0]["users"])
    assert lake.version("users") == before[1]["users"]


def test_a_label_counts_as_soon_as_its_user_is_known(lake: Lake, raw: Path) -> None:
    sources = marketplace(raw)
    run(lake, sources)
    newcomer = month(1, first=99).with_columns(u=pl.lit("nobody"))
    newcomer.write_parquet(raw / "events" / "2011-08.parquet")
    assert run(lake, sources).by_source()["outcomes"].accepted == 2
    # a label file alone: its users are known from earlier ingests
    (raw / "labels.csv").write_text("u,task,at,y,done\nnobody,default,2011-09-01,1,2011-10-01\n")
    assert run(lake, {"outcomes": sources["outcomes"]}).to_json()["accepted"] == 1


BAD: list[tuple[str, dict[str, list[Any]], dict[str, Any], str]] = [
    ("missing column", {}, {"columns": {**EVENT, "amount": "amuont"}},
     r"lines.parquet: columns.amount: 'amuont': no column 'amuont'; the nearest column is"),
    ("an aggregate", {}, {"columns": {**EVENT, "amount": "SUM(a)"}},
     r"lines.parquet: columns.amount: 'SUM\(a\)' looks at more than its own row"),
    ("NaN", {"a": [1.0, float("nan")]}, {},
     r"sources.shop: 1 of 2 rows rejected, more than max_rejected_fraction 0.05; "
     r"the first: lines.parquet, row 2: amount: expected a number, got NaN or infinity"),
    ("infinity", {"a": [float("-inf"), 1.0]}, {}, r"row 1: amount: expected a number, got NaN or"),
    ("future", {"t": ["2011-06-01", "2012-01-02"]}, {}, r"row 2: event_time: in the future"),
    ("past", {"t": ["1989-12-31", "2011-06-01"]}, {}, r"row 1: event_time: before 1990"),
    ("wrong type", {"a": ["1", "dear"]}, {}, r"row 2: amount: expected a number, got text"),
    ("no user", {"u": ["a", None]}, {}, r"row 2: no user id"),
    ("no rows", {"a": []}, {}, r"sources.shop.path .*lines.parquet: no rows"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "more", "message"), [pytest.param(*b[1:], id=b[0]) for b in BAD]
)
def test_bad_rows_stop_the_job_before_anything_is_written(
    lake: Lake, raw: Path, columns: dict[str, list[Any]], more: dict[str, Any], message: str
) -> None:
    rows = len(next(iter(columns.values()), [1]))
    month(rows).with_columns(pl.Series(n, v) for n, v in columns.items()).write_parquet(
        raw / "lines.parquet"
    )
    with pytest.raises(UserError, match=message):
        run(lake, events(raw / "lines.parquet", **more))
    assert not Path(lake.root).exists()


def test_bad_files_stop_the_job_before_anything_is_written(lake: Lake, raw: Path) -> None:
    path = raw / "lines.parquet"
    month().write_parquet(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"lines.parquet: unreadable: not a whole Parquet file"):
        run(lake, events(path))
    with pytest.raises(UserError, match=r"sources.shop.path .*none.csv: no files"):
        run(lake, events(raw / "none.csv"))
    with pytest.raises(UserError, match=r"sources.my shop: a name of letters"):
        run(lake, {"my shop": events(path)["shop"]})
    broken = raw / "lines.csv"
    broken.write_text('u,id,t,k,a\nu1,1,2011-06-01,"buy,2\nu2,2,2011-06-01,buy,2\n')
    with pytest.raises(UserError, match=r"1 of 2 rows .* first: lines.csv, row 1: broken quotes"):
        run(lake, events(broken))
    assert not Path(lake.root).exists()


def test_an_event_id_counts_once_for_a_user(lake: Lake, raw: Path) -> None:
    pl.concat([month(3), month(3, day=2)]).write_parquet(raw / "a.parquet", row_group_size=2)
    month(3, day=3).write_csv(raw / "b.csv")
    account = run(lake, events(raw))
    assert account.to_json() == {"rows_in": 9, "accepted": 3, "rejected": 0, "duplicates": 6}
    first = datetime(2011, 6, 1, 12, tzinfo=UTC)
    assert lake.read("events")["event_time"].unique().to_list() == [first]


def test_one_file_of_many_that_cannot_be_read(lake: Lake, raw: Path) -> None:
    sources = events(raw, period=r"(\d+)\.parquet", max_rejected_fraction=0.4)
    for n in (1, 2, 3):
        month(day=n, first=100 * n).write_parquet(raw / f"{n}.parquet")
    run(lake, sources)
    (raw / "3.parquet").write_bytes(b"PAR1, and then the disk was full")
    account = run(lake, sources)
    assert account.parts["shop", "3"].to_json()["rejected"] == 1
    rejected = lake.read("rejected")
    assert rejected.select("file", "row").rows() == [("3.parquet", None)]
    assert rejected["reason"][0].startswith("unreadable: not a whole Parquet file")
    assert lake.read("events").height == 60  # what was there stays
    shutil.copy(raw / "2.parquet", raw / "3.parquet")
    run(lake, sources)
    assert lake.read("rejected").is_empty()
    assert lake.read("events", where={"period": "3"})["event_id"].min() == 200


def test_a_file_that_breaks_off_in_the_middle_gives_no_row(lake: Lake, raw: Path) -> None:
    rows = month(2_000).to_arrow()
    pq.write_table(rows, raw / "1.parquet", row_group_size=500, write_page_checksum=True)
    content = bytearray((raw / "1.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (raw / "1.parquet").write_bytes(bytes(content))
    month(day=2).write_parquet(raw / "2.parquet")
    account = run(lake, events(raw, max_rejected_fraction=0.5))
    assert account.to_json() == {"rows_in": 21, "accepted": 20, "rejected": 1, "duplicates": 0}


def test_a_crash_between_two_commits_is_made_good_by_the_next_run(
    lake: Lake, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    month().write_parquet(raw / "1.parquet")
    sources = events(raw)
    publish = Lake.publish

    def crash(self: Lake, table: Any, **more: Any) -> int:
        if table.name == "events":
            raise KeyboardInterrupt
        return publish(self, table, **more)

    monkeypatch.setattr(Lake, "publish", crash)
    with pytest.raises(KeyboardInterrupt):
        run(lake, sources)
    monkeypatch.undo()
    assert set(lake.versions()) == {"rejected", "identities"}
    assert lake.latest_run("ingest") is None
    half = lake.versions()
    account = run(lake, sources)
    assert not account.unchanged and lake.read("events").height == 20
    assert {name: lake.version(name) for name in half} == half  # found, not written again
    monkeypatch.setattr(Lake, "record_state", crash)
    month(day=2).write_parquet(raw / "1.parquet")
    with pytest.raises(TypeError):
        run(lake, sources)
    monkeypatch.undo()
    versions = lake.versions()
    run(lake, sources)
    assert lake.versions() == versions == ingested(lake).versions


def test_another_secret_is_refused(lake: Lake, raw: Path) -> None:
    month().write_parquet(raw / "1.parquet")
    run(lake, events(raw))
    before = everything(lake)
    with pytest.raises(UserError, match="the secret is not the one"):
        run(lake, events(raw), secret=b"another secret")
    for name, rows in everything(lake).items():
        assert_frame_equal(rows, before[name])


def test_two_ids_on_one_key_stop_the_job(tmp_path: Path, lake: Lake) -> None:
    rows = {"user_key": [1, 1], "user_id": ["anna", "bob"], "source": ["shop"] * 2}
    frame = conform(pl.DataFrame({**rows, "period": ["all"] * 2, "bucket": [0, 0]}), IDENTITIES)
    blocks = write_blocks(frame, str(tmp_path / "ids"))
    plan = Plan(
        lake=lake, folder=str(tmp_path), sources={}, tables={}, buckets=1, secret=SECRET, now=NOW
    )
    unit = IdentitiesUnit(bucket=0, blocks=(blocks[0],))
    with pytest.raises(UserError, match="2 user ids share the key 1"):
        merge(plan, Earlier(frozenset(), frozenset()), unit)


def test_a_profile_column_of_another_kind_is_refused(lake: Lake, raw: Path) -> None:
    sources = {"crm": marketplace(raw)["crm"]}
    run(lake, sources)
    before = lake.read("users")
    with pytest.raises(UserError, match=r"table users .*: column age is Float64, not String"):
        run(lake, sources, numeric=(), categorical=("age", "city"))
    assert_frame_equal(lake.read("users"), before)


def test_a_file_without_one_good_line(lake: Lake, raw: Path) -> None:
    (raw / "a.jsonl").write_text("not json\nnor this\n")
    with pytest.raises(UserError, match=r"2 of 2 rows rejected.* first: a.jsonl, row 1: not JSON"):
        run(lake, events(raw))
    assert run(lake, events(raw, max_rejected_fraction=1)).to_json()["rejected"] == 2


def test_json_lines_are_the_rows_of_the_same_parquet(tmp_path: Path, raw: Path) -> None:
    rows = pl.concat([month(20), month(3)]).with_columns(x=pl.lit('a, "b"\n日本'))
    (raw / "p").mkdir()
    (raw / "j").mkdir()
    rows.write_parquet(raw / "p" / "2011-06.parquet")
    text = rows.cast({"t": pl.String}).write_ndjson().splitlines()
    text.insert(4, text[4][:-9])  # a line that was cut off
    (raw / "j" / "2011-06.jsonl.gz").write_bytes(gzip.compress("\n".join(text).encode()))
    lakes, columns = {name: Lake(str(tmp_path / name)) for name in "pj"}, {**EVENT, "text": "x"}
    counts = {
        name: run(lake, events(raw / name, columns=columns, period=r"(\d{4}-\d\d)\.\w+"))
        for name, lake in lakes.items()
    }
    assert counts["p"].to_json() == {"rows_in": 23, "accepted": 20, "rejected": 0, "duplicates": 3}
    assert counts["j"].to_json() == {"rows_in": 24, "accepted": 20, "rejected": 1, "duplicates": 3}
    rejected = lakes["j"].read("rejected").select("file", "row", "reason").rows()
    assert rejected == [("2011-06.jsonl.gz", 5, "not JSON")]
    assert_frame_equal(lakes["j"].read("events"), lakes["p"].read("events"))
    assert_frame_equal(lakes["j"].read("identities"), lakes["p"].read("identities"))


def test_a_column_that_no_json_line_has(lake: Lake, raw: Path) -> None:
    month().cast({"t": pl.String}).write_ndjson(raw / "a.jsonl")
    with pytest.raises(UserError, match=r"a.jsonl: columns.text: 'txt': no column 'txt'"):
        run(lake, events(raw, columns={**EVENT, "text": "txt"}))


def test_online_retail(lake: Lake, shared_data: Path) -> None:
    columns = {
        "user_id": "CustomerID",
        "event_time": "InvoiceDate",
        "event_type": "CASE WHEN InvoiceNo LIKE 'C%' THEN 'cancel' ELSE 'buy' END",
        "item": "StockCode",
        "amount": "Quantity * UnitPrice",
        "text": "Description",
    }
    path = shared_data / "online_retail" / "onlineretail.parquet"
    sources = events(path, columns=columns, timezone="Europe/London", max_rejected_fraction=0.3)
    account = run(lake, sources)
    expected = {"rows_in": 541_909, "accepted": 401_604, "rejected": 135_080, "duplicates": 5_225}
    assert account.to_json() == expected
    assert account.total.reasons == {"no user id": 135_080}
    assert lake.read("events", columns=["event_id"]).height == 401_604
    assert lake.read("rejected", columns=["row"])["row"].n_unique() == 135_080
    assert lake.read("identities")["user_id"].n_unique() == 4_372
