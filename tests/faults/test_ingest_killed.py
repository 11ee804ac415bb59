"""An ingest on three nodes, of which a worker, a node or the driver is killed.

Readers see the version that was published last, whole; the job goes on where Ray can go on, the
same command run again completes where it cannot, and the lake is then what an undisturbed run
leaves, to the byte.
"""

import hashlib
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from models.data.source import Source
from ray_jobs.ingest import ORDER, ingest
from ray_jobs.lake import Lake

HERE = Path(__file__).parent
KINDS = {  # what is killed, and in which phases: workers are idle while the driver publishes
    "worker": ("inspect", "clean", "merge"),
    "node": ("inspect", "clean", "merge", "publish"),
    "driver": ("inspect", "clean", "merge", "publish"),
}
ROUNDS = 2  # kills of each kind in each phase
KILLS = 20  # that must have hit a job before its end
LOOK_S = 0.005
LONGEST_S = 120.0  # a job that has not ended by then hangs
BUCKETS = 2
SECRET = "a secret of the tests"
NOW = datetime(2012, 1, 1, tzinfo=UTC)
EVENT = {"user_id": "u", "event_id": "id", "event_time": "t", "event_type": "k", "amount": "a"}
LABEL = {"user_id": "u", "task": "task", "as_of": "at", "value": "y", "matured_at": "done"}
USERS, FILES = 30, 3  # of each month of events


class Progress(NamedTuple):
    """How far a job has come, as its files show: later is greater."""

    commits: int = 0
    merged: int = 0  # final files, before they are published
    staged: int = 0  # slices of source files

    @property
    def phase(self) -> str:
        """What the job was doing."""
        phases = ("publish", "merge", "clean")
        return next((p for p, n in zip(phases, self, strict=True) if n), "inspect")

    def __str__(self) -> str:
        return f"{self.staged} staged, {self.merged} merged, {self.commits} commits"


