"""An erased user is nowhere, and does not come back."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models.data.buckets import buckets
from models.data.clean import conform
from models.data.keys import erased_hashes, user_key
from models.data.schema import EVENTS, Table, UserError
from models.data.source import Source
from ray_jobs import erase as job
from ray_jobs import ingest as ingest_job
from ray_jobs.account import Account
from ray_jobs.cli import main
from ray_jobs.compact import compact
from ray_jobs.erase import erase, ids_of
from ray_jobs.ingest import ingest
from ray_jobs.lake import Lake
from ray_jobs.runs import RUNS
from ray_jobs.tables import ingested

pytestmark = pytest.mark.usefixtures("ray_cluster")

SECRET = b"a secret of the tests"
NOW = datetime(2012, 1, 1, tzinfo=UTC)
USERS = 12


def marketplace(raw: Path) -> dict[str, Source]:
    """Five sources; u1 is in all of them, as a user, as a friend, and in a faulty row."""
    raw.mkdir()
    at = pl.lit(datetime(2011, 6, 1, 12))
    users = pl.DataFrame({"u": [f"u{n}" for n in range(USERS)]})
    lines = users.with_columns(id=pl.int_range(USERS), t=at, k=pl.lit("buy"), a=pl.lit("1.5"))
    lines = pl.concat([lines, lines.head(3).with_columns(id=pl.int_range(50, 53), a=pl.lit("x"))])
    lines.write_csv(raw / "events.csv")
    users.with_columns(age=pl.int_range(20, 20 + USERS)).write_csv(raw / "users.csv")
    users.with_columns(s=pl.lit("f")).write_csv(raw / "protected.csv")
    (raw / "edges.csv").write_text(
        "a,b,kind,since\nu1,u2,user,2011-01-01\nu3,u1,user,2011-01-01\nu1,D-9,device,2011-01-01\n"
        "u4,u5,user,2011-01-01\n"
    )
    users.with_columns(
        task=pl.lit("default"), at=pl.lit("2011-07-01"), y=0, done=pl.lit("2011-08-01")
    ).write_csv(raw / "labels.csv")
    event = {"user_id": "u", "event_id": "id", "event_time": "t", "event_type": "k", "amount": "a"}
    tie = {"user_id": "a", "other_id": "b", "other_kind": "kind", "relation": "'tie'"}
    label = {"user_id": "u", "task": "task", "as_of": "at", "value": "y", "matured_at": "done"}

    def source(table: Any, name: str, columns: dict[str, str], **more: Any) -> Source:
        return Source(
            table=table,
            path=str(raw / name),
            columns=columns,
            max_rejected_fraction=0.2,
            **more,
        )

    return {
        "shop": source("events", "events.csv", event, currency="GBP"),
        "crm": source("users", "users.csv", {"user_id": "u", "age": "age"}, immutable=True),
        "sensitive": source("protected", "protected.csv", {"user_id": "u", "sex": "s"}),
        "ties": source("edges", "edges.csv", {**tie, "valid_from": "since"}),
        "outcomes": source("labels", "labels.csv", label),
    }


def run(lake: Lake, sources: dict[str, Source]) -> Account:
    return ingest(
        lake,
        sources,
        numeric=("age",),
        categorical=(),
        protected=("sex",),
        buckets=4,
        secret=SECRET,
        now=NOW,
    )


def derive(lake: Lake, work: Path) -> None:
    """Scores and a graph month in the lake; a snapshot and predictions under the work folder."""
    users = lake.read("users").select("user_key", "bucket")
    graph = pl.Schema({"user_key": pl.Int64, "degree": pl.Float64})
    for bucket in buckets(4):
        mine = users.filter(pl.col("bucket") == bucket).select("user_key", degree=1.0)
        table = _table("graph", mine.cast(dict(graph)), ["graph_month", "bucket"])
        where = {"graph_month": "2011-07-01", "bucket": bucket}
        file = lake.write_part(table, mine, where)
        lake.publish(table, app=f"g{bucket}", generation=1, files=[file])
    scores = users.select("user_key", score=pl.struct(low=0.5))
    table = _table("scores", scores, ["as_of_date"])
    file = lake.write_part(table, scores, {"as_of_date": "2011-07-01"})
    lake.publish(table, app="s", generation=1, files=[file])
    for folder in ("snapshots/abc/fit", "predictions"):
        (work / folder).mkdir(parents=True)
        for bucket in buckets(4):
            mine = users.filter(pl.col("bucket") == bucket)
            if mine.height:
                mine.write_parquet(work / folder / f"bucket-{bucket:04d}.parquet")
    account = {"rows": USERS + 1, "without_events": 1, "fit": USERS}
    manifest = {"folder": "x", "rows": {"fit": USERS}, "account": account}
    (work / "snapshots/abc/snapshot.json").write_text(json.dumps(manifest))


def _table(name: str, frame: pl.DataFrame, by: list[str]) -> Table:
    kinds = {"bucket": pa.int32()}
    origin = [pa.field(name, kinds.get(name, pa.string())) for name in by]
    schema = pa.schema([*frame.to_arrow().schema, *origin])
    return Table(name=name, schema=schema, key=(), sort=("user_key",), required=())


def holders(root: Path, user_id: str) -> list[str]:
    """The Parquet files that hold a user's id or key, in any column, in clear."""
    key = user_key(SECRET, user_id)
    found = []
    for path in sorted(root.rglob("*.parquet")):
        frame = pl.from_arrow(pq.read_table(path, partitioning=None))
        assert isinstance(frame, pl.DataFrame)
        text = frame.select(pl.all().map_elements(str, return_dtype=pl.String))
        words = f'"{user_id}"', f"'{user_id}'", str(key)
        values = [v for column in text for v in column.to_list() if v is not None]
        if any(v == user_id or any(word in v for word in words) for v in values):
            found.append(str(path.relative_to(root)))
    return found


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def test_a_user_is_removed_everywhere_and_does_not_come_back(
    lake: Lake, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = marketplace(tmp_path / "raw")
    first = run(lake, sources)
    derive(lake, work)
    root, key = Path(lake.root), user_key(SECRET, "u1")
    tables = {table.split("/")[0] for table in holders(root, "u1")}
    assert tables == {"edges", "events", "graph", "identities", "labels", "protected"} | {
        "scores",
        "users",
    }
    before = {name: lake.read(name) for name in lake.versions()}
    files = {name: {f["path"] for f in lake.files(name)} for name in before}

    removed = erase(lake, work, ["u1"], SECRET)

    assert removed == {
        **{name: 1 for name in ("events", "users", "protected", "labels", "graph", "scores")},
        "edges": 3,  # u1 → u2, u3 → u1, u1 → D-9
        "identities": 3 + 1,  # of three sources, and once more of the ties
        "work": 2,
    }
    for name, rows in before.items():
        now = lake.read(name)
        named = [c for c in ("user_key", "dst") if c in rows.columns]
        others = rows if not named else rows.filter(pl.all_horizontal(pl.col(named) != key))
        order = [c for c in rows.columns if not isinstance(rows.schema[c], pl.Struct)]
        assert now.sort(order).equals(others.sort(order)), name
        kept = files[name] & {f["path"] for f in lake.files(name)}
        if name == "events":  # only the file of the user's own bucket is another one
            assert len(kept) == len(files[name]) - 1
    assert ingested(lake).versions == {name: lake.version(name) for name in ingested(lake).versions}

    snapshot = json.loads((work / "snapshots/abc/snapshot.json").read_text())
    assert snapshot["rows"] == {"fit": USERS - 1}
    assert snapshot["account"] == {"rows": USERS, "without_events": 1, "fit": USERS - 1}
    assert holders(work, "u1") == []

    grave = lake.read("tombstones").to_dicts()
    hashed = erased_hashes(SECRET, pl.Series([key]))[0]
    assert [row["user_hash"] for row in grave] == [hashed]
    rows = {name: n for name, n in removed.items() if name != "work"}
    assert json.loads(grave[0]["rows"]) == rows
    last = lake.latest_run("erase")
    assert last is not None and last["counts"] == {"users": 1, **removed}
    assert "u1" not in str(last["counts"]) and str(key) not in str(last) + str(grave)
    assert "raycredit compact --vacuum-days 0" in capsys.readouterr().out

    # the second time nothing is left to do, and it says so
    versions = lake.versions(), lake.version(RUNS.name)
    assert sum(erase(lake, work, ["u1"], SECRET).values()) == 0
    assert "nothing found" in capsys.readouterr().out
    assert (lake.versions(), lake.version(RUNS.name)) == versions

    # old versions hold the user until they are vacuumed
    assert holders(root, "u1") != []
    (root / "events/left-by-a-killed-job.parquet").write_bytes(b"")
    compact(lake, 0)
    assert holders(root, "u1") == []
    assert holders(root, "u2") != []
    assert not (root / "events/left-by-a-killed-job.parquet").exists()
    assert lake.read("events", version=ingested(lake).versions["events"]).height == USERS - 1

    # the same files again: nothing to do, and the account says who is not in it any more
    again = run(lake, sources)
    assert again.unchanged
    assert again.total.rows_in == first.total.rows_in
    gone = {n: c.reasons.get("erased user", 0) for n, c in again.by_source().items()}
    assert gone == {"shop": 1, "crm": 1, "sensitive": 1, "ties": 3, "outcomes": 1}

    # ... and read anew, as files that have changed: the user's rows are refused
    for path in (tmp_path / "raw").iterdir():
        path.write_text(path.read_text() + "\n")
    anew = run(lake, sources)
    assert not anew.unchanged
    gone = {n: c.reasons.get("erased user", 0) for n, c in anew.by_source().items()}
    # the shop's faulty row of u1 is the user's, too
    assert gone == {"shop": 2, "crm": 1, "sensitive": 1, "ties": 3, "outcomes": 1}
    assert anew.total.rows_in == first.total.rows_in
    refused = lake.read("rejected").filter(pl.col("reason") == "erased user")
    assert refused.height == 8 and refused["content"].null_count() == 8
    assert holders(root, "u1") == []
    assert lake.read("identities")["user_id"].n_unique() == USERS - 1


def test_a_lake_within_work_is_told_from_it_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    work = tmp_path / "work"
    work.symlink_to(tmp_path / "disk")
    lake = Lake(str(work / "lake"))
    run(lake, marketplace(tmp_path / "raw"))
    files = {path: path.read_bytes() for path in Path(lake.root).rglob("*.parquet")}
    removed = erase(lake, work, ["u1"], SECRET)
    assert removed["work"] == 0 and removed["events"] == 1
    for path, content in files.items():  # what earlier versions hold, until a vacuum
        assert path.read_bytes() == content


def test_several_users_known_and_unknown(
    lake: Lake, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(lake, marketplace(tmp_path / "raw"))
    versions = lake.versions()
    with pytest.raises(UserError, match=r"knows no user 'who' \(and 1 more\): nothing was erased"):
        erase(lake, work, ["nobody", "who"], SECRET)
    with pytest.raises(UserError, match=r"the secret is not the one that lake .* was keyed"):
        erase(lake, work, ["u1"], b"another secret of the tests")
    assert lake.versions() == versions
    removed = erase(lake, work, ["u1", "u3", "nobody"], SECRET)
    out = capsys.readouterr().out
    assert "2 users" in out and "1 ids are unknown" in out
    assert (removed["events"], removed["edges"]) == (2, 3)
    rows = [json.loads(text) for text in lake.read("tombstones")["rows"]]
    assert sorted(row["edges"] for row in rows) == [1, 3]  # u3 → u1 is about both
    with pytest.raises(UserError, match="knows no user 'nobody'"):
        erase(lake, work, ["nobody"], SECRET)
    assert erase(lake, work, ["u3", "u4"], SECRET)["events"] == 1
    assert lake.read("tombstones").height == 3


def test_a_run_that_was_cut_off_is_finished_by_the_next(
    lake: Lake, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = marketplace(tmp_path / "raw")
    run(lake, sources)
    state = ingested(lake).versions

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    for at in ("_bury", "_record"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(job, at, killed)
            erase(lake, work, ["u1"], SECRET)
        assert ingested(lake).versions == state  # jobs go on reading what was there
    assert lake.read("tombstones").height == 1
    erase(lake, work, ["u1"], SECRET)
    rows = json.loads(lake.read("tombstones")["rows"][0])
    assert rows["events"] == 1 and rows["edges"] == 3
    assert ingested(lake).versions != state
    assert lake.read("events", version=ingested(lake).versions["events"]).height == USERS - 1
    assert run(lake, sources).by_source()["ties"].reasons == {"erased user": 3}


def test_what_a_killed_ingest_left_is_not_published_by_an_erasure(
    lake: Lake, work: Path, tmp_path: Path
) -> None:
    run(lake, marketplace(tmp_path / "raw"))
    rows = conform(lake.read("events").head(1), EVENTS).with_columns(period=pl.lit("later"))
    where = {"source": "shop", "period": "later", "bucket": "0"}
    file = lake.write_part(EVENTS, rows, where)
    lake.publish(EVENTS, app="ingest/events/shop/later", generation=1, files=[file])
    with pytest.raises(UserError, match="table events: an ingest was cut off"):
        erase(lake, work, ["u1"], SECRET)
    assert lake.read("events").height == USERS + 1


def test_an_ingest_that_an_erasure_overtakes_publishes_nothing(
    lake: Lake, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = marketplace(tmp_path / "raw")
    run(lake, sources)
    (tmp_path / "raw/users.csv").write_text("u,age\nu1,30\nu2,31\n")
    check = ingest_job.account_of

    def and_erase(*arguments: Any) -> Any:
        erase(lake, work, ["u1"], SECRET)
        return check(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ingest_job, "account_of", and_erase)
        with pytest.raises(UserError, match="users were erased while this ingest ran"):
            run(lake, sources)
    assert lake.read("users").height == USERS - 1
    assert run(lake, sources).by_source()["crm"].reasons == {"erased user": 1}
    assert lake.read("users").height == 1


def test_whom(tmp_path: Path) -> None:
    file = tmp_path / "ids"
    file.write_text("u1\n\n u2 \nu1\n")
    assert ids_of(["u3", "u1"], str(file)) == ["u3", "u1", "u2"]
    with pytest.raises(UserError, match="give --user-id ID or --user-ids FILE"):
        ids_of([], None)
    with pytest.raises(UserError, match="a text file of one id a line"):
        ids_of([], str(tmp_path / "none"))


def test_the_command(
    lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYCREDIT_SECRET", SECRET.decode())
    sets = ["--set", f"lake={lake.root}", "--set", f"work={tmp_path}", "--set", "secret_file="]
    assert main(["erase", "-c", "demo", *sets, "--user-id", "u1"]) == 2
    assert "nothing in lake" in capsys.readouterr().err
    run(lake, marketplace(tmp_path / "raw"))
    assert main(["erase", "-c", "demo", *sets]) == 2
    assert main(["erase", "-c", "demo", *sets, "--user-id", "nobody"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 2 and "knows no user 'nobody': nothing was erased" in error
    assert main(["erase", "-c", "demo", *sets, "--user-id", "u1", "--user-id", "u2"]) == 0
    assert "2 users; rows removed:" in capsys.readouterr().out
    assert main(["compact", "-c", "demo", *sets, "--vacuum-days", "0"]) == 0
    assert "tombstones" in capsys.readouterr().out
    assert holders(Path(lake.root), "u1") == holders(Path(lake.root), "u2") == []
