"""Jobs that change one lake at one time: one of them is entered, another says that it was not, and
run again it completes; no row is lost, none is there twice, and who was erased is gone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from models.data.clean import conform
from models.data.keys import erased_hashes, user_key
from models.data.schema import EVENTS, UserError
from models.data.source import Source
from ray_jobs import erase as erase_job
from ray_jobs import ingest as ingest_job
from ray_jobs import tombstones
from ray_jobs.account import Account, from_stored
from ray_jobs.commits import COMPACTED, commits
from ray_jobs.erase import erase
from ray_jobs.ingest import ingest
from ray_jobs.lake import Lake
from ray_jobs.rollback import application

pytestmark = pytest.mark.usefixtures("ray_cluster")

SECRET = b"a secret of the tests"
MEANWHILE = "another job changed the lake meanwhile; run it again"
CUT_OFF = "an ingest was cut off, or still runs; run `raycredit ingest` first"
TABLES = ("events", "identities")


class Shop:
    """A lake, and raw files of a shop; another shop's go to the same lake."""

    def __init__(self, folder: Path) -> None:
        self.lake, self.raw, self.work = Lake(str(folder / "lake")), folder, folder / "work"
        self.write("shop", 1, "a", "b")
        self.ingest("shop")

    def write(self, source: str, period: int, *users: str) -> None:
        (self.raw / source).mkdir(exist_ok=True)
        rows = "".join(f"{user},2011-06-0{period},buy\n" for user in users)
        (self.raw / source / f"{period}.csv").write_text("u,t,k\n" + rows)

    def ingest(self, name: str) -> Account:
        columns = {"user_id": "u", "event_time": "t", "event_type": "k"}
        path = str(self.raw / name)
        source = Source(
            table="events",
            path=path,
            columns=columns,
            period=r"(\d+)\.csv",
            max_rejected_fraction=0.9,
        )
        return ingest(
            self.lake,
            {name: source},
            numeric=(),
            categorical=(),
            protected=(),
            buckets=2,
            secret=SECRET,
            now=datetime(2012, 1, 1, tzinfo=UTC),
        )

    def erase(self, user: str) -> dict[str, int]:
        return erase(self.lake, self.work, [user], SECRET)

    def state(self) -> dict[str, Any]:
        found = self.lake.state()
        assert found is not None
        return found

    def seen(self, table: str) -> list[tuple[str, str, int]]:
        """The rows that jobs read: source, period and user."""
        rows = self.lake.read(table, version=self.state()["table_versions"][table])
        return sorted(rows.select("source", "period", "user_key").rows())

    def assert_holds(self, *parts: str) -> None:
        """Jobs read an event and an identity of each user of the parts (`shop 1: a b`)."""
        expected = []
        for part in parts:
            name, users = part.split(": ")
            source, period = name.split()
            expected += [(source, period, user_key(SECRET, user)) for user in users.split()]
        for table in TABLES:
            assert self.seen(table) == sorted(expected), table
        counts = from_stored(self.state()["config"]["parts"])
        assert sum(count.accepted for _, count in counts.values()) == len(expected)


@contextmanager
def just_before(
    owner: Any, name: str, act: Callable[[], object], table: str | None = None
) -> Iterator[None]:
    """As a function is first called (for a table), something else happens before it."""
    original = getattr(owner, name)

    def call(*arguments: Any, **more: Any) -> Any:
        if table is None or table in [getattr(one, "name", one) for one in arguments]:
            patch.undo()
            act()
        return original(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, call)
        yield


