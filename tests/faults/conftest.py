"""Raw files of two months, a lake that is published, and a Ray of three nodes to disturb."""

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.data.source import Source
from ray_jobs.ingest import ORDER, ingest
from ray_jobs.lake import Lake
from ray_jobs.tables import ingested

HERE = Path(__file__).parent
BUCKETS = 2
SECRET = "a secret of the tests"
NOW = datetime(2012, 1, 1, tzinfo=UTC)
EVENT = {"user_id": "u", "event_id": "id", "event_time": "t", "event_type": "k", "amount": "a"}
LABEL = {"user_id": "u", "task": "task", "as_of": "at", "value": "y", "matured_at": "done"}
USERS, FILES = 30, 3  # of each month of events
LONGEST_S = 240.0  # what has not ended by then hangs


@dataclass(frozen=True)
class Digest:
    """What a lake holds: the rows of each table in order of all columns, and the files."""

    rows: str
    files: str


@dataclass(frozen=True)
class World:
    """The raw files and the lake before and after the ingest that is to be killed."""

    folder: Path
    raw: Path
    before: Digest
    after: Digest
    counts: dict[str, int]
    most: dict[str, int]  # what an undisturbed run makes

    @property
    def published(self) -> Path:
        """The lake of the earlier ingest."""
        return self.folder / "published"

    @staticmethod
    def digest(lake: Path) -> Digest:
        """What a reader sees in a lake."""
        return digest(lake)

    @staticmethod
    def commits(lake: Path) -> int:
        """How many commits a lake has."""
        return len(commits(lake))

    def job_file(self, lake: Path) -> Path:
        """What `ingest_once.py` is to do."""
        file = lake.with_suffix(".json")
        job = {"lake": str(lake), "sources": sources_of(self.raw), "buckets": BUCKETS}
        job |= {"secret": SECRET, "now": NOW.isoformat()}
        file.write_text(json.dumps(job), encoding="utf-8")
        return file


def write_events(raw: Path, month: str, amount: int) -> None:
    """A month's files: each with a row that is refused, one that is there twice in the file, and
    one that is in every file."""
    for at in range(FILES):
        rows = [
            f"u{n % 20},{month}-{at * USERS + n},{month}-{1 + n % 28:02}T12:00:00,buy,{amount + n}"
            for n in range(USERS)
        ]
        rows += [rows[0], f"u1,{month}-all,{month}-03T00:00:00,buy,1", f"u2,{month}-x{at},soon,x,1"]
        (raw / f"events-{month}-{at}.csv").write_text("u,id,t,k,a\n" + "\n".join(rows) + "\n")


def write_labels(raw: Path, users: list[str]) -> None:
    rows = [f"{user},default,2011-07-01,1,2011-08-01" for user in users]
    (raw / "labels.csv").write_text("u,task,at,y,done\n" + "\n".join(rows) + "\n")


def write_users(raw: Path, age: int) -> None:
    for part in range(2):
        people = [{"id": f"u{n}", "age": age + n} for n in range(part, 24, 2)]
        (raw / f"users-{part}.jsonl").write_text("\n".join(map(json.dumps, people)) + "\n")


def sources_of(raw: Path) -> dict[str, Any]:
    loose = {"max_rejected_fraction": 0.5}
    events = {"columns": EVENT, "currency": "GBP", "period": r"(\d{4}-\d\d)-\d+\.csv$"}
    users = {"columns": {"user_id": "id", "age": "age"}, "immutable": True}
    return {
        "shop": {"table": "events", "path": f"{raw}/events-*.csv", **events, **loose},
        "crm": {"table": "users", "path": f"{raw}/users-*.jsonl", **users, **loose},
        "outcomes": {"table": "labels", "path": f"{raw}/labels.csv", "columns": LABEL, **loose},
    }


def run_here(lake: Path, raw: Path) -> dict[str, int]:
    """The same job undisturbed, on the Ray of the tests."""
    account = ingest(
        Lake(str(lake)),
        {name: Source.model_validate(source) for name, source in sources_of(raw).items()},
        numeric=("age",),
        categorical=(),
        protected=(),
        buckets=BUCKETS,
        secret=SECRET.encode(),
        now=NOW,
    )
    return account.to_json()


def digest(folder: Path) -> Digest:
    """What a reader sees: every table at the version that the last ingest names."""
    lake = Lake(str(folder))
    versions = ingested(lake).versions
    rows, files = hashlib.sha256(), hashlib.sha256()
    for name in ORDER:
        if name in versions:
            frame = lake.read(name, version=versions[name])
            rows.update(repr((name, frame.columns, frame.sort(frame.columns).rows())).encode())
            for file in lake.files(name, version=versions[name]):
                path = Path(file["path"])
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                files.update(f"{path.relative_to(folder)} {content}\n".encode())
    return Digest(rows.hexdigest(), files.hexdigest())


