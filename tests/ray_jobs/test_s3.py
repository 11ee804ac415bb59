"""Sources and the lake in S3, through PyArrow's and deltalake's own clients."""

import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import polars as pl
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError

from models.data.clean import conform
from models.data.schema import LABELS, UserError
from ray_jobs import jobs, storage
from ray_jobs.config import load
from ray_jobs.lake import DataFile, Lake
from ray_jobs.reach import check
from ray_jobs.tables import ingested

if TYPE_CHECKING:
    from tests.conftest import SmallShop

ROOT = Path(__file__).parents[2]
BUCKET = "shop"
PART = {"source": "shop", "period": "2011-01"}
NOWHERE = "http://127.0.0.1:9"  # the port of "discard", where nobody listens
# One request at a time: a conditional put is then as atomic as it is in S3.
SERVER = """
from moto.moto_server import werkzeug_app as moto
from werkzeug.serving import make_server
app = moto.DomainDispatcherApplication(moto.create_backend_app)
handler = moto.MotoRequestHandler
server = make_server("127.0.0.1", 0, app, threaded=False, request_handler=handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
# The command with one Ray, each line of its input run after the other.
COMMAND = """
import json, sys
from ray_jobs.cli import main
from ray_jobs.cluster import connected
from ray_jobs.config import ClusterConfig
from ray_jobs.tables import ingested
with connected(ClusterConfig(num_cpus=4)):
    for line in sys.stdin:
        print("exit", main(json.loads(line)), flush=True)
"""
Run = Callable[[str, str], list[str]]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Where a local S3 listens; in a process of its own, as deltalake's client holds the GIL."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.terminate()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an S3 with one empty bucket, which every other client finds as well."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    known = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "anna",
        "AWS_SECRET_ACCESS_KEY": "a secret",
        "AWS_REGION": "us-east-1",
    }
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    post(f"{endpoint}/moto-api/reset")
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    client.close()


def post(url: str, body: bytes = b"") -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "text/plain"}, method="POST")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def keys(s3: Any, prefix: str = "") -> list[str]:
    """What lies in the bucket."""
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return [each["Key"] for each in found]


@pytest.fixture
def run(s3: Any) -> Iterator[Run]:
    """`raycredit VERB -c CONFIG`: what it prints; it must exit with 0."""
    # a token of its own: where there is none yet, two Rays that start at once would each write one
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND], env=os.environ | token,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as command:  # fmt: skip
        assert command.stdin is not None and command.stdout is not None

        def one(verb: str, config: str) -> list[str]:
            print(json.dumps([verb, "-c", config]), file=command.stdin, flush=True)
            lines = []
            for line in command.stdout or ():
                lines.append(line)
                if line.startswith("exit "):
                    break
            assert lines and lines[-1] == "exit 0\n", lines
            return lines

        yield one
        command.stdin.close()
        assert command.wait(timeout=60) == 0


def test_ingest_and_snapshot_in_s3_are_those_on_a_disk(
    s3: Any, run: Run, tmp_path: Path, small_shop: "SmallShop"
) -> None:
    for path in small_shop.write(tmp_path / "raw"):
        key = str(path.relative_to(tmp_path))
        s3.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    here = small_shop.config(tmp_path / "here", str(tmp_path / "raw"))
    there = small_shop.config(
        tmp_path / "there", f"s3://{BUCKET}/raw", lake=f"s3://{BUCKET}/the/lake"
    )
    for verb in ("ingest", "snapshot"):
        run(verb, here)
        run(verb, there)
    disk, store = Lake(load(here).lake), Lake(load(there).lake)
    assert store.read("events").height == 720
    assert store.read("rejected")["reason"].to_list() == ["not JSON"]
    assert_same(disk, store)
    files = [sorted((tmp_path / at / "work").rglob("bucket-*.parquet")) for at in ("here", "there")]
    assert len(files[0]) == len(files[1]) == 8
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()

    assert [key for key in keys(s3) if "_staging" in key] == []
    before, versions = keys(s3), ingested(store).versions
    run("ingest", there)
    assert keys(s3) == before and ingested(store).versions == versions

    corrected = tmp_path / "raw" / "events" / "2024-08.parquet"
    small_shop.month(8, amount=2.0).head(60).write_parquet(corrected)
    s3.put_object(Bucket=BUCKET, Key="raw/events/2024-08.parquet", Body=corrected.read_bytes())
    run("ingest", here)
    run("ingest", there)
    assert store.read("events").height == 690
    assert_same(disk, store)
    assert store.version("users") == versions["users"]
    assert store.read("events", version=versions["events"]).height == 720
    assert jobs.tables(load(there)).versions == store.versions()


def assert_same(one: Lake, other: Lake) -> None:
    """The same files of the same bytes in every table, and so the same rows."""
    assert one.versions() == other.versions()
    for table in one.versions():
        first, second = one.files(table), other.files(table)
        assert [f["path"].removeprefix(one.root) for f in first] == [
            f["path"].removeprefix(other.root) for f in second
        ]
        assert one.read(table).equals(other.read(table))


@pytest.fixture
def lake(s3: Any) -> Lake:
    return Lake(f"s3://{BUCKET}/lake/")


def part(lake: Lake, *values: float) -> DataFile:
    rows = conform(pl.DataFrame({"user_key": range(len(values)), "value": values}), LABELS)
    return lake.write_part(LABELS, rows, {**PART, "bucket": 4})


def test_a_lake_in_s3(lake: Lake, s3: Any) -> None:
    assert not lake.exists("labels") and lake.versions() == {}
    file = part(lake, 1.0)
    assert not lake.holds("labels", [file], PART)
    lake.replace(LABELS, app="a", files=[file], where=PART)
    assert lake.exists("labels") and lake.holds("labels", [file], PART)
    assert lake.generation("labels", "a") == 1 and lake.versions() == {"labels": 1}
    staged = part(Lake(lake.url("_staging")), 2.0, 3.0)
    (adopted,) = lake.adopt([staged], lake.url("_staging"))
    assert keys(s3, "lake/_staging/labels/source=shop/period=2011-01/bucket=4/p") == []
    lake.replace(LABELS, app="a", files=[adopted], where=PART)
    assert lake.read("labels")["value"].to_list() == [2.0, 3.0]
    assert [f["path"] for f in lake.files("labels")] == [adopted.path]
    with pytest.raises(UserError, match=r"part-.* is missing: nothing was published"):
        lost = part(lake, 9.0)
        s3.delete_object(Bucket=BUCKET, Key=lost.path.removeprefix(f"s3://{BUCKET}/"))
        lake.replace(LABELS, app="a", files=[lost], where=PART)


def test_of_two_commits_at_one_moment_one_lands(lake: Lake) -> None:
    lake.replace(LABELS, app="a", files=[part(lake, 1.0)], where=PART)
    handles = [DeltaTable(lake.url("labels")) for _ in range(2)]

    def commit(delta: DeltaTable) -> None:
        actions = [lake._action("labels", part(lake, 2.0))]
        properties = CommitProperties(app_transactions=[Transaction("a", 2)])
        delta.create_write_transaction(
            actions, "append", LABELS.schema, ["source", "period", "bucket"],
            commit_properties=properties,
        )  # fmt: skip

    commit(handles[0])
    with pytest.raises(CommitFailedError):
        commit(handles[1])
    assert lake.read("labels").height == 2


def test_a_key_may_hold_what_a_uri_may_not(s3: Any) -> None:
    for name in ("a b.txt", "50%.txt", "[1].txt", "日本.txt"):
        storage.put(b"content", f"s3://{BUCKET}/x y/{name}")
        assert storage.digest_of(f"s3://{BUCKET}/x y/{name}")[0] == 7
        assert f"x y/{name}" in keys(s3)


def says(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command says of a user's mistake, without `raycredit VERB: `."""
    from ray_jobs.cli import main

    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said.strip().removeprefix(f"raycredit {arguments[0]}: ")


