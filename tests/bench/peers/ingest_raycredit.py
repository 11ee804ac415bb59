"""The ingest that is measured: the job's own function, on Ray with two cores."""

from datetime import UTC
from pathlib import Path

import ray

from models.data.source import Source
from ray_jobs import cluster
from ray_jobs.config import ClusterConfig
from ray_jobs.ingest import ingest as job
from ray_jobs.lake import Lake
from tests.bench import raw
from tests.bench.peers.steps import SECRET, main

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
    """Start Ray on two cores, or join the cluster that `RAY_ADDRESS` names; start its workers."""
    cluster.start(ClusterConfig(num_cpus=2))
    ray.get([_imported.remote() for _ in range(2)])


@ray.remote(num_cpus=1)
def _imported() -> None:
    """Import what the tasks of an ingest import."""
    import ray_jobs.staging  # noqa: F401


if __name__ == "__main__":
    main(start, ingest)
