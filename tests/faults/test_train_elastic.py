"""A training on as many ranks as there is room for: it goes on with fewer when a node is lost, and
with more again when another one comes."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from ray_jobs.config import Config
from tests.faults.conftest import LONGEST_S, Nodes
from tests.faults.test_train_killed import copy_of, known

EPOCHS = 60  # room is looked for once a minute
RANK, CONTROLLER = "RayTrainWorker", "TrainController"
TICK_S = 0.05
pytestmark = pytest.mark.faults


@pytest.fixture
def roomy() -> Iterator[Nodes]:
    """Two nodes that have room for one rank of two CPUs each, and for a task of Ray Data."""
    with tempfile.TemporaryDirectory(prefix="rc-", ignore_cleanup_errors=True) as folder:
        cluster = Nodes(folder, cpus=3)
        yield cluster
        cluster.close()


def running(raylet: int, what: str) -> int:
    """How many of a node's workers run it; none where there is no such node."""
    found = 0
    try:
        workers = psutil.Process(raylet).children()
    except psutil.NoSuchProcess:
        return 0
    for worker in workers:
        try:
            found += what in " ".join(worker.cmdline())
        except psutil.Error:  # it has just ended
            continue
    return found


def test_a_node_is_lost_and_another_comes(demo_run: Config, tmp_path: Path, roomy: Nodes) -> None:
    config = copy_of(demo_run, tmp_path, 2)
    tree = yaml.safe_load((tmp_path / "config.yaml").read_text())
    tree["train"] |= {"workers": [1, 2], "cpus_per_worker": 2.0}
    tree["train"]["loop"] |= {"epochs": EPOCHS, "patience": EPOCHS}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    roomy.ask("nodes")
    with (tmp_path / "said").open("w") as said:
        job = subprocess.Popen(
            [sys.executable, "-m", "ray_jobs", "train", "-c", "config.yaml", "--name", "elastic"],
            cwd=tmp_path, env=roomy.environment, stdout=said, stderr=said, text=True,
        )  # fmt: skip
    roomy.drivers.append(job)
    deadline = time.monotonic() + 3 * LONGEST_S
    lost = fewer = back = more = 0  # the last checkpoint of then
    while job.poll() is None and time.monotonic() < deadline:
        ranks, checkpoint = [running(r, RANK) for r in roomy.raylets], known(config, "elastic")
        if not lost and ranks == [1, 1] and checkpoint:
            first, second = roomy.raylets
            roomy.ask(f"kill {first if running(second, CONTROLLER) else second}")
            lost = known(config, "elastic")
        elif lost and not fewer and ranks == [1] and checkpoint > lost:
            roomy.ask("add")
            fewer = checkpoint
        elif fewer and not back and ranks == [1, 1]:
            back = checkpoint
        elif back and ranks == [1, 1] and checkpoint > back:
            more = checkpoint
        time.sleep(TICK_S)
    assert job.returncode == 0, (tmp_path / "said").read_text()
    assert 0 < lost < fewer <= back < more
    (found,) = Path(config.work, "artifacts").glob("*.epochs.json")
    epochs = json.loads(found.read_text())
    assert [epoch["epoch"] for epoch in epochs] == list(range(EPOCHS))
    losses = [epoch["select_loss"] for epoch in epochs]
    assert min(losses) < losses[0]
