"""`raycredit train`'s own Ray Train job: python -m tests.bench.peers.fit_raycredit RANKS FOLDER

FOLDER holds what `tests.bench.train` prepared. The first epoch warms up, the last one counts.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

from ray.train.torch import TorchTrainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ray_jobs import snapshot, tracking
from ray_jobs.checkpoint import history_of
from ray_jobs.cluster import connected
from ray_jobs.config import Config
from ray_jobs.ranks import fit, trainer


def nothing() -> None:
    """A run that only starts and ends."""


def main(ranks: int, folder: Path) -> None:
    config = Config.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
    train = config.train.model_copy(update={"workers": ranks})
    config = config.model_copy(update={"train": train})
    made = snapshot.load(next((folder / "snapshots").iterdir()))
    with connected(config.cluster):
        make = partial(trainer, config, made, folder, threads=1)
        job = make("run")
        began = time.time()
        result = fit(job)
        empty = make("empty")
        start = time.perf_counter()
        TorchTrainer(
            nothing,
            scaling_config=empty.scaling_config,
            torch_config=empty.backend_config,
            run_config=empty.run_config,
        ).fit()
        startup = time.perf_counter() - start
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as last:
        epoch = history_of(Path(last))[-1]
    events = EventAccumulator(str(folder / "run" / tracking.EVENTS)).Reload()
    first_step = events.Scalars("train/step_loss")[0].wall_time - began
    found = {name: epoch[name] for name in ("rows_per_s", "waiting", "padding")}
    print(json.dumps(found | {"startup_s": startup, "first_step_s": first_step}))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
