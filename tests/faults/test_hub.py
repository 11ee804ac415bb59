"""A node with a million ties: one process does all the work, and stays within a worker's memory."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.data.buckets import bucket_of
from models.data.clean import conform
from models.data.schema import EDGES, LABELS
from ray_jobs.lake import Lake

TIES = 1_000_000
BUCKETS = 8
CAP = 10_000
MOST_MIB = 1536  # the whole process, libraries included

# Every task in this process, one after the other, so that its peak is the largest task's at least.
PUBLISH = """
import json, resource, sys
from datetime import UTC, datetime
from models.data.buckets import buckets
from ray_jobs import graph
from ray_jobs.config import load
from ray_jobs.lake import Lake
from ray_jobs.tables import Tables
graph.over = lambda units, job, title: [job(unit) for unit in units]
lake, count = Lake(sys.argv[1]), int(sys.argv[2])
config = load("demo", [f"features.max_ties_of_a_node={sys.argv[3]}"])
months = [datetime(2024, month, 1, tzinfo=UTC) for month in (1, 2)]
account = graph.publish(config, Tables(lake, lake.versions(), buckets(count)), months)
print(json.dumps(account | {"mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10}))
"""


def make_hub(lake: Lake, kind: str) -> None:
    """A million users tied to one device, or to one user; one in ten has a bad outcome."""
    rng = np.random.default_rng(0)
    users = rng.integers(-(2**63), 2**63 - 1, TIES)
    start = pl.lit(datetime(2023, 6, 1, tzinfo=UTC))
    ties = pl.DataFrame({"user_key": users}).with_columns(
        dst=pl.lit(7), dst_kind=pl.lit(kind), relation=pl.lit("device"), valid_from=start
    )
    outcomes = pl.DataFrame({"user_key": users, "value": (rng.random(TIES) < 0.1).astype(float)})
    frames = (
        (EDGES, ties.with_columns(available_at=start)),
        (LABELS, outcomes.with_columns(task=pl.lit("default"), as_of=start, matured_at=start)),
    )
    for table, frame in frames:
        placed = conform(frame, table).with_columns(bucket=bucket_of(pl.col("user_key"), BUCKETS))
        files = [
            lake.write_part(table, part, {"source": "s", "period": "all", "bucket": bucket})
            for (bucket,), part in placed.group_by("bucket")
        ]
        lake.publish(table, app=table.name, generation=1, files=files)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["device", "user"])
def test_a_hub_of_a_million_ties_breaks_no_worker(tmp_path: Path, kind: str) -> None:
    lake = Lake(str(tmp_path / "lake"))
    make_hub(lake, kind)
    done = subprocess.run(
        [sys.executable, "-c", PUBLISH, lake.root, str(BUCKETS), str(CAP)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    account = json.loads(done.stdout.splitlines()[-1])
    print(f"a {kind} with {TIES:,} ties: {account}")
    assert account["mib"] < MOST_MIB
    january = lake.read("graph", where={"graph_month": "2024-01-01"})
    if kind == "device":
        assert (account["hubs"], account["ties_left_out"]) == (2, 2 * (TIES - CAP))
        assert january.height == TIES
        assert january["device_shared"].unique().to_list() == [TIES - 1]
        assert january["device_bad"].to_numpy() == pytest.approx(0.1 * TIES, rel=0.12)
    else:  # each tie between two users is a node of its own: all are counted
        assert account["hubs"] == 0
        hub = january.filter(pl.col("user_key") == 7)
        assert hub["device_nodes"].to_list() == hub["device_known"].to_list() == [TIES]
