"""The snapshot that is measured: the job's own function, labels and sequences and all.

Beside the windows it counts the vocabulary, fits the statistics, and writes each row's last 64
events, last texts and label.
"""

import json
from pathlib import Path

import polars as pl

from ray_jobs.config import Config
from ray_jobs.lake import Lake
from ray_jobs.snapshot import snapshot as job
from ray_jobs.tables import ingested
from tests.bench.peers.ingest_raycredit import COLUMNS, start
from tests.bench.peers.steps import main
from tests.bench.peers.windows import AS_OFS, CHECKED

ROLES = {"fit": (0, 5), "select": (6, 7), "calibrate": (8, 9), "test": (10, 11)}


def snapshot(_: None, source: Path, out: Path, buckets: int) -> dict[str, int]:
    """The rows, and sums of some columns."""
    config = _config(source, out, buckets)
    made = job(config, ingested(Lake(config.lake)))
    files = [file for role in ROLES for file in made.files(role)]
    columns = [pl.len().alias("rows"), *(pl.col(c).sum() for c in CHECKED)]
    row = pl.scan_parquet(files).select(columns).collect().row(0, named=True)
    return {name: round(value) for name, value in row.items()}


def _config(source: Path, out: Path, buckets: int) -> Config:
    split = {
        role: {"first": f"{AS_OFS[a]:%Y-%m-%d}", "last": f"{AS_OFS[b]:%Y-%m-%d}"}
        for role, (a, b) in ROLES.items()
    }
    tree = {
        "lake": str(source / "lake"),
        "work": str(out),
        "buckets": buckets,
        "sources": {
            "events": {"table": "events", "path": "-", "columns": COLUMNS, "currency": "CNY"}
        },
        "tasks": {
            "default": {
                "kind": "binary",
                "expression": "COUNT(*) FILTER (WHERE event_type = 'pay_late') > 0",
            }
        },
        "roles": {"pd": "default"},
        "split": {"schedule": "month", **split},
    }
    return Config.model_validate_json(json.dumps(tree))


if __name__ == "__main__":
    main(start, snapshot)