def left_at(owner: Any, name: str, job: Callable[[], object], table: str | None = None) -> None:
    """What a job has done as it comes to a function: it goes no further, or not yet."""

    def stay() -> None:
        raise KeyboardInterrupt

    with just_before(owner, name, stay, table), pytest.raises(KeyboardInterrupt):
        job()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_an_ingest_whose_commits_another_took_back(shop: Shop) -> None:
    shop.write("shop", 2, "c")
    shop.write("web", 9, "d")
    before = shop.state()

    def another() -> None:
        left_at(ingest_job, "_publish", lambda: shop.ingest("web"))

    with just_before(Lake, "publish", another, "events"), pytest.raises(UserError, match=MEANWHILE):
        shop.ingest("shop")
    assert shop.state() == before
    assert not shop.ingest("shop").unchanged
    shop.assert_holds("shop 1: a b", "shop 2: c")
    assert shop.ingest("shop").unchanged


@pytest.mark.parametrize(
    ("owner", "name", "table"),
    [
        pytest.param(ingest_job, "account_of", None, id="before its commits"),
        pytest.param(Lake, "publish", "events", id="between two of them"),
        pytest.param(Lake, "record_state", "ingest", id="as it is entered"),
    ],
)
def test_an_ingest_during_another(shop: Shop, owner: Any, name: str, table: str | None) -> None:
    shop.write("shop", 1, "a", "c")
    shop.write("shop", 2, "c")
    shop.write("web", 9, "d")
    meanwhile = just_before(owner, name, lambda: shop.ingest("web"), table)
    with meanwhile, pytest.raises(UserError, match=MEANWHILE):
        shop.ingest("shop")
    shop.assert_holds("shop 1: a b", "web 9: d")
    went_on = shop.lake.versions() != shop.state()["table_versions"]
    assert went_on == (name == "publish")  # it looks before its commits, not between them
    shop.ingest("shop")
    shop.assert_holds("shop 1: a c", "shop 2: c", "web 9: d")


def test_the_same_ingest_twice_at_one_time(shop: Shop) -> None:
    shop.write("shop", 2, "c")
    meanwhile = just_before(ingest_job, "account_of", lambda: shop.ingest("shop"))
    with meanwhile, pytest.raises(UserError, match=MEANWHILE):
        shop.ingest("shop")
    assert shop.ingest("shop").unchanged
    shop.assert_holds("shop 1: a b", "shop 2: c")


def test_half_of_another_ingest_is_not_entered(shop: Shop) -> None:
    shop.write("shop", 2, "c")
    before = shop.state()

    def another() -> None:
        where = {"source": "web", "period": "9"}
        rows = conform(shop.lake.read("events").head(1), EVENTS)
        file = shop.lake.write_part(EVENTS, rows, {**where, "bucket": 4})
        app = application("events", ("web", "9"))
        shop.lake.replace(EVENTS, app=app, files=[file], where=where)

    with just_before(ingest_job, "split", another), pytest.raises(UserError, match=MEANWHILE):
        shop.ingest("shop")
    assert shop.state() == before
    shop.ingest("shop")
    shop.assert_holds("shop 1: a b", "shop 2: c")


def test_a_compaction_disturbs_nobody(shop: Shop) -> None:
    shop.write("shop", 2, "c")

    def compacts() -> None:
        old = shop.lake.files("identities")[0]
        table = shop.lake.table("identities")
        rows = shop.lake.rows(table, old).with_columns(user_id=pl.lit("a b"))
        shop.lake.rewrite(
            "identities",
            app="compact/identities",
            gone=[old["path"]],
            files=[shop.lake.write_part(table, rows, old["partition"])],
            metadata={COMPACTED: 1},
        )

    with just_before(Lake, "publish", compacts, "events"):
        shop.ingest("shop")
    shop.assert_holds("shop 1: a b", "shop 2: c")
    assert "a b" in shop.lake.read("identities")["user_id"]


def test_an_erasure_during_an_ingest(shop: Shop) -> None:
    shop.write("shop", 2, "a", "c")

    def erasure() -> None:
        with pytest.raises(UserError, match=f"table identities: {CUT_OFF}"):
            shop.erase("a")

    with just_before(Lake, "publish", erasure, "events"):
        shop.ingest("shop")
    shop.assert_holds("shop 1: a b", "shop 2: a c")
    shop.erase("a")
    shop.assert_holds("shop 1: b", "shop 2: c")


