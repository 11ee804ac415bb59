"""A training whose ranks or driver are killed: it goes on, and comes to the same."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ray_jobs import jobs, snapshot, train
from ray_jobs.config import Config, load
from ray_jobs.lake import Lake

EVERY = 5  # steps between checkpoints
MANAGER = "checkpoint_manager_snapshot.json"
LONGEST_S = 240.0
pytestmark = pytest.mark.faults
Epochs = list[dict[str, Any]]


def copy_of(demo_run: Config, folder: Path, workers: int) -> Config:
    """The demo's lake and snapshot, to be trained on in a folder of its own."""
    shutil.copytree(demo_run.lake, folder / "lake")
    shutil.copytree(Path(demo_run.work) / "snapshots", folder / "snapshots")
    tree = demo_run.model_dump(mode="json", exclude_unset=True)
    tree |= {"lake": str(folder / "lake"), "work": str(folder)}
    loop = tree["train"]["loop"] | {"epochs": 3, "frozen_epochs": 0, "precision": "fp32"}
    tree["train"] |= {"loop": loop, "workers": workers, "checkpoint_steps": EVERY}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load(str(folder / "config.yaml"))


def epochs_of(path: Path) -> Epochs:
    epochs: Epochs = json.loads(path.with_name(f"{path.name}.epochs.json").read_text())
    return epochs


def known(config: Config, name: str) -> int:
    """Another number whenever Ray Train has heard of another checkpoint; 0 before the first."""
    kept = Path(config.work) / "train" / name / MANAGER
    return kept.stat().st_mtime_ns if kept.exists() else 0


def reports(config: Config, name: str) -> int:
    """How many checkpoints a run has had in all."""
    kept = Path(config.work) / "train" / name / MANAGER
    count: int = json.loads(kept.read_text())["current_report_index"]
    return count


def ranks() -> list[psutil.Process]:
    """The processes of Ray Train's workers below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended while we looked
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def after(seen: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Watch for something, then do something, beside what is done here."""

    def watch() -> None:
        deadline = time.monotonic() + LONGEST_S
        while time.monotonic() < deadline:
            if seen():
                return then()
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_ranks_is_killed_twice(demo_run: Config, tmp_path: Path, victim: int) -> None:
    """Whichever it is; the sums of a run's gradients may differ in their last bits."""
    config = copy_of(demo_run, tmp_path, 2)
    made = snapshot.snapshot(config, jobs.tables(config))
    whole = epochs_of(train.train(config, Lake(config.lake), made, "whole"))
    killed: dict[int, int] = {}  # pid → what was known of checkpoints

    def kill() -> None:
        process = ranks()[victim]
        killed[process.pid] = known(config, "killed")
        process.send_signal(signal.SIGKILL)

    def again() -> bool:
        """Whether new ranks have made a checkpoint since the first kill."""
        pids = {process.pid for process in ranks()}
        new = len(pids) == 2 and killed and not pids & set(killed)
        return bool(new) and known(config, "killed") not in killed.values()

    first = after(lambda: known(config, "killed") > 0, kill)
    second = after(again, kill)
    path = train.train(config, Lake(config.lake), made, "killed")
    first.join()
    second.join()
    assert len(killed) == 2
    epochs = epochs_of(path)
    losses = [e["select_loss"] for e in epochs]
    assert losses == pytest.approx([e["select_loss"] for e in whole], rel=1e-3)
    assert reports(config, "killed") == reports(config, "whole")


def test_a_run_whose_driver_is_killed_goes_on_under_its_name(
    demo_run: Config, tmp_path: Path
) -> None:
    config = copy_of(demo_run, tmp_path, 1)
    job = [sys.executable, "-m", "ray_jobs", "train", "-c", str(tmp_path / "config.yaml")]

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*job, "--name", name],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    for _ in range(2):  # the second time it is killed while it goes on
        before, driver = known(config, "killed"), start("killed")
        watch = after(lambda before=before: known(config, "killed") != before, driver.kill)
        assert driver.wait(timeout=LONGEST_S) == -signal.SIGKILL
        watch.join()
    assert start("killed").wait(timeout=LONGEST_S) == 0
    assert start("whole").wait(timeout=LONGEST_S) == 0
    found = sorted(Path(config.work, "artifacts").glob("*.epochs.json"))
    killed, whole = (json.loads(path.read_text()) for path in found)
    assert [e["select_loss"] for e in killed] == [e["select_loss"] for e in whole]
    assert reports(config, "killed") == reports(config, "whole")
