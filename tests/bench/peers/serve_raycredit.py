"""`raycredit serve`'s own endpoint: python -m tests.bench.peers.serve_raycredit FOLDER WORKERS

FOLDER holds what `tests.bench.serve` prepared. Prints its URL once it answers; ends with its input.
"""

import sys
from pathlib import Path

from ray_jobs import jobs, serve
from ray_jobs.cluster import connected
from ray_jobs.config import load
from ray_jobs.serving import app


def main(folder: Path, workers: int) -> None:
    replicas = [f"serve.{name}={workers}" for name in ("min_replicas", "max_replicas")]
    config = load(str(folder / "config.json"), ["serve.port=0", *replicas])
    with connected(config.cluster):
        print(serve.start(config, jobs.tables(config)), flush=True)
        sys.stdin.read()
        app.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