def commits(lake: Path) -> set[Path]:
    return {path.relative_to(lake) for path in lake.glob("*/_delta_log/*.json")}


def data_files(lake: Path) -> set[str]:
    return {str(path.relative_to(lake)) for path in lake.glob("*/source=*/**/*.parquet")}


@pytest.fixture(scope="module")
def world(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A June and a July, published; then July corrected, an August, and other profiles."""
    folder = tmp_path_factory.mktemp("killed")
    raw = folder / "raw"
    raw.mkdir()
    write_events(raw, "2011-06", 10)
    write_events(raw, "2011-07", 20)
    write_users(raw, 30)
    write_labels(raw, ["u1", "u2", "nobody", "u1"])
    run_here(folder / "published", raw)
    before = digest(folder / "published")
    write_events(raw, "2011-07", 40)
    write_events(raw, "2011-08", 50)
    write_users(raw, 31)
    write_labels(raw, ["u1", "u2", "u3", "nobody", "u1", "u3"])
    shutil.copytree(folder / "published", folder / "whole")
    counts = run_here(folder / "whole", raw)
    most = dict(
        commits=len(commits(folder / "whole") - commits(folder / "published")),
        merged=len(data_files(folder / "whole") - data_files(folder / "published")),
        staged=2 * FILES + 2 + 1,
    )
    after = digest(folder / "whole")
    assert before.rows != after.rows and before.files != after.files
    assert counts["rejected"] and counts["duplicates"]
    return World(folder, raw, before, after, counts, most)


class Nodes:
    """A cluster in a process of its own (`two_nodes.py`), and the drivers that join it."""

    def __init__(self, folder: str, cpus: int = 1) -> None:
        # a token and a folder of its own: other Rays of this machine are not touched
        self.log = Path(folder, "stderr")
        self.environment = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": folder,
            "PYTHONPATH": str(HERE.parents[1]),
            "POLARS_MAX_THREADS": "1",
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.cluster = self.start("two_nodes.py", str(cpus))
        self.raylets: list[int] = []
        self.drivers: list[subprocess.Popen[str]] = []

    def wait(self) -> None:
        """Until the head is there; the other nodes may still be starting."""
        if "RAY_ADDRESS" not in self.environment:
            self.environment["RAY_ADDRESS"] = self.hear(self.cluster)

    def driver(self, job: Path) -> subprocess.Popen[str]:
        """A driver that joins the cluster."""
        self.wait()
        self.drivers.append(self.start("ingest_once.py", str(job)))
        return self.drivers[-1]

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A Python of ours that is told things line by line."""
        with self.log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, str(HERE / command[0]), *command[1:]],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def hear(self, process: subprocess.Popen[str]) -> str:
        """Its next line."""
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, self.log.read_text()
        return line.strip()

    @staticmethod
    def tell(process: subprocess.Popen[str], line: str) -> None:
        """Say a line to it."""
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    def ask(self, command: str) -> None:
        """Have nodes taken away or added, and learn which are there."""
        self.wait()
        self.tell(self.cluster, command)
        self.raylets = json.loads(self.hear(self.cluster))

    def busy(self) -> list[tuple[int, psutil.Process]]:
        """The workers that run a task, with their raylets."""
        found = []
        for raylet in self.raylets:
            for process in psutil.Process(raylet).children():
                if has_a_task(process):
                    found.append((raylet, process))
        return found

    @staticmethod
    def kill(worker: psutil.Process) -> bool:
        """Kill a worker unless its task has just ended."""
        with suppress(psutil.NoSuchProcess):  # its node may have ended it
            worker.suspend()
            if has_a_task(worker):
                worker.kill()
                return True
            worker.resume()
        return False

    def close(self) -> None:
        """End everything, also what a failed test has left behind."""
        for driver in self.drivers:
            if driver.poll() is None:
                driver.kill()
                driver.communicate()
        self.cluster.communicate(timeout=LONGEST_S)


def has_a_task(process: psutil.Process) -> bool:
    """Whether a worker of Ray runs a task of Ray Data; its title says so."""
    try:
        return process.cmdline()[:1] == ["ray::Map(task)"]
    except psutil.Error:  # it has just ended
        return False


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # in a short path: those of sockets may have 107 characters
    with tempfile.TemporaryDirectory(prefix="rc-", ignore_cleanup_errors=True) as folder:
        cluster = Nodes(folder)
        yield cluster
        cluster.close()