def test_an_ingest_that_begins_while_an_erasure_searches(shop: Shop) -> None:
    shop.write("shop", 2, "a", "c")

    def half() -> None:
        left_at(Lake, "publish", lambda: shop.ingest("shop"), "events")
        versions.update(shop.lake.versions())

    versions: dict[str, int] = {}
    with just_before(erase_job, "_noted", half), pytest.raises(UserError, match=CUT_OFF):
        shop.erase("a")
    assert shop.lake.versions() == versions  # nothing was erased
    shop.ingest("shop")
    shop.assert_holds("shop 1: a b", "shop 2: a c")
    shop.erase("a")
    shop.assert_holds("shop 1: b", "shop 2: c")


def test_an_ingest_that_begins_while_an_erasure_commits(shop: Shop) -> None:
    shop.write("shop", 2, "a", "c")
    before = shop.state()

    def half() -> None:
        left_at(Lake, "publish", lambda: shop.ingest("shop"), "events")

    meanwhile = just_before(erase_job, "_commit", half, "events")
    with meanwhile, pytest.raises(UserError, match=f"table identities: {CUT_OFF}"):
        shop.erase("a")
    assert shop.state() == before and tombstones.erased(shop.lake) == frozenset()
    shop.ingest("shop")
    shop.assert_holds("shop 1: b", "shop 2: a c")
    shop.erase("a")
    shop.assert_holds("shop 1: b", "shop 2: c")


@pytest.mark.parametrize("at", ["_commit", "_bury", "_record"])
def test_an_ingest_during_an_erasure(shop: Shop, at: str) -> None:
    shop.write("shop", 2, "a", "c")
    table = "identities" if at == "_commit" else None
    meanwhile = just_before(erase_job, at, lambda: shop.ingest("shop"), table)
    with meanwhile, pytest.raises(UserError, match=MEANWHILE):
        shop.erase("a")
    shop.erase("a")
    shop.assert_holds("shop 1: b", "shop 2: c")
    assert shop.ingest("shop").by_source()["shop"].reasons == {"erased user": 2}


def test_a_tombstone_that_appears_while_an_ingest_publishes(shop: Shop) -> None:
    shop.write("shop", 2, "a", "c")
    hashes = erased_hashes(SECRET, pl.Series([user_key(SECRET, "a")]))
    row = {"user_hash": hashes[0], "erased_at": datetime.now(UTC), "rows": "{}"}
    frame = pl.DataFrame([row], schema=pl.Schema(tombstones.TOMBSTONES.schema))
    before = shop.state()

    def bury() -> None:
        tombstones.bury(shop.lake, frame, "erase/1")

    meanwhile = just_before(Lake, "publish", bury, "events")
    with meanwhile, pytest.raises(UserError, match="users were erased while this ingest ran"):
        shop.ingest("shop")
    assert shop.state() == before
    shop.ingest("shop")
    shop.erase("a")
    shop.assert_holds("shop 1: b", "shop 2: c")


def test_two_erasures_at_one_time(shop: Shop) -> None:
    meanwhile = just_before(erase_job, "_record", lambda: shop.erase("b"))
    with meanwhile, pytest.raises(UserError, match=MEANWHILE):
        shop.erase("a")
    shop.erase("a")
    shop.assert_holds()
    assert len(tombstones.erased(shop.lake)) == 2


def test_commits_are_numbered_by_the_log(shop: Shop) -> None:
    shop.write("shop", 2, "c")
    shop.ingest("shop")
    newest = shop.lake.version("events")
    operations = [commit["operation"] for commit in commits(shop.lake, "events", -1, newest)]
    assert operations == ["CREATE TABLE", "WRITE", "WRITE"]
    (last,) = commits(shop.lake, "events", newest - 1, newest)
    assert "content" in last and last["by"].startswith('"_staging-')
    assert commits(shop.lake, "events", newest, newest) == []
