"""One job a bucket, as Ray Data tasks. The exchange is through storage; only counts come back."""

import json
from collections.abc import Callable
from typing import Any

import ray.data
from ray.data import ActorPoolStrategy

Job = Callable[[int], dict[str, Any]]


class _Row:
    """A bucket's job as a map over rows; JSON, since Arrow would guess at nested types."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def run(self, row: dict[str, Any]) -> dict[str, Any]:
        bucket = int(row["bucket"])
        return {"bucket": bucket, "result": json.dumps(self.job(bucket))}


def over_buckets(buckets: int, job: Job, title: str) -> list[dict[str, Any]]:
    """The results of a picklable `job(bucket)` for each bucket, in order."""
    return _results(_work(buckets, title).map(_Row(job).run))


def with_actors(
    buckets: int, kind: type[Any], arguments: dict[str, Any], title: str, workers: int
) -> list[dict[str, Any]]:
    """The same where `kind(**arguments)` is costly to make: once a worker, called with buckets."""

    class Worker:
        def __init__(self) -> None:
            self.row = _Row(kind(**arguments))

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return self.row.run(row)

    pool = ActorPoolStrategy(size=min(workers, buckets))
    done = _work(buckets, title).map(Worker, compute=pool, num_cpus=1)  # type: ignore[arg-type]  # Ray types functions only
    return _results(done)


def total(results: list[dict[str, Any]]) -> dict[str, int]:
    """The sum of counts, key by key."""
    return {key: sum(int(r[key]) for r in results) for key in results[0]}


def _work(buckets: int, title: str) -> ray.data.Dataset:
    work = ray.data.from_items([{"bucket": b} for b in range(buckets)], override_num_blocks=buckets)
    work.set_name(title)
    return work


def _results(done: ray.data.Dataset) -> list[dict[str, Any]]:
    rows = sorted(done.take_all(), key=lambda r: int(r["bucket"]))
    return [json.loads(r["result"]) for r in rows]
