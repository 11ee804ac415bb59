"""What a killed ingest had committed does not come back under another ingest's name."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from models.data.source import Source
from ray_jobs.account import Account
from ray_jobs.ingest import ingest
from ray_jobs.lake import Lake
from ray_jobs.tables import ingested

pytestmark = pytest.mark.usefixtures("ray_cluster")


def run(lake: Lake, raw: Path) -> Account:
    columns = {"user_id": "u", "event_time": "t", "event_type": "k"}
    source = Source(table="events", path=str(raw), columns=columns, period=r"(\d+)\.csv")
    return ingest(
        lake,
        {"shop": source},
        numeric=(),
        categorical=(),
        protected=(),
        buckets=2,
        secret=b"a secret of the tests",
        now=datetime(2012, 1, 1, tzinfo=UTC),
    )


def write(raw: Path, period: int, *users: str) -> None:
    raw.mkdir(exist_ok=True)
    rows = "".join(f"{user},2011-06-0{period},buy\n" for user in users)
    (raw / f"{period}.csv").write_text("u,t,k\n" + rows)


def killed(lake: Lake, raw: Path, at: str) -> None:
    """An ingest that ends as it is about to commit a table."""

    def publish(self: Lake, table: object, **more: object) -> int:
        if getattr(table, "name", None) == at:
            raise KeyboardInterrupt
        return original(self, table, **more)  # type: ignore[arg-type]

    original = Lake.publish
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Lake, "publish", publish)
        run(lake, raw)


@pytest.mark.parametrize("at", ["events", "runs"])
def test_files_put_back_after_a_kill(tmp_path: Path, at: str) -> None:
    lake, raw = Lake(str(tmp_path / "lake")), tmp_path / "raw"
    write(raw, 1, "a", "b")
    account, tables = run(lake, raw), ("events", "identities")
    before = {name: lake.read(name) for name in tables}
    write(raw, 1, "a", "c", "d")
    write(raw, 2, "e")
    killed(lake, raw, at)
    assert lake.read("identities").height == 4
    write(raw, 1, "a", "b")
    (raw / "2.csv").unlink()
    again = run(lake, raw)
    assert again.unchanged and again.to_json() == account.to_json()
    versions = ingested(lake).versions
    for name in tables:
        assert_frame_equal(lake.read(name, version=versions[name]), before[name])
    run(lake, raw)
    assert ingested(lake).versions == lake.versions() == versions


def test_the_first_ingest_is_killed(tmp_path: Path) -> None:
    lake, raw = Lake(str(tmp_path / "lake")), tmp_path / "raw"
    write(raw, 1, "a")
    write(raw, 2, "b", "c")
    killed(lake, raw, "runs")
    (raw / "2.csv").unlink()
    assert run(lake, raw).to_json()["accepted"] == 1
    assert lake.read("events").height == lake.read("identities").height == 1