@pytest.mark.timeout(30)
def test_what_a_user_may_have_wrong_is_one_line_in_seconds(
    s3: Any, endpoint: str, tmp_path: Path, small_shop: "SmallShop",
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    there = small_shop.config(tmp_path, f"s3://{BUCKET}/raw", lake=f"s3://{BUCKET}/lake")
    for more in ("lake=s3://none/lake", "sources.crm.path=s3://none/x/*.csv"):
        url = more.partition("=")[2].removesuffix("/*.csv")
        said = says(capsys, "ingest", "-c", there, "--set", more)
        assert said == f"{url}: there is no such bucket"
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", NOWHERE)
        said = says(capsys, "snapshot", "-c", there)
        assert "Connection refused" in said and NOWHERE in said
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.delenv("AWS_ALLOW_HTTP")
        assert "set AWS_ALLOW_HTTP=true" in says(capsys, "ingest", "-c", there)
    post(f"{endpoint}/moto-api/reset-auth", b"0")
    try:
        assert "InvalidAccessKeyId: The AWS Access Key Id" in says(capsys, "ingest", "-c", there)
        with pytest.raises(UserError, match=rf"^s3://{BUCKET}/x cannot be written: .*ACCESS_KEY"):
            storage.put(b"content", f"s3://{BUCKET}/x")
        with pytest.raises(UserError, match=rf"^s3://{BUCKET}/x\?region=.*: .*403|ACCESS_DENIED"):
            check(str(tmp_path), [f"s3://{BUCKET}/x?region=us-east-1"])
    finally:
        post(f"{endpoint}/moto-api/reset-auth", b"inf")
    for more in ("work=s3://shop/work", "lake=s3://shop/lake?endpoint_override=x"):
        assert more.partition("=")[0] in says(capsys, "ingest", "-c", there, "--set", more)
    assert keys(s3) == []
