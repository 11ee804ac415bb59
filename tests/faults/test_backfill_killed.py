"""A backfill whose driver is killed: readers see the scores of before, or all the new ones."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from ray_jobs import jobs
from ray_jobs.config import Config, load

KILLS = 20
LONGEST_S = 60.0


def copy_of(demo_run: Config, folder: Path) -> Config:
    """A copy of the demo's lake, to be backfilled as of a date that has no scores yet."""
    shutil.copytree(demo_run.lake, folder / "lake")
    tree = demo_run.model_dump(mode="json", exclude_unset=True)
    tree |= {"lake": str(folder / "lake"), "backfill": {"as_of": "2024-07-01"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load(str(folder / "config.yaml"))


def start(config: Config) -> subprocess.Popen[bytes]:
    """The backfill with a Ray of its own, which dies with its driver."""
    path = Path(config.lake).parent / "config.yaml"
    return subprocess.Popen(
        [sys.executable, "-m", "ray_jobs", "backfill", "-c", str(path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def published(config: Config) -> pl.DataFrame:
    """What a reader sees of the date."""
    lake = jobs.tables(config).lake
    return lake.read("scores", where={"as_of_date": str(config.backfill.as_of)})


def kill_after(config: Config, seconds: float) -> bool:
    """Whether the job was killed before it ended by itself."""
    job = start(config)
    try:
        job.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        job.send_signal(signal.SIGKILL)
        job.wait()
        return True
    assert job.returncode == 0
    return False


def kill_at_first_scores(config: Config) -> bool:
    """Whether the job was killed once scores of the date were on disk, before it ended."""
    job = start(config)
    folder = Path(config.lake) / "scores" / f"as_of_date={config.backfill.as_of}"
    while job.poll() is None and not any(folder.glob("*.parquet")):
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    return job.wait() == -signal.SIGKILL


def finish(config: Config) -> tuple[pl.DataFrame, float]:
    """Run it to its end; what is published then, and the seconds it took."""
    began = time.monotonic()
    job = start(config)
    assert job.wait(timeout=LONGEST_S * 4) == 0
    return published(config), time.monotonic() - began


def assert_whole(scores: pl.DataFrame, config: Config) -> None:
    """One row a user who had an event before the date; nobody twice, nobody left out."""
    tables = jobs.tables(config)
    events = pl.concat([tables.events(bucket) for bucket in tables.buckets])
    before = events.filter(pl.col("event_time").dt.date() < config.backfill.as_of)
    assert scores.height == scores["user_key"].n_unique() == before["user_key"].n_unique()


def test_killed_once_nothing_is_half_published(demo_run: Config, tmp_path: Path) -> None:
    config = copy_of(demo_run, tmp_path)
    assert kill_at_first_scores(config)
    seen = published(config)
    scores, _ = finish(config)
    assert_whole(scores, config)
    assert seen.height in (0, scores.height)


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_killed_at_any_time_nothing_is_half_published(
    demo_run: Config, tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(seed)
    (tmp_path / "whole").mkdir()
    whole, seconds = finish(copy_of(demo_run, tmp_path / "whole"))
    killed = 0
    for number in range(KILLS):
        folder = tmp_path / str(number)
        folder.mkdir()
        config = copy_of(demo_run, folder)
        killed += kill_after(config, draw.uniform(0.2, 1.05) * seconds)
        assert published(config).height in (0, whole.height)
        scores, _ = finish(config)
        assert_whole(scores, config)
        assert scores["user_key"].sort().equals(whole["user_key"].sort())
        shutil.rmtree(folder)
    with capsys.disabled():
        ended = KILLS - killed
        print(
            f"\nseed {seed}: {killed} killed, {ended} ended before; {whole.height} scores each time"
        )
