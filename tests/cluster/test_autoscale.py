"""A head without CPUs, whose autoscaler starts nodes for a job, with Ray's fake provider.

`ray.cluster_utils.AutoscalingCluster` is no use here: it stops every Ray on the machine first, and
reads an example.yaml that the wheel does not have. So the head is started with a configuration of
our own.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ray_jobs import jobs
from ray_jobs.config import load

if TYPE_CHECKING:
    from tests.cluster.conftest import Head, StartHead
    from tests.conftest import SmallShop

NODES = """
from ray.util.state import list_nodes
for node in list_nodes():
    print(node.is_head_node, node.resources_total.get("CPU", 0))
"""
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")
FAKE = {
    "cluster_name": "fake",
    "max_workers": 2,
    "idle_timeout_minutes": 5,
    "upscaling_speed": 1.0,
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    **{f"{name}_commands": [] for name in (*COMMANDS, "worker_start_ray")},
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {
            "resources": {"CPU": 1, "object_store_memory": 128 << 20},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
        },
    },
}


def nodes(head: "Head") -> list[str]:
    """Each node there is or was: whether it is the head, and its CPUs."""
    listed = head.run("python", "-c", NODES)
    assert listed.returncode == 0, listed.stderr
    return sorted(listed.stdout.splitlines())


@pytest.mark.cluster
def test_an_ingest_makes_the_cluster_grow(
    start_head: "StartHead", small_shop: "SmallShop", tmp_path: Path
) -> None:
    small_shop.write(tmp_path / "raw")
    config = small_shop.config(tmp_path / "run", str(tmp_path / "raw"))
    head = start_head(cpus=0, autoscaling=FAKE)
    assert nodes(head) == ["True 0"]
    command = ["python", "-m", "ray_jobs", "ingest", "-c", config]
    done = head.run("ray", "job", "submit", "--working-dir", ".", "--", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert jobs.tables(load(config)).lake.read("events").height == 720
    grown = nodes(head)
    assert grown[-1] == "True 0" and set(grown[:-1]) == {"False 1.0"} and len(grown) in (2, 3)
