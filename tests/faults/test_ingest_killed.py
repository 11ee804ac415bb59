"""An ingest on three nodes, of which a worker, a node or the driver is killed.

Readers see the version that was published last, whole; the job goes on where Ray can go on, the
same command run again completes where it cannot, and the lake is then what an undisturbed run
leaves, to the byte.
"""

import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from ray_jobs.lake import Lake

if TYPE_CHECKING:
    from tests.faults.conftest import Nodes, World

KINDS = {  # what is killed, and in which phases: workers are idle while the driver publishes
    "worker": ("inspect", "clean", "merge"),
    "node": ("inspect", "clean", "merge", "publish"),
    "driver": ("inspect", "clean", "merge", "publish"),
}
ROUNDS = 2  # kills of each kind in each phase
KILLS = 20  # that must have hit a job before its end
LOOK_S = 0.005  # between two looks at a job's files
LONGEST_S = 240.0  # a job that has not ended by then hangs


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


def point(kind: str, phase: str, world: "World", draw: random.Random) -> Point:
    """A point of a job's progress, not its last, in a phase."""
    name = {"clean": "staged", "merge": "merged", "publish": "commits"}.get(phase)
    if name is None:
        return Point(kind, phase, Progress())
    return Point(kind, phase, Progress(**{name: draw.randint(1, world.most[name] - 1)}))


class Job:
    """An ingest into a lake, by a driver of its own on the cluster."""

    def __init__(self, world: "World", lake: Path, nodes: "Nodes") -> None:
        self.world, self.lake, self.nodes = world, lake, nodes
        self.driver = nodes.driver(world.job_file(lake))

    def begin(self) -> None:
        """Let it begin, as soon as it has joined."""
        assert self.nodes.hear(self.driver) == "ready"
        self.commits = self.world.commits(self.lake)
        self.old = set(self.lake.glob("_staging-*"))
        self.nodes.tell(self.driver, "go")

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
        return Progress(self.world.commits(self.lake) - self.commits, merged, len(slices))

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
                return self.nodes.kill(worker)
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
        assert self.world.digest(self.lake) in (self.world.before, self.world.after)

    def assert_complete(self, account: dict[str, int]) -> None:
        """The lake is as an undisturbed run leaves it, and no row is lost or counted twice."""
        assert account == self.world.counts
        assert self.world.digest(self.lake) == self.world.after
        assert set(self.lake.glob("_staging-*")) == self.old


def test_one_kill_of_each_kind(nodes: "Nodes", world: "World", tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    shutil.copytree(world.published, lake)
    first, again = Job(world, lake, nodes), Job(world, lake, nodes)
    nodes.ask("nodes")
    first.begin()
    assert first.strike(Point("driver", "publish", Progress(commits=1)))
    assert world.digest(lake) == world.before
    again.begin()
    assert again.strike(Point("worker", "clean", Progress(staged=1)))
    assert again.strike(Point("node", "merge", Progress(merged=1)))
    again.assert_complete(again.finish())


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_killed_at_any_point(
    nodes: "Nodes", world: "World", tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(seed)
    nodes.ask("nodes")
    hits, survived, total = 0, 0, Counter[str]()
    for kind, phase in [(k, p) for k, phases in KINDS.items() for p in phases] * ROUNDS:
        drawn = point(kind, phase, world, draw)
        lake = tmp_path / "lake"
        shutil.copytree(world.published, lake)
        job = Job(world, lake, nodes)
        job.begin()
        hit = job.strike(drawn)
        job.assert_whole()
        if hit and kind == "driver":
            job = Job(world, lake, nodes)
            job.begin()
        account = job.finish()
        job.assert_complete(account)
        if hit and kind == "node":
            nodes.ask("add")
        shutil.rmtree(lake)
        hits += hit is not None
        survived += hit is not None and kind != "driver"
        total.update(account)
        with capsys.disabled():
            print(f"\n{line(drawn, hit, account)}", end="", flush=True)
    with capsys.disabled():
        print(
            f"\nseed {seed}: {hits} killed, {survived} survived, {hits - survived} run again; "
            f"{total['rows_in']} rows in = {total['accepted']} accepted + "
            f"{total['rejected']} rejected + {total['duplicates']} duplicates"
        )
    assert hits >= KILLS


def line(point: Point, hit: Progress | None, account: dict[str, int]) -> str:
    """A kill in the printed account; that the content is identical has been asserted."""
    at = f"killed in {hit.phase} ({hit})" if hit else "ended before"
    end = "run again" if hit and point.kind == "driver" else "survived"
    counts = f"{account['rows_in']} rows in, {account['accepted']} accepted"
    return f"{point.kind:6} {at:52} {end:9} {counts}, content identical"
