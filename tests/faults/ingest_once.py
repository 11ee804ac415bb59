"""One ingest, as a driver of its own: `python ingest_once.py JOB.json`.

Joins the cluster that RAY_ADDRESS names, says `ready`, and begins when a line comes in. What
`raycredit ingest` does, without the seconds that the other verbs take to be imported.
"""

import json
import logging
import sys
from datetime import datetime
from pathlib import Path

import ray
import ray.data

from models.data.source import Source
from ray_jobs.ingest import ingest
from ray_jobs.lake import Lake


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    ray.data.DataContext.get_current().enable_progress_bars = False
    ray.init(logging_level=logging.WARNING, log_to_driver=False)
    print("ready", flush=True)
    sys.stdin.readline()
    ingest(
        Lake(job["lake"]),
        {name: Source.model_validate(source) for name, source in job["sources"].items()},
        numeric=("age",),
        categorical=(),
        protected=(),
        buckets=job["buckets"],
        secret=job["secret"].encode(),
        now=datetime.fromisoformat(job["now"]),
    )


if __name__ == "__main__":
    main()
