"""One way to start or join Ray."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data

from models.data.schema import UserError
from ray_jobs.config import ClusterConfig
from ray_jobs.progress import console

LEAST_CPUS = 4  # logical: two train workers of half a CPU and Ray Data's tasks beside them


@contextmanager
def connected(config: ClusterConfig) -> Iterator[None]:
    """Join the cluster that `RAY_ADDRESS` names (a submitted job has one), else start one here.

    A cluster started here is stopped at the end; one that was joined, or that the caller had
    already connected to, is left as it was.
    """
    if ray.is_initialized():
        yield
        return
    start(config)
    try:
        yield
    finally:
        ray.shutdown()


def start(config: ClusterConfig) -> None:
    """Connect this process to Ray. Raises UserError."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS {address} takes jobs: `ray job submit -- python -m ray_jobs …`, or unset "
            "RAY_ADDRESS to start Ray here"
        )
    _quieten()
    # how often a run of ranks is looked at; the default makes a short run twice as long
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
    # actors beside tasks are meant here: without this Ray warns of the eighth worker process
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "6")
    if address:
        ray.init(logging_level=logging.WARNING)
        return
    # a task has one CPU: with a thread a core in each, tasks of Polars would crowd each other out
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    ray.init(
        "local",  # whatever else runs on this machine
        num_cpus=config.num_cpus or max(LEAST_CPUS, os.cpu_count() or 1),
        object_store_memory=config.object_store_mb << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def on_gpus(asked: bool | None) -> bool:
    """Whether trainings take GPUs: as asked, else where the cluster has some at this moment.

    Those of nodes that an autoscaler is yet to start it does not see.
    """
    return ray.cluster_resources().get("GPU", 0) > 0 if asked is None else asked


def _quieten() -> None:
    """Bars of Ray's own in a terminal; in a log, only the lines that the jobs say themselves."""
    ray.data.DataContext.get_current().enable_progress_bars = console.is_terminal
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":  # the files under Ray's session keep everything
            handler.setLevel(logging.WARNING)
    for name in ("ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
