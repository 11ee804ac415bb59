"""The ingest that is measured: the job's own function, on Ray with two cores.

With `RAYCREDIT_BENCH_NODES` set, on so many nodes of one core, beside a head that runs no task.
"""

import atexit
import os
from datetime import UTC
from pathlib import Path

import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray.cluster_utils import Cluster

from models.data.source import Source
from ray_jobs import cluster
from ray_jobs.config import ClusterConfig
from ray_jobs.ingest import ingest as job
from ray_jobs.lake import Lake
from tests.bench import raw
from tests.bench.peers.steps import SECRET, main

STORE = 256 << 20  # bytes of a node's object store
COLUMNS = {
    "user_id": "user_id",
    "event_id": "event_id",
    "event_time": "time",
    "event_type": "type",
    "item": "item",
    "category": "category",
    "counterparty_id": "counterparty",
    "amount": "amount",
    "text": "text",
}


def ingest(_: None, source: Path, out: Path, buckets: int) -> dict[str, int]:
    """Counts of rows accepted and rejected, and duplicates."""
    events = Source(
        table="events",
        path=f"{source}/*.parquet",
        columns=COLUMNS,
        timezone=raw.TIMEZONE,
        currency="CNY",
    )
    account = job(
        Lake(str(out / "lake")),
        {"events": events},
        numeric=(),
        categorical=(),
        protected=(),
        buckets=buckets,
        secret=SECRET,
        now=raw.NOW.replace(tzinfo=UTC),
    )
    (count,) = account.parts.values()
    return {"accepted": count.accepted, "rejected": count.rejected, "twice": count.duplicates}


def start() -> None:
    """Start Ray on two cores, or a cluster of nodes with a core each; start its workers."""
    nodes = int(os.environ.get("RAYCREDIT_BENCH_NODES", "0"))
    if nodes:
        os.environ["POLARS_MAX_THREADS"] = "1"
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        started = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(nodes):
            started.add_node(num_cpus=1, object_store_memory=STORE)
        atexit.register(started.shutdown)
        os.environ["RAY_ADDRESS"] = started.address
    cluster.start(ClusterConfig(num_cpus=2))
    ray.get([_imported.remote() for _ in range(nodes or 2)])


def spilled() -> dict[str, int]:
    """Bytes that the object store of the driver's node has written to disk for want of room."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    stats = get_memory_info_reply(state).store_stats
    return {"spilled_bytes": stats.spilled_bytes_total}


@ray.remote(num_cpus=1)
def _imported() -> None:
    """Import what the tasks of an ingest import."""
    import ray_jobs.staging  # noqa: F401


if __name__ == "__main__":
    main(start, ingest, spilled)
