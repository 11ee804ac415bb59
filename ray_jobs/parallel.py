"""A function over many units of work as Ray Data tasks, one block a unit, results in order."""

import math
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
import ray.data
from ray.data import ActorPoolStrategy
from ray.exceptions import RayTaskError

from models.data.schema import UserError

U = TypeVar("U")
R = TypeVar("R")


def over(units: Sequence[U], job: Callable[[U], R], title: str) -> list[R]:
    """`job(unit)` of each unit, on the cluster; `job` and `R` can be pickled and are small.

    Raises the UserError of the first unit, in order, that raised one.
    """
    if not units:
        return []

    def task(row: dict[str, Any]) -> dict[str, Any]:
        return _done(job, row)

    return _results(_work(units, title).map(task))


def over_actors(
    units: Sequence[U], make: Callable[[], Callable[[U], R]], title: str, workers: int
) -> list[R]:
    """The same where the job is costly to make, such as one that loads a model: `make()` is
    called once in each of at most `workers` actors."""
    if not units:
        return []

    class Worker:
        def __init__(self) -> None:
            self.job = make()

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            return _done(self.job, row)

    pool = ActorPoolStrategy(size=min(workers, len(units)))
    work = _work(units, title)
    return _results(work.map(Worker, compute=pool, num_cpus=1))  # type: ignore[arg-type]  # a class


def threads_of(workers: int) -> int:
    """How many threads an actor may have that is one of so many: its node's cores, shared.

    Ray Data spreads actors over the nodes, as many on each as it has CPUs for. So there may be as
    many here as fall to this node by the number of nodes, or by its CPUs.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]
    cpus: dict[str, float] = {n["NodeID"]: n["Resources"].get("CPU", 0) for n in alive}
    nodes, own = sum(n >= 1 for n in cpus.values()), cpus[ray.get_runtime_context().get_node_id()]
    here = math.ceil(max(workers / nodes, workers * own / sum(cpus.values())))
    return max(1, (os.cpu_count() or 1) // here)


def result_of(task: "ray.ObjectRef[R]") -> R:
    """What a task returned; a UserError that it raised, without Ray's traceback around it."""
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise error.cause if isinstance(error.cause, UserError) else error from error


def total(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The sum of counts, key by key."""
    return {key: sum(one[key] for one in counts) for key in counts[0]}


def _work(units: Sequence[Any], title: str) -> ray.data.Dataset:
    # pickled, since Arrow would guess at nested types
    rows = [{"at": at, "unit": pickle.dumps(unit)} for at, unit in enumerate(units)]
    work = ray.data.from_items(rows, override_num_blocks=len(rows))
    work.set_name(title)
    # Ray Data would hold tasks back until it knows how large their results are: they are tiny
    work.context.op_resource_reservation_enabled = False
    return work


def _done(job: Callable[[Any], Any], row: dict[str, Any]) -> dict[str, Any]:
    try:
        done = job(pickle.loads(row["unit"]))
    except UserError as error:
        done = error
    return {"at": row["at"], "done": pickle.dumps(done)}


def _results(work: ray.data.Dataset) -> list[Any]:
    found = sorted(work.take_all(), key=lambda row: int(row["at"]))
    results = [pickle.loads(row["done"]) for row in found]
    for result in results:
        if isinstance(result, UserError):
            raise result
    return results