class Point(NamedTuple):
    """What to kill, and when."""

    kind: str
    phase: str
    at: Progress


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
    most: Progress  # what an undisturbed run makes

    @property
    def published(self) -> Path:
        """The lake of the earlier ingest."""
        return self.folder / "published"

    def point(self, kind: str, phase: str, draw: random.Random) -> Point:
        """A point of the job's progress, not its last, in a phase."""
        name = {"clean": "staged", "merge": "merged", "publish": "commits"}.get(phase)
        if name is None:
            return Point(kind, phase, Progress())
        count = draw.randint(1, getattr(self.most, name) - 1)
        return Point(kind, phase, Progress(**{name: count}))

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
    versions = lake.ingested()
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
    most = Progress(
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

    def __init__(self, folder: str) -> None:
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
        self.cluster = self.start("two_nodes.py")
        self.raylets: list[int] = []

    def driver(self, job: Path) -> subprocess.Popen[str]:
        """A driver that will join the cluster, which may still be starting."""
        if "RAY_ADDRESS" not in self.environment:
            self.environment["RAY_ADDRESS"] = self.hear(self.cluster)
        return self.start("ingest_once.py", str(job))

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

    def ask(self, command: str) -> None:
        """Have nodes taken away or added, and learn which are there."""
        tell(self.cluster, command)
        self.raylets = json.loads(self.hear(self.cluster))

    def busy(self) -> list[tuple[int, psutil.Process]]:
        """The workers that run a task, with their raylets."""
        found = []
        for raylet in self.raylets:
            for process in psutil.Process(raylet).children():
                if has_a_task(process):
                    found.append((raylet, process))
        return found

    def close(self) -> None:
        self.cluster.communicate(timeout=60)


def has_a_task(process: psutil.Process) -> bool:
    """Whether a worker of Ray runs a task of Ray Data; its title says so."""
    try:
        return process.cmdline()[:1] == ["ray::Map(task)"]
    except psutil.Error:  # it has just ended
        return False


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


class Job:
    """An ingest into a lake, by a driver of its own on the cluster."""

    def __init__(self, world: World, lake: Path, nodes: Nodes) -> None:
        self.world, self.lake, self.nodes = world, lake, nodes
        self.driver = nodes.driver(world.job_file(lake))

    def begin(self) -> None:
        """Let it begin, as soon as it has joined."""
        assert self.nodes.hear(self.driver) == "ready"
        self.commits = len(commits(self.lake))
        self.old = set(self.lake.glob("_staging-*"))
        tell(self.driver, "go")

    def progress(self) -> Progress:
        """How far it has come."""
        slices, merged = set(), 0
        for folder in set(self.lake.glob("_staging-*")) - self.old:
            for at, _, names in os.walk(folder):  # which does not mind a folder that just went
                whole = [name for name in names if not name.startswith(".")]
                if "=" in at.removeprefix(str(folder)):
                    merged += len(whole)
                else:
                    slices |= {(at, name.rsplit(".", 1)[0]) for name in whole}
        return Progress(len(commits(self.lake)) - self.commits, merged, len(slices))

    def strike(self, point: Point) -> Progress | None:
        """Kill at a point; how far the job had come. None when it ended before."""
        until = time.monotonic() + LONGEST_S
        while self.driver.poll() is None:
            assert time.monotonic() < until, f"the job hangs at {self.progress()}"
            if self.progress() >= point.at and self._kill(point):
                return self.progress()
            time.sleep(LOOK_S)
        return None

    def _kill(self, point: Point) -> bool:
        """Kill a worker that runs a task, its node, or the driver; False when none runs one."""
        if point.phase == "publish":
            raylet = self.nodes.raylets[0]
        else:
            busy = self.nodes.busy()
            if not busy:
                return False
            raylet, worker = busy[0]
            if point.kind == "worker":
                worker.suspend()  # so that it is sure to die with a task
                if not has_a_task(worker):
                    worker.resume()
                    return False
                worker.kill()
        if point.kind == "node":
            self.nodes.ask(f"kill {raylet}")
        elif point.kind == "driver":
            self.driver.kill()
            self.driver.communicate()
        return True

    def finish(self) -> dict[str, int]:
        """Read the lake while the job goes on to its end; its account."""
        until = time.monotonic() + LONGEST_S
        while self.driver.poll() is None:
            assert time.monotonic() < until, f"the job hangs at {self.progress()}"
            self.assert_whole()
            time.sleep(LOOK_S)
        self.driver.communicate()
        assert self.driver.returncode == 0, self.nodes.log.read_text()
        run = Lake(str(self.lake)).latest_run("ingest")
        assert run is not None
        account: dict[str, int] = run["counts"]
        return account

    def assert_whole(self) -> None:
        """A reader sees all of the earlier ingest, or all of this one."""
        assert digest(self.lake) in (self.world.before, self.world.after)

    def assert_complete(self, account: dict[str, int]) -> None:
        """The lake is as an undisturbed run leaves it, and no row is lost or counted twice."""
        assert account == self.world.counts
        assert digest(self.lake) == self.world.after
        assert set(self.lake.glob("_staging-*")) == self.old


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    # in a short path: those of sockets may have 107 characters
    with tempfile.TemporaryDirectory(prefix="rc-", ignore_cleanup_errors=True) as folder:
        cluster = Nodes(folder)
        yield cluster
        cluster.close()


def test_one_kill_of_each_kind(nodes: Nodes, world: World, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    shutil.copytree(world.published, lake)
    first, again = Job(world, lake, nodes), Job(world, lake, nodes)
    nodes.ask("nodes")
    first.begin()
    assert first.strike(Point("driver", "publish", Progress(commits=2)))
    assert digest(lake) == world.before
    again.begin()
    assert again.strike(Point("worker", "clean", Progress(staged=1)))
    assert again.strike(Point("node", "merge", Progress(merged=1)))
    again.assert_complete(again.finish())


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_twenty_two_kills(
    nodes: Nodes, world: World, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(seed)
    nodes.ask("nodes")
    lines, killed = [], 0
    for kind, phase in [(k, p) for k, phases in KINDS.items() for p in phases] * ROUNDS:
        point = world.point(kind, phase, draw)
        lake = tmp_path / "lake"
        shutil.copytree(world.published, lake)
        job = Job(world, lake, nodes)
        job.begin()
        hit = job.strike(point)
        job.assert_whole()
        killed += hit is not None
        if hit and kind == "driver":
            job = Job(world, lake, nodes)
            job.begin()
        account = job.finish()
        job.assert_complete(account)
        lines.append(line(point, hit, account))
        if hit and kind == "node":
            nodes.ask("add")
        shutil.rmtree(lake)
    assert killed >= KILLS
    with capsys.disabled():
        print(f"\nseed {seed}: {killed} of {len(lines)} killed", *lines, sep="\n")


def line(point: Point, hit: Progress | None, account: dict[str, int]) -> str:
    """A kill in the printed account; what came before has been asserted."""
    killed = "ended before" if hit is None else f"killed in {hit.phase}, {hit}"
    end = "run again, completed" if hit and point.kind == "driver" else "the job itself ended well"
    counts = ", ".join(f"{name} {n}" for name, n in account.items())
    return f"{point.kind:6} {killed:60} {end:25} {counts}, content identical"
